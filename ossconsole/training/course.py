"""The course of a run: which epoch it is in, that epoch's sums, and the figures of the one before."""

from __future__ import annotations

import time
from typing import Any

import torch

from ossconsole.telemetry import events
from ossconsole.training.checkpoint import Progress
from ossconsole.training.context import RunContext
from ossconsole.training.plan import Split
from ossconsole.training.trainer import EpochMeter


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
