from __future__ import annotations

import math
import statistics
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossconsole.telemetry import series as series_module
from ossconsole.telemetry.series import Ema, Point, Quantiles, Series

VALUES = st.lists(
    st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]), st.none()), max_size=300
)


def filled(count: int) -> Series:
    series = Series()
    for number in range(count):
        series.append(float(number), float(number))
    return series


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings of eight, so that few values reach many levels."""
    monkeypatch.setattr(series_module, "_CAPACITY", 8)


def finite(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


@given(VALUES, st.integers(1, 40))
@settings(max_examples=150)
def test_a_window_over_everything_keeps_extremes_and_last(values: list[float | None], max_points: int) -> None:
    series = Series()
    for number, value in enumerate(values):
        series.append(float(number), value)
    points = series.window(0, max(len(values) - 1, 0), max_points)
    known = finite(values)
    drawn = [point for point in points if not math.isnan(point.last)]
    assert len(points) <= max_points
    assert [point.time for point in points] == sorted(point.time for point in points)
    if known:
        assert min(point.low for point in drawn) == min(known)
        assert max(point.high for point in drawn) == max(known)
        assert drawn[-1].last == known[-1]
    assert any(point.gap for point in points) == (len(known) < len(values))
    assert all(point.low <= point.last <= point.high for point in drawn)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("count", [1, 7, 8, 9, 33, 200, 5000])
def test_the_whole_run_stays_visible_when_the_rings_are_full(count: int) -> None:
    series = filled(count)
    points = series.window(0, count, 1000)
    assert points[-1].last == count - 1
    assert min(point.low for point in points) == 0
    assert max(point.high for point in points) == count - 1
    # Together the stretches cover every value exactly once: each starts right after the one before.
    assert [point.low for point in points] == [0, *(point.high + 1 for point in points[:-1])]
    assert len(points) < 8 + 3 * series_module._LEVELS + 8


@pytest.mark.usefixtures("tiny")
def test_recent_values_come_one_by_one_and_old_ones_merged() -> None:
    series = filled(1000)
    recent = series.window(994, 999, 100)
    assert [point.last for point in recent] == [994, 995, 996, 997, 998, 999]
    assert all(point.low == point.high for point in recent)
    assert len(series.window(0, 999, 100)) < 30


def test_memory_is_constant() -> None:
    series = filled(200_000)
    levels = series._levels
    assert len(levels) <= series_module._LEVELS
    assert sum(level._size for level in levels) <= len(levels) * series_module._CAPACITY
    assert len(series.window(0, 200_000, 160)) <= 160
    assert len(series.window(0, 200_000, 160)) > 100


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=80), st.floats(0, 1000), st.floats(0, 1000))
def test_a_window_holds_what_lies_in_it_and_nothing_else(times: list[float], one: float, other: float) -> None:
    t0, t1 = sorted((one, other))
    series = Series()
    for time in sorted(times):
        series.append(time, time)
    points = series.window(t0, t1, len(times))
    assert [point.last for point in points] == [time for time in sorted(times) if t0 <= time <= t1]


def test_a_clock_set_back_does_not_reorder() -> None:
    series = Series()
    for time in (10.0, 11.0, 5.0, 12.0):
        series.append(time, time)
    assert [point.time for point in series.window(0, 20, 10)] == [10, 11, 11, 12]


def test_an_empty_stretch_is_left_out_and_a_gap_is_marked() -> None:
    series = Series()
    for time, value in ((0.0, 1.0), (1.0, math.nan), (9.0, 3.0), (9.5, 5.0)):
        series.append(time, value)
    first, second = series.window(0, 10, 2)
    assert first == Point(1.0, 1.0, 1.0, 1.0, gap=True)
    assert second == Point(9.5, 3.0, 5.0, 5.0, gap=False)


def test_an_empty_series_answers_everything() -> None:
    series = Series()
    assert series.last is None
    assert series.window(0, 1, 5) == []


@pytest.mark.parametrize(("t0", "t1", "points"), [(1, 0, 5), (0, 1, 0)])
def test_an_impossible_window_is_refused(t0: float, t1: float, points: int) -> None:
    with pytest.raises(ValueError, match="no window"):
        Series().window(t0, t1, points)


def test_reading_while_another_thread_writes() -> None:
    series = Series()
    done = threading.Event()

    def write() -> None:
        for number in range(20_000):
            series.append(float(number), float(number))
        done.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    while not done.is_set():
        points = series.window(0, 20_000, 50)
        assert [point.high for point in points] == sorted(point.high for point in points)
    writer.join(10)
    assert series.last == Point(19_999, 19_999, 19_999, 19_999, gap=False)


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=60), st.integers(2, 20))
def test_quantiles_are_those_of_the_last_values(values: list[float], size: int) -> None:
    quantiles = Quantiles(size)
    for value in values:
        quantiles.add(value)
    kept = values[-size:]
    assert quantiles.p50 == pytest.approx(statistics.median(kept))
    if len(kept) > 1:
        cuts = statistics.quantiles(kept, n=20, method="inclusive")
        assert quantiles.p95 == pytest.approx(cuts[-1], rel=1e-9, abs=1e-3)


def test_quantiles_leave_non_finite_values_out() -> None:
    quantiles = Quantiles(4)
    for value in (math.nan, math.inf):
        quantiles.add(value)
    assert (quantiles.p50, len(quantiles)) == (None, 0)


def test_ema_starts_at_the_first_value_and_survives_nan() -> None:
    ema = Ema(0.9)
    assert ema.add(5.0) == pytest.approx(5.0)
    assert math.isnan(ema.add(math.nan))
    assert ema.add(5.0) == pytest.approx(5.0)
    assert 5.0 < ema.add(6.0) < 6.0
