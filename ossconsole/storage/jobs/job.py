"""Job: work on many objects by a bounded pool of threads, with progress, cancel, and a record of every failure."""

from __future__ import annotations

import abc
import contextlib
import enum
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Protocol, TypeVar

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.errors import StorageError
from ossconsole.storage.retry import Wait, WaitNotes

RATE_WINDOW_S = 10.0
_SAMPLE_EVERY_S = 0.25


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A job at one moment. Done never exceeds total and never falls.

    Totals grow until `total_known`; `bytes_per_s` is over the last 10 s; `eta_s` is None while it cannot be told.
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


class ProgressLedger:
    """Where a job's threads book what they have done; safe from any thread.

    Bytes are booked per item as a high-water mark, so that a try that starts over counts nothing twice.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._ended: float | None = None
        self._marks: dict[object, int] = {}
        self._samples: deque[tuple[float, int]] = deque([(self._began, 0)])
        self._items_done = self._items_total = self._items_failed = self._items_skipped = 0
        self._bytes_done = self._bytes_total = 0
        self._total_known = False

    def expect(self, items: int, size: int) -> None:
        """Raises the totals."""
        with self._lock:
            self._items_total += items
            self._bytes_total += size

    def totals_known(self) -> None:
        with self._lock:
            self._total_known = True

    def reach(self, item: object, done: int) -> None:
        """The item has `done` bytes by now; less than before changes nothing."""
        with self._lock:
            gained = done - self._marks.get(item, 0)
            if gained <= 0:
                return
            self._marks[item] = done
            self._bytes_done = min(self._bytes_done + gained, self._bytes_total)
            self._sample()

    def finish(self, item: object, size: int, *, failed: bool = False, skipped: bool = False) -> None:
        """The item is over. A failed one keeps what it had; others count whole."""
        with self._lock:
            mark = self._marks.pop(item, 0)
            if not failed:
                self._bytes_done = min(self._bytes_done + max(0, size - mark), self._bytes_total)
            self._items_done += not failed and not skipped
            self._items_failed += failed
            self._items_skipped += skipped
            self._sample()

    def end(self) -> None:
        """Stops the clock."""
        with self._lock:
            self._ended = self._ended or self._clock()

    def snapshot(self) -> Progress:
        with self._lock:
            now = self._ended or self._clock()
            rate = self._rate(now)
            left = self._bytes_total - self._bytes_done
            return Progress(
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

    def _sample(self) -> None:
        now = self._clock()
        if now - self._samples[-1][0] < _SAMPLE_EVERY_S:
            return
        self._samples.append((now, self._bytes_done))

    def _rate(self, now: float) -> float:
        if self._ended is not None:
            elapsed = now - self._began
            return self._bytes_done / elapsed if elapsed > 0 else 0.0
        while len(self._samples) > 1 and now - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        then, done = self._samples[0]
        return (self._bytes_done - done) / (now - then) if now > then else 0.0


T = TypeVar("T")


class Sized(Protocol):
    """What has a number of bytes."""

    @property
    def size(self) -> int: ...


Counted = TypeVar("Counted", bound=Sized)

DEFAULT_THREADS = 8
_log = logging.getLogger(__name__)


class JobState(str, enum.Enum):
    """Where a job is. FAILED also when some of its items failed: they are in `failures`."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


class Failure(msgspec.Struct, frozen=True):
    """One object that a job could not do, and why."""

    key: str
    message: str
    request_id: str = ""


class Cancelled(Exception):  # noqa: N818  a request of the user, no error
    """Unwinds a job's thread after `cancel`."""


class Job(abc.ABC):
    """One piece of work on objects, in daemon threads that outlive any screen.

    `title` says what it does, in words for the screen. `moves_bytes` tells whether they pass through this machine, so
    that a rate and the time left mean something.
    """

    moves_bytes: ClassVar[bool] = False
    passed_over: ClassVar[str] = "were there"
    """What the objects are for which there was nothing to do."""

    def __init__(self, title: str, *, threads: int = DEFAULT_THREADS) -> None:
        self.title = title
        self.state = JobState.RUNNING
        self.error: ConsoleError | None = None
        """Why the job as a whole ended early."""
        self.note = ""
        """What the figures do not tell of it while it runs."""
        self.failures: list[Failure] = []
        self.ledger = ProgressLedger()
        self._threads = threads
        self._cancel = threading.Event()
        self._waits = WaitNotes()
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._main, name=self.title[:40], daemon=True).start()

    def cancel(self) -> None:
        """Asks the job to end; what is finished stays."""
        self._cancel.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False on timeout."""
        return self._ended.wait(timeout_s)

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def progress(self) -> Progress:
        return self.ledger.snapshot()

    @property
    def waiting(self) -> str:
        """Which request waits to be sent again, and why; "" while none does."""
        return self._waits.text

    def pause(self, wait: Wait) -> None:
        """Spends the wait before a retry, for the job's ObjectStore. Raises Cancelled."""
        with self._waits.noted(wait):
            self._cancel.wait(wait.seconds)
        self.check_cancelled()

    def fail(self, key: str, error: Exception, size: int = 0, item: object = None) -> None:
        """Books an object as failed."""
        request_id = error.request_id if isinstance(error, StorageError) else ""
        self.failures.append(Failure(key, str(error), request_id))
        self.ledger.finish(item if item is not None else key, size, failed=True)

    def check_cancelled(self) -> None:
        """Raises Cancelled once `cancel` was called."""
        if self._cancel.is_set():
            raise Cancelled

    def counted(self, items: Iterable[Counted]) -> Iterator[Counted]:
        """`items`, each booked as expected; the totals are known after the last one."""
        for item in items:
            self.check_cancelled()
            self.ledger.expect(1, item.size)
            yield item
        self.ledger.totals_known()

    @abc.abstractmethod
    def work(self) -> None:
        """Does the job, in the job's own thread. Raises Cancelled or ConsoleError."""

    def pool(self, items: Iterable[T], do: Callable[[T], None]) -> None:
        """Runs `do` on each item, `threads` at a time; `items` is read no further ahead than the pool works.

        Raises what `items` or `do` raised first, after every thread has ended.
        """
        waiting: queue.Queue[T | None] = queue.Queue(self._threads * 2)
        errors: list[BaseException] = []

        def serve() -> None:
            while (item := waiting.get()) is not None:
                if errors or self._cancel.is_set():
                    continue
                try:
                    do(item)
                except BaseException as error:  # noqa: BLE001  raised again by the job's own thread
                    errors.append(error)

        threads = [
            threading.Thread(target=serve, name=f"{self.title[:30]}-{n}", daemon=True) for n in range(self._threads)
        ]
        for thread in threads:
            thread.start()
        try:
            for item in items:
                if errors:
                    break
                self.check_cancelled()
                waiting.put(item)
        finally:
            for _ in threads:
                waiting.put(None)
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        self.check_cancelled()

    def _main(self) -> None:
        try:
            self.work()
            self.state = JobState.FAILED if self.failures else JobState.DONE
        except Cancelled:
            self.state = JobState.CANCELLED
        except ConsoleError as error:
            self.error, self.state = error, JobState.FAILED
        except OSError as error:
            self.error = ConsoleError(
                f"{self.title}: {error.strerror or error}.", remedy="Check the folder and its free space."
            )
            self.state = JobState.FAILED
        except Exception as error:  # noqa: BLE001  a thread has nobody above it who would report
            _log.exception("%s ended with an unexpected error", self.title)
            self.error = ConsoleError(f"{self.title}: unexpected {type(error).__name__}.", remedy="See the log.")
            self.state = JobState.FAILED
        finally:
            self.ledger.end()
            self._ended.set()


def read_ahead(items: Iterator[T], limit: int) -> Iterator[T]:
    """`items`, read by a thread up to `limit` ahead of whoever iterates; raises what reading them raised."""
    waiting: queue.Queue[T | BaseException | _End] = queue.Queue(limit)
    abandoned = threading.Event()

    def offer(item: T | BaseException | _End) -> bool:
        while not abandoned.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return True
        return False

    def read() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
            offer(_End())
        except BaseException as error:  # noqa: BLE001  raised again where the items are used
            offer(error)

    threading.Thread(target=read, name="read-ahead", daemon=True).start()
    try:
        while not isinstance(item := waiting.get(), _End):
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        abandoned.set()


class _End:
    """Stands behind the last item."""
