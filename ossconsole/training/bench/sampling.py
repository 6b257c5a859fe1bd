"""How a benchmark measures: training steps, and intervals of steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from ossconsole.telemetry.events import Step
from ossconsole.telemetry.visits import Tally, Waiting
from ossconsole.training.bench.ceiling import setup_of
from ossconsole.training.bench.requests import ORDER, next_batch
from ossconsole.training.bench.results import CacheState, ModelSetup
from ossconsole.training.compute.device import (
    BatchTransform,
    DeviceContext,
    PendingTimes,
    StepClock,
    StepTimes,
)
from ossconsole.training.compute.model import build_model
from ossconsole.training.compute.selection import select_device
from ossconsole.training.compute.trainer import EpochMeter, Trainer
from ossconsole.training.data import TrainingData
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.loading.loader import Batch, BatchLoader, sample_transform
from ossconsole.training.plan import Split
from ossconsole.training.settings import TrainSettings

_STEPS = 1 << 40  # enough that the learning rate does not change
_SYNTHETIC_WARMUP = 3


class TrainingLoop:
    """The training steps of a run without its records, on real or synthetic batches."""

    def __init__(self, settings: TrainSettings, data: TrainingData) -> None:
        self._settings = settings
        self._row = sample_transform(settings, data)
        self._compute = DeviceContext(settings, self._row, device=select_device(settings))
        self._size = data.image_size(settings.image_size)
        model = build_model(settings, data.classes, self._size, lambda uri: uri.encode())
        group = ProcessGroup(RankInfo(), self._compute.device)
        self._trainer = Trainer(model, self._compute, settings, group, total_steps=_STEPS)
        self._transform = BatchTransform(data, self._compute)
        self._clock = StepClock(self._compute)
        self._meter = EpochMeter()
        self._pending: list[tuple[float, PendingTimes]] = []
        self._classes = len(data.classes)

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self._compute.cuda

    @property
    def device(self) -> str:
        """Device and precision, as text."""
        return f"{self._compute.device} in {self._compute.precision}"

    def setup(self, batch_size: int) -> ModelSetup:
        """What the rate of the steps depends on, with batches of that size."""
        return setup_of(msgspec.structs.replace(self._settings, batch_size=batch_size), self._compute, self._size)

    def step(self, batch: Batch) -> None:
        """One training step; frees the buffers of earlier batches."""
        self._clock.mark()
        images = self._transform.images(batch)
        labels = self._transform.labels(Split.TRAIN, batch.rows)
        self._clock.mark()
        self._trainer.step(images, labels, self._meter, samples=len(labels))
        self._clock.mark()
        self._pending.append((batch.wait_s, self._clock.finish()))
        self._compute.free_slots()

    def restart(self) -> None:
        """Starts the measurement: waits for the device, and drops the times of earlier steps."""
        self._synchronize()
        self._pending.clear()
        self._clock.restart()

    def finish(self) -> list[StepTimes]:
        """Waits for the device; returns the times of the steps since `restart`."""
        self._synchronize()
        return [pending.read(slowest_wait_s=wait_s) for wait_s, pending in self._pending]

    def synthetic_rate(self, batch_size: int, seconds: float) -> float:
        """Samples/s of the same steps on one synthetic batch on the host: copy, transform and training."""
        values = torch.randn(batch_size, self._row.row_bytes // self._row.format.itemsize)
        if not self._row.raw:
            values = (values * 40 + 128).clamp(0, 255).to(torch.uint8)
        data = values.view(torch.uint8)
        if self.cuda:
            data = data.pin_memory()
        labels = torch.randint(0, self._classes, (batch_size,))

        def step() -> None:
            self._compute.free_slots()
            images = self._compute.images(data, self._compute.input_dtype)
            self._trainer.step(images, self._compute.labels(labels), self._meter, samples=batch_size)

        for _ in range(_SYNTHETIC_WARMUP):
            step()
        self._synchronize()
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            step()
            done += 1
        self._synchronize()
        return batch_size * done / (time.perf_counter() - begun)

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self._compute.device)


@dataclass
class Interval:
    """The steps of a measured interval. `before` are the batches already read ahead at its start.

    `trained` is False when the batches were only loaded.
    """

    steps: list[Step]
    before: Waiting
    seconds: float
    trained: bool

    @property
    def samples(self) -> int:
        """The number of samples of all steps."""
        return sum(step.samples for step in self.steps)

    @property
    def bytes(self) -> int:
        """The bytes read by all steps."""
        return sum(step.bytes for step in self.steps)

    @property
    def samples_per_s(self) -> float:
        """Samples that arrived per second, as far as the compute could use them."""
        tally, before = Tally(), self.before
        for step in self.steps:
            tally.add(step, before, cold=False)
            before = Waiting.at(step)
        return tally.rate

    @property
    def wait_fraction(self) -> float | None:
        """The share of the time that training waited for data; None without training."""
        total = sum(step.step_time_s for step in self.steps)
        return sum(step.data_wait_s for step in self.steps) / total if self.trained and total else None

    @property
    def decode_s(self) -> float:
        """The time that all readers spent decoding, in seconds."""
        return sum(step.decode_s for step in self.steps)

    def fetch_quantile(self, share: float) -> float:
        """The quantile `share` of the fetch times, in seconds."""
        return float(np.quantile([step.fetch_s for step in self.steps], share))


def first_batch(loader: BatchLoader, temperature: CacheState) -> Batch | None:
    """The first batch of that temperature, None when a later one comes first. Raises ConsoleError."""
    wanted = ORDER.index(temperature) + 1
    while True:
        batch = next_batch(loader)
        if batch.request.epoch >= wanted:
            return batch if batch.request.epoch == wanted else None


def measure_interval(
    loader: BatchLoader, batch: Batch, *, workers: int, seconds: float, loop: TrainingLoop | None
) -> Interval | None:
    """Measures at least `seconds`, in whole rounds of the readers; `batch` is the first of its temperature.

    The first round is not measured: it includes opening connections and selecting kernels. None when there are too few
    batches of that temperature. Raises ConsoleError.
    """
    epoch = batch.request.epoch
    for _ in range(workers):
        if loop is not None:
            loop.step(batch)
        batch = next_batch(loader)
    if loop is not None:
        loop.step(batch)
        loop.restart()
    before = Waiting(batch.queued, batch.readers_idle)
    begun = time.perf_counter()
    steps: list[Step] = []
    took = 0.0
    while took < seconds or len(steps) % workers:
        batch = next_batch(loader)
        if batch.request.epoch != epoch:
            break
        if loop is not None:
            loop.step(batch)
        passed = time.perf_counter() - begun
        steps.append(_step(batch, passed - took))
        took = passed
    if loop is not None:
        times = loop.finish()
        took = time.perf_counter() - begun
        steps = [_timed(step, each) for step, each in zip(steps, times, strict=True)]
    return Interval(steps, before, took, loop is not None) if len(steps) >= workers else None


def _step(batch: Batch, seconds: float) -> Step:
    """A step that does not use the batch: all its time is waiting."""
    return Step(
        time=time.time(),
        step=batch.request.number,
        epoch=batch.request.epoch,
        samples=len(batch.rows),
        loss=None,
        lr=0.0,
        endpoint=batch.endpoint,
        data_wait_s=batch.wait_s,
        step_time_s=seconds,
        fetch_s=batch.fetch_s,
        bytes=batch.bytes,
        samples_per_s=0.0,
        queued=batch.queued,
        readers_idle=batch.readers_idle,
        single_s=batch.single_s,
        decode_s=batch.decode_s,
    )


def _timed(step: Step, times: StepTimes) -> Step:
    return msgspec.structs.replace(
        step,
        step_time_s=times.step_s,
        data_wait_s=times.wait_s,
        copy_s=times.copy_s,
        compute_s=times.compute_s,
        host_s=times.host_s,
    )
