"""The trainer: model, optimizer and schedule; training steps and validation, and the sums over them."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import StochasticDepth

from ossconsole.training.compute.acceleration import CompiledForward, StepGraph
from ossconsole.training.compute.device import DeviceContext
from ossconsole.training.compute.weights_file import without_wrapper
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.settings import TrainSettings

log = logging.getLogger(__name__)

_WARMUP = 0.05
"""Share of the steps for the automatic warm-up: 5 of the 90 epochs of "Accurate, Large Minibatch SGD"."""

_RANDOM = (nn.modules.dropout._DropoutNd, StochasticDepth)  # noqa: SLF001 - the base of all dropout layers


@dataclass
class EpochMeter:
    """Sums over one split of one epoch, kept on the device so that no step waits for them.

    `sums` are those of `counts`, over all ranks: float64, shape (4,). `by_class` are those of `class_counts`: float64,
    shape (2, classes), None for a split for which they are not counted.
    """

    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    by_class: torch.Tensor | None = None

    def add(self, counts: torch.Tensor, by_class: torch.Tensor | None = None) -> None:
        """Adds the `counts` of one batch, and its `class_counts`."""
        self.sums = self.sums.to(counts.device) + counts
        if by_class is not None:
            self.by_class = by_class if self.by_class is None else self.by_class + by_class

    @property
    def samples(self) -> int:
        """The number of samples; waits for the device."""
        return int(self.sums[3])

    @property
    def loss(self) -> float | None:
        """The mean loss; None before the first sample, or when it is not finite."""
        return finite(float(self.sums[0] / self.sums[3])) if self.samples else None

    @property
    def top1(self) -> float | None:
        """Top-1 accuracy, 0 to 1; None before the first sample."""
        return float(self.sums[1] / self.sums[3]) if self.samples else None

    @property
    def top5(self) -> float | None:
        """Top-5 accuracy, 0 to 1; None before the first sample."""
        return float(self.sums[2] / self.sums[3]) if self.samples else None

    def class_top1(self, classes: Sequence[str]) -> dict[str, float]:
        """Top-1 accuracy by class, 0 to 1; without classes that have no samples."""
        if self.by_class is None:
            return {}
        hits, samples = self.by_class.tolist()
        return {name: round(hit / count, 4) for name, hit, count in zip(classes, hits, samples, strict=True) if count}


def counts(loss: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss x samples, top-1 hits, top-5 hits and samples of one batch; float64, shape (4,)."""
    top = outputs.topk(min(5, outputs.shape[1])).indices == labels.view(-1, 1)
    samples = len(labels)
    hits = [top[:, 0].sum(), top.sum(), labels.new_full((), samples)]  # new_tensor would wait for the GPU
    return torch.stack([loss.detach().float() * samples, *hits]).double()


def class_counts(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Top-1 hits and samples of one batch by class; float64, shape (2, classes)."""
    hits = (outputs.argmax(1) == labels).double()
    counted = torch.zeros(2, outputs.shape[1], dtype=torch.float64, device=outputs.device)
    counted.index_add_(1, labels, torch.stack([hits, torch.ones_like(hits)]))  # bincount would wait for the GPU
    return counted


def gradient_norm(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """The Euclidean norm of all gradients together, shape (), on their device; the host does not wait for it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # noqa: SLF001
    return norm


class Average:
    """`model`: the exponential moving average (EMA) of another model's weights and batch norm statistics.

    torch's AveragedModel waits for the GPU in each update, because it copies or compares its count of updates.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(source).requires_grad_(False)
        self._weight = 1 - decay
        pairs = list(zip(self.model.state_dict().values(), source.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._integers = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the current weights."""
        torch._foreach_lerp_([own for own, _ in self._floats], [new for _, new in self._floats], self._weight)
        if self._integers:
            torch._foreach_copy_([own for own, _ in self._integers], [new for _, new in self._integers])


class Trainer:
    """Trains `model` by SGD with momentum, a linear warm-up and a cosine to 0 over `total_steps`.

    All ranks of `group` take each step together. Their shares of a batch may differ: each sample counts the same.
    Several steps may make one update of the weights; their learning rate is that of the first of them.

    Parameters that require no gradients are frozen. If there are any, the whole model stays in evaluation mode: batch
    norm then uses the running statistics of the weights and leaves them unchanged, and dropout does nothing.
    `on_warning` gets a message and a remedy.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: DeviceContext,
        settings: TrainSettings,
        group: ProcessGroup,
        *,
        total_steps: int,
        on_warning: Callable[[str, str], object] = log.warning,
    ) -> None:
        self._compute = compute
        self._settings = settings
        self._group = group
        self._total_steps = total_steps
        self._steps = 0
        self._updated = 0  # the step of the last update
        self._accumulated = False  # whether gradients of steps since then are pending
        self._peak_lr = self._asked_lr = settings.peak_lr(group.world)
        self.model = model.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = Average(self.model, settings.ema_decay) if settings.ema_decay else None
        # No weight decay on biases and batch norm: "Bag of Tricks for Image Classification", section 3.1.
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._frozen = len(self._trained) < len(list(self.model.parameters()))
        self._draws = any(isinstance(module, _RANDOM) for module in self.model.modules())
        decayed = [p for p in self._trained if p.ndim > 1]
        plain = [p for p in self._trained if p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=self._peak_lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            fused=compute.cuda or None,
        )
        self._fill_momentum()
        self._schedule_lr()
        self.grad_norm: torch.Tensor | None = None
        """The norm of the gradients of the last update before clipping, on the device."""
        self._ddp = _distributed(self.model) if group.world > 1 else None
        self._buckets_ordered = self._ddp is None
        self._eager: nn.Module = self._ddp or self.model
        self._compiled = CompiledForward(self._eager, _not_compiled(on_warning)) if settings.compile else None
        self._forward: Callable[[torch.Tensor], Any] = self._compiled or self._eager
        # DDP and compiled models launch their work in other ways. Only fp16: in fp32 the losses differed from those of
        # eager steps, by 5 % after one update, for an unknown reason (H100, torch 2.11).
        graphed = compute.cuda and compute.precision == "fp16" and group.world == 1 and not settings.compile
        self._graph = StepGraph(self._forward_backward) if graphed else None
        self._train_loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        self._val_loss = nn.CrossEntropyLoss()

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def peak_lr(self) -> float:
        """The peak that the schedule scales."""
        return self._peak_lr

    def compiles(self, samples: int) -> bool:
        """Whether a batch of this size is compiled before it is computed, which takes 10 s to minutes."""
        return self._compiled is not None and self._compiled.compiles(samples)

    def set_peak_lr(self, lr: float) -> None:
        """Changes the peak that the schedule scales."""
        self._peak_lr = lr
        self._schedule_lr()

    def step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        meter: EpochMeter,
        *,
        samples: int,
        share: float = 1.0,
        update: bool = True,
    ) -> torch.Tensor:
        """One forward and backward pass, and with `update` the optimizer's step; returns the loss, on the device.

        `samples` is the number of samples of all ranks in this batch, `share` their part of the samples of the update.
        The loss is the mean over the batch. A rank without samples takes part too. Raises ConsoleError when the device
        is out of memory.
        """
        own = len(labels)
        if not own:
            images, labels = self._dummy_batch(images)
        if not self._buckets_ordered:
            self._order_buckets(images[:1])
        self._accumulated = False
        # Batch norm has no statistics of a single image of 32 px: such a batch uses the running ones.
        self._eager.train(own > 1 and not self._frozen)
        if self._draws:
            # A function of the step, so that a resumed run drops the same values.
            seed = self._settings.seed << 40 | self._steps << 12 | self._group.rank_info.rank
            torch.manual_seed(seed % 2**64)
        # DDP averages the gradients of the ranks; with this weight that is the mean over the samples.
        weight = own * self._group.world / samples * share
        run = self._graph if self._graph is not None and own > 1 else self._forward_backward
        with self._group.translate_errors(), self._compute.device_errors(), self._collective(update):
            counted = run(images, labels, weight)
        counted = self._group.all_reduce(counted * (own > 0))
        meter.add(counted)
        if update:
            with self._compute.device_errors():
                self._update()
        self._complete_step(update=update, pending=not update)
        return counted[0] / counted[3]

    def skip(self, *, update: bool) -> None:
        """A step without samples on any rank; an `update` then has the gradients of the steps before, if any."""
        if update and self._accumulated:
            self.reduce_pending_gradients()
            with self._compute.device_errors():
                self._update()
        self._complete_step(update=update, pending=self._accumulated and not update)

    def _complete_step(self, *, update: bool, pending: bool) -> None:
        self._steps += 1
        self._accumulated = pending
        if update:
            self._updated = self._steps
            self._schedule_lr()

    def _forward_backward(
        self, images: torch.Tensor, labels: torch.Tensor, weight: float | torch.Tensor
    ) -> torch.Tensor:
        """Adds the gradients of the mean loss times `weight`; returns the `counts` of the batch."""
        with self._compute.autocast():
            outputs = self._forward(images)
            loss = self._train_loss(outputs, labels)
        self._compute.scaler.scale(loss * weight).backward()
        return counts(loss, outputs.detach(), labels)

    def _update(self) -> None:
        self._compute.scaler.unscale_(self.optimizer)
        self.grad_norm = gradient_norm(self._trained)
        if self._settings.clip_norm:
            factor = (self._settings.clip_norm / self.grad_norm).clamp(max=1.0)
            torch._foreach_mul_([p.grad for p in self._trained if p.grad is not None], factor)
        self._compute.scaler.step(self.optimizer)
        self._compute.scaler.update()
        self.optimizer.zero_grad(set_to_none=self._graph is None)
        if self._average is not None:
            self._average.update()

    @torch.no_grad()
    def validate(self, images: torch.Tensor, labels: torch.Tensor, meter: EpochMeter) -> None:
        """Adds one batch of the validation split to `meter`, evaluated by the averaged model if there is one."""
        model = self._evaluated
        model.eval()
        own = len(labels)
        if not own:
            images, labels = self._dummy_batch(images)
        with self._compute.device_errors(), self._compute.autocast():
            outputs = model(images)
        outputs = outputs.float()  # in half precision, many of a thousand outputs are equal
        loss = self._val_loss(outputs, labels)
        by_class = class_counts(outputs, labels)
        counted = torch.cat([counts(loss, outputs, labels), by_class.view(-1)])
        counted = self._group.all_reduce(counted * (own > 0))
        meter.add(counted[:4], counted[4:].view_as(by_class))

    @torch.no_grad()
    def reduce_pending_gradients(self) -> None:
        """All ranks: averages the gradients accumulated so far, so that a checkpoint holds those of all ranks."""
        if self._group.world > 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    self._group.all_reduce(parameter.grad).div_(self._group.world)

    def broadcast_buffers(self) -> None:
        """All ranks: replaces the batch norm statistics, which differ by rank, with those of rank 0.

        Checkpoints hold those of rank 0, and validation must evaluate the model of the checkpoint.
        """
        for model in (self.model, self._average.model if self._average is not None else None):
            for buffer in model.buffers() if model is not None else ():
                self._group.broadcast(buffer)

    def state(self) -> dict[str, Any]:
        """Everything needed to resume exactly, as plain values and tensors, which the next step changes.

        `model` has the weights that `validate` evaluates: the averaged ones if there are any, and training then resumes
        from those in `current`. Between two updates it includes the accumulated gradients; call
        `reduce_pending_gradients` before.
        """
        state: dict[str, Any] = {
            "model": self._evaluated.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {
                "steps": self._steps,
                "updated": self._updated,
                "peak": self._peak_lr,
                "asked": self._asked_lr,
            },
            "scaler": self._compute.scaler.state_dict(),
            "gradients": {},
        }
        if self._accumulated:
            state["gradients"] = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        if self._average is not None:
            state["current"] = self.model.state_dict()
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Continues from `state` with the settings of this run.

        A peak learning rate changed during the run is kept while the settings name the same one. Raises KeyError,
        ValueError or RuntimeError when the state does not fit this model.
        """
        current, average = state.get("current"), state["model"]
        if current is None:  # no averaged weights, or saved by an earlier version
            current, average = state["model"], state.get("average") or state["model"]
        self.model.load_state_dict(current)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self._fill_momentum()
        for name, parameter in self.model.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter)
        self._accumulated = bool(state["gradients"])
        schedule = state["schedule"]
        self._steps, self._updated = int(schedule["steps"]), int(schedule["updated"])
        if schedule["asked"] == self._asked_lr:
            self._peak_lr = float(schedule["peak"])
        self._schedule_lr()
        if state["scaler"]:
            self._compute.scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.model.load_state_dict(without_wrapper(average))

    @property
    def _evaluated(self) -> nn.Module:
        return self.model if self._average is None else self._average.model

    def _fill_momentum(self) -> None:
        """Gives each parameter without one a momentum buffer of zeros, with which a first step is what it is without.

        The fused SGD makes its buffers in the first step, uninitialised, and leaves them so where GradScaler skips that
        step for an overflow; the next step then adds what the memory held to the weights (seen with torch 2.14).
        """
        for group in self.optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                state = self.optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)

    def _schedule_lr(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._peak_lr * self._lr_factor(self._updated)

    def _lr_factor(self, step: int) -> float:
        """Share of the peak at `step` (from 0): linear warm-up, then half a cosine."""
        warmup = self._settings.warmup_steps
        warmup = round(_WARMUP * self._total_steps) if warmup < 0 else min(warmup, self._total_steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self._total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _order_buckets(self, image: torch.Tensor) -> None:
        """All ranks, once: DDP puts its gradients in the order in which they arrive, which it finds in its first step.

        Sums of more than two ranks depend on the place of a gradient. Without this, the first step of a resumed run
        would round other than the same step of an uninterrupted one.
        """
        pending = [parameter.grad for parameter in self._trained]
        self._eager.eval()  # the batch norm statistics stay
        self.optimizer.zero_grad()
        with self._group.translate_errors(), self._compute.device_errors():
            with self._compute.autocast():
                outputs = self._eager(image)
            outputs.sum().backward()
        for parameter, gradient in zip(self._trained, pending, strict=True):
            parameter.grad = gradient
        self._buckets_ordered = True

    def _dummy_batch(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One black image and a label, for a rank without samples: collectives need all ranks."""
        return images.new_zeros(1, *images.shape[1:]), torch.zeros(1, dtype=torch.int64, device=images.device)

    def _collective(self, update: bool) -> contextlib.AbstractContextManager[None]:
        """Disables the gradient all-reduce of DDP between updates."""
        return contextlib.nullcontext() if update or self._ddp is None else self._ddp.no_sync()


def _distributed(model: nn.Module) -> DistributedDataParallel:
    """The model with averaged gradients.

    Its batch norm statistics stay those of each rank until `broadcast_buffers`, as torch would otherwise copy them from
    rank 0 before each forward pass. The name of that option is another one from torch 2.14 on.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)


def _not_compiled(on_warning: Callable[[str, str], object]) -> Callable[[str], None]:
    def warn(reason: str) -> None:
        on_warning(
            f"The model is not compiled: {reason}.",
            "The run continues without --compile. It needs a C++ compiler, such as g++, and the headers of Python.",
        )

    return warn


def finite(value: float) -> float | None:
    """The value, None when it is NaN or infinite, which JSON cannot represent."""
    return value if math.isfinite(value) else None
