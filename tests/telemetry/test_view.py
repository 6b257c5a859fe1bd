"""RunView: what the dashboard says follows from the events alone."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.measure import WARMUP_STEPS
from ossconsole.telemetry.samples import GpuSample
from ossconsole.telemetry.view import RECENT_STEPS, STALLED_AFTER_S, RunView
from tests.telemetry.runs import ACCELERATED, STANDARD, START, Feed


def test_a_view_without_events_has_nothing_to_say() -> None:
    view = RunView()
    assert view.split is None
    assert view.eta_s() is None
    assert view.elapsed_s(START) is None
    assert view.settling is None
    assert view.bytes_per_s is None
    assert view.total_steps == 0


def test_the_recent_steps_make_the_split() -> None:
    feed = Feed().state(RunState.RUNNING).steps(10, seconds=0.4, wait=0.1, copy_s=0.01, compute_s=0.2)
    split = feed.view.split
    assert split is not None
    assert split.total == pytest.approx(0.4)
    assert split.wait_fraction == pytest.approx(0.25)
    assert split.copy == pytest.approx(0.01)
    assert split.compute == pytest.approx(0.2)


def test_the_split_covers_only_the_endpoint_that_delivers() -> None:
    feed = Feed().state(RunState.RUNNING).steps(10, seconds=0.4, wait=0.3)
    feed.switch(ACCELERATED).steps(2, seconds=0.2, wait=0.02)
    assert feed.view.split is not None
    assert feed.view.split.total == pytest.approx(0.2)


def test_the_last_batch_of_an_epoch_does_not_halve_what_the_run_computes() -> None:
    feed = Feed().state(RunState.RUNNING).steps(9, seconds=0.4, wait=0.2)
    assert feed.view.compute_rate == pytest.approx(feed.batch / 0.2)
    feed.steps(1, seconds=0.3, wait=0.2, samples=feed.batch // 2)
    assert feed.view.compute_rate == pytest.approx(9.5 * feed.batch / (9 * 0.2 + 0.1))


def test_the_step_after_a_pause_counts_nowhere() -> None:
    feed = Feed().state(RunState.RUNNING).steps(30)
    before = feed.view.figures(STANDARD)
    feed.state(RunState.PAUSED).state(RunState.RUNNING, after=100).steps(1, seconds=100.0, wait=99.0)
    assert feed.view.figures(STANDARD).steps == before.steps
    assert feed.view.split is not None
    assert feed.view.split.total == pytest.approx(0.5)


def test_the_step_in_which_a_model_is_compiled_counts_nowhere_and_is_not_a_stall() -> None:
    feed = Feed().state(RunState.RUNNING).steps(30).state(RunState.COMPILING)
    assert feed.view.stalled_s(feed.time + 300) is None
    feed.state(RunState.RUNNING, after=300).steps(1, seconds=300.0, wait=0.0)
    assert feed.view.split is not None
    assert feed.view.split.total == pytest.approx(0.5)
    assert feed.view.measurement.samples_per_s == pytest.approx(20.0)


def test_the_norm_of_the_gradients_is_plotted_where_weights_were_updated() -> None:
    feed = Feed().state(RunState.RUNNING).steps(3)
    assert "grad_norm" not in feed.view.series
    feed.steps(1, grad_norm=2.5).steps(1)
    assert [point.last for point in feed.view.series["grad_norm"].window(0, feed.time + 1, 9)] == [2.5]


def test_warm_up_steps_are_left_out_of_the_medians() -> None:
    feed = Feed().state(RunState.RUNNING).steps(1).steps(WARMUP_STEPS - 1, seconds=9.0, wait=8.0).steps(20)
    figures = feed.view.figures(STANDARD)
    assert figures.steps == 20
    assert figures.step_p95 == pytest.approx(0.5)


def test_batches_read_ahead_and_the_settling_ones_count_for_no_endpoint() -> None:
    feed = Feed().state(RunState.RUNNING).steps(30)
    before = feed.view.figures(STANDARD).steps
    feed.switch(ACCELERATED, ahead=3)
    assert feed.view.figures(STANDARD).steps == before
    assert feed.view.settling == (0, 4)
    feed.steps(1, seconds=0.1)
    assert feed.view.settling == (1, 4)
    feed.steps(3, seconds=0.1)
    assert feed.view.settling is None
    assert feed.view.figures(ACCELERATED).steps == 0
    feed.steps(5, seconds=0.1)
    assert feed.view.figures(ACCELERATED).steps == 5


def test_the_requested_and_the_delivering_endpoint_differ_while_batches_drain() -> None:
    feed = Feed().state(RunState.RUNNING).steps(5).switch(ACCELERATED, ahead=1)
    assert (feed.view.endpoint, feed.view.delivering) == (ACCELERATED, STANDARD)
    feed.steps(1)
    assert feed.view.delivering is ACCELERATED
    assert [span.endpoint for span in feed.view.spans] == [STANDARD, ACCELERATED]
    assert [mark.endpoint for mark in feed.view.switches] == [ACCELERATED]


def test_eta_holds_what_the_ends_of_epochs_take() -> None:
    feed = Feed(epochs=2, steps_per_epoch=10).state(RunState.RUNNING).steps(10, seconds=1.0)
    assert feed.view.eta_s() == pytest.approx(10.0)
    feed.end_epoch(seconds=14.0, after=4.0)
    assert feed.view.eta_s() == pytest.approx(14.0)
    feed.steps(5, seconds=1.0)
    assert feed.view.eta_s() == pytest.approx(5.0 + 0.5 * 4.0)


def test_eta_expects_no_pause_in_each_epoch_because_one_had_some() -> None:
    feed = Feed(epochs=2, steps_per_epoch=10).state(RunState.RUNNING).steps(5, seconds=1.0)
    feed.state(RunState.PAUSED).state(RunState.RUNNING, after=600).steps(5, seconds=1.0)
    feed.state(RunState.VALIDATING).state(RunState.PAUSED, after=2.0).state(RunState.VALIDATING, after=300)
    feed.end_epoch(seconds=914.0, after=2.0)
    assert feed.view.eta_s() == pytest.approx(10.0 + 4.0)


def test_eta_expects_no_wait_for_an_endpoint_in_each_epoch_because_one_had_some() -> None:
    feed = Feed(epochs=2, steps_per_epoch=10).state(RunState.RUNNING).steps(5, seconds=1.0)
    feed.time += 600  # the loader waits; the step after that counts from its batch
    feed.steps(5, seconds=1.0).end_epoch(seconds=614.0, after=4.0)
    assert feed.view.eta_s() == pytest.approx(10.0 + 4.0)


def test_the_peak_of_the_learning_rate_is_that_of_the_settings_until_it_is_changed() -> None:
    assert Feed().view.peak_lr is None, "a script has a schedule of its own"
    feed = Feed(learning_rate=0.1).steps(1, lr=0.01)
    assert feed.view.peak_lr == 0.1
    feed.view.apply(events.LearningRate(time=feed.time, peak=0.05))
    assert feed.view.peak_lr == 0.05
    assert feed.view.log[-1].text == "The peak learning rate is now 0.05."


def test_a_step_limit_ends_the_run_earlier() -> None:
    feed = Feed(epochs=2, steps_per_epoch=10, max_steps=15)
    assert feed.view.total_steps == 15


def test_a_paused_run_has_no_eta_and_an_ended_one_no_growing_age() -> None:
    feed = Feed().state(RunState.RUNNING).steps(5).state(RunState.PAUSED)
    assert feed.view.eta_s() is None
    feed.state(RunState.STOPPED)
    assert feed.view.elapsed_s(feed.time + 500) == pytest.approx(feed.time - START)


def test_a_stalled_run_is_reported_only_while_it_runs() -> None:
    feed = Feed().state(RunState.RUNNING).steps(1)
    assert feed.view.stalled_s(feed.time + STALLED_AFTER_S - 1) is None
    assert feed.view.stalled_s(feed.time + STALLED_AFTER_S + 5) == pytest.approx(STALLED_AFTER_S + 5)
    feed.view.apply(events.LoaderWorkers(time=feed.time + STALLED_AFTER_S, workers=()))
    assert feed.view.stalled_s(feed.time + STALLED_AFTER_S + 5) == pytest.approx(STALLED_AFTER_S + 5)
    feed.state(RunState.PAUSED)
    assert feed.view.stalled_s(feed.time + 500) is None


def test_a_loss_that_is_not_finite_is_a_gap() -> None:
    feed = Feed().state(RunState.RUNNING).steps(3).steps(1, loss=None).steps(2)
    points = feed.view.series["loss"].window(START, feed.time, 100)
    assert [point.gap for point in points] == [False, False, False, True, False, False]


def test_the_first_reading_through_the_cache_is_cold_and_the_next_epoch_warm() -> None:
    feed = Feed(steps_per_epoch=40, endpoint="accelerated").state(RunState.RUNNING)
    feed.endpoint = ACCELERATED
    feed.steps(40, seconds=0.5)
    cold = feed.view.figures(ACCELERATED)
    assert cold.cold
    assert feed.view.cache_coverage == pytest.approx(1.0)
    feed.end_epoch(seconds=20.0, samples=400)
    feed.steps(40, seconds=0.1)
    warm = feed.view.figures(ACCELERATED)
    assert not warm.cold
    assert warm.samples_per_s == pytest.approx(100.0)
    assert warm.steps == 40


def test_the_standard_endpoint_has_no_cache_to_warm() -> None:
    feed = Feed(steps_per_epoch=40).state(RunState.RUNNING).steps(40)
    assert not feed.view.figures(STANDARD).cold
    assert feed.view.cache_coverage == 0.0


def test_settings_of_another_version_do_no_harm() -> None:
    view = RunView()
    view.apply(
        events.Run(time=1, run="r", version="9", settings={"workers": "many", "endpoint": "warp", "batch_size": 8})
    )
    assert (view.settings.workers, view.settings.endpoint, view.settings.batch_size) == (1, None, 8)


def test_telemetry_is_taken_once() -> None:
    view = RunView()
    sample = events.Telemetry(time=5.0, gpus=(GpuSample(index=0, utilization=40.0, power=30.0),))
    view.apply(sample)
    view.apply(sample)
    assert len(view.series["gpu0.utilization"].window(0, 10, 10)) == 1
    view.apply(events.Telemetry(time=2.0, gpus=(GpuSample(index=0, utilization=50.0),)))
    assert view.gpus[0].utilization == 50.0, "the clock was set back"
    assert view.last_time is None, "the machine's figures say nothing of the run's progress"


def test_the_log_has_all_events_and_errors_stay_until_dismissed() -> None:
    feed = Feed().state(RunState.RUNNING).steps(1).switch(ACCELERATED)
    feed.view.apply(events.ErrorEvent(time=feed.time, message="The disk is full.", remedy="Free it."))
    feed.state(RunState.PAUSED).state(RunState.RUNNING)
    texts = [line.text for line in feed.view.log]
    assert "switched to accelerated (by hand)" in texts
    assert texts[-2:] == ["paused", "resumed"]
    assert [line.text for line in feed.view.errors] == ["The disk is full. Free it."]
    feed.view.dismiss_errors()
    assert feed.view.errors == []


def test_a_summary_ends_the_run() -> None:
    feed = Feed().state(RunState.RUNNING).steps(2)
    feed.view.apply(
        events.Summary(
            time=feed.time,
            run="r",
            state=RunState.FAILED,
            epochs=0,
            steps=2,
            samples=20,
            bytes=2000,
            seconds=1.0,
            samples_per_s=20.0,
            wait_fraction=0.5,
            error="boom",
        )
    )
    assert feed.view.state is RunState.FAILED
    assert feed.view.summary is not None


def test_memory_is_constant_over_a_long_run() -> None:
    feed = Feed(epochs=1000, steps_per_epoch=100).state(RunState.RUNNING)

    def spin(rounds: int) -> None:
        for _ in range(rounds):
            feed.switch(feed.endpoint.other, ahead=2, seconds=0.2).steps(48, seconds=0.2)

    # Series grow by a level of fixed size at 4, 16, 64... thousand points; between two of those nothing may grow.
    spin(60)
    gc.collect()
    tracemalloc.start()
    spin(1)
    base = tracemalloc.get_traced_memory()[0]
    spin(25)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    assert grown < 400_000
    assert len(feed.view.log) <= 500
    assert len(feed.view.spans) <= 256
    assert feed.view.split is not None
    assert len(feed.view._recent) == RECENT_STEPS


def test_the_first_steps_after_a_resumption_are_warm_up_too() -> None:
    feed = Feed().state(RunState.RUNNING)
    feed.step = 500
    feed.steps(2, seconds=1.0)
    assert feed.view.warming == (2, 3)
    feed.steps(1, seconds=1.0)
    assert feed.view.warming is None
    assert feed.view.figures(STANDARD).steps == 0
    feed.steps(1, seconds=1.0)
    assert feed.view.figures(STANDARD).steps == 1


def test_cold_and_warm_cache_are_distinguished() -> None:
    feed = Feed(steps_per_epoch=40).state(RunState.RUNNING).switch(ACCELERATED)
    feed.steps(40, seconds=1.0).end_epoch(seconds=40, samples=400).steps(40, seconds=0.5)
    figures = feed.view.figures(ACCELERATED)
    assert (figures.cold_rate, figures.warm_rate, figures.cold) == (10.0, 20.0, False)
    assert feed.view.figures(STANDARD).cold_rate is None


def test_several_gpus_have_a_mean_and_a_sum() -> None:
    view = RunView()
    gpus = (GpuSample(index=0, utilization=20.0, power=100.0), GpuSample(index=1, utilization=60.0, power=50.0))
    view.apply(events.Telemetry(time=1.0, gpus=gpus))
    last = {name: series.last.last for name, series in view.series.items() if series.last is not None}
    assert (last["gpus.utilization"], last["gpus.power"]) == (40.0, 150.0)


def test_only_the_gpus_of_the_run_are_averaged() -> None:
    view = RunView()
    view.apply(events.Devices(time=1.0, device="cuda", gpus=("GPU-3", "GPU-1")))
    gpus = tuple(GpuSample(index=at, uuid=f"GPU-{at}", utilization=20.0 * at, power=50.0) for at in range(4))
    view.apply(events.Telemetry(time=1.0, gpus=gpus))
    assert [gpu.index for gpu in view.gpus] == [1, 3]
    last = {name: series.last.last for name, series in view.series.items() if series.last is not None}
    assert (last["gpus.utilization"], last["gpus.power"], last["gpu2.utilization"]) == (40.0, 100.0, 40.0)


def test_a_resumed_run_is_at_the_step_it_resumes_from() -> None:
    feed = Feed()
    feed.view.apply(events.State(time=feed.time, state=RunState.VALIDATING, step=80))
    assert feed.view.step == 80
    feed.step = 80
    assert feed.steps(1).view.step == 81
