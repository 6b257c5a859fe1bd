"""The rates of endpoint and connector alone, measured in child processes: the limits of a loader. No torch here."""

from __future__ import annotations

import http.client
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.training.child import become_child, spawn
from ossconsole.training.loading.connector import ConnectorSettings, native

CONNECTIONS = 24
"""HTTP connections of each process: the connector's default number of concurrent reads."""

_START_TIMEOUT_S = 60.0
_SLACK_S = 60.0  # after the measured seconds, until a process counts as stuck

Objects: TypeAlias = Sequence[tuple[str, int]]
"""Keys in the bucket and sizes in bytes."""

Reader: TypeAlias = Callable[[], int]
"""Reads some objects and returns their number."""

ReaderFactory: TypeAlias = Callable[[int], Reader]
"""Makes the reader of process `number`, in that process."""


@dataclass(frozen=True)
class HttpReader:
    """Makes readers of presigned URLs (with sizes in bytes): plain GETs over CONNECTIONS persistent connections."""

    urls: Objects

    def __call__(self, number: int) -> Reader:
        order = list(self.urls)
        random.Random(number).shuffle(order)  # noqa: S311 - spreads the processes over the objects
        largest = max(size for _, size in order)
        turns = itertools.cycle(order)
        lock = threading.Lock()
        local = threading.local()

        def read_one() -> None:
            if not hasattr(local, "buffer"):
                local.buffer = bytearray(largest)
                local.connection = _connection(order[0][0])
            with lock:
                url, size = next(turns)
            _get(local.connection, url, memoryview(local.buffer)[:size])

        return _Threads(read_one, CONNECTIONS).read


@dataclass(frozen=True)
class ConnectorReader:
    """Makes readers through the connector, batch by batch, that drop the data."""

    connector: ConnectorSettings
    kind: EndpointKind
    objects: Objects
    batch_size: int
    processes: int

    def __call__(self, number: int) -> Reader:
        opened = self.connector.open(self.kind, number=number, total=self.processes)
        bucket = self.connector.profile.bucket
        order = list(self.objects)
        random.Random(number).shuffle(order)  # noqa: S311 - as above
        turns = itertools.cycle(order)

        def read_batch() -> int:
            batch = [
                native().new_data_object(f"oss://{bucket}/{key}", size, "")
                for key, size in itertools.islice(turns, self.batch_size)
            ]
            # The call of OssMapDataset.__getitems__; each object is fetched completely first.
            count: int = sum(obj.err() == 0 for obj in opened.list_from_uris(batch, True, True))
            if count != len(batch):
                raise ConsoleError(
                    f"The connector did not deliver {len(batch) - count} of {counted(len(batch), 'sample')}."
                )
            return count

        return read_batch


def rate(new_reader: ReaderFactory, native_log: Path, *, processes: int, seconds: float) -> float:
    """Objects/s of all `processes`; each makes a reader and calls it for `seconds`, after a warm-up call.

    Their output goes to `native_log`. Raises ConsoleError when a process fails.
    """
    spawned = [spawn(f"limit-{number}", _serve, new_reader, native_log, number, seconds) for number in range(processes)]
    pipes = [pipe for _, pipe in spawned]
    try:
        for pipe in pipes:
            _answer(pipe, _START_TIMEOUT_S)
        for pipe in pipes:
            pipe.send(None)
        return sum(_answer(pipe, seconds + _SLACK_S) for pipe in pipes)
    finally:
        for child, _ in spawned:
            child.kill()
            child.join()


def _answer(pipe: Connection, timeout_s: float) -> float:
    try:
        answer = pipe.recv() if pipe.poll(timeout_s) else "no answer in time"
    except EOFError:
        answer = "its process exited"
    if isinstance(answer, str):
        raise ConsoleError(
            f"A limit could not be measured: {answer}.", remedy="`ossconsole doctor` checks the endpoints."
        )
    return float(answer)


def _serve(pipe: Connection, new_reader: ReaderFactory, native_log: Path, number: int, seconds: float) -> None:
    become_child(native_log)
    try:
        read = new_reader(number)
        read()
        pipe.send(0.0)
        pipe.recv()
        pipe.send(_per_second(read, seconds))
    except (OSError, RuntimeError, ConsoleError, http.client.HTTPException) as error:
        pipe.send(str(error) or type(error).__name__)


def _per_second(read: Reader, seconds: float) -> float:
    read()  # drops what accumulated meanwhile
    begun, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        count += read()
    return count / passed if count else 0.0


class _Threads:
    """Calls a function repeatedly in many threads; `read` returns the number of calls since the last `read`."""

    def __init__(self, action: Callable[[], None], count: int) -> None:
        self._action = action
        self._changed = threading.Condition()
        self._done = 0
        self._error: Exception | None = None
        for _ in range(count):
            threading.Thread(target=self._work, daemon=True).start()

    def read(self) -> int:
        """Waits for at least one call to return. Raises the function's error."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or self._error, _START_TIMEOUT_S)
            if self._error is not None:
                raise self._error
            done, self._done = self._done, 0
            return done

    def _work(self) -> None:
        while True:
            error = None
            try:
                self._action()
            except (OSError, ConsoleError, http.client.HTTPException) as raised:
                error = raised
            with self._changed:
                self._done += error is None
                self._error = self._error or error
                self._changed.notify()
                if error is not None:
                    return


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.netloc, timeout=_START_TIMEOUT_S)


def _get(connection: http.client.HTTPConnection, url: str, target: memoryview) -> None:
    parts = urlsplit(url)
    connection.request("GET", f"{parts.path}?{parts.query}")
    answer = connection.getresponse()
    filled = 0
    while filled < len(target) and (count := answer.readinto(target[filled:])):
        filled += count
    rest = answer.read()
    if answer.status != 200 or filled != len(target) or rest:
        raise ConsoleError(f"A plain GET was answered with status {answer.status} and {filled + len(rest)} bytes")
