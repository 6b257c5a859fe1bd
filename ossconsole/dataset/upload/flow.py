"""What joins the stages of a pipeline: bounded queues, a gate to pause at, a bandwidth cap, sender threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_BURST_S = 0.25


class Stopped(Exception):  # noqa: N818  a request of the user, no error
    """Unwinds a stage's thread after `Gate.stop`."""


class Gate:
    """Where stages ask whether to go on: they wait here while the job is paused, and unwind once it is stopped."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.paused = False
        self.stopped = False
        self.broken = False

    def pause(self) -> None:
        self._set(paused=True)

    def resume(self) -> None:
        self._set(paused=False)

    def stop(self) -> None:
        with self.condition:
            self.stopped = True
            self.condition.notify_all()

    def break_off(self) -> None:
        """Ends every wait for a retry: another stage has failed, and the job ends."""
        with self.condition:
            self.broken = True
            self.condition.notify_all()

    def wait_to_retry(self, seconds: float) -> None:
        """Waits before a request is sent again. Raises Stopped."""
        self.wait_until(lambda: self.broken, seconds)
        if self.broken:
            raise Stopped

    def check(self) -> None:
        """Returns at once, or when the pause ends. Raises Stopped."""
        if self.stopped or self.paused:
            self.wait_until(lambda: not self.paused)

    def wait_until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Waits for `ready` (or the timeout). Raises Stopped."""
        with self.condition:
            self.condition.wait_for(lambda: self.stopped or ready(), timeout_s)
            if self.stopped:
                raise Stopped

    def _set(self, *, paused: bool) -> None:
        with self.condition:
            self.paused = paused
            self.condition.notify_all()


class Closed(Exception):  # noqa: N818  the normal end of a queue
    """No item is left and none will come."""


class BoundedQueue(Generic[T]):
    """A queue of at most `limit` items between two stages; a full one holds back whoever fills it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[T] = deque()
        lock = threading.Lock()
        self._not_empty = threading.Condition(lock)
        self._not_full = threading.Condition(lock)
        self._closed = False
        self._broken = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Raises Stopped once `break_off` was called."""
        with self._not_full:
            while len(self._items) >= self._limit and not self._broken:
                self._not_full.wait()
            if self._broken:
                raise Stopped
            self._items.append(item)
            self._not_empty.notify()

    def get(self, *, wait: bool = True) -> T | None:
        """The next item; None when there is none now and `wait` is False. Raises Closed, or Stopped when broken off."""
        with self._not_empty:
            while not self._items and not self._closed and not self._broken and wait:
                self._not_empty.wait()
            if self._broken:
                raise Stopped
            if not self._items:
                if self._closed:
                    raise Closed
                return None
            item = self._items.popleft()
            self._not_full.notify()
            return item

    def close(self) -> None:
        """No more items will come; those inside are still given out."""
        with self._not_empty:
            self._closed = True
            self._not_empty.notify_all()

    def break_off(self) -> None:
        """Unwinds every thread that waits here, and every later one."""
        with self._not_empty:
            self._broken = True
            self._not_empty.notify_all()
            self._not_full.notify_all()


class BandwidthCap:
    """Lets bytes pass at up to `limit` per second on average; None for no limit."""

    def __init__(self, limit: float | None, gate: Gate, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._gate = gate
        self._clock = clock
        self._free_at = clock()

    def pass_through(self, size: int) -> None:
        """Waits for the turn of `size` bytes. Raises Stopped."""
        with self._gate.condition:
            if not self.limit:
                return
            now = self._clock()
            self._free_at = max(self._free_at, now - _BURST_S) + size / self.limit
            turn = self._free_at
        while (left := turn - self._clock()) > 0 and self.limit:
            self._gate.wait_until(lambda: not self.limit, left)

    def set(self, limit: float | None) -> None:
        """Changes the cap at once, also for those who wait."""
        with self._gate.condition:
            self.limit = limit
            self._free_at = self._clock()
            self._gate.condition.notify_all()


class Senders(Generic[T]):
    """Does one thing with each item that is put; a full queue holds back whoever puts.

    An error of a thread goes to `on_error`, which is expected to call `break_off`.
    """

    def __init__(
        self, do: Callable[[T], None], gate: Gate, number: int, *, limit: int, on_error: Callable[[BaseException], None]
    ) -> None:
        self._do = do
        self._gate = gate
        self._number = number
        self._on_error = on_error
        self._waiting = BoundedQueue[T](limit)
        self._closing = False
        self.threads: list[threading.Thread] = []
        self._grow()

    def put(self, item: T) -> None:
        """Raises Stopped once `break_off` was called."""
        self._waiting.put(item)

    def set_number(self, number: int) -> None:
        """How many items are worked on at once, from now on."""
        with self._gate.condition:
            self._number = number
            self._gate.condition.notify_all()
        self._grow()

    def close(self) -> None:
        """No more items will come; the threads end when none is left."""
        with self._gate.condition:
            self._closing = True
            self._gate.condition.notify_all()
        self._waiting.close()

    def break_off(self) -> None:
        """Ends every thread after the item in hand."""
        with self._gate.condition:
            self._closing = True
            self._gate.condition.notify_all()
        self._waiting.break_off()

    def _grow(self) -> None:
        """Starts the threads that are allowed and not there yet."""
        with self._gate.condition:
            missing = range(len(self.threads), 0 if self._closing else self._number)
            started = [
                threading.Thread(target=self._main, args=(number,), name=f"upload-send-{number}", daemon=True)
                for number in missing
            ]
            self.threads += started
        for thread in started:
            thread.start()

    def _main(self, number: int) -> None:
        try:
            while True:
                self._gate.wait_until(lambda: not self._gate.paused and (number < self._number or self._closing))
                item = self._waiting.get() if number < self._number else None
                if item is None:
                    return
                self._gate.check()
                self._do(item)
        except Closed:
            return
        except BaseException as error:  # noqa: BLE001  told to whoever waits for the threads
            self._on_error(error)
