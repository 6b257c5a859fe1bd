"""Seen and steered from another process: the socket, who may call, and the handles that use it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.training.remote import control
from ossconsole.training.remote.control import ControlError, ControlServer, GetReport, Stop, ask, peers
from ossconsole.training.run import ClaimedError, PrefixClaim

PROFILE = Profile(name="p", region="cn-x", bucket="bucket-x", standard_endpoint="http://127.0.0.1:9")


@dataclass
class FakeRun:
    id: str = "run-1"
    alive: bool = True
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    happened: threading.Event = field(default_factory=threading.Event)

    def __getattr__(self, name: str) -> Any:
        def note(*arguments: Any) -> None:
            self.asked.append((name, *arguments))
            self.happened.set()
            if name == "set_lr":
                raise ConsoleError("No.", remedy="Ask nicely.")
            if name == "checkpoint":
                raise ZeroDivisionError

        return note


@dataclass
class FakeProcess:
    profile: Profile | None = PROFILE
    own_run: Any = field(default_factory=FakeRun)
    own_upload: Any = None


@pytest.fixture
def process() -> Iterator[FakeProcess]:
    process = FakeProcess()
    with ControlServer(process):
        yield process


def test_commands_reach_the_run_and_refusals_come_back(process: FakeProcess) -> None:
    ask(os.getpid(), control.Pause(run="run-1"))
    ask(os.getpid(), control.SwitchEndpoint(run="run-1", endpoint=EndpointKind.ACCELERATED, reason="by hand"))
    ask(os.getpid(), control.ProfileSteps(run="run-1"))
    ask(os.getpid(), Stop(run="run-1"))
    switched = ("switch", EndpointKind.ACCELERATED, "by hand")
    assert process.own_run.asked == [("pause",), switched, ("profile",), ("stop",)]
    with pytest.raises(ControlError, match="No") as refused:
        ask(os.getpid(), control.SetLr(run="run-1", lr=0.1))
    assert refused.value.remedy == "Ask nicely."
    with pytest.raises(ControlError, match="unexpectedly: ZeroDivisionError"):
        ask(os.getpid(), control.SaveCheckpoint(run="run-1"))
    with pytest.raises(ControlError, match="upload has ended"):
        ask(os.getpid(), control.UploadAction(action="pause"))


def test_another_run_does_not_get_its_commands(process: FakeProcess) -> None:
    with pytest.raises(ControlError, match="run-0 has ended"):
        ask(os.getpid(), Stop(run="run-0"))
    process.own_run.alive = False
    with pytest.raises(ControlError, match="run-1 has ended"):
        ask(os.getpid(), Stop(run="run-1"))
    assert process.own_run.asked == []


def test_its_report_names_its_work(process: FakeProcess) -> None:
    report = ask(os.getpid(), GetReport()).report
    assert report is not None
    assert (report.pid, report.region, report.bucket, report.run) == (os.getpid(), "cn-x", "bucket-x", "run-1")
    process.profile = None
    assert ask(os.getpid(), GetReport()).report == control.Report(pid=os.getpid(), run="run-1")


def test_the_socket_is_private_and_goes_with_its_process(process: FakeProcess) -> None:
    (path,) = control.control_dir().iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_closed_server_does_not_answer() -> None:
    with ControlServer(FakeProcess()):
        pass
    assert list(control.control_dir().iterdir()) == []
    with pytest.raises(ControlError, match="has exited"):
        ask(os.getpid(), GetReport())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json\n",
        b'{"do":"explode"}\n',
        b'{"do":"stop"}\n',
        b'{"do":"stop","run":"r","more":1}\n',
        b"[" * 99999 + b"\n",
    ],
)
def test_nonsense_is_refused_and_the_next_caller_is_served(process: FakeProcess, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw, control._folder() as folder:
        raw.settimeout(20)
        raw.connect(control._address(folder, f"{os.getpid()}.sock"))
        raw.sendall(line)
        raw.shutdown(socket.SHUT_WR)
        answer = msgspec.json.decode(raw.recv(65536), type=control.Answer)
    assert "Invalid command" in answer.problem
    assert ask(os.getpid(), GetReport()).report is not None


def test_a_silent_caller_does_not_block_the_others(process: FakeProcess) -> None:
    with socket.socket(socket.AF_UNIX) as silent, control._folder() as folder:
        silent.connect(control._address(folder, f"{os.getpid()}.sock"))
        assert ask(os.getpid(), GetReport()).report is not None


def test_other_users_are_not_answered(process: FakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if os.getuid() != 0:
        with pytest.raises(ControlError):
            ask(os.getpid(), GetReport())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert control._is_ours(ours) == (os.getuid() == 0)


SERVE = """
import sys, threading
from tests.training.test_control import FakeProcess
from ossconsole.training.remote.control import ControlServer
with ControlServer(FakeProcess()):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_peers_are_found_and_the_dead_are_cleared_away() -> None:
    others = [
        subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
        with ControlServer(FakeProcess()):
            assert {report.pid for report in peers()} == {other.pid for other in others}
        others[0].send_signal(signal.SIGSTOP)
        with pytest.raises(ControlError, match=f"Process {others[0].pid} is suspended") as refused:
            ask(others[0].pid, GetReport())
        assert f"kill -CONT {others[0].pid}" in refused.value.remedy
        assert {report.pid for report in peers()} == {others[1].pid}
        assert len(list(control.control_dir().iterdir())) == 2
        others[0].kill()
        others[0].wait(20)
        assert {report.pid for report in peers()} == {others[1].pid}
        assert len(list(control.control_dir().iterdir())) == 1
    finally:
        for other in others:
            other.kill()
            other.communicate(timeout=20)


def test_the_next_process_removes_the_socket_of_a_killed_one() -> None:
    killed = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"ready\n"
    killed.kill()
    killed.communicate(timeout=20)
    assert [path.stem for path in control.control_dir().iterdir()] == [str(killed.pid)]
    with ControlServer(FakeProcess()):
        assert [path.stem for path in control.control_dir().iterdir()] == [str(os.getpid())]


def test_machines_that_share_a_state_folder_leave_each_other_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes may have the same pids, and those of another machine do not exist here."""
    other = control.control_dir().with_name("other-host")
    other.mkdir(parents=True)
    sockets = [other / f"{os.getpid()}.sock", other / f"{2**22 + 1}.sock"]  # 2**22 is the largest pid
    for path in sockets:
        path.touch()
    monkeypatch.setattr(socket, "gethostname", lambda: "this/host.")
    with ControlServer(FakeProcess()):
        assert list(peers()) == []
        assert control.control_dir().parent == other.parent
        assert ask(os.getpid(), GetReport()).report is not None
    assert all(path.exists() for path in sockets)


def test_a_state_folder_may_have_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSCONSOLE_STATE_DIR", str(tmp_path / ("long" * 40) / "state"))
    with ControlServer(FakeProcess()):
        assert ask(os.getpid(), GetReport()).report is not None


def test_a_process_answers_again_after_it_had_too_many_open_files(
    process: FakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_RETRY_S", 0.01)
    failed, accept = threading.Event(), socket.socket.accept

    def fail_once(self: socket.socket) -> tuple[socket.socket, Any]:
        if failed.is_set():
            return accept(self)
        failed.set()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket.socket, "accept", fail_once)
    ask(os.getpid(), GetReport())  # it is waited for already
    assert failed.wait(20)
    assert ask(os.getpid(), GetReport()).report is not None


def test_a_prefix_has_one_writer_and_the_error_of_the_second_names_it() -> None:
    claim = PrefixClaim(PROFILE, "first")
    with pytest.raises(ClaimedError, match=rf"The run first \(process {os.getpid()}\) is active") as refused:
        PrefixClaim(PROFILE, "second")
    assert refused.value.holder is not None
    assert refused.value.holder.run == "first"
    PrefixClaim(msgspec.structs.replace(PROFILE, checkpoint_prefix="another"), "third").release()
    claim.release()
    PrefixClaim(PROFILE, "second").release()


def test_the_error_names_the_machine_of_the_writer_where_that_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "gpu-7")
        claim = PrefixClaim(PROFILE, "first")
    with pytest.raises(ClaimedError, match=rf"process {os.getpid()} on gpu-7\) is active") as refused:
        PrefixClaim(PROFILE, "second")
    assert "on gpu-7 shows it" in refused.value.remedy
    claim.release()


def test_a_claim_ends_with_its_process() -> None:
    code = (
        "import time\nfrom tests.training.test_control import PROFILE\n"
        "from ossconsole.training.run import PrefixClaim\n"
        "claim = PrefixClaim(PROFILE, 'killed'); print('has it', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"has it\n"
    with pytest.raises(ClaimedError, match="run killed"):
        PrefixClaim(PROFILE, "mine")
    holder.kill()
    holder.communicate(timeout=20)
    claim = PrefixClaim(PROFILE, "mine", take_over=True)
    assert claim.run == "mine", "torchrun restarts this run, and did not start the one that was killed"
    claim.release()
    again = PrefixClaim(PROFILE, "restarted", take_over=True)
    assert again.run == "mine"
    again.release()
