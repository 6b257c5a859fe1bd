"""The threads of a job: a gate to pause and cancel at, bounded queues, a bandwidth cap, a pool of threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_BURST_S = 0.25


class Cancelled(Exception):  # noqa: N818  a request of the user, no error
    """Unwinds a job's threads after `cancel`, and the other threads after the error of one."""


class PauseGate:
    """Where a job's threads check whether to continue: they wait here while it is paused, and end once cancelled."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.paused = False
        self.cancelled = False
        self.aborted = False

    def pause(self) -> None:
        """Makes `check` wait until `resume`."""
        self._set(paused=True)

    def resume(self) -> None:
        """Ends the pause."""
        self._set(paused=False)

    def cancel(self) -> None:
        """Ends every wait: each raises Cancelled, also while paused."""
        self._set(cancelled=True)

    def abort(self) -> None:
        """Ends every wait for a retry: another thread has failed, and the job ends."""
        self._set(aborted=True)

    def wait_to_retry(self, seconds: float) -> None:
        """Waits before a request is sent again. Raises Cancelled."""
        self.wait_until(lambda: self.aborted, seconds)
        if self.aborted:
            raise Cancelled

    def check(self) -> None:
        """Waits while the job is paused. Raises Cancelled."""
        if self.cancelled or self.paused:
            self.wait_until(lambda: not self.paused)

    def wait_until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Waits for `ready` or the timeout. Raises Cancelled."""
        with self.condition:
            self.condition.wait_for(lambda: self.cancelled or ready(), timeout_s)
            if self.cancelled:
                raise Cancelled

    def _set(self, **flags: bool) -> None:
        with self.condition:
            vars(self).update(flags)
            self.condition.notify_all()


class QueueClosed(Exception):  # noqa: N818  the normal end of a queue
    """The queue is empty and closed."""


class BoundedQueue(Generic[T]):
    """A queue between threads; `put` waits once it has `limit` items, until half of them are taken.

    Waking the producer for every item would cost more than most items do.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[T] = deque()
        lock = threading.Lock()
        self._not_empty = threading.Condition(lock)
        self._not_full = threading.Condition(lock)
        self._closed = False
        self._aborted = False

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        """The items until the queue is closed. Raises Cancelled once it is aborted."""
        with contextlib.suppress(QueueClosed):
            while True:
                yield self.get()

    def put(self, item: T) -> None:
        """Raises Cancelled once the queue is aborted."""
        with self._not_full:
            if len(self._items) >= self._limit:
                self._not_full.wait_for(lambda: len(self._items) <= self._limit // 2 or self._aborted)
            if self._aborted:
                raise Cancelled
            self._items.append(item)
            self._not_empty.notify()

    def get(self) -> T:
        """The next item, waited for. Raises QueueClosed, or Cancelled once the queue is aborted."""
        with self._not_empty:
            while not (self._items or self._closed or self._aborted):
                self._not_empty.wait()
            return self._pop()

    def poll(self) -> T | None:
        """The next item, None when there is none yet. Raises as `get` does."""
        with self._not_empty:
            return self._pop() if self._items or self._closed or self._aborted else None

    def _pop(self) -> T:
        if self._aborted:
            raise Cancelled
        if not self._items:
            raise QueueClosed
        if len(self._items) <= self._limit // 2 + 1:
            self._not_full.notify_all()
        return self._items.popleft()

    def close(self) -> None:
        """No more items will come; those inside can still be taken."""
        with self._not_empty:
            self._closed = True
            self._not_empty.notify_all()

    def abort(self) -> None:
        """Makes every `put` and `get` raise Cancelled, also those that wait."""
        with self._not_empty:
            self._aborted = True
            self._not_empty.notify_all()
            self._not_full.notify_all()


class BandwidthCap:
    """Lets up to `limit` bytes per second pass on average; None for no limit."""

    def __init__(self, limit: float | None, gate: PauseGate, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._gate = gate
        self._clock = clock
        self._free_at = clock()

    def acquire(self, size: int) -> None:
        """Waits until `size` bytes may be sent. Raises Cancelled."""
        with self._gate.condition:
            if not self.limit:
                return
            now = self._clock()
            self._free_at = max(self._free_at, now - _BURST_S) + size / self.limit
            turn = self._free_at
        while (left := turn - self._clock()) > 0 and self.limit:
            self._gate.wait_until(lambda: not self.limit, left)

    def set_limit(self, limit: float | None) -> None:
        """Changes the limit, also for threads that wait in `acquire`."""
        with self._gate.condition:
            self.limit = limit
            self._free_at = self._clock()
            self._gate.condition.notify_all()


class ThreadPool(Generic[T]):
    """Calls `do` with each item, in up to `size` daemon threads; `put` waits while `limit` items are queued.

    The first error ends every thread after its current item, and every wait for a retry; `finish` raises it.
    `on_abort` is called once for each error.
    """

    def __init__(
        self,
        do: Callable[[T], None],
        gate: PauseGate,
        size: int,
        *,
        limit: int,
        name: str = "pool",
        on_abort: Callable[[], None] = lambda: None,
    ) -> None:
        self._do = do
        self._gate = gate
        self._size = size
        self._name = name
        self._on_abort = on_abort
        self._queue = BoundedQueue[T](limit)
        self._closing = False
        self._error: BaseException | None = None
        self.threads: list[threading.Thread] = []
        self._grow()

    def run(self, items: Iterable[T], timeout_s: float | None = None) -> None:
        """Puts every item, read no further ahead than `limit`, and finishes. Raises also what `items` raises."""
        try:
            for item in items:
                self._gate.check()
                self.put(item)
        except BaseException as error:  # noqa: BLE001  raised by `finish` once the threads have ended
            self.abort(error)
        self.finish(timeout_s)

    def put(self, item: T) -> None:
        """Queues an item. Raises Cancelled after an error."""
        self._queue.put(item)

    def resize(self, size: int) -> None:
        """Changes how many items are worked on simultaneously."""
        with self._gate.condition:
            self._size = size
            self._gate.condition.notify_all()
        self._grow()

    def finish(self, timeout_s: float | None = None) -> None:
        """Waits until every item is done. Raises the first error, after at most `timeout_s` for the other threads."""
        if self._error is None:
            self._close()
            self._queue.close()
            join_threads(self.threads)
        if self._error is not None:
            join_threads(self.threads, timeout_s)
            raise self._error

    def abort(self, error: BaseException) -> None:
        """Ends the pool with `error`, unless an earlier one, other than Cancelled, has ended it."""
        with self._gate.condition:
            if self._error is None or isinstance(self._error, Cancelled):
                self._error = error
        self._gate.abort()
        self._close()
        self._queue.abort()
        self._on_abort()

    def _close(self) -> None:
        with self._gate.condition:
            self._closing = True
            self._gate.condition.notify_all()

    def _grow(self) -> None:
        """Starts the threads that are missing."""
        with self._gate.condition:
            missing = range(len(self.threads), 0 if self._closing else self._size)
            started = [
                threading.Thread(target=self._main, args=(number,), name=f"{self._name}-{number}", daemon=True)
                for number in missing
            ]
            self.threads += started
        for thread in started:
            thread.start()

    def _main(self, number: int) -> None:
        try:
            while True:
                self._gate.wait_until(
                    lambda: self._gate.aborted or (not self._gate.paused and (number < self._size or self._closing))
                )
                if number >= self._size:
                    if self._closing:
                        return
                    continue  # the size was lowered after the wait; it may be raised again
                item = self._queue.get()
                self._gate.check()
                self._do(item)
        except QueueClosed:
            return
        except BaseException as error:  # noqa: BLE001  raised by `finish`
            self.abort(error)


def join_threads(threads: Sequence[threading.Thread], timeout_s: float | None = None) -> None:
    """Waits for the threads to end. They are daemons: one that hangs in a request is left behind after `timeout_s`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for thread in threads:
        thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))


def read_ahead(items: Iterable[T], limit: int) -> Iterator[T]:
    """`items`, read by a thread up to `limit` ahead; raises what reading them raised."""
    queue = BoundedQueue[T](limit)
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for item in items:
                queue.put(item)
        except BaseException as error:  # noqa: BLE001  raised where the items are used
            errors.append(error)
        queue.close()

    threading.Thread(target=read, name="read-ahead", daemon=True).start()
    try:
        yield from queue
        if errors:
            raise errors[0]
    finally:
        queue.abort()
