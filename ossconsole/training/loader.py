"""The loader: one stream of batches for the whole run, read ahead by the connector's reader processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import Manifest, Sample, object_key
from ossconsole.training.connector import ConnectorSettings
from ossconsole.training.control import SPAWN, SharedControl
from ossconsole.training.plan import BatchRequest, Plan
from ossconsole.training.reader import ReadRequest, ReadResult, SampleReader, start_reader
from ossconsole.training.settings import TrainSettings

MAX_PREFETCH = 8
"""Batches read ahead per worker: more only delays an endpoint switch, as those batches are already on their way."""

_IN_USE = 2  # the batch in the step, and the one before it whose copy to the device may still be under way


_POLL_S = 1.0
"""How often a wait for a batch looks whether the run was interrupted, its reader died, or its deadline passed."""


class LoaderError(ConsoleError):
    """The readers could not deliver a batch; the run can go on from the same batch."""


@dataclass(frozen=True)
class Batch:
    """One batch as read. `data` is a view of the buffer (uint8, shape (samples, row bytes)): use it before two more.

    `rows` are the samples' rows in the manifest's split, int64. `wait_s` is how long the loop waited for it, `fetch_s`
    how long the reader took. `bad` are the samples left out and why; `failed` is why the whole batch could not be read.
    """

    request: BatchRequest
    data: torch.Tensor
    rows: npt.NDArray[np.int64]
    endpoint: EndpointKind
    bytes: int
    fetch_s: float
    wait_s: float
    retries: int
    bad: tuple[tuple[Sample, str], ...]
    failed: str


class BatchLoader:
    """Delivers the plan's batches in order, each exactly once.

    A torch DataLoader does the work. Its workers fill slots of one shared buffer in turn; because batches come back in
    order and at most `prefetch` per worker are under way, the slot of the batch asked for next is free again.
    When a worker dies or passes the deadline, `next` raises LoaderError and the following call starts new readers from
    the batch that was not delivered.
    """

    def __init__(
        self,
        connector: ConnectorSettings,
        manifest: Manifest,
        plan: Plan,
        settings: TrainSettings,
        *,
        start: int = 0,
        pin: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.control = SharedControl(settings.endpoint, settings.workers)
        self._connector = connector
        self._manifest = manifest
        self._prefix = connector.profile.dataset_prefix
        self._plan = plan
        self._settings = settings
        self._next = start
        self._interrupted = interrupted
        row_bytes = max(manifest.sample_bytes(sample) for split in manifest.splits.values() for sample in split)
        self.prefetch = prefetch_depth(settings, row_bytes)
        slots = self.prefetch * settings.workers + _IN_USE
        self._buffers = torch.empty((slots, settings.batch_size, row_bytes), dtype=torch.uint8)
        self._buffers.share_memory_()  # type: ignore[no-untyped-call]
        if pin:
            _pin(self._buffers)
        self._asked: dict[int, BatchRequest] = {}
        self._results: Iterator[ReadResult] | None = None

    def next(self) -> Batch | None:
        """The next batch; None at the end of the plan, or soon after the run was interrupted.

        Raises LoaderError when the readers broke; call again to go on from the same batch.
        """
        begun = time.perf_counter()
        if self._results is None:
            self._results = self._start_readers()
        while not self._interrupted():
            try:
                result = next(self._results)
            except StopIteration:
                return None
            except RuntimeError as error:
                self._check(error, time.perf_counter() - begun)
                continue
            request = self._asked.pop(result.number)
            self._next = result.number + 1
            return self._batch(request, result, time.perf_counter() - begun)
        return None

    def _check(self, error: RuntimeError, waited_s: float) -> None:
        """Raises LoaderError unless `error`, DataLoader's only exception, just says that nothing came yet."""
        deadline_s = self._settings.fetch_deadline_s
        if "timed out" not in str(error):
            reason = f"A reader process ended unexpectedly and was replaced ({str(error).splitlines()[0]})."
        elif waited_s >= deadline_s:
            reason = f"No batch arrived within {deadline_s:g} s; the readers were replaced."
        else:
            return
        self._abandon_readers()
        raise LoaderError(reason) from error

    def seek(self, number: int) -> None:
        """Goes on from batch `number`; what was read ahead is thrown away."""
        self.close()
        self._next = number

    def close(self) -> None:
        """Ends the readers."""
        if self._results is not None:
            self._abandon_readers()

    def _start_readers(self) -> Iterator[ReadResult]:
        reader = SampleReader(self._connector, self.control, self._buffers)
        return iter(
            DataLoader(
                reader,
                batch_size=None,
                sampler=self._requests(self._next),
                num_workers=self._settings.workers,
                prefetch_factor=self.prefetch,
                multiprocessing_context=SPAWN,
                collate_fn=_as_is,
                worker_init_fn=start_reader,
                timeout=_POLL_S,
            )
        )

    def _abandon_readers(self) -> None:
        self.control.kill_readers()
        self._results = None
        self._asked.clear()

    def _requests(self, start: int) -> Iterator[ReadRequest]:
        for count, request in enumerate(self._plan.requests(start)):
            samples = self._manifest.splits[str(request.split)]
            chosen = [samples[row] for row in request.indices]
            self._asked[request.number] = request
            yield ReadRequest(
                number=request.number,
                slot=count % len(self._buffers),
                keys=tuple(object_key(self._prefix, sample.key) for sample in chosen),
                sizes=np.array([self._manifest.sample_bytes(sample) for sample in chosen], dtype=np.int64),
            )

    def _batch(self, request: BatchRequest, result: ReadResult, wait_s: float) -> Batch:
        samples = self._manifest.splits[str(request.split)]
        return Batch(
            request=request,
            data=self._buffers[result.slot, : len(result.kept)],
            rows=request.indices[result.kept],
            endpoint=result.endpoint,
            bytes=result.bytes,
            fetch_s=result.seconds,
            wait_s=wait_s,
            retries=result.retries,
            bad=tuple((samples[request.indices[bad.position]], bad.reason) for bad in result.bad),
            failed=result.failed,
        )


def prefetch_depth(settings: TrainSettings, row_bytes: int) -> int:
    """How many batches each worker reads ahead: as many as the memory limit holds, from 1 to MAX_PREFETCH.

    Raises ConsoleError when not even one batch per worker fits.
    """
    batch_bytes = settings.batch_size * row_bytes
    slots = settings.prefetch_mb * 1_000_000 // batch_bytes
    depth = (slots - _IN_USE) // settings.workers
    if depth < 1:
        needed = (settings.workers + _IN_USE) * batch_bytes
        raise ConsoleError(
            f"{settings.workers} workers with batches of {settings.batch_size} need {needed / 1e6:,.0f} MB of buffers; "
            f"{settings.prefetch_mb} MB are allowed.",
            remedy=f"Use fewer workers, a smaller batch, or --prefetch-mb {-(-needed // 1_000_000)}.",
        )
    return min(depth, MAX_PREFETCH)


def _as_is(result: Any) -> Any:
    return result


def _pin(buffers: torch.Tensor) -> None:
    """Page-locks the shared buffers, so that copies to a CUDA device can overlap with the compute."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = runtime.cudaHostRegister(buffers.data_ptr(), buffers.nbytes, 0)
    if int(code) != 0:
        raise ConsoleError(
            f"The batch buffers ({buffers.nbytes / 1e6:,.0f} MB) cannot be page-locked: CUDA error {int(code)}.",
            remedy="Lower --prefetch-mb, or raise the limit with `ulimit -l unlimited`.",
        )
