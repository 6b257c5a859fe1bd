from __future__ import annotations

import csv
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ossconsole.cli.output import run_group
from ossconsole.cli.runs import export, status
from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import Comparison, Conditions, Estimate
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import record_path
from tests.telemetry.samples_of_events import one_of_each, run_event, step_event, write_record


def invoke(command: str, *arguments: str) -> Result:
    return CliRunner().invoke({"status": status, "export": export}[command], arguments, catch_exceptions=False)


@pytest.fixture
def finished() -> Path:
    return write_record(record_path("one"), one_of_each())


def test_status_of_a_live_run_as_json(finished: Path) -> None:
    now = time.time()
    start = run_event("live", time=now, pid=os.getpid(), host=socket.gethostname())
    running = events.State(time=now, state=RunState.RUNNING)
    write_record(record_path("live"), [start, running, step_event(7, time=now + 1)])
    result = invoke("status", "--json")
    assert result.exit_code == 0
    state = json.loads(result.output)
    assert (state["run"], state["alive"], state["pid"], state["state"]) == ("live", True, os.getpid(), "running")
    assert (state["step"], state["epoch"], state["endpoint"]) == (7, 1, "standard")
    assert (state["samples_per_s"], state["loss"]) == (20.0, pytest.approx(2 / 7))
    assert (state["interrupted"], state["checkpoint"]) == (False, "")


def test_status_of_a_run_of_another_machine_says_where_it_is(finished: Path) -> None:
    start = run_event("far", time=time.time(), pid=os.getpid(), host="gpu-7")
    write_record(record_path("far"), [start, events.State(time=start.time, state=RunState.RUNNING)])
    assert f"{os.getpid()} on gpu-7; whether it is still active" in invoke("status", "far").output


def test_status_for_people(finished: Path) -> None:
    text = invoke("status", "one").output
    for words in (
        "finished",
        "3 (epoch 1)",
        "8.0",
        "1.40x (1.30 to 1.50), 6 pairs",
        "75 % of the step",
        "checkpoints/one-3.pt",
        "50.0 %",
        "25 % of what the model can do on this GPU (benchmark t4)",
        str(finished),
    ):
        assert words in text


def test_status_has_a_line_for_each_topic_of_the_comparison() -> None:
    conditions = Conditions(
        pairs=45,
        minutes=123.4,
        batch_size=4096,
        workers=16,
        processes=8,
        sample_format="tensor-f32",
        bytes_per_sample=602_112,
        stored_as="objects",
        warm_share=0.98,
        region="ap-southeast-1",
        simulated=True,
        versions={"ossconsole": "10.11.12", "torch": "2.14.1+cu130", "osstorchconnector": "1.2.3"},
    )
    comparison = Comparison(pairs=45, estimate=Estimate(1.4, 1.3, 1.5, 45), conditions=conditions)
    write_record(record_path("ab"), [run_event("ab"), events.Compared(time=2.0, comparison=comparison.report())])
    lines = invoke("status", "ab").output.splitlines()
    first = lines.index("A/B         1.40x (1.30 to 1.50), 45 pairs")
    assert lines[first + 1 : first + 7] == [
        "  length    45 pairs, 123.4 min of settled steps",
        "  training  batch 4096, 16 workers, 8 processes",
        "  samples   tensor-f32, 602,112 bytes/sample, one object per sample",
        "  cache     98 % from the cache (estimated)",
        "  bucket    region ap-southeast-1, simulated",
        "  versions  ossconsole 10.11.12, torch 2.14.1+cu130, osstorchconnector 1.2.3",
    ]
    assert max(len(line) for line in lines[first : first + 7]) <= 80


def test_status_reports_a_killed_run() -> None:
    running = events.State(time=2.0, state=RunState.RUNNING)
    write_record(record_path("killed"), [run_event("killed", pid=0), running])
    assert "interrupted (its process has ended)" in invoke("status").output


def test_status_of_a_profile(finished: Path) -> None:
    write_record(record_path("other"), [run_event("other", time=1.0, profile="lab")])
    assert json.loads(invoke("status", "--json", "--profile", "lab").output)["run"] == "other"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--json"], 1, "No run is recorded yet"),
        (["missing"], 1, "not a readable run record"),
        (["../../x"], 2, "is not a run id"),
    ],
)
def test_status_without_a_run(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(status, arguments) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert (words in printed.out) == ("--json" in arguments)


def test_export_names_the_files_after_the_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("export", "one", "--csv").output.split() == ["one.csv", "one-epochs.csv"]
    with Path("one.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    assert invoke("export", "--json").output.split() == ["one.json"]
    assert len(json.loads(Path("one.json").read_text())) == len(one_of_each())
    assert invoke("export", "--tensorboard", "--output", "board").output.split() == ["board"]
    assert any(Path("board").iterdir())


def test_export_writes_into_a_folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("export", "--json", "--output", ".").output == "one.json\n"
    assert invoke("export", "--csv", "--output", str(tmp_path)).exit_code == 0
    assert {"one.csv", "one-epochs.csv", "one.json"} <= {path.name for path in tmp_path.iterdir()}


def test_export_wants_a_form(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_group(export, ["one"]) == 2
    assert "--csv, --json or --tensorboard" in capsys.readouterr().err


def test_status_of_a_run_that_was_too_short_for_a_rate() -> None:
    short = events.Summary(
        time=9.0,
        run="short",
        state=RunState.FINISHED,
        epochs=1,
        steps=2,
        samples=16,
        bytes=1,
        seconds=1.0,
        samples_per_s=None,
        wait_fraction=None,
        reason="too short",
    )
    write_record(record_path("short"), [run_event("short"), step_event(1), step_event(2), short])
    assert "samples/s   too short" in invoke("status", "short").output
    assert json.loads(invoke("status", "--json").output)["samples_per_s"] is None


def test_a_run_is_followed_in_sentences_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    start = run_event("live", time=now, pid=os.getpid(), host=socket.gethostname())
    path = write_record(record_path("live"), [start, events.State(time=now, state=RunState.RUNNING), step_event(7)])
    later: Iterator[events.Event] = iter(
        [
            events.Switch(time=now + 1, endpoint=EndpointKind.ACCELERATED, reason="by hand", step=7),
            events.State(time=now + 2, state=RunState.PAUSED),
            events.State(time=now + 3, state=RunState.STOPPED),
        ]
    )

    def append(_seconds: float) -> None:
        with path.open("ab") as record:
            record.write(events.encode(next(later)) + b"\n")

    monkeypatch.setattr("ossconsole.cli.runs.time.sleep", append)
    lines = invoke("status", "--follow").output.splitlines()
    assert lines[0].startswith("live is running: step 7")
    assert "samples per second through the standard endpoint" in lines[0]
    assert "percent of a step" in lines[0]
    assert any("accelerated" in line for line in lines[1:])
    assert "Paused." in lines
    assert all(line.isascii() and line.endswith(".") for line in lines)


def test_a_run_that_ends_between_two_readings_is_followed_to_its_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    start = run_event("late", time=now, pid=os.getpid(), host=socket.gethostname())
    running = events.State(time=now, state=RunState.RUNNING)
    path = write_record(record_path("late"), [start, running, step_event(7, endpoint=None)])

    def ended(_run: events.Run) -> bool:
        with path.open("ab") as record:
            record.write(events.encode(events.State(time=now + 1, state=RunState.STOPPED)) + b"\n")
            record.write(events.encode(events.InfoEvent(time=now + 1, message="the last event")) + b"\n")
        return False

    monkeypatch.setattr("ossconsole.cli.runs.is_alive", ended)
    lines = invoke("status", "--follow").output.splitlines()
    assert lines[0].startswith("late is running: step 7, epoch 1, 20 samples per second, waiting for")
    assert lines[1:] == ["The last event."]


def test_a_run_whose_process_is_gone_is_not_followed_for_ever() -> None:
    write_record(record_path("gone"), [run_event("gone", pid=2**22 + 1, host=socket.gethostname())])
    lines = invoke("status", "gone", "--follow").output.splitlines()
    assert lines == ["gone is starting; no step yet.", "The process of the run has ended without a last event."]
