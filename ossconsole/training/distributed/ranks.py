"""The ranks of a run: who this process is, and what all ranks decide before a step. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.telemetry.ranks import RankStep


class RankLostError(ConsoleError):
    """Another rank of the run is gone: collectives over all ranks are no longer possible."""


_TORCHRUN = "env://"  # torchrun sets the address in the environment


@dataclass(frozen=True)
class RankInfo:
    """`rank` of `world` processes, `local_rank` of `local_world` on this machine.

    `rendezvous` is the URL for `torch.distributed.init_process_group`. `attempt` counts torchrun's restarts. `gpu` is
    the UUID of the GPU that the starter of this process selected for it, "" where it selected none.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    rendezvous: str = _TORCHRUN
    attempt: int = 0
    gpu: str = ""

    @property
    def by_torchrun(self) -> bool:
        """Whether torchrun started the ranks, and decides when they end."""
        return self.world > 1 and self.rendezvous == _TORCHRUN

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
    `decode_s` belong to its batch, which its reader number `reader` read; `retries` and `skipped` count since the start
    of the run. `step_s` is the time since its last status, 0 where that includes more than a step.
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
    reader: float = 0.0
    step_s: float = 0.0


class StepDecision(NamedTuple):
    """What all ranks do next. `samples`, `bytes`, `retries`, `skipped` are sums, the seconds are maxima.

    `lr` is a new peak or None. `failed_over_rank` is the first rank that switched to `endpoint`, None without a switch.
    `ranks` has what each rank reported of its step, in rank order.
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
    ranks: tuple[RankStep, ...] = ()


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
        ranks=tuple(
            RankStep(each.step_s, each.wait_s, int(each.bytes), int(each.reader), each.fetch_s, each.decode_s)
            for each in statuses
        ),
    )


def endpoint_index(kind: EndpointKind) -> int:
    """The number of an endpoint in a RankStatus."""
    return _KINDS.index(kind)
