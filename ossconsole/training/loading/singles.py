"""Single samples, each read alone and timed: they tell hits of the accelerator's cache from misses."""

from __future__ import annotations

import contextlib
import logging

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.pool import ReaderLostError, ReaderPool
from ossconsole.training.loading.reader import ReaderShare, ReadRequest, ReadResult
from ossconsole.training.loading.shared_memory import SharedBuffer
from ossconsole.training.plan import BatchRequest, Split

log = logging.getLogger(__name__)

SAMPLES_PER_SINGLE = 128
"""One of this many samples is timed: it is read once more than training needs, below 1 % of requests and bytes."""

_SPARSEST = 16  # times as few singles where they take longer than that
_PAUSE = 8192  # samples after a failure before there is another try


class SingleSamples:
    """Times the last sample of some batches, in a reader process of its own.

    It is read before the batch is asked for, so it is a hit or a miss as it would be in the batch. The readers do not
    wait for it: a sample alone takes one latency, in which a reader gets dozens. The process starts with the first
    sample that is timed; short runs do not have one. Where it fails, there are no times for a while.
    """

    def __init__(self, connector: ConnectorSettings, share: ReaderShare, *, deadline_s: float) -> None:
        """`share` is that of the loop's readers."""
        self._connector = connector
        self._share = share
        self._deadline_s = deadline_s
        self._resources = contextlib.ExitStack()
        self._pool: ReaderPool | None = None
        self._reading = False
        self._every = SAMPLES_PER_SINGLE
        self._since_last = -self._every  # samples
        self._delivered = False  # the readers' first batch; until then they need the processors
        self._opened: set[EndpointKind] = set()
        self._read: dict[int, tuple[EndpointKind, float]] = {}  # by the number of the batch

    def offer(self, request: BatchRequest) -> None:
        """The batch is the next one to be asked for: times its last sample, where it is time for one."""
        self._since_last += len(request.indices)
        if not self._delivered or self._since_last < self._every:
            return
        if request.split is not Split.TRAIN or not len(request.indices):
            return
        self._receive()
        if self._reading:
            # Fewer from now on: to leave out samples only while misses are read would count too few of them.
            self._every = min(2 * self._every, _SPARSEST * SAMPLES_PER_SINGLE)
        if self._reading or self._since_last < self._every:
            return
        try:
            pool = self._pool or self._start()
        except ConsoleError as error:
            self._pause(str(error))
            return
        self._single.rows_of(0, 1)[:] = request.indices[-1]
        pool.ask(ReadRequest(request.number, 0, request.split, 1))
        self._reading, self._since_last = True, 0

    def take(self, number: int, kind: EndpointKind) -> float | None:
        """Seconds of a sample that was read through `kind`, of batch `number` or one before it; None where none was.

        Each is given once; those of the other endpoint are dropped.
        """
        self._delivered = True
        self._receive()
        found = None
        for read in sorted(self._read):
            if read <= number and found is None:
                endpoint, seconds = self._read.pop(read)
                found = seconds if endpoint is kind else None
        return found

    def close(self) -> None:
        """Ends the process."""
        self._resources.close()

    def _start(self) -> ReaderPool:
        """Starts the process. Raises ConsoleError."""
        row_bytes = self._share.shape[2]
        with contextlib.ExitStack() as resources:
            rows = resources.enter_context(contextlib.closing(SharedBuffer(8)))
            buffer = resources.enter_context(contextlib.closing(SharedBuffer(row_bytes)))
            self._single = ReaderShare(self._share.switch, self._share.samples, buffer, rows, (1, 1, row_bytes))
            self._pool = pool = ReaderPool(self._connector, self._single, workers=1, deadline_s=self._deadline_s)
            resources.callback(pool.close)
            self._resources = resources.pop_all()
        return pool

    def _pause(self, why: str) -> None:
        """Ends the process; a new one is started later."""
        log.warning("No single samples are timed for a while, so the hit rate is not estimated meanwhile: %s", why)
        self.close()
        self._pool, self._reading, self._since_last = None, False, -_PAUSE
        self._opened.clear()

    def _receive(self) -> None:
        if self._pool is None or not self._reading:
            return
        try:
            results = self._pool.poll(0.0)
        except ReaderLostError as error:
            self._pause(str(error))
            return
        for result in results:
            self._reading = False
            self._keep(result)

    def _keep(self, result: ReadResult) -> None:
        """The first sample of an endpoint pays for the connector and its connection, and does not count."""
        if result.failed or result.bad:
            log.info("A single sample was not timed: %s", result.failed or result.bad[0].reason)
        elif result.endpoint in self._opened:
            self._read[result.number] = (result.endpoint, result.seconds)
        else:
            self._opened.add(result.endpoint)
