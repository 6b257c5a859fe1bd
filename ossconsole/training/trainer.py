"""The trainer: model, optimizer and schedule; one training step, one validation batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ossconsole.config.errors import ConsoleError
from ossconsole.training.compute import Compute
from ossconsole.training.ranks import Ranks
from ossconsole.training.settings import TrainSettings


@dataclass
class EpochMeter:
    """Sums over one split of one epoch, kept on the device so that no step has to wait for them.

    `sums` are as `counts` gives them, over all ranks: float64, shape (4,).
    """

    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))

    def add(self, counts: torch.Tensor) -> None:
        self.sums = self.sums.to(counts.device) + counts

    @property
    def samples(self) -> int:
        return int(self.sums[3])

    @property
    def loss(self) -> float | None:
        """The mean loss, None before the first sample or when it is not finite."""
        return finite(float(self.sums[0] / self.sums[3])) if self.samples else None

    @property
    def top1(self) -> float | None:
        """Share of the samples whose label came first, 0 to 1."""
        return float(self.sums[1] / self.sums[3]) if self.samples else None

    @property
    def top5(self) -> float | None:
        return float(self.sums[2] / self.sums[3]) if self.samples else None


def counts(loss: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of one batch: loss x samples, top-1 hits, top-5 hits, samples; float64, shape (4,)."""
    top = outputs.topk(min(5, outputs.shape[1])).indices == labels.view(-1, 1)
    samples = len(labels)
    hits = [top[:, 0].sum(), top.sum(), labels.new_tensor(samples)]
    return torch.stack([loss.detach().float() * samples, *hits]).double()


class Trainer:
    """Trains `model` by SGD with momentum, a linear warm-up and a cosine to 0 over `total_steps`.

    All `ranks` take each step together. Their shares of a batch may differ: each sample counts the same.
    """

    def __init__(
        self, model: nn.Module, compute: Compute, settings: TrainSettings, ranks: Ranks, *, total_steps: int
    ) -> None:
        self._compute = compute
        self._settings = settings
        self._ranks = ranks
        self._total_steps = total_steps
        self.model = model.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = (
            AveragedModel(self.model, multi_avg_fn=_ema(settings.ema_decay), use_buffers=True)
            if settings.ema_decay
            else None
        )
        # No weight decay on biases and batch norm: "Bag of Tricks for Image Classification", section 3.1.
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            fused=compute.cuda or None,
        )
        self.schedule = LambdaLR(self.optimizer, self._lr_factor)
        wrapped = DistributedDataParallel(self.model) if ranks.world > 1 else self.model
        self._forward: Any = torch.compile(wrapped) if settings.compile else wrapped
        self._train_loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        self._val_loss = nn.CrossEntropyLoss()

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_peak_lr(self, lr: float) -> None:
        """Changes the peak that the schedule scales."""
        self.schedule.base_lrs = [lr] * len(self.schedule.base_lrs)
        for group, factor in zip(self.optimizer.param_groups, self.schedule.lr_lambdas, strict=True):
            group["lr"] = lr * factor(self.schedule.last_epoch)

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, meter: EpochMeter, *, samples: int, update: bool
    ) -> torch.Tensor:
        """One forward and backward pass, and with `update` the optimizer's step; gives the loss, on the device.

        `samples` is how many all ranks have in this batch, and the loss is the mean over them. A rank without any
        takes part all the same. Raises ConsoleError when the device's memory does not hold the batch.
        """
        own = len(labels)
        if not own:
            images, labels = self._stand_in(images)
        # Batch norm has no statistics of a single picture of 32 px: such a batch sees the running ones.
        self._forward.train(own > 1)
        with self._ranks.together(), self._memory_errors(own), self._collective(update):
            with self._compute.autocast():
                outputs = self._forward(images)
                loss = self._train_loss(outputs, labels)
            # The ranks' gradients are averaged; weighted so, that is the mean over the samples.
            weight = own * self._ranks.world / samples / self._settings.accumulate
            self._compute.scaler.scale(loss * weight).backward()
        counted = self._ranks.sum(counts(loss, outputs.detach(), labels) * (own > 0))
        meter.add(counted)
        if update:
            self._compute.scaler.step(self.optimizer)
            self._compute.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if self._average is not None:
                self._average.update_parameters(self.model)
        self.schedule.step()
        return counted[0] / counted[3]

    @torch.no_grad()
    def validate(self, images: torch.Tensor, labels: torch.Tensor, meter: EpochMeter) -> None:
        """Adds one batch of the validation split, seen by the averaged model where there is one."""
        model: nn.Module = self.model if self._average is None else self._average
        model.eval()
        own = len(labels)
        if not own:
            images, labels = self._stand_in(images)
        with self._memory_errors(own), self._compute.autocast():
            outputs = model(images)
            loss = self._val_loss(outputs, labels)
        meter.add(self._ranks.sum(counts(loss, outputs, labels) * (own > 0)))

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint must hold to go on exactly, as plain values and tensors."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"base_lrs": list(self.schedule.base_lrs), "last_epoch": self.schedule.last_epoch},
            "scaler": self._compute.scaler.state_dict(),
        }
        if self._average is not None:
            state["average"] = self._average.state_dict()
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from `state`. Raises KeyError, ValueError or RuntimeError when it does not fit this model."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.base_lrs = list(state["schedule"]["base_lrs"])
        self.schedule.last_epoch = int(state["schedule"]["last_epoch"])
        self.set_peak_lr(float(self.schedule.base_lrs[0]))
        if state["scaler"]:
            self._compute.scaler.load_state_dict(state["scaler"])
        if self._average is not None and "average" in state:
            self._average.load_state_dict(state["average"])

    def _lr_factor(self, step: int) -> float:
        """Share of the peak at `step` (from 0): linear warm-up, then half a cosine."""
        warmup = min(self._settings.warmup_steps, self._total_steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self._total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _stand_in(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One black picture and its label, which count for nothing."""
        return images.new_zeros(1, *images.shape[1:]), torch.zeros(1, dtype=torch.int64, device=images.device)

    def _collective(self, update: bool) -> contextlib.AbstractContextManager[None]:
        """Between updates the ranks keep their gradients to themselves."""
        if update or not isinstance(self._forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._forward.no_sync()

    @contextlib.contextmanager
    def _memory_errors(self, batch: int) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ConsoleError(
                f"The memory of {self._compute.device} does not hold a batch of {batch}.",
                remedy=f"Try --batch-size {max(1, batch // 2)}, or --accumulate 2 with it for the same result.",
            ) from error


def _ema(decay: float) -> Any:
    return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]


def finite(value: float) -> float | None:
    """The value, or None for what JSON cannot hold."""
    return value if math.isfinite(value) else None
