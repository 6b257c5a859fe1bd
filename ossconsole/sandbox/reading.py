"""Reading an object's bytes through one of the two endpoints, at its simulated cost."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import closing

from ossconsole.sandbox.blobs import BlobStore, OpenBlob
from ossconsole.sandbox.cache import BLOCK_BYTES, BlockCache
from ossconsole.sandbox.ranges import Span
from ossconsole.sandbox.records import StoredObject
from ossconsole.sandbox.shaping import Origin, Shaping, Sleep

_CHUNK_BYTES = 1 << 20


class Reader:
    """Serves object bytes; the accelerated endpoint reads through the cache, which fills on first read."""

    def __init__(
        self, blobs: BlobStore, origin: Origin, shaping: Shaping, cache: BlockCache, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._blobs = blobs
        self._origin = origin
        self._accelerated_s = shaping.accelerated_first_byte_ms / 1000
        self._cache = cache
        self._sleep = sleep

    def open(self, stored: StoredObject, span: Span, *, cached: bool) -> Body:
        """The bytes of `span`, from the bucket or through the cache, to be read and then closed."""
        if not cached:
            return BucketBody(self._origin, self._blobs.open(stored.blob), span)
        first, end = span.start // BLOCK_BYTES, -(-(span.start + span.length) // BLOCK_BYTES)
        held = {number: self._cache.get((stored.blob, stored.size, number)) for number in range(first, end)}
        blob = self._blobs.open(stored.blob) if None in held.values() else OpenBlob(b"")
        return CachedBody(self, blob, stored, span, held)

    def warm(self, stored: StoredObject) -> None:
        """Take an object that is being written into the cache."""
        with closing(self._blobs.open(stored.blob)) as blob:
            for number in range(-(-stored.size // BLOCK_BYTES)):
                start = number * BLOCK_BYTES
                block = blob.read(start, min(BLOCK_BYTES, stored.size - start))
                self._cache.put((stored.blob, stored.size, number), block)

    async def first_byte(self) -> None:
        """What the accelerator itself takes, before it looks into its cache."""
        if self._accelerated_s:
            await self._sleep(self._accelerated_s)

    async def block(self, blob: OpenBlob, stored: StoredObject, number: int, held: bytes | None) -> bytes:
        """One block of an object: the one held, or out of the cache, or at the bucket's cost into it."""
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
    """An object's bytes on their way out. What it needs is held from the start: whatever happens to the object while
    the reader waits its turn, these stay its bytes.
    """

    def __init__(self, span: Span) -> None:
        self.length = span.length
        self._position = self._start = span.start
        self._end = span.start + span.length

    @abstractmethod
    async def read(self) -> bytes:
        """The next chunk; empty at the end."""

    @abstractmethod
    def close(self) -> None: ...


class BucketBody(Body):
    """Out of the bucket."""

    def __init__(self, origin: Origin, blob: OpenBlob, span: Span) -> None:
        super().__init__(span)
        self._origin = origin
        self._blob = blob

    async def read(self) -> bytes:
        if self._position == self._start:
            await self._origin.get()
        length = min(_CHUNK_BYTES, self._end - self._position)
        data = self._blob.read(self._position, length)
        await self._origin.transfer(length)
        self._position += length
        return data

    def close(self) -> None:
        self._blob.close()


class CachedBody(Body):
    """Through the cache; `held` are the blocks that were in it when the request came."""

    def __init__(
        self, reader: Reader, blob: OpenBlob, stored: StoredObject, span: Span, held: dict[int, bytes | None]
    ) -> None:
        super().__init__(span)
        self._reader = reader
        self._blob = blob
        self._stored = stored
        self._held = held

    async def read(self) -> bytes:
        if self._position == self._start:
            await self._reader.first_byte()
        if self._position == self._end:
            return b""
        number, offset = divmod(self._position, BLOCK_BYTES)
        block = await self._reader.block(self._blob, self._stored, number, self._held.pop(number))
        data = block[offset : offset + self._end - self._position]
        self._position += len(data)
        return data

    def close(self) -> None:
        self._blob.close()
