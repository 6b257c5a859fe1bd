"""The ranks of a run: who this process is, what all ranks decide before a step, and starting those of this machine.

No torch here.
"""

from __future__ import annotations

import base64
import os
import pickle
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import make_folder, state_dir, unwritable
from ossconsole.config.profiles import Profile
from ossconsole.training.context import RunContext
from ossconsole.training.settings import TrainSettings

READY = "ready"
"""What a rank process prints just before the rendezvous."""

_START_TIMEOUT_S = 300.0  # importing torch from a cold disk takes a minute
_END_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class RankInfo:
    """`rank` of `world` processes, `local_rank` of `local_world` on this machine.

    `rendezvous` is the URL for `torch.distributed.init_process_group`. `attempt` counts torchrun's restarts.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    rendezvous: str = "env://"
    attempt: int = 0

    @property
    def is_rank_zero(self) -> bool:
        """Rank 0 owns the record, the checkpoints and the controls of the run."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"


def torchrun_rank_info(environ: Mapping[str, str] = os.environ) -> RankInfo:
    """The rank that torchrun gave this process; a world of one without torchrun.

    Raises SettingsError when torchrun's variables are incomplete.
    """
    if "WORLD_SIZE" not in environ:
        return RankInfo()
    try:
        return RankInfo(
            rank=int(environ["RANK"]),
            world=int(environ["WORLD_SIZE"]),
            local_rank=int(environ["LOCAL_RANK"]),
            local_world=int(environ["LOCAL_WORLD_SIZE"]),
            attempt=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )
    except (KeyError, ValueError) as error:
        raise SettingsError(
            f"WORLD_SIZE is set, but another variable of torchrun is missing or invalid: {error}.",
            remedy="Start with `torchrun --nproc-per-node=gpu -m ossconsole train …`, or unset WORLD_SIZE.",
        ) from error


_KINDS = tuple(EndpointKind)

BATCH, END, FAILED = 1, 0, -1


class RankStatus(NamedTuple):
    """The status of one rank before a step; numbers only, as they travel in one tensor.

    `ready` is BATCH, END (of the plan, or stopped) or FAILED. `events` counts its events for the record. `endpoint` is
    an index into EndpointKind, `lr` a new peak (0: unchanged). `samples`, `bytes`, `wait_s`, `fetch_s` and
    `decode_s` belong to its batch; `retries` and `skipped` count since the start of the run.
    """

    ready: float
    events: float
    stop: float
    pause: float
    checkpoint: float
    lr: float
    endpoint: float
    samples: float
    bytes: float
    wait_s: float
    fetch_s: float
    decode_s: float
    retries: float
    skipped: float


class StepDecision(NamedTuple):
    """What all ranks do next. `samples`, `bytes`, `retries`, `skipped` are sums, the seconds are maxima.

    `lr` is a new peak or None. `failed_over_rank` is the first rank that switched to `endpoint`, None without a switch.
    """

    over: bool
    failed: bool
    events: bool
    stop: bool
    pause: bool
    checkpoint: bool
    lr: float | None
    endpoint: EndpointKind
    failed_over_rank: int | None
    samples: int
    bytes: int
    wait_s: float
    fetch_s: float
    decode_s: float
    retries: int
    skipped: int


def decide(rows: Sequence[Sequence[float]], endpoint: EndpointKind) -> StepDecision:
    """The decision from the RankStatus of all ranks; `endpoint` is the one used so far.

    Rank 0 (the first row) decides about pauses, checkpoints, the learning rate and the endpoint. Any rank may request a
    stop, and any rank that had to leave a failing endpoint takes the others with it.
    """
    statuses = [RankStatus(*row) for row in rows]
    zero = statuses[0]
    switched = next((rank for rank, each in enumerate(statuses) if _KINDS[int(each.endpoint)] is not endpoint), None)
    return StepDecision(
        over=any(each.ready == END for each in statuses),
        failed=any(each.ready == FAILED for each in statuses),
        events=any(each.events for each in statuses),
        stop=any(each.stop for each in statuses),
        pause=bool(zero.pause),
        checkpoint=bool(zero.checkpoint),
        lr=zero.lr or None,
        endpoint=endpoint if switched is None else _KINDS[int(statuses[switched].endpoint)],
        failed_over_rank=switched,
        samples=int(sum(each.samples for each in statuses)),
        bytes=int(sum(each.bytes for each in statuses)),
        wait_s=max(each.wait_s for each in statuses),
        fetch_s=max(each.fetch_s for each in statuses),
        decode_s=max(each.decode_s for each in statuses),
        retries=int(sum(each.retries for each in statuses)),
        skipped=int(sum(each.skipped for each in statuses)),
    )


def endpoint_index(kind: EndpointKind) -> int:
    """The number of an endpoint in a RankStatus."""
    return _KINDS.index(kind)


@dataclass(frozen=True)
class RankArgs:
    """What a rank process needs; `parent` is the id of the process that started it."""

    parent: int
    run: str
    profile: Profile
    credentials: CredentialSource
    settings: TrainSettings
    rank_info: RankInfo


class LocalRanks:
    """The processes with ranks 1 to `processes` - 1 on this machine. Leaving the context ends those still alive.

    They get their arguments through a pipe, so nothing secret is in the process list.
    """

    def __init__(self, context: RunContext, processes: int) -> None:
        # The rendezvous is a file that only this user can reach, so no port has to be free.
        _remove_stale_folders()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=make_folder(state_dir())))
        except OSError as error:
            raise unwritable(state_dir(), error) from error
        # All on this machine: nothing needs to listen beyond it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        rendezvous = (self._folder / "rendezvous").as_uri()
        infos = [RankInfo(rank, processes, rank, processes, rendezvous=rendezvous) for rank in range(processes)]
        self.rank_zero = infos[0]
        self._processes = [_start(context, info) for info in infos[1:]]

    def __enter__(self) -> LocalRanks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        until = time.monotonic() + (_END_TIMEOUT_S if error is None else 0.0)
        for process in self._processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None  # noqa: S101
            process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait_until_ready(self) -> None:
        """Waits until all are about to enter the rendezvous. Raises ConsoleError when one exited or took too long."""
        until = time.monotonic() + _START_TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            for rank, process in enumerate(self._processes, start=1):
                assert process.stdout is not None  # noqa: S101
                selector.register(process.stdout, selectors.EVENT_READ, (rank, process))
            while selector.get_map():
                readable = selector.select(max(0.0, until - time.monotonic()))
                if not readable:
                    raise ConsoleError(
                        f"Not all processes of the run were ready within {_START_TIMEOUT_S:g} s.",
                        remedy="The log has their output.",
                    )
                for key, _ in readable:
                    _check_ready(*key.data)
                    selector.unregister(key.fileobj)


def _remove_stale_folders() -> None:
    """Removes the rendezvous folders of processes that were killed."""
    for path in state_dir().glob("run-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)


def _check_ready(rank: int, process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None  # noqa: S101
    line = process.stdout.readline().decode(errors="replace").strip()
    if line != READY:
        raise ConsoleError(
            f"Process {rank} of the run exited before it was ready: {line or 'it gave no reason'}",
            remedy="The log has its output.",
        )


def _start(context: RunContext, rank_info: RankInfo) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "ossconsole.training.rank_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    args = RankArgs(os.getpid(), context.id, context.profile, context.credentials, context.settings, rank_info)
    assert process.stdin is not None  # noqa: S101
    process.stdin.write(base64.b64encode(pickle.dumps(args)))
    process.stdin.close()
    return process
