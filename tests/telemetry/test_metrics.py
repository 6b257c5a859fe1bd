"""Metrics for Prometheus, TensorBoard while a run is alive, and the command on an event."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ossconsole.cli.outlets import Outlets
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.export import TensorBoardFolder
from ossconsole.telemetry.hooks import EventHook, Occasion
from ossconsole.telemetry.metrics import OPENMETRICS, PROMETHEUS, MetricsServer, MetricsState, exposition
from tests.telemetry.samples_of_events import one_of_each, run_event, step_event, summary_event

SAMPLE = re.compile(
    r'(ossconsole_[a-z0-9_]+)(\{[a-z_]+="(?:[^"\\\n]|\\["\\n])*"(?:,[a-z_]+="[^"\n]*")*\})? -?[0-9.e+-]+'
)


def fed(found: list[Event]) -> MetricsState:
    state = MetricsState()
    for event in found:
        state(event)
    return state


def test_the_text_follows_openmetrics() -> None:
    lines = exposition(fed(one_of_each()).families(), openmetrics=True).splitlines()
    assert lines[-1] == "# EOF"
    types: dict[str, str] = {}
    for line in lines[:-1]:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types
            types[name] = kind
        elif not line.startswith("# HELP "):
            found = SAMPLE.fullmatch(line)
            assert found, line
            # Samples follow their metadata; a counter ends in _total, an info in _info.
            name = next(reversed(types))
            suffix = {"counter": "_total", "info": "_info"}.get(types[name], "")
            assert found[1] == name + suffix
    assert {"ossconsole_samples", "ossconsole_read_bytes", "ossconsole_data_wait_seconds"} <= types.keys()
    assert not [name for name in types if name.endswith("_total")]


def test_the_values_are_those_of_the_run() -> None:
    text = exposition(fed([run_event("r"), step_event(1), step_event(2)]).families(), openmetrics=False)
    for line in (
        'ossconsole_steps_total{endpoint="standard"} 2',
        'ossconsole_samples_total{endpoint="standard"} 16',
        'ossconsole_data_wait_seconds_total{endpoint="standard"} 0.6',
        "# TYPE ossconsole_samples_total counter",
        "ossconsole_train_loss 1",
        'ossconsole_run_state{state="starting"} 1',
    ):
        assert line in text.splitlines()
    assert "val_loss" not in text  # nothing was validated
    assert "# EOF" not in text


def test_labels_are_escaped() -> None:
    text = exposition(fed([run_event("r", bucket='a"b\\c\nd')]).families(), openmetrics=True)
    assert r'bucket="a\"b\\c\nd"' in text


def test_the_server_answers_on_loopback_only() -> None:
    server = MetricsServer(fed([step_event(1)]), 0)
    try:
        assert server.url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(server.url, timeout=10) as reply:
            assert reply.headers["Content-Type"] == PROMETHEUS
            assert b"ossconsole_steps_total" in reply.read()
        request = urllib.request.Request(server.url, headers={"Accept": "application/openmetrics-text"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.headers["Content-Type"] == OPENMETRICS
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.url.replace("/metrics", "/"), timeout=10)
        port = int(server.url.rpartition(":")[2].split("/")[0])
        with pytest.raises(ConsoleError, match=f"Port {port}"):
            MetricsServer(MetricsState(), port)
    finally:
        server.close()


def test_a_client_that_is_gone_leaves_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())  # servers of other tests may have kept connections
    server = MetricsServer(fed([step_event(1)]), 0)
    try:
        with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
            client.sendall(b"GET /metrics HTTP/1.0\r\n")
        urllib.request.urlopen(server.url, timeout=10).close()  # the one before it is being answered
        for thread in set(threading.enumerate()) - before:
            if "process_request_thread" in thread.name:
                thread.join(10)
        assert capsys.readouterr().err == ""
    finally:
        server.close()


def recording(target: Path) -> str:
    """A command that appends what it gets, as one line."""
    code = f"import sys; open({str(target)!r}, 'a').write(sys.stdin.read() + chr(10))"
    return f'{sys.executable} -c "{code}"'


def notices(target: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_the_command_gets_json_on_each_occasion(tmp_path: Path) -> None:
    target = tmp_path / "notices"
    hook = EventHook(recording(target))
    hook(run_event("r", bucket="b"))
    hook(step_event(7, loss=None))
    hook(events.ErrorEvent(time=1.0, message="w\udcff.pt failed."))
    hook(events.State(time=1.0, state=RunState.FAILED))
    hook(summary_event())
    hook.close()
    found = notices(target)
    assert [each["occasion"] for each in found] == ["divergence", "failure", "end"]
    assert [each["message"] for each in found][1] == "w?.pt failed."
    assert {(each["run"], each["bucket"], each["step"]) for each in found} == {("r", "b", 7)}
    assert isinstance(found[2]["summary"], dict)


def test_a_stall_is_noticed_once(tmp_path: Path) -> None:
    target = tmp_path / "notices"
    now = [0.0]
    hook = EventHook(recording(target), clock=lambda: now[0])
    hook(events.State(time=1.0, state=RunState.RUNNING))
    now[0] = 100.0
    hook(events.Telemetry(time=101.0))  # the sampler's: no sign of the run
    hook.check_stall()
    hook.check_stall()
    hook(step_event(1))
    hook(events.State(time=2.0, state=RunState.PAUSED))
    now[0] = 300.0
    hook.check_stall()
    hook.close()
    assert [each["occasion"] for each in notices(target)] == [Occasion.STALL]


def test_the_command_gets_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "secret")
    target = tmp_path / "environment"
    code = f"import os; open({str(target)!r}, 'w').write(repr(dict(os.environ)))"
    hook = EventHook(f'{sys.executable} -c "{code}"')
    hook(summary_event())
    hook.close()
    assert "OSS_ACCESS_KEY_SECRET" not in target.read_text()


@pytest.mark.parametrize(
    ("command", "problem"),
    [("/no/such/program", "could not be started"), (f"{sys.executable} -c 'raise SystemExit(3)'", "exit code 3")],
)
def test_a_command_that_fails_is_reported_once(command: str, problem: str) -> None:
    warned: list[str] = []
    hook = EventHook(command)
    hook.warn = lambda message, _remedy: warned.append(message)
    hook(summary_event())
    hook(summary_event())
    hook.close()
    assert len(warned) == 1
    assert problem in warned[0]


def test_a_command_may_leave_a_process_in_the_background(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    warned: list[str] = []
    hook = EventHook(f"sh -c 'cat {tmp_path}/fifo & echo gone >&2; exit 3'")
    hook.warn = lambda message, _remedy: warned.append(message)
    hook(summary_event())
    hook.close()
    (tmp_path / "fifo").write_text("end")
    assert warned == ["The command of --on-event failed: exit code 3, gone."]


@pytest.mark.parametrize("command", ["", "'open"])
def test_a_command_line_that_is_none_is_refused(command: str) -> None:
    with pytest.raises(SettingsError):
        EventHook(command)


def test_tensorboard_shows_a_run_while_it_is_alive(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = TensorBoardFolder(tmp_path / "board")
    board.add(step_event(1))
    board.flush()
    seen = accumulator.EventAccumulator(str(tmp_path / "board"))
    seen.Reload()
    assert [each.step for each in seen.Tensors("train/loss")] == [1]
    board.close()


def test_a_sink_that_fails_is_dropped_and_the_run_continues() -> None:
    got: list[Event] = []
    warned: list[str] = []

    def broken(_event: Event) -> None:
        raise ConsoleError("The disk is full.")

    outlets = Outlets(got.append)
    outlets.warn = lambda message, _remedy: warned.append(message)
    outlets.add(broken)
    outlets.add(got.append)
    for number in (1, 2):
        outlets(step_event(number))
    assert warned == ["The disk is full."]
    assert len(got) == 4
