"""Reading an object's bytes through one of the two endpoints, at its simulated cost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from ossconsole.config.endpoints import EndpointKind
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

    def chunks(self, kind: EndpointKind, stored: StoredObject, span: Span) -> AsyncGenerator[bytes, None]:
        """The bytes of `span`, read through the endpoint of this kind."""
        if kind is EndpointKind.STANDARD or not self._cache.capacity:
            return self._from_origin(stored, span)
        return self._through_cache(stored, span)

    @contextmanager
    def _open(self, stored: StoredObject) -> Iterator[int]:
        """Opened before the first wait: whatever happens to the object after that, these stay its bytes."""
        descriptor = os.open(self._blobs.path(stored.blob), os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    async def _from_origin(self, stored: StoredObject, span: Span) -> AsyncGenerator[bytes, None]:
        with self._open(stored) as descriptor:
            await self._origin.get()
            async for data in self._read(descriptor, span.start, span.length):
                yield data

    async def _through_cache(self, stored: StoredObject, span: Span) -> AsyncGenerator[bytes, None]:
        with self._open(stored) as descriptor:
            await self._wait_accelerator()
            end = span.start + span.length
            for number in range(span.start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                block = self._cache.get((stored.blob, stored.size, number))
                if block is None:
                    block = await self._fetch(descriptor, stored, number)
                base = number * BLOCK_BYTES
                yield block[max(span.start - base, 0) : end - base]

    async def _fetch(self, descriptor: int, stored: StoredObject, number: int) -> bytes:
        """One block from the bucket, at its cost, into the cache."""
        await self._origin.get()
        start = number * BLOCK_BYTES
        length = min(BLOCK_BYTES, stored.size - start)
        block = b"".join([data async for data in self._read(descriptor, start, length)])
        self._cache.put((stored.blob, stored.size, number), block)
        return block

    async def _read(self, descriptor: int, position: int, left: int) -> AsyncGenerator[bytes, None]:
        while left:
            data = os.pread(descriptor, min(left, _CHUNK_BYTES), position)
            if not data:
                raise OSError("a blob is shorter than the index says")
            await self._origin.transfer(len(data))
            yield data
            position, left = position + len(data), left - len(data)

    async def _wait_accelerator(self) -> None:
        if self._accelerated_s:
            await self._sleep(self._accelerated_s)
