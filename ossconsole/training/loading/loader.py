"""The loader: one stream of batches for the whole run, prefetched by the reader processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.telemetry.host import free_memory
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.loading.pool import QUEUED, ReaderLostError, ReaderPool, SingleSamples
from ossconsole.training.loading.reader import ReaderShare, ReadRequest, ReadResult
from ossconsole.training.loading.shared_memory import EndpointSwitch, SampleTable, SharedBuffer
from ossconsole.training.plan import LANES, BatchRequest, Requests
from ossconsole.training.settings import TrainSettings

MAX_AHEAD = 8
"""The most batches per worker read ahead: more would only delay the effect of an endpoint switch."""

_IN_USE = 2  # the current batch, and the previous one, whose copy to the device may still be running
_CALM_BATCHES = 32  # batches in a row without a wait, after which one less is read ahead
_POLL_S = 1.0  # how often a wait checks for an interruption and for deadlines


class SkippedSample(NamedTuple):
    """A sample that was not used: its row in the split, its relative key, and the reason."""

    row: int
    key: str
    reason: str


class LoaderError(ConsoleError):
    """The readers could not deliver a batch; the run can continue with the same batch."""


@dataclass(frozen=True)
class Batch:
    """One batch as read. `data` is a view of the buffer (uint8, shape (samples, row bytes)): use it before two more.

    `rows` are the samples' rows in the manifest's split, int64. `wait_s` is how long the loop waited, `fetch_s` how
    long the reader took, `decode_s` the part of it for decoding and cropping. `queued` is the number of later batches
    already read; `readers_idle` means that the limit of batches ahead was reached, and a reader had no request.
    `single_s` is the time of a sample read alone (see SingleSamples), None without one. `bad` are the skipped samples;
    `failed` is why the whole batch could not be read, `failed_row` the row of the first sample that failed then,
    `reader` the number of the reader process.
    """

    request: BatchRequest
    data: torch.Tensor
    rows: npt.NDArray[np.int64]
    endpoint: EndpointKind
    bytes: int
    fetch_s: float
    decode_s: float
    wait_s: float
    queued: int
    readers_idle: bool
    single_s: float | None
    retries: int
    bad: tuple[SkippedSample, ...]
    failed: str
    reader: int = 0
    failed_row: int = 0


class BatchLoader:
    """Delivers the plan's batches in order, each exactly once, in slots of one shared buffer.

    The number of batches read ahead adapts: one more per reader when the loop waits although readers were idle, one
    less when it has not waited for a while. At least QUEUED requests per reader keep every reader busy, so that the
    throughput of an endpoint does not depend on earlier batches. `settings.prefetch_mb` bounds it. With `time_singles`
    some samples are also read alone, to be timed, if each sample is an object. `not_pinned` is why the buffers are not
    page-locked although `pin` requests it; copies are slower then. `switch` has the endpoint for future batches.
    """

    def __init__(
        self,
        connector: ConnectorSettings,
        data: TrainingData,
        plan: Requests,
        settings: TrainSettings,
        *,
        start: int = 0,
        pin: bool = False,
        time_singles: bool = False,
        sharing: int = 1,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """`sharing` is the number of processes that share this machine's memory.

        Raises ConsoleError, and frees everything.
        """
        self.switch = EndpointSwitch(settings.endpoint)
        self.not_pinned: ConsoleError | None = None
        self._data = data
        if data.sharded:  # others would have no work
            settings = msgspec.structs.replace(settings, workers=min(settings.workers, LANES))
        self._workers = settings.workers
        self._interrupted = interrupted
        transform = sample_transform(settings, data)
        row_bytes = transform.row_bytes
        slots = slot_count(settings, row_bytes, free_bytes=free_memory() // sharing)
        self._max_ahead = slots - _IN_USE
        self._min_ahead = min(self._max_ahead, QUEUED * self._workers)
        self.ahead = self._min_ahead
        shape = (slots, settings.batch_size, row_bytes)
        self._free = deque(range(slots))
        self._used: deque[int] = deque()
        self._requests = plan.requests(start)
        self._upcoming = next(self._requests, None)
        self._requested: deque[tuple[BatchRequest, ReadRequest]] = deque()
        self._ready: dict[int, ReadResult] = {}
        self._calm = 0
        self._idled = False  # whether a reader was idle since the last batch
        with contextlib.ExitStack() as resources:
            self._open(resources, connector, transform, shape, settings, pin=pin)
            self._singles: SingleSamples | None = None
            if time_singles and not data.sharded:
                self._singles = SingleSamples(connector, self._share, deadline_s=settings.fetch_deadline_s)
                resources.callback(self._singles.close)
            self._resources = resources.pop_all()

    def _open(
        self,
        resources: contextlib.ExitStack,
        connector: ConnectorSettings,
        transform: SampleTransform,
        shape: tuple[int, int, int],
        settings: TrainSettings,
        *,
        pin: bool,
    ) -> None:
        """Allocates memory and starts the readers; `resources` frees all, each although another one raises."""
        samples = resources.enter_context(contextlib.closing(SampleTable(self._data)))
        rows = resources.enter_context(contextlib.closing(SharedBuffer(math.prod(shape[:2]) * 8)))
        buffer = resources.enter_context(contextlib.closing(SharedBuffer(math.prod(shape))))
        self._share = ReaderShare(self.switch, samples, transform, buffer, rows, shape)
        self._slots = torch.frombuffer(buffer.memory, dtype=torch.uint8).view(shape)
        if pin:
            try:
                lock_pages(self._slots)
            except ConsoleError as error:
                self.not_pinned = error
            else:
                resources.callback(unlock_pages, self._slots)
        self._pool = ReaderPool(
            connector,
            self._share,
            workers=self._workers,
            deadline_s=settings.fetch_deadline_s,
            sharded=self._data.sharded,
        )
        resources.callback(self._pool.close)

    def next(self) -> Batch | None:
        """The next batch; None at the end of the plan, or soon after the run was interrupted.

        Raises LoaderError when a reader had to be replaced; call again for the same batch.
        """
        begun = time.perf_counter()
        while len(self._used) >= _IN_USE:
            self._free.append(self._used.popleft())
        self._prefetch()
        if not self._requested:
            return None
        request, read = self._requested[0]
        self._receive(0)
        self._adapt(request.number in self._ready)
        while request.number not in self._ready:
            if self._interrupted():
                return None
            self._receive(_POLL_S)
        self._receive(0)  # a pipe returns one result at a time; `queued` counts all
        readers_idle = len(self._requested) >= self.ahead and self._pool.idle
        self._requested.popleft()
        self._used.append(read.slot)
        self._prefetch()  # not after the step: the readers would be idle meanwhile
        wait_s = time.perf_counter() - begun
        return self._batch(request, self._ready.pop(request.number), wait_s, readers_idle=readers_idle)

    def retry(self, batch: Batch) -> None:
        """Requests the last batch of `next` again; it is the next one then."""
        slot = self._used.pop()
        self._put(batch.request, slot, front=True)

    def close(self) -> None:
        """Kills the readers. No copy of a batch to the device may still be running."""
        self._resources.close()

    def _receive(self, timeout_s: float) -> None:
        try:
            for result in self._pool.poll(timeout_s):
                self._ready[result.number] = result
        except ReaderLostError as error:
            raise LoaderError(str(error)) from error
        self._idled = self._idled or self._pool.idle
        self._prefetch()

    def _prefetch(self) -> None:
        """Sends requests, as far as slots and the limit of batches ahead allow."""
        while len(self._requested) < self.ahead and self._free:
            request = self._upcoming
            if request is None or not self._pool.has_room(request):
                return
            self._upcoming = next(self._requests, None)
            self._put(request, self._free.popleft())
            if self._singles is not None and self._upcoming is not None:
                self._singles.offer(self._upcoming)

    def _put(self, request: BatchRequest, slot: int, *, front: bool = False) -> None:
        count = len(request.indices)
        self._share.rows_of(slot, count)[:] = request.indices
        read = ReadRequest(
            request.number,
            slot,
            request.split,
            request.epoch,
            count,
            request.lane,
            request.window,
            request.next_window,
        )
        if front:
            self._requested.appendleft((request, read))
        else:
            self._requested.append((request, read))
        self._pool.send(read)

    def _adapt(self, ready: bool) -> None:
        """Reads further ahead when that would have avoided a wait, less far when there was none for a while."""
        if not ready:
            self._calm = 0
            if self._idled and len(self._requested) >= self.ahead:
                self.ahead = min(self._max_ahead, self.ahead + self._workers)
        elif len(self._ready) >= self.ahead - self._workers:
            self._calm += 1
            if self._calm >= _CALM_BATCHES:
                self._calm = 0
                self.ahead = max(self._min_ahead, self.ahead - 1)
        self._idled = False

    def _batch(self, request: BatchRequest, result: ReadResult, wait_s: float, *, readers_idle: bool) -> Batch:
        rows = np.delete(request.indices, [each.position for each in result.bad])
        keys = self._data.columns(str(request.split)).keys
        bad_rows = [int(request.indices[each.position]) for each in result.bad]
        return Batch(
            request=request,
            data=self._slots[result.slot, : len(rows)],
            rows=rows,
            endpoint=result.endpoint,
            bytes=result.bytes,
            fetch_s=result.seconds,
            decode_s=result.decode_s,
            wait_s=wait_s,
            queued=len(self._ready),
            readers_idle=readers_idle,
            single_s=self._singles.take(request.number, result.endpoint) if self._singles is not None else None,
            retries=result.retries,
            bad=tuple(
                SkippedSample(row, keys.get(row), each.reason) for row, each in zip(bad_rows, result.bad, strict=True)
            ),
            failed=result.failed,
            reader=result.reader,
            failed_row=int(request.indices[result.failed_at]) if result.failed else 0,
        )


def sample_transform(settings: TrainSettings, data: TrainingData) -> SampleTransform:
    """The transform that the readers of a run apply to the samples."""
    return SampleTransform(
        data.format, data.size, data.image_size(settings.image_size), settings.augment, settings.seed
    )


def slot_count(settings: TrainSettings, row_bytes: int, *, free_bytes: int) -> int:
    """The number of batches in the buffer, within `settings.prefetch_mb` or a quarter of the free memory.

    Raises ConsoleError when there would be less than one per worker beyond those in use.
    """
    batch_bytes = settings.batch_size * row_bytes
    minimum = settings.workers + _IN_USE
    allowed = settings.prefetch_mb * 1_000_000 or free_bytes // 4
    slots = min(settings.workers * MAX_AHEAD + _IN_USE, allowed // batch_bytes)
    if slots < minimum:
        needed_mb = math.ceil(minimum * batch_bytes / 1e6)
        limit = "are allowed" if settings.prefetch_mb else "are a quarter of the free memory"
        raise ConsoleError(
            f"{counted(settings.workers, 'worker')} with batches of {settings.batch_size} need {needed_mb:,} MB "
            f"of buffers; {allowed / 1e6:,.0f} MB {limit}.",
            remedy=f"Use fewer workers, a smaller batch, or --prefetch-mb {needed_mb}.",
        )
    return slots


def lock_pages(slots: torch.Tensor) -> None:
    """Page-locks the buffers, so that copies to a CUDA device are fast and overlap with the compute.

    Raises ConsoleError when CUDA refuses.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(runtime.cudaHostRegister(slots.data_ptr(), slots.nbytes, 0))
    if code != 0:
        # CUDA keeps the error, and torch would report it after any next kernel.
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")
        raise ConsoleError(
            f"The batch buffers ({slots.nbytes / 1e6:,.0f} MB) are not page-locked: CUDA error {code}. "
            "Copies to the GPU are slower.",
            remedy="Lower --prefetch-mb, or free memory on this machine.",
        )


def unlock_pages(slots: torch.Tensor) -> None:
    """Otherwise the memory would stay locked, and buffers allocated at its address later could not be locked."""
    torch.cuda.cudart().cudaHostUnregister(slots.data_ptr())  # type: ignore[no-untyped-call]
