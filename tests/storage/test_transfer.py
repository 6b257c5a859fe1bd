from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

import pytest
import tenacity

from ossconsole.sandbox.faults import Corrupt, FaultPlan, Rule
from ossconsole.storage import retry
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.download import Download, DownloadItem, Existing
from ossconsole.storage.jobs.job import JobState
from ossconsole.storage.multipart import PART_SIZE
from ossconsole.storage.objects import ObjectSummary
from ossconsole.storage.retry import NO_RETRY, RetryPolicy
from tests.sandboxed import Sandboxed
from tests.storage.cutting_proxy import cutting
from tests.waiting import run_to_end

WAIT_S = 60.0
LARGE = os.urandom(1 << 20) * 20 + b"tail"  # three parts


def summary(store: ObjectStore, key: str) -> ObjectSummary:
    (found,) = store.list_page(key, delimiter="").objects
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_tree_with_nasty_names_arrives_whole_and_inside_the_folder(
    store: ObjectStore, prefix: str, tmp_path: Path
) -> None:
    keys = {
        "a": b"1",
        "a/b": b"22",
        "x//y": b"333",
        "../../up": b"4444",
        "empty": b"",
        "esc\x1b[31m": b"5",
        "Case": b"6",
        "case": b"7",
        "marker/": b"",
        "n" * (1023 - len(prefix)): b"8",
    }
    for key, data in keys.items():
        store.put(prefix + key, data)
    folder = tmp_path / "down"
    job = run_to_end(Download(store, [prefix], prefix, folder))
    assert job.failures == []
    assert job.state is JobState.DONE
    found = files(folder)
    assert sorted(found.values()) == sorted(data for key, data in keys.items() if key != "marker/")
    assert found["%2E%2E/%2E%2E/up"] == b"4444"
    assert found["a%/b"] == b"22"
    assert (folder / "marker").is_dir()
    assert [path for path in tmp_path.iterdir() if path != folder] == []
    progress = job.progress()
    assert progress.bytes_done == progress.bytes_total == sum(map(len, keys.values()))
    assert progress.items_done + progress.items_skipped == len(keys)


@pytest.mark.parametrize("size", [1_000, PART_SIZE + 1000], ids=["small", "in parts"])
def test_encoded_objects_and_links_arrive_as_they_are_stored(
    store: ObjectStore, prefix: str, tmp_path: Path, size: int
) -> None:
    body = gzip.compress(os.urandom(size))
    store.sdk.put_object(f"{prefix}a.gz", body, headers={"Content-Encoding": "gzip"})
    store.sdk.put_symlink(f"{prefix}a.gz", f"{prefix}link")
    store.sdk.put_symlink(f"{prefix}nothing", f"{prefix}dangling")
    job = run_to_end(Download(store, [prefix], prefix, tmp_path / "down"))
    assert files(tmp_path / "down") == {"a.gz": body, "link": body}
    (failure,) = job.failures
    assert failure.path == f"{prefix}dangling"
    assert "names an object that does not exist" in failure.reason
    progress = job.progress()
    assert progress.bytes_done == progress.bytes_total == 2 * len(body)
    assert store.get_range(f"{prefix}a.gz", 5, 100) == body[5:105]


def test_a_second_download_fetches_nothing_and_a_changed_file_is_kept_replaced_or_renamed(
    store: ObjectStore, prefix: str, tmp_path: Path
) -> None:
    store.put(f"{prefix}one.txt", b"one")
    store.put(f"{prefix}two.txt", b"two")
    assert run_to_end(Download(store, [prefix], prefix, tmp_path)).progress().items_done == 2
    again = run_to_end(Download(store, [prefix], prefix, tmp_path))
    assert (again.progress().items_done, again.progress().items_skipped) == (0, 2)

    (tmp_path / "one.txt").write_bytes(b"mine")
    os.utime(tmp_path / "two.txt", (1, 1))  # same bytes, other time: its CRC64 decides
    kept = run_to_end(Download(store, [prefix], prefix, tmp_path))
    assert kept.progress().items_skipped == 2
    assert files(tmp_path) == {"one.txt": b"mine", "two.txt": b"two"}

    renamed = run_to_end(Download(store, [prefix], prefix, tmp_path, existing=Existing.RENAME))
    assert renamed.progress().items_done == 1
    assert run_to_end(renamed.retry()).progress().items_done == 0
    assert files(tmp_path) == {"one.txt": b"mine", "one (1).txt": b"one", "two.txt": b"two"}

    run_to_end(Download(store, [prefix], prefix, tmp_path, existing=Existing.REPLACE))
    assert files(tmp_path)["one.txt"] == b"one"

    (tmp_path / "one.txt").write_bytes(b"eno")
    in_its_second = summary(store, f"{prefix}one.txt").modified * 10**9 + 1
    os.utime(tmp_path / "one.txt", ns=(in_its_second, in_its_second))
    run_to_end(Download(store, [prefix], prefix, tmp_path, existing=Existing.REPLACE))
    assert files(tmp_path)["one.txt"] == b"one"


def test_a_large_object_comes_in_parts_and_bears_its_time(store: ObjectStore, prefix: str, tmp_path: Path) -> None:
    store.put(f"{prefix}large", LARGE)
    found = summary(store, f"{prefix}large")
    job = run_to_end(Download(store, [found], prefix, tmp_path))
    assert job.failures == []
    assert files(tmp_path) == {"large": LARGE}
    assert int((tmp_path / "large").stat().st_mtime) == found.modified


def test_no_more_objects_are_fetched_at_once_than_there_are_threads(
    store: ObjectStore, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        store.put(f"{prefix}{number:02d}", b"x")
    begun: list[str] = []
    fetch, busy, together = Download._fetch_small, threading.Semaphore(3), threading.Barrier(3)

    def watched(job: Download, item: DownloadItem, descriptor: int) -> None:
        assert busy.acquire(blocking=False)
        together.wait(WAIT_S)  # three do come side by side
        begun.append(item.key)
        busy.release()
        fetch(job, item, descriptor)

    monkeypatch.setattr(Download, "_fetch_small", watched)
    assert run_to_end(Download(store, [prefix], prefix, tmp_path, threads=3)).failures == []
    assert len(begun) == 12


def test_a_cancelled_download_continues_where_it_stopped(
    sandboxed_bucket: Sandboxed, prefix: str, tmp_path: Path
) -> None:
    plain = sandboxed_bucket.store()
    plain.put(f"{prefix}large", LARGE)
    found = summary(plain, f"{prefix}large")
    job = Download(plain, [found], prefix, tmp_path, threads=1)
    reached = threading.Event()
    reach = job.tracker.advance

    def watch(item: object, done: int) -> None:
        reach(item, done)
        if job.progress().bytes_done > PART_SIZE + 100:
            job.cancel()
            reached.set()

    job.tracker.advance = watch  # type: ignore[method-assign]
    run_to_end(job)
    assert reached.is_set()
    assert job.state is JobState.CANCELLED
    assert "large" not in files(tmp_path)
    again = job.retry()
    counted: list[int] = []
    expected_reach = again.tracker.advance

    def count(item: object, done: int) -> None:
        if item != (found.key, -1):
            counted.append(done)
        expected_reach(item, done)

    again.tracker.advance = count  # type: ignore[method-assign]
    run_to_end(again)
    assert again.failures == []
    assert files(tmp_path) == {"large": LARGE}
    assert max(counted) <= PART_SIZE
    assert again.progress().bytes_done == len(LARGE)
    plain.close()


@pytest.mark.parametrize("data", [LARGE, b"small" * 40_000], ids=["parts", "whole"])
def test_connections_that_break_off_are_taken_up_again(
    sandboxed_bucket: Sandboxed, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(retry, "backoff", lambda _policy: tenacity.wait_none())
    with cutting(sandboxed_bucket.process.profile(), cut_after=100_000) as (proxy, profile):
        store = ObjectStore(profile, sandboxed_bucket.owner, retry=RetryPolicy(attempts=6))
        store.put(f"{prefix}object", data)
        found = summary(store, f"{prefix}object")
        proxy.cuts = 3
        job = run_to_end(Download(store, [found], prefix, tmp_path))
        assert job.failures == []
        assert proxy.cuts == 0
        assert files(tmp_path) == {"object": data}
        assert job.progress().bytes_done == len(data)
        store.close()


def test_a_large_object_that_came_with_a_wrong_byte_is_fetched_again(
    sandboxed_bucket: Sandboxed, store: ObjectStore, prefix: str, tmp_path: Path
) -> None:
    store.put(f"{prefix}large", LARGE)
    found = summary(store, f"{prefix}large")
    with sandboxed_bucket.faults(FaultPlan(rules=[Rule(action=Corrupt(), operation="GetObject", times=2)])):
        job = run_to_end(Download(store, [found], prefix, tmp_path))
    assert job.failures == []
    assert job.note
    assert files(tmp_path) == {"large": LARGE}
    progress = job.progress()
    assert (progress.items_done, progress.bytes_done) == (1, len(LARGE))


def test_an_object_that_never_arrives_with_its_crc_fails_after_some_rounds(
    sandboxed_bucket: Sandboxed, store: ObjectStore, prefix: str, tmp_path: Path
) -> None:
    store.put(f"{prefix}large", LARGE)
    store.put(f"{prefix}small", b"sound")
    plan = FaultPlan(rules=[Rule(action=Corrupt(), operation="GetObject", key="*large", times=None)])
    with sandboxed_bucket.faults(plan):
        job = run_to_end(Download(store, [prefix], prefix, tmp_path))
    assert job.state is JobState.FAILED
    assert [failure.path for failure in job.failures] == [f"{prefix}large"]
    assert "CRC64" in job.failures[0].reason
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["small"]
    assert run_to_end(job.retry()).failures == []
    assert (tmp_path / "large").read_bytes() == LARGE


def test_an_endpoint_that_dies_ends_the_job_and_a_retry_does_the_rest(
    sandboxed_bucket: Sandboxed, prefix: str, tmp_path: Path
) -> None:
    plain = sandboxed_bucket.store()
    for number in range(40):
        plain.put(f"{prefix}{number:02d}", b"x" * 1000)
    found = plain.list_page(prefix).objects
    with cutting(sandboxed_bucket.process.profile(), cut_after=5_000) as (proxy, profile):
        proxy.cuts = 1_000_000
        dying = ObjectStore(profile, sandboxed_bucket.owner, retry=NO_RETRY)
        job = run_to_end(Download(dying, found, prefix, tmp_path, threads=2))
        assert job.state is JobState.FAILED
        assert job.failures
        assert all("127.0.0" not in failure.path and failure.reason for failure in job.failures)
        done = files(tmp_path)
        proxy.cuts = 0
        again = run_to_end(job.retry())
        assert again.failures == []
        assert again.progress().items_skipped == len(done)
        assert len(files(tmp_path)) == 40
        dying.close()
    plain.close()


def test_what_is_denied_or_gone_is_named_and_the_rest_arrives(store: ObjectStore, prefix: str, tmp_path: Path) -> None:
    store.put(f"{prefix}here", b"here")
    gone = ObjectSummary(f"{prefix}gone", 4, 0)
    job = run_to_end(Download(store, [summary(store, f"{prefix}here"), gone], prefix, tmp_path))
    assert job.state is JobState.FAILED
    (failure,) = job.failures
    assert failure.path == gone.key
    assert "NoSuchKey" in failure.reason
    assert failure.request_id
    assert files(tmp_path) == {"here": b"here"}


def test_a_full_disk_ends_the_job_with_a_remedy(
    store: ObjectStore, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(f"{prefix}file", b"data")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ossconsole.storage.multipart.os.pwrite", full)
    job = run_to_end(Download(store, [prefix], prefix, tmp_path))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert "No space left" in str(job.error)
    assert files(tmp_path) == {}


def test_a_link_in_the_folder_is_not_followed(store: ObjectStore, prefix: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    store.put(f"{prefix}link/file", b"data")
    job = run_to_end(Download(store, [prefix], prefix, folder))
    assert "symbolic link" in job.failures[0].reason
    assert list(outside.iterdir()) == []


def test_two_downloads_of_the_same_file_do_not_mix(store: ObjectStore, prefix: str, tmp_path: Path) -> None:
    store.put(f"{prefix}large", LARGE)
    found = summary(store, f"{prefix}large")
    jobs = [Download(store, [found], prefix, tmp_path, threads=2) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        assert job.wait(WAIT_S)
    assert files(tmp_path) == {"large": LARGE}
    refused = [failure.reason for job in jobs for failure in job.failures]
    assert all("Another download" in message for message in refused)
    assert len(refused) <= 1


def test_a_large_object_that_cannot_fit_is_refused_before_it_fills_the_disk(
    store: ObjectStore, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(f"{prefix}large", LARGE)
    store.put(f"{prefix}small", b"1")
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[4] = len(LARGE) // 2 // real.f_frsize  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    job = run_to_end(Download(store, [prefix], prefix, tmp_path / "down"))
    (failure,) = job.failures
    assert f"needs {len(LARGE):,} bytes more" in failure.reason
    assert files(tmp_path / "down") == {"small": b"1"}
    monkeypatch.undo()
    assert run_to_end(job.retry()).state is JobState.DONE
    assert files(tmp_path / "down") == {"small": b"1", "large": LARGE}


def test_files_that_differ_and_are_kept_are_counted(store: ObjectStore, prefix: str, tmp_path: Path) -> None:
    for name in ("same", "differs"):
        store.put(prefix + name, b"new")
    (tmp_path / "same").write_bytes(b"new")
    (tmp_path / "differs").write_bytes(b"mine")
    job = run_to_end(Download(store, [prefix], prefix, tmp_path))
    assert (job.progress().items_skipped, job.note) == (2, "1 of them differ and were kept")
