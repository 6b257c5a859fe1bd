"""Reads of object bytes through one of the two endpoints, with its simulated latency, bandwidth and cache.

The speeds are simulated: they say nothing about the real service. The standard endpoint's default figures are those of
the slowest row of the tutorial's performance table: 103 samples/s in all (batch 16, 2 workers) and about 35 ms to the
first byte. The accelerator's cache holds blocks of objects in memory and drops the least recently read block first.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import closing

from ossconsole.sandbox.blobs import BlobStore, OpenBlob
from ossconsole.sandbox.process import Shaping
from ossconsole.sandbox.records import StoredObject
from ossconsole.sandbox.request import ByteRange

BLOCK_BYTES = 4 << 20
# Blob, size of the object, number of the block. An overwritten object has another blob and an appended one another
# size, so a cached block is never stale.
BlockKey = tuple[str, int, int]


class BlockCache:
    """An LRU cache of at most `capacity` bytes of blocks. `hits` and `misses` count the blocks of reads."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.hits = 0
        self.misses = 0
        self._blocks: OrderedDict[BlockKey, bytes] = OrderedDict()

    def get(self, key: BlockKey) -> bytes | None:
        """The block, None where it is not cached."""
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
        return block

    def put(self, key: BlockKey, block: bytes) -> None:
        """Stores the block, unless it alone is larger than the cache."""
        if len(block) > self.capacity or key in self._blocks:
            return
        self._blocks[key] = block
        self.size += len(block)
        while self.size > self.capacity:
            _, dropped = self._blocks.popitem(last=False)
            self.size -= len(dropped)

    def clear(self) -> None:
        """Drops every block."""
        self._blocks.clear()
        self.size = 0


Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Pace:
    """Limits to `rate` units per second, evenly and in order; rate 0 is unlimited."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    def reserve(self, now: float, units: float = 1.0) -> float:
        """Reserves the next turn; returns the seconds until then."""
        if not self._rate:
            return 0.0
        turn = max(now, self._free_at)
        self._free_at = turn + units / self._rate
        return turn - now


class OriginDelay:
    """The delays of the bucket itself: of the standard endpoint and of the accelerator's cache misses."""

    def __init__(self, shaping: Shaping, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self._objects = Pace(shaping.standard_objects_per_s)
        self._bytes = Pace(shaping.bandwidth_mb_s * 1e6)
        self._get_s = shaping.standard_first_byte_ms / 1000
        self._put_s = shaping.put_first_byte_ms / 1000

    def limit(self, objects_per_s: float) -> None:
        """Changes the GETs per second, for those that are not waiting yet."""
        self._objects = Pace(objects_per_s)

    async def get(self) -> None:
        """Waits as long as a GET waits for its first byte."""
        await self._wait(self._objects.reserve(self._clock()) + self._get_s)

    async def put(self) -> None:
        """Waits as long as a write waits for its reply."""
        await self._wait(self._put_s)

    async def transfer(self, size: int) -> None:
        """Waits until `size` bytes fit the bandwidth."""
        await self._wait(self._bytes.reserve(self._clock(), size))

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)


_CHUNK_BYTES = 1 << 20


class Reader:
    """Serves object bytes; the accelerated endpoint reads through the cache, which fills on first read."""

    def __init__(
        self, blobs: BlobStore, origin: OriginDelay, shaping: Shaping, cache: BlockCache, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._blobs = blobs
        self._origin = origin
        self._accelerated_s = shaping.accelerated_first_byte_ms / 1000
        self._cache = cache
        self._sleep = sleep

    def open(self, stored: StoredObject, span: ByteRange, *, cached: bool) -> Body:
        """The bytes of `span`, from the bucket or through the cache; the caller closes it."""
        if not cached:
            return BucketBody(self._origin, self._blobs.open(stored.blob), span)
        first, end = span.start // BLOCK_BYTES, -(-(span.start + span.length) // BLOCK_BYTES)
        held = {number: self._cache.get((stored.blob, stored.size, number)) for number in range(first, end)}
        blob = self._blobs.open(stored.blob) if None in held.values() else OpenBlob(b"")
        return CachedBody(self, blob, stored, span, held)

    def warm(self, stored: StoredObject) -> None:
        """Caches an object that is being written."""
        with closing(self._blobs.open(stored.blob)) as blob:
            for number in range(-(-stored.size // BLOCK_BYTES)):
                start = number * BLOCK_BYTES
                block = blob.read(start, min(BLOCK_BYTES, stored.size - start))
                self._cache.put((stored.blob, stored.size, number), block)

    async def first_byte(self) -> None:
        """Waits for the accelerator's own delay, which comes before its cache lookup."""
        if self._accelerated_s:
            await self._sleep(self._accelerated_s)

    async def block(self, blob: OpenBlob, stored: StoredObject, number: int, held: bytes | None) -> bytes:
        """One block of an object: `held`, or from the cache, or from the bucket with its delays."""
        block = held or self._cache.get((stored.blob, stored.size, number))
        if block is not None:
            self._cache.hits += 1
            return block
        self._cache.misses += 1
        start = number * BLOCK_BYTES
        length = min(BLOCK_BYTES, stored.size - start)
        await self._origin.get()
        block = blob.read(start, length)
        await self._origin.transfer(length)
        self._cache.put((stored.blob, stored.size, number), block)
        return block


class Body(ABC):
    """The bytes of a reply. They are held open from the start: an object that is overwritten or deleted meanwhile does
    not change them.
    """

    def __init__(self, blob: OpenBlob, span: ByteRange) -> None:
        self._blob = blob
        self.length = span.length
        self._position = self._start = span.start
        self._end = span.start + span.length

    @abstractmethod
    async def read(self) -> bytes:
        """The next chunk; empty at the end."""

    def close(self) -> None:
        """Closes the blob."""
        self._blob.close()


class BucketBody(Body):
    """Bytes from the bucket."""

    def __init__(self, origin: OriginDelay, blob: OpenBlob, span: ByteRange) -> None:
        super().__init__(blob, span)
        self._origin = origin

    async def read(self) -> bytes:
        """The next chunk, after the bucket's delays."""
        if self._position == self._start:
            await self._origin.get()
        length = min(_CHUNK_BYTES, self._end - self._position)
        data = self._blob.read(self._position, length)
        await self._origin.transfer(length)
        self._position += length
        return data


class CachedBody(Body):
    """Bytes through the cache; `held` are the blocks that it had when the request arrived, None for a miss."""

    def __init__(
        self, reader: Reader, blob: OpenBlob, stored: StoredObject, span: ByteRange, held: dict[int, bytes | None]
    ) -> None:
        super().__init__(blob, span)
        self._reader = reader
        self._stored = stored
        self._held = held

    async def read(self) -> bytes:
        """The rest of the current block, after the delays of a cache hit or miss."""
        if self._position == self._start:
            await self._reader.first_byte()
        if self._position == self._end:
            return b""
        number, offset = divmod(self._position, BLOCK_BYTES)
        block = await self._reader.block(self._blob, self._stored, number, self._held.pop(number))
        data = block[offset : offset + self._end - self._position]
        self._position += len(data)
        return data
