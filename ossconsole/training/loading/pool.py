"""The reader processes: a pool that is replaced one by one as they die or hang, and one that times single samples.

Each process has a pipe of its own, so that killing it can never leave a lock behind that others need; torch's
DataLoader shares queues between its workers, and its shutdown can hang on them for that reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import multiprocessing.connection
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import signal_name
from ossconsole.training.child import become_child, spawn
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.range_fetcher import fetch_ranges
from ossconsole.training.loading.reader import ReaderShare, ReadRequest, ReadResult, SampleReader
from ossconsole.training.loading.shared_memory import SharedBuffer
from ossconsole.training.plan import BatchRequest, Split

QUEUED = 2
"""Requests per reader: the current and the next one, so that it never waits for the loop."""

_JOIN_TIMEOUT_S = 5.0

SAMPLES_PER_SINGLE = 128
"""One of this many samples is timed: that extra read costs less than 1 % of requests and bytes."""

_SPARSEST = 16  # the largest factor by which single samples become rarer, when reading them takes longer
_PAUSE = 8192  # samples until the next attempt after a failure


class ReaderLostError(Exception):
    """A reader died or passed its deadline; it was replaced, and its requests are retried."""


@dataclass
class _ReaderProcess:
    """`fetcher` is the process that fetches the ranges of tars for it."""

    process: SpawnProcess
    pipe: Connection
    fetcher: SpawnProcess | None = None
    held: deque[ReadRequest] = field(default_factory=deque)
    since: float = 0.0  # start of the first held request


class ReaderPool:
    """`workers` processes that read into the slots of `share` (see SampleReader).

    With samples that are `sharded` each has a second process, which fetches ranges of tars while the first one decodes.
    """

    def __init__(
        self,
        connector: ConnectorSettings,
        share: ReaderShare,
        *,
        workers: int,
        deadline_s: float,
        sharded: bool = False,
    ) -> None:
        """Raises ConsoleError, and ends all readers, when one cannot be started."""
        self._connector = connector
        self._share = share
        self._workers = workers
        self._sharded = sharded
        self._new_reader = functools.partial(SampleReader, connector, share, workers=workers)
        self._native_log = connector.native_log
        self._deadline_s = deadline_s
        self._lost: deque[str] = deque()  # messages not raised yet
        self._readers: list[_ReaderProcess] = []
        try:
            for number in range(workers):
                self._readers.append(self._start(number))
        except ConsoleError:
            self.close()
            raise

    @property
    def idle(self) -> bool:
        """Whether a reader has no request."""
        return any(not reader.held for reader in self._readers)

    def has_room(self, request: BatchRequest) -> bool:
        """Whether a reader can hold another request; one with a window can only be read by the reader of its lane."""
        return request.window is not None or any(len(reader.held) < QUEUED for reader in self._readers)

    def send(self, request: ReadRequest) -> None:
        """Sends the request to the reader of its lane, without a window to the one with the fewest requests."""
        if request.window is None:
            reader = min(self._readers, key=lambda each: len(each.held))
        else:
            reader = self._readers[request.lane % len(self._readers)]
        if not reader.held:
            reader.since = time.monotonic()
        _give(reader, request)

    def poll(self, timeout_s: float) -> list[ReadResult]:
        """Returns at the first results, or with none after `timeout_s`.

        Raises ReaderLostError after the results of other readers are returned.
        """
        if self._lost:
            raise ReaderLostError(self._lost.popleft())
        pipes = {reader.pipe: number for number, reader in enumerate(self._readers)}
        results = []
        for ready in multiprocessing.connection.wait(list(pipes), timeout_s):
            number = pipes[ready]  # type: ignore[index]
            reader = self._readers[number]
            try:
                results.append(reader.pipe.recv())
            except (EOFError, OSError):
                reader.process.join(_JOIN_TIMEOUT_S)  # otherwise its end would be the SIGKILL of `_end`
                self._lost.append(f"Reader process {number} ended unexpectedly{self._replace(number)}.")
                continue
            reader.held.popleft()
            reader.since = time.monotonic()
        if results:
            return results
        self._check_deadlines()
        if self._lost:
            raise ReaderLostError(self._lost.popleft())
        return []

    def close(self) -> None:
        """Kills all readers."""
        for reader in self._readers:
            _end(reader)
        self._readers = []

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for number, reader in enumerate(self._readers):
            if reader.held and now - reader.since > self._deadline_s:
                self._replace(number)
                self._lost.append(
                    f"Reader process {number} delivered no batch within {self._deadline_s:g} s; it was replaced."
                )

    def _replace(self, number: int) -> str:
        """Starts a new reader with the requests of the old one; returns how the old one ended, as text."""
        lost = self._readers[number]
        held = list(lost.held)
        # A reader whose fetcher has ended ends by itself, and the other way round.
        codes = [each.exitcode for each in (lost.process, lost.fetcher) if each is not None]
        _end(lost)
        self._readers[number] = replacement = self._start(number)
        replacement.since = time.monotonic()
        for request in held:
            _give(replacement, request)
        code = next((code for code in codes if code), lost.process.exitcode) or 0
        return f" ({signal_name(-code)})" if code < 0 else f" (exit code {code})"

    def _start(self, number: int) -> _ReaderProcess:
        try:
            if not self._sharded:
                return _ReaderProcess(*spawn(f"reader-{number}", _serve, self._new_reader, self._native_log, number))
            return self._start_with_fetcher(number)
        except OSError as error:
            raise ConsoleError(
                f"Reader process {number} could not be started: {error.strerror}.",
                remedy="Free memory, raise `ulimit -n` or `ulimit -u`, or use fewer --workers.",
            ) from error

    def _start_with_fetcher(self, number: int) -> _ReaderProcess:
        connect = functools.partial(self._connector.open, number=number, total=self._workers)
        bucket = self._connector.profile.bucket
        fetcher, ranges = spawn(
            f"range-fetcher-{number}", fetch_ranges, bucket, connect, self._share.switch, self._native_log
        )
        with ranges:
            try:
                process, pipe = spawn(f"reader-{number}", _serve, self._new_reader, self._native_log, number, ranges)
            except OSError:
                fetcher.kill()
                raise
        return _ReaderProcess(process, pipe, fetcher)


def _give(reader: _ReaderProcess, request: ReadRequest) -> None:
    reader.held.append(request)
    # `poll` notices a dead reader, and resends its requests.
    with contextlib.suppress(OSError):
        reader.pipe.send(request)


def _end(reader: _ReaderProcess) -> None:
    reader.pipe.close()
    # SIGKILL also ends a process that is stopped, or in an endless retry of the connector.
    for process in (reader.process, reader.fetcher):
        if process is not None:
            process.kill()
            process.join(_JOIN_TIMEOUT_S)


def _serve(
    pipe: Connection,
    new_reader: Callable[..., SampleReader],
    native_log: Path,
    number: int,
    ranges: Connection | None = None,
) -> None:
    """The reader process: answers requests in order until its pipe, or that of its fetcher, closes."""
    become_child(native_log)
    reader = new_reader(number=number, ranges=ranges)
    while True:
        try:
            request = reader.pop_prefetched() or pipe.recv()
            result = reader.read(request, next_request=lambda: pipe.recv() if pipe.poll() else None)
        except (EOFError, ConnectionError):
            return
        pipe.send(result)


log = logging.getLogger(__name__)


class SingleSamples:
    """Times the last sample of some batches, alone, which separates hits of the accelerator's cache from misses.

    It is read before its batch is requested, so it hits or misses as it would in the batch. It has a process of its
    own, because a reader gets dozens of samples in the latency of one. The process starts with the first timed sample;
    short runs have none. After a failure there are no times for a while.
    """

    def __init__(self, connector: ConnectorSettings, share: ReaderShare, *, deadline_s: float) -> None:
        """`share` is that of the readers."""
        self._connector = connector
        self._share = share
        self._deadline_s = deadline_s
        self._resources = contextlib.ExitStack()
        self._pool: ReaderPool | None = None
        self._reading = False
        self._every = SAMPLES_PER_SINGLE
        self._since_last = -self._every  # samples
        self._delivered = False  # whether the readers delivered a batch; until then they need the CPU
        self._opened: set[EndpointKind] = set()
        self._read: dict[int, tuple[EndpointKind, float]] = {}  # by batch number

    def offer(self, request: BatchRequest) -> None:
        """Times the last sample of `request`, the next batch to be requested, when the next time is due."""
        self._since_last += len(request.indices)
        if not self._delivered or self._since_last < self._every:
            return
        if request.split is not Split.TRAIN or not len(request.indices):
            return
        self._receive()
        if self._reading:
            # Fewer from now on: skipping samples only while a miss is read would undercount the misses.
            self._every = min(2 * self._every, _SPARSEST * SAMPLES_PER_SINGLE)
        if self._reading or self._since_last < self._every:
            return
        try:
            pool = self._pool or self._start()
        except ConsoleError as error:
            self._pause(str(error))
            return
        self._single_share.rows_of(0, 1)[:] = request.indices[-1]
        pool.send(ReadRequest(request.number, 0, request.split, request.epoch, 1))
        self._reading, self._since_last = True, 0

    def take(self, number: int, kind: EndpointKind) -> float | None:
        """The seconds of a sample read through `kind`, of batch `number` or an earlier one; None without one.

        Each is returned once; those of the other endpoint are dropped.
        """
        self._delivered = True
        self._receive()
        taken = None
        for read in sorted(self._read):
            if read <= number and taken is None:
                endpoint, seconds = self._read.pop(read)
                taken = seconds if endpoint is kind else None
        return taken

    def close(self) -> None:
        """Kills the process."""
        self._resources.close()

    def _start(self) -> ReaderPool:
        """Starts the process. Raises ConsoleError."""
        row_bytes = self._share.shape[2]
        with contextlib.ExitStack() as resources:
            rows = resources.enter_context(contextlib.closing(SharedBuffer(8)))
            buffer = resources.enter_context(contextlib.closing(SharedBuffer(row_bytes)))
            self._single_share = dataclasses.replace(self._share, buffer=buffer, rows=rows, shape=(1, 1, row_bytes))
            self._pool = pool = ReaderPool(self._connector, self._single_share, workers=1, deadline_s=self._deadline_s)
            resources.callback(pool.close)
            self._resources = resources.pop_all()
        return pool

    def _pause(self, why: str) -> None:
        """Kills the process; a new one is started later."""
        log.warning("Single samples are not timed for a while, so the hit rate is not estimated: %s", why)
        self.close()
        self._pool, self._reading, self._since_last = None, False, -_PAUSE
        self._opened.clear()

    def _receive(self) -> None:
        if self._pool is None or not self._reading:
            return
        try:
            results = self._pool.poll(0.0)
        except (ReaderLostError, ConsoleError) as error:  # the second: its replacement could not be started
            self._pause(str(error))
            return
        for result in results:
            self._reading = False
            self._keep(result)

    def _keep(self, result: ReadResult) -> None:
        """Keeps the time, unless it is an endpoint's first, which includes opening the connector and a connection."""
        if result.failed or result.bad:
            log.info("A single sample was not timed: %s", result.failed or result.bad[0].reason)
        elif result.endpoint in self._opened:
            self._read[result.number] = (result.endpoint, result.seconds - result.decode_s)
        else:
            self._opened.add(result.endpoint)
