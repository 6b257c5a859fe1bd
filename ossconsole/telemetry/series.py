"""Time series in constant memory, running quantiles and an exponential moving average."""

from __future__ import annotations

import bisect
import math
import threading
from array import array
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

# Each level holds as many buckets as a wide braille chart has dots, each bucket as much as four of the level below:
# at one value a second the levels hold 10 min, 40 min, 2.8 h, 11 h, 45 h, ... at their resolution.
_CAPACITY = 640
_FACTOR = 4
# 640 * 4**11 values, more than any run writes; 12 full levels take about 250 kB.
_LEVELS = 12
_NAN = math.nan


class Point(NamedTuple):
    """The values of one interval of time. `low`, `high` and `last` are NaN where none of them is finite.

    `time` is that of the interval's last value; `gap` is True where one of the values is not finite.
    """

    time: float
    low: float
    high: float
    last: float
    gap: bool


class _Level:
    """A ring buffer of buckets."""

    def __init__(self) -> None:
        self._columns = tuple(array("d", bytes(8 * _CAPACITY)) for _ in range(4))
        self._gaps = bytearray(_CAPACITY)
        self._start = 0
        self._size = 0
        self.dropped = False
        self.open: list[Point] = []

    def append(self, point: Point) -> None:
        slot = (self._start + self._size) % _CAPACITY
        if self._size == _CAPACITY:
            self._start = (self._start + 1) % _CAPACITY
            self.dropped = True
        else:
            self._size += 1
        for column, value in zip(self._columns, point[:4], strict=True):
            column[slot] = value
        self._gaps[slot] = point.gap

    @property
    def oldest(self) -> float:
        return self._columns[0][self._start] if self._size else math.inf

    def since(self, time: float) -> Iterator[Point]:
        times, lows, highs, lasts = self._columns
        slots = [(self._start + offset) % _CAPACITY for offset in range(self._size)]
        first = bisect.bisect_left(slots, time, key=times.__getitem__)
        for slot in slots[first:]:
            yield Point(times[slot], lows[slot], highs[slot], lasts[slot], bool(self._gaps[slot]))


class Series:
    """Values over time in constant memory: recent ones individually, older ones in wider and wider buckets.

    Times are seconds of one clock; a time before the previous one (a clock set back) counts as the previous one.
    Non-finite values are gaps. For one writer and any number of reader threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._levels = [_Level()]
        self._last: Point | None = None

    def append(self, time: float, value: float | None) -> None:
        """Adds a value; None is a gap like NaN."""
        finite = value is not None and math.isfinite(value)
        number = float(value) if value is not None and finite else _NAN
        with self._lock:
            if self._last is not None:
                time = max(time, self._last.time)
            self._last = Point(time, number, number, number, not finite)
            self._push(0, self._last)

    def _push(self, depth: int, point: Point) -> None:
        level = self._levels[depth]
        level.append(point)
        if depth + 1 == _LEVELS:
            return
        level.open.append(point)
        if len(level.open) == _FACTOR:
            bucket = _merge(level.open)
            level.open.clear()
            if depth + 1 == len(self._levels):
                self._levels.append(_Level())
            self._push(depth + 1, bucket)

    @property
    def last(self) -> Point | None:
        """The newest value, None before the first."""
        with self._lock:
            return self._last

    def window(self, t0: float, t1: float, max_points: int) -> list[Point]:
        """The values in [t0, t1], in time order, merged into at most `max_points` equal intervals of time.

        Empty intervals are left out. Raises ValueError where t1 < t0 or max_points < 1.
        """
        if t1 < t0 or max_points < 1:
            raise ValueError(f"no window from {t0} to {t1} in {max_points} points")
        with self._lock:
            points = [point for point in self._points(t0) if point.time <= t1]
        if len(points) <= max_points:
            return points
        scale = max_points / (t1 - t0) if t1 > t0 else 0.0
        buckets: dict[int, list[Point]] = {}
        for point in points:
            buckets.setdefault(min(int((point.time - t0) * scale), max_points - 1), []).append(point)
        return [_merge(bucket) for bucket in buckets.values()]

    def _points(self, t0: float) -> Iterator[Point]:
        """The finest level that still reaches back to `t0`, then the points that have not reached that level yet."""
        depth = next((d for d, level in enumerate(self._levels) if not level.dropped or level.oldest <= t0), None)
        if depth is None:
            depth = len(self._levels) - 1
        yield from self._levels[depth].since(t0)
        for level in reversed(self._levels[:depth]):
            yield from (point for point in level.open if point.time >= t0)


def _merge(points: list[Point]) -> Point:
    finite = [point for point in points if not math.isnan(point.last)]
    gap = any(point.gap for point in points)
    if not finite:
        return Point(points[-1].time, _NAN, _NAN, _NAN, gap)
    low, high = min(point.low for point in finite), max(point.high for point in finite)
    return Point(points[-1].time, low, high, finite[-1].last, gap)


class Quantiles:
    """Quantiles of the last `size` finite values."""

    def __init__(self, size: int = 512) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._size = size

    def add(self, value: float) -> None:
        """Adds a value; a non-finite one is ignored."""
        if not math.isfinite(value):
            return
        if len(self._recent) == self._size:
            del self._sorted[bisect.bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(value)
        bisect.insort(self._sorted, value)

    def __len__(self) -> int:
        return len(self._recent)

    def quantile(self, share: float) -> float | None:
        """The value below which `share` (0 to 1) of them lie, interpolated; None before the first."""
        if not self._sorted:
            return None
        position = share * (len(self._sorted) - 1)
        below = math.floor(position)
        low, high = self._sorted[below], self._sorted[min(below + 1, len(self._sorted) - 1)]
        return low + (high - low) * (position - below)

    @property
    def p50(self) -> float | None:
        """The median; None before the first value."""
        return self.quantile(0.5)

    @property
    def p95(self) -> float | None:
        """The 95th percentile; None before the first value."""
        return self.quantile(0.95)


class Ema:
    """Exponential moving average, bias-corrected at its start (as TensorBoard's smoothing)."""

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._sum = 0.0
        self._norm = 0.0

    def add(self, value: float) -> float:
        """Adds a value and returns the average; NaN for a non-finite value, which is ignored."""
        if not math.isfinite(value):
            return _NAN
        self._sum = self._weight * self._sum + (1 - self._weight) * value
        self._norm = self._weight * self._norm + (1 - self._weight)
        return self._sum / self._norm
