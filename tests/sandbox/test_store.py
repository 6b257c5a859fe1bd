"""What survives: restarts, kill -9 in mid-write, parallel writers, and every key there can be."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import oss2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ossconsole.sandbox.blobs import INLINE_BYTES, BlobStore, BlobWriter
from ossconsole.sandbox.process import SandboxInfo, SandboxProcess
from ossconsole.sandbox.records import Attributes, Blob, StoredObject
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.store import RESERVE_NAME, SandboxStore
from tests.sandbox.conftest import make_bucket
from tests.sandbox.test_objects import crc64
from tests.sandbox.wire import call
from tests.waiting import wait_until


def blob_of(store: SandboxStore, data: bytes) -> Blob:
    return writer_of(store, data).finish()


def writer_of(store: SandboxStore, data: bytes) -> BlobWriter:
    writer = store.blobs.writer()
    writer.write(data)
    return writer


def content(store: SandboxStore, key: str) -> bytes:
    stored = store.get("127", key)
    with closing(store.blobs.open(stored.blob)) as blob:
        return blob.read(0, stored.size)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SandboxStore]:
    store = SandboxStore(tmp_path)
    store.create_bucket("127")
    yield store
    store.close()


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    with SandboxProcess.start(tmp_path, unshaped=True) as first:
        bucket = make_bucket(first.info)
        bucket.put_object("a/é", b"data", headers={"x-oss-meta-a": "1"})
        upload_id = bucket.init_multipart_upload("b").upload_id
        part = bucket.upload_part("b", upload_id, 1, b"part")
        key_pair = (first.info.access_key_id, first.info.access_key_secret)
    with SandboxProcess.start(tmp_path, unshaped=True) as second:
        assert (second.info.access_key_id, second.info.access_key_secret) == key_pair
        bucket = make_bucket(second.info)
        assert bucket.get_object("a/é").read() == b"data"
        assert bucket.head_object("a/é").headers["x-oss-meta-a"] == "1"
        bucket.complete_multipart_upload("b", upload_id, [oss2.models.PartInfo(1, part.etag)])
        assert bucket.get_object("b").read() == b"part"


def test_kill_in_the_middle_of_writes_leaves_whole_objects_only(tmp_path: Path) -> None:
    """Writers overwrite their keys with one letter repeated; after kill -9 each object is one letter throughout."""
    size = 300_000
    sandbox = SandboxProcess.start(tmp_path, unshaped=True)
    written = threading.Semaphore(0)
    confirmed: dict[str, int] = {}

    def write(name: str) -> None:
        bucket = make_bucket(sandbox.info)
        for letter in range(65, 91):
            try:
                bucket.put_object(name, bytes([letter]) * size)
            except oss2.exceptions.OssError:
                return
            confirmed[name] = letter
            written.release()

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(write, f"key-{number}")
        for _ in range(20):
            assert written.acquire(timeout=20)
        os.kill(sandbox.pid, signal.SIGKILL)
    sandbox.stop()
    with SandboxProcess.start(tmp_path, unshaped=True) as again:
        bucket = make_bucket(again.info)
        for name, letter in confirmed.items():
            data = bucket.get_object(name).read()
            assert len(data) == size
            assert len(set(data)) == 1
            assert data[0] >= letter
    with closing(SandboxStore(tmp_path)) as store:
        assert store.blobs.all() == {store.get("127", name).blob for name in confirmed}


def test_parallel_writers_of_one_key(bucket: Any, prefix: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: bucket.put_object(f"{prefix}x", bytes([n]) * 200_000), range(32)))
    data = bucket.get_object(f"{prefix}x").read()
    assert len(data) == 200_000
    assert len(set(data)) == 1


SMALL, LARGE = b"s" * 100, b"l" * (INLINE_BYTES + 1)


@pytest.mark.parametrize("data", [b"", SMALL, LARGE])
def test_overwriting_and_deleting_free_the_disk(store: SandboxStore, data: bytes) -> None:
    for content_now in (b"before", data):
        store.put("127", "x", blob_of(store, content_now), Attributes())
    assert len(store.blobs.all()) == 1
    store.copy(store.get("127", "x"), "127", "y", Attributes())
    store.delete("127", ["x", "never there"])
    assert content(store, "y") == data
    upload = store.begin_upload("127", "z", Attributes())
    store.put_part("127", "z", upload.id, 1, blob_of(store, data))
    store.abort("127", "z", upload.id)
    assert store.blobs.all() == {store.get("127", "y").blob}


@pytest.mark.parametrize("first", [SMALL, LARGE])
@pytest.mark.parametrize("second", [SMALL, LARGE])
def test_appending_does_not_reach_copies_and_open_readers(store: SandboxStore, first: bytes, second: bytes) -> None:
    def append(data: bytes) -> StoredObject:
        size = found.size if (found := store.index.get("127", "x")) else 0
        return store.append("127", "x", size, writer_of(store, data), Attributes())

    before = append(first)
    store.copy(before, "127", "copy", Attributes())
    with closing(store.blobs.open(before.blob)) as reader:
        after = append(second)
        assert reader.read(0, before.size) == first
    assert content(store, "x") == first + second
    assert content(store, "copy") == first
    assert after.crc64 == crc64(first + second)
    assert len(store.blobs.all()) == 2


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_appending_ends_at_five_gigabytes(store: SandboxStore, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """AppendObject: "The final size of an object created using AppendObject cannot exceed 5 GB."."""
    monkeypatch.setattr("ossconsole.sandbox.store.MAX_APPENDED_BYTES", len(data))
    store.append("127", "x", 0, writer_of(store, data), Attributes())
    with pytest.raises(OssError, match="EntityTooLarge"):
        store.append("127", "x", len(data), writer_of(store, data), Attributes())
    assert store.blobs.all() == {store.get("127", "x").blob}


def test_writers_that_are_discarded_leave_nothing(store: SandboxStore) -> None:
    for data in (SMALL, LARGE):
        writer = store.blobs.writer()
        writer.write(data)
        writer.discard()
    assert store.blobs.all() == set()


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_a_refused_write_leaves_no_blob(store: SandboxStore, data: bytes) -> None:
    kept = store.put("127", "x", blob_of(store, data), Attributes()).blob
    with pytest.raises(OssError, match="FileAlreadyExists"):
        store.put("127", "x", blob_of(store, data), Attributes(), forbid=True)
    with pytest.raises(OssError, match="NoSuchBucket"):
        store.put("other", "x", blob_of(store, data), Attributes())
    with pytest.raises(OssError, match="NoSuchUpload"):
        store.put_part("127", "x", "gone", 1, blob_of(store, data))
    assert store.blobs.all() == {kept}


class FullDisk:
    """A database whose disk is full for the statements that begin with one of `writes`."""

    def __init__(self, database: sqlite3.Connection, *writes: str) -> None:
        self._database = database
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        if query.startswith(self._writes):
            raise sqlite3.OperationalError("database or disk is full")
        return self._database.execute(query, *values)


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_a_write_that_fails_leaves_no_blob_and_loses_none(
    store: SandboxStore, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the bytes of every failed attempt would make it fuller, until the next start."""
    upload = store.begin_upload("127", "x", Attributes())
    part = store.put_part("127", "x", upload.id, 1, blob_of(store, data))
    appended = store.append("127", "appended", 0, writer_of(store, data), Attributes())
    before = store.blobs.all()
    monkeypatch.setattr(store.index, "_db", FullDisk(store.index._db, "REPLACE INTO objects", "REPLACE INTO parts"))
    for write in (
        lambda: store.put("127", "x", blob_of(store, data), Attributes()),
        lambda: store.copy(appended, "127", "x", Attributes()),
        lambda: store.append("127", "new", 0, writer_of(store, data), Attributes()),
        lambda: store.append("127", "appended", appended.size, writer_of(store, data), Attributes()),
        lambda: store.put_part("127", "x", upload.id, 2, blob_of(store, data)),
        lambda: asyncio.run(store.complete("127", "x", upload.id, [(1, part.blob.md5)])),
    ):
        with pytest.raises(sqlite3.OperationalError):
            write()
        assert store.blobs.all() == before
    assert content(store, "appended") == data


def test_a_change_of_a_bucket_that_fails_leaves_it_as_it_was(store: SandboxStore, tmp_path: Path) -> None:
    """Half of it remained: versions in a bucket without versioning, and the rules of a bucket that was deleted."""
    store.index.set_rule("127", "encryption", b"{}")
    whole, store.index._db = store.index._db, FullDisk(store.index._db, "COMMIT")  # type: ignore[assignment]
    with pytest.raises(sqlite3.OperationalError):
        store.index.set_versioning("127")
    with pytest.raises(sqlite3.OperationalError):
        store.delete_bucket("127")
    store.index._db = whole
    assert store.index.versions.status("127") is None
    store.close()
    with closing(SandboxStore(tmp_path)) as reopened:
        assert reopened.index.rule("127", "encryption") == b"{}"
        reopened.delete_bucket("127")
        assert reopened.index.rule("127", "encryption") is None


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_an_append_that_fails_midway_leaves_no_blob(
    store: SandboxStore, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("127", "x", 0, writer_of(store, data), Attributes())
    before = store.blobs.all()

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(store.blobs, "append", full)
        with pytest.raises(OSError, match="no space left"):
            store.append("127", "x", len(data), writer_of(store, data), Attributes())
    assert store.blobs.all() == before
    store.append("127", "x", len(data), writer_of(store, data), Attributes())
    assert content(store, "x") == data * 2


def test_a_change_that_took_effect_is_no_error_where_the_old_bytes_cannot_be_removed(
    store: SandboxStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing a row writes to the log of SQLite, for which a full disk has no room."""

    def full(*_: object) -> None:
        raise OSError("database or disk is full")

    store.put("127", "x", blob_of(store, b"before"), Attributes())
    store.put("127", "y", blob_of(store, b"deleted"), Attributes())
    with monkeypatch.context() as patched:
        patched.setattr(BlobStore, "remove", full)
        store.put("127", "x", blob_of(store, b"after"), Attributes())
        store.delete("127", ["y"])
        store.close()
        with closing(SandboxStore(tmp_path)) as reopened:
            assert content(reopened, "x") == b"after"
    with closing(SandboxStore(tmp_path)) as reopened:
        assert len(reopened.blobs.all()) == 1


def test_objects_are_deleted_on_a_full_disk(store: SandboxStore, tmp_path: Path) -> None:
    """The deletion itself needs space. Without the reserve nobody could make room for anything."""

    class Full(FullDisk):
        def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
            if query.startswith("DELETE") and (tmp_path / RESERVE_NAME).exists():
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(query, *values)

    assert (tmp_path / RESERVE_NAME).stat().st_size == 1 << 20
    store.put("127", "x", blob_of(store, b"data"), Attributes())
    store.index._db = Full(store.index._db)  # type: ignore[assignment]
    store.delete("127", ["x"])
    assert store.index.get("127", "x") is None
    assert store.blobs.all() == set()
    store.close()
    with closing(SandboxStore(tmp_path)):
        assert (tmp_path / RESERVE_NAME).exists()


def test_blobs_that_nothing_names_are_swept_at_the_start(store: SandboxStore, tmp_path: Path) -> None:
    store.put("127", "x", blob_of(store, b"kept"), Attributes())
    for data in (SMALL, LARGE):
        blob_of(store, data)
    store.close()
    with closing(SandboxStore(tmp_path)) as reopened:
        assert content(reopened, "x") == b"kept"
        assert len(reopened.blobs.all()) == 1


def test_an_upload_completed_twice_simultaneously_ends_once(store: SandboxStore) -> None:
    upload = store.begin_upload("127", "x", Attributes())
    part = store.put_part("127", "x", upload.id, 1, blob_of(store, b"part"))
    wanted = [(1, part.blob.md5)]

    async def both() -> list[Any]:
        return await asyncio.gather(
            *(store.complete("127", "x", upload.id, wanted) for _ in range(2)), return_exceptions=True
        )

    results = asyncio.run(both())
    assert sorted(type(result).__name__ for result in results) == ["OssError", "StoredObject"]
    assert store.get("127", "x").size == 4


def test_a_part_that_is_sent_again_during_the_completion_is_refused(store: SandboxStore) -> None:
    """It would replace the bytes that are being joined."""
    upload = store.begin_upload("127", "x", Attributes())
    parts = [store.put_part("127", "x", upload.id, number, blob_of(store, LARGE)) for number in (1, 2)]

    async def both() -> None:
        completion = asyncio.create_task(
            store.complete("127", "x", upload.id, [(part.number, part.blob.md5) for part in parts])
        )
        await asyncio.sleep(0)
        with pytest.raises(OssError, match="NoSuchUpload"):
            store.put_part("127", "x", upload.id, 2, blob_of(store, SMALL))
        await completion

    asyncio.run(both())
    assert content(store, "x") == LARGE * 2
    assert store.blobs.all() == {store.get("127", "x").blob}


@pytest.mark.parametrize("first", [SMALL, LARGE])
@pytest.mark.parametrize("suspended", [False, True])
def test_appending_makes_no_previous_version(store: SandboxStore, first: bytes, suspended: bool) -> None:
    """ "OSS does not create previous versions for this Appendable object." (AppendObject, Versioning)"""
    store.index.set_versioning("127")
    store.append("127", "x", 0, writer_of(store, first), Attributes())
    if suspended:
        store.index.set_versioning("127", suspended=True)
    after = store.append("127", "x", len(first), writer_of(store, SMALL), Attributes())
    (version,) = store.index.versions.list("127", prefix="", start=b"", key_marker="", id_marker="", limit=10)
    assert version.stored() == after == store.get("127", "x")
    assert content(store, "x") == first + SMALL
    assert store.blobs.all() == {version.blob}


_HOSTILE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda key: key[0] not in "/\\" and len(key.encode()) <= 1023
)
_NASTY = [
    "../../etc/passwd",
    "a//b",
    "a/./b/../c",
    "a\x00b",
    "\x1b[31m",
    "A",
    "a",
    "%2e%2e%2f",
    "é",
    "e\u0301",
    " ",
    ".",
]


@pytest.fixture(scope="module")
def emptied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxStore]:
    """A store that each example leaves empty."""
    store = SandboxStore(tmp_path_factory.mktemp("keys"))
    store.create_bucket("127")
    yield store
    store.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.lists(st.one_of(_HOSTILE, st.sampled_from(_NASTY)), min_size=1, max_size=6, unique=True))
def test_any_key_keeps_its_own_bytes(keys: list[str], emptied: SandboxStore) -> None:
    store = emptied
    for key in keys:
        store.put("127", key, blob_of(store, key.encode()), Attributes())
    found = store.index.scan("127", b"", b"", 1000, inclusive=True)
    assert [stored.key for stored in found] == sorted(keys)
    assert [content(store, key) for key in keys] == [key.encode() for key in keys]
    store.delete("127", keys)
    assert store.blobs.all() == set()


@pytest.mark.parametrize("key", [*_NASTY, "x" * 1023, "é" * 511, "a b+c&d=e?f#g%", "<&>\"'\n\t"])
def test_hostile_keys_over_http(info: SandboxInfo, bucket: Any, key: str) -> None:
    assert call(info, "PUT", key, body=key.encode()).status == 200
    assert call(info, "GET", key).body == key.encode()
    assert key in [entry.key for entry in oss2.ObjectIteratorV2(bucket, prefix=key)]
    assert call(info, "DELETE", key).status == 204
    assert call(info, "HEAD", key).code == "NoSuchKey"


def test_the_log_grows_by_whole_lines(sandbox: SandboxProcess, bucket: Any, prefix: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: bucket.put_object(f"{prefix}{n}", b""), range(40)))
    wait_until(lambda: sandbox.log_path.read_bytes().count(prefix.encode()) >= 40)
    assert sandbox.log_path.read_bytes().endswith(b"}\n")


def test_threads_that_write_blobs_simultaneously_get_distinct_ids(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)

    def write(number: int) -> tuple[str, bytes]:
        data = b"%06d" % number
        return blobs.insert(data), data

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(write, range(4000)))
    for blob_id, data in written:
        with closing(blobs.open(blob_id)) as blob:
            assert blob.read(0, len(data)) == data
    blobs.close()
