"""The store: the index and the blobs of one sandbox folder, changed together.

A blob is the bytes of an object or a part, written once under its own name and then only read. Small blobs are rows of
an SQLite file, because creating a file takes a millisecond on some systems; large blobs are files. Blobs that the index
does not name are removed at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
from fastcrc import crc64

from ossconsole.config.files import is_damage, make_folder, private_database, set_aside, unwritable
from ossconsole.sandbox.index import Index
from ossconsole.sandbox.records import Attributes, Blob, Bucket, Part, StoredObject, Upload
from ossconsole.sandbox.replies import OssError

BLOBS_NAME, LARGE_BLOBS_NAME = "blobs.sqlite", "blobs"
INLINE_BYTES = 256 << 10
_COPY_BYTES = 1 << 20
_ROW = "r"  # begins the ids of rows; those of files are hexadecimal


class OpenBlob:
    """A blob held open: its bytes stay readable when it is removed meanwhile."""

    def __init__(self, content: bytes | int) -> None:
        self._content = content

    def read(self, start: int, length: int) -> bytes:
        """Raises OSError when the blob is shorter."""
        if isinstance(self._content, bytes):
            data = self._content[start : start + length]
        else:
            data = os.pread(self._content, length, start)
        if len(data) < length:
            raise OSError("a blob is shorter than the index says")
        return data

    def close(self) -> None:
        """Closes the blob."""
        if isinstance(self._content, int):
            os.close(self._content)


class BlobWriter:
    """Writes one blob as its bytes arrive; `finish` or `discard` ends it."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._held = bytearray()
        self._file: BinaryIO | None = None
        self._id = ""
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc = 0
        self.size = 0

    def write(self, data: bytes) -> None:
        """Raises OSError, also when the disk is full."""
        self._md5.update(data)
        self._crc = crc64.xz(data, self._crc)
        self.size += len(data)
        if self._file is None and self.size <= INLINE_BYTES:
            self._held += data
            return
        if self._file is None:
            self._id = secrets.token_hex(16)
            descriptor = os.open(self._blobs.path(self._id), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
            _write(self._file, self._held)
            self._held.clear()
        _write(self._file, data)

    def md5(self) -> bytes:
        """The MD5 digest of the bytes written so far."""
        return self._md5.digest()

    def finish(self) -> Blob:
        """The complete blob. Raises OSError."""
        if self._file is None:
            self._id = self._blobs.insert(self._held)
        else:
            self._file.close()
        return Blob(self._id, self.size, self._md5.hexdigest().upper(), self._crc)

    def discard(self) -> None:
        """Drops what was written."""
        if self._file is not None:
            self._file.close()
            self._blobs.remove([self._id])


class BlobStore:
    """The blobs of one sandbox. May be used from several threads: every statement is a transaction of its own."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / LARGE_BLOBS_NAME
        make_folder(self._root)
        self._db = sqlite3.connect(
            private_database(directory / BLOBS_NAME), isolation_level=None, check_same_thread=False
        )
        self._lock = threading.Lock()  # the id of the last row is the connection's, not the statement's
        self._db.executescript(
            "PRAGMA page_size=16384; PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
            "CREATE TABLE IF NOT EXISTS blobs(id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB NOT NULL);"
        )

    def close(self) -> None:
        """Closes the database."""
        self._db.close()

    def writer(self) -> BlobWriter:
        """A writer of a new blob."""
        return BlobWriter(self)

    def open(self, blob_id: str) -> OpenBlob:
        """Opens a blob. Raises OSError where it does not exist."""
        if not blob_id.startswith(_ROW):
            return OpenBlob(os.open(self.path(blob_id), os.O_RDONLY | os.O_CLOEXEC))
        row = self._db.execute("SELECT data FROM blobs WHERE id = ?", (int(blob_id[1:]),)).fetchone()
        if row is None:
            raise FileNotFoundError(f"blob {blob_id}")
        return OpenBlob(row[0])

    def link(self, blob_id: str) -> str:
        """A second blob with the same bytes; a large one shares them. Returns its id."""
        if blob_id.startswith(_ROW):
            row = self._execute("INSERT INTO blobs(data) SELECT data FROM blobs WHERE id = ?", int(blob_id[1:]))
            return f"{_ROW}{row}"
        copy = secrets.token_hex(16)
        self.path(copy).hardlink_to(self.path(blob_id))
        return copy

    def join(self, pieces: Iterable[tuple[str, int, int]]) -> Blob:
        """A new blob of pieces (blob, start, length) of others. Blocks while it copies. Raises OSError."""
        writer = self.writer()
        try:
            for blob_id, start, length in pieces:
                self._copy(blob_id, start, length, writer)
        except BaseException:
            writer.discard()
            raise
        return writer.finish()

    def _copy(self, blob_id: str, start: int, length: int, writer: BlobWriter) -> None:
        source = self.open(blob_id)
        try:
            for position in range(start, start + length, _COPY_BYTES):
                writer.write(source.read(position, min(_COPY_BYTES, start + length - position)))
        finally:
            source.close()

    def append(self, blob: Blob, added: Blob) -> Blob:
        """`blob` with the bytes of `added` appended: in place where it is a file, because its readers stop at the size
        in the index; a new blob where it is a row.
        """
        if blob.id.startswith(_ROW):
            return self.join([(blob.id, 0, blob.size), (added.id, 0, added.size)])
        crc, source = blob.crc64, self.open(added.id)
        try:
            with self.path(blob.id).open("r+b", buffering=0) as target:
                target.seek(blob.size)
                for position in range(0, added.size, _COPY_BYTES):
                    data = source.read(position, min(_COPY_BYTES, added.size - position))
                    _write(target, data)
                    crc = crc64.xz(data, crc)
        finally:
            source.close()
        return Blob(blob.id, blob.size + added.size, "", crc)

    def remove(self, blob_ids: Iterable[str]) -> None:
        """Removes the blobs that exist."""
        for blob_id in blob_ids:
            if blob_id.startswith(_ROW):
                self._execute("DELETE FROM blobs WHERE id = ?", int(blob_id[1:]))
            else:
                self.path(blob_id).unlink(missing_ok=True)

    def all(self) -> set[str]:
        """The ids of all blobs."""
        rows = {f"{_ROW}{row[0]}" for row in self._db.execute("SELECT id FROM blobs")}
        return rows | {path.name for path in self._root.iterdir()}

    def insert(self, data: bytes | bytearray) -> str:
        """Stores a small blob as a row; returns its id. Raises OSError."""
        row = self._execute("INSERT INTO blobs(data) VALUES (?)", data)
        return f"{_ROW}{row}"

    def _execute(self, query: str, value: object) -> int | None:
        """Executes it and returns the row's id. SQLite's own errors (disk full) become OSError."""
        try:
            with self._lock:
                return self._db.execute(query, (value,)).lastrowid
        except sqlite3.OperationalError as error:
            raise OSError(str(error)) from error

    def path(self, blob_id: str) -> Path:
        """The file of a large blob."""
        return self._root / blob_id


def _write(file: BinaryIO, data: bytes | bytearray) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += file.write(view[done:])


log = logging.getLogger(__name__)

INDEX_NAME = "index.sqlite"
MAX_BUCKETS = 100
MIN_PART_BYTES = 102_400
_ARCHIVE_CLASSES = frozenset({"Archive", "ColdArchive", "DeepColdArchive"})


class SandboxStore:
    """The buckets, objects and uploads of a sandbox. Used in one thread; long copies run in another one."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        """Opens or creates the files; damaged ones are set aside, all together. Raises SettingsError."""
        self._clock = clock
        self._completing: set[str] = set()
        try:
            self._open(directory)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise unwritable(directory, OSError(f"SQLite says {error}")) from error
            files = (directory / name for name in (INDEX_NAME, BLOBS_NAME, LARGE_BLOBS_NAME))
            kept = [set_aside(path) for path in files if path.exists()]
            log.warning(
                "The sandbox's objects were damaged (%s). They are stored as %s.", error, ", ".join(map(str, kept))
            )
            self._open(directory)

    def _open(self, directory: Path) -> None:
        with contextlib.ExitStack() as opened:
            self.blobs = opened.enter_context(contextlib.closing(BlobStore(directory)))
            self.index = opened.enter_context(contextlib.closing(Index(directory / INDEX_NAME)))
            self.blobs.remove(self.blobs.all() - self.index.blob_ids())
            self.buckets = {bucket.name: bucket for bucket in self.index.buckets()}
            opened.pop_all()

    def close(self) -> None:
        """Closes the files."""
        self.index.close()
        self.blobs.close()

    # Buckets

    def bucket(self, name: str) -> Bucket:
        """The bucket. Raises NoSuchBucket."""
        found = self.buckets.get(name)
        if found is None:
            raise OssError("NoSuchBucket", fields={"BucketName": name})
        return found

    def put_bucket(self, bucket: Bucket) -> None:
        """Creates or changes a bucket. Raises TooManyBuckets."""
        if bucket.name not in self.buckets and len(self.buckets) >= MAX_BUCKETS:
            raise OssError("TooManyBuckets", fields={"BucketName": bucket.name})
        self.index.put_bucket(bucket)
        self.buckets[bucket.name] = bucket

    def create_bucket(self, name: str, *, acl: str = "private", storage_class: str = "Standard") -> None:
        """Raises TooManyBuckets."""
        self.put_bucket(Bucket(name=name, created=self._clock(), acl=acl, storage_class=storage_class))

    def delete_bucket(self, name: str) -> None:
        """Deletes an empty bucket. Raises NoSuchBucket, BucketNotEmpty."""
        self.bucket(name)
        self.index.delete_bucket(name)
        del self.buckets[name]

    # Objects

    def get(self, bucket: str, key: str) -> StoredObject:
        """The object. Raises NoSuchBucket, NoSuchKey."""
        self.bucket(bucket)
        found = self.index.get(bucket, key)
        if found is None:
            raise OssError("NoSuchKey", fields={"Key": key})
        return found

    def put(self, bucket: str, key: str, blob: Blob, attributes: Attributes, *, forbid: bool = False) -> StoredObject:
        """Stores `blob` as the object; `forbid` refuses to overwrite. Raises NoSuchBucket, FileAlreadyExists."""
        now = self._clock()
        stored = StoredObject(key, blob.id, blob.size, blob.md5, blob.crc64, now, attributes=attributes)
        self._put(bucket, stored, forbid=forbid)
        return stored

    def change(self, bucket: str, stored: StoredObject) -> None:
        """Replaces the attributes of an object; its bytes stay."""
        self.index.put(bucket, stored)

    def copy(
        self, source: StoredObject, bucket: str, key: str, attributes: Attributes, *, forbid: bool = False
    ) -> StoredObject:
        """Copies an object without copying large blobs. Raises NoSuchBucket, FileAlreadyExists."""
        self.bucket(bucket)
        kind = "Normal" if source.type == "Appendable" else source.type
        stored = msgspec.structs.replace(
            source,
            key=key,
            blob=self.blobs.link(source.blob),
            modified=self._clock(),
            type=kind,
            attributes=attributes,
            restored_until=None,
        )
        self._put(bucket, stored, forbid=forbid)
        return stored

    def append(self, bucket: str, key: str, position: int, data: BlobWriter, attributes: Attributes) -> StoredObject:
        """Appends `data` to an appendable object, or creates one.

        Raises PositionNotEqualToLength, ObjectNotAppendable.
        """
        self.bucket(bucket)
        found = self.index.get(bucket, key)
        if found is not None and found.type != "Appendable":
            raise OssError("ObjectNotAppendable", fields={"ObjectName": key})
        length = found.size if found else 0
        if position != length:
            raise OssError(
                "PositionNotEqualToLength",
                fields={"ObjectName": key},
                headers={"x-oss-next-append-position": str(length)},
            )
        added = data.finish()
        if found is None:
            whole = added
        else:
            whole = self.blobs.append(Blob(found.blob, found.size, "", found.crc64), added)
            self.blobs.remove([added.id])
        etag = hashlib.md5(f"{whole.crc64}-{whole.size}".encode(), usedforsecurity=False).hexdigest().upper()
        attributes = found.attributes if found else attributes
        stored = StoredObject(key, whole.id, whole.size, etag, whole.crc64, self._clock(), "Appendable", attributes)
        self._put(bucket, stored)
        return stored

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        """Deletes the objects that exist. Raises NoSuchBucket."""
        self.bucket(bucket)
        self.blobs.remove(self.index.delete(bucket, keys, self._clock()))

    def archived(self, stored: StoredObject) -> bool:
        """Whether the object is archived and not restored: it cannot be read."""
        if stored.attributes.storage_class not in _ARCHIVE_CLASSES:
            return False
        return stored.restored_until is None or stored.restored_until <= self._clock()

    def restore(self, bucket: str, stored: StoredObject, days: int) -> bool:
        """Makes an archived object readable for `days`; False where it was readable already."""
        fresh = self.archived(stored)
        self.change(bucket, msgspec.structs.replace(stored, restored_until=self._clock() + days * 86_400))
        return fresh

    # Uploads

    def begin_upload(self, bucket: str, key: str, attributes: Attributes) -> Upload:
        """Raises NoSuchBucket."""
        self.bucket(bucket)
        upload = Upload(id=secrets.token_hex(16).upper(), key=key, started=self._clock(), attributes=attributes)
        self.index.put_upload(bucket, upload)
        return upload

    def put_part(self, bucket: str, key: str, upload_id: str, number: int, blob: Blob) -> Part:
        """Adds a part. Raises NoSuchUpload, after removing the blob."""
        part = Part(number, blob, self._clock())
        try:
            self.blobs.remove(self.index.put_part(bucket, key, upload_id, part))
        except OssError:
            self.blobs.remove([blob.id])
            raise
        return part

    async def complete(
        self, bucket: str, key: str, upload_id: str, wanted: Sequence[tuple[int, str]], *, forbid: bool = False
    ) -> StoredObject:
        """Joins the `wanted` parts (number, ETag) into the object; an empty sequence means all parts.

        Raises NoSuchUpload, InvalidPart, InvalidPartOrder, EntityTooSmall, FileAlreadyExists.
        """
        upload = self.index.upload(bucket, key, upload_id)
        parts = _selected(self.index.parts(upload_id), wanted)
        if upload_id in self._completing:
            raise OssError("NoSuchUpload", fields={"UploadId": upload_id})
        self._completing.add(upload_id)
        try:
            blob = await asyncio.to_thread(self.blobs.join, [(part.blob.id, 0, part.blob.size) for part in parts])
        finally:
            self._completing.discard(upload_id)
        digests = b"".join(bytes.fromhex(part.blob.md5) for part in parts)
        etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest().upper()}-{len(parts)}"
        now = self._clock()
        stored = StoredObject(key, blob.id, blob.size, etag, blob.crc64, now, "Multipart", upload.attributes)
        self._put(bucket, stored, completes=upload_id, forbid=forbid)
        return stored

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Raises NoSuchUpload, also while the upload is being completed."""
        if upload_id in self._completing:
            raise OssError("NoSuchUpload", fields={"UploadId": upload_id})
        self.blobs.remove(self.index.delete_upload(bucket, key, upload_id))

    def _put(self, bucket: str, stored: StoredObject, *, completes: str = "", forbid: bool = False) -> None:
        try:
            self.bucket(bucket)
            dropped = self.index.put(bucket, stored, completes=completes, forbid_overwrite=forbid)
        except OssError:
            self.blobs.remove([stored.blob])
            raise
        self.blobs.remove(dropped)


def _selected(parts: list[Part], wanted: Sequence[tuple[int, str]]) -> list[Part]:
    numbers = [number for number, _ in wanted]
    if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise OssError("InvalidPartOrder")
    known = {part.number: part for part in parts}
    for number, etag in wanted:
        if number not in known or known[number].blob.md5 != etag.upper():
            raise OssError("InvalidPart", fields={"PartNumber": str(number)})
    selected = [known[number] for number in numbers] if wanted else parts
    if not selected:
        raise OssError("InvalidPart", "The upload has no parts.")
    for part in selected[:-1]:
        if part.blob.size < MIN_PART_BYTES:
            fields = {"ProposedSize": str(part.blob.size), "PartNumber": str(part.number)}
            raise OssError("EntityTooSmall", fields=fields)
    return selected
