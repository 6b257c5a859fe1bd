"""The verdict: the right word, and every figure in it measured or marked as an estimate."""

from __future__ import annotations

import msgspec
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.diagnosis import Bottleneck, diagnose, final_advice
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.format_gain import jpeg_gain
from ossconsole.telemetry.measure import Ceiling
from ossconsole.telemetry.samples import GpuSample
from ossconsole.telemetry.view import RunView
from tests.telemetry.runs import ACCELERATED, Feed
from tests.telemetry.samples_of_events import summary_event


def running(**settings: object) -> Feed:
    return Feed(**settings).state(RunState.RUNNING)  # type: ignore[arg-type]


@pytest.mark.parametrize(("wait", "bound"), [(0.4, Bottleneck.IO), (0.1, Bottleneck.MIXED), (0.02, Bottleneck.COMPUTE)])
def test_the_share_of_waiting_decides(wait: float, bound: Bottleneck) -> None:
    feed = running().steps(20, seconds=0.5, wait=wait)
    assert diagnose(feed.view, feed.time).bottleneck is bound


def test_a_gpu_that_idles_although_data_is_there_is_host_bound() -> None:
    feed = running().steps(20, seconds=0.5, wait=0.02, host_late=True)
    found = diagnose(feed.view, feed.time)
    assert found.bottleneck is Bottleneck.HOST
    assert "--compile" in found.advice
    feed.steps(40, seconds=0.5, wait=0.4, host_late=True)  # with no data it waits for that
    assert diagnose(feed.view, feed.time).bottleneck is Bottleneck.IO
    feed.steps(40, seconds=0.5, wait=0.02)
    assert diagnose(feed.view, feed.time).bottleneck is Bottleneck.COMPUTE


def test_the_first_steps_decide_nothing() -> None:
    feed = running().steps(3, wait=0.4)
    assert diagnose(feed.view, feed.time).bottleneck is Bottleneck.UNDECIDED


@pytest.mark.parametrize("parts", [(0.1, 0.05, 0.3, 0.05), (0.0, 0.0, 0.2, 0.3), (0.5, 0.0, 0.0, 0.0)])
def test_wait_copy_compute_and_host_are_the_step(parts: tuple[float, float, float, float]) -> None:
    wait, copy, compute, host = parts
    feed = running().steps(20, seconds=0.5, wait=wait, copy_s=copy, compute_s=compute, host_s=host)
    split = feed.view.split
    assert split is not None
    assert split.wait + split.copy + split.compute + split.host == pytest.approx(split.total)
    assert split.host == pytest.approx(host, abs=1e-9)


def test_the_gain_of_an_unmeasured_endpoint_is_marked_as_an_upper_bound() -> None:
    feed = running().steps(20, seconds=1.0, wait=0.6)
    verdict = diagnose(feed.view, feed.time)
    assert "60 %" in verdict.text
    assert verdict.advice == "the accelerated endpoint would be worth at most 2.5x (estimated)"
    assert "an accelerator" in diagnose(feed.view, feed.time, has_accelerated=False).advice


def test_a_measured_gain_carries_its_spread() -> None:
    feed = compared(waits=0.6).steps(70, seconds=1.0, wait=0.6)
    verdict = diagnose(feed.view, feed.time)
    known = "the accelerated endpoint gives 2.00x of standard (2.00 to 2.00), 6 pairs"
    assert verdict.advice == f"{known}, measured in this run"


def test_too_few_pairs_are_no_figure() -> None:
    feed = running(steps_per_epoch=1000).steps(70, seconds=1.0, wait=0.6).switch(ACCELERATED)
    feed.steps(70, seconds=0.5, wait=0.01)
    assert diagnose(feed.view, feed.time).advice == "A/B collecting 1/6 pairs; reading still faster would not help"
    ended = diagnose(feed.state(RunState.FINISHED).view, feed.time)
    assert ended.advice == "A/B too short: 1 of 6 pairs"


def test_a_bound_is_named_before_what_is_still_collected() -> None:
    """80 columns show the start of the advice; how many pairs there are, the A/B panel shows as well."""
    steps = {"standard": {"seconds": 1.0, "wait": 0.6}, "accelerated": {"seconds": 1.0, "wait": 0.6}}
    feed = running(steps_per_epoch=1000).alternate(2, **steps).steps(70, seconds=1.0, wait=0.6)
    for bound in ("the accelerated endpoint would be worth at most", "more workers: at most"):
        advice = diagnose(feed.view, feed.time).advice
        assert f"{bound} 2.5x (estimated); A/B collecting" in advice
        feed.switch(ACCELERATED).steps(70, seconds=1.0, wait=0.6)


def compared(*, waits: float) -> Feed:
    """Seven pairs, the first with a cold cache: standard takes twice as long per step, and waits so much of it."""
    steps = {"standard": {"seconds": 1.0, "wait": waits}, "accelerated": {"seconds": 0.5, "wait": 0.01}}
    return running(steps_per_epoch=1000).alternate(8, **steps)


def test_measurements_outlast_a_moment_without_waiting() -> None:
    feed = compared(waits=0.6).steps(70, seconds=1.0, wait=0.01)
    verdict = diagnose(feed.view, feed.time)
    assert verdict.bottleneck is Bottleneck.COMPUTE
    assert verdict.advice.startswith("the accelerated endpoint gives 2.00x")
    feed.switch(ACCELERATED).steps(40, seconds=0.5, wait=0.01)
    assert diagnose(feed.view, feed.time).advice.endswith("6 pairs; reading still faster would not help")


def test_only_a_gpu_is_called_one() -> None:
    assert "training waits" in diagnose(running().steps(20).view, 0).text
    feed = running().steps(20)
    feed.view.apply(events.Telemetry(time=1.0, gpus=(GpuSample(index=0, utilization=5.0),)))
    assert "the GPU waits" in diagnose(feed.view, 0).text
    feed.view.apply(events.Devices(time=1.0, device="cpu"))  # the GPU of this machine is somebody else's
    assert "training waits" in diagnose(feed.view, 0).text


def test_settling_is_reported_instead_of_a_diagnosis() -> None:
    feed = running().steps(20).switch(ACCELERATED).steps(1)
    verdict = diagnose(feed.view, feed.time)
    assert (verdict.bottleneck, verdict.text) == (Bottleneck.NONE, "switching to accelerated")


def test_a_silent_run_names_the_endpoint() -> None:
    feed = running().steps(20)
    verdict = diagnose(feed.view, feed.time + 45)
    assert verdict.text == "no step for 45 s"
    assert "standard endpoint" in verdict.advice
    script = Feed(endpoint=None, run={"loader": "DataLoader"}).state(RunState.RUNNING).steps(20, endpoint=None)
    assert diagnose(script.view, script.time + 45).advice.startswith("DataLoader may give no batch")


@pytest.mark.parametrize("state", [RunState.STARTING, RunState.PAUSED, RunState.STOPPING, RunState.FINISHED])
def test_every_other_state_is_named(state: RunState) -> None:
    feed = running().steps(20).state(state)
    assert diagnose(feed.view, feed.time).text == str(state)


def test_a_failure_has_its_reason() -> None:
    feed = running().steps(2)
    feed.view.apply(events.ErrorEvent(time=feed.time, message="The bucket is gone.", remedy="Look for it."))
    feed.state(RunState.FAILED)
    assert diagnose(feed.view, feed.time).advice == "The bucket is gone. Look for it."


def test_before_anything() -> None:
    assert diagnose(RunView(), 0).text == "no run yet"
    assert diagnose(running().view, 0).text == "starting"


def accelerated_at(bytes_per_step: int, **settings: object) -> Feed:
    """I/O-bound on an accelerator of 1 TB, which gives 300 MB/s."""
    feed = running(endpoint="accelerated", **settings)
    feed.endpoint = ACCELERATED
    feed.view.apply(events.AcceleratorSize(time=1.0, quota_gb=1024, peak_bytes_per_s=3e8))
    return feed.steps(40, seconds=0.5, wait=0.3, bytes=bytes_per_step)


def test_a_fully_used_accelerator_is_reported() -> None:
    feed = accelerated_at(144_000_000)
    advice = diagnose(feed.view, feed.time).advice
    assert advice == "96 % of what 1 TB gives (300 MB/s): a larger one would help"
    feed = accelerated_at(15_000_000)
    advice = diagnose(feed.view, feed.time).advice
    assert advice == "more workers: at most 2.5x (estimated); 10 % of what 1 TB gives (300 MB/s)"


@pytest.mark.parametrize(("single_s", "cold"), [(0.05, True), (0.004, False), (0.0, False)])
def test_a_cold_cache_names_the_warm_up(single_s: float, *, cold: bool) -> None:
    """Only where single samples say so: a first epoch may find what an earlier run has left."""
    feed = running(steps_per_epoch=1000, batch=100).steps(30, single_s=0.05)
    for _ in range(2):
        feed.switch(EndpointKind.STANDARD).steps(30, single_s=0.05)
        feed.switch(ACCELERATED).steps(100, seconds=1.0, wait=0.6, single_s=single_s)
    advice = diagnose(feed.view, feed.time).advice
    assert advice.startswith("the cache is cold, hit rate 0 % (estimated): w (ossconsole warm) fills it; ") == cold


FLOAT_BYTES, U8_BYTES = 602_112, 150_528  # of a sample at 224 px


def reading(
    fmt: str, each: int, *, stored_as: str = "objects", cores: int = 16, workers: int = 8, **steps: object
) -> Feed:
    """I/O-bound on an accelerator of 1 TB; `each` is the size of a sample. A step has 250 samples and takes 0.5 s."""
    run = {"sample_format": fmt, "stored_as": stored_as, "cores": cores}
    feed = running(run=run, endpoint="accelerated", batch=250, workers=workers)
    feed.endpoint = ACCELERATED
    feed.view.apply(events.AcceleratorSize(time=1.0, quota_gb=1024, peak_bytes_per_s=3e8))
    return feed.steps(40, **{"seconds": 0.5, "wait": 0.4, "bytes": 250 * each, **steps})  # type: ignore[arg-type]


def test_a_run_on_floats_at_the_bandwidth_limit_is_advised_to_use_jpegs() -> None:
    found = diagnose((feed := reading("tensor-f32", FLOAT_BYTES)).view, feed.time)
    assert found.bottleneck is Bottleneck.IO
    assert found.advice.startswith("100 % of what 1 TB gives")
    assert found.format_advice == (
        "image-jpeg needs about 28 KB per sample instead of 602 KB: at most 5.0x (estimated; then computing "
        "limits). Try: ossconsole upload SRC --format image-jpeg"
    )


@pytest.mark.parametrize(
    ("stored_as", "wait", "cores", "ratio", "limit"),
    [
        ("shards", 0.49, 64, 602_112 / 27_700, "bytes"),
        ("objects", 0.49, 64, 10_000 / 500, "requests"),
        ("shards", 0.49, 8, 8 * 1_063 / 500, "decoding"),
        ("shards", 0.4, 64, 5.0, "compute"),
    ],
)
def test_the_gain_ends_at_the_first_limit(stored_as: str, wait: float, cores: int, ratio: float, limit: str) -> None:
    feed = reading("tensor-f32", FLOAT_BYTES, stored_as=stored_as, cores=cores, wait=wait)
    gain = feed.view.measurement.format_gain(ACCELERATED)
    assert gain is not None
    assert gain.limit == limit
    assert gain.ratio == pytest.approx(ratio, rel=0.01)
    assert gain.cores == pytest.approx(ratio * 500 / 1_063, abs=1)
    assert ("readers" in gain.words) == (gain.cores > 8)


@pytest.mark.parametrize(("gained", "said"), [(1.15, True), (1.05, False)])
def test_a_gain_not_worth_an_upload_is_not_reported(gained: float, said: bool) -> None:
    gain = jpeg_gain("image-u8", U8_BYTES, 2000.0, 0.9, workers=8, cores=0, most_samples_per_s=2000 * gained)
    assert (gain is not None) == said
    assert gain is None or gain.limit == "requests"


def test_the_bytes_of_a_jpeg_grow_with_its_area() -> None:
    gain = jpeg_gain("image-u8", 3 * 64 * 64, 1000.0, 0.9, workers=8, cores=0)
    assert gain is not None
    assert gain.short_side == 73
    assert gain.bytes_then == pytest.approx(27_700 * (73 / 256) ** 2)
    assert gain.words.endswith("--format image-jpeg --size 73")


def test_another_format_is_advised_only_where_bytes_are_the_limit() -> None:
    half = reading("tensor-f32", FLOAT_BYTES // 2).view  # the accelerator could deliver twice as much
    assert half.measurement.format_gain(ACCELERATED) is None
    assert diagnose(half, half.last_time or 0.0).advice.startswith(
        "more workers or image-jpeg: at most 5.0x (estimated)"
    )
    in_shards = reading("image-u8", U8_BYTES // 2, stored_as="shards").view  # few requests: only bytes remain
    assert in_shards.measurement.format_gain(ACCELERATED) is not None
    for fmt in ("image-jpeg", ""):
        assert reading(fmt, FLOAT_BYTES).view.measurement.format_gain(ACCELERATED) is None
    partly = reading("tensor-f32", FLOAT_BYTES, wait=0.14)
    assert diagnose(partly.view, partly.time).format_advice == ""


@pytest.mark.parametrize(("share", "bound"), [(0.71, Bottleneck.DECODE), (0.69, Bottleneck.IO), (0.0, Bottleneck.IO)])
@pytest.mark.parametrize("stored_as", ["objects", "shards"])
def test_readers_that_decode_most_of_their_time_are_the_limit(share: float, bound: Bottleneck, stored_as: str) -> None:
    feed = reading("image-jpeg", 27_700, stored_as=stored_as, workers=4, decode_s=share * 0.5 * 4)
    found = diagnose(feed.view, feed.time)
    assert found.bottleneck is bound
    assert feed.view.measurement.endpoints()["accelerated"].decode_share == pytest.approx(share)
    if bound is Bottleneck.DECODE:
        assert found.text == "the readers spend 71 % of their time decoding"
        assert found.advice == "use more --workers: 4 readers on 16 cores; a faster endpoint would not help"
        assert final_advice(feed.view.measurement).startswith("Decoding-bound: the readers spend 71 %")
    idle = reading("image-jpeg", 27_700, decode_s=share * 0.5 * 8, wait=0.01)
    assert diagnose(idle.view, idle.time).bottleneck is Bottleneck.COMPUTE


def test_decoding_on_all_cores_needs_smaller_images() -> None:
    feed = reading("image-jpeg", 112_000, decode_s=3.9, cores=8)
    advice = diagnose(feed.view, feed.time).advice
    assert advice.startswith("all 8 cores are in use")
    assert advice.endswith("store smaller images: ossconsole upload SRC --format image-jpeg --size 256")
    assert reading("tensor-f32", FLOAT_BYTES, decode_s=3.9).view.measurement.format_gain(ACCELERATED) is None


def test_the_summary_keeps_the_advice() -> None:
    measured = (feed := reading("tensor-f32", FLOAT_BYTES)).view.measurement
    summary = msgspec.structs.replace(
        summary_event(), advice=final_advice(measured), endpoints=measured.endpoints(), time=feed.time
    )
    line = events.encode(summary)
    assert events.decode(line) == summary
    gain = msgspec.json.decode(line)["endpoints"]["accelerated"]["format_gain"]
    assert (gain["format"], gain["limit"], round(gain["ratio"], 1)) == ("image-jpeg", "compute", 5.0)
    logged = events.to_log_line(summary)
    assert logged is not None
    assert logged.text.endswith("Try: ossconsole upload SRC --format image-jpeg")
    feed.view.apply(summary)
    assert diagnose(feed.view, feed.time).format_advice == summary.advice


def test_requests_are_reported_where_each_sample_is_one() -> None:
    ceiling = Ceiling(quota_gb=50, peak_bytes_per_s=3e8, bytes_per_s=2.7e8, requests_per_s=1793.0)
    assert ceiling.requests_used == pytest.approx(0.1793)
    assert ceiling.words == (
        "90 % of what 50 GB gives (300 MB/s): one larger than 1 TB would help; "
        "1,793 of 10,000 requests/s of the account"
    )


@pytest.mark.parametrize(
    ("gpus", "where"), [((), "this CPU"), (("GPU-1",), "this GPU"), (("GPU-1", "GPU-2"), "these 2 GPUs")]
)
def test_the_share_of_the_models_ceiling_is_that_of_the_benchmark(gpus: tuple[str, ...], where: str) -> None:
    feed = running().steps(20)  # 20 samples/s
    assert diagnose(feed.view, feed.time).ceiling == "", "no benchmark measured it"
    ceiling = events.ModelCeiling(bench="t4", samples_per_s=32.0)
    feed.view.apply(events.Devices(time=1.0, device="cuda" if gpus else "cpu", gpus=gpus, ceiling=ceiling))
    expected = f"62 % of what the model can do on {where} (benchmark t4)"
    assert diagnose(feed.view, feed.time).ceiling == expected
