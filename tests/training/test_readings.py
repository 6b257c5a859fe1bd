"""What readings come to: ratios within a round, minutes by extrapolation, and the one thing that bounds a setup."""

from __future__ import annotations

import msgspec
import pytest

from ossconsole.cli.bench_tables import print_summary
from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.compare import Conditions, Decision
from ossconsole.telemetry.measure import Ceiling
from ossconsole.training.bench.conclusions import aa_headline, aa_passed, bound, headline
from ossconsole.training.bench.results import (
    BenchCase,
    BenchSummary,
    CacheState,
    CaseSteps,
    Limit,
    LimitKind,
    Mode,
    Reading,
    ReadPath,
    ResultRow,
    Spread,
    format_results,
    limit_spreads,
    result_row,
)

CELL = BenchCase(dataset="data", format="image-u8", mode=Mode.TRAINING, workers=2, batch_size=64)
STANDARD, ACCELERATED = EndpointKind
COLD, WARM = CacheState


def reading(endpoint: EndpointKind, rate: float, number: int, temperature: CacheState = WARM) -> Reading:
    return Reading(
        time=0.0,
        simulated=True,
        cell=CELL,
        endpoint=ReadPath(endpoint),
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


def row(*readings: Reading) -> ResultRow:
    return result_row(CELL, readings, 60_000)


def test_ratios_are_taken_within_a_round_so_that_drift_does_not_count() -> None:
    found = row(
        reading(STANDARD, 100, 0), reading(ACCELERATED, 200, 0), reading(ACCELERATED, 20, 1), reading(STANDARD, 10, 1)
    )
    assert found.ratio == {"warm": Spread(2.0, 2.0, 2.0, 2)}
    assert found.samples_per_s["standard warm"] == Spread(55, 10, 100, 2)


def test_cold_and_warm_are_separate() -> None:
    found = row(
        reading(STANDARD, 100, 0, COLD),
        reading(STANDARD, 100, 0),
        reading(ACCELERATED, 90, 0, COLD),
        reading(ACCELERATED, 500, 0),
    )
    assert found.ratio["cold"].median == pytest.approx(0.9)
    assert found.ratio["warm"].median == pytest.approx(5)
    assert found.minutes_per_epoch["accelerated cold"] == pytest.approx(60_000 / 90 / 60)


def rounds(count: int, ratio: float, *, noise: float = 0.01) -> list[Reading]:
    """So many rounds; the accelerated rate is `ratio` times the standard one, more or less by turns."""
    found = []
    for number in range(count):
        found.append(reading(STANDARD, 100, number))
        found.append(reading(ACCELERATED, 100 * ratio * (1 + (noise if number % 2 else -noise)), number))
    return found


def test_the_headline_is_the_warm_ratio_with_its_interval_and_says_simulated() -> None:
    text = headline([row(*rounds(6, 3.0))], simulated=True)
    assert "is 3.00x as fast" in text
    assert "over 6 pairs" in text
    assert "warm cache, simulated" in text
    assert headline([row(reading(STANDARD, 100, 0))], simulated=True) == "Only one endpoint was measured."


def test_an_undecided_ratio_is_not_the_headline() -> None:
    few = headline([row(*rounds(2, 3.0))], simulated=False)
    assert "undecided, too short: 2 of 6 pairs; use --rounds 6" in few
    noisy = headline([row(*rounds(6, 1.1, noise=0.6))], simulated=False)
    assert "undecided, inconclusive" in noisy
    assert "use --rounds 9" in noisy
    assert "1.1" not in few
    assert "no difference found within" in headline([row(*rounds(6, 1.0))], simulated=False)


def test_the_comparison_of_a_row_has_its_conditions() -> None:
    steps = CaseSteps(conditions=Conditions(batch_size=64, workers=2, stored_as="shards", region="cn-hangzhou"))
    found = result_row(CELL, rounds(6, 2.0), 60_000, steps).comparison["warm"]
    assert found.decision is Decision.ACCELERATED
    assert found.ratio == pytest.approx(2, rel=0.01)
    assert found.standard.minutes_per_epoch == pytest.approx(60_000 / 100 / 60)
    assert found.conditions is not None
    assert found.conditions.pairs == 6
    assert found.conditions.minutes == pytest.approx((6 * 1 + sum(100 / r for r in [198, 202] * 3)) / 60, rel=0.01)
    assert "shards, region cn-hangzhou" in found.conditions.words


def test_minutes_are_of_the_mean_time_per_sample_so_that_a_stall_counts() -> None:
    found = row(reading(STANDARD, 100, 0), reading(STANDARD, 100, 1), reading(STANDARD, 10, 2))
    assert found.minutes_per_epoch["standard warm"] == pytest.approx(60_000 / (300 / 12) / 60)


@pytest.mark.parametrize(("ratio", "passed"), [(1.0, True), (1.5, False)])
def test_a_control_has_to_hold_one(ratio: float, passed: bool) -> None:
    rows = [row(*rounds(6, ratio))]
    assert aa_passed(rows) is passed
    assert ("1.00 is inside" if passed else "1.00 is outside") in aa_headline(rows, STANDARD, simulated=False)
    assert aa_passed([row(*rounds(2, ratio))]) is None


@pytest.mark.parametrize(
    ("http", "connector", "compute", "said"),
    [
        (400, 350, 200, "the compute bounds it"),
        (190, 350, 400, "the accelerated endpoint bounds it"),
        (400, 190, 350, "the connector bounds it"),
    ],
)
def test_the_lowest_limit_is_the_bottleneck(http: float, connector: float, compute: float, said: str) -> None:
    limits = limit_spreads(
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
    assert (f"{180 / compute:.0%} of the model's own ceiling" in text) == ("compute" not in said)
    assert "simulated" in text


def test_a_limit_that_read_nothing_in_its_time_says_nothing() -> None:
    stalled = {"http accelerated": Spread(0.0, 0.0, 0.0, 1)}
    assert "the limits were not measured" in bound(row(reading(ACCELERATED, 180, 0)), stalled, simulated=False)


def test_a_limit_that_is_exceeded_is_none() -> None:
    limits = limit_spreads([limit(LimitKind.HTTP, 200), limit(LimitKind.COMPUTE, 70, None)])
    assert bound(row(reading(ACCELERATED, 180, 0)), limits, simulated=False) == (
        "Training with 2 workers and batches of 64 through the accelerated endpoint does 180 samples/s; "
        "its bottleneck is not known: alone, on synthetic data it does 70, which is less. "
        "The machine was slower meanwhile: measure again while nothing else runs on it."
    )


def test_reading_alone_is_not_bound_by_the_compute() -> None:
    loading = msgspec.structs.replace(CELL, mode=Mode.LOADER)
    found = result_row(loading, [msgspec.structs.replace(reading(ACCELERATED, 180, 0), cell=loading)], 1000)
    limits = limit_spreads([limit(LimitKind.HTTP, 200), limit(LimitKind.COMPUTE, 10, None)])
    assert "the accelerated endpoint bounds it" in bound(found, limits, simulated=False)


def of_format(fmt: str, rate: float, number: int, *, each: int) -> Reading:
    cell = msgspec.structs.replace(CELL, dataset=f"data/{fmt}", format=fmt, mode=Mode.LOADER)
    changed = reading(STANDARD, rate, number)
    return msgspec.structs.replace(changed, cell=cell, bytes_per_s=rate * each, decode_share=0.5)


def test_formats_are_compared_with_the_first_in_the_same_round(capsys: pytest.CaptureFixture[str]) -> None:
    readings = []
    for number in range(6):
        drift = 1 + number / 10  # of both
        readings.append(of_format("tensor-f32", 100 * drift, number, each=602_112))
        readings.append(of_format("image-jpeg", 400 * drift * (1.01 if number % 2 else 0.99), number, each=27_700))
    floats, jpegs = format_results(readings)
    assert (floats.cell.format, floats.ratio, floats.low) == ("tensor-f32", None, None)
    assert floats.bytes_per_sample == pytest.approx(602_112)
    assert jpegs.ratio == pytest.approx(4, rel=0.01)
    assert jpegs.low == pytest.approx(3.95, abs=0.05)
    assert jpegs.high == pytest.approx(4.05, abs=0.05)
    few = format_results(readings[:4])[1]
    assert (few.pairs, few.low) == (2, None)
    rows = (row(readings[0]),)
    summary = BenchSummary(
        time=0.0, simulated=True, samples=1, rows=rows, limits={}, headline="", bound="", formats=(floats, jpegs)
    )
    print_summary(summary)
    printed = capsys.readouterr().out
    assert "Formats of the same images, standard endpoint, warm, simulated" in printed
    assert "602.1" in printed
    assert "27.7" in printed
    assert "4.00x" in printed
    assert "--rounds" not in printed
    print_summary(msgspec.structs.replace(summary, formats=format_results(readings[:4])))
    assert "2 pairs of readings: an interval needs --rounds 6" in capsys.readouterr().out


def test_a_sweep_with_formats_shows_what_it_varies(capsys: pytest.CaptureFixture[str]) -> None:
    readings = [
        msgspec.structs.replace(found, cell=msgspec.structs.replace(found.cell, prefetch_mb=prefetch, batch_size=size))
        for prefetch, size in ((0, 8), (32, 16))
        for found in (of_format("image-u8", 100, 0, each=1), of_format("image-jpeg", 100, 0, each=1))
    ]
    rows = (row(readings[0]),)
    formats = format_results(readings)
    print_summary(
        BenchSummary(time=0.0, simulated=True, samples=1, rows=rows, limits={}, headline="", bound="", formats=formats)
    )
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["format", "batch", "ahead"] in lines
    for fmt in ("image-u8", "image-jpeg"):
        assert [fmt, "8", "auto"] in lines
        assert [fmt, "16", "32"] in lines


def test_the_command_shows_each_figure_with_its_basis(capsys: pytest.CaptureFixture[str]) -> None:
    steps = CaseSteps(conditions=Conditions(batch_size=64, workers=2, sample_format="image-u8", region="cn-hangzhou"))
    rows = (result_row(CELL, rounds(6, 3.0), 60_000, steps),)
    ceiling = Ceiling(quota_gb=1024, peak_bytes_per_s=3e8, bytes_per_s=2.88e8, requests_per_s=1913.0)
    summary = BenchSummary(
        time=0.0,
        simulated=False,
        samples=60_000,
        rows=rows,
        limits={},
        headline=headline(rows, simulated=False),
        bound="",
        ceiling=ceiling.report(),
    )
    print_summary(summary)
    printed = capsys.readouterr().out
    assert "3.00x" in printed
    assert "6 pairs, 0.1 min of settled steps, batch 64, 2 workers, image-u8, region cn-hangzhou" in printed
    assert "96 % of what 1 TB gives (300 MB/s): a larger one would help" in printed
    assert "1,913 of 10,000 requests/s" in printed
    print_summary(msgspec.structs.replace(summary, rows=(row(*rounds(2, 3.0)),)))
    assert "undecided" in capsys.readouterr().out
