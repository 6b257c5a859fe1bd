"""Reports of the steps: each is told once the device has finished it, without holding the loop up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import events
from ossconsole.training.agreement import Agreement
from ossconsole.training.compute import PendingTimes
from ossconsole.training.context import RunContext
from ossconsole.training.totals import Totals
from ossconsole.training.trainer import finite


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
    agreed: Agreement
    times: PendingTimes


class StepReports:
    """Tells the steps of a run, on a GPU one step late. `last_checkpoint` gives the URI to go on from, "" for none."""

    def __init__(self, context: RunContext, totals: Totals, *, late: bool, last_checkpoint: Callable[[], str]) -> None:
        self._context = context
        self._totals = totals
        self._late = late
        self._last_checkpoint = last_checkpoint
        self._pending: DoneStep | None = None

    def add(self, done: DoneStep) -> None:
        """Raises DivergedError as `flush` does."""
        self.flush()
        self._pending = done
        if not self._late:
            self.flush()

    def flush(self) -> None:
        """Tells the last step, which is waited for. Raises DivergedError when its loss is not finite."""
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        times = done.times.read(slowest_wait_s=done.agreed.wait_s)
        loss = finite(float(done.loss))
        agreed = done.agreed
        self._totals.add(done.endpoint, agreed.samples, agreed.bytes, times)
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
                samples_per_s=self._totals.rate,
                copy_s=times.copy_s,
                compute_s=times.compute_s,
                queued=done.queued,
            )
        )
        if loss is None:
            uri = self._last_checkpoint()
            last = f"Go on from {uri}" if uri else "Start again"
            raise DivergedError(
                f"The loss of step {done.step} is not a finite number; the run has diverged.",
                remedy=f"{last} with a lower --learning-rate than {done.lr:g}.",
            )
