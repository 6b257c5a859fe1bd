"""Warm-up: reads objects once through the accelerated endpoint, so that the first epoch comes from its cache.

It needs no permission but that to read objects. The journal keeps what was read, so that a later warm-up skips it.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import READ_WRITE, open_private, state_dir, try_lock
from ossconsole.config.text import counted, safe_text
from ossconsole.storage.accelerator import Accelerator, missing_text, other_accelerators, read_accelerator
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.job import Job, ProgressTracker
from ossconsole.storage.jobs.threads import BandwidthCap
from ossconsole.storage.multipart import write_all

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

DEFAULT_THREADS = 32
RANGE_SIZE = 16 << 20
"""Larger objects, such as shards, are read in ranges of this size, several of them simultaneously."""
_READ_SIZE = 256 << 10
_SMALL = 1 << 20
_SAVE_EVERY_S = 1.0


class WarmItem(msgspec.Struct, frozen=True):
    """An object to read. `size` in bytes, 0 where it is unknown; `version` changes with the content."""

    key: str
    size: int
    version: str

    @property
    def digest(self) -> int:
        """64 bits of the key and the version, for the journal."""
        text = f"{self.key}\0{self.size}\0{self.version}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class WarmSource(msgspec.Struct, frozen=True):
    """The objects of a warm-up; `text` says where their list comes from."""

    text: str
    items: Callable[[], Iterable[WarmItem]]


class WarmPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of a warm-up of `source`. Counts are of objects, sizes in bytes.

    Not read are objects `outside` the accelerated paths, and those `beyond` the size of the accelerator.
    `accelerator` is None where its state cannot be read, for the reason `unknown`.
    """

    source: WarmSource
    accelerator: Accelerator | None
    unknown: str = ""
    objects: int = 0
    bytes: int = 0
    todo: int = 0
    todo_bytes: int = 0
    warmed: int = 0
    warmed_bytes: int = 0
    warmed_at: float = 0.0
    outside: int = 0
    beyond: int = 0
    beyond_bytes: int = 0

    def seconds(self, bandwidth: float | None) -> float | None:
        """How long it takes at least, at `bandwidth` bytes/s or the documented peak; None where neither is known."""
        rates = [rate for rate in (bandwidth, self.accelerator and self.accelerator.peak_mb_per_s * 1e6) if rate]
        return self.todo_bytes / min(rates) if rates else None

    def lines(self, bandwidth: float | None = None) -> list[str]:
        """The plan in sentences: what is read, whether it fits, what is left out and why."""
        found = [f"{self.source.text}: {counted(self.objects, 'object')}, {_size(self.bytes)}."]
        accelerator = self.accelerator
        if accelerator is None:
            found.append(f"Whether it fits is unknown: {self.unknown}")
        elif self.beyond:
            found.append(
                f"It does not fit: the accelerator in {accelerator.zone} has {accelerator.quota_gb:,} GB. "
                f"{counted(self.beyond, 'object')} ({_size(self.beyond_bytes)}) are not read: they would push "
                "out the others."
            )
        else:
            found.append(f"It fits: the accelerator in {accelerator.zone} has {accelerator.quota_gb:,} GB.")
        if accelerator is not None and not accelerator.paths_known:
            found.append("OSS did not send the accelerated paths: objects outside them are read for nothing.")
        if self.outside:
            what = counted(self.outside, "object")
            found.append(f"{what} outside the accelerated paths are not read: they are never cached.")
        if self.warmed:
            when = time.strftime("%d %b %H:%M", time.localtime(self.warmed_at))
            what = counted(self.warmed, "object")
            found.append(f"{what} ({_size(self.warmed_bytes)}) were read before, the last one {when}: skipped.")
        seconds = self.seconds(bandwidth)
        if self.todo:
            text = f"To read: {_size(self.todo_bytes)}"
            if seconds is not None and seconds >= 1:
                limited = bandwidth and self.todo_bytes / bandwidth >= seconds
                text += f", at least {_duration(seconds)} at "
                text += "the limit" if limited else "the accelerator's documented peak"
            found.append(f"{text}.")
        return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def plan_warm(source: WarmSource, accelerated: ObjectStore, *, again: bool = False) -> WarmPlan:
    """The plan of a warm-up of `source`; with `again` it also reads the objects that were read before.

    Raises ConsoleError where the bucket has no accelerator, or where nothing of the source can be cached.
    """
    accelerator, unknown = _accelerator(accelerated)
    with WarmJournal.open(accelerated, accelerator) as journal:
        if again:
            journal.clear()
        selection = _Selection(accelerator, journal)
        collections.deque(selection.to_read(source.items()), maxlen=0)
        counts = selection.counts
        warmed_at = journal.written_at
    if not counts["objects"]:
        raise ConsoleError(f"{source.text}: there are no objects.", remedy="Check the prefix with `ossconsole ls`.")
    if accelerator is not None and counts["outside"] == counts["objects"]:
        raise ConsoleError(
            f"{source.text}: none of it is in the accelerated paths ({accelerator.cached_text}).",
            remedy="Add its prefix to the paths of the accelerator: key a on the Setup screen.",
        )
    return WarmPlan(source=source, accelerator=accelerator, unknown=unknown, warmed_at=warmed_at, **counts)


def _accelerator(store: ObjectStore) -> tuple[Accelerator | None, str]:
    """The accelerator, or why its state is unknown. Raises ConsoleError where the bucket has none."""
    try:
        found = read_accelerator(store)
    except StorageError as error:
        if error.code != "AccessDenied":
            raise
        return None, str(error)
    if found is None:
        message, remedy = missing_text(store, other_accelerators(store, ""))
        raise ConsoleError(message, remedy=remedy)
    return found, ""


class _Selection:
    """Selects the objects to read, in their order, and counts the others; the same each time."""

    def __init__(self, accelerator: Accelerator | None, journal: WarmJournal) -> None:
        self._accelerator = accelerator
        self._journal = journal
        self.counts = dict.fromkeys(
            ("objects", "bytes", "todo", "todo_bytes", "warmed", "warmed_bytes", "outside", "beyond", "beyond_bytes"), 0
        )

    def to_read(self, items: Iterable[WarmItem]) -> Iterator[WarmItem]:
        """The items that are cached, fit, and were not read before."""
        accelerator = self._accelerator
        room = accelerator.quota_gb * 1e9 if accelerator else float("inf")
        for item in items:
            self._count("", item)
            if accelerator is not None and accelerator.paths_known and not accelerator.caches(item.key):
                self.counts["outside"] += 1
            elif item.size > room:
                self._count("beyond", item)
            elif item.digest in self._journal:
                room -= item.size
                self._count("warmed", item)
            else:
                room -= item.size
                self._count("todo", item)
                yield item

    def _count(self, name: str, item: WarmItem) -> None:
        self.counts[name or "objects"] += 1
        self.counts[f"{name}_bytes" if name else "bytes"] += item.size


class WarmJournal:
    """The objects read through one accelerated endpoint: 8 bytes per object, in the state folder; safe from any thread.

    It starts empty for another accelerator: one that was deleted and created again has an empty cache.
    """

    def __init__(self, descriptor: int, identity: bytes) -> None:
        self._descriptor = descriptor
        self._identity = identity
        self._lock = threading.Lock()
        self._waiting = array("Q")
        self._saved_at = time.monotonic()
        head = os.pread(descriptor, len(identity), 0)
        whole = (os.fstat(descriptor).st_size - len(identity)) // 8 * 8
        self._known: set[int] = set()
        self.written_at = os.fstat(descriptor).st_mtime
        if head != identity:
            self.clear()
            return
        digests = array("Q")
        digests.frombytes(os.pread(descriptor, max(0, whole), len(identity)))
        if len(digests) * 8 < os.fstat(descriptor).st_size - len(identity):  # half a record, of a machine that stopped
            os.ftruncate(descriptor, len(identity) + len(digests) * 8)  # changes the time of the file in any case
        self._known.update(digests)

    @classmethod
    @contextlib.contextmanager
    def open(cls, store: ObjectStore, accelerator: Accelerator | None) -> Iterator[WarmJournal]:
        """The journal of the endpoint of `store`. Raises ConsoleError while another process has it."""
        # A sandbox has a new port, and an empty cache, each time it starts.
        place = "sandbox" if store.profile.simulated else f"{store.profile.bucket}\0{store.endpoint}"
        name = hashlib.sha256(place.encode()).hexdigest()[:20]
        descriptor = open_private(state_dir() / "warm" / name, READ_WRITE)
        try:
            if not try_lock(descriptor):
                raise ConsoleError(
                    f"Another warm-up of {store.uri()} is running on this machine.",
                    remedy="Wait for its end, or cancel it where it was started.",
                )
            known = accelerator and (accelerator.zone, accelerator.created)
            identity = hashlib.sha256(repr((store.endpoint, known)).encode()).digest()
            journal = cls(descriptor, identity)
            try:
                yield journal
            finally:
                journal.save()
        finally:
            os.close(descriptor)

    def __contains__(self, digest: int) -> bool:
        return digest in self._known

    def add(self, digest: int) -> None:
        """Notes an object that was read; written at most a second later."""
        with self._lock:
            self._known.add(digest)
            self._waiting.append(digest)
            if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
                self._save()

    def save(self) -> None:
        """Writes what was noted."""
        with self._lock:
            self._save()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._known.clear()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, self._identity, 0)

    def _save(self) -> None:
        data, self._waiting = self._waiting.tobytes(), array("Q")
        if data:
            records = (os.fstat(self._descriptor).st_size - len(self._identity)) // 8  # a full disk may have cut one
            write_all(self._descriptor, data, len(self._identity) + records * 8)
        self._saved_at = time.monotonic()


class WarmUp(Job):
    """Reads the objects of a plan through the accelerated endpoint and discards them."""

    moves_bytes: ClassVar[bool] = True

    def __init__(
        self, store: ObjectStore, plan: WarmPlan, *, bandwidth: float | None = None, threads: int = DEFAULT_THREADS
    ) -> None:
        """`store` uses the accelerated endpoint; `bandwidth` is the limit in bytes/s, None for none."""
        super().__init__(f"Warm-up of {plan.source.text}", threads=threads)
        self.plan = plan
        self._store = store.pausing(self.wait_to_retry)
        self.cap = BandwidthCap(bandwidth, self.gate)
        self._parts_left: dict[str, int] = {}
        self._lock = threading.Lock()

    def retry(self) -> WarmUp:
        """A new job that reads what this one has not."""
        return WarmUp(self._store, self.plan, bandwidth=self.cap.limit, threads=self._threads)

    def work(self) -> None:
        """Reads everything that is not in the journal."""
        with WarmJournal.open(self._store, self.plan.accelerator) as journal:
            todo = _Selection(self.plan.accelerator, journal)
            collections.deque(todo.to_read(self.plan.source.items()), maxlen=0)  # a retry has less to do than the plan
            self.tracker = ProgressTracker()  # the time before the start does not count
            self.tracker.add_total(todo.counts["todo"], todo.counts["todo_bytes"])
            self.tracker.totals_known()
            items = _Selection(self.plan.accelerator, journal).to_read(self.plan.source.items())
            self.pool(self._tasks(items, journal), lambda task: task())

    def _tasks(self, items: Iterable[WarmItem], journal: WarmJournal) -> Iterator[Callable[[], None]]:
        for item in items:
            starts = range(0, max(1, item.size), RANGE_SIZE)
            with self._lock:
                self._parts_left[item.key] = len(starts)
            for start in starts:
                yield partial(self._part, item, start, journal)

    def _part(self, item: WarmItem, start: int, journal: WarmJournal) -> None:
        """One range of the object. Records an error of this object alone; raises one that every object would meet."""
        self.check_cancelled()
        try:
            self._read(item, start)
        except StorageError as error:
            self._breaker.check(error)
            with self._lock:
                first = self._parts_left.pop(item.key, None) is not None
            if first:
                self.fail(item.key, error, item.size)
            return
        self._breaker.succeeded()
        with self._lock:
            left = self._parts_left.get(item.key, 0) - 1
            if left >= 0:
                self._parts_left[item.key] = left
            if left == 0:
                del self._parts_left[item.key]
        if left == 0:
            journal.add(item.digest)
            self.tracker.complete(item.key, 0)

    def _read(self, item: WarmItem, start: int) -> None:
        from oss2.exceptions import InconsistentError

        length = min(RANGE_SIZE, item.size - start)
        receive = partial(self._receive, item, start, length)
        if item.size <= _SMALL:
            receive = partial(self._receive_small, item)

        def request() -> None:
            done = receive()
            if item.size and done != length:
                raise InconsistentError(f"{done} of {length} bytes of {item.key} arrived")

        self._store.call(f"reading {self._store.uri(safe_text(item.key))}", request)

    def _receive_small(self, item: WarmItem) -> int:
        done = len(self._store.lean_sdk.get_object(item.key).resp.read())
        self.cap.acquire(done)
        self.tracker.advance((item.key, 0), done)
        return done

    def _receive(self, item: WarmItem, start: int, length: int) -> int:
        """One range, or the whole object where it has one alone."""
        from oss2.exceptions import RequestError
        from urllib3.exceptions import HTTPError

        options = {} if length == item.size else {"byte_range": (start, start + length - 1)}
        done = 0
        with contextlib.closing(self._store.sdk.get_object(item.key, **options)) as result:
            try:
                # The stored bytes: a Content-Encoding is not undone.
                for data in result.resp.response.raw.stream(_READ_SIZE, decode_content=False):
                    self.check_cancelled()
                    self.cap.acquire(len(data))
                    done += len(data)
                    self.tracker.advance((item.key, start), done)
            except HTTPError as error:
                raise RequestError(error) from error
        return done
