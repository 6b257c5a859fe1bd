"""The trainer: model, optimizer and schedule; training steps, as a CUDA graph where that helps, and validation."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ossconsole.training.compute.device import DeviceContext
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.settings import TrainSettings

log = logging.getLogger(__name__)

ForwardBackward: TypeAlias = Callable[[torch.Tensor, torch.Tensor, "float | torch.Tensor"], torch.Tensor]
"""Takes images, labels and the weight of the loss. Accumulates gradients, and returns a tensor of results."""

_EAGER_STEPS = 5  # cuDNN selects its algorithms in the first steps, which a graph must not record


class StepGraph:
    """Runs `action`: eagerly at first, then as a CUDA graph, which the host launches with one call.

    ResNet-18 needs about 400 kernels per step. Launching them took the host 10.9 ms at batch 64, longer than the GPU
    needs to run them; with a graph it takes 1.9 ms (H100, torch 2.11). Only the first shape that repeats gets a graph;
    others, such as the short batch at the end of an epoch, stay eager. The gradients must stay the same tensors: zero
    them in place.
    """

    def __init__(self, action: ForwardBackward) -> None:
        self._action = action
        self._eager_steps: dict[torch.Size, int] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed = False

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
        """The results of this batch, valid until the next call."""
        graph = self._graph
        if graph is None and not self._failed and self._repeats(images.shape):
            graph = self._graph = self._capture(images, labels)
        if graph is None or images.shape != self._images.shape:
            return self._action(images, labels, weight)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._weight.fill_(weight)
        graph.replay()
        return self._results

    def _repeats(self, shape: torch.Size) -> bool:
        """Whether enough batches of this shape have run eagerly."""
        seen = self._eager_steps[shape] = self._eager_steps.get(shape, 0) + 1
        return seen > _EAGER_STEPS

    def _capture(self, images: torch.Tensor, labels: torch.Tensor) -> torch.cuda.CUDAGraph | None:
        """Records the action without running it; None when that fails."""
        try:
            graph = torch.cuda.CUDAGraph()
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
            self._weight = torch.ones((), device=images.device)
            # The checkpoint thread may use CUDA meanwhile: it waits for events.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._results = self._action(self._images, self._labels, self._weight)
        except RuntimeError as error:  # such as out of memory: a graph does not share its activations
            log.warning("Training continues without a CUDA graph: %s", error)
            self._failed = True
            return None
        return graph


@dataclass
class EpochMeter:
    """Sums over one split of one epoch, kept on the device so that no step waits for them.

    `sums` are those of `counts`, over all ranks: float64, shape (4,).
    """

    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))

    def add(self, counts: torch.Tensor) -> None:
        """Adds the `counts` of one batch."""
        self.sums = self.sums.to(counts.device) + counts

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


def counts(loss: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss x samples, top-1 hits, top-5 hits and samples of one batch; float64, shape (4,)."""
    top = outputs.topk(min(5, outputs.shape[1])).indices == labels.view(-1, 1)
    samples = len(labels)
    hits = [top[:, 0].sum(), top.sum(), labels.new_full((), samples)]  # new_tensor would wait for the GPU
    return torch.stack([loss.detach().float() * samples, *hits]).double()


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

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Continues from a `state_dict` of the model, or of the AveragedModel that earlier versions saved."""
        state = {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
        self.model.load_state_dict(state)


class Trainer:
    """Trains `model` by SGD with momentum, a linear warm-up and a cosine to 0 over `total_steps`.

    All ranks of `group` take each step together. Their shares of a batch may differ: each sample counts the same.
    Several steps may make one update of the weights; their learning rate is that of the first of them.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: DeviceContext,
        settings: TrainSettings,
        group: ProcessGroup,
        *,
        total_steps: int,
    ) -> None:
        self._compute = compute
        self._settings = settings
        self._group = group
        self._total_steps = total_steps
        self._steps = 0
        self._updated = 0  # the step of the last update
        self._accumulated = False  # whether gradients of steps since then are pending
        self._peak_lr = settings.learning_rate
        self.model = model.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = Average(self.model, settings.ema_decay) if settings.ema_decay else None
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
        self._fill_momentum()
        self._schedule_lr()
        self._ddp = DistributedDataParallel(self.model) if group.world > 1 else None
        wrapped = self._ddp or self.model
        self._forward: Any = torch.compile(wrapped) if settings.compile else wrapped
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
        self._accumulated = False
        # Batch norm has no statistics of a single image of 32 px: such a batch uses the running ones.
        self._forward.train(own > 1)
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
        self._steps += 1
        self._accumulated = not update
        if update:
            self._updated = self._steps
            self._schedule_lr()
        return counted[0] / counted[3]

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
        self._compute.scaler.step(self.optimizer)
        self._compute.scaler.update()
        self.optimizer.zero_grad(set_to_none=self._graph is None)
        if self._average is not None:
            self._average.update()

    @torch.no_grad()
    def validate(self, images: torch.Tensor, labels: torch.Tensor, meter: EpochMeter) -> None:
        """Adds one batch of the validation split to `meter`, evaluated by the averaged model if there is one."""
        model: nn.Module = self.model if self._average is None else self._average.model
        model.eval()
        own = len(labels)
        if not own:
            images, labels = self._dummy_batch(images)
        with self._compute.device_errors(), self._compute.autocast():
            outputs = model(images)
            loss = self._val_loss(outputs, labels)
        meter.add(self._group.all_reduce(counts(loss, outputs, labels) * (own > 0)))

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

        Between two updates it includes the accumulated gradients; call `reduce_pending_gradients` before.
        """
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {
                "steps": self._steps,
                "updated": self._updated,
                "peak": self._peak_lr,
                "asked": self._settings.learning_rate,
            },
            "scaler": self._compute.scaler.state_dict(),
            "gradients": {},
        }
        if self._accumulated:
            state["gradients"] = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        if self._average is not None:
            state["average"] = self._average.model.state_dict()
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Continues from `state` with the settings of this run.

        A peak learning rate changed during the run is kept while the settings name the same one. Raises KeyError,
        ValueError or RuntimeError when the state does not fit this model.
        """
        self.model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self._fill_momentum()
        for name, parameter in self.model.named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter)
        self._accumulated = bool(state["gradients"])
        schedule = state["schedule"]
        self._steps, self._updated = int(schedule["steps"]), int(schedule["updated"])
        if schedule["asked"] == self._settings.learning_rate:
            self._peak_lr = float(schedule["peak"])
        self._schedule_lr()
        if state["scaler"]:
            self._compute.scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load(state.get("average") or state["model"])

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
        warmup = min(self._settings.warmup_steps, self._total_steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self._total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _dummy_batch(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One black image and a label, for a rank without samples: collectives need all ranks."""
        return images.new_zeros(1, *images.shape[1:]), torch.zeros(1, dtype=torch.int64, device=images.device)

    def _collective(self, update: bool) -> contextlib.AbstractContextManager[None]:
        """Disables the gradient all-reduce of DDP between updates."""
        return contextlib.nullcontext() if update or self._ddp is None else self._ddp.no_sync()


def finite(value: float) -> float | None:
    """The value, None when it is NaN or infinite, which JSON cannot represent."""
    return value if math.isfinite(value) else None
