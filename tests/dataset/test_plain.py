"""Plain uploads: every file as it is, in parts where it is large, resumed, and never half."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.errors import SettingsError
from ossconsole.config.files import STATE_DIR_VARIABLE, state_dir
from ossconsole.config.profiles import Profile
from ossconsole.dataset.upload.plain import PlainUpload, transfer_jobs
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import Error, FaultPlan, LostReply, Reset, Rule
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.jobs.sync import Direction, SyncComparison, SyncPlan
from ossconsole.storage.multipart import ResumableUpload, list_uploads
from ossconsole.storage.retry import NO_RETRY
from tests.dataset.uploads import WAIT_S
from tests.sandboxed import Sandboxed, sandboxed
from tests.waiting import run_to_end

PART = 100 << 10  # the least OSS takes
DATA = bytes(range(256)) * 2000  # 5 parts and a little


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxed]:
    with sandboxed(tmp_path_factory.mktemp("plain")) as running:
        yield running


@pytest.fixture
def control(server: Sandboxed) -> Iterator[SandboxControl]:
    steering = SandboxControl(server.process.info)
    yield steering
    steering.clear_faults()


@pytest.fixture
def profile(server: Sandboxed, request: pytest.FixtureRequest) -> Profile:
    return server.profile(request.node.name)


@pytest.fixture
def store(profile: Profile, server: Sandboxed) -> Iterator[ObjectStore]:
    opened = ObjectStore(profile, server.owner)
    yield opened
    opened.close()


def upload(store: ObjectStore, source: Path, prefix: str) -> PlainUpload:
    return run_to_end(PlainUpload(store, source, prefix, threads=4, part_size=PART))


def there(store: ObjectStore, prefix: str) -> dict[str, bytes]:
    return {found.key.removeprefix(f"{prefix}/"): store.get(found.key) for found in store.list_all(f"{prefix}/")}


def make_folder(folder: Path) -> dict[str, bytes]:
    files = {"a.txt": b"one", ".hidden": b"two", "deep/er/ü [1].bin": DATA, "empty": b"", "exact": DATA[:PART]}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


NOTES = {"damaged": b"{", "of another shape": b'{"upload_id": 5}', "no file": b""}


@pytest.mark.parametrize("note", NOTES)
def test_the_note_of_an_upload_is_private_and_never_in_the_way(store: ObjectStore, tmp_path: Path, note: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    key = f"noted/{note}"
    ResumableUpload(store, path, key, PART).close()
    (kept,) = (state_dir() / "uploads").glob("*.parts.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    if NOTES[note]:
        kept.write_bytes(NOTES[note])
    else:
        kept.unlink()
        os.mkfifo(kept)
    parted = ResumableUpload(store, path, key, PART)
    assert len([None for upload in list_uploads(store, "noted/") if upload.key == key]) == 2
    parted.close()
    assert len(list(kept.parent.glob("*.damaged-*"))) == bool(NOTES[note])


def test_a_large_file_needs_no_state_folder(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path / "file"))
    (tmp_path / "big").write_bytes(DATA)
    assert upload(store, tmp_path / "big", "stateless").state is JobState.DONE
    assert there(store, "stateless") == {"big": DATA}
    assert "cannot be resumed if it ends early" in caplog.text


def test_a_folder_arrives_as_it_is_and_is_skipped_the_second_time(store: ObjectStore, tmp_path: Path) -> None:
    files = make_folder(tmp_path / "folder")
    (tmp_path / "folder/loop").symlink_to(tmp_path / "folder")
    job = upload(store, tmp_path / "folder", "as-it-is")
    assert job.state is JobState.DONE, job.error or job.failures
    assert there(store, "as-it-is") == files
    progress = job.progress()
    assert (progress.items_done, progress.bytes_done) == (5, sum(map(len, files.values())))
    assert progress.bytes_total == progress.bytes_done
    again = upload(store, tmp_path / "folder", "as-it-is").progress()
    assert (again.items_done, again.items_skipped) == (0, 5)
    (tmp_path / "folder/a.txt").write_bytes(b"new")
    (tmp_path / "folder/deep/er/ü [1].bin").write_bytes(DATA[::-1])
    changed = upload(store, tmp_path / "folder", "as-it-is").progress()
    assert (changed.items_done, changed.items_skipped) == (2, 3)
    assert there(store, "as-it-is") == {**files, "a.txt": b"new", "deep/er/ü [1].bin": DATA[::-1]}


def test_what_is_not_sent_is_named(store: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    (folder / "torn").symlink_to(tmp_path / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"\xff")).write_bytes(b"x")
    job = upload(store, folder, "not-sent")
    assert there(store, "not-sent") == {"a": b"a"}
    assert [str(group) for group in job.unused] == [
        "1 file (a symbolic link to a folder, which is not followed): linked",
        "1 file (a named pipe): pipe",
    ]
    reasons = sorted(failure.reason.rpartition(": ")[2] for failure in job.failures)
    assert reasons[:2] == ["a symbolic link to itself.", "a symbolic link to nothing."]
    assert reasons[2].endswith("is not UTF-8.")
    with pytest.raises(SettingsError, match="a named pipe"):
        PlainUpload(store, folder / "pipe", "not-sent")


def test_a_link_that_may_not_be_followed_keeps_no_other_file_back(
    store: ObjectStore, tmp_path: Path, refused_link: Path
) -> None:
    (tmp_path / "note.txt").write_text("note")
    job = run_to_end(PlainUpload(store, tmp_path, "refused"))
    assert [(failure.path, failure.reason) for failure in job.failures] == [
        ("folder/link", f"{refused_link}: Permission denied.")
    ]
    assert job.error is None
    assert [found.key for found in store.list_all("refused/")] == ["refused/note.txt"]
    with pytest.raises(SettingsError, match="link cannot be read: Permission denied"):
        PlainUpload(store, refused_link, "refused")


def test_one_file(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(DATA)
    assert upload(store, tmp_path / "model.pt", "/one/").state is JobState.DONE
    assert there(store, "one") == {"model.pt": DATA}
    assert not list(list_uploads(store, "one/"))


def test_passing_trouble_is_retried(store: ObjectStore, control: SandboxControl, tmp_path: Path) -> None:
    files = make_folder(tmp_path / "folder")
    troubles = (Error(code="InternalError"), Reset(), LostReply())
    rules = [Rule(action=trouble, method=method, times=1) for method in ("PUT", "POST") for trouble in troubles]
    control.set_faults(FaultPlan(rules=rules))
    assert upload(store, tmp_path / "folder", "trouble").state is JobState.DONE
    assert control.status().fault_hits == [1] * len(rules)
    control.clear_faults()
    assert there(store, "trouble") == files


def test_what_was_sent_is_not_sent_again(store: ObjectStore, control: SandboxControl, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(DATA)
    denied = Rule(action=Error(code="AccessDenied"), method="PUT", skip=3)
    control.set_faults(FaultPlan(rules=[denied]))
    failed = upload(store, tmp_path / "big", "resumed")
    assert failed.state is JobState.FAILED
    assert failed.failures[0].request_id
    assert there(store, "resumed") == {}
    parts = -(-len(DATA) // PART)
    allowed = Rule(action=Error(code="AccessDenied"), method="PUT", skip=parts - 3)
    control.set_faults(FaultPlan(rules=[allowed]))  # one PUT more than what is missing would be refused
    assert upload(store, tmp_path / "big", "resumed").state is JobState.DONE
    assert there(store, "resumed") == {"big": DATA}
    assert not list(list_uploads(store, "resumed/"))


def test_another_file_under_the_same_name_starts_over(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA)
    first = ResumableUpload(store, path, "anew/big", PART)
    first.send(1)
    first.close()
    path.write_bytes(DATA[::-1])
    os.utime(path, (1, 1))
    assert upload(store, path, "anew").state is JobState.DONE
    assert there(store, "anew") == {"big": DATA[::-1]}
    assert not list(list_uploads(store, "anew/"))


def test_a_file_that_changes_meanwhile_is_not_put_together(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(DATA)
    parted = ResumableUpload(store, path, "changing/big", PART)
    for number in parted.numbers:
        parted.send(number)
    os.utime(path, (1, 1))
    assert list(list_uploads(store, "changing/"))
    with pytest.raises(Exception, match="changed during its upload"):
        parted.complete()
    parted.close()
    assert there(store, "changing") == {}
    assert not list(list_uploads(store, "changing/"))  # its parts would be billed


def test_names_that_cannot_be_keys_are_named_and_the_rest_arrives(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/good").write_bytes(b"x")
    (tmp_path / "folder/new\nline").write_bytes(b"x")
    job = upload(store, tmp_path / "folder", "names")
    assert job.state is JobState.FAILED
    assert len(job.failures) == 1
    assert there(store, "names") == {"good": b"x"}


def test_a_dead_endpoint_ends_it(profile: Profile, server: Sandboxed, tmp_path: Path) -> None:
    dead = msgspec.structs.replace(profile, standard_endpoint="http://0.0.1:9")
    make_folder(tmp_path / "folder")
    job = upload(ObjectStore(dead, server.owner, retry=NO_RETRY), tmp_path / "folder", "dead")
    assert job.state is JobState.FAILED
    assert "No answer" in str(job.error)


def test_no_source_is_bad_usage(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        PlainUpload(store, tmp_path / "nowhere", "x")


def test_cancel_leaves_no_half_object(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(DATA * 20)
    job = PlainUpload(store, tmp_path / "big", "cancelled", threads=1, part_size=PART)
    job.start()
    job.cancel()
    assert job.wait(WAIT_S)
    assert job.state is JobState.CANCELLED
    assert there(store, "cancelled") == {}


def test_a_cap_holds_back_files_and_parts_and_cancel_wakes_who_waits(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(DATA)
    (tmp_path / "small").write_bytes(b"a" * 1000)
    job = PlainUpload(store, tmp_path, "in", part_size=PART, bandwidth=1.0)  # a byte per second: none has its turn
    job.start()
    assert not job.wait(0.3)
    job.cancel()
    assert job.wait(WAIT_S)
    assert job.state is JobState.CANCELLED
    assert job.progress().bytes_done == 0
    assert not list(store.list_all("in/"))
    freed = PlainUpload(store, tmp_path, "in", part_size=PART, bandwidth=1e9)
    freed.start()
    assert freed.wait(WAIT_S)
    assert {found.key for found in store.list_all("in/")} == {"in/large", "in/small"}


def ran(jobs: list[Job]) -> list[JobState]:
    """The states of the jobs after they were run in their order."""
    return [run_to_end(job).state for job in jobs]


def compared(store: ObjectStore, folder: Path, direction: Direction) -> SyncPlan:
    comparison = SyncComparison(store, folder, "sync/", direction)
    ran([comparison])
    assert comparison.plan is not None
    return comparison.plan


def contents(store: ObjectStore) -> dict[str, bytes]:
    return {found.key: store.get(found.key) for found in store.list_all("sync/")}


@pytest.fixture
def different(store: ObjectStore, tmp_path: Path) -> Path:
    store.delete_many([found.key for found in store.list_all("sync/")])
    for name, data in {"same": b"1", "changed": b"here", "here": b"2"}.items():
        (tmp_path / name).write_bytes(data)
    for name, data in {"same": b"1", "changed": b"away!", "away": b"3"}.items():
        store.put(f"sync/{name}", data)
    return tmp_path


def test_a_sync_to_the_bucket_replaces_and_deletes_only_as_agreed(store: ObjectStore, different: Path) -> None:
    plan = compared(store, different, Direction.UPLOAD)
    assert ran(transfer_jobs(store, plan, replace=False, delete=False)) == [JobState.DONE]
    expected = {"sync/same": b"1", "sync/changed": b"away!", "sync/away": b"3", "sync/here": b"2"}
    assert contents(store) == expected
    plan = compared(store, different, Direction.UPLOAD)
    assert ran(transfer_jobs(store, plan, replace=True, delete=True)) == [JobState.DONE] * 2
    assert contents(store) == {"sync/same": b"1", "sync/changed": b"here", "sync/here": b"2"}
    assert transfer_jobs(store, compared(store, different, Direction.UPLOAD), replace=True, delete=True) == []


def test_a_sync_from_the_bucket_replaces_and_deletes_only_as_agreed(store: ObjectStore, different: Path) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in different.iterdir()}

    plan = compared(store, different, Direction.DOWNLOAD)
    assert ran(transfer_jobs(store, plan, replace=False, delete=False)) == [JobState.DONE]
    assert files() == {"same": b"1", "changed": b"here", "here": b"2", "away": b"3"}
    plan = compared(store, different, Direction.DOWNLOAD)
    assert ran(transfer_jobs(store, plan, replace=True, delete=True)) == [JobState.DONE] * 2
    assert files() == {"same": b"1", "changed": b"away!", "away": b"3"}


def test_an_object_that_appeared_after_the_comparison_is_not_replaced(store: ObjectStore, different: Path) -> None:
    plan = compared(store, different, Direction.UPLOAD)
    store.put("sync/here", b"of somebody else")
    jobs = transfer_jobs(store, plan, replace=True, delete=False)
    assert ran(jobs) == [JobState.FAILED]
    assert "exists by now and was not replaced" in jobs[0].failures[0].reason
    assert contents(store)["sync/here"] == b"of somebody else"
