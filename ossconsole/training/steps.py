"""Reports of the steps, each sent once the device has finished it; and the state of the epoch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import events
from ossconsole.training.checkpoints.checkpoint import Progress
from ossconsole.training.compute.device import PendingTimes
from ossconsole.training.compute.trainer import EpochMeter, finite
from ossconsole.training.context import RunContext
from ossconsole.training.distributed.rank import Agreement
from ossconsole.training.plan import Split

_RATE_STEPS = 10  # over which the rate in samples/s of a step is taken


class DivergedError(ConsoleError):
    """The weights are worthless: they must not become a checkpoint."""


@dataclass(frozen=True)
class DoneStep:
    """A step whose figures the device may not have finished yet."""

    step: int
    epoch: int
    lr: float
    loss: torch.Tensor
    endpoint: EndpointKind
    queued: int
    readers_idle: bool
    single_s: float | None
    agreed: Agreement
    times: PendingTimes


class StepReports:
    """Tells the steps of a run, on a GPU one step late. `last_checkpoint` gives the URI to go on from, "" for none."""

    def __init__(self, context: RunContext, *, late: bool, last_checkpoint: Callable[[], str]) -> None:
        self._context = context
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RATE_STEPS)  # samples and seconds of a step
        self._late = late
        self._last_checkpoint = last_checkpoint
        self._pending: DoneStep | None = None

    def add(self, done: DoneStep) -> None:
        """Raises DivergedError as `flush` does."""
        self.flush()
        self._pending = done
        if not self._late:
            self.flush()

    @property
    def _rate(self) -> float:
        """Samples per second over the last steps."""
        seconds = sum(step_s for _, step_s in self._recent)
        return sum(samples for samples, _ in self._recent) / seconds if seconds else 0.0

    def flush(self) -> None:
        """Tells the last step, which is waited for. Raises DivergedError when its loss is not finite."""
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        times = done.times.read(slowest_wait_s=done.agreed.wait_s)
        loss = finite(float(done.loss))
        agreed = done.agreed
        self._recent.append((agreed.samples, times.step_s))
        self._context.tell(
            events.Step(
                time=time.time(),
                step=done.step,
                epoch=done.epoch,
                samples=agreed.samples,
                loss=loss,
                lr=done.lr,
                endpoint=done.endpoint,
                data_wait_s=times.wait_s,
                step_time_s=times.step_s,
                fetch_s=agreed.fetch_s,
                bytes=agreed.bytes,
                samples_per_s=self._rate,
                copy_s=times.copy_s,
                compute_s=times.compute_s,
                host_s=times.host_s,
                host_late=times.host_late,
                queued=done.queued,
                readers_idle=done.readers_idle,
                single_s=done.single_s,
            )
        )
        if loss is None:
            uri = self._last_checkpoint()
            last = f"Go on from {uri}" if uri else "Start again"
            raise DivergedError(
                f"The loss of step {done.step} is not a finite number; the run has diverged.",
                remedy=f"{last} with a lower --learning-rate than {done.lr:g}.",
            )


class Course:
    """`metrics` are of the last epoch that ended: train_loss, val_loss, top1, top5, and best_top1 of all so far."""

    def __init__(self) -> None:
        self.epoch = 1
        self.metrics: dict[str, float | None] = {}
        self.meters = {split: EpochMeter() for split in Split}
        self._epoch_begun = time.perf_counter()

    def end_epoch(self, context: RunContext) -> bool:
        """Tells the epoch's figures and begins the next; whether its top-1 is the best so far."""
        train, val = self.meters[Split.TRAIN], self.meters[Split.VAL]
        before = self.metrics.get("best_top1")
        best = val.top1 is not None and (before is None or val.top1 > before)
        shown = {"train_loss": train.loss, "val_loss": val.loss, "top1": val.top1, "top5": val.top5}
        self.metrics = {**shown, "best_top1": val.top1 if best else before}
        now = time.perf_counter()
        context.tell(
            events.Epoch(
                time=time.time(),
                epoch=self.epoch,
                **shown,
                seconds=now - self._epoch_begun,
                step=context.step,
                samples=train.samples,
                val_samples=val.samples,
            )
        )
        self._epoch_begun = now
        self.meters = {split: EpochMeter() for split in Split}
        return best

    def progress(self, step: int) -> Progress:
        """What a checkpoint after `step` says of it."""
        return Progress(
            epoch=self.epoch, step=step, train_sums=self.meters[Split.TRAIN].sums.tolist(), metrics=self.metrics
        )

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError where `state` is not a checkpoint's."""
        self.epoch = int(state["epoch"])
        self.metrics = dict(state["metrics"])
        self.meters[Split.TRAIN].sums = torch.tensor(state["train_sums"], dtype=torch.float64)
