"""Emulated accelerators: how AU is computed, the search, the words, the buyer's table, and real accelerators."""

from __future__ import annotations

from pathlib import Path

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.telemetry.events import AcceleratorSize, Event
from ossconsole.telemetry.measure import Measurement
from ossconsole.telemetry.page import Table
from ossconsole.training.bench.accelerators import AcceleratorGroup, AcceleratorTask
from ossconsole.training.bench.buyers import DatasetFacts, Measured, Origin, buyers_table, run_buyers
from ossconsole.training.bench.emulation import (
    Calibration,
    Emulation,
    EmulationEvent,
    EmulationSettings,
    EmulationSummary,
    Trial,
    path_result,
)
from ossconsole.training.bench.requests import AcceleratorRequests
from ossconsole.training.bench.results import CacheState, Quantiles
from ossconsole.training.bench.workloads import (
    MIN_AU,
    WORKLOADS,
    RuleCheck,
    Steps,
    largest_passing,
    parse_workload,
    unmet_rules,
)
from tests.telemetry.samples_of_events import run_event, step_event
from tests.training.conftest import TRAIN_SAMPLES, Bucket, bucket_in

H100 = WORKLOADS["resnet50:h100"]


def steps(ended: list[float], compute: float, grown: int = 0) -> Steps:
    count = len(ended)
    return Steps(0.0, ended, [0.0] * count, [compute] * count, [0.0] * count, 0, 0, grown)


def test_au_leaves_the_first_step_out() -> None:
    # A first step of 5 s that waited for the pipeline; then 4 steps of 1 s each with 0.8 s of compute.
    assert steps([5.0, 6.0, 7.0, 8.0, 9.0], 0.8).au == pytest.approx(0.8)


def test_steps_that_drained_the_read_ahead_do_not_sustain() -> None:
    drained = steps([1.0, 2.0, 3.0, 4.0, 5.0], 0.96, grown=-1)
    assert drained.sustained_au == pytest.approx(0.96 * 3 / 4)
    assert steps([1.0, 2.0, 3.0, 4.0, 5.0], 0.96, grown=2).sustained_au == pytest.approx(0.96)


@pytest.mark.parametrize("limit", range(12))
@pytest.mark.parametrize("most", [1, 6, 11])
def test_the_search_finds_the_largest_number_that_passes(limit: int, most: int) -> None:
    tried: list[int] = []

    def passes(number: int) -> bool:
        tried.append(number)
        return number <= limit

    assert largest_passing(passes, most) == min(limit, most)
    assert len(tried) == len(set(tried)) <= 8
    assert max(tried) <= most


def test_workloads_by_name_and_of_ones_own() -> None:
    assert parse_workload("ResNet50:H100") is H100
    assert H100.samples_per_s == pytest.approx(1785.7, abs=0.1)
    own = parse_workload("950/s:256")
    assert own.batch_size == 256
    assert own.samples_per_s == pytest.approx(950)
    assert H100.with_batch(100).samples_per_s == pytest.approx(H100.samples_per_s)
    for wrong in ("resnet50", "0/s:4", "10/s:0", "10:4"):
        with pytest.raises(SettingsError, match="not a known workload"):
            parse_workload(wrong)


def trial(number: int, au: float, path: str = "accelerated", busy: float = 0.1) -> Trial:
    return Trial(
        time=0.0,
        path=path,
        accelerators=number,
        round=0,
        steps=100,
        au=au,
        sustained_au=au,
        passed=au >= MIN_AU,
        samples_per_s=number * 100 * au,
        bytes_per_s=1e6,
        readers_busy=busy,
        step=Quantiles(),
        fetch=Quantiles(),
        stall_share=0.0,
        simulated=False,
    )


@pytest.mark.parametrize(
    ("failed", "calibrated", "limit", "words"),
    [
        (trial(4, 0.8), 0.995, "storage", "4 would reach an AU of 80 %: the storage is the limit"),
        (trial(4, 0.8), 0.97, "host", "this host is the limit, its AU is 97.0 % with a buffer that is always full"),
        (trial(4, 0.8, busy=0.9), 0.995, "host", "its readers ran or waited for a processor 90 % of the time"),
    ],
    ids=["storage", "calibration", "readers"],
)
def test_the_limit_of_the_host_is_distinguished_from_that_of_the_storage(
    failed: Trial, calibrated: float, limit: str, words: str
) -> None:
    result = path_result("accelerated", [trial(2, 0.98), trial(3, 0.95), failed], {4: calibrated}, H100)
    assert (result.accelerators, result.limit) == (3, limit)
    assert words in result.words
    assert "The accelerated endpoint feeds 3 accelerators (resnet50:h100, batch 400)" in result.words


def test_what_does_not_meet_the_rules_is_named() -> None:
    short = unmet_rules(RuleCheck(100, 2, 4, 400, 10_000, 602_112.0, simulated=True), "resnet50:h100")
    text = " ".join(short)
    for words in ("100 steps", "10,000 training samples", "800,000", "tried 2 times", "602,112 bytes", "simulated"):
        assert words in text
    full = unmet_rules(RuleCheck(500, 5, 1, 24, 10**6, 322_957.0, simulated=False), "retinanet:b200")
    assert len(full) == 1  # the page cache, which the connector does not use


def test_the_buyers_table_is_the_arithmetic_of_the_documentation() -> None:
    facts = DatasetFacts(format="image-u8", bytes_per_sample=150_528.0, side=224, sharded=True)
    table = buyers_table(H100, facts, None)
    fed = {(row.quota_gb, feed.format): feed for row in table.rows for feed in row.feeds}
    assert [fed[size, "image-u8"].accelerators for size in (1024, 4096, 8192)] == [1, 4, 9]
    assert [fed[size, "tensor-f32"].accelerators for size in (1024, 4096, 8192)] == [0, 1, 2]
    assert fed[1024, "image-u8"].origin is Origin.DOCUMENTED
    assert fed[1024, "image-jpeg"].origin is Origin.EXTRAPOLATED
    assert [round(row.cny_per_month) for row in table.rows][:2] == [717, 1434]
    # One request for each sample: 10,000 requests/s bound the small JPEGs.
    single = buyers_table(H100, DatasetFacts(format="x", bytes_per_sample=1e3, side=224, sharded=False), None)
    assert next(feed for feed in single.rows[-1].feeds if feed.format == "image-jpeg").accelerators == 6


def test_measured_cells_and_what_is_extrapolated_from_them() -> None:
    facts = DatasetFacts(format="image-u8", bytes_per_sample=150_528.0, side=224, sharded=True)
    half = Measured(quota_gb=2048, accelerators=1, bytes_per_s=300e6, simulated=False)  # of 600 MB/s
    cells = {row.quota_gb: row.feeds[1] for row in buyers_table(H100, facts, half).rows}
    assert (cells[2048].accelerators, cells[2048].origin) == (1, Origin.MEASURED)
    assert (cells[8192].accelerators, cells[8192].origin) == (4, Origin.EXTRAPOLATED)  # 9 by the documentation
    simulated = Measured(quota_gb=50, accelerators=3, bytes_per_s=None, simulated=True)
    table = buyers_table(H100, facts, simulated)
    assert table.rows[0].feeds[1].or_more
    assert {row.feeds[1].origin for row in table.rows[1:]} == {Origin.DOCUMENTED}
    assert "says nothing about the service" in table.notes[0]


def measured_run(endpoint: EndpointKind, wait_s: float, world: int = 1) -> Measurement:
    """A run of 40 steps of 0.4 s on 8 samples each, through an accelerator of 50 GB."""
    run = run_event(sample_format="image-u8", stored_as="shards", world=world)
    size = AcceleratorSize(time=0.0, quota_gb=50, peak_bytes_per_s=300e6)
    measurement = Measurement()
    steps = (step_event(number, endpoint=endpoint, data_wait_s=wait_s) for number in range(1, 41))
    found: list[Event] = [run, size, *steps]
    for event in found:
        measurement.apply(event)
    return measurement


@pytest.mark.parametrize(
    ("wait_s", "world", "fed", "own"),
    [(0.02, 1, "1+ measured", "21 samples/s"), (0.02, 2, "2+ measured", "11"), (0.2, 2, "1+ measured", "20")],
    ids=["fed", "two ranks", "half of it waits"],
)
def test_the_buyers_table_of_a_run_is_for_its_own_devices(wait_s: float, world: int, fed: str, own: str) -> None:
    (section,) = run_buyers(measured_run(EndpointKind.ACCELERATED, wait_s, world=world))
    assert own in section.title
    table = section.parts[0]
    assert isinstance(table, Table)
    assert fed in table.rows[0]
    assert "50 GB" in table.rows[0]


def test_the_buyers_table_of_a_run_on_the_standard_endpoint_has_nothing_measured() -> None:
    (section,) = run_buyers(measured_run(EndpointKind.STANDARD, 0.3))
    assert "measured: nothing" in str(section.parts)
    assert run_buyers(Measurement()) == []


def test_accelerators_share_an_epoch_and_get_whole_batches(bucket: Bucket) -> None:
    read = []
    for rank in range(3):
        requests = AcceleratorRequests(bucket.data, 10, rank=rank, world=3).requests()
        read += [next(requests) for _ in range(3)]
    assert {len(request.indices) for request in read} == {10}
    assert len({int(row) for request in read for row in request.indices}) == 90  # of TRAIN_SAMPLES, each once
    larger = next(AcceleratorRequests(bucket.data, TRAIN_SAMPLES + 4, rank=0, world=1).requests())
    assert len(larger.indices) == TRAIN_SAMPLES + 4


def emulate(bucket: Bucket, rate: float, **settings: object) -> tuple[EmulationSummary, list[EmulationEvent]]:
    found: list[EmulationEvent] = []
    chosen = EmulationSettings(workload=parse_workload(f"{rate:g}/s:4"), workers=1, **settings)  # type: ignore[arg-type]
    return Emulation(bucket.profile, bucket.credentials, chosen, found.append).run(), found


@pytest.mark.slow
def test_accelerators_that_storage_feeds_reach_their_rate(bucket: Bucket) -> None:
    summary, found = emulate(bucket, 20, accelerators=(1, 2), steps=10, rounds=1, endpoints=(EndpointKind.STANDARD,))
    trials = [event for event in found if isinstance(event, Trial)]
    assert [each.accelerators for each in trials] == [1, 2]
    assert [each.accelerators for each in found if isinstance(each, Calibration)] == [1, 2]
    assert all(0 < each.au <= 1 for each in trials)
    assert trials[0].samples_per_s <= 20 * 1.2
    assert found[-1] is summary
    assert summary.simulated
    assert "not an MLPerf result" in summary.note
    assert summary.dlio["standard"]["num_accelerators"] in {1, 2}


def test_the_first_read_through_a_cache_is_a_trial_of_its_own(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[AcceleratorTask] = []

    def run(_group: AcceleratorGroup, task: AcceleratorTask) -> list[Steps]:
        tasks.append(task)
        return [steps([1.0, 2.0], 1.0 if task.connector is None else 0.5 if len(tasks) == 2 else 0.95)] * task.world

    monkeypatch.setattr(AcceleratorGroup, "run", run)
    summary, found = emulate(bucket, 40, accelerators=(1, 2), steps=10, rounds=1, endpoints=(EndpointKind.ACCELERATED,))
    trials = [event for event in found if isinstance(event, Trial)]
    cold, warm = CacheState.COLD, CacheState.WARM
    # Half of the samples are left for two accelerators: too few for another cold trial.
    assert [(each.accelerators, each.temperature) for each in trials] == [(1, cold), (1, warm), (2, warm)]
    one, two = summary.paths[0].fed
    assert (one.trials, one.cold_au, one.au, one.passed) == (1, 0.5, 0.95, True)
    assert two.cold_au is None


def test_each_cold_trial_reads_samples_that_were_not_read(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[AcceleratorTask] = []

    def run(_group: AcceleratorGroup, task: AcceleratorTask) -> list[Steps]:
        tasks.append(task)
        return [steps([1.0, 2.0], 0.95)] * task.world

    monkeypatch.setattr(AcceleratorGroup, "run", run)
    emulate(bucket, 40, accelerators=(1,), steps=10, rounds=3, endpoints=(EndpointKind.ACCELERATED,))
    read = [task.first for task in tasks if task.connector is not None]
    assert read == [0, 0, 12, 12, 0]  # none is left for the third round


def test_all_numbers_of_accelerators_read_the_same_samples_first(bucket: Bucket) -> None:
    def first(world: int, steps: int) -> set[int]:
        streams = [AcceleratorRequests(bucket.data, 4, rank=rank, world=world).requests() for rank in range(world)]
        return {int(row) for stream in streams for _ in range(steps) for row in next(stream).indices}

    assert first(1, 8) == first(2, 4) == first(4, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize(("number", "rate"), [(1, 20), (2, 14), (4, 8)])
def test_finds_the_number_that_a_shaped_sandbox_feeds(number: int, rate: float, attempt: int, tmp_path: Path) -> None:
    limit = MIN_AU * rate * (number + 0.5)  # objects/s: `number` reach the least AU, one more does not
    shaped = ("--standard-objects-per-s", str(limit), "--standard-first-byte-ms", "5")
    with SandboxProcess.start(tmp_path / "sandbox", arguments=shaped) as process:
        bucket = bucket_in(process, f"shaped-{attempt}")
        summary, _ = emulate(bucket, rate, steps=25, endpoints=(EndpointKind.STANDARD,))
    assert summary.paths[0].accelerators == number
