"""What each rank and reader did, and which of them is named."""

from __future__ import annotations

import pytest

from ossconsole.telemetry.ranks import RankStep, RankSums, slowest


def taken(waits: list[float], fetches: list[float], steps: int = 8) -> str:
    """Ranks with these waits; the readers of each take turns, with these fetch times."""
    sums = RankSums()
    for number in range(steps):
        reader = number % len(fetches)
        sums.add([RankStep(1.0, wait, 1000, reader, fetches[reader], 0.1) for wait in waits])
    return slowest(sums.take())


def test_figures_are_means_over_the_steps_since_the_last_call() -> None:
    sums = RankSums()
    sums.add([RankStep(0.0, 9.0, 1, 0, 9.0, 9.0)])  # no duration: the first one
    sums.add([RankStep(1.0, 0.25, 1000, 0, 0.5, 0.1)])
    sums.add([RankStep(3.0, 0.75, 3000, 1, 0.7, 0.3)])
    (rank,) = sums.take()
    assert (rank.steps, rank.wait_fraction, rank.bytes_per_s, rank.step_s) == (2, 0.25, 1000.0, 2.0)
    assert [(each.reader, each.batches, each.fetch_s) for each in rank.readers] == [(0, 1, 0.5), (1, 1, 0.7)]
    assert sums.take() == ()


@pytest.mark.parametrize(
    ("waits", "fetches", "words"),
    [
        ([0.1, 0.1, 0.4], [0.2, 0.2], "rank 2 waits 400 ms for a batch, 2 others 100 ms"),
        ([0.1], [0.2, 0.9], "reader 1 of rank 0 takes 900 ms for a batch, 1 other 200 ms"),
        ([0.1, 0.1], [0.2, 0.2], ""),
        ([0.001, 0.01], [0.2], ""),  # a wait that is not worth a word
        ([0.5], [0.2], ""),
    ],
    ids=["rank", "reader", "alike", "short", "alone"],
)
def test_the_slowest_is_named(waits: list[float], fetches: list[float], words: str) -> None:
    assert taken(waits, fetches) == words


def test_no_rank_is_named_without_figures() -> None:
    assert slowest(()) == ""
