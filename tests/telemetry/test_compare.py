"""The comparison of endpoints: pairs of visits, an interval that holds the truth, and words that claim no more."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.auto import MAX_PAIRS, AutoCompare
from ossconsole.telemetry.cache import SingleTimes, TimeCounts, count_time, hit_rate, modes
from ossconsole.telemetry.compare import _CRITICAL, LOOKS, Comparison, Decision, Estimate, estimate
from ossconsole.telemetry.events import SHARD_LANES, RunState
from ossconsole.telemetry.visits import VISIT_S
from tests.telemetry.runs import ACCELERATED, STANDARD, Feed
from tests.telemetry.samples_of_events import step_event


def started(**settings: object) -> Feed:
    """A run whose warm-up is over; warm caches are what most tests are about."""
    feed = Feed(epochs=1000, steps_per_epoch=100_000, **settings).state(RunState.RUNNING)  # type: ignore[arg-type]
    return feed.steps(3)


def alternate(feed: Feed, seconds: dict[EndpointKind, float], visits: int, *, steps: int = 70) -> Feed:
    """So many stretches, by turns."""
    for _ in range(visits):
        feed.steps(steps, seconds=seconds[feed.endpoint], wait=seconds[feed.endpoint] / 2).switch(feed.endpoint.other)
    return feed


@pytest.mark.parametrize("count", [2, 5, 7, LOOKS[-1] + 1])
def test_there_is_an_interval_only_at_the_planned_numbers_of_pairs(count: int) -> None:
    assert estimate([0.1] * count, [1.0] * count) is None


def test_the_interval_is_of_the_mean_of_log_ratios() -> None:
    found = estimate([math.log(2.0)] * 3 + [math.log(8.0)] * 3, [1.0] * 6)
    assert found is not None
    assert found.ratio == pytest.approx(4.0)
    assert found.low * found.high == pytest.approx(16.0)


def test_longer_pairs_weigh_more() -> None:
    found = estimate([0.4, 0.2, 0.3, 0.2, 0.1, 0.1], [1.0, 1.0, 1.0, 1.0, 8.0, 8.0])
    assert found is not None
    assert found.ratio == pytest.approx(math.exp((1.1 + 1.6) / 20))


@pytest.mark.parametrize(("longer", "misses"), [(1.0, 0.0415), (2.0, 0.05)])
def test_all_intervals_of_a_sequence_cover_the_true_ratio_in_95_percent(longer: float, misses: float) -> None:
    """The 95 % holds also for a run that stops at the look of its choice, and where visits grow after each."""
    weights = np.array([longer ** sum(look <= pair for look in LOOKS) for pair in range(LOOKS[-1])])
    pairs = np.random.default_rng(3).standard_normal((40_000, LOOKS[-1])) / np.sqrt(weights)
    missed = np.zeros(len(pairs), dtype=bool)
    for look in LOOKS:
        seen, share = pairs[:, :look], weights[:look] / weights[:look].sum()
        mean = seen @ share
        error = np.sqrt((seen - mean[:, None]) ** 2 @ share / (look - 1))
        missed |= np.abs(mean) > _CRITICAL[look] * error
    assert missed.mean() == pytest.approx(misses, abs=0.004)


def test_neighbours_that_are_alike_widen_the_interval() -> None:
    apart, alike = (
        estimate(each, [1.0] * 6) for each in ([0.1, 0.3, 0.1, 0.3, 0.1, 0.3], [0.1, 0.1, 0.1, 0.3, 0.3, 0.3])
    )
    assert apart is not None
    assert alike is not None
    assert apart.ratio == pytest.approx(alike.ratio)
    assert alike.high > apart.high


@pytest.mark.parametrize(
    ("found", "decision", "words"),
    [
        (None, Decision.NONE, "collecting 3/6 pairs"),
        (Estimate(1.12, 0.9, 1.4, 6), Decision.NONE, "inconclusive: 0.9 to 1.4x"),
        (Estimate(1.02, 0.94, 1.1, 6), Decision.NONE, "inconclusive: 0.94 to 1.10x"),
        (Estimate(1.0, 0.96, 1.04, 9), Decision.SAME, "no difference found within ± 5 %"),
        (Estimate(1.42, 1.36, 1.48, 13), Decision.ACCELERATED, "1.42x (1.36 to 1.48), 13 pairs"),
        (Estimate(0.7, 0.6, 0.8, 6), Decision.STANDARD, "0.70x (0.60 to 0.80), 6 pairs"),
    ],
)
def test_a_ratio_is_shown_only_where_it_is_decided(found: Estimate | None, decision: Decision, words: str) -> None:
    comparison = Comparison(pairs=found.pairs if found else 3, estimate=found)
    assert (comparison.decision, comparison.words) == (decision, words)
    assert bool(comparison.ratio) == (decision in {Decision.ACCELERATED, Decision.STANDARD})
    assert bool(comparison.sentence) == comparison.decided
    assert (comparison.report().ratio is not None) == comparison.decided


def test_each_switch_makes_a_pair_and_the_sixth_an_interval() -> None:
    feed = alternate(started(), {STANDARD: 0.5, ACCELERATED: 0.25}, 6)
    assert feed.view.comparison.pairs == 5
    assert feed.view.comparison.words == "collecting 5/6 pairs"
    feed.steps(70, seconds=0.5)
    found = feed.view.comparison
    assert found.pairs == 6
    assert found.estimate is not None
    assert found.estimate.ratio == pytest.approx(2.0)
    assert found.accelerated.samples_per_s == pytest.approx(40.0)
    assert found.standard.minutes_per_epoch == pytest.approx(100_000 * 10 / 20 / 60)


def test_a_linear_drift_of_both_endpoints_cancels() -> None:
    feed, seconds = started(), 0.4
    for _ in range(6):
        for _ in range(70):
            seconds *= 1.001
            feed.steps(1, seconds=seconds * (1.0 if feed.endpoint is STANDARD else 0.5))
        feed.switch(feed.endpoint.other)
    feed.steps(70, seconds=seconds)
    assert feed.view.comparison.estimate is not None
    assert feed.view.comparison.estimate.ratio == pytest.approx(2.0, rel=0.02)


def test_what_was_read_ahead_does_not_flatter_the_slower_endpoint() -> None:
    """The steps go on at the compute's pace while the read-ahead runs dry; what arrives is what counts."""
    feed = started().steps(20, seconds=0.5, wait=0.0, queued=30).switch(ACCELERATED)
    for left in range(30, 6, -1):
        feed.steps(1, seconds=0.5, wait=0.0, queued=left)
    assert feed.view.figures(ACCELERATED).samples_per_s == pytest.approx(0.0, abs=1e-6)
    feed.steps(22, seconds=0.5, wait=0.0, queued=7)
    assert feed.view.figures(ACCELERATED).samples_per_s == pytest.approx(10.0, rel=0.1)


def test_a_read_ahead_that_fills_up_is_worth_no_more_than_the_compute_can_use() -> None:
    feed = started()
    for queued in range(20):
        feed.steps(1, seconds=0.5, wait=0.0, queued=queued)
    assert feed.view.figures(STANDARD).samples_per_s == pytest.approx(20.0)


def test_nothing_of_a_stretch_is_dropped() -> None:
    """The second visit of a stretch is all that comes after the first, however long."""
    feed = started().steps(60).switch(ACCELERATED).steps(52, seconds=0.5)
    assert feed.view.comparison.pairs == 1
    feed.steps(100, seconds=0.5).steps(2, seconds=50.0).switch(STANDARD).steps(24)
    assert feed.view.comparison.pairs == 2
    # of the first 52 steps 4 settle and 8, four turns of both readers, are the first visit
    assert feed.view.figures(ACCELERATED).rate_low == pytest.approx(142 * 10 / 170, rel=0.01)


def test_a_visit_that_is_too_short_makes_no_pair() -> None:
    feed = alternate(started(), {STANDARD: 0.1, ACCELERATED: 0.05}, 8, steps=20)
    assert VISIT_S > 20 * 0.1
    assert feed.view.comparison.pairs == 0
    assert feed.view.comparison.words == "collecting 0/6 pairs: visits too short"


def test_a_run_that_starts_once_more_keeps_its_pairs_and_begins_a_visit() -> None:
    feed = alternate(started(), {STANDARD: 0.5, ACCELERATED: 0.25}, 3)
    pairs = feed.view.comparison.pairs
    assert feed.view.run is not None
    feed.view.apply(feed.view.run)
    assert feed.view.warming == (0, 3)
    feed.endpoint = STANDARD
    alternate(feed, {STANDARD: 0.5, ACCELERATED: 0.25}, 2)
    assert feed.view.comparison.pairs == pairs + 1


def test_a_visit_lasts_several_turns_and_drains() -> None:
    feed = started().steps(12, queued=20).switch(ACCELERATED).steps(12, queued=20)
    assert feed.view.comparison.pairs == 0
    feed.steps(40, queued=20).switch(STANDARD).steps(60, queued=20)
    assert feed.view.comparison.pairs == 1


def test_with_shards_the_batches_that_read_their_windows_again_after_a_switch_do_not_count() -> None:
    figures = []
    for stored_as in ("objects", "shards"):
        feed = started(stored_as=stored_as).steps(40).switch(ACCELERATED)
        feed.steps(SHARD_LANES, seconds=5.0).steps(40, seconds=0.5)
        figures.append(feed.view.figures(ACCELERATED).samples_per_s)
    assert figures == [pytest.approx(11.0), pytest.approx(20.0)]  # 4 of the 8 count with objects


def test_stalls_count_in_the_mean_and_are_also_reported_separately() -> None:
    feed = started()
    for _ in range(30):
        feed.steps(9, seconds=0.1).steps(1, seconds=1.1)
    found = feed.view.figures(STANDARD)
    assert found.samples_per_s == pytest.approx(50.0)
    assert found.typical_step_s == pytest.approx(0.1)
    assert found.stall_share == pytest.approx(0.5)


def test_bursts_of_batches_are_no_stalls() -> None:
    feed = Feed(workers=3).state(RunState.RUNNING).steps(3)
    for _ in range(10):
        feed.steps(2, seconds=0.01).steps(1, seconds=2.98)
    found = feed.view.figures(STANDARD)
    assert found.stall_share == 0.0
    assert found.typical_step_s == pytest.approx(1.0)


def test_wait_and_bytes_are_shares_of_the_measured_time() -> None:
    figures = started().steps(10, seconds=1.0, wait=0.6).view.figures(STANDARD)
    assert figures.wait_fraction == pytest.approx(0.6)
    assert figures.bytes_per_s == pytest.approx(1000.0)


@pytest.mark.parametrize(("jitter", "grown"), [(0.02, 1.0), (0.3, 2.0)])
def test_visits_grow_only_where_the_pairs_scatter_too_much(jitter: float, grown: float) -> None:
    """Scatter within a visit averages out over the pairs; a large effect needs no pilot."""
    feed, rng = started(), random.Random(6)
    while feed.view.comparison.estimate is None:
        pace = (0.5 if feed.endpoint is STANDARD else 0.2) * rng.lognormvariate(0, jitter)
        feed.steps(70, seconds=pace).switch(feed.endpoint.other)
    assert feed.view.measurement.visits.growth == grown


def test_a_run_that_is_over_was_too_short_for_a_comparison() -> None:
    feed = started().steps(60).switch(ACCELERATED).steps(60)
    assert feed.view.comparison.words == "collecting 1/6 pairs"
    feed.state(RunState.FINISHED)
    assert feed.view.comparison.words == "too short: 1 of 6 pairs"
    assert feed.view.comparison.report().words == "too short: 1 of 6 pairs"
    assert feed.view.comparison.collecting == ""


def around(seconds: float, count: int, spread: float = 0.15) -> list[float]:
    """Times that scatter about `seconds`, lognormal."""
    rng = random.Random(count)
    return [seconds * rng.lognormvariate(0, spread) for _ in range(count)]


def test_times_of_single_samples_fall_into_two_modes() -> None:
    assert modes(around(0.03, 200)) is None
    found = modes(around(0.012, 60) + around(0.035, 140))
    assert found is not None
    assert list(found) == pytest.approx([0.012, 0.035], rel=0.05)


@pytest.mark.parametrize(
    ("accelerated", "standard", "share"),
    [
        (around(0.004, 60) + around(0.04, 140), [], 0.3),
        (around(0.004, 190) + around(0.04, 10), around(0.036, 40), 0.95),
        (around(0.004, 200), around(0.036, 40), 1.0),
        (around(0.04, 200), around(0.036, 40), 0.0),
        (around(0.004, 100) + around(0.012, 100), around(0.036, 40), 1.0),  # the cache itself has two modes
        (around(0.004, 100) + around(0.025, 100), around(0.036, 40), 0.5),  # the accelerator is nearer to the bucket
        (around(0.012, 140, 0.6) + [0.04 + more for more in around(0.01, 60, 0.6)], around(0.05, 40), 0.7),  # busy
        (around(0.004, 200), [], None),
        (around(0.03, 200), around(0.045, 40, 0.05), None),
    ],
)
def test_the_hit_rate_is_the_share_of_single_samples_that_took_less_than_from_the_bucket(
    accelerated: list[float], standard: list[float], share: float | None
) -> None:
    times, counts = SingleTimes(), TimeCounts()
    for kind, seconds in ((STANDARD, standard), (ACCELERATED, accelerated)):
        for single_s in seconds:
            step = step_event(1, endpoint=kind, single_s=single_s)
            times.add(step)
            if kind is ACCELERATED:
                count_time(counts, step)
    found = hit_rate(counts, times.limit_s)
    assert (found and found.reported) == (None if share is None else pytest.approx(share, abs=0.05))


def test_a_hit_rate_of_few_samples_is_not_reported_and_decides_nothing() -> None:
    few = hit_rate(TimeCounts({-100: 4}), 0.02)
    assert few is not None
    assert (few.value, few.reported, few.cold) == (1.0, None, None)
    assert hit_rate(TimeCounts(), 0.02) is None


@pytest.mark.parametrize(("single_s", "warm"), [(0.05, 0.0), (0.004, 1.0)])
def test_the_temperature_is_that_of_the_single_samples_whatever_was_read_before(single_s: float, warm: float) -> None:
    feed = started(batch=100).steps(30, single_s=0.05)
    feed.switch(ACCELERATED).steps(100, single_s=single_s).end_epoch(seconds=50.0, samples=10_000)
    feed.steps(100, single_s=single_s)
    # The first visit was too short to tell; from here on the single samples are enough.
    feed.switch(STANDARD).steps(30, single_s=0.05).switch(ACCELERATED).steps(100, single_s=single_s)
    found = feed.view.comparison
    assert found.hit_rate == warm
    assert feed.view.figures(ACCELERATED).cold == (warm == 0.0)
    assert feed.view.measurement.cold_hits == (0.0 if warm == 0.0 else None)


def run_auto(auto: AutoCompare, feed: Feed, fast: float, *, limit: int = 5000) -> list[EndpointKind]:
    """Steps until auto A/B is done; gives what it switched to."""
    asked = []
    for _ in range(limit):
        seconds = fast if feed.endpoint is ACCELERATED else 0.5
        feed.steps(1, seconds=seconds, wait=seconds / 2)
        kind = auto.decide(feed.view)
        if kind is not None:
            asked.append(kind)
            feed.switch(kind)
        if auto.done:
            break
    return asked


def test_auto_alternates_until_it_is_decided_and_ends_on_the_faster() -> None:
    feed, auto = started(), AutoCompare()
    asked = run_auto(auto, feed, fast=0.25)
    assert auto.done
    assert asked[:6] == [ACCELERATED, STANDARD] * 3
    assert feed.view.endpoint is ACCELERATED
    assert feed.view.comparison.faster is ACCELERATED
    assert auto.words == "auto A/B done: 2.00x (2.00 to 2.00), 6 pairs"
    assert auto.outcome.startswith(
        "auto A/B done: the accelerated endpoint gives 2.00x of standard (2.00 to 2.00), 6 pairs"
    )


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_two_pairs_are_abba_or_baab_by_chance(seed: int) -> None:
    feed, auto = started(), AutoCompare(seed)
    first: list[EndpointKind] = []
    while len(first) < 12:
        known = feed.view.comparison.pairs
        pace = 1.4 if feed.step % 50 > 25 else 1.0  # too unsteady to be precise
        feed.steps(1, seconds=pace * (0.5 if feed.endpoint is ACCELERATED else 0.4))
        if feed.view.comparison.pairs != known:
            first.append(feed.endpoint.other)  # of the two endpoints of the new pair
        if (kind := auto.decide(feed.view)) is not None:
            feed.switch(kind)
    assert set(zip(first[::2], first[1::2], strict=True)) == {(STANDARD, ACCELERATED), (ACCELERATED, STANDARD)}


def test_auto_that_ends_too_soon_says_so() -> None:
    feed, auto = started().steps(60), AutoCompare()
    auto.decide(feed.view)
    auto.end("the run is over", feed.view)
    assert auto.outcome == "auto A/B ended, the run is over: too short: 0 of 6 pairs"


def test_auto_keeps_what_it_found() -> None:
    feed, auto = started(), AutoCompare()
    run_auto(auto, feed, fast=0.25)
    words = auto.words
    feed.steps(200, seconds=2.0)
    assert auto.words == words


def test_auto_goes_back_where_the_accelerator_is_slower() -> None:
    feed, auto = started(), AutoCompare()
    run_auto(auto, feed, fast=0.8)
    assert auto.done
    assert feed.view.endpoint is STANDARD


def test_auto_ends_where_there_is_no_difference() -> None:
    feed, auto = started(), AutoCompare()
    run_auto(auto, feed, fast=0.5)
    assert auto.words == "auto A/B done: no difference found within ± 1 %"


def test_auto_without_a_difference_goes_back_to_the_endpoint_of_its_start() -> None:
    feed, auto = started(), AutoCompare()
    asked = run_auto(auto, feed, fast=0.5)
    assert asked[-2:] == [ACCELERATED, STANDARD]
    assert feed.view.endpoint is STANDARD


def test_auto_that_is_left_names_the_endpoint_to_stay_on() -> None:
    feed, auto = started().steps(60), AutoCompare()
    assert auto.stay_on(feed.view) is None
    assert auto.decide(feed.view) is ACCELERATED
    assert auto.stay_on(feed.view) is STANDARD, "the switch is requested already"
    feed.switch(ACCELERATED)
    assert auto.stay_on(feed.view) is STANDARD, "that of the start, without a decision"
    run_auto(AutoCompare(), feed, fast=0.25)
    feed.switch(STANDARD)
    assert AutoCompare().stay_on(feed.view) is ACCELERATED


def test_auto_gives_up_where_the_pairs_scatter_and_shows_no_ratio() -> None:
    feed, auto, rng = started(), AutoCompare(), random.Random(4)
    while not auto.done:
        seconds = rng.choice((0.3, 3.0))
        for _ in range(8):
            feed.steps(1, seconds=seconds)
            if (kind := auto.decide(feed.view)) is not None:
                feed.switch(kind)
    assert feed.view.comparison.pairs == MAX_PAIRS
    assert auto.words.startswith("auto A/B gave up: inconclusive: ")


def test_auto_waits_for_the_endpoint_it_asked_for() -> None:
    feed, auto = started().steps(60), AutoCompare()
    assert auto.decide(feed.view) is ACCELERATED
    assert auto.decide(feed.view) is None
    feed.steps(60)
    assert auto.decide(feed.view) is None, "the switch was not seen yet"


def test_auto_requested_again_measures_again() -> None:
    feed = started()
    run_auto(AutoCompare(), feed, fast=0.25)
    again = AutoCompare(1)
    run_auto(again, feed, fast=0.25)
    assert again.done
    assert feed.view.comparison.pairs == LOOKS[1]


@pytest.mark.parametrize(
    ("cold", "coverage", "words"),
    [(True, 0.4, "cache filling"), (True, 1.0, "cache was filling"), (False, 1.0, "cache warm")],
)
def test_a_full_cache_is_not_called_filling(*, cold: bool, coverage: float, words: str) -> None:
    assert Comparison(cold=cold, coverage=coverage).cache_state == words
