"""The reader: runs in a spawned process of its own and lets the connector fill one batch buffer at a time."""

from __future__ import annotations

import contextlib
import errno
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import fastcrc
import numpy as np
import numpy.typing as npt
import tenacity

from ossconsole.config.connector import load_connector_config
from ossconsole.config.endpoints import EndpointKind
from ossconsole.storage.retry import RetryPolicy, backoff
from ossconsole.training.loading.connector import ConnectorSettings, native
from ossconsole.training.loading.shared_memory import EndpointSwitch, SampleTable, SharedBuffer, Wanted
from ossconsole.training.plan import Split

RETRIES = RetryPolicy(attempts=3, first_wait_s=0.5, longest_wait_s=5.0)
"""Of a batch; the connector itself repeats each request 8 to 16 times, and tells no throttling from other failures."""

MISSING = "it is not in the bucket"
"""The reason of a sample that the connector did not find."""


class ReadRequest(NamedTuple):
    """One batch: the buffer slot to fill in order, and the split and number of its samples; their rows are those of
    the slot in `ReaderShare`. It is as small for a large batch as for a small one, so that sending it never waits.
    """

    number: int
    slot: int
    split: Split
    samples: int


@dataclass(frozen=True)
class ReaderShare:
    """What the loop and its readers share. `shape` is (slots, batch, bytes per row) of the uint8 `buffer`; `rows` has
    the row numbers in the sample table of what each slot is for: int64, shape (slots, batch).
    """

    switch: EndpointSwitch
    samples: SampleTable
    buffer: SharedBuffer
    rows: SharedBuffer
    shape: tuple[int, int, int]

    def rows_of(self, slot: int, count: int) -> npt.NDArray[np.int64]:
        """A view of the first `count` row numbers of a slot."""
        return np.frombuffer(self.rows.memory, dtype=np.int64).reshape(self.shape[:2])[slot, :count]


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used: its position in the request, and why."""

    position: int
    reason: str


@dataclass(frozen=True)
class ReadResult:
    """What a reader did. The slot is filled without gaps, in the order of the request, with all samples but the `bad`.

    `seconds` is the time of the last, successful try. `bad` are the samples left out for good (missing, wrong size).
    `failed` is why the batch could not be read although it may be whole in the bucket: no row is to be used then.
    """

    number: int
    slot: int
    endpoint: EndpointKind
    bytes: int
    seconds: float
    retries: int
    bad: tuple[BadSample, ...]
    failed: str


_TARS_OPEN = 4  # of each endpoint: neighbouring batches are of few tars, and each costs 5 threads and 27 descriptors
_MOST_TARS = 200  # opened in the life of a reader: the connector 1.2.3 leaves a descriptor of its log behind with each
_READ_IN_PASSING = 2 << 20  # bytes; what the connector 1.2.3 reads of a tar at once, as seen in the sandbox's log


_CONCURRENCY = "datasetConfig.prefetchConcurrency"
_USUAL_CONCURRENCY = 24  # the connector's default, for a file that does not say


class EndpointFailedError(Exception):
    """The endpoint did not deliver samples that may well be there."""


class _Prefetched(NamedTuple):
    """A batch that is being fetched while the one before it is read; `at` on the clock of `time.perf_counter`."""

    request: ReadRequest
    wanted: Wanted
    endpoint: EndpointKind
    objects: Iterator[Any]
    at: float


class SampleReader:
    """Reads request by request into shared buffers, through the endpoint that the switch names at that moment.

    The connector cannot be pickled and is opened here, once per endpoint, when first needed. It must not share a
    process with torch's threads or with the console: it holds the GIL while it reads, retries some refusals without
    end, and aborts on a malformed reply.
    """

    def __init__(
        self,
        settings: ConnectorSettings,
        share: ReaderShare,
        *,
        number: int = 0,
        workers: int = 1,
    ) -> None:
        self._settings = settings
        self._share = share
        self._switch = share.switch
        self._slots = np.frombuffer(share.buffer.memory, dtype=np.uint8).reshape(share.shape)
        self._number = number
        self._workers = workers
        self._opened: dict[EndpointKind, Any] = {}
        self._tars: OrderedDict[tuple[EndpointKind, str], Any] = OrderedDict()
        self._tars_opened = 0
        self._upcoming: ReadRequest | None = None
        self._begun: _Prefetched | None = None
        # Objects that are all being fetched already. With more left than that, those of the next batch can take the
        # places that the rest of this one needs, and neither goes on (seen with 1.2.3).
        configured = load_connector_config(settings.config_path).get(_CONCURRENCY, _USUAL_CONCURRENCY)
        self._surely_fetching = int(configured) * 3 // 4

    @property
    def needs_recycling(self) -> bool:
        """Whether it is time for a new process to take over."""
        return self._tars_opened >= _MOST_TARS

    def pop_prefetched(self) -> ReadRequest | None:
        """The request that `read` took from `more`; it is to be read next."""
        upcoming, self._upcoming = self._upcoming, None
        return upcoming

    def read(self, request: ReadRequest, more: Callable[[], ReadRequest | None] = lambda: None) -> ReadResult:
        """Reads one batch into its slot, with retries.

        Towards its end it asks `more` for the next request and has that fetched, so that the connector is never idle
        between two batches.
        """
        begun = self._begun
        wanted = begun.wanted if begun is not None and begun.request is request else self._look_up(request)
        attempt = _Attempt(request, wanted, self._slots[request.slot])
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(EndpointFailedError),
            stop=tenacity.stop_after_attempt(RETRIES.attempts),
            wait=backoff(RETRIES),
            reraise=True,
        )
        failed = ""
        try:
            retrying(self._read, attempt, more)
        except EndpointFailedError as error:
            failed = str(error)
        return attempt.result(failed, retries=retrying.statistics["attempt_number"] - 1)

    def _read(self, attempt: _Attempt, more: Callable[[], ReadRequest | None]) -> None:
        """Reads what is still missing of the batch; the switch may have been turned since the last try."""
        begun, self._begun = self._begun, None
        if begun is not None and begun.request is not attempt.request:
            begun = None
        attempt.begin(*((begun.endpoint, begun.at) if begun else (self._switch.endpoint, time.perf_counter())))
        if not attempt.missing:  # a rank's share of the last batch may be empty
            return
        try:
            if attempt.wanted.runs:
                for member in self._members(attempt.endpoint, attempt.wanted):
                    attempt.take_member(member)
            else:
                objects = begun.objects if begun else self._objects(attempt.endpoint, attempt.wanted, attempt.missing)
                for obj in objects:
                    attempt.take(obj)
                    # To let go of what fails takes the connector long: nothing more is begun then.
                    if len(attempt.missing) <= self._surely_fetching and not attempt.failures:
                        self._begin_early(more)
        except RuntimeError as error:  # the connector's only exception
            attempt.failures.append(str(error))
        if attempt.failures or attempt.missing:
            self._begun = None  # what the next batch holds ready would be missing when this one is tried again
            raise EndpointFailedError(attempt.failures[0] if attempt.failures else "not all samples arrived")

    def _begin_early(self, more: Callable[[], ReadRequest | None]) -> None:
        """Has the next request fetched, if there is one."""
        if self._begun is not None:
            return
        self._upcoming = request = self._upcoming or more()
        if request is None or not request.samples:
            return
        wanted = self._look_up(request)
        if not wanted.runs:
            kind, at = self._switch.endpoint, time.perf_counter()
            with contextlib.suppress(RuntimeError):  # it fails again in its turn, and is told then
                objects = self._objects(kind, wanted, list(range(request.samples)))
                self._begun = _Prefetched(request, wanted, kind, objects, at)

    def _look_up(self, request: ReadRequest) -> Wanted:
        return self._share.samples.look_up(request.split, self._share.rows_of(request.slot, request.samples))

    def _tar(self, kind: EndpointKind, key: str) -> Any:
        """A connector for one tar: the one that has opened a tar gives that one's members for any other (1.2.3)."""
        if (kind, key) in self._tars:
            self._tars.move_to_end((kind, key))
        else:
            self._tars[kind, key] = self._settings.open(kind, number=self._number, total=self._workers)
            self._tars_opened += 1
            if len(self._tars) > _TARS_OPEN:
                self._tars.popitem(last=False)
        return self._tars[kind, key]

    def _objects(self, kind: EndpointKind, wanted: Wanted, positions: list[int]) -> Iterator[Any]:
        """The connector's objects at `positions`, in that order, being fetched ahead concurrently.

        This is the call that `OssMapDataset.__getitems__` makes. That class is not used because it holds every object
        of the dataset in each process and does not tell which sample of a batch failed.
        """
        if kind not in self._opened:
            self._opened[kind] = self._settings.open(kind, number=self._number, total=self._workers)
        bucket = self._settings.profile.bucket
        objects = [
            native().new_data_object(f"oss://{bucket}/{wanted.keys[position]}", int(wanted.sizes[position]), "")
            for position in positions
        ]
        found: Iterator[Any] = self._opened[kind].list_from_uris(objects, True, True)  # prefetch, include errors
        return found

    def _members(self, kind: EndpointKind, wanted: Wanted) -> Iterator[Any]:
        """The connector's members of tars, in any order: the call of its `OssMapDataset.from_tar(…).__getitems__`.

        Members side by side come in requests of 2 MiB, however few they are; others in one request each.
        """
        bucket = self._settings.profile.bucket
        for run in wanted.runs:
            first, count = run.numbers[0], len(run.numbers)
            in_passing = run.numbers[-1] - first == count - 1 and wanted.sizes.mean() * count >= _READ_IN_PASSING
            starts, counts = ([first], [count]) if in_passing else (list(run.numbers), [])
            yield from self._tar(kind, run.tar).list_from_tar(bucket, run.tar, run.members, starts, counts, True, True)


class _Attempt:
    """One batch being read, perhaps in several tries. Row i of `rows` belongs to position i until `result`."""

    def __init__(self, request: ReadRequest, wanted: Wanted, rows: npt.NDArray[np.uint8]) -> None:
        self.request = request
        self.wanted = wanted
        self.endpoint = EndpointKind.STANDARD
        self.failures: list[str] = []
        self._rows = rows
        self._bad: list[BadSample] = []
        self._done = np.zeros(request.samples, dtype=bool)
        self._pending: list[int] = []
        self._positions = {key: position for position, key in enumerate(wanted.keys)} if wanted.runs else {}
        self._checksum_errors: Counter[int] = Counter()
        self._begun = 0.0

    @property
    def missing(self) -> list[int]:
        return list(self._pending)

    def begin(self, kind: EndpointKind, at: float) -> None:
        self.endpoint = kind
        self.failures = []
        settled = {bad.position for bad in self._bad}
        self._pending = [i for i in range(len(self._done)) if not self._done[i] and i not in settled]
        self._begun = at

    def take(self, obj: Any) -> None:
        """Reads the next object of the try into its row."""
        position = self._pending.pop(0)
        size = int(self.wanted.sizes[position])
        if obj.err() == errno.ENOENT:
            self._bad.append(BadSample(position, MISSING))
        elif obj.err() != 0:
            self.failures.append(f"{obj.error_msg()} (errno {obj.err()})")
        elif obj.size != size:  # as the server tells it, not as it was asked for
            self._bad.append(BadSample(position, f"it has {obj.size} bytes where the manifest says {size}"))
        else:
            self._fill(obj, position, size)

    def take_member(self, member: Any) -> None:
        """Reads a member of a tar into its row, when that is missing."""
        if member.err() != 0:
            self.failures.append(f"{member.error_msg()} (errno {member.err()})")
            return
        position = self._positions.get(member.key)
        if position is None:
            self.failures.append(f"the tar has {member.key!r} where its list has another sample")
        elif position in self._pending:
            self._pending.remove(position)
            size = int(self.wanted.sizes[position])
            if member.size != size:
                self._bad.append(BadSample(position, f"it has {member.size} bytes where the list says {size}"))
            else:
                self._fill(member, position, size)

    def _fill(self, obj: Any, position: int, size: int) -> None:
        row = memoryview(self._rows[position])[:size]
        count = obj.readinto(row)
        if count != size:
            self.failures.append(f"only {count} of {size} bytes of a sample arrived")
        elif self._checksum_differs(row, position):
            self._record_checksum_error(position)
        else:
            self._done[position] = True

    def _checksum_differs(self, row: memoryview, position: int) -> bool:
        """The connector itself does not compare checksums where it reads samples (seen with 1.2.3)."""
        wanted = int(self.wanted.crc64s[position])
        return wanted != 0 and fastcrc.crc64.xz(row) != wanted

    def _record_checksum_error(self, position: int) -> None:
        """What comes otherwise every time is so in the bucket, and not on the way from there."""
        self._checksum_errors[position] += 1
        if self._checksum_errors[position] >= RETRIES.attempts:
            self._bad.append(BadSample(position, "its bytes are not those that the manifest lists (CRC64)"))
        else:
            self.failures.append("the bytes of a sample differ from their checksum (CRC64)")

    def result(self, failed: str, *, retries: int) -> ReadResult:
        seconds = time.perf_counter() - self._begun
        kept = np.flatnonzero(self._done)
        if len(kept) < len(self._done):
            self._rows[: len(kept)] = self._rows[kept]
        return ReadResult(
            number=self.request.number,
            slot=self.request.slot,
            endpoint=self.endpoint,
            bytes=int(self.wanted.sizes[kept].sum()),
            seconds=seconds,
            retries=retries,
            bad=tuple(self._bad),
            failed=failed,
        )
