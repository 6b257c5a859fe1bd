"""The estimated hit rate against the sandbox's truth: of single samples as a run times them, and of a whole run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.manifest import object_key
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.telemetry import events
from ossconsole.telemetry.cache import SingleTimes, TimeCounts, count_time, hit_rate
from ossconsole.training.loading import pool as singles
from ossconsole.training.loading.loader import sample_transform
from ossconsole.training.loading.pool import ReaderPool, SingleSamples
from ossconsole.training.loading.reader import ReaderShare, ReadResult
from ossconsole.training.loading.shared_memory import EndpointSwitch, SampleTable, SharedBuffer
from ossconsole.training.plan import Plan
from ossconsole.training.settings import TrainSettings
from tests.telemetry.samples_of_events import step_event
from tests.training.conftest import DEADLINE_S, TRAIN_SAMPLES, Bucket, StartRun, bucket_in, finished, steps

ORIGIN_MS = 200  # of a miss, at least: far from what a hit takes on a loaded machine
SINGLES = 24
STANDARD, ACCELERATED = EndpointKind.STANDARD, EndpointKind.ACCELERATED


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    arguments = ["--standard-first-byte-ms", str(ORIGIN_MS), "--standard-objects-per-s", "0"]
    with SandboxProcess.start(tmp_path_factory.mktemp("shaped"), arguments=arguments) as sandbox:
        yield bucket_in(sandbox, "hits")


@pytest.fixture
def bucket(shaped: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """With an empty cache; a sample of each batch is timed."""
    monkeypatch.setattr(singles, "SAMPLES_PER_SINGLE", 1)
    SandboxControl(shaped.sandbox.info).clear_cache()
    return shaped


def cache_counts(bucket: Bucket) -> tuple[int, int]:
    """The sandbox's hits and misses so far."""
    status = SandboxControl(bucket.sandbox.info).status()
    return status.cache_hits, status.cache_misses


class PatientPool(ReaderPool):
    """Waits until the sample has arrived."""

    def poll(self, timeout_s: float) -> list[ReadResult]:
        return super().poll(DEADLINE_S)


@pytest.mark.slow
def test_the_hit_rate_is_estimated_within_5_points(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(singles, "ReaderPool", PatientPool)
    times = SingleTimes()
    with single_samples(bucket, tmp_path) as (timed, share):
        for step in single_steps(timed, share, 10):
            times.add(step)
        share.switch.endpoint = ACCELERATED
        list(single_steps(timed, share, 1))  # it pays for the connection
        for warm in (0.0, 0.33, 0.67, 1.0):
            SandboxControl(bucket.sandbox.info).clear_cache()
            read_before(bucket, warm)
            before, counts = cache_counts(bucket), TimeCounts()
            for step in single_steps(timed, share, SINGLES):
                times.add(step)
                count_time(counts, step)
            hits, misses = (now - then for now, then in zip(cache_counts(bucket), before, strict=True))
            assert hits + misses == sum(counts.values()) == SINGLES
            found = hit_rate(counts, times.limit_s)
            assert found is not None
            assert found.value == pytest.approx(hits / (hits + misses), abs=0.05)


def read_before(bucket: Bucket, share: float) -> None:
    """Reads that share of the training samples through the accelerated endpoint."""
    keys = [key for key in bucket.pictures if key.startswith("train/")]
    store = bucket.store(ACCELERATED)
    chosen = [object_key(bucket.profile.dataset_prefix, key) for key in keys[: round(share * len(keys))]]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store.get, chosen))


@contextlib.contextmanager
def single_samples(bucket: Bucket, tmp_path: Path) -> Iterator[tuple[SingleSamples, ReaderShare]]:
    with contextlib.ExitStack() as resources:
        table = resources.enter_context(contextlib.closing(SampleTable(bucket.data)))
        unused = resources.enter_context(contextlib.closing(SharedBuffer(8)))
        transform = sample_transform(TrainSettings(), bucket.data)
        share = ReaderShare(EndpointSwitch(STANDARD), table, transform, unused, unused, (1, 1, transform.row_bytes))
        timed = SingleSamples(bucket.connector(tmp_path), share, deadline_s=DEADLINE_S)
        yield resources.enter_context(contextlib.closing(timed)), share


def single_steps(timed: SingleSamples, share: ReaderShare, count: int) -> Iterator[events.Step]:
    """Steps with the times of so many samples in a random order, read one after the other."""
    kind = share.switch.endpoint
    requests = Plan(TrainSettings(batch_size=1, endpoint=kind), TRAIN_SAMPLES, 0).requests()
    for request in [next(requests) for _ in range(count)]:
        timed.offer(request)
        yield step_event(request.number + 1, endpoint=kind, single_s=timed.take(request.number, kind))


@pytest.mark.slow
def test_single_samples_separate_a_cold_epoch_from_a_warm_one(bucket: Bucket, start_run: StartRun) -> None:
    def on_event(event: events.Event) -> None:
        if isinstance(event, events.Epoch) and event.epoch == 1:
            run.switch(ACCELERATED)

    run = start_run(batch_size=16, image_size=32, epochs=3, endpoint=STANDARD, on_event=on_event)
    found = steps(finished(run))
    seconds = {epoch: [step.single_s for step in found if step.epoch == epoch and step.single_s] for epoch in (1, 2, 3)}
    assert min(seconds[1] + seconds[2]) > ORIGIN_MS / 1000
    assert min(seconds[3]) < ORIGIN_MS / 1000
