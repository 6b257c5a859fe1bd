"""Ranges of tars, which a second process of each reader fetches while the reader decodes.

A thread cannot do this: the connector holds the GIL until a range has arrived (seen with 1.2.3).
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from ossconsole.config.endpoints import EndpointKind
from ossconsole.training.child import become_child
from ossconsole.training.data import Tar
from ossconsole.training.loading.shared_memory import EndpointSwitch, SharedBuffer

_TARS_OPEN = 1024  # an open one takes 2 KB; the first read of one takes 20 ms of CPU more than later ones (1.2.3)

_MAX_KEPT_BYTES = 32 << 20  # bytes of memory that is not used; windows of large batches can have more

_ERRNO = re.compile(r"\berrno=(\d+)")  # in the messages of the connector 1.2.3, which has no other sign of the cause


class RangeRequest(NamedTuple):
    """`size` bytes from `offset` on of a tar, through endpoint `kind`, for byte `at` of memory number `memory`.

    Nothing waits yet for one that is fetched `ahead`.
    """

    memory: int
    at: int
    kind: EndpointKind
    tar: Tar
    offset: int
    size: int
    ahead: bool = False


class FetchedRange(NamedTuple):
    """The result of a request: `exists` is whether the tar does, `failed` why its bytes did not arrive.

    It is `skipped` where it was ahead, and the run has switched to the other endpoint: a slow one must not hold up what
    comes after it.
    """

    request: RangeRequest
    exists: bool = True
    failed: str = ""
    skipped: bool = False


class _Allocated(NamedTuple):
    """New memory; the descriptor of it follows."""

    memory: int


class _Freed(NamedTuple):
    """Memory that is not used any more."""

    memory: int


class RangeFetcher:
    """The reader's end: requests are fetched in their order, whether the reader waits or not.

    All methods raise EOFError or OSError when the process has ended.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._allocated = 0
        self._in_use: dict[int, memoryview] = {}  # by number of the memory
        self._unused: tuple[int, memoryview] | None = None  # new memory has to be cleared and mapped
        self._pending: Counter[int] = Counter()  # requests without a result, by number of the memory
        self._fetched: dict[tuple[int, int], FetchedRange] = {}  # by memory and position there

    def allocate(self, size: int) -> tuple[int, memoryview]:
        """The number and a view of `size` bytes of memory. Raises ConsoleError when there is too little."""
        if self._unused is not None and len(self._unused[1]) >= size:
            (number, whole), self._unused = self._unused, None
        else:
            number, whole = self._new(size)
        self._in_use[number] = whole
        return number, whole[:size]

    def free(self, memory: int) -> None:
        """Ends the use of memory. The largest is kept for the next use, unless a range of it has not arrived yet.

        All others are freed as soon as their views are gone, and that range has arrived.
        """
        whole = self._in_use.pop(memory)
        self._fetched = {key: found for key, found in self._fetched.items() if key[0] != memory}
        kept = self._unused
        if not self._pending[memory] and len(whole) <= _MAX_KEPT_BYTES and (kept is None or len(kept[1]) < len(whole)):
            self._unused = memory, whole
            if kept is None:
                return
            memory, _ = kept
        self._pipe.send(_Freed(memory))

    def start(self, request: RangeRequest) -> None:
        """Fetches a range after those that were requested before."""
        self._pipe.send(request)
        self._pending[request.memory] += 1

    def wait(self, request: RangeRequest) -> FetchedRange:
        """The result of a request."""
        key = request.memory, request.at
        while (found := self._fetched.pop(key, None)) is None or found.request != request:
            newest: FetchedRange = self._pipe.recv()
            self._pending[newest.request.memory] -= 1
            if newest.request.memory in self._in_use:
                self._fetched[newest.request.memory, newest.request.at] = newest
        return found

    def _new(self, size: int) -> tuple[int, memoryview]:
        buffer = SharedBuffer(size, holds="ranges of shards", remedy="Free memory, or use fewer --workers.")
        self._allocated += 1
        with contextlib.closing(buffer):
            self._pipe.send(_Allocated(self._allocated))
            buffer.send(self._pipe)
        return self._allocated, memoryview(buffer.memory)


class TarRanges:
    """Reads ranges of the tars of a bucket with the connector.

    `connector` returns a `DataSet` of the connector, which serves any number of tars.
    """

    def __init__(self, bucket: str, connector: Callable[[EndpointKind], Any]) -> None:
        self._bucket = bucket
        self._connector = connector
        self._connected: dict[EndpointKind, Any] = {}
        self._opened: OrderedDict[tuple[EndpointKind, str], Any] = OrderedDict()

    def fetch(self, request: RangeRequest, memory: memoryview) -> FetchedRange:
        """Reads one range to its place in `memory`, with one request to the endpoint."""
        try:
            source = self._open(request.kind, request.tar)
            source.seek(request.offset, 0)
            count = source.readinto(memory[request.at : request.at + request.size])
        except RuntimeError as error:  # the connector's only exception, also when it cannot be opened
            found = _ERRNO.search(str(error))
            missing = found is not None and int(found[1]) == errno.ENOENT
            return FetchedRange(request, exists=not missing, failed="" if missing else str(error))
        short = f"only {count} of {request.size} bytes of {request.tar.key} arrived" if count != request.size else ""
        return FetchedRange(request, failed=short)

    def _open(self, kind: EndpointKind, tar: Tar) -> Any:
        """The connector's object for a tar; opening it sends no request."""
        found = self._opened.pop((kind, tar.key), None)
        if found is None:
            if kind not in self._connected:
                self._connected[kind] = self._connector(kind)
            found = self._connected[kind].open_ro(self._bucket, tar.key, tar.bytes, 0, "")
        self._opened[kind, tar.key] = found  # at the end: the first one is the longest unused
        if len(self._opened) > _TARS_OPEN:
            self._opened.popitem(last=False)
        return found


def fetch_ranges(
    pipe: Connection,
    bucket: str,
    connector: Callable[[EndpointKind], Any],
    switch: EndpointSwitch,
    native_log: Path,
) -> None:
    """The process: fetches what is requested until its pipe closes."""
    become_child(native_log)
    ranges, memories = TarRanges(bucket, connector), dict[int, memoryview]()
    with contextlib.suppress(EOFError, ConnectionError):  # the reader has ended
        while True:
            message = pipe.recv()
            if isinstance(message, _Allocated):
                memories[message.memory] = _received_memory(pipe)
            elif isinstance(message, _Freed):
                del memories[message.memory]
            elif message.ahead and message.kind is not switch.endpoint:
                pipe.send(FetchedRange(message, skipped=True))
            else:
                pipe.send(ranges.fetch(message, memories[message.memory]))


def _received_memory(pipe: Connection) -> memoryview:
    """The only reference to memory that the reader has shared: an open descriptor would keep it when it is freed."""
    with contextlib.closing(SharedBuffer.received(pipe)) as buffer:
        return memoryview(buffer.memory)
