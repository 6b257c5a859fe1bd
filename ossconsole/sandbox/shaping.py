"""The simulated cost of the two endpoints. Nothing here measures, or claims to measure, the real service.

The standard endpoint's default figures are those of the slowest row of the published performance table of the tutorial
that this console follows: 103 samples/s in all (batch 16, 2 workers) and about 35 ms to the first byte.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Shaping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The figures; 0 turns one off. Rates are totals over all connections."""

    standard_first_byte_ms: float = 35.0
    standard_objects_per_s: float = 103.0
    accelerated_first_byte_ms: float = 2.0
    cache_mb: float = 512.0
    bandwidth_mb_s: float = 0.0
    put_first_byte_ms: float = 0.0

    @classmethod
    def none(cls) -> Shaping:
        """Both endpoints as fast as they go, and no cache."""
        return cls(
            standard_first_byte_ms=0,
            standard_objects_per_s=0,
            accelerated_first_byte_ms=0,
            cache_mb=0,
        )


class Pace:
    """Lets `rate` units per second through, evenly and in order; rate 0 lets everything through."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    def reserve(self, now: float, units: float = 1.0) -> float:
        """Take the next turn; returns the seconds until it comes."""
        if not self._rate:
            return 0.0
        turn = max(now, self._free_at)
        self._free_at = turn + units / self._rate
        return turn - now


class Origin:
    """What a request to the bucket itself costs: the standard endpoint, and the accelerator's cache misses."""

    def __init__(self, shaping: Shaping, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self._objects = Pace(shaping.standard_objects_per_s)
        self._bytes = Pace(shaping.bandwidth_mb_s * 1e6)
        self._get_s = shaping.standard_first_byte_ms / 1000
        self._put_s = shaping.put_first_byte_ms / 1000

    async def get(self) -> None:
        """Wait as long as a GET waits for its first byte."""
        await self._wait(self._objects.reserve(self._clock()) + self._get_s)

    async def put(self) -> None:
        """Wait as long as a write waits for its reply."""
        await self._wait(self._put_s)

    async def transfer(self, size: int) -> None:
        """Wait for `size` bytes' turn on the wire."""
        await self._wait(self._bytes.reserve(self._clock(), size))

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)
