"""The windows of tars that a reader holds: a few large reads have the samples of several batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ossconsole.config.endpoints import EndpointKind
from ossconsole.training.loading.connector import EndpointFailedError
from ossconsole.training.loading.range_fetcher import FetchedRange, RangeRequest
from ossconsole.training.loading.shared_memory import Members, SampleTable
from ossconsole.training.plan import WINDOW_BYTES, Window

SPAN_BYTES = 8 << 20
"""About the most bytes of one read: more neighbours are read in several, each of at least half as many bytes."""

_AHEAD_BYTES = 2 * WINDOW_BYTES
"""No further window is fetched ahead while those that are have as many bytes."""


class Fetcher(Protocol):
    """The part of RangeFetcher that the windows use."""

    def allocate(self, size: int) -> tuple[int, memoryview]:
        """See `RangeFetcher.allocate`."""

    def free(self, memory: int) -> None:
        """See `RangeFetcher.free`."""

    def start(self, request: RangeRequest) -> None:
        """See `RangeFetcher.start`."""

    def wait(self, request: RangeRequest) -> FetchedRange:
        """See `RangeFetcher.wait`."""


@dataclass
class _Span:
    """Neighbours in a tar that are read at once, for byte `at` of the window; `left` of them are not handed out yet.

    `requested` is the newest request, `endpoint` the one that the bytes came through; None before. `exists` is whether
    the tar does.
    """

    tar: int
    offset: int
    size: int
    at: int
    left: int
    requested: RangeRequest | None = None
    endpoint: EndpointKind | None = None
    exists: bool = True


class ShardWindows:
    """The encoded samples of the windows that one reader reads, for each lane those of its latest window.

    The next window of a lane is fetched while the last batches of the current one are decoded.
    """

    def __init__(self, samples: SampleTable, fetcher: Fetcher) -> None:
        self._samples = samples
        self._fetcher = fetcher
        self._held: dict[int, _HeldWindow] = {}
        self._ahead: dict[int, _HeldWindow] = {}

    def read(
        self,
        lane: int,
        window: Window,
        kind: EndpointKind,
        rows: npt.NDArray[np.int64],
        *,
        next_window: Window | None = None,
    ) -> Iterator[memoryview | None]:
        """The bytes of the samples at `rows`, in that order; None for those of a tar that does not exist.

        All come through `kind`: what was read through the other endpoint before is read again. `next_window` is fetched
        meanwhile. Raises EndpointFailedError; EOFError and OSError when the fetcher's process has ended; ConsoleError
        without memory.
        """
        held = self._hold(lane, window)
        places = ((rows - window.first) % self._samples.count(window.split)).tolist()
        for number in dict.fromkeys(held.span_of[places].tolist()):
            self._start(held, held.spans[number], kind)
        if next_window is not None and lane not in self._ahead and self._may_fetch_ahead():
            ahead = self._ahead[lane] = _HeldWindow(self._samples, next_window)
            for span in ahead.spans:
                self._start(ahead, span, kind, ahead=True)
        for at in places:
            span = held.spans[held.span_of[at]]
            yield held.view[held.starts[at] : held.ends[at]] if self._arrived(span) else None
            span.left -= 1
        if all(span.left <= 0 for span in held.spans):
            held.free(self._fetcher)

    def forget(self, lane: int) -> None:
        """Reads the window of a lane again on its next use, because what arrived is not right."""
        self._drop(self._held, lane)

    def _hold(self, lane: int, window: Window) -> _HeldWindow:
        """The window of a lane in place of the one before; that fetched ahead where it is the same."""
        held = self._held.get(lane)
        if held is not None and held.window == window:
            return held
        self._drop(self._held, lane)
        ahead = self._ahead.get(lane)
        if ahead is not None and ahead.window == window:
            del self._ahead[lane]
            self._held[lane] = ahead
        else:
            self._drop(self._ahead, lane)
            self._held[lane] = _HeldWindow(self._samples, window)
        return self._held[lane]

    def _drop(self, windows: dict[int, _HeldWindow], lane: int) -> None:
        window = windows.pop(lane, None)
        if window is not None:
            window.free(self._fetcher)

    def _may_fetch_ahead(self) -> bool:
        return sum(window.bytes for window in self._ahead.values()) < _AHEAD_BYTES

    def _start(self, held: _HeldWindow, span: _Span, kind: EndpointKind, *, ahead: bool = False) -> None:
        """Requests a span unless it was requested, or is there, through this endpoint."""
        if kind in (span.endpoint, span.requested.kind if span.requested else None):
            return
        held.allocate(self._fetcher)
        tar = self._samples.tar(held.window.split, span.tar)
        span.endpoint = None
        span.requested = RangeRequest(held.memory, span.at, kind, tar, span.offset, span.size, ahead)
        self._fetcher.start(span.requested)

    def _arrived(self, span: _Span) -> bool:
        """Waits for the bytes of a span; False where its tar does not exist. Raises EndpointFailedError."""
        if span.requested is not None:
            request, span.requested = span.requested, None
            found = self._fetcher.wait(request)
            if found.skipped:
                request = request._replace(ahead=False)
                self._fetcher.start(request)
                found = self._fetcher.wait(request)
            if found.failed:
                raise EndpointFailedError(found.failed)
            span.endpoint, span.exists = request.kind, found.exists
        return span.exists


class _HeldWindow:
    """A window's samples in stored order. Sample i is bytes `starts[i]` to `ends[i]` of `view`, in `spans[span_of[i]]`.

    It has memory of a fetcher from the first request to `free`.
    """

    def __init__(self, samples: SampleTable, window: Window) -> None:
        self.window = window
        self.memory = 0  # none
        self.view = memoryview(b"")
        rows = (window.first + np.arange(window.count)) % samples.count(window.split)
        members = samples.members(window.split, rows)
        ends = members.offsets + members.sizes
        bounds = _span_bounds(members)
        sizes = ends[[bound - 1 for bound in bounds[1:]]] - members.offsets[bounds[:-1]]
        places = np.cumsum(sizes) - sizes
        self.bytes = int(sizes.sum())
        self.spans = [
            _Span(int(members.tars[a]), int(members.offsets[a]), int(size), int(place), b - a)
            for (a, b), size, place in zip(itertools.pairwise(bounds), sizes, places, strict=True)
        ]
        counts = np.diff(bounds)
        self.span_of = np.repeat(np.arange(len(self.spans)), counts)
        begin = np.repeat(members.offsets[bounds[:-1]] - places, counts)
        self.starts, self.ends = members.offsets - begin, ends - begin

    def allocate(self, fetcher: Fetcher) -> None:
        """Takes memory, unless it has some."""
        if not self.memory:
            self.memory, self.view = fetcher.allocate(self.bytes)

    def free(self, fetcher: Fetcher) -> None:
        """Frees the memory; the spans are read again on their next use."""
        if self.memory:
            fetcher.free(self.memory)
        self.memory, self.view = 0, memoryview(b"")
        for span in self.spans:
            span.requested = span.endpoint = None


def _span_bounds(members: Members) -> list[int]:
    """The samples where spans begin and end: at the ends of tars, and where a span would be longer than allowed."""
    jumps = np.flatnonzero((np.diff(members.tars) != 0) | (np.diff(members.offsets) < 0)) + 1
    runs = [0, *jumps.tolist(), len(members.tars)]
    bounds = [0]
    for first, after in itertools.pairwise(runs):
        offsets = members.offsets[first:after] - members.offsets[first]
        size = int(offsets[-1] + members.sizes[after - 1])
        spans = offsets * -(-size // SPAN_BYTES) // size
        bounds += [*(np.flatnonzero(np.diff(spans)) + 1 + first).tolist(), after]
    return bounds
