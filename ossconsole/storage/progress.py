"""Progress of a job: counts that only rise, a rate over the last seconds, and the time left."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

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
