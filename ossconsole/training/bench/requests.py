"""Which samples a benchmark reads: new ones of an endpoint, then known ones; those of an emulated accelerator."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import TRAIN
from ossconsole.training.bench.results import CacheState, ReadPath
from ossconsole.training.data import TrainingData
from ossconsole.training.plan import LANES, BatchRequest, Plan, Split, Window, name_next_windows
from ossconsole.training.settings import TrainSettings

if TYPE_CHECKING:
    from ossconsole.training.loading.loader import Batch, BatchLoader

log = logging.getLogger(__name__)

ORDER = tuple(CacheState)
"""The epoch of a request, from 1, is the position of its temperature here."""

_EPOCHS = 1 << 30  # without end


class BenchDataset:
    """A dataset, with the training samples that were read through each endpoint.

    With `one_endpoint` both names are the same endpoint, and a sample counts as read under both.
    """

    def __init__(self, data: TrainingData, *, one_endpoint: bool = False) -> None:
        self.data = data
        # The same order for all endpoints: they are compared on the same samples.
        count = data.count(TRAIN)
        self._order = np.arange(count) if data.sharded else np.random.default_rng(0).permutation(count)
        self._one = one_endpoint
        self._read: dict[str, int] = dict.fromkeys(ReadPath, 0)

    def next_unread(self, kind: str, count: int) -> npt.NDArray[np.int64] | None:
        """`count` rows of samples never read through `kind`, now marked as read; None when there are fewer."""
        first = self._read[kind]
        if first + count > len(self._order):
            return None
        self._mark_read(kind, first + count)
        return self._order[first : first + count]

    def already_read(self, kind: str) -> npt.NDArray[np.int64]:
        """Rows of the samples read through `kind`, newest last; shape (samples,)."""
        return self._order[: self._read[kind]]

    def mark_all_read(self, kind: str) -> None:
        """Counts every sample as read through `kind`."""
        self._mark_read(kind, len(self._order))

    def _mark_read(self, kind: str, count: int) -> None:
        for each in ReadPath if self._one else (kind,):
            self._read[each] = count


class BenchRequests:
    """Batches never read through the endpoint; once `temperature` is warm, those of this visit, repeatedly."""

    def __init__(self, data: BenchDataset, kind: str, batch_size: int) -> None:
        self.temperature = CacheState.COLD
        self._data = data
        self._kind = kind
        self._batch_size = batch_size

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        """See `Requests`; without end."""
        requests = self._requests(start)
        return name_next_windows(requests) if self._data.data.sharded else requests

    def _requests(self, start: int) -> Iterator[BatchRequest]:
        data, kind, size = self._data, self._kind, self._batch_size
        before = len(data.already_read(kind))
        number = itertools.count(start)
        while self.temperature is CacheState.COLD and (rows := data.next_unread(kind, size)) is not None:
            yield self._request(next(number), CacheState.COLD, rows)
        pool = data.already_read(kind)
        if len(pool) - before >= 2 * size:
            pool = pool[before:]  # a cache may have evicted older ones
        elif len(pool) < size:  # fewer samples than a batch: it reads some of them twice
            data.mark_all_read(kind)
            pool = data.already_read(kind)
        for offset in itertools.count(0, size):
            yield self._request(next(number), CacheState.WARM, pool[np.arange(offset, offset + size) % len(pool)])

    def _request(self, number: int, temperature: CacheState, rows: npt.NDArray[np.int64]) -> BatchRequest:
        window = None
        if self._data.data.sharded:  # each batch is read again, so it is a window of its own
            first = int(rows.min())
            window = Window(number, Split.TRAIN, first, int(rows.max()) + 1 - first)
        return BatchRequest(
            number=number,
            epoch=ORDER.index(temperature) + 1,
            split=Split.TRAIN,
            index=number,
            indices=rows,
            last=False,
            lane=number % LANES,
            window=window,
        )


class AcceleratorRequests:
    """The full batches of emulated accelerator `rank` of `world`, epoch after epoch, in the order of a run.

    Single objects of which there are fewer than a batch for each accelerator are read several times in an epoch.
    """

    def __init__(self, data: TrainingData, batch_size: int, *, rank: int, world: int) -> None:
        """Raises ConsoleError where shards have fewer samples than a batch for each accelerator."""
        self._batch_size = batch_size
        self._count = data.count(TRAIN)
        span = batch_size * world
        if data.sharded and self._count < span:
            raise ConsoleError(
                f"The shards have {self._count:,} training samples; {world} accelerators need {span:,} for a step.",
                remedy="Use fewer --accelerators, a smaller --batch-size, or a larger dataset.",
            )
        planned = self._count if data.sharded else self._count * -(-span // self._count)
        settings = TrainSettings(batch_size=batch_size, epochs=_EPOCHS)
        self._plan = Plan(settings, planned, 0, rank=rank, world=world, tar_bytes=data.tar_bytes)

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        """See `Requests`; without end. Short batches are left out, as in DLIO."""
        for request in self._plan.requests(start):
            if len(request.indices) == self._batch_size:
                yield dataclasses.replace(request, indices=request.indices % self._count)


def next_batch(loader: BatchLoader) -> Batch:
    """The next batch, without the samples that cannot be used, as in a run. Raises ConsoleError when none is left."""
    batch = loader.next()
    skipped = [f"{sample.key}: {sample.reason}" for sample in batch.bad] if batch is not None else []
    for text in skipped:
        log.warning("Skipped %s.", text)
    if batch is not None and not batch.failed and len(batch.rows):
        return batch
    reason = "there are no more batches" if batch is None else batch.failed or skipped[0]
    raise ConsoleError(f"A batch could not be read: {reason}.", remedy="`ossconsole doctor` checks the endpoints.")
