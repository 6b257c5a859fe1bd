"""Forward and backward pass of a training step as a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

import torch

log = logging.getLogger(__name__)

ForwardBackward: TypeAlias = Callable[[torch.Tensor, torch.Tensor, "float | torch.Tensor"], torch.Tensor]
"""Takes images, labels and the weight of the loss. Accumulates gradients, and gives a tensor of results."""

_EAGER_STEPS = 5  # cuDNN chooses its algorithms in the first steps, which a graph must not record


class StepGraph:
    """Runs `action`: eagerly at first, then as a CUDA graph, which the host launches at once.

    ResNet-18 takes about 400 kernels per step. To launch them took the host 10.9 ms at batch 64, longer than the GPU
    needs to run them; with a graph it takes 1.9 ms (H100, torch 2.11). Only the first shape that repeats gets
    a graph; others, such as the short batch at an epoch's end, stay eager. The gradients must stay the same tensors:
    zero them in place.
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
        """Records the action without running it; None where that is not possible."""
        try:
            graph = torch.cuda.CUDAGraph()
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
            self._weight = torch.ones((), device=images.device)
            # Other threads may use CUDA meanwhile: the one that writes a checkpoint waits for events.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._results = self._action(self._images, self._labels, self._weight)
        except RuntimeError as error:  # out of memory is one: a graph keeps its activations to itself
            log.warning("Training continues without a CUDA graph: %s", error)
            self._failed = True
            return None
        return graph
