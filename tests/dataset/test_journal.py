"""The journal: what it decides about each file, what survives, and who may open it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.source.files import PathLocation, PlannedSample
from ossconsole.dataset.upload.journal import Journal, JournalError, PlanAction, SentSample
from ossconsole.storage.jobs.job import Failure


def planned(path: str, *, size: int = 10, mtime_ns: int = 5, class_name: str = "ants", key: str = "") -> PlannedSample:
    stem = key or path.rpartition(".")[0]
    return PlannedSample(path, "train", class_name, stem, path, size, mtime_ns, PathLocation(path))


def sent(path: str, *, size: int = 10, mtime_ns: int = 5) -> SentSample:
    return SentSample(path, size, mtime_ns, 8, 8, 192, "18446744073709551615", "ABC")


def opened(tmp_path: Path, recipe: str = "r") -> Journal:
    return Journal(tmp_path / "journal.sqlite", source="/source", recipe=recipe)


def upload(tmp_path: Path, *paths: str, recipe: str = "r") -> None:
    with closing(opened(tmp_path, recipe)) as journal:
        for path in paths:
            assert journal.plan(planned(path), ".u8").action is PlanAction.SEND
            journal.mark_sent(sent(path))


def test_what_was_sent_is_unchanged_in_the_next_run(tmp_path: Path) -> None:
    upload(tmp_path, "train/a.jpg")
    with closing(opened(tmp_path)) as journal:
        decision = journal.plan(planned("train/a.jpg"), ".u8")
        assert (decision.action, decision.key) == (PlanAction.UNCHANGED, "train/a.u8")
        assert journal.plan(planned("train/b.jpg"), ".u8").action is PlanAction.SEND


@pytest.mark.parametrize("change", [{"size": 11}, {"mtime_ns": 6}, {"class_name": "bees"}])
def test_a_changed_file_is_read_again_under_its_key(tmp_path: Path, change: dict[str, object]) -> None:
    upload(tmp_path, "train/a.jpg")
    with closing(opened(tmp_path)) as journal:
        decision = journal.plan(planned("train/a.jpg", **change), ".u8")  # type: ignore[arg-type]
        assert (decision.action, decision.key) == (PlanAction.SEND, "train/a.u8")
        assert decision.crc64 == sent("").crc64


def test_another_recipe_reads_everything_again(tmp_path: Path) -> None:
    upload(tmp_path, "train/a.jpg", recipe="r")
    with closing(opened(tmp_path, recipe="other")) as journal:
        assert journal.plan(planned("train/a.jpg"), ".u8").action is PlanAction.SEND
        journal.mark_unchanged("train/a.jpg", 10, 5, 8, 8)
    with closing(opened(tmp_path, recipe="other")) as journal:
        assert journal.plan(planned("train/a.jpg"), ".u8").action is PlanAction.UNCHANGED


def test_two_files_never_get_one_key(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as journal:
        keys = [journal.plan(planned(path, key="train/a"), ".u8").key for path in ("train/a.jpg", "train/a.jpeg")]
        assert keys == ["train/a.u8", "train/a.jpeg.u8"]
        assert journal.plan(planned("train/a.jpg", key="train/a"), ".u8").action is PlanAction.REPEATED
        clash = planned("elsewhere", key="train/a")
        assert journal.plan(clash, ".u8").action is PlanAction.SEND
        third = PlannedSample("third", "train", "ants", "train/a", "train/a.jpeg", 1, 1, PathLocation("third"))
        assert journal.plan(third, ".u8").action is PlanAction.CONFLICT


def test_files_that_are_gone_are_listed_and_can_be_forgotten(tmp_path: Path) -> None:
    upload(tmp_path, "train/a.jpg", "train/b.jpg")
    with closing(opened(tmp_path)) as journal:
        journal.plan(planned("train/b.jpg"), ".u8")
        assert list(journal.removed()) == ["train/a.u8"]
        journal.forget(["train/a.u8"])
        assert [row.key for row in journal.expected()] == ["train/b.u8"]


def test_a_failure_keeps_what_an_earlier_run_sent_and_is_tried_again(tmp_path: Path) -> None:
    upload(tmp_path, "train/a.jpg")
    with closing(opened(tmp_path)) as journal:
        journal.plan(planned("train/a.jpg", size=11), ".u8")
        journal.fail(Failure("train/a.jpg", "no", "AccessDenied", "id"))
        (row,) = journal.expected()
        assert (row.present, row.this_run, row.failed) == (True, False, True)
    with closing(opened(tmp_path)) as journal:
        assert journal.plan(planned("train/a.jpg", size=11), ".u8").action is PlanAction.SEND


def test_reopened_samples_are_found_again_and_settled_ones_are_not(tmp_path: Path) -> None:
    upload(tmp_path, "train/a.jpg", "train/b.jpg", "train/c.jpg")
    with closing(opened(tmp_path)) as journal:
        for name in "abc":
            journal.plan(planned(f"train/{name}.jpg"), ".u8")
        journal.mark_missing("train/a.jpg")
        journal.mark_missing("train/c.jpg")
        journal.fail(Failure("train/c.jpg", "no"))
        assert [journal.missing_key(f"train/{name}.jpg") for name in "abcd"] == ["train/a.u8", "", "", ""]
        assert journal.unfinished() == ["train/a.jpg"]


def test_rows_come_by_key_a_page_at_a_time(tmp_path: Path) -> None:
    names = [f"train/{number:05}.jpg" for number in range(2500)]
    upload(tmp_path, *names, "val/é.jpg")
    with closing(opened(tmp_path)) as journal:
        assert [row.key for row in journal.expected()] == [name[:-4] + ".u8" for name in names] + ["val/é.u8"]
        assert [sample.key for sample in journal.samples("val", {"ants": 3}, SampleFormat.IMAGE_U8)] == ["val/é.u8"]
        assert next(journal.samples("train", {"ants": 3}, SampleFormat.IMAGE_U8)).label == 3
        assert journal.has_samples("val")
        assert journal.classes() == ["ants"]


def test_a_second_upload_to_the_same_prefix_is_refused(tmp_path: Path) -> None:
    with closing(opened(tmp_path)), pytest.raises(JournalError, match="Another upload"):
        opened(tmp_path)
    opened(tmp_path).close()


def _no_database(path: Path) -> None:
    path.write_bytes(b"no database " * 500)


def _truncated(path: Path) -> None:
    os.truncate(path, 5000)


def _of_another_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=99")


def _with_other_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript("DROP TABLE samples; CREATE TABLE samples (path TEXT)")


@pytest.mark.parametrize("damage", [_no_database, _truncated, _of_another_version, _with_other_tables])
def test_a_file_that_is_not_a_journal_is_set_aside(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    upload(tmp_path, "train/a.jpg")
    damage(tmp_path / "journal.sqlite")
    before = (tmp_path / "journal.sqlite").read_bytes()
    with closing(opened(tmp_path)) as journal:
        assert journal.is_empty
    (kept,) = tmp_path.glob("journal.sqlite.damaged-*[0-9]")
    assert kept.name in caplog.text
    assert kept.read_bytes() == before
    with closing(opened(tmp_path)):
        pass
    assert len(list(tmp_path.glob("journal.sqlite.damaged-*[0-9]"))) == 1


def test_damage_that_shows_in_the_middle_is_set_aside_for_the_next_upload(tmp_path: Path) -> None:
    upload(tmp_path, *(f"train/{number:05}.jpg" for number in range(2000)))
    path = tmp_path / "journal.sqlite"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 20_000)
    with pytest.raises(JournalError, match="damaged") as caught, closing(opened(tmp_path)) as journal:
        list(journal.expected())
    (kept,) = tmp_path.glob("journal.sqlite.damaged-*[0-9]")
    assert str(kept) in caught.value.remedy
    with closing(opened(tmp_path)) as journal:
        assert journal.is_empty


def test_a_full_disk_is_an_error_and_harms_nothing(tmp_path: Path) -> None:
    upload(tmp_path, "train/a.jpg")
    journal = opened(tmp_path)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages}")

    def fill() -> None:
        for number in range(10_000):
            journal.plan(planned(f"train/{number}.jpg"), ".u8")

    with pytest.raises(JournalError, match="full") as caught:
        fill()
    assert "Free space" in caught.value.remedy
    journal.close()
    with closing(opened(tmp_path)) as after:
        assert [row.key for row in after.expected()] == ["train/a.u8"]


def test_only_the_user_may_read_it(tmp_path: Path) -> None:
    upload(tmp_path, "train/a.jpg")
    assert (tmp_path / "journal.sqlite").stat().st_mode & 0o777 == 0o600
