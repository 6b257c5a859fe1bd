"""What readings come to: ratios within a round, minutes by extrapolation, and the one thing that bounds a setup."""

from __future__ import annotations

import msgspec
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.training.readings import (
    Cell,
    Limit,
    LimitKind,
    Mode,
    Reading,
    Row,
    Spread,
    Temperature,
    bound,
    headline,
    limits_of,
    row_of,
)

CELL = Cell(dataset="data", format="image-u8", mode=Mode.TRAINING, workers=2, batch_size=64)
STANDARD, ACCELERATED = EndpointKind
COLD, WARM = Temperature


def reading(endpoint: EndpointKind, rate: float, number: int, temperature: Temperature = WARM) -> Reading:
    return Reading(
        time=0.0,
        simulated=True,
        cell=CELL,
        endpoint=endpoint,
        temperature=temperature,
        round=number,
        samples=100,
        seconds=100 / rate,
        samples_per_s=rate,
        bytes_per_s=rate * 12_288,
        fetch_p50_s=0.1,
        fetch_p95_s=0.2,
    )


def limit(kind: LimitKind, rate: float, endpoint: EndpointKind | None = ACCELERATED) -> Limit:
    return Limit(
        time=0.0,
        simulated=True,
        kind=kind,
        endpoint=endpoint,
        dataset="data",
        workers=2,
        batch_size=64,
        samples_per_s=rate,
    )


def row(*readings: Reading) -> Row:
    return row_of(CELL, readings, 60_000)


def test_ratios_are_taken_within_a_round_so_that_drift_does_not_count() -> None:
    found = row(
        reading(STANDARD, 100, 0), reading(ACCELERATED, 200, 0), reading(ACCELERATED, 20, 1), reading(STANDARD, 10, 1)
    )
    assert found.ratio == {"warm": Spread(2.0, 2.0, 2.0, 2)}
    assert found.samples_per_s["standard warm"] == Spread(55, 10, 100, 2)


def test_cold_and_warm_are_told_apart() -> None:
    found = row(
        reading(STANDARD, 100, 0, COLD),
        reading(STANDARD, 100, 0),
        reading(ACCELERATED, 90, 0, COLD),
        reading(ACCELERATED, 500, 0),
    )
    assert found.ratio["cold"].median == pytest.approx(0.9)
    assert found.ratio["warm"].median == pytest.approx(5)
    assert found.minutes_per_epoch["accelerated cold"] == pytest.approx(60_000 / 90 / 60)


def test_the_headline_is_the_warm_ratio_and_says_simulated() -> None:
    found = row(reading(STANDARD, 100, 0), reading(ACCELERATED, 300, 0))
    text = headline([found], simulated=True)
    assert "3.00x" in text
    assert "warm cache, simulated" in text
    assert headline([row(reading(STANDARD, 100, 0))], simulated=True) == "Only one endpoint was measured."


@pytest.mark.parametrize(
    ("http", "connector", "compute", "said"),
    [
        (400, 350, 200, "the compute bounds it"),
        (190, 350, 400, "the accelerated endpoint bounds it"),
        (400, 190, 350, "the connector bounds it"),
    ],
)
def test_the_lowest_limit_bounds_and_tells_how_far_it_is(
    http: float, connector: float, compute: float, said: str
) -> None:
    limits = limits_of(
        [
            limit(LimitKind.HTTP, http),
            limit(LimitKind.CONNECTOR, connector),
            limit(LimitKind.COMPUTE, compute, None),
            limit(LimitKind.HTTP, 1, STANDARD),  # of the other endpoint: of no concern
        ]
    )
    text = bound(row(reading(ACCELERATED, 180, 0)), limits, simulated=True)
    assert said in text
    assert f"{180 / min(http, connector, compute):.0%} of the limit" in text
    assert "simulated" in text


def test_reading_alone_is_not_bound_by_the_compute() -> None:
    loading = msgspec.structs.replace(CELL, mode=Mode.LOADER)
    found = row_of(loading, [msgspec.structs.replace(reading(ACCELERATED, 180, 0), cell=loading)], 1000)
    limits = limits_of([limit(LimitKind.HTTP, 200), limit(LimitKind.COMPUTE, 10, None)])
    assert "the accelerated endpoint bounds it" in bound(found, limits, simulated=False)
