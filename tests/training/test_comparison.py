"""The comparison of endpoints in virtual time, reduced: the whole table is `python -m tests.benchmarks.sim_compare`."""

from __future__ import annotations

import statistics

import pytest

from tests.benchmarks.sim_compare import Cell, adapted, calibrated, compared


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_throughput_does_not_depend_on_earlier_batches(workers: int) -> None:
    assert adapted(workers, 0.05, 0.85, 1500).share >= 0.98


@pytest.mark.parametrize(
    "cell",
    [Cell(2, 64, "independent"), Cell(8, 64, "independent"), Cell(2, 64, "correlated")],
    ids=lambda cell: cell.name,
)
def test_the_interval_holds_the_truth_and_comes_soon(cell: Cell) -> None:
    truth = calibrated(cell, 3000)
    found = [compared(cell, seed, truth) for seed in range(6)]
    assert sum(each.covered for each in found) >= 5
    assert sum(each.error <= 0.05 for each in found) >= 5
    assert statistics.median(each.decided_visits for each in found) <= 24 or cell.variation == "correlated"


def test_an_endpoint_compared_with_itself_is_not_faster() -> None:
    cell = Cell(2, 64, "independent", accelerated=Cell.standard)
    truth = calibrated(cell, 1000)
    found = [compared(cell, seed, truth).comparison for seed in range(6)]
    assert sum(each.faster is None for each in found) >= 5
    assert all(each.estimate is not None for each in found)
