"""The simulated costs, with a clock that only moves when someone waits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.sandbox.blobs import BlobStore
from ossconsole.sandbox.process import Shaping
from ossconsole.sandbox.reading import BLOCK_BYTES, BlockCache, OriginDelay, Pace, Reader
from ossconsole.sandbox.records import StoredObject
from ossconsole.sandbox.request import ByteRange


class FakeTime:
    """A clock and a sleep that moves it; `waits` are the sleeps asked for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Bench:
    """A reader over blobs in a folder, under fake time."""

    def __init__(self, folder: Path, shaping: Shaping) -> None:
        self.time = FakeTime()
        self.blobs = BlobStore(folder)
        self.cache = BlockCache(int(shaping.cache_mb * 1e6))
        origin = OriginDelay(shaping, self.time.clock, self.time.sleep)
        self.reader = Reader(self.blobs, origin, shaping, self.cache, self.time.sleep)

    def store(self, data: bytes) -> StoredObject:
        writer = self.blobs.writer()
        writer.write(data)
        blob = writer.finish()
        return StoredObject(key="k", blob=blob.id, size=blob.size, etag=blob.md5, crc64=blob.crc64, modified=0.0)

    def read(self, kind: EndpointKind, stored: StoredObject, span: ByteRange | None = None) -> tuple[bytes, float]:
        """The bytes, and the seconds they took."""
        span = span or ByteRange(0, stored.size, partial=False)
        before = self.time.now
        data = asyncio.run(self._read(kind, stored, span))
        return data, self.time.now - before

    async def _read(self, kind: EndpointKind, stored: StoredObject, span: ByteRange) -> bytes:
        cached = kind is EndpointKind.ACCELERATED and self.cache.capacity > 0
        body = self.reader.open(stored, span, cached=cached)
        try:
            chunks = []
            while chunk := await body.read():
                chunks.append(chunk)
            return b"".join(chunks)
        finally:
            body.close()


@pytest.fixture
def shaped(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Shaping(standard_objects_per_s=100, bandwidth_mb_s=0))


STANDARD, ACCELERATED = EndpointKind.STANDARD, EndpointKind.ACCELERATED


def test_pace_spaces_turns_evenly() -> None:
    pace = Pace(100)
    assert [pace.reserve(5.0) for _ in range(3)] == pytest.approx([0.0, 0.01, 0.02])
    assert pace.reserve(6.0) == 0.0
    assert Pace(0).reserve(5.0, 1e12) == 0.0


def test_a_lone_standard_read_waits_for_the_first_byte(shaped: Bench) -> None:
    data, seconds = shaped.read(STANDARD, shaped.store(b"data"))
    assert data == b"data"
    assert seconds == pytest.approx(0.035)


def test_the_standard_rate_is_a_total(tmp_path: Path) -> None:
    time = FakeTime()
    origin = OriginDelay(Shaping(standard_objects_per_s=103), time.clock, time.sleep)

    async def thousand() -> None:
        for _ in range(103):
            # All at once: nobody's wait moves the clock before the others ask.
            time.now = 1000.0
            await origin.get()

    asyncio.run(thousand())
    assert max(time.waits) == pytest.approx(102 / 103 + 0.035)


def test_the_standard_rate_can_be_changed(tmp_path: Path) -> None:
    time = FakeTime()
    origin = OriginDelay(Shaping(standard_first_byte_ms=0, standard_objects_per_s=100), time.clock, time.sleep)
    origin.limit(10)

    async def three() -> None:
        for _ in range(3):
            time.now = 1000.0
            await origin.get()

    asyncio.run(three())
    assert max(time.waits) == pytest.approx(0.2)


def test_first_accelerated_read_costs_the_origin_and_the_second_does_not(shaped: Bench) -> None:
    stored = shaped.store(b"data")
    first, first_s = shaped.read(ACCELERATED, stored)
    second, second_s = shaped.read(ACCELERATED, stored)
    assert first == second == b"data"
    assert first_s == pytest.approx(0.037)
    assert second_s == pytest.approx(0.002)
    assert (shaped.cache.hits, shaped.cache.misses) == (1, 1)


def test_an_overwritten_object_is_not_read_from_the_cache(shaped: Bench) -> None:
    old, new = shaped.store(b"old"), shaped.store(b"new")
    shaped.read(ACCELERATED, old)
    data, seconds = shaped.read(ACCELERATED, new)
    assert data == b"new"
    assert seconds == pytest.approx(0.037)


def test_ranges_through_the_cache(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Shaping(cache_mb=64))
    data = bytes(range(256)) * (BLOCK_BYTES // 128)
    stored = bench.store(data)
    across = ByteRange(BLOCK_BYTES - 10, 20, partial=True)
    assert bench.read(ACCELERATED, stored, across)[0] == data[BLOCK_BYTES - 10 : BLOCK_BYTES + 10]
    assert bench.cache.misses == 2
    assert bench.read(ACCELERATED, stored)[0] == data
    assert bench.cache.misses == 2
    assert bench.read(ACCELERATED, stored, ByteRange(7, 0, partial=True))[0] == b""


def test_bandwidth_is_charged_by_the_byte(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Shaping(standard_first_byte_ms=0, standard_objects_per_s=0, bandwidth_mb_s=10))
    stored = bench.store(bytes(5_000_000))
    _, seconds = bench.read(STANDARD, stored)
    # The last chunk's own time on the wire falls after its turn.
    assert seconds == pytest.approx(0.5, abs=0.11)
    assert bench.read(ACCELERATED, stored)[1] > 0.3
    assert bench.read(ACCELERATED, stored)[1] == pytest.approx(0.002)


def test_no_shaping_never_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Shaping.none())
    stored = bench.store(b"data")
    for kind in EndpointKind:
        assert bench.read(kind, stored) == (b"data", 0.0)
    assert bench.time.waits == []


def test_a_reader_in_the_queue_keeps_the_bytes_it_came_for(shaped: Bench) -> None:
    stored = shaped.store(b"old")
    body = shaped.reader.open(stored, ByteRange(0, 3, partial=False), cached=False)
    shaped.blobs.remove([stored.blob])
    assert asyncio.run(body.read()) == b"old"
    body.close()


def test_cache_drops_the_least_recently_read() -> None:
    cache = BlockCache(30)
    for name in "abc":
        cache.put((name, 10, 0), bytes(10))
    cache.get(("a", 10, 0))
    cache.put(("d", 10, 0), bytes(10))
    assert [cache.get((name, 10, 0)) is not None for name in "abcd"] == [True, False, True, True]
    assert cache.size == 30
    cache.put(("e", 31, 0), bytes(31))
    assert cache.get(("e", 31, 0)) is None
    assert cache.size == 30
