"""The comparison of a folder with a prefix: what counts as new, changed, the same and left over, in both directions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import JobState
from ossconsole.storage.jobs.sync import DeleteFiles, Direction, SyncComparison, SyncDifference, SyncPlan
from ossconsole.storage.multipart import ResumableUpload, partial_path
from tests.waiting import run_to_end

NEW, CHANGED, SAME, EXTRA = SyncDifference.NEW, SyncDifference.CHANGED, SyncDifference.SAME, SyncDifference.EXTRA


def compared(
    store: ObjectStore, folder: Path, prefix: str, direction: Direction, names: Sequence[str] | None = None
) -> SyncPlan:
    job = run_to_end(SyncComparison(store, folder, prefix, direction, names=names))
    assert job.plan is not None, job.failures or job.error
    return job.plan


def differences(plan: SyncPlan) -> dict[str, SyncDifference]:
    return {entry.key.removeprefix(plan.prefix): entry.difference for entry in plan.entries}


@pytest.fixture
def both(store: ObjectStore, prefix: str, tmp_path: Path) -> Path:
    """A folder and a prefix that have something in common."""
    files = {"same.txt": b"same", "longer.txt": b"longer here", "other.txt": b"here", "deep/here.txt": b"1"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for name, data in {
        "same.txt": b"same",
        "longer.txt": b"long",
        "other.txt": b"away",
        "deep/away.txt": b"22",
    }.items():
        store.put(prefix + name, data)
    store.put(prefix + "deep/", b"")  # the marker of a folder
    return tmp_path


def test_both_directions_name_what_is_new_changed_the_same_and_left_over(
    store: ObjectStore, prefix: str, both: Path
) -> None:
    common = {"same.txt": SAME, "longer.txt": CHANGED, "other.txt": CHANGED}
    up = compared(store, both, prefix, Direction.UPLOAD)
    assert differences(up) == common | {"deep/here.txt": NEW, "deep/away.txt": EXTRA}
    assert up.total(NEW) == (1, 1)
    assert up.total(EXTRA) == (1, 2)
    assert up.total(CHANGED) == (2, len("longer here") + len("here"))
    down = compared(store, both, prefix, Direction.DOWNLOAD)
    assert differences(down) == common | {"deep/here.txt": EXTRA, "deep/away.txt": NEW}
    assert down.total(CHANGED) == (2, 8)


@pytest.mark.parametrize("direction", Direction)
def test_only_the_named_files_and_folders_are_compared(
    store: ObjectStore, prefix: str, both: Path, direction: Direction
) -> None:
    (both / "same").write_text("a name that others begin with")
    plan = compared(store, both, prefix, direction, ["deep/", "same"])
    new, extra = (NEW, EXTRA) if direction is Direction.UPLOAD else (EXTRA, NEW)
    assert differences(plan) == {"deep/here.txt": new, "deep/away.txt": extra, "same": new}


def test_many_names_are_found_in_one_listing(store: ObjectStore, prefix: str, both: Path) -> None:
    names = ["deep/", "same.txt", *(f"none-{number}" for number in range(60))]
    plan = compared(store, both, prefix, Direction.DOWNLOAD, names)
    assert differences(plan) == {"same.txt": SAME, "deep/here.txt": EXTRA, "deep/away.txt": NEW}


def test_an_object_of_parts_is_compared_by_its_crc64(store: ObjectStore, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    upload = ResumableUpload(store, path, prefix + path.name, 100 << 10)
    for number in upload.numbers:
        upload.send(number)
    upload.complete()
    os.utime(path, (1, 1))
    assert differences(compared(store, tmp_path, prefix, Direction.UPLOAD)) == {"large.bin": SAME}
    path.write_bytes(bytes(range(1, 256)) * 1000 + bytes(1000))
    assert differences(compared(store, tmp_path, prefix, Direction.UPLOAD)) == {"large.bin": CHANGED}


def test_names_that_a_disk_cannot_have_are_matched_as_a_download_writes_them(
    store: ObjectStore, prefix: str, tmp_path: Path
) -> None:
    store.put(prefix + "a//b", b"1")
    (tmp_path / "a" / "%").mkdir(parents=True)
    (tmp_path / "a" / "%" / "b").write_bytes(b"1")
    assert differences(compared(store, tmp_path, prefix, Direction.DOWNLOAD)) == {"a//b": SAME}


def test_a_file_with_the_key_of_an_object_that_is_written_elsewhere(
    store: ObjectStore, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "100%").write_bytes(b"of this machine")
    store.put(f"{prefix}100%", b"of the bucket")
    plan = compared(store, tmp_path, prefix, Direction.DOWNLOAD)
    assert [entry.path.name for entry in plan.of(NEW)] == ["100%25"]
    assert [entry.path.name for entry in plan.of(EXTRA)] == ["100%"]


def test_what_is_not_a_file_and_what_a_download_left_is_not_compared(
    store: ObjectStore, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    partial_path(tmp_path / "half.bin").write_bytes(b"1")
    plan = compared(store, tmp_path, prefix, Direction.UPLOAD)
    assert (plan.entries, plan.others) == ((), 2)
    assert compared(store, tmp_path / "missing", prefix, Direction.DOWNLOAD).entries == ()


@pytest.mark.parametrize("target", ["nowhere", "elsewhere"])
def test_what_is_behind_a_link_to_a_folder_is_not_left_over(
    store: ObjectStore, prefix: str, tmp_path: Path, target: str
) -> None:
    """It may be a disk that is not mounted: nothing says that its files were deleted."""
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for link in ("ants", "deep/bees"):
        (folder / link).symlink_to(tmp_path / target)
    for key in ("ants/1.jpg", "ants/more/2.jpg", "deep/bees/3.jpg", "antsy/4.jpg", "deep/5.jpg"):
        store.put(prefix + key, b"x")
    plan = compared(store, folder, prefix, Direction.UPLOAD)
    assert differences(plan) == {"antsy/4.jpg": EXTRA, "deep/5.jpg": EXTRA}
    assert plan.others == 2
    down = differences(compared(store, folder, prefix, Direction.DOWNLOAD))
    assert len(down) == 5


def test_a_folder_that_cannot_be_read_gives_no_plan(
    store: ObjectStore, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its files would count as missing, and a sync could delete their objects."""
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: str | Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patched:  # only until the job has ended: the removal of folders calls it too
        patched.setattr("os.scandir", refusing)
        job = run_to_end(SyncComparison(store, tmp_path, prefix, Direction.UPLOAD))
    assert job.state is JobState.FAILED
    assert job.plan is None
    assert "closed: Permission denied" in job.failures[0].reason


def test_a_link_that_may_not_be_followed_is_named(
    store: ObjectStore, prefix: str, tmp_path: Path, refused_link: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    job = run_to_end(SyncComparison(store, tmp_path, prefix, Direction.UPLOAD))
    assert (job.error, job.plan) == (None, None)
    assert [failure.reason for failure in job.failures] == [f"{refused_link}: Permission denied."]


def test_files_that_have_changed_since_are_not_deleted(store: ObjectStore, prefix: str, tmp_path: Path) -> None:
    for name in ("old.txt", "busy.txt"):
        (tmp_path / name).write_text("1")
    plan = compared(store, tmp_path, prefix, Direction.DOWNLOAD)
    (tmp_path / "busy.txt").write_text("now longer")
    job = run_to_end(DeleteFiles(tmp_path, plan.of(EXTRA)))
    assert [path.name for path in tmp_path.iterdir()] == ["busy.txt"]
    assert "busy.txt has changed, so it was kept" in job.failures[0].reason
