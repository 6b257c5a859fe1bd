from __future__ import annotations

import errno
import math
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossconsole.config.errors import SettingsError
from ossconsole.telemetry import events
from ossconsole.telemetry import runs as record
from ossconsole.telemetry.runs import (
    RecordError,
    RecordReader,
    RunRecord,
    new_run_id,
    read_events,
    record_path,
    runs_dir,
    summarise,
)
from tests.telemetry.samples_of_events import one_of_each, run_event, step_event, write_record


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write_record(tmp_path / "one.jsonl", one_of_each())
    assert list(read_events(path)) == one_of_each()
    assert path.read_bytes().count(b"\n") == len(one_of_each())


def test_the_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        path = write_record(tmp_path / "one.jsonl", [run_event()])
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_cut_of_the_last_line_leaves_the_others(tmp_path: Path) -> None:
    path = write_record(tmp_path / "one.jsonl", [run_event(), step_event(1), step_event(2)])
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        found = list(read_events(path))
        assert found[:2] == [run_event(), step_event(1)]
        assert len(found) == (3 if cut == len(whole) - 1 else 2)


def test_following_a_live_record(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    line = events.encode(step_event(1)) + b"\n"
    with RunRecord(path) as writer, RecordReader(path) as reader:
        assert reader.poll() == []
        writer.append(run_event())
        assert reader.poll() == [run_event()]
        with path.open("ab") as half:
            half.write(line[:30])
            half.flush()
            assert reader.poll() == []
            half.write(line[30:])
        writer.append(step_event(2))
        assert reader.poll() == [step_event(1), step_event(2)]
        assert (reader.poll(), reader.skipped) == ([], 0)


def test_lines_of_others_are_counted_and_passed_over(tmp_path: Path) -> None:
    path = write_record(tmp_path / "one.jsonl", [run_event()])
    with path.open("ab") as file:
        file.write(b'{"event":"from the future","time":1}\n\xff\xfe\n\n[[[[\n' + b"[" * 5000 + b"\n")
    write_record(path, [step_event(1)])
    with RecordReader(path) as reader:
        assert reader.poll() == [run_event(), step_event(1)]
        assert reader.skipped == 4


def test_an_endless_line_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(record, "_BLOCK_BYTES", 512)
    path = write_record(tmp_path / "one.jsonl", [run_event()])
    with path.open("ab") as file:
        file.write(b"x" * 100_000 + b"\n")
    write_record(path, [step_event(1)])
    with RecordReader(path) as reader:
        found = []
        while block := reader.poll():
            found += block
            assert len(reader._pending) <= 1512
        assert found == [run_event(), step_event(1)]
        assert reader.skipped == 1


def test_a_full_disk_loses_events_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.jsonl"
    with RunRecord(path) as writer:
        writer.append(run_event())
        real_write = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data)[:20]))
            writer.append(step_event(1))
        with monkeypatch.context() as patch:

            def full(fd: int, data: bytes) -> int:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(os, "write", full)
            writer.append(step_event(2))
        assert writer.lost == 2
        assert "No space left" in writer.problem
        writer.append(step_event(3))
    assert list(read_events(path)) == [run_event(), step_event(3)]


def test_a_file_name_that_is_not_utf_8_does_not_end_the_run(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    settings = {"weights": "/data/w\udcff.pt", "learning_rate": math.nan}
    warning = events.WarningEvent(time=1.0, message="/data/w\udcff.pt is not readable.")
    with RunRecord(path) as writer:
        writer.append(run_event(settings=settings), warning)
    run, last = read_events(path)
    assert isinstance(run, events.Run)
    assert run.settings == {"weights": "/data/w?.pt", "learning_rate": None}
    assert last == events.WarningEvent(time=1.0, message="/data/w?.pt is not readable.")
    assert summarise(path).run == "one"


def test_results_are_synced_to_the_disk_and_steps_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    counts = {}
    with RunRecord(tmp_path / "one.jsonl") as writer:
        for event in one_of_each():
            before = len(synced)
            writer.append(event)
            counts[type(event)] = len(synced) - before
    assert {kind for kind, count in counts.items() if not count} == {
        events.Step,
        events.Telemetry,
        events.RankWork,
        events.LoaderWorkers,
        events.InfoEvent,
    }


def test_threads_never_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"

    def write(writer: RunRecord) -> None:
        for number in range(1, 200):
            writer.append(step_event(number))

    with RunRecord(path) as shared:
        threads = [threading.Thread(target=write, args=(shared,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(list(read_events(path))) == 4 * 199


@given(st.lists(st.binary(max_size=200), max_size=20))
@settings(max_examples=100)
def test_any_bytes_are_read_without_an_exception(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "one.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert list(read_events(path)) == []


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_record_still_reads(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = write_record(tmp_path_factory.mktemp("fuzz") / "one.jsonl", one_of_each())
    whole = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=5)):
        whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    assert len(list(read_events(path))) <= len(one_of_each()) + 5


def test_unreadable_and_unwritable_say_where(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no\.jsonl cannot be read"):
        list(read_events(tmp_path / "no.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(RecordError, match="cannot be written"):
        RunRecord(tmp_path / "folder.jsonl")


def test_run_ids_sort_by_time_and_cannot_leave_the_folder() -> None:
    assert new_run_id(1_700_000_000).startswith("20231114-221320-")
    assert new_run_id(1_700_000_000) < new_run_id(1_700_000_001)
    assert record_path(new_run_id()).parent == runs_dir()
    for bad in ("", "../x", "a/b", ".hidden", "a\n", "x" * 101):
        with pytest.raises(SettingsError):
            record_path(bad)
