"""The training loop of a benchmark: the steps of a run without its records, on real or synthetic batches."""

from __future__ import annotations

import time

import torch

from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import TRAIN, Manifest
from ossconsole.training.compute.device import (
    BatchTransform,
    DeviceContext,
    PendingTimes,
    StepClock,
    StepTimes,
    choose_device,
)
from ossconsole.training.compute.model import build_model
from ossconsole.training.compute.trainer import EpochMeter, Trainer
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.loading.loader import Batch
from ossconsole.training.plan import Split
from ossconsole.training.settings import TrainSettings

_STEPS = 1 << 40  # no end: the learning rate stays what it is
_SYNTHETIC_WARMUP = 3


class TrainingLoop:
    """ResNet-18 with its optimizer, as a run has it."""

    def __init__(self, settings: TrainSettings, manifest: Manifest) -> None:
        self._compute = DeviceContext(settings, manifest.format, device=choose_device())
        model = build_model(manifest.classes, "none", lambda uri: uri.encode())
        ranks = ProcessGroup(RankInfo(), self._compute.device)
        self._trainer = Trainer(model, self._compute, settings, ranks, total_steps=_STEPS)
        self._pictures = BatchTransform(manifest, self._compute, seed=settings.seed)
        self._clock = StepClock(self._compute)
        self._meter = EpochMeter()
        self._pending: list[tuple[float, PendingTimes]] = []
        self._manifest = manifest

    @property
    def cuda(self) -> bool:
        return self._compute.cuda

    @property
    def device(self) -> str:
        """Device and precision, in words."""
        return f"{self._compute.device} in {self._compute.precision}"

    def step(self, batch: Batch) -> None:
        """One training step; the buffers of the batches before it may be filled again afterwards."""
        self._clock.mark()
        images = self._pictures.images(batch)
        labels = self._pictures.labels(Split.TRAIN, batch.rows)
        self._clock.mark()
        self._trainer.step(images, labels, self._meter, samples=len(labels))
        self._clock.mark()
        self._pending.append((batch.wait_s, self._clock.finish()))
        self._compute.free_slots()

    def restart(self) -> None:
        """The steps from here on are measured."""
        self._synchronize()
        self._pending.clear()
        self._clock.restart()

    def finish(self) -> list[StepTimes]:
        """Waits for the device; gives the times of the steps since `restart`."""
        self._synchronize()
        return [pending.read(slowest_wait_s=wait_s) for wait_s, pending in self._pending]

    def synthetic_rate(self, batch_size: int, seconds: float) -> float:
        """Samples/s of the same steps on a batch that is there already: copied to the device, prepared and trained."""
        sample = self._manifest.splits[TRAIN][0]
        values = torch.randn(batch_size, self._manifest.sample_bytes(sample) // self._manifest.format.itemsize)
        if self._manifest.format is SampleFormat.IMAGE_U8:
            values = (values * 40 + 128).clamp(0, 255).to(torch.uint8)
        data = values.view(torch.uint8)
        if self.cuda:
            data = data.pin_memory()
        labels = torch.randint(0, len(self._manifest.classes), (batch_size,))

        def step(number: int) -> None:
            self._compute.free_slots()
            generator = self._compute.generator(number)
            images = self._compute.images(data, sample.height, sample.width, generator=generator)
            self._trainer.step(images, self._compute.labels(labels), self._meter, samples=batch_size)

        for number in range(_SYNTHETIC_WARMUP):
            step(number)
        self._synchronize()
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            step(done)
            done += 1
        self._synchronize()
        return batch_size * done / (time.perf_counter() - begun)

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self._compute.device)
