from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import RecordError, find_run, list_runs, runs_dir, summarise
from tests.telemetry.samples_of_events import (
    START,
    checkpoint_event,
    epoch_event,
    one_of_each,
    run_event,
    step_event,
    summary_event,
    write_record,
)


@pytest.fixture
def runs() -> Path:
    """The folder of the run records."""
    runs_dir().mkdir()
    return runs_dir()


HERE = {"pid": os.getpid(), "host": socket.gethostname()}


def test_a_finished_run(tmp_path: Path) -> None:
    summary = summarise(write_record(tmp_path / "one.jsonl", one_of_each()))
    assert (summary.run, summary.state, summary.step, summary.epoch) == ("one", RunState.FINISHED, 3, 1)
    assert (summary.started, summary.updated) == (START, START + 100)
    assert summary.samples_per_s == 8.0, "of the whole run, as its summary has it"
    assert summary.comparison is not None
    assert summary.comparison.decision == "the accelerated endpoint is faster"
    assert summary.wait_fraction == pytest.approx(0.75)
    assert (summary.endpoint, summary.checkpoint) == (EndpointKind.STANDARD, "checkpoints/one-3.pt")
    assert (summary.val_loss, summary.top1, summary.error) == (1.25, 0.5, "lost a reader")
    assert (summary.device, summary.gpus, summary.gpu_utilization) == ("cuda", ("GPU-0",), 40.0)
    assert not summary.interrupted


def test_the_last_of_each_is_found_behind_thousands_of_steps(tmp_path: Path) -> None:
    running = events.State(time=START, state=RunState.RUNNING)
    contents: list[events.Event] = [run_event(), running, checkpoint_event(1), epoch_event(1, 1)]
    contents += [step_event(number) for number in range(2, 5000)]
    summary = summarise(write_record(tmp_path / "one.jsonl", contents))
    assert (summary.step, summary.checkpoint, summary.top1) == (4999, "checkpoints/one-1.pt", 0.5)
    assert summary.state is RunState.RUNNING


def test_a_switch_after_the_last_step_names_the_endpoint(tmp_path: Path) -> None:
    switch = events.Switch(time=START + 5, endpoint=EndpointKind.ACCELERATED, reason="asked", step=1)
    summary = summarise(write_record(tmp_path / "one.jsonl", [run_event(), step_event(1), switch]))
    assert summary.endpoint is EndpointKind.ACCELERATED


def test_a_cut_last_line_does_not_hide_the_step_before(tmp_path: Path) -> None:
    path = write_record(tmp_path / "one.jsonl", [run_event(), step_event(1), step_event(2)])
    path.write_bytes(path.read_bytes()[:-20])
    assert summarise(path).step == 1


def test_alive_is_this_process_and_not_one_that_got_its_number(tmp_path: Path) -> None:
    now = time.time()
    alive = summarise(write_record(tmp_path / "a.jsonl", [run_event("a", time=now, **HERE)]))
    assert alive.alive is True
    born = psutil.Process().create_time()
    reused = summarise(write_record(tmp_path / "b.jsonl", [run_event("b", time=born - 60, **HERE)]))
    assert reused.alive is False
    elsewhere = summarise(write_record(tmp_path / "c.jsonl", [run_event("c", pid=os.getpid(), host="another")]))
    assert (elsewhere.alive, elsewhere.interrupted) == (None, False)


def test_a_killed_run_is_interrupted(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = run_event(time=time.time(), pid=child.pid, host=socket.gethostname())
    path = write_record(tmp_path / "one.jsonl", [started, events.State(time=START, state=RunState.RUNNING)])
    assert summarise(path).alive is True
    child.kill()
    child.wait(30)
    assert child.stdin is not None
    child.stdin.close()
    assert summarise(path).interrupted


def test_runs_are_listed_newest_first_without_foreign_files(runs: Path) -> None:
    for number in range(3):
        write_record(runs / f"r{number}.jsonl", [run_event(f"r{number}", time=START + number)])
    (runs / "empty.jsonl").touch()
    (runs / "garbage.jsonl").write_bytes(b"\xff" * 5000)
    (runs / "notes.txt").write_text("no record")
    assert [summary.run for summary in list_runs()] == ["r2", "r1", "r0"]


def test_a_fifo_among_the_records_holds_nothing_up(runs: Path) -> None:
    os.mkfifo(runs / "one.jsonl")
    assert list_runs() == []
    with pytest.raises(RecordError, match="it is a fifo"):
        summarise(runs / "one.jsonl")


def test_a_folder_without_runs_need_not_be_there() -> None:
    assert list_runs() == []
    assert not runs_dir().exists()
    runs_dir().touch()
    with pytest.raises(RecordError, match="cannot be read: Not a directory"):
        list_runs()


def test_the_default_run_is_the_live_one(runs: Path) -> None:
    old = time.time()
    write_record(runs / "alive.jsonl", [run_event("alive", time=old, profile="a", bucket="x", **HERE)])
    write_record(runs / "dead.jsonl", [run_event("dead", time=old + 10, profile="b")])
    assert find_run().run == "alive"
    assert find_run("dead").run == "dead"
    assert find_run(profile="b").run == "dead"
    assert find_run(bucket="x").run == "alive"
    write_record(runs / "alive.jsonl", [summary_event()])
    assert find_run().run == "dead"


def test_a_missing_run_is_an_error_with_a_remedy() -> None:
    with pytest.raises(RecordError, match="No run is recorded yet") as caught:
        find_run()
    assert "ossconsole train" in caught.value.remedy
    with pytest.raises(RecordError, match="No run of hangzhou is recorded yet"):
        find_run(profile="hangzhou")
    with pytest.raises(RecordError, match="not a readable run record"):
        find_run("missing")
    with pytest.raises(SettingsError):
        find_run("../../etc/passwd")


@pytest.mark.parametrize("size", [40, 41, 64, 100])
def test_a_record_is_searched_in_parts_without_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = write_record(tmp_path / "one.jsonl", one_of_each())
    whole = summarise(path)
    monkeypatch.setattr("ossconsole.telemetry.runs.SEARCH_BYTES", size)
    assert summarise(path) == whole
