"""What a benchmark reads: samples an endpoint has not given yet, then those it has; and the clock over them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import TRAIN
from ossconsole.training.data import TrainingData
from ossconsole.training.plan import BatchRequest, Split
from ossconsole.training.readings import Temperature

if TYPE_CHECKING:
    from ossconsole.training.benchloop import TrainingLoop
    from ossconsole.training.loader import Batch, BatchLoader

_ORDER = tuple(Temperature)  # cold, then warm; a request's epoch tells which, counted from 1


class Dataset:
    """A dataset and which of its training samples were read through which endpoint."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data
        self.manifest = data.manifest
        self.samples = data.manifest.splits[TRAIN]
        # One order for all endpoints: they are compared on the same samples.
        self._order = np.random.default_rng(0).permutation(len(self.samples))
        self._read = dict.fromkeys(EndpointKind, 0)

    def fresh(self, kind: EndpointKind, count: int) -> npt.NDArray[np.int64] | None:
        """The next samples never read through `kind`, read from now on; None when there are fewer."""
        first = self._read[kind]
        if first + count > len(self._order):
            return None
        self._read[kind] = first + count
        return self._order[first : first + count]

    def known(self, kind: EndpointKind) -> npt.NDArray[np.int64]:
        """The samples read through `kind`, newest last."""
        return self._order[: self._read[kind]]

    def know_all(self, kind: EndpointKind) -> None:
        self._read[kind] = len(self._order)


class VisitRequests:
    """Batches never read through the endpoint; with `temperature` warm those of this visit, over and over."""

    def __init__(self, data: Dataset, kind: EndpointKind, batch_size: int) -> None:
        self.temperature = Temperature.COLD
        self._data = data
        self._kind = kind
        self._batch_size = batch_size

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        data, kind, size = self._data, self._kind, self._batch_size
        before = len(data.known(kind))
        number = itertools.count(start)
        while self.temperature is Temperature.COLD and (rows := data.fresh(kind, size)) is not None:
            yield _request(next(number), Temperature.COLD, rows)
        pool = data.known(kind)
        if len(pool) - before >= 2 * size:
            pool = pool[before:]  # a cache may have dropped what was read long ago
        elif len(pool) < size:  # fewer samples than one batch takes: it reads some of them twice
            data.know_all(kind)
            pool = data.known(kind)
        for offset in itertools.count(0, size):
            yield _request(next(number), Temperature.WARM, pool[np.arange(offset, offset + size) % len(pool)])


def _request(number: int, temperature: Temperature, rows: npt.NDArray[np.int64]) -> BatchRequest:
    epoch = _ORDER.index(temperature) + 1
    return BatchRequest(number=number, epoch=epoch, split=Split.TRAIN, index=number, indices=rows, last=False)


@dataclass
class Stretch:
    """What was measured between two moments; `wait_fraction` is None where nothing was trained."""

    samples: int
    bytes: int
    seconds: float
    fetches: list[float]
    wait_fraction: float | None

    def fetch_quantile(self, share: float) -> float:
        """Seconds within which that share of the batches was fetched."""
        return float(np.quantile(self.fetches, share))


def first_of(loader: BatchLoader, temperature: Temperature) -> Batch | None:
    """The first batch of that temperature, None when one of the next comes first. Raises ConsoleError."""
    wanted = _ORDER.index(temperature) + 1
    while True:
        batch = _next(loader)
        if batch.request.epoch >= wanted:
            return batch if batch.request.epoch == wanted else None


def stretch(
    loader: BatchLoader, batch: Batch, *, workers: int, seconds: float, loop: TrainingLoop | None
) -> Stretch | None:
    """Measures whole turns of the readers, from the arrival of a batch on; `batch` is the first of its temperature.

    The first turn is left out: it pays for connections being made and for kernels being chosen. None when there are
    too few batches of that temperature. Raises ConsoleError.
    """
    epoch = batch.request.epoch
    for _ in range(workers):
        if loop is not None:
            loop.step(batch)
        batch = _next(loader)
    if loop is not None:
        loop.step(batch)
        loop.restart()
    begun = time.perf_counter()
    found: list[tuple[int, int, float]] = []
    while time.perf_counter() - begun < seconds or len(found) % workers:
        batch = _next(loader)
        if batch.request.epoch != epoch:
            break
        if loop is not None:
            loop.step(batch)
        found.append((len(batch.rows), batch.bytes, batch.fetch_s))
    wait = loop.finish() if loop is not None else None
    took = time.perf_counter() - begun
    if len(found) < workers:
        return None
    samples, sizes, fetches = zip(*found, strict=True)
    return Stretch(sum(samples), sum(sizes), took, list(fetches), wait)


def _next(loader: BatchLoader) -> Batch:
    batch = loader.next()
    if batch is None or batch.failed or batch.bad:
        reason = (batch.failed or batch.bad[0][1]) if batch is not None else "there is none"
        raise ConsoleError(
            f"A batch could not be read whole: {reason}.", remedy="`ossconsole doctor` checks the endpoints."
        )
    return batch
