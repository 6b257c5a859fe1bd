"""The reader processes: started, given requests, listened to, and replaced when they die or get stuck.

Each has a pipe of its own, so that killing one can never leave a lock behind that the others or the loop need; torch's
DataLoader shares queues between its workers, and its shutdown can hang on them for just that reason.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing.connection
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.training.child import become_child
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.reader import ReaderShare, ReadRequest, ReadResult, SampleReader
from ossconsole.training.loading.shared_memory import SPAWN, SharedBuffer
from ossconsole.training.plan import BatchRequest, Split

QUEUED = 2
"""Requests one reader may hold: the one it reads and the next, so that it never waits for the loop."""

_JOIN_TIMEOUT_S = 5.0


class ReaderLostError(Exception):
    """A reader died or passed its deadline; it is replaced and its requests are asked again."""


@dataclass
class _ReaderProcess:
    process: SpawnProcess
    pipe: Connection
    held: deque[ReadRequest] = field(default_factory=deque)
    since: float = 0.0  # when it began the first request it holds


class ReaderPool:
    """`workers` processes that read into the slots of `share` (see SampleReader)."""

    def __init__(self, connector: ConnectorSettings, share: ReaderShare, *, workers: int, deadline_s: float) -> None:
        """Raises ConsoleError where not all of them can be started; none is left then."""
        self._new_reader = functools.partial(SampleReader, connector, share, workers=workers)
        self._native_log = connector.native_log
        self._deadline_s = deadline_s
        self._losses: deque[str] = deque()  # not told yet
        self._readers: list[_ReaderProcess] = []
        try:
            for number in range(workers):
                self._readers.append(self._start(number))
        except ConsoleError:
            self.close()
            raise

    @property
    def idle(self) -> bool:
        """Whether a reader has nothing to do."""
        return any(not reader.held for reader in self._readers)

    @property
    def room(self) -> bool:
        """Whether a reader can take a request."""
        return any(len(reader.held) < QUEUED for reader in self._readers)

    def ask(self, request: ReadRequest) -> None:
        """Gives the request to the reader with the least to do."""
        reader = min(self._readers, key=lambda each: len(each.held))
        if not reader.held:
            reader.since = time.monotonic()
        _give(reader, request)

    def poll(self, timeout_s: float) -> list[ReadResult]:
        """What arrived within `timeout_s`, at the latest at the first arrival.

        Raises ReaderLostError, but not before what other readers have delivered is given.
        """
        if self._losses:
            raise ReaderLostError(self._losses.popleft())
        pipes = {reader.pipe: number for number, reader in enumerate(self._readers)}
        results = []
        for ready in multiprocessing.connection.wait(list(pipes), timeout_s):
            number = pipes[ready]  # type: ignore[index]
            reader = self._readers[number]
            try:
                results.append(reader.pipe.recv())
            except (EOFError, OSError):
                if not self._recycled(number):
                    self._losses.append(f"Reader process {number} ended unexpectedly{self._replace(number)}.")
                continue
            reader.held.popleft()
            reader.since = time.monotonic()
        if results:
            return results
        self._check_deadlines()
        if self._losses:
            raise ReaderLostError(self._losses.popleft())
        return []

    def close(self) -> None:
        """Ends all readers, whatever they are doing."""
        for reader in self._readers:
            _end(reader)
        self._readers = []

    def _recycled(self, number: int) -> bool:
        """Whether a reader ended because it was time; a new one goes on with what it held."""
        process = self._readers[number].process
        process.join(_JOIN_TIMEOUT_S)
        if process.exitcode != 0:
            return False
        self._replace(number)
        return True

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for number, reader in enumerate(self._readers):
            if reader.held and now - reader.since > self._deadline_s:
                self._replace(number)
                self._losses.append(
                    f"No batch came from reader process {number} within {self._deadline_s:g} s; it was replaced."
                )

    def _replace(self, number: int) -> str:
        """Starts a new reader with the requests of the old one; gives how the old one ended, in words."""
        lost = self._readers[number]
        held = list(lost.held)
        _end(lost)
        self._readers[number] = replacement = self._start(number)
        replacement.since = time.monotonic()
        for request in held:
            _give(replacement, request)
        code = lost.process.exitcode or 0
        return f" ({signal.Signals(-code).name})" if code < 0 else f" (exit code {code})"

    def _start(self, number: int) -> _ReaderProcess:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(
            target=_serve,
            args=(theirs, self._new_reader, self._native_log, number),
            name=f"reader-{number}",
            daemon=True,
        )
        try:
            process.start()
        except OSError as error:
            raise ConsoleError(
                f"The reader process {number} could not be started: {error.strerror}.",
                remedy="Free memory, raise `ulimit -n` or `ulimit -u`, or use fewer --workers.",
            ) from error
        theirs.close()
        return _ReaderProcess(process, ours)


def _give(reader: _ReaderProcess, request: ReadRequest) -> None:
    reader.held.append(request)
    # A reader that died is noticed by `poll`, which asks its requests again.
    with contextlib.suppress(OSError):
        reader.pipe.send(request)


def _end(reader: _ReaderProcess) -> None:
    reader.pipe.close()
    # SIGKILL also reaches a process that is stopped, or deep in the connector's endless retries.
    reader.process.kill()
    reader.process.join(_JOIN_TIMEOUT_S)


def _serve(pipe: Connection, new_reader: Callable[..., SampleReader], native_log: Path, number: int) -> None:
    """The reader process: answers requests in order until its pipe closes."""
    become_child(native_log)
    reader = new_reader(number=number)
    while True:
        try:
            request = reader.pop_prefetched() or pipe.recv()
            result = reader.read(request, more=lambda: pipe.recv() if pipe.poll() else None)
        except EOFError:
            return
        pipe.send(result)
        if reader.needs_recycling:
            # Not in good order: the connector 1.2.3 can hang, or crash, when it lets go of what is being fetched.
            os._exit(0)


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
