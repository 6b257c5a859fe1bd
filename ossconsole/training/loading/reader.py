"""The reader: runs in a spawned process, and lets the connector fill one batch buffer after the other."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import fastcrc
import numpy as np
import numpy.typing as npt
import tenacity

from ossconsole.config.connector import load_connector_config
from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.decode import UnreadableImageError, import_jpeg_libraries, keep_freed_memory
from ossconsole.storage.retry import RetryPolicy, backoff
from ossconsole.training.data import UNKNOWN_MD5
from ossconsole.training.loading.connector import ConnectorSettings, EndpointFailedError, native
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.loading.range_fetcher import RangeFetcher
from ossconsole.training.loading.shard_windows import ShardWindows
from ossconsole.training.loading.shared_memory import EndpointSwitch, SampleInfo, SampleTable, SharedBuffer
from ossconsole.training.plan import Split, Window

RETRIES = RetryPolicy(attempts=3, first_wait_s=0.5, longest_wait_s=5.0)
"""Attempts at a batch; the connector itself repeats each request 8 to 16 times, and does not report throttling."""

MISSING = "it is not in the bucket"
"""The reason for a sample that the connector did not find."""


class ReadRequest(NamedTuple):
    """One batch: its buffer slot, its split and epoch, its number of samples; their rows are in the `ReaderShare`.

    `lane`, `window` and `next_window` are those of the BatchRequest. Its size does not depend on the batch size, so
    that sending it never blocks.
    """

    number: int
    slot: int
    split: Split
    epoch: int
    samples: int
    lane: int = 0
    window: Window | None = None
    next_window: Window | None = None


@dataclass(frozen=True)
class ReaderShare:
    """The memory that the loop and its readers share.

    `shape` is (slots, batch, bytes per row) of the uint8 `buffer`. `rows` has the rows in the sample table for each
    slot: int64, shape (slots, batch).
    """

    switch: EndpointSwitch
    samples: SampleTable
    transform: SampleTransform
    buffer: SharedBuffer
    rows: SharedBuffer
    shape: tuple[int, int, int]

    def rows_of(self, slot: int, count: int) -> npt.NDArray[np.int64]:
        """A view of the first `count` rows of a slot: int64, shape (count,)."""
        return np.frombuffer(self.rows.memory, dtype=np.int64).reshape(self.shape[:2])[slot, :count]


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used: its position in the request, and the reason."""

    position: int
    reason: str


@dataclass(frozen=True)
class ReadResult:
    """The result of a request. The slot holds all samples but the `bad` ones, in order and without gaps.

    `seconds` is the time of the last attempt, `decode_s` the part of it for decoding and cropping. `bad` are the
    skipped samples (missing, wrong size, not an image). `failed` is why the batch could not be read although its
    samples may exist: its rows must not be used then; the sample at position `failed_at` was the first to fail.
    `reader` is the number of the reader process.
    """

    number: int
    slot: int
    endpoint: EndpointKind
    bytes: int
    seconds: float
    decode_s: float
    retries: int
    bad: tuple[BadSample, ...]
    failed: str
    reader: int = 0
    failed_at: int = 0


_CONCURRENCY = "datasetConfig.prefetchConcurrency"
_DEFAULT_CONCURRENCY = 24  # the connector's default


class _Prefetched(NamedTuple):
    """A batch being fetched while the previous one is read; `at` is on the clock of `time.perf_counter`."""

    request: ReadRequest
    samples: SampleInfo
    endpoint: EndpointKind
    objects: Iterator[Any]
    at: float


class SampleReader:
    """Reads requests into shared buffers, through the current endpoint of the switch.

    The connector cannot be pickled; it is opened here, once per endpoint, on first use. It must not share a process
    with torch's threads or with the console: it holds the GIL while it reads, retries some refusals without end, and
    aborts on a malformed reply.
    """

    def __init__(
        self,
        settings: ConnectorSettings,
        share: ReaderShare,
        *,
        number: int = 0,
        workers: int = 1,
        ranges: Connection | None = None,
    ) -> None:
        """`ranges` leads to the process of `fetch_ranges`; only shards need one."""
        self._settings = settings
        self._share = share
        self._switch = share.switch
        self._slots = np.frombuffer(share.buffer.memory, dtype=np.uint8).reshape(share.shape)
        self._number = number
        self._workers = workers
        import_jpeg_libraries()
        keep_freed_memory()
        self._compare_etags = True
        self._opened: dict[EndpointKind, Any] = {}
        self._windows = ShardWindows(share.samples, RangeFetcher(ranges)) if ranges is not None else None
        self._upcoming: ReadRequest | None = None
        self._prefetched: _Prefetched | None = None
        # When no more objects than these are left, all are being fetched. With more left, the objects of the next batch
        # could take the connector's slots that this batch needs, and both would block (seen with 1.2.3).
        configured = load_connector_config(settings.config_path).get(_CONCURRENCY, _DEFAULT_CONCURRENCY)
        self._all_in_flight = int(configured) * 3 // 4

    def pop_prefetched(self) -> ReadRequest | None:
        """The request that `read` took from `next_request` and that must be read next; None without one."""
        upcoming, self._upcoming = self._upcoming, None
        return upcoming

    def read(self, request: ReadRequest, next_request: Callable[[], ReadRequest | None] = lambda: None) -> ReadResult:
        """Reads one batch into its slot, with retries.

        Near its end it calls `next_request` and starts to fetch that batch, so that the connector is never idle between
        two batches.
        """
        prefetched = self._prefetched
        samples = (
            prefetched.samples if prefetched is not None and prefetched.request is request else self._look_up(request)
        )
        attempt = _Attempt(
            request, samples, self._slots[request.slot], self._share.transform, compare_etags=self._compare_etags
        )
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(EndpointFailedError),
            stop=tenacity.stop_after_attempt(RETRIES.attempts),
            wait=backoff(RETRIES),
            reraise=True,
        )
        failed = ""
        try:
            retrying(self._read, attempt, next_request)
        except EndpointFailedError as error:
            failed = str(error)
        self._compare_etags = attempt.compare_etags
        return attempt.result(failed, retries=retrying.statistics["attempt_number"] - 1, reader=self._number)

    def _read(self, attempt: _Attempt, next_request: Callable[[], ReadRequest | None]) -> None:
        """Reads what is still missing of the batch, through the endpoint that is current now."""
        prefetched, self._prefetched = self._prefetched, None
        if prefetched is not None and prefetched.request is not attempt.request:
            prefetched = None
        attempt.begin(
            *((prefetched.endpoint, prefetched.at) if prefetched else (self._switch.endpoint, time.perf_counter()))
        )
        if not attempt.missing:  # a rank's share of the last batch may be empty
            return
        try:
            if attempt.request.window is not None:
                self._read_window(attempt, attempt.request.window)
            else:
                objects = (
                    prefetched.objects
                    if prefetched
                    else self._objects(attempt.endpoint, attempt.samples, attempt.missing)
                )
                for obj in objects:
                    attempt.take(obj)
                    # After a failure the connector takes long to release its objects: start no more.
                    if len(attempt.missing) <= self._all_in_flight and not attempt.failures:
                        self._prefetch(next_request)
        except (RuntimeError, EndpointFailedError) as error:  # the first is the connector's only exception
            attempt.fail(str(error), attempt.missing[0])
        if attempt.failures or attempt.missing:
            self._prefetched = None  # frees the connector's slots for the next attempt
            raise EndpointFailedError(attempt.failures[0] if attempt.failures else "not all samples arrived")

    def _prefetch(self, next_request: Callable[[], ReadRequest | None]) -> None:
        """Starts to fetch the next request, if there is one."""
        if self._prefetched is not None:
            return
        self._upcoming = request = self._upcoming or next_request()
        if request is None or not request.samples:
            return
        samples = self._look_up(request)
        kind, at = self._switch.endpoint, time.perf_counter()
        with contextlib.suppress(RuntimeError):  # it fails again in its turn, and is reported then
            objects = self._objects(kind, samples, list(range(request.samples)))
            self._prefetched = _Prefetched(request, samples, kind, objects, at)

    def _read_window(self, attempt: _Attempt, window: Window) -> None:
        request, windows = attempt.request, self._windows
        assert windows is not None  # noqa: S101 - the pool gives the reader of shards a fetcher
        rows = attempt.samples.rows[attempt.missing]
        for data in windows.read(request.lane, window, attempt.endpoint, rows, next_window=request.next_window):
            attempt.take_member(data)
        if attempt.failures:
            windows.forget(request.lane)

    def _look_up(self, request: ReadRequest) -> SampleInfo:
        return self._share.samples.look_up(request.split, self._share.rows_of(request.slot, request.samples))

    def _connector(self, kind: EndpointKind) -> Any:
        """The connector on an endpoint; one serves all objects."""
        if kind not in self._opened:
            self._opened[kind] = self._settings.open(kind, number=self._number, total=self._workers)
        return self._opened[kind]

    def _objects(self, kind: EndpointKind, samples: SampleInfo, positions: list[int]) -> Iterator[Any]:
        """The connector's objects at `positions`, in that order; they are fetched concurrently and ahead.

        `OssMapDataset.__getitems__` makes this call. That class is not used, because it holds every object of the
        dataset in each process and does not report which sample of a batch failed.
        """
        bucket = self._settings.profile.bucket
        objects = [
            native().new_data_object(f"oss://{bucket}/{samples.keys[position]}", int(samples.sizes[position]), "")
            for position in positions
        ]
        fetched: Iterator[Any] = self._connector(kind).list_from_uris(objects, True, True)  # prefetch, include errors
        return fetched


class _Attempt:
    """One batch being read, perhaps in several attempts. Row i of `rows` belongs to position i until `result`.

    `compare_etags` becomes False once an ETag has turned out not to be the MD5 that it looks like.
    """

    def __init__(
        self,
        request: ReadRequest,
        samples: SampleInfo,
        rows: npt.NDArray[np.uint8],
        transform: SampleTransform,
        *,
        compare_etags: bool,
    ) -> None:
        self.request = request
        self.compare_etags = compare_etags
        self.samples = samples
        self.endpoint = EndpointKind.STANDARD
        self.failures: list[str] = []
        self.missing: list[int] = []  # positions; the first is being read
        self._failed_at = 0
        self._rows = rows
        self._transform = transform
        self._bad: list[BadSample] = []
        self._done = np.zeros(request.samples, dtype=bool)
        self._checksum_errors: Counter[int] = Counter()
        self._digests: dict[int, bytes] = {}
        self._begun_at = self._decode_s = 0.0

    def begin(self, kind: EndpointKind, at: float) -> None:
        self.endpoint = kind
        self.failures = []
        self._decode_s = 0.0
        skipped = {bad.position for bad in self._bad}
        self.missing = [i for i in range(len(self._done)) if not self._done[i] and i not in skipped]
        self._begun_at = at

    def fail(self, reason: str, position: int) -> None:
        """Records that a sample, which may exist, did not arrive."""
        if not self.failures:
            self._failed_at = position
        self.failures.append(reason)

    def take(self, obj: Any) -> None:
        """Reads the next object of the attempt into its row."""
        position = self.missing[0]
        size = int(self.samples.sizes[position])
        if obj.err() == errno.ENOENT:
            self._bad.append(BadSample(position, MISSING))
        elif obj.err() != 0:
            self.fail(f"{obj.error_msg()} (errno {obj.err()})", position)
        elif obj.size != size:  # the size in the response, not in the request
            self._bad.append(BadSample(position, f"it has {obj.size} bytes, but the manifest says {size}"))
        else:
            self._fill(obj, position, size)
        del self.missing[0]

    def take_member(self, data: memoryview | None) -> None:
        """Writes the next sample of the attempt to its row; None for one in a tar that does not exist."""
        position = self.missing[0]
        if data is None:
            self._bad.append(BadSample(position, MISSING))
        elif self._fits(len(data), position):
            if self._transform.raw:
                memoryview(self._rows[position])[: len(data)] = data
            self._finish(data, position)
        del self.missing[0]

    def _fill(self, obj: Any, position: int, size: int) -> None:
        if not self._fits(size, position):
            return
        data = memoryview(self._rows[position])[:size] if self._transform.raw else memoryview(bytearray(size))
        count = obj.readinto(data)
        if count != size:
            self.fail(f"only {count} of {size} bytes of a sample arrived", position)
        else:
            self._finish(data, position)

    def _fits(self, size: int, position: int) -> bool:
        row_bytes = len(self._rows[position])
        if not self._transform.raw or size <= row_bytes:
            return True
        self._bad.append(BadSample(position, f"it has {size} bytes, those of this dataset have {row_bytes}"))
        return False

    def _finish(self, data: memoryview, position: int) -> None:
        """Checks the bytes of a sample, and decodes them unless the row has them."""
        if self._checksum_differs(data, position):
            self._record_checksum_error(position)
        elif self._transform.raw:
            self._done[position] = True
        else:
            self._decode(bytes(data), position)

    def _decode(self, data: bytes, position: int) -> None:
        """Writes an image to its row."""
        begun = time.perf_counter()
        samples, request = self.samples, self.request
        rng = self._transform.rng(request.split, request.epoch, int(samples.rows[position]))
        try:
            self._transform.write(
                data, int(samples.heights[position]), int(samples.widths[position]), rng, self._rows[position]
            )
        except UnreadableImageError as error:
            self._bad.append(BadSample(position, f"it cannot be decoded: {error.message}"))
        else:
            self._done[position] = True
        self._decode_s += time.perf_counter() - begun

    def _checksum_differs(self, row: memoryview, position: int) -> bool:
        """Whether the CRC64 or the MD5 differs; the connector does not compare them (seen with 1.2.3)."""
        crc64 = int(self.samples.crc64s[position])
        if crc64:
            return bool(fastcrc.crc64.xz(row) != crc64)
        etag = self.samples.md5s[position].tobytes()
        if not self.compare_etags or etag == UNKNOWN_MD5:
            return False
        digest = hashlib.md5(row, usedforsecurity=False).digest()
        if digest == etag:
            return False
        # The same bytes a second time are those in the bucket: the ETag is not their MD5, as with KMS.
        self.compare_etags = self._digests.get(position) != digest
        self._digests[position] = digest
        return self.compare_etags

    def _record_checksum_error(self, position: int) -> None:
        """A checksum that differs on every attempt is wrong in the bucket, not corrupted in transit."""
        self._checksum_errors[position] += 1
        kind = "CRC64" if self.samples.crc64s[position] else "MD5"
        if self._checksum_errors[position] >= RETRIES.attempts:
            self._bad.append(BadSample(position, f"its bytes differ from the manifest ({kind})"))
        else:
            self.fail(f"the bytes of a sample differ from their checksum ({kind})", position)

    def result(self, failed: str, *, retries: int, reader: int) -> ReadResult:
        seconds = time.perf_counter() - self._begun_at
        kept = np.flatnonzero(self._done)
        if len(kept) < len(self._done):
            self._rows[: len(kept)] = self._rows[kept]
        return ReadResult(
            number=self.request.number,
            slot=self.request.slot,
            endpoint=self.endpoint,
            bytes=int(self.samples.sizes[kept].sum()),
            seconds=seconds,
            decode_s=self._decode_s,
            retries=retries,
            bad=tuple(self._bad),
            failed=failed,
            reader=reader,
            failed_at=self._failed_at,
        )
