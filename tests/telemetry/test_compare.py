"""The comparison of endpoints: the ratio is right, its spread honest, and bursts do not fool it."""

from __future__ import annotations

import random

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.auto import AutoCompare
from ossconsole.telemetry.compare import MIN_BLOCKS, Comparison, EndpointWindow, compare
from ossconsole.telemetry.events import RunState, Step
from tests.telemetry.runs import ACCELERATED, STANDARD, Feed


def step(seconds: float, kind: EndpointKind = STANDARD, *, wait: float = 0.0) -> Step:
    return Step(
        time=0,
        step=1,
        epoch=1,
        samples=10,
        loss=1.0,
        lr=0.1,
        endpoint=kind,
        data_wait_s=wait,
        step_time_s=seconds,
        fetch_s=seconds,
        bytes=100,
        samples_per_s=10 / seconds,
    )


def window(times: list[float], *, burst: int = 1) -> EndpointWindow:
    found = EndpointWindow(STANDARD)
    for seconds in times:
        found.add(step(seconds), cold=False, burst=burst)
    return found


def test_bursts_of_batches_do_not_bend_the_rate() -> None:
    # Three readers deliver together: two steps wait for nothing, one waits for all of them. 10 samples per second.
    bursty = window([0.01, 0.01, 2.98] * 30, burst=3)
    assert bursty.figures().samples_per_s == pytest.approx(10.0)


def test_no_ratio_before_both_have_enough_readings() -> None:
    few, enough = window([1.0] * (MIN_BLOCKS - 1)), window([1.0] * MIN_BLOCKS)
    assert compare(few, enough) is None
    assert compare(enough, few) is None
    assert compare(enough, enough) == Comparison(1.0, 0.0)


def test_the_interval_covers_the_true_ratio() -> None:
    """95 % intervals of medians of noisy readings hold the true ratio most of the time."""
    rng = random.Random(7)
    covered = 0
    for _ in range(200):
        slow = window([rng.lognormvariate(0.0, 0.1) for _ in range(40)])
        fast = window([0.5 * rng.lognormvariate(0.0, 0.1) for _ in range(80)], burst=2)
        found = compare(slow, fast)
        assert found is not None
        covered += found.ratio / (1 + found.spread) <= 2.0 <= found.ratio * (1 + found.spread)
    assert covered >= 180


def test_what_drifts_between_visits_widens_the_spread() -> None:
    steady, drifting = EndpointWindow(STANDARD), EndpointWindow(ACCELERATED)
    for visit in range(4):
        for found, seconds in ((steady, 1.0), (drifting, 0.5 + 0.1 * (visit % 2))):
            found.start_segment()
            for _ in range(8):
                found.add(step(seconds), cold=False, burst=1)
    visits = compare(steady, drifting)
    assert visits is not None
    assert visits.spread > 0.05


def test_a_decided_ratio_leaves_one_out_of_its_interval() -> None:
    assert Comparison(1.2, 0.1).decided
    assert Comparison(0.8, 0.1).decided
    assert not Comparison(1.05, 0.1).decided


def test_wait_and_bytes_are_shares_of_the_measured_time() -> None:
    found = EndpointWindow(STANDARD)
    for _ in range(10):
        found.add(step(1.0, wait=0.6), cold=False, burst=1)
    figures = found.figures()
    assert figures.wait_fraction == pytest.approx(0.6)
    assert figures.bytes_per_s == pytest.approx(100.0)


def test_an_unfinished_block_is_dropped_at_a_pause() -> None:
    found = EndpointWindow(STANDARD)
    found.add(step(0.3), cold=False, burst=1)
    found.interrupt()
    found.add(step(0.3), cold=False, burst=1)
    assert found.figures().blocks == 0


def run_auto(auto: AutoCompare, feed: Feed, fast: float, *, limit: int = 5000) -> list[EndpointKind]:
    """Steps until auto-A/B is done; gives what it switched to."""
    asked = []
    for _ in range(limit):
        feed.steps(1, seconds=fast if feed.endpoint is ACCELERATED else 0.5)
        kind = auto.decide(feed.view)
        if kind is not None:
            asked.append(kind)
            feed.switch(kind)
        if auto.done:
            break
    return asked


def test_auto_alternates_until_the_ratio_is_known_and_ends_on_the_faster() -> None:
    feed = Feed(epochs=100, steps_per_epoch=40).state(RunState.RUNNING)
    auto = AutoCompare()
    asked = run_auto(auto, feed, fast=0.25)
    assert auto.done
    assert asked[:3] == [ACCELERATED, STANDARD, ACCELERATED]
    assert feed.view.endpoint is ACCELERATED
    assert feed.view.comparison is not None
    assert feed.view.comparison.ratio == pytest.approx(2.0)
    assert auto.outcome == "auto-A/B done: accelerated gives 2.00x ± 0 % of standard (cold cache)"
    assert auto.words == "auto-A/B done: 2.00x ± 0 %"


def test_auto_keeps_what_it_found() -> None:
    feed = Feed(epochs=100, steps_per_epoch=40).state(RunState.RUNNING)
    auto = AutoCompare()
    run_auto(auto, feed, fast=0.25)
    feed.steps(200, seconds=2.0)
    assert auto.words == "auto-A/B done: 2.00x ± 0 %"


def test_auto_goes_back_where_the_accelerator_is_slower() -> None:
    feed = Feed(epochs=100, steps_per_epoch=40).state(RunState.RUNNING)
    auto = AutoCompare()
    run_auto(auto, feed, fast=0.8)
    assert auto.done
    assert feed.view.endpoint is STANDARD


def test_auto_waits_for_the_endpoint_it_asked_for() -> None:
    feed = Feed().state(RunState.RUNNING).steps(60)
    auto = AutoCompare()
    assert auto.decide(feed.view) is ACCELERATED
    assert auto.decide(feed.view) is None
    feed.steps(60)
    assert auto.decide(feed.view) is None, "the switch was not seen yet"
