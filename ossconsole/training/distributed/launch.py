"""The ranks of a run on this machine: every one, rank 0 included, is a child process that this process watches.

A fault of CUDA or NCCL ends a child and nothing else. Each child reports on a pipe: rank 0 its events, all of them the
error that ends them. Requests of the user go to rank 0. No torch here.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import logging
import os
import pickle
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec

from ossconsole.config.credentials import SAFE_PATH, CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import make_folder, native_log_path, open_private, reason, state_dir, unwritable
from ossconsole.config.profiles import Profile
from ossconsole.config.spawning import module_command
from ossconsole.config.text import counted, signal_name
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event
from ossconsole.telemetry.gpu import emptiest, read_gpus, visible_gpus
from ossconsole.training.context import Controls, RunContext
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.settings import TrainSettings

log = logging.getLogger(__name__)

RANK_COMMAND = module_command("ossconsole.training.rank_process")

_POLL_S = 0.1  # the longest that a request of the user waits
_END_TIMEOUT_S = 10.0  # for the other ranks after rank 0 finished, and for their reasons after one failed
_SILENCE_S = 30.0  # rank 0 may take this long to end after another failed: twice its limit for ending NCCL and a reader
_WRITE_TIMEOUT_S = 330.0  # longer than the two attempts to write a checkpoint
_KEPT_BYTES = 1 << 16  # of a line under way; more is read with the next call


class RankFailure(msgspec.Struct, frozen=True):
    """The error of a rank. `lost` means that it ended only because another rank is gone.

    `broken_gpu` means that its process could not use the GPU any more; those of the next run can.
    """

    message: str
    remedy: str = ""
    exit_code: int = 1
    lost: bool = False
    broken_gpu: bool = False


class Request(msgspec.Struct, frozen=True):
    """A request of the user to rank 0; `lr`, `endpoint` and `reason` belong to the names that need them."""

    name: Literal["pause", "resume", "stop", "checkpoint", "lr", "profile", "switch"]
    lr: float = 0.0
    endpoint: EndpointKind = EndpointKind.STANDARD
    reason: str = ""

    def apply(self, context: RunContext) -> None:
        """Carries out the request in the process of rank 0."""
        controls = context.controls
        if self.name == "switch":
            context.switch(self.endpoint, self.reason)
        elif self.name == "lr":
            controls.request_lr(self.lr)
        else:
            {
                "pause": controls.pause,
                "resume": controls.resume,
                "stop": controls.stop,
                "checkpoint": controls.request_checkpoint,
                "profile": controls.request_profile,
            }[self.name]()


class RankReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line from a rank: an event (rank 0 only) or the error that ends it."""

    event: msgspec.Raw = msgspec.Raw(b"null")
    failure: RankFailure | None = None


@dataclass(frozen=True)
class RankArgs:
    """The arguments of a rank's process; `parent` is the id of the process that started it."""

    parent: int
    run: str
    profile: Profile
    credentials: CredentialSource
    settings: TrainSettings
    rank_info: RankInfo


class _ForwardedControls(Controls):
    """Requests that rank 0 carries out in its own process; sending never blocks."""

    def __init__(self, endpoint: EndpointKind, send: Callable[[Request], None]) -> None:
        super().__init__(endpoint)
        self._send = send

    def pause(self) -> None:
        super().pause()
        self._send(Request("pause"))

    def resume(self) -> None:
        super().resume()
        self._send(Request("resume"))

    def stop(self) -> None:
        super().stop()
        self._send(Request("stop"))

    def request_checkpoint(self) -> None:
        self._send(Request("checkpoint"))

    def request_lr(self, lr: float) -> None:
        self._send(Request("lr", lr=lr))

    def request_profile(self) -> None:
        self._send(Request("profile"))


class LauncherContext(RunContext):
    """The context of a run whose ranks are processes: the events are those of rank 0, which gets all requests."""

    def __init__(
        self,
        run: str,
        profile: Profile,
        credentials: CredentialSource,
        settings: TrainSettings,
        emit: Callable[[Event], None],
    ) -> None:
        super().__init__(run, profile, credentials, settings, emit)
        self.requests: deque[Request] = deque()
        self.controls = _ForwardedControls(settings.endpoint, self.requests.append)
        self.summary: events.Summary | None = None
        self.last_checkpoint = ""

    def switch(self, kind: EndpointKind, reason: str) -> None:
        """Requests the switch of rank 0. Raises SettingsError when the profile has no such endpoint."""
        self.check_endpoint(kind)
        self.requests.append(Request("switch", endpoint=kind, reason=reason))

    def receive(self, event: Event) -> None:
        """Passes on an event of rank 0, which has measured it, and follows the run by it."""
        match event:
            case events.Run():
                self.described = True
                event = msgspec.structs.replace(event, pid=os.getpid())  # where the run can be controlled
            case events.State():
                self.state = event.state
            case events.Switch():
                self.controls.endpoint = event.endpoint
            case events.Step():
                self.step = event.step
            case events.Checkpoint():
                self.last_checkpoint = event.key
            case events.Summary():
                self.summary = event
            case _:
                pass
        self.sink(event)


@dataclass(eq=False)
class _Rank:
    """The process of a rank. `killed` means that this process ended it; `heard_at` is when it last reported."""

    number: int
    process: subprocess.Popen[bytes]
    failure: RankFailure | None = None
    failed_at: float = 0.0
    killed: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    line: bytes = b""

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def failed(self) -> bool:
        """Whether it reported an error or ended with one, other than by `kill`."""
        return self.failure is not None or (not self.killed and self.process.poll() not in {None, 0})

    def kill(self) -> None:
        if self.alive:
            self.killed = True
            self.process.kill()

    def read(self) -> list[RankReport] | None:
        """The reports that have arrived; None at the end of its process."""
        assert self.process.stdout is not None  # noqa: S101
        data = os.read(self.process.stdout.fileno(), _KEPT_BYTES)
        if not data:
            return None
        self.heard_at = time.monotonic()
        *lines, self.line = (self.line + data).split(b"\n")
        return [msgspec.json.decode(line, type=RankReport) for line in lines]

    def send(self, line: bytes) -> None:
        """Sends one line; to a process that has ended, nothing."""
        assert self.process.stdin is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()

    def wait(self) -> None:
        """Waits for the end of a process that is about to end. A GPU that hangs may keep even a killed one."""
        try:
            self.process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("The process of rank %d (%d) does not end", self.number, self.process.pid)

    def close(self) -> None:
        """Ends the process."""
        self.kill()
        self.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):  # of a line that it has not read
                if pipe is not None:
                    pipe.close()


class LocalRanks:
    """Starts the ranks of a run, one for each of `infos`, and watches them to the end. Leaving the context ends them.

    They get their arguments through a pipe, so nothing secret is in the process list. Raises ConsoleError when one
    cannot be started; the others are ended then.
    """

    def __init__(self, context: LauncherContext, infos: Sequence[RankInfo]) -> None:
        self._context = context
        self._failed_at: float | None = None
        self._finished_at: float | None = None
        self._saving = False
        self._resources = contextlib.ExitStack()
        self._ranks: list[_Rank] = []
        with contextlib.ExitStack() as resources:
            folder = _rendezvous_folder()
            resources.callback(shutil.rmtree, folder, ignore_errors=True)
            rendezvous = (folder / "rendezvous").as_uri()
            for info in infos:
                rank = _start(context, dataclasses.replace(info, rendezvous=rendezvous))
                resources.callback(rank.close)
                self._ranks.append(rank)
            self._resources = resources.pop_all()

    def __enter__(self) -> LocalRanks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rank in self._ranks:
            rank.kill()  # all of them, before one is waited for: NCCL may hang while a peer is half gone
        self._resources.close()

    def watch(self) -> events.Summary:
        """Passes on events and requests until all ranks have ended; returns the summary of rank 0.

        Raises ConsoleError with the reason of the rank that failed first.
        """
        with selectors.DefaultSelector() as selector:
            for rank in self._ranks:
                assert rank.process.stdout is not None  # noqa: S101
                selector.register(rank.process.stdout, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select(_POLL_S):
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                self._send_requests()
                self._end_overdue(time.monotonic())
        for rank in self._ranks:
            rank.wait()
        summary = self._context.summary
        if summary is None or self._ranks[0].failure is not None:
            raise self._reason()
        return summary

    def _read(self, rank: _Rank) -> bool:
        """Handles the reports of a rank; False at its end."""
        reports = rank.read()
        for report in reports or ():
            if report.failure is not None:
                rank.failure, rank.failed_at = report.failure, time.monotonic()
                log.info("Rank %d failed: %s %s", rank.number, report.failure.message, report.failure.remedy)
            else:
                event = events.decode(bytes(report.event))
                if isinstance(event, events.Saving | events.Checkpoint):
                    self._saving = isinstance(event, events.Saving) and not event.over
                self._context.receive(event)
        return reports is not None

    def _send_requests(self) -> None:
        while self._context.requests:
            self._ranks[0].send(msgspec.json.encode(self._context.requests.popleft()))

    def _end_overdue(self, now: float) -> None:
        """Ends ranks that outlive the run: with a failed one, or after rank 0 has finished.

        Rank 0 may first write a checkpoint that it has begun.
        """
        zero, *others = self._ranks
        if self._failed_at is None and any(rank.failed for rank in self._ranks):
            self._failed_at = now
        if self._finished_at is None and not zero.alive:
            self._finished_at = now
        ended = [at for at in (self._failed_at, self._finished_at) if at is not None]
        summary = self._context.summary
        stopped = summary is not None and not summary.steps and not zero.alive  # the others still wait for rank 0
        if stopped or (ended and now - min(ended) > _END_TIMEOUT_S):
            for rank in others:
                rank.kill()
        if self._failed_at is not None:
            quiet_s = now - max(self._failed_at, zero.heard_at)
            if quiet_s > (_WRITE_TIMEOUT_S if self._saving else _SILENCE_S):
                zero.kill()

    def _reason(self) -> ConsoleError:
        """Why the run failed: the error of a rank, else the end of one, and only then that others lost it."""
        reported = [rank for rank in self._ranks if rank.failure is not None]
        own = [rank for rank in reported if rank.failure is not None and not rank.failure.lost]
        gone = [rank for rank in self._ranks if rank.failure is None and rank.failed]
        if own:
            own.sort(key=lambda rank: rank.failed_at)
            for other in own[1:]:
                self._context.warn(str(self._error_of(other)))
            return self._error_of(own[0])
        if gone:
            return self._end_of(gone[0])
        if reported:
            return self._error_of(reported[0])
        return ConsoleError(
            f"Rank 0 of {len(self._ranks)} did not end within {_SILENCE_S:g} s.", remedy=self._resume_remedy()
        )

    def _error_of(self, rank: _Rank) -> ConsoleError:
        """The error that the rank reported."""
        assert rank.failure is not None  # noqa: S101
        prefix = f"Rank {rank.number}: " if rank.number else ""
        broken = f"{self._resume_remedy()} If it fails again, `dmesg` may have an Xid."
        remedy = broken if rank.failure.broken_gpu else rank.failure.remedy
        error = ConsoleError(f"{prefix}{rank.failure.message}", remedy=remedy)
        error.exit_code = rank.failure.exit_code
        return error

    def _end_of(self, rank: _Rank) -> ConsoleError:
        code, who = rank.process.returncode, f"Rank {rank.number} of {len(self._ranks)}"
        if code < 0:
            return ConsoleError(
                f"{who} was killed by {signal_name(-code)}.",
                remedy=f"`dmesg` says whether the kernel did, for lack of memory. {self._resume_remedy()}",
            )
        return ConsoleError(
            f"{who} exited with code {code}.",
            remedy=f"{native_log_path()} has its output. {self._resume_remedy()}",
        )

    def _resume_remedy(self) -> str:
        key = self._context.last_checkpoint
        return f"Resume with --resume {key}." if key else "This run has no checkpoint yet: start it again."


def local_ranks(settings: TrainSettings) -> list[RankInfo]:
    """The ranks of a run on this machine: `settings.processes`, or one per GPU; each with a GPU of its own.

    The GPUs with the most free memory. Raises ConsoleError with fewer GPUs than processes.
    """
    gpus = visible_gpus(read_gpus()) if settings.device != "cpu" else ()
    count = settings.processes or max(1, len(gpus))
    if gpus and len(gpus) < count:
        raise ConsoleError(
            f"{counted(count, 'process', 'processes')} need a GPU each, and {counted(len(gpus), 'GPU')} can be used.",
            remedy="Use --processes 0 for one process per GPU, or --device cpu.",
        )
    selected = [gpu.uuid or "" for gpu in emptiest(gpus, count)] if gpus else [""] * count
    return [RankInfo(rank, count, rank, count, gpu=gpu) for rank, gpu in enumerate(selected)]


def _rendezvous_folder() -> Path:
    """A folder for the file of the rendezvous: only this user can reach it, and no port has to be free."""
    _remove_stale_folders()
    try:
        prefix = f"run-{os.getpid()}-{socket.gethostname()}-"
        return Path(tempfile.mkdtemp(prefix=prefix, dir=make_folder(state_dir())))
    except OSError as error:
        raise unwritable(state_dir(), error) from error


def _remove_stale_folders() -> None:
    """Removes the rendezvous folders of killed processes of this host, which may share its disk with others."""
    for path in state_dir().glob("run-*-*-*"):
        pid, _, rest = path.name.removeprefix("run-").partition("-")
        ours = rest.rpartition("-")[0] == socket.gethostname()
        if ours and pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)


def _start(context: RunContext, rank_info: RankInfo) -> _Rank:
    log_file = open_private(native_log_path())
    try:
        process = subprocess.Popen(  # noqa: S603
            RANK_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            # All on this machine: nothing needs to listen beyond it.
            env={"GLOO_SOCKET_IFNAME": "lo", **os.environ, **SAFE_PATH},
        )
    except OSError as error:
        raise ConsoleError(
            f"The process of {rank_info} could not be started: {reason(error)}.",
            remedy="Free memory or descriptors (`ulimit -n`).",
        ) from error
    finally:
        os.close(log_file)
    rank = _Rank(rank_info.rank, process)
    args = RankArgs(os.getpid(), context.id, context.profile, context.credentials, context.settings, rank_info)
    rank.send(base64.b64encode(pickle.dumps(args)))
    return rank


def read_args(source: Any) -> RankArgs:
    """The arguments that `_start` wrote, from the binary stream of standard input."""
    # Written by the process that started this one, to a pipe that nobody else has.
    args: RankArgs = pickle.loads(base64.b64decode(source.readline()))  # noqa: S301
    return args
