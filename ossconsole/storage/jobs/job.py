"""Jobs: work in threads of their own, with progress, cancel, retries and a record of every failure."""

from __future__ import annotations

import abc
import enum
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import safe_text
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.threads import Cancelled, PauseGate, ThreadPool
from ossconsole.storage.retry import CircuitBreaker, Wait, WaitNotes

RATE_WINDOW_S = 10.0
_MARK_EVERY_S = 0.25
DEFAULT_THREADS = 8
_MACHINE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_log = logging.getLogger(__name__)


class RateWindow:
    """Changes of running totals over the last 10 s, from marks set while the work continues."""

    def __init__(self, now: float, *totals: float) -> None:
        self._marks: deque[tuple[float, tuple[float, ...]]] = deque([(now, totals)])

    def mark(self, now: float, *totals: float) -> None:
        """Remembers the totals; may be called at any rate."""
        if now - self._marks[-1][0] >= _MARK_EVERY_S:
            self._marks.append((now, totals))

    def changes(self, now: float, *totals: float) -> tuple[float, list[float]]:
        """The seconds since the oldest mark of the window, and how much each total has changed since."""
        while len(self._marks) > 1 and now - self._marks[0][0] > RATE_WINDOW_S:
            self._marks.popleft()
        then, before = self._marks[0]
        return now - then, [total - old for total, old in zip(totals, before, strict=True)]


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A job at one moment. Done never exceeds total and never falls.

    Totals grow until `total_known`; `bytes_per_s` is over the last 10 s; `eta_s` is None while it is unknown.
    """

    items_done: int = 0
    items_total: int = 0
    items_failed: int = 0
    items_skipped: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_s: float = 0.0
    eta_s: float | None = None
    total_known: bool = False
    seconds: float = 0.0


class ProgressTracker:
    """Adds up what a job's threads have done; safe from any thread.

    Bytes are kept per item as a high-water mark, so that an attempt that starts over counts nothing twice.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._ended: float | None = None
        self._marks: dict[object, int] = {}
        self._window = RateWindow(self._began, 0)
        self._items_done = self._items_total = self._items_failed = self._items_skipped = 0
        self._bytes_done = self._bytes_total = 0
        self._total_known = False

    def add_total(self, items: int, size: int) -> None:
        """Raises the totals by `items` and their `size` in bytes."""
        with self._lock:
            self._items_total += items
            self._bytes_total += size

    def totals_known(self) -> None:
        """The totals will not grow any more."""
        with self._lock:
            self._total_known = True

    def advance(self, item: object, done: int) -> None:
        """The item has `done` bytes in all; a lower number than before changes nothing."""
        with self._lock:
            gained = done - self._marks.get(item, 0)
            if gained <= 0:
                return
            self._marks[item] = done
            self._bytes_done = min(self._bytes_done + gained, self._bytes_total)
            self._window.mark(self._clock(), self._bytes_done)

    def complete(self, item: object, size: int, *, failed: bool = False, skipped: bool = False) -> None:
        """The item has ended. A failed one keeps the bytes that it had; others count as `size` bytes."""
        with self._lock:
            mark = self._marks.pop(item, 0)
            if not failed:
                self._bytes_done = min(self._bytes_done + max(0, size - mark), self._bytes_total)
            self._items_done += not failed and not skipped
            self._items_failed += failed
            self._items_skipped += skipped
            self._window.mark(self._clock(), self._bytes_done)

    def end(self) -> None:
        """Stops the clock."""
        with self._lock:
            self._ended = self._ended or self._clock()

    def snapshot(self) -> JobProgress:
        """The figures of this moment; the rate of a job that has ended is over all its time."""
        with self._lock:
            now = self._ended or self._clock()
            elapsed, (gained,) = self._window.changes(now, self._bytes_done)
            if self._ended is not None:
                elapsed, gained = now - self._began, self._bytes_done
            rate = gained / elapsed if elapsed > 0 else 0.0
            left = self._bytes_total - self._bytes_done
            return JobProgress(
                items_done=self._items_done,
                items_total=self._items_total,
                items_failed=self._items_failed,
                items_skipped=self._items_skipped,
                bytes_done=self._bytes_done,
                bytes_total=self._bytes_total,
                bytes_per_s=rate,
                eta_s=left / rate if rate > 0 and self._total_known and self._ended is None else None,
                total_known=self._total_known,
                seconds=now - self._began,
            )


class JobState(str, enum.Enum):
    """The state of a job. FAILED also when some of its items failed: they are in `failures`."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


class Failure(msgspec.Struct, frozen=True):
    """An object (by key) or a file (by path) that failed; `code` and `request_id` are OSS's, "" where it sent none."""

    path: str
    reason: str
    code: str = ""
    request_id: str = ""


T = TypeVar("T")


class BackgroundJob(abc.ABC):
    """Work in daemon threads that outlive any screen. `title` is shown to the user."""

    def __init__(self, title: str, *, threads: int = DEFAULT_THREADS) -> None:
        self.title = title
        self.state = JobState.RUNNING
        self.error: ConsoleError | None = None
        """Why the job as a whole ended early."""
        self.failures: list[Failure] = []
        self.gate = PauseGate()
        self._threads = threads
        self._waits = WaitNotes()
        self._ended = threading.Event()

    def start(self) -> None:
        """Starts the job's own thread."""
        threading.Thread(target=self._main, name=self.title[:40], daemon=True).start()

    def cancel(self) -> None:
        """Requests the end of the job; finished items stay."""
        self.gate.cancel()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False on timeout."""
        return self._ended.wait(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the job has not ended yet."""
        return not self._ended.is_set()

    @property
    def waiting(self) -> str:
        """Which request waits to be sent again, and why; "" while none does."""
        return self._waits.text

    def wait_to_retry(self, wait: Wait) -> None:
        """Spends the wait before a retry; the `pause` of the job's ObjectStore. Raises Cancelled."""
        with self._waits.noted(wait):
            self.gate.wait_to_retry(wait.seconds)

    def check_cancelled(self) -> None:
        """Raises Cancelled once `cancel` was called."""
        if self.gate.cancelled:
            raise Cancelled

    @abc.abstractmethod
    def work(self) -> None:
        """Does the job, in the job's own thread. Raises Cancelled or ConsoleError."""

    def pool(self, items: Iterable[T], do: Callable[[T], None]) -> None:
        """Runs `do` on each item, `threads` at a time; `items` is read no further ahead than the pool works.

        Raises what `items` or `do` raised first, after every thread has ended.
        """
        ThreadPool(do, self.gate, self._threads, limit=self._threads * 2, name=self.title[:30]).run(items)
        self.check_cancelled()

    @abc.abstractmethod
    def _on_end(self) -> None:
        """Called in the job's thread once `state` is final."""

    def _main(self) -> None:
        try:
            self.state = self._run()
        finally:
            self._on_end()
            self._ended.set()

    def _run(self) -> JobState:
        try:
            self.work()
        except Cancelled:
            return JobState.CANCELLED
        except ConsoleError as error:
            self.error = error
        except OSError as error:
            self.error = ConsoleError(
                f"{self.title}: {error.strerror or error}.", remedy="Check the folder and its free space."
            )
        except Exception as error:  # noqa: BLE001  a thread has no caller that would report it
            _log.exception("%s ended with an unexpected error", self.title)
            self.error = ConsoleError(f"{self.title}: unexpected {type(error).__name__}.", remedy="See the log.")
        return JobState.FAILED if self.error or self.failures else JobState.DONE


class Sized(Protocol):
    """Anything with a number of bytes."""

    @property
    def size(self) -> int:
        """Bytes."""


class FileItem(Sized, Protocol):
    """An object and the file on this machine that belongs to it."""

    @property
    def key(self) -> str:
        """The object's key."""

    @property
    def path(self) -> Path:
        """The file."""


SizedT = TypeVar("SizedT", bound=Sized)
FileT = TypeVar("FileT", bound=FileItem)


class Job(BackgroundJob):
    """A job on many objects. `moves_bytes` says whether their bytes pass through this machine: then there is a rate."""

    moves_bytes: ClassVar[bool] = False
    skipped_label: ClassVar[str] = "were there"
    """The word for objects that the job skips."""

    def __init__(self, title: str, *, threads: int = DEFAULT_THREADS) -> None:
        super().__init__(title, threads=threads)
        self.note = ""
        """What the figures do not say about the running job."""
        self.tracker = ProgressTracker()
        self._breaker = CircuitBreaker()
        self._failed_keys: set[str] = set()
        self._failing = threading.Lock()

    def progress(self) -> JobProgress:
        """The figures of this moment."""
        return self.tracker.snapshot()

    def retry(self) -> Job | None:
        """A new job that does what this one, which has ended, has not; None where that has to be selected again."""
        return None

    def fail(self, key: str, error: Exception, size: int = 0) -> None:
        """Records an object as failed."""
        code, request_id = (error.code, error.request_id) if isinstance(error, StorageError) else ("", "")
        self.failures.append(Failure(key, str(error), code, request_id))
        self.tracker.complete(key, size, failed=True)

    def refused(self, key: str, error: StorageError, size: int = 0) -> None:
        """Records an object that OSS refused. Raises `error` when every other object would be refused as well."""
        self._breaker.check(error)
        self.fail(key, error, size)

    def succeed(self, key: str, size: int, *, skipped: bool = False) -> None:
        """Records an object as done, by a request that OSS answered."""
        self._breaker.succeeded()
        self.tracker.complete(key, size, skipped=skipped)

    def fail_folder(self, error: OSError) -> None:
        """Records a folder that cannot be read, as the `onerror` of os.walk."""
        self.tracker.add_total(1, 0)
        self.fail(str(error.filename), ConsoleError(f"{safe_text(str(error.filename))}: {error.strerror}."))

    def attempt(self, item: FileT, do: Callable[[FileT], None]) -> None:
        """Runs `do(item)`. Records an error of this item alone, once per item; raises one that every item would meet.

        Raises Cancelled, OSError, StorageError.
        """
        self.check_cancelled()
        try:
            do(item)
        except OSError as error:
            if error.errno in _MACHINE_ERRNOS:
                raise
            self._fail_once(item, ConsoleError(f"{safe_text(str(item.path))}: {error.strerror or error}."))
        except ConsoleError as error:
            if isinstance(error, StorageError):
                self._breaker.check(error)
            self._fail_once(item, error)
        else:
            self._breaker.succeeded()

    def has_failed(self, key: str) -> bool:
        """Whether `attempt` has recorded an error for the object."""
        return key in self._failed_keys

    def _fail_once(self, item: FileItem, error: ConsoleError) -> None:
        with self._failing:
            if item.key in self._failed_keys:
                return  # another part of it failed before
            self._failed_keys.add(item.key)
        self.fail(item.key, error, item.size)

    def counted(self, items: Iterable[SizedT]) -> Iterator[SizedT]:
        """`items`, each added to the totals, which are known after the last one. Raises Cancelled."""
        for item in items:
            self.check_cancelled()
            self.tracker.add_total(1, item.size)
            yield item
        self.tracker.totals_known()

    def _on_end(self) -> None:
        self.tracker.end()
