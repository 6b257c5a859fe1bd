"""The rank of this process, and what the ranks tell each other before a step and decide from it. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError


@dataclass(frozen=True)
class Place:
    """`rank` of `world` processes, `local_rank` of `local_world` on this machine; the one with rank 0 leads.

    `rendezvous` is the URL at which they meet, as `torch.distributed.init_process_group` takes it. `attempt` counts how
    often torchrun started them anew after one had died.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    rendezvous: str = "env://"
    attempt: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process has the record, the checkpoints and the controls of the run."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"


def torchrun_place(environ: Mapping[str, str] = os.environ) -> Place:
    """The place that torchrun gave this process; alone where it was not started by it.

    Raises SettingsError when its variables are incomplete.
    """
    if "WORLD_SIZE" not in environ:
        return Place()
    try:
        return Place(
            rank=int(environ["RANK"]),
            world=int(environ["WORLD_SIZE"]),
            local_rank=int(environ["LOCAL_RANK"]),
            local_world=int(environ["LOCAL_WORLD_SIZE"]),
            attempt=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )
    except (KeyError, ValueError) as error:
        raise SettingsError(
            f"WORLD_SIZE is set, but the rest of torchrun's variables is not right: {error}.",
            remedy="Start with `torchrun --nproc-per-node=gpu -m ossconsole train …`, or unset WORLD_SIZE.",
        ) from error


_KINDS = tuple(EndpointKind)

BATCH, END, FAILED = 1, 0, -1


class Standing(NamedTuple):
    """What one process stands at; numbers only, as they travel in one tensor.

    `ready` is BATCH, END (of the plan, or told to stop) or FAILED. `news` counts the events it has for the record.
    `endpoint` is an index into EndpointKind, `lr` a new peak (0: none). `samples`, `bytes`, `wait_s` and `fetch_s` are
    its batch's; `retries` and `skipped` count since the run began.
    """

    ready: float
    news: float
    stop: float
    pause: float
    checkpoint: float
    lr: float
    endpoint: float
    samples: float
    bytes: float
    wait_s: float
    fetch_s: float
    retries: float
    skipped: float


class Agreement(NamedTuple):
    """What all processes do next. `samples`, `bytes`, `retries`, `skipped` are sums, the seconds those of the slowest.

    `lr` is a new peak or None; `left` is the first rank that left the endpoint `endpoint_before` for `endpoint`, None
    while all keep to it.
    """

    over: bool
    failed: bool
    news: bool
    stop: bool
    pause: bool
    checkpoint: bool
    lr: float | None
    endpoint: EndpointKind
    left: int | None
    samples: int
    bytes: int
    wait_s: float
    fetch_s: float
    retries: int
    skipped: int


def agree(rows: Sequence[Sequence[float]], endpoint: EndpointKind) -> Agreement:
    """What follows from the Standings of all ranks while `endpoint` is the one agreed on.

    The leader (the first row) decides about pauses, checkpoints, the learning rate and the endpoint; any process may
    ask to stop, and any that had to leave a failing endpoint takes the others with it.
    """
    standings = [Standing(*row) for row in rows]
    leader = standings[0]
    left = next((rank for rank, each in enumerate(standings) if _KINDS[int(each.endpoint)] is not endpoint), None)
    return Agreement(
        over=any(each.ready == END for each in standings),
        failed=any(each.ready == FAILED for each in standings),
        news=any(each.news for each in standings),
        stop=any(each.stop for each in standings),
        pause=bool(leader.pause),
        checkpoint=bool(leader.checkpoint),
        lr=leader.lr or None,
        endpoint=endpoint if left is None else _KINDS[int(standings[left].endpoint)],
        left=left,
        samples=int(sum(each.samples for each in standings)),
        bytes=int(sum(each.bytes for each in standings)),
        wait_s=max(each.wait_s for each in standings),
        fetch_s=max(each.fetch_s for each in standings),
        retries=int(sum(each.retries for each in standings)),
        skipped=int(sum(each.skipped for each in standings)),
    )


def endpoint_number(kind: EndpointKind) -> int:
    """How a Standing tells an endpoint."""
    return _KINDS.index(kind)
