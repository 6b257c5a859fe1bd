"""What a benchmark reads: samples an endpoint has not given yet, then those it has; and the clock over them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import TRAIN
from ossconsole.telemetry.events import Step
from ossconsole.telemetry.visits import Tally, Waiting
from ossconsole.training.bench.readings import Temperature
from ossconsole.training.data import TrainingData
from ossconsole.training.plan import BatchRequest, Split

if TYPE_CHECKING:
    from ossconsole.training.bench.loop import TrainingLoop
    from ossconsole.training.compute.device import StepTimes
    from ossconsole.training.loading.loader import Batch, BatchLoader

_ORDER = tuple(Temperature)  # cold, then warm; a request's epoch tells which, counted from 1


class Dataset:
    """A dataset and which of its training samples were read through which endpoint.

    With `one_endpoint` both names are of one: what was read under either was read through it.
    """

    def __init__(self, data: TrainingData, *, one_endpoint: bool = False) -> None:
        self.data = data
        self.manifest = data.manifest
        self.samples = data.manifest.splits[TRAIN]
        # One order for all endpoints: they are compared on the same samples.
        self._order = np.random.default_rng(0).permutation(len(self.samples))
        self._one = one_endpoint
        self._read = dict.fromkeys(EndpointKind, 0)

    def fresh(self, kind: EndpointKind, count: int) -> npt.NDArray[np.int64] | None:
        """The next samples never read through `kind`, read from now on; None when there are fewer."""
        first = self._read[kind]
        if first + count > len(self._order):
            return None
        self._know(kind, first + count)
        return self._order[first : first + count]

    def known(self, kind: EndpointKind) -> npt.NDArray[np.int64]:
        """The samples read through `kind`, newest last."""
        return self._order[: self._read[kind]]

    def know_all(self, kind: EndpointKind) -> None:
        self._know(kind, len(self._order))

    def _know(self, kind: EndpointKind, count: int) -> None:
        for each in EndpointKind if self._one else (kind,):
            self._read[each] = count


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
    """What was measured between two moments, step by step; `before` is what was read ahead at the first.

    `trained` tells that the steps trained, and did not only take the batches.
    """

    steps: list[Step]
    before: Waiting
    seconds: float
    trained: bool

    @property
    def samples(self) -> int:
        return sum(step.samples for step in self.steps)

    @property
    def bytes(self) -> int:
        return sum(step.bytes for step in self.steps)

    @property
    def samples_per_s(self) -> float:
        """Samples that arrived per second, at most what the compute could use."""
        tally, before = Tally(), self.before
        for step in self.steps:
            tally.add(step, before, cold=False)
            before = Waiting.at(step)
        return tally.rate

    @property
    def wait_fraction(self) -> float | None:
        """Share of the time that training waited for data; None where nothing was trained."""
        total = sum(step.step_time_s for step in self.steps)
        return sum(step.data_wait_s for step in self.steps) / total if self.trained and total else None

    def fetch_quantile(self, share: float) -> float:
        """Seconds within which that share of the batches was fetched."""
        return float(np.quantile([step.fetch_s for step in self.steps], share))


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
    before = Waiting(batch.queued, batch.readers_idle)
    begun = time.perf_counter()
    found: list[Step] = []
    took = 0.0
    while took < seconds or len(found) % workers:
        batch = _next(loader)
        if batch.request.epoch != epoch:
            break
        if loop is not None:
            loop.step(batch)
        passed = time.perf_counter() - begun
        found.append(_step(batch, passed - took))
        took = passed
    if loop is not None:
        times = loop.finish()
        took = time.perf_counter() - begun
        found = [_timed(step, each) for step, each in zip(found, times, strict=True)]
    return Stretch(found, before, took, loop is not None) if len(found) >= workers else None


def _step(batch: Batch, seconds: float) -> Step:
    """A step that does nothing with the batch: all of it is waiting."""
    return Step(
        time=time.time(),
        step=batch.request.number,
        epoch=batch.request.epoch,
        samples=len(batch.rows),
        loss=None,
        lr=0.0,
        endpoint=batch.endpoint,
        data_wait_s=batch.wait_s,
        step_time_s=seconds,
        fetch_s=batch.fetch_s,
        bytes=batch.bytes,
        samples_per_s=0.0,
        queued=batch.queued,
        readers_idle=batch.readers_idle,
        single_s=batch.single_s,
    )


def _timed(step: Step, times: StepTimes) -> Step:
    return msgspec.structs.replace(
        step,
        step_time_s=times.step_s,
        data_wait_s=times.wait_s,
        copy_s=times.copy_s,
        compute_s=times.compute_s,
        host_s=times.host_s,
    )


def _next(loader: BatchLoader) -> Batch:
    batch = loader.next()
    if batch is None or batch.failed or batch.bad:
        reason = (batch.failed or batch.bad[0][1]) if batch is not None else "there is none"
        raise ConsoleError(
            f"A batch could not be read whole: {reason}.", remedy="`ossconsole doctor` checks the endpoints."
        )
    return batch
