"""A run and an upload of another process, through their handles."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.upload.progress import Phase
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import RecordError, RecordReader, RunRecord, record_path
from ossconsole.training.remote import attached, control
from ossconsole.training.remote.attached import AttachedRun, AttachedUpload
from ossconsole.training.remote.control import ControlServer
from tests.training.test_control import FakeProcess, FakeRun
from tests.waiting import wait_until

DEADLINE_S = 30.0


def begun(run: str = "run-1") -> events.Run:
    return events.Run(time=time.time(), run=run, version="1", pid=os.getpid())


def step(number: int) -> events.Step:
    return events.Step(
        time=time.time(),
        step=number,
        epoch=1,
        samples=8,
        loss=1.0,
        lr=0.1,
        endpoint=EndpointKind.STANDARD,
        data_wait_s=0.1,
        step_time_s=0.2,
        fetch_s=0.1,
        bytes=100,
        samples_per_s=40.0,
    )


def state(which: RunState) -> events.State:
    return events.State(time=time.time(), state=which, step=1)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait(DEADLINE_S)


def test_it_follows_the_record_to_the_end(sleeper: subprocess.Popen[bytes]) -> None:
    with RunRecord(record_path("run-1")) as record:
        record.append(begun())
        record.append(state(RunState.RUNNING))
        run = AttachedRun("run-1", sleeper.pid)
        assert run.is_remote
        assert [type(event) for event in run.drain()] == [events.Run, events.State]
        assert (run.state, run.alive) == (RunState.RUNNING, True)
        assert run.drain() == []
        record.append(step(1))
        assert [type(event) for event in run.drain()] == [events.Step]
        record.append(state(RunState.FINISHED))
        run.drain()
        assert run.state is RunState.FINISHED
        assert run.drain() == []
        assert not run.alive


def test_a_long_record_is_caught_up_with_in_pieces(sleeper: subprocess.Popen[bytes]) -> None:
    with RunRecord(record_path("run-1")) as record:
        record.append(begun())
        for number in range(1, 3001):
            record.append(step(number))
    run = AttachedRun("run-1", sleeper.pid)
    pieces: list[int] = []
    shares: list[float] = []
    while not pieces or run.reading is not None:
        pieces.append(len(run.drain()))
        shares += [] if run.reading is None else [run.reading]
    assert sum(pieces) == 3001
    assert max(pieces) < 3 * attached.PORTION
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1
    assert run.alive


def test_a_process_that_exited_unexpectedly_is_reported(sleeper: subprocess.Popen[bytes]) -> None:
    with RunRecord(record_path("run-1")) as record:
        record.append(begun())
        record.append(state(RunState.RUNNING))
    run = AttachedRun("run-1", sleeper.pid)
    run.drain()
    sleeper.kill()
    sleeper.wait(DEADLINE_S)
    found = run.drain()
    assert [type(event) for event in found] == [events.ErrorEvent, events.State]
    assert isinstance(found[0], events.ErrorEvent)
    assert f"({sleeper.pid})" in found[0].message
    assert "--resume" in found[0].remedy
    assert (run.state, run.alive) == (RunState.FAILED, False)


def test_a_record_that_cannot_be_read_for_a_while_is_a_warning_and_the_run_continues(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunRecord(record_path("run-1")) as record:
        record.append(begun())
        run = AttachedRun("run-1", sleeper.pid)
        run.drain()

        def stale(_: RecordReader) -> bytes:
            raise RecordError("The run record cannot be read: Stale file handle.")

        with monkeypatch.context() as patched:
            patched.setattr(RecordReader, "_read", stale)
            found = run.drain()
            assert [type(event) for event in found] == [events.WarningEvent]
            assert run.drain() == []
        record.append(step(1))
        assert [type(event) for event in run.drain()] == [events.Step]
        assert run.alive


def test_the_last_events_are_read_before_the_end_is_reported(sleeper: subprocess.Popen[bytes]) -> None:
    with RunRecord(record_path("run-1")) as record:
        record.append(begun())
        sleeper.kill()
        sleeper.wait(DEADLINE_S)
        run = AttachedRun("run-1", sleeper.pid)
        record.append(step(1))
        record.append(state(RunState.STOPPED))
    assert [type(event) for event in run.drain()] == [events.Run, events.Step, events.State]
    assert run.drain() == []
    assert (run.state, run.alive) == (RunState.STOPPED, False)


def test_its_commands_reach_the_run_in_order() -> None:
    process = FakeProcess(own_run=FakeRun())
    RunRecord(record_path("run-1")).close()
    with ControlServer(process):
        run = AttachedRun("run-1", os.getpid())
        run.pause()
        run.resume()
        run.switch(EndpointKind.ACCELERATED, "by hand")
        run.stop()
        wait_until(lambda: len(process.own_run.asked) == 4)
    assert [asked[0] for asked in process.own_run.asked] == ["pause", "resume", "switch", "stop"]


def test_commands_are_sent_before_their_console_exits() -> None:
    process = FakeProcess(own_run=FakeRun())
    RunRecord(record_path("run-1")).close()
    with ControlServer(process):
        run = AttachedRun("run-1", os.getpid())
        run.flush(DEADLINE_S)  # nothing to send
        run.switch(EndpointKind.STANDARD, "auto A/B")
        run.stop()
        run.flush(DEADLINE_S)
    assert [asked[0] for asked in process.own_run.asked] == ["switch", "stop"]


def test_a_failed_command_is_reported_in_the_event_log(sleeper: subprocess.Popen[bytes]) -> None:
    RunRecord(record_path("run-1")).close()
    run = AttachedRun("run-1", sleeper.pid)
    run.pause()
    found: list[events.Event] = []

    def reported() -> bool:
        found.extend(run.drain())
        return bool(found)

    wait_until(reported)
    assert isinstance(found[0], events.WarningEvent)
    assert f"Process {sleeper.pid} is not responding" in found[0].message
    assert run.refused == 1
    assert run.alive


UPLOAD = """
import sys
from dataclasses import dataclass
from pathlib import Path
from ossconsole.config.credentials import Secret
from ossconsole.config.credentials import Credentials
from ossconsole.config.credential_sources import FixedSource
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.job import UploadJob
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.training.remote.control import ControlServer
from tests.training.test_control import PROFILE, FakeProcess
job = create_upload(PROFILE, FixedSource(Credentials("id", Secret("s"))), UploadSettings(source=Path("/pictures")))
with ControlServer(FakeProcess(own_run=None, own_upload=job)):
    print("ready", flush=True)
    sys.stdin.readline()
    job.start()
    sys.stdin.read()
"""


@pytest.fixture
def uploader() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", UPLOAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate(timeout=DEADLINE_S)


def seen(process: subprocess.Popen[bytes]) -> AttachedUpload:
    report = control.ask(process.pid, control.GetReport()).report
    assert report is not None
    assert report.upload is not None
    return AttachedUpload(process.pid, report.upload)


def test_an_upload_is_watched_to_its_end(uploader: subprocess.Popen[bytes]) -> None:
    upload = seen(uploader)
    assert (upload.alive, upload.progress().phase, upload.source) == (True, Phase.STARTING, "/pictures")
    upload.pause()
    wait_until(lambda: upload.progress().paused)
    upload.resume()
    wait_until(lambda: not upload.progress().paused)
    assert uploader.stdin is not None
    uploader.stdin.write(b"\n")
    uploader.stdin.flush()
    assert upload.wait(DEADLINE_S)  # there is no such folder
    assert upload.progress().phase is Phase.FAILED
    assert "/pictures" in upload.progress().error


def test_an_upload_whose_process_is_killed_has_failed(uploader: subprocess.Popen[bytes]) -> None:
    upload = seen(uploader)
    uploader.kill()
    uploader.wait(DEADLINE_S)
    assert upload.wait(DEADLINE_S)
    assert upload.progress().phase is Phase.FAILED
    assert upload.error is not None
    assert "resumes where it stopped" in upload.error.remedy
