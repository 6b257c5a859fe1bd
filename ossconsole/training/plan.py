"""The order of a run's samples, determined by the seed, so that a run can resume at any batch."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ossconsole.training.settings import TrainSettings

NEIGHBOURS = 16
"""Batches per window of stored order: one open tar then serves many batches."""


class Split(str, enum.Enum):
    """The splits of a dataset."""

    TRAIN = "train"
    VAL = "val"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class BatchRequest:
    """The samples of one batch. `number` counts from 0 over all epochs as planned, `epoch` from 1.

    `index` is the batch's position in its epoch and split, `last` marks the last one there; `indices` are rows of the
    manifest's split, int64. Training updates the weights after batches with `update`; `share` is this batch's part of
    the samples of its update.
    """

    number: int
    epoch: int
    split: Split
    index: int
    indices: npt.NDArray[np.int64]
    last: bool
    update: bool = True
    share: float = 1.0


class Requests(Protocol):
    """The source of a loader's requests."""

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        """The requests from number `start` on, in ascending order of their numbers."""


class Plan:
    """All batches of a run in order: for each epoch the shuffled training split, then the validation split.

    The last batch of a split may be short. `max_steps` cuts the last epoch's training short, not its validation.
    With `world` > 1 each sample is read by exactly one rank per epoch, and all ranks do the same number of steps.
    `stored_order` keeps neighbours in storage in one batch, and batches in windows of NEIGHBOURS: an epoch begins at a
    random sample, and shuffles the windows and the batches within them.
    """

    def __init__(
        self,
        settings: TrainSettings,
        train_samples: int,
        val_samples: int,
        *,
        rank: int = 0,
        world: int = 1,
        stored_order: bool = False,
    ) -> None:
        self._settings = settings
        self._sizes = {Split.TRAIN: train_samples, Split.VAL: val_samples}
        self._rank = rank
        self._world = world
        self._stored_order = stored_order
        self.steps_per_epoch = self._batches(Split.TRAIN)
        self.batches_per_epoch = self.steps_per_epoch + self._batches(Split.VAL)
        planned = settings.epochs * self.steps_per_epoch
        self.total_steps = min(planned, settings.max_steps) if settings.max_steps else planned
        self.epochs = -(-self.total_steps // self.steps_per_epoch)

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        """The requests from batch number `start` on."""
        for epoch in range(start // self.batches_per_epoch + 1, self.epochs + 1):
            for request in self._epoch(epoch):
                if request.number >= start:
                    yield request

    def number_after(self, step: int, *, ended: bool) -> int:
        """The number of the first batch after training step `step` (from 1; 0 is before the run).

        `ended` means that the epoch was also validated, if that step was its last.
        """
        if step and not ended:
            epoch, within = divmod(step - 1, self.steps_per_epoch)
            return epoch * self.batches_per_epoch + (self.steps_per_epoch if step == self._end(epoch) else within + 1)
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch * self.batches_per_epoch + within

    def _end(self, epoch: int) -> int:
        """The last training step of an epoch, here counted from 0."""
        return min((epoch + 1) * self.steps_per_epoch, self.total_steps)

    def _epoch(self, epoch: int) -> Iterator[BatchRequest]:
        first = (epoch - 1) * self.batches_per_epoch
        steps = self._end(epoch - 1) - (epoch - 1) * self.steps_per_epoch
        for split, batches in ((Split.TRAIN, steps), (Split.VAL, self._batches(Split.VAL))):
            order = self._order(split, epoch)
            for index in range(batches):
                last = index == batches - 1
                yield BatchRequest(
                    number=first + index,
                    epoch=epoch,
                    split=split,
                    index=index,
                    indices=self._share(order, index),
                    last=last,
                    update=last or (index + 1) % self._settings.accumulate == 0,
                    share=self._share_of_update(split, index, batches),
                )
            first += self.steps_per_epoch

    def _share_of_update(self, split: Split, index: int, batches: int) -> float:
        """This batch's part of the samples of its update; the last batch and the last update may be short."""
        first = index - index % self._settings.accumulate
        after = min(first + self._settings.accumulate, batches)
        span = self._settings.batch_size * self._world
        bounds = [min(at * span, self._sizes[split]) for at in (index, index + 1, first, after)]
        return (bounds[1] - bounds[0]) / (bounds[3] - bounds[2])

    def _order(self, split: Split, epoch: int) -> npt.NDArray[np.int64]:
        size = self._sizes[split]
        if split is Split.VAL:
            return np.arange(size, dtype=np.int64)
        random = np.random.default_rng([self._settings.seed, epoch])
        if not self._stored_order:
            return random.permutation(size)
        rolled = np.roll(np.arange(size, dtype=np.int64), random.integers(size))
        whole = size - size % self._settings.batch_size
        batches = rolled[:whole].reshape(-1, self._settings.batch_size)
        windows = [random.permutation(batches[at : at + NEIGHBOURS]) for at in range(0, len(batches), NEIGHBOURS)]
        shuffled = [windows[number].ravel() for number in random.permutation(len(windows))]
        return np.concatenate([*shuffled, rolled[whole:]])

    def _share(self, order: npt.NDArray[np.int64], index: int) -> npt.NDArray[np.int64]:
        """This rank's part of global batch `index`; the parts differ by at most one sample."""
        span = self._settings.batch_size * self._world
        return np.array_split(order[index * span : (index + 1) * span], self._world)[self._rank]

    def _batches(self, split: Split) -> int:
        span = self._settings.batch_size * self._world
        return -(-self._sizes[split] // span)
