"""What the processes of a run tell each other before a step, and what follows for all of them. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ossconsole.config.endpoints import EndpointKind

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
