"""The windows of tars that a reader holds: a few large reads have the samples of several batches."""

from __future__ import annotations

import errno
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ossconsole.config.endpoints import EndpointKind
from ossconsole.training.data import Tar
from ossconsole.training.loading.connector import EndpointFailedError
from ossconsole.training.loading.shared_memory import Members, SampleTable
from ossconsole.training.plan import Split, Window

SPAN_BYTES = 8 << 20
"""About the most bytes of one read: more neighbours are read in several, each of at least half as many bytes."""

_TARS_OPEN = 1024  # an open one takes 2 KB; the first read of one takes 20 ms of CPU more than later ones (1.2.3)

_ERRNO = re.compile(r"\berrno=(\d+)")  # in the messages of the connector 1.2.3, which has no other sign of the cause


@dataclass
class _Span:
    """Neighbours in a tar that are read at once; `left` of them are not handed out yet.

    `data` were read through `endpoint`; None for a tar that does not exist.
    """

    tar: int
    offset: int
    size: int
    left: int
    data: memoryview | None = None
    endpoint: EndpointKind | None = None  # None before the read


class ShardWindows:
    """The encoded samples of the windows that one reader reads, for each lane those of its latest window.

    `connector` returns a `DataSet` of the connector, which serves any number of tars.
    """

    def __init__(self, samples: SampleTable, bucket: str, connector: Callable[[EndpointKind], Any]) -> None:
        self._samples = samples
        self._bucket = bucket
        self._connector = connector
        self._held: dict[int, _HeldWindow] = {}
        self._opened: OrderedDict[tuple[EndpointKind, str], Any] = OrderedDict()

    def read(
        self, split: Split, lane: int, window: Window, kind: EndpointKind, rows: npt.NDArray[np.int64]
    ) -> Iterator[memoryview | None]:
        """The bytes of the samples at `rows`, in that order; None for those of a tar that does not exist.

        All come through `kind`: what was read through the other endpoint before is read again. Raises
        EndpointFailedError, and RuntimeError when the connector cannot be opened.
        """
        held = self._held.get(lane)
        if held is None or held.window != window:
            self._held.pop(lane, None)  # frees its memory first
            held = self._held[lane] = _HeldWindow(self._samples, split, window)
        for at in ((rows - window.first) % self._samples.count(split)).tolist():
            span = held.spans[held.span_of[at]]
            if span.endpoint is not kind:
                self._fetch(split, span, kind)
            yield None if span.data is None else span.data[held.starts[at] : held.ends[at]]
            span.left -= 1
            if not span.left:
                span.data = span.endpoint = None

    def forget(self, lane: int) -> None:
        """Reads the window of a lane again on its next use, because what arrived is not right."""
        self._held.pop(lane, None)

    def _fetch(self, split: Split, span: _Span, kind: EndpointKind) -> None:
        span.data = span.endpoint = None
        tar = self._samples.tar(split, span.tar)
        data = np.empty(span.size, np.uint8).data
        source = self._open(kind, tar)
        try:
            source.seek(span.offset, 0)
            count = source.readinto(data)  # one request
        except RuntimeError as error:  # the connector's only exception
            found = _ERRNO.search(str(error))
            if found is None or int(found[1]) != errno.ENOENT:
                raise EndpointFailedError(str(error)) from error
        else:
            if count != span.size:
                raise EndpointFailedError(f"only {count} of {span.size} bytes of {tar.key} arrived")
            span.data = data
        span.endpoint = kind

    def _open(self, kind: EndpointKind, tar: Tar) -> Any:
        """The connector's object for a tar; opening it sends no request."""
        found = self._opened.pop((kind, tar.key), None)
        if found is None:
            found = self._connector(kind).open_ro(self._bucket, tar.key, tar.bytes, 0, "")
        self._opened[kind, tar.key] = found  # at the end: the first one is the longest unused
        if len(self._opened) > _TARS_OPEN:
            self._opened.popitem(last=False)
        return found


class _HeldWindow:
    """A window's samples in stored order. Sample i is bytes `starts[i]` to `ends[i]` of `spans[span_of[i]]`."""

    def __init__(self, samples: SampleTable, split: Split, window: Window) -> None:
        self.window = window
        members = samples.members(split, (window.first + np.arange(window.count)) % samples.count(split))
        ends = members.offsets + members.sizes
        bounds = _span_bounds(members)
        self.spans = [
            _Span(int(members.tars[a]), int(members.offsets[a]), int(ends[b - 1] - members.offsets[a]), b - a)
            for a, b in itertools.pairwise(bounds)
        ]
        counts = np.diff(bounds)
        self.span_of = np.repeat(np.arange(len(self.spans)), counts)
        begin = np.repeat(members.offsets[bounds[:-1]], counts)
        self.starts, self.ends = members.offsets - begin, ends - begin


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
