"""Reading an object's bytes through one of the two endpoints, at its simulated cost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from ossconsole.sandbox.blobs import BlobFolder
from ossconsole.sandbox.cache import BLOCK_BYTES, BlockCache
from ossconsole.sandbox.ranges import Span
from ossconsole.sandbox.records import StoredObject
from ossconsole.sandbox.shaping import Origin, Shaping, Sleep

_CHUNK_BYTES = 1 << 20


class Reader:
    """Serves object bytes; the accelerated endpoint reads through the cache, which fills on first read."""

    def __init__(
        self, blobs: BlobFolder, origin: Origin, shaping: Shaping, cache: BlockCache, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._blobs = blobs
        self._origin = origin
        self._accelerated_s = shaping.accelerated_first_byte_ms / 1000
        self._cache = cache
        self._sleep = sleep

    def open(self, stored: StoredObject, span: Span, *, cached: bool) -> Body:
        """The bytes of `span`, from the bucket or through the cache, to be read and then closed."""
        descriptor = os.open(self._blobs.path(stored.blob), os.O_RDONLY | os.O_CLOEXEC)
        return Body(self, descriptor, stored, span, cached=cached)

    def warm(self, stored: StoredObject) -> None:
        """Take an object that is being written into the cache."""
        with Path(self._blobs.path(stored.blob)).open("rb") as file:
            for number in range(-(-stored.size // BLOCK_BYTES)):
                self._cache.put((stored.blob, stored.size, number), file.read(BLOCK_BYTES))

    async def first_byte(self) -> None:
        """What the accelerator itself takes, before it looks into its cache."""
        if self._accelerated_s:
            await self._sleep(self._accelerated_s)

    async def from_origin(self, descriptor: int, start: int, length: int, *, first: bool) -> bytes:
        """Bytes of the bucket's own copy; `first` when this is where a request to it begins."""
        if first:
            await self._origin.get()
        data = os.pread(descriptor, length, start)
        if len(data) < length:
            raise OSError("a blob is shorter than the index says")
        await self._origin.transfer(length)
        return data

    async def block(self, descriptor: int, stored: StoredObject, number: int) -> bytes:
        """One block of an object, out of the cache or, at the bucket's cost, into it."""
        block = self._cache.get((stored.blob, stored.size, number))
        if block is None:
            start = number * BLOCK_BYTES
            length = min(BLOCK_BYTES, stored.size - start)
            block = await self.from_origin(descriptor, start, length, first=True)
            self._cache.put((stored.blob, stored.size, number), block)
        return block


class Body:
    """An object's bytes on their way out. The file is open from the start: whatever happens to the object while the
    reader waits its turn, these stay its bytes.
    """

    def __init__(self, reader: Reader, descriptor: int, stored: StoredObject, span: Span, *, cached: bool) -> None:
        self._reader = reader
        self._descriptor = descriptor
        self._stored = stored
        self._position = self._start = span.start
        self._end = span.start + span.length
        self._cached = cached
        self.length = span.length

    async def read(self) -> bytes:
        """The next chunk; empty at the end."""
        first = self._position == self._start
        if first and self._cached:
            await self._reader.first_byte()
        if self._position == self._end:
            return b""
        if self._cached:
            number, offset = divmod(self._position, BLOCK_BYTES)
            block = await self._reader.block(self._descriptor, self._stored, number)
            data = block[offset : offset + self._end - self._position]
        else:
            length = min(_CHUNK_BYTES, self._end - self._position)
            data = await self._reader.from_origin(self._descriptor, self._position, length, first=first)
        self._position += len(data)
        return data

    def close(self) -> None:
        os.close(self._descriptor)
