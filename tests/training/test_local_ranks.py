"""What the starter of ranks does with them, by scripts in the place of ranks: no torch, no training."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState
from ossconsole.training.context import Controls
from ossconsole.training.distributed import launch
from ossconsole.training.distributed.launch import LauncherContext, LocalRanks
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.settings import TrainSettings
from tests.terminal.screen import DEADLINE_S

RANK = """
import os, signal, sys, threading, time
import msgspec
from ossconsole.telemetry import events
from ossconsole.training.distributed.launch import RankFailure, RankReport, Request, read_args
args = read_args(sys.stdin.buffer)
number = args.rank_info.rank

def report(event=None, failure=None):
    raw = msgspec.Raw(events.encode(event)) if event is not None else msgspec.Raw(b"null")
    sys.stdout.buffer.write(msgspec.json.encode(RankReport(event=raw, failure=failure)) + b"\\n")
    sys.stdout.flush()

SUMMARY = events.Summary(time=1.0, run=args.run, state="finished", epochs=1, steps=1, samples=1, bytes=1,
                         seconds=1.0, samples_per_s=None, wait_fraction=None)

def summary():
    report(SUMMARY)

def hang():
    threading.Event().wait()

"""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., LocalRanks]]:
    """Starts ranks that run RANK and then a script."""
    monkeypatch.setenv("OSSCONSOLE_STATE_DIR", str(tmp_path / "state"))
    started: list[LocalRanks] = []

    def start(script: str, *, world: int = 2, emit: Callable[[Event], None] = lambda _event: None) -> LocalRanks:
        monkeypatch.setattr(launch, "RANK_COMMAND", (sys.executable, "-c", RANK + script))
        context = LauncherContext("run", PROFILE, NO_KEYS, TrainSettings(processes=world), emit)
        ranks = LocalRanks(context, [RankInfo(number, world, number, world) for number in range(world)])
        started.append(ranks)
        return ranks

    yield start
    for ranks in started:
        ranks.__exit__(None, None, None)


PROFILE: Any = None
NO_KEYS: Any = None


def reason(ranks: LocalRanks) -> ConsoleError:
    with pytest.raises(ConsoleError) as error, ranks:
        ranks.watch()
    return error.value


def test_events_of_rank_0_arrive_and_its_summary_ends_the_run(launched: Callable[..., LocalRanks]) -> None:
    seen: list[Event] = []
    script = "if number == 0:\n report(events.State(time=1.0, state='running', step=3)); summary()"
    with launched(script, emit=seen.append) as ranks:
        assert ranks.watch().state is RunState.FINISHED
    assert [type(event) for event in seen] == [events.State, events.Summary]


def test_requests_reach_rank_0_in_their_order(launched: Callable[..., LocalRanks]) -> None:
    seen: list[str] = []
    script = (
        "if number == 0:\n"
        " for line in sys.stdin.buffer:\n"
        "  request = msgspec.json.decode(line, type=Request)\n"
        "  report(events.InfoEvent(time=1.0, message=f'{request.name} {request.lr:g}', step=1))\n"
        "  if request.name == 'stop':\n"
        "   summary(); break\n"
    )
    ranks = launched(script, emit=lambda event: seen.append(getattr(event, "message", "")))
    controls = ranks._context.controls
    controls.pause()
    controls.request_lr(0.5)
    controls.request_checkpoint()
    controls.resume()
    controls.stop()
    with ranks:
        ranks.watch()
    assert seen[:5] == ["pause 0", "lr 0.5", "checkpoint 0", "resume 0", "stop 0"]


def test_every_request_of_the_user_is_forwarded() -> None:
    here = {"wait_while_paused"}
    requests = {name for name, value in vars(Controls).items() if callable(value) and name[0] != "_"} - here
    requests = {name for name in requests if not name.startswith("pop_")}
    sent: list[object] = []
    controls = launch._ForwardedControls(EndpointKind.STANDARD, sent.append)
    for name in requests:
        getattr(controls, name)(*([0.1] if name == "request_lr" else []))
    assert len(sent) == len(requests)


def test_a_switch_needs_the_endpoint_and_is_followed_when_rank_0_says_so(sandbox_profile: Any) -> None:
    context = LauncherContext("run", sandbox_profile, NO_KEYS, TrainSettings(processes=2), lambda _event: None)
    context.switch(EndpointKind.ACCELERATED, "requested")
    before = context.controls.endpoint
    context.receive(events.Switch(time=1.0, endpoint=EndpointKind.ACCELERATED, reason="requested", step=1))
    assert (before, context.controls.endpoint) == (EndpointKind.STANDARD, EndpointKind.ACCELERATED)


@pytest.fixture
def sandbox_profile(sandbox: SandboxProcess) -> Any:
    return sandbox.profile()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("if number == 1: os.kill(os.getpid(), signal.SIGKILL)\nhang()", "Rank 1 of 2 was killed by SIGKILL"),
        ("if number == 0: os.kill(os.getpid(), signal.SIGABRT)\nhang()", "Rank 0 of 2 was killed by SIGABRT"),
        ("if number == 1: sys.exit(3)\nhang()", "Rank 1 of 2 exited with code 3"),
        ("if number == 1: report(failure=RankFailure('No memory.')); hang()\nhang()", "Rank 1: No memory."),
        (
            "if number == 1: report(failure=RankFailure('cuda:1 failed.', 'No.', broken_gpu=True)); hang()\nhang()",
            "Rank 1: cuda:1 failed. This run has no checkpoint yet: start it again. If it fails again, `dmesg`",
        ),
    ],
)
def test_the_reason_is_that_of_the_rank_that_failed_and_ranks_that_hang_are_ended(
    launched: Callable[..., LocalRanks], monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setattr(launch, "_END_TIMEOUT_S", 1.0)
    monkeypatch.setattr(launch, "_SILENCE_S", 1.0)
    ranks = launched(script)
    assert message in str(reason(ranks))
    assert not any(rank.alive for rank in ranks._ranks)


@pytest.mark.parametrize(
    ("own", "message"),
    [("report(failure=RankFailure('No memory.'))", "Rank 1: No memory."), ("", "exited with code 1")],
)
def test_a_rank_that_lost_another_is_not_the_reason(
    launched: Callable[..., LocalRanks], tmp_path: Path, own: str, message: str
) -> None:
    first = tmp_path / "first"
    script = (
        "if number == 0: report(failure=RankFailure('Lost a rank.', lost=True)); "
        f"open({str(first)!r}, 'w').close(); sys.exit(1)\n"
        f"while not os.path.exists({str(first)!r}): time.sleep(0.01)\n"
        f"{own}\nsys.exit(1)"
    )
    assert message in str(reason(launched(script)))


def test_that_a_rank_was_lost_is_the_reason_where_no_other_is_known(launched: Callable[..., LocalRanks]) -> None:
    lost = "report(failure=RankFailure('Lost a rank.', lost=True)); sys.exit(1)"
    assert "Lost a rank." in str(reason(launched(lost)))


def test_rank_0_may_finish_the_checkpoint_that_it_writes(
    launched: Callable[..., LocalRanks], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "_END_TIMEOUT_S", 0.1)
    monkeypatch.setattr(launch, "_SILENCE_S", 0.1)
    seen: list[Event] = []
    saving = tmp_path / "saving"

    def emit(event: Event) -> None:
        seen.append(event)
        saving.touch()

    script = (
        f"while number == 1 and not os.path.exists({str(saving)!r}): time.sleep(0.01)\n"
        "if number == 1: sys.exit(1)\n"
        "report(events.Saving(time=1.0, key='checkpoints/a.pt', bytes=9, written=1))\n"
        "time.sleep(1)  # longer than it may be silent\n"
        "key = 'checkpoints/a.pt'\n"
        "report(events.Checkpoint(time=1.0, key=key, bytes=9, seconds=2.0, stable_key='', epoch=1, step=1))\n"
        "hang()\n"
    )
    error = reason(launched(script, emit=emit))
    assert "Rank 1 of 2 exited with code 1" in error.message
    assert "Resume with --resume checkpoints/a.pt" in error.remedy
    assert [type(event) for event in seen] == [events.Saving, events.Checkpoint]


def test_a_rank_that_cannot_be_started_leaves_nothing_behind(
    launched: Callable[..., LocalRanks], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    started = launch._start
    processes: list[Any] = []

    def start(context: Any, info: RankInfo) -> Any:
        if info.rank == 1:
            raise ConsoleError("no descriptors")
        processes.append(started(context, info))
        return processes[-1]

    monkeypatch.setattr(launch, "_start", start)
    with pytest.raises(ConsoleError, match="no descriptors"):
        launched("hang()")
    assert not processes[0].alive
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not list((tmp_path / "state").glob("run-*"))


def test_a_request_never_waits_for_a_rank_that_does_not_read(launched: Callable[..., LocalRanks]) -> None:
    ranks = launched("hang()")
    done = threading.Event()

    def request() -> None:
        for _ in range(10_000):
            ranks._context.controls.pause()
        ranks._context.controls.stop()
        done.set()

    threading.Thread(target=request, daemon=True).start()
    assert done.wait(DEADLINE_S)
    ranks.__exit__(None, None, None)


def test_a_run_stopped_before_the_rendezvous_does_not_wait_for_the_others(
    launched: Callable[..., LocalRanks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_END_TIMEOUT_S", DEADLINE_S)
    script = "if number == 1: hang()\nreport(msgspec.structs.replace(SUMMARY, state='stopped', steps=0))"
    with launched(script) as ranks:
        assert ranks.watch().state is RunState.STOPPED
    assert ranks._ranks[1].killed


def test_only_folders_of_this_hosts_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of a cluster and containers may share the folder: a process of another host is in no /proc of this one."""
    monkeypatch.setenv("OSSCONSOLE_STATE_DIR", str(tmp_path))
    monkeypatch.setattr("socket.gethostname", lambda: "node-1")
    own = launch._rendezvous_folder()
    dead = 4_194_305  # beyond the largest process id of Linux
    others = [tmp_path / f"run-{dead}-node-{host}-abc12345" for host in (1, 2, 11)]
    for folder in others:
        folder.mkdir()
    newest = launch._rendezvous_folder()
    assert set(tmp_path.iterdir()) == {own, newest, *others[1:]}
