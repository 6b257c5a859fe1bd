"""The time axis: follows, zooms, pans, and its crosshair stays on the charts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossconsole.telemetry.events import RunState
from ossconsole.tui.train.charts import SPANS_S, TimeAxis
from tests.telemetry.runs import START, Feed


def long_run(minutes: float = 20) -> Feed:
    return Feed(epochs=100).state(RunState.RUNNING).steps(round(minutes * 60), seconds=1.0)


def test_a_young_run_grows_from_the_left() -> None:
    feed = long_run(0.5)
    window = TimeAxis().window(feed.view, feed.time)
    assert window.start == START
    assert window.end == START + 120
    assert window.on_grid(40, START) == window


def test_an_old_run_is_followed_in_steps_of_a_cell() -> None:
    feed = long_run()
    axis = TimeAxis()
    ends = {axis.window(feed.view, feed.time + at / 10).on_grid(40, START).end for at in range(60)}
    assert len(ends) in (2, 3), "six seconds are two cells of three"
    assert all(end >= feed.time for end in ends)


def test_zoom_ends_at_the_shortest_span_and_at_the_whole_run() -> None:
    feed = long_run()
    axis = TimeAxis()
    for _ in range(30):
        axis.zoom(feed.view, feed.time, 1)
    window = axis.window(feed.view, feed.time)
    assert window.end - window.start == SPANS_S[0]
    for _ in range(30):
        axis.zoom(feed.view, feed.time, -1)
    window = axis.window(feed.view, feed.time)
    assert window.label == "all"
    assert window.start <= START
    axis.zoom(feed.view, feed.time, 1)
    assert axis.window(feed.view, feed.time).label != "all"


def test_panning_stops_following_and_comes_back_at_the_end() -> None:
    feed = long_run()
    axis = TimeAxis()
    axis.move(feed.view, feed.time, -1)
    assert not axis.following
    moved = axis.window(feed.view, feed.time)
    assert moved.end == pytest.approx(feed.time - 30, abs=1)
    assert "ago" in moved.label
    assert axis.window(feed.view, feed.time + 60).end == moved.end, "it stands still while the run goes on"
    axis.move(feed.view, feed.time, 1)
    axis.move(feed.view, feed.time, 1)
    assert axis.following


def test_panning_ends_at_the_start_of_the_run() -> None:
    feed = long_run()
    axis = TimeAxis()
    for _ in range(200):
        axis.move(feed.view, feed.time, -1)
    assert axis.window(feed.view, feed.time).start == START


def test_the_crosshair_moves_the_window() -> None:
    feed = long_run()
    axis = TimeAxis()
    axis.toggle_cursor(feed.view, feed.time)
    for _ in range(150):
        axis.move(feed.view, feed.time, -1)
    window = axis.window(feed.view, feed.time)
    assert window.cursor is not None
    assert window.start <= window.cursor <= window.end < feed.time
    axis.follow()
    assert axis.window(feed.view, feed.time).cursor is None
    assert axis.following


def test_an_ended_run_does_not_move_on() -> None:
    feed = long_run().state(RunState.FINISHED)
    axis = TimeAxis()
    assert axis.window(feed.view, feed.time + 5000) == axis.window(feed.view, feed.time)


MOVES = st.lists(st.sampled_from(["in", "out", "left", "right", "cursor", "follow"]), max_size=60)


@given(moves=MOVES, seconds=st.integers(0, 4000))
def test_no_sequence_of_keys_moves_the_window_out_of_the_run(moves: list[str], seconds: int) -> None:
    feed = Feed(epochs=100).state(RunState.RUNNING)
    if seconds:
        feed.steps(1, seconds=float(seconds))
    axis = TimeAxis()
    for move in moves:
        if move in ("in", "out"):
            axis.zoom(feed.view, feed.time, 1 if move == "in" else -1)
        elif move in ("left", "right"):
            axis.move(feed.view, feed.time, -1 if move == "left" else 1)
        elif move == "cursor":
            axis.toggle_cursor(feed.view, feed.time)
        else:
            axis.follow()
        window = axis.window(feed.view, feed.time)
        assert window.start < window.end
        assert window.end >= START
        assert window.cursor is None or window.start <= window.cursor <= window.end
