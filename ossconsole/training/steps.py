"""Reports of the steps: each is told once the device has finished it, without holding the loop up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import events
from ossconsole.training.agreement import Agreement
from ossconsole.training.compute import PendingTimes
from ossconsole.training.context import RunContext
from ossconsole.training.trainer import finite

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
