"""What each rank of a run, and each of its reader processes, did: who makes the others wait."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from ossconsole.config.text import counted

_SLOWER = 1.3
"""A rank or a reader whose time is this many times the median of all is named."""

_MIN_WAIT = 0.02  # share of the time; a rank that waits less is not reported
_MIN_BATCHES = 4


class ReaderFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One reader process of a rank: its batches, and the mean seconds for one; `decode_s` is part of `fetch_s`."""

    reader: int
    batches: int
    bytes: int
    fetch_s: float
    decode_s: float


class RankFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One rank: the share of its time that it waited for data (0 to 1), bytes/s, and the mean seconds of a step."""

    rank: int
    steps: int
    wait_fraction: float
    bytes_per_s: float
    step_s: float
    readers: tuple[ReaderFigures, ...] = ()


class RankStep(msgspec.Struct, frozen=True):
    """One step of one rank: its wait, and what its reader number `reader` did for its batch. Seconds and bytes."""

    step_s: float
    wait_s: float
    bytes: int
    reader: int
    fetch_s: float
    decode_s: float


class RankSums:
    """Sums over the steps of all ranks, from the last `take` on."""

    def __init__(self) -> None:
        self._steps: dict[int, list[RankStep]] = {}

    def add(self, steps: Sequence[RankStep]) -> None:
        """Counts a step of every rank, in rank order. The first one of a rank has no duration (0) and is left out."""
        for rank, step in enumerate(steps):
            if step.step_s > 0:
                self._steps.setdefault(rank, []).append(step)

    def take(self) -> tuple[RankFigures, ...]:
        """The figures of all ranks since the last call; empty without steps."""
        figures = tuple(_figures(rank, steps) for rank, steps in sorted(self._steps.items()))
        self._steps = {}
        return figures


def _figures(rank: int, steps: Sequence[RankStep]) -> RankFigures:
    seconds = sum(step.step_s for step in steps)
    by_reader: dict[int, list[RankStep]] = {}
    for step in steps:
        by_reader.setdefault(step.reader, []).append(step)
    return RankFigures(
        rank=rank,
        steps=len(steps),
        wait_fraction=min(1.0, sum(step.wait_s for step in steps) / seconds),
        bytes_per_s=sum(step.bytes for step in steps) / seconds,
        step_s=seconds / len(steps),
        readers=tuple(
            ReaderFigures(
                reader=reader,
                batches=len(own),
                bytes=sum(step.bytes for step in own),
                fetch_s=sum(step.fetch_s for step in own) / len(own),
                decode_s=sum(step.decode_s for step in own) / len(own),
            )
            for reader, own in sorted(by_reader.items())
        ),
    )


def slowest(ranks: Sequence[RankFigures]) -> str:
    """The rank that waits longest for its data, and the slowest reader, in words; "" where none stands out."""
    found = [_slowest_rank(ranks), _slowest_reader(ranks)]
    return "; ".join(text for text in found if text)


def _slowest_rank(ranks: Sequence[RankFigures]) -> str:
    if len(ranks) < 2:
        return ""
    waits = [rank.wait_fraction * rank.step_s for rank in ranks]
    worst = max(range(len(ranks)), key=waits.__getitem__)
    others = statistics.median(wait for number, wait in enumerate(waits) if number != worst)
    if ranks[worst].wait_fraction < _MIN_WAIT or waits[worst] < _SLOWER * others:
        return ""
    return (
        f"rank {ranks[worst].rank} waits {waits[worst] * 1e3:,.0f} ms for a batch, "
        f"{counted(len(ranks) - 1, 'other')} {others * 1e3:,.0f} ms"
    )


def _slowest_reader(ranks: Sequence[RankFigures]) -> str:
    readers = [(rank.rank, each) for rank in ranks for each in rank.readers if each.batches >= _MIN_BATCHES]
    if len(readers) < 2:
        return ""
    rank, worst = max(readers, key=lambda each: each[1].fetch_s)
    others = statistics.median(each.fetch_s for _, each in readers if each is not worst)
    if worst.fetch_s < _SLOWER * others:
        return ""
    return (
        f"reader {worst.reader} of rank {rank} takes {worst.fetch_s * 1e3:,.0f} ms for a batch, "
        f"{counted(len(readers) - 1, 'other')} {others * 1e3:,.0f} ms"
    )
