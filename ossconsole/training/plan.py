"""The order of a run's samples, determined by the seed, so that a run can resume at any batch."""

from __future__ import annotations

import enum
import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ossconsole.telemetry.events import SHARD_LANES
from ossconsole.training.settings import TrainSettings

LANES = SHARD_LANES
"""Windows that are read side by side: batch i of a split is from lane i % LANES, which has one window after the other.

It does not depend on the number of readers, so the order does not either. No more readers than lanes have work.
"""

WINDOW_BYTES = 16 << 20
"""A window has as many whole batches of all ranks together as fit into these bytes."""

_PAIR_BYTES = 128 << 20
"""It has at least two batches, so that it can be shuffled, where two fit into these bytes."""


class Split(str, enum.Enum):
    """The splits of a dataset."""

    TRAIN = "train"
    VAL = "val"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Window:
    """A run of neighbours in storage, with all samples of several batches: this rank's part of it.

    These are `count` rows of `split` from `first` on, modulo its size. All batches of a window have its `number`, and
    no other window of the run has it.
    """

    number: int
    split: Split
    first: int
    count: int


@dataclass(frozen=True)
class BatchRequest:
    """The samples of one batch. `number` counts from 0 over all epochs as planned, `epoch` from 1.

    `index` is the batch's position in its epoch and split, `last` marks the last one there; `indices` are rows of the
    manifest's split, int64. Training updates the weights after batches with `update`; `share` is this batch's part of
    the samples of its update. `window` has all of them, None for single objects; the windows of a `lane` are read one
    after the other. `next_window` is the lane's next one, perhaps of the next epoch, see `name_next_windows`.
    """

    number: int
    epoch: int
    split: Split
    index: int
    indices: npt.NDArray[np.int64]
    last: bool
    update: bool = True
    share: float = 1.0
    lane: int = 0
    window: Window | None = None
    next_window: Window | None = None


class Requests(Protocol):
    """The source of a loader's requests."""

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        """The requests from number `start` on, in ascending order of their numbers."""


class Plan:
    """All batches of a run in order: for each epoch the shuffled training split, then the validation split.

    The last batch of a split may be short. `max_steps` cuts the last epoch's training short, not its validation.
    With `world` > 1 each sample is read by exactly one rank per epoch, and all ranks do the same number of steps.

    For samples in tars, `tar_bytes` has the bytes of each split's tars, and batches come from windows: an epoch begins
    at a random sample, cuts the split into windows, shuffles the windows, and the samples within each. A batch takes
    one sample of each group of neighbours in its window, so that the parts of the ranks are neighbours too. This order
    depends on the size of the batch of all ranks together, and not on the number of ranks or readers.
    """

    def __init__(
        self,
        settings: TrainSettings,
        train_samples: int,
        val_samples: int,
        *,
        rank: int = 0,
        world: int = 1,
        tar_bytes: Mapping[str, int] | None = None,
    ) -> None:
        self._settings = settings
        self._sizes = {Split.TRAIN: train_samples, Split.VAL: val_samples}
        self._rank = rank
        self._world = world
        self._tar_bytes = tar_bytes
        self._span = settings.batch_size * world
        self.steps_per_epoch = self._batches(Split.TRAIN)
        self.batches_per_epoch = self.steps_per_epoch + self._batches(Split.VAL)
        planned = settings.epochs * self.steps_per_epoch
        self.total_steps = min(planned, settings.max_steps) if settings.max_steps else planned
        self.epochs = -(-self.total_steps // self.steps_per_epoch)

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        """The requests from batch number `start` on."""
        epochs = range(start // self.batches_per_epoch + 1, self.epochs + 1)
        requests = (request for epoch in epochs for request in self._epoch(epoch) if request.number >= start)
        return requests if self._tar_bytes is None else name_next_windows(requests)

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
                indices, window = order.part(index, self._rank, self._world)
                yield BatchRequest(
                    number=first + index,
                    epoch=epoch,
                    split=split,
                    index=index,
                    indices=indices,
                    last=last,
                    update=last or (index + 1) % self._settings.accumulate == 0,
                    share=self._share_of_update(split, index, batches),
                    lane=index % LANES,
                    # By its number in the run: it has the split's, and `first` is the split's first batch.
                    window=replace(window, number=first + window.number) if window else None,
                )
            first += self.steps_per_epoch

    def _share_of_update(self, split: Split, index: int, batches: int) -> float:
        """This batch's part of the samples of its update; the last batch and the last update may be short."""
        first = index - index % self._settings.accumulate
        after = min(first + self._settings.accumulate, batches)
        bounds = [min(at * self._span, self._sizes[split]) for at in (index, index + 1, first, after)]
        return (bounds[1] - bounds[0]) / (bounds[3] - bounds[2])

    def _order(self, split: Split, epoch: int) -> _Order:
        size = self._sizes[split]
        random = None if split is Split.VAL else np.random.default_rng([self._settings.seed, epoch])
        if self._tar_bytes is None:
            rows = np.arange(size, dtype=np.int64) if random is None else random.permutation(size)
            return _Order(rows, self._span)
        return _StoredOrder(split, size, self._span, self._batches_per_window(split), random)

    def _batches_per_window(self, split: Split) -> int:
        assert self._tar_bytes is not None  # noqa: S101 - the samples are in tars
        batch_bytes = self._span * self._tar_bytes.get(split, 0) / max(1, self._sizes[split])
        least = 2 if 2 * batch_bytes <= _PAIR_BYTES else 1
        return max(least, int(WINDOW_BYTES / max(1, batch_bytes)))

    def _batches(self, split: Split) -> int:
        return -(-self._sizes[split] // self._span)


class SplitRequests:
    """The requests of a plan for one split; their numbers are those of the plan."""

    def __init__(self, plan: Plan, split: Split) -> None:
        self._plan = plan
        self._split = split

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        """The requests from number `start` on."""
        return (request for request in self._plan.requests(start) if request.split is self._split)


class _Order:
    """The rows of a split in the order of one epoch, in batches of `span` rows of all ranks together."""

    def __init__(self, rows: npt.NDArray[np.int64], span: int) -> None:
        self._rows = rows
        self._span = span

    def part(self, index: int, rank: int, world: int) -> tuple[npt.NDArray[np.int64], Window | None]:
        """The rows of a rank's part of batch `index`, shape (samples,), and its window; parts differ by at most one."""
        return self._parts(index, world)[rank], None

    def _parts(self, index: int, world: int) -> list[npt.NDArray[np.int64]]:
        return np.array_split(self._rows[index * self._span : (index + 1) * self._span], world)


class _StoredOrder(_Order):
    """An order in windows of at most `most` batches; without `random` it is not shuffled.

    The numbers of its windows are those of their first batches.
    """

    def __init__(self, split: Split, size: int, span: int, most: int, random: np.random.Generator | None) -> None:
        whole = size // span
        windows = _windows(whole, most)
        start = int(random.integers(size)) if random else 0
        self._split = split
        self._size = size
        # By batch: first batch of its window, batches of the window, and first row of the window.
        self._windows = np.ones((whole + 1, 3), np.int64)
        self._windows[whole] = whole, 1, start + whole * span
        rows = np.arange(start, start + size, dtype=np.int64)
        batches = rows[: whole * span].reshape(whole, span)
        shuffled = np.empty_like(batches)
        done = 0
        for at in random.permutation(len(windows)) if random else range(len(windows)):
            window = windows[at]
            count = len(window)
            # Each batch takes one row of each group, so that a rank's part of all of them is a run of rows.
            groups = batches[done : done + count].reshape(span, count)
            taken = slice(window.start, window.stop, LANES)
            shuffled[taken] = (random.permuted(groups, axis=1) if random else groups).T
            self._windows[taken] = window.start, count, groups[0, 0]
            done += count
        rows[: whole * span] = shuffled.ravel()
        super().__init__(rows % max(1, size), span)

    def part(self, index: int, rank: int, world: int) -> tuple[npt.NDArray[np.int64], Window | None]:
        """See `_Order.part`."""
        parts = self._parts(index, world)
        number, batches, first = self._windows[index].tolist()
        before = sum(map(len, parts[:rank]))
        first = (first + batches * before) % self._size
        return parts[rank], Window(number, self._split, first, batches * len(parts[rank]))


def name_next_windows(requests: Iterator[BatchRequest]) -> Iterator[BatchRequest]:
    """Requests in windows with the `next_window` of those that come at most two batches of each lane before it.

    A reader fetches it meanwhile, so that it does not wait at the end of a window, nor at that of an epoch. A window
    without samples of this rank is left out.
    """
    requests = iter(requests)
    upcoming = deque(itertools.islice(requests, 2 * LANES + 1))
    while upcoming:
        request = upcoming.popleft()
        later = (each.window for each in upcoming if each.lane == request.lane)
        others = (window for window in later if window and window.count and window != request.window)
        yield replace(request, next_window=next(others, None))
        upcoming.extend(itertools.islice(requests, 1))


def _windows(whole: int, most: int) -> list[range]:
    """The batches of each window, when a split has `whole` full batches.

    The first window of a lane is shorter the lower the lane: the first batch comes sooner, and later the lanes do not
    all begin a window at the same time.
    """
    windows: list[range] = []
    for lane in range(LANES):
        batches = range(lane, whole, LANES)
        cut = -(-most * (lane + 1) // LANES) if len(batches) > most else most
        bounds = [0, *range(cut, len(batches), most), len(batches)]
        windows.extend(batches[start:end] for start, end in itertools.pairwise(bounds) if start < end)
    return windows
