"""Blobs: the bytes of objects and parts, each written once under its own name and then only read.

Small blobs are rows of an SQLite file, because creating a file takes a millisecond on some systems; large blobs are
files. Blobs that the index does not name are removed at the next start.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from fastcrc import crc64

from ossconsole.config.files import make_folder, private_database
from ossconsole.sandbox.records import Blob

BLOBS_NAME, LARGE_BLOBS_NAME = "blobs.sqlite", "blobs"
INLINE_BYTES = 256 << 10
_COPY_BYTES = 1 << 20
_ROW = "r"  # begins the ids of rows; those of files are hexadecimal


class OpenBlob:
    """A blob held open: its bytes stay readable when it is removed meanwhile."""

    def __init__(self, content: bytes | int) -> None:
        self._content = content

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes of the blob from offset `start`. Raises OSError when the blob is shorter."""
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
            # Some builds of SQLite write zeros over what is deleted, for which a full disk has no room.
            "PRAGMA secure_delete=OFF;"
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
