"""Faster ways to run a training step: as a CUDA graph, and compiled by torch.compile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

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


class CompiledForward:
    """Runs a model compiled for the batch sizes that a run repeats; smaller batches, such as an epoch's last, as it is.

    Compiling takes 10 s to minutes for each shape, so no batch is compiled that is smaller than one seen before. Where
    it fails, such as without a C++ compiler, `on_failure` gets the reason and training continues without.
    """

    def __init__(self, eager: nn.Module, on_failure: Callable[[str], None]) -> None:
        self._eager = eager
        self._on_failure = on_failure
        self._sizes: set[int] = set()  # numbers of samples that are compiled
        self._compiled: Any = None
        try:
            self._compiled = torch.compile(eager, dynamic=False)
        except RuntimeError as error:  # such as for this version of Python
            self._fail(error)

    def compiles(self, samples: int) -> bool:
        """Whether a batch of this size would be compiled first."""
        return self._compiled is not None and samples > max(self._sizes, default=0)

    def __call__(self, images: torch.Tensor) -> Any:
        """The outputs of the model."""
        samples = len(images)
        if self.compiles(samples):
            self._sizes.add(samples)
        if self._compiled is None or samples not in self._sizes:
            return self._eager(images)
        try:
            return self._compiled(images)
        except Exception as error:
            if not _is_of_the_compiler(error):
                raise
            self._compiled = None
            self._fail(error)
            return self._eager(images)

    def _fail(self, error: Exception) -> None:
        log.info("torch.compile failed", exc_info=error)
        cause = getattr(error, "inner_exception", error)
        self._on_failure(str(cause).strip().partition("\n")[0].rstrip(".:") or type(cause).__name__)


def _is_of_the_compiler(error: Exception) -> bool:
    """Whether torch.compile raised the error while it compiled; the model itself may also raise any error."""
    import torch._dynamo.exc as dynamo  # late: it takes seconds, and only a compiled run needs it

    return isinstance(error, dynamo.TorchDynamoException)
