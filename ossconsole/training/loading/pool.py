"""The reader processes: started, given requests, listened to, and replaced when they die or get stuck.

Each has a pipe of its own, so that killing one can never leave a lock behind that the others or the loop need; torch's
DataLoader shares queues between its workers, and its shutdown can hang on them for just that reason.
"""

from __future__ import annotations

import contextlib
import functools
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

from ossconsole.config.errors import ConsoleError
from ossconsole.training.child import become_child
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.reader import ReaderShare, ReadRequest, ReadResult, SampleReader
from ossconsole.training.loading.shared_memory import SPAWN

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
