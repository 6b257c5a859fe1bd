"""Curves: every value lands where it belongs, gaps stay gaps, and nothing divides by zero."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossconsole.telemetry.series import Point, Series
from ossconsole.tui.kit import plot

SYMBOLS = ("braille", "block", "ascii")


def point(time: float, value: float, *, gap: bool = False) -> Point:
    return Point(time, value, value, value, gap)


def test_a_rising_line_in_braille() -> None:
    columns = plot.columns_of([point(0, 0), point(7.9, 7)], 0, 8, 8)
    assert plot.draw(columns, plot.Scale(0, 7), 2, "braille") == ["  ⡠⠊", "⡠⠊  "]


def test_a_bar_per_value_in_blocks() -> None:
    columns = plot.columns_of([point(at, at) for at in range(9)], 0, 9, 9)
    assert plot.draw(columns, plot.Scale(0, 8), 1, "block") == ["▁▁▂▃▄▅▆▇█"]


def test_a_jump_in_ascii_is_one_upright() -> None:
    columns = plot.columns_of([point(0, 0), point(1, 3)], 0, 2, 2)
    assert plot.draw(columns, plot.Scale(0, 3), 4, "ascii") == [" *", " |", " |", "* "]


def test_a_gap_is_not_bridged() -> None:
    points = [point(0, 1), Point(2, math.nan, math.nan, math.nan, True), point(4, 1)]
    columns = plot.columns_of(points, 0, 5, 5)
    assert [column is None for column in columns] == [False, True, True, True, False]


def test_a_stretch_with_a_gap_inside_is_drawn_but_not_joined() -> None:
    columns = plot.columns_of([point(0, 1, gap=True), point(3, 1)], 0, 4, 4)
    assert [column is None for column in columns] == [False, True, True, False]


def test_a_diverged_series_still_shows_its_finite_values() -> None:
    series = Series()
    for at in range(20):
        series.append(at, math.nan if at > 10 else 1.0 + at)
    points = series.window(0, 20, 40)
    scale = plot.scale_around(points)
    assert scale.high < 13
    assert any(row.strip() for row in plot.draw(plot.columns_of(points, 0, 20, 40), scale, 4, "braille"))


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [("braille", ["⡀⠁⡀⡁"]), ("block", [" · ·", "· ··"]), ("ascii", [" . .", ". .."])],
)
def test_loose_dots_are_not_joined(symbols: str, expected: list[str]) -> None:
    points = [point(0, 0), point(1, 3), point(2, 0), Point(3, 0, 3, 3, gap=False)]
    across = plot.DOTS[symbols][0]
    columns = plot.columns_of(points, 0, 4, 4 * across, join=False)
    assert plot.scatter(columns, plot.Scale(0, 3), len(expected), symbols) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 1), (-3, 1), (0.7, 0.8), (1, 1), (101, 150), (250, 300), (999, 1000), (math.inf, 1)]
)
def test_ceilings_are_round(value: float, expected: float) -> None:
    assert plot.nice_ceiling(value) == pytest.approx(expected)


def test_a_logarithmic_scale_gives_each_decade_the_same_height() -> None:
    scale = plot.Scale(0.01, 100, log=True)
    assert [round(scale.position(value), 3) for value in (0.01, 0.1, 1, 10, 100, 0)] == [0, 0.25, 0.5, 0.75, 1, 0]


floats = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(-1e3, 1e3))


@given(
    values=st.lists(st.tuples(st.floats(0, 100), floats), max_size=60),
    width=st.integers(1, 30),
    height=st.integers(1, 8),
    symbols=st.sampled_from(SYMBOLS),
    kind=st.sampled_from(["zero", "around", "log"]),
)
def test_any_series_fits_its_frame(
    values: list[tuple[float, float]], width: int, height: int, symbols: str, kind: str
) -> None:
    series = Series()
    for time, value in sorted(values, key=lambda item: item[0]):
        series.append(time, value)
    count = width * plot.DOTS[symbols][0]
    points = series.window(0, 100, count)
    scale = plot.scale_from_zero(points) if kind == "zero" else plot.scale_around(points, log=kind == "log")
    columns = plot.columns_of(points, 0, 100, count)
    for rows in (plot.draw(columns, scale, height, symbols), plot.scatter(columns, scale, height, symbols)):
        assert [len(row) for row in rows] == [width] * height
