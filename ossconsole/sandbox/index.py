"""The index: an SQLite file of buckets, objects, uploads and parts.

Every change is one transaction, and an object's bytes are already complete in a blob file when a row names them:
that commit is the moment at which a write becomes visible, whole or not at all.

Versions of objects, in buckets that keep them: what overwriting and deleting leave behind.

Kept, listed and counted as the service does; a version cannot be read or deleted by its id here, nor can keeping be
suspended.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ossconsole.config.files import private_database
from ossconsole.sandbox.listing import after_all
from ossconsole.sandbox.records import Attributes, Blob, Bucket, Part, StoredObject, Upload
from ossconsole.sandbox.replies import OssError

_VERSIONS_SCHEMA = """
CREATE TABLE IF NOT EXISTS versioned(bucket TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions(
    bucket TEXT NOT NULL, key BLOB NOT NULL, number INTEGER NOT NULL, id TEXT NOT NULL, blob TEXT NOT NULL,
    size INTEGER NOT NULL, etag TEXT NOT NULL, modified REAL NOT NULL, type TEXT NOT NULL, storage_class TEXT NOT NULL,
    PRIMARY KEY(bucket, key, number)
) WITHOUT ROWID;
"""
NULL_ID = "null"
"""Of what was there before the bucket kept versions."""
_MARKER = ""  # in place of a type


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version. Times are Unix seconds."""

    key: str
    id: str
    is_latest: bool
    is_marker: bool
    size: int
    etag: str
    modified: float
    type: str
    storage_class: str


class Versions:
    """Part of the index: used in its thread, and inside its transactions. The newest row of a key is what it is now."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.executescript(_VERSIONS_SCHEMA)
        self._kept = {row[0] for row in db.execute("SELECT bucket FROM versioned")}

    def kept(self, bucket: str) -> bool:
        """Whether the bucket keeps versions."""
        return bucket in self._kept

    def keep(self, bucket: str, objects: Iterable[StoredObject]) -> None:
        """From now on the bucket keeps versions; `objects` are those that are there."""
        self._db.execute("INSERT INTO versioned VALUES (?)", (bucket,))
        self._kept.add(bucket)
        for stored in objects:
            self.add(bucket, stored, NULL_ID)

    def drop(self, bucket: str) -> None:
        self._db.execute("DELETE FROM versioned WHERE bucket = ?", (bucket,))
        self._kept.discard(bucket)

    def add(self, bucket: str, stored: StoredObject, version_id: str = "") -> None:
        """Notes what an object is from now on."""
        kind, storage_class = stored.type, stored.attributes.storage_class
        row = (version_id, stored.blob, stored.size, stored.etag, stored.modified, kind, storage_class)
        self._add(bucket, stored.key, row)

    def add_marker(self, bucket: str, key: str, now: float) -> None:
        """Notes that the object was deleted."""
        self._add(bucket, key, ("", "", 0, "", now, _MARKER, ""))

    def _add(self, bucket: str, key: str, row: tuple[object, ...]) -> None:
        version_id, *rest = row
        self._db.execute(
            "INSERT INTO versions SELECT ?, ?, 1 + ifnull(max(number), 0), ?, ?, ?, ?, ?, ?, ? "
            "FROM versions WHERE bucket = ? AND key = ?",
            (bucket, key.encode(), version_id or secrets.token_hex(16), *rest, bucket, key.encode()),
        )

    def latest(self, bucket: str, key: str) -> str:
        """The id of what the key is now; of a deleted one, that of its marker."""
        query = "SELECT id FROM versions WHERE bucket = ? AND key = ? ORDER BY number DESC LIMIT 1"
        return str(self._db.execute(query, (bucket, key.encode())).fetchone()[0])

    def list(self, bucket: str, *, prefix: str, key_marker: str, id_marker: str, limit: int) -> list[Version]:
        """Up to `limit` versions by key, of each key the newest first, that come after the markers."""
        after = key_marker.encode()
        known = "SELECT number FROM versions WHERE bucket = ? AND key = ? AND id = ?"
        row = self._db.execute(known, (bucket, after, id_marker)).fetchone()
        below = row[0] if row else 0
        raw_prefix = prefix.encode()
        query = (
            "SELECT key, id, number = (SELECT max(number) FROM versions WHERE bucket = v.bucket AND key = v.key), "
            "size, etag, modified, type, storage_class FROM versions AS v "
            "WHERE bucket = ? AND key >= ? AND key < ? AND (key > ? OR (key = ? AND number < ?)) "
            "ORDER BY key, number DESC LIMIT ?"
        )
        end = after_all(raw_prefix) or b"\xff"
        rows = self._db.execute(query, (bucket, raw_prefix, end, after, after, below, limit))
        return [
            Version(
                key=key.decode(),
                id=version_id,
                is_latest=bool(latest),
                is_marker=kind == _MARKER,
                size=size,
                etag=etag,
                modified=modified,
                type=kind,
                storage_class=storage_class,
            )
            for key, version_id, latest, size, etag, modified, kind, storage_class in rows
        ]


_SCHEMA = """
CREATE TABLE IF NOT EXISTS buckets(
    name TEXT PRIMARY KEY, created REAL NOT NULL, acl TEXT NOT NULL, storage_class TEXT NOT NULL, accelerator BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects(
    bucket TEXT NOT NULL, key BLOB NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,
    crc64 TEXT NOT NULL, modified REAL NOT NULL, type TEXT NOT NULL, attributes BLOB NOT NULL, restored_until REAL,
    PRIMARY KEY(bucket, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads(
    bucket TEXT NOT NULL, key BLOB NOT NULL, id TEXT NOT NULL, started REAL NOT NULL, attributes BLOB NOT NULL,
    PRIMARY KEY(bucket, key, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts(
    upload TEXT NOT NULL, number INTEGER NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL, md5 TEXT NOT NULL,
    crc64 TEXT NOT NULL, modified REAL NOT NULL,
    PRIMARY KEY(upload, number)
) WITHOUT ROWID;
"""
_OBJECT = "key, blob, size, etag, crc64, modified, type, attributes, restored_until"
_REMEMBERED = 65_536
_NO_END = b"\xff"  # above every UTF-8 key
_decode_attributes = msgspec.json.Decoder(Attributes).decode


class Index:
    """Used from one thread. Methods that replace or drop rows return the blob ids that nothing names any more."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(private_database(path), isolation_level=None, cached_statements=64)
        # An epoch asks for the same objects again: their rows need not be read and decoded each time.
        self._remembered: dict[tuple[str, str], StoredObject] = {}
        # One process per folder, so the file may stay locked and a read needs no system call.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        # Commits survive a kill -9 of the process; syncing them against a power cut would cost every PUT a disk flush.
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_SCHEMA}")
        self.versions = Versions(self._db)

    def close(self) -> None:
        self._db.close()

    def blob_ids(self) -> set[str]:
        query = "SELECT blob FROM objects UNION ALL SELECT blob FROM parts UNION ALL SELECT blob FROM versions"
        return {row[0] for row in self._db.execute(query)}

    # Buckets

    def buckets(self) -> list[Bucket]:
        rows = self._db.execute("SELECT name, created, acl, storage_class, accelerator FROM buckets ORDER BY name")
        return [_bucket(row) for row in rows]

    def put_bucket(self, bucket: Bucket) -> None:
        values = (bucket.name, bucket.created, bucket.acl, bucket.storage_class, bucket.accelerator)
        self._db.execute("REPLACE INTO buckets VALUES (?, ?, ?, ?, ?)", values)

    def delete_bucket(self, name: str) -> None:
        """Raises BucketNotEmpty."""
        for table in ("objects", "uploads", "versions"):
            if self._db.execute(f"SELECT 1 FROM {table} WHERE bucket = ? LIMIT 1", (name,)).fetchone():  # noqa: S608
                raise OssError("BucketNotEmpty", fields={"BucketName": name})
        self._db.execute("DELETE FROM buckets WHERE name = ?", (name,))
        self.versions.drop(name)

    def keep_versions(self, bucket: str) -> None:
        """From now on the bucket keeps versions of its objects."""
        if not self.versions.kept(bucket):
            with _transaction(self._db):
                self.versions.keep(bucket, self.scan(bucket, b"", b"", -1, inclusive=True))

    def usage(self, bucket: str) -> tuple[int, int]:
        """Objects in the bucket and their bytes."""
        row = self._db.execute("SELECT count(*), total(size) FROM objects WHERE bucket = ?", (bucket,)).fetchone()
        return int(row[0]), int(row[1])

    # Objects

    def get(self, bucket: str, key: str) -> StoredObject | None:
        found = self._remembered.get((bucket, key))
        if found is not None:
            return found
        query = f"SELECT {_OBJECT} FROM objects WHERE bucket = ? AND key = ?"  # noqa: S608
        row = self._db.execute(query, (bucket, key.encode())).fetchone()
        if row is None:
            return None
        if len(self._remembered) >= _REMEMBERED:
            self._remembered.clear()
        return self._remembered.setdefault((bucket, key), _object(row))

    def scan(self, bucket: str, start: bytes, end: bytes, limit: int, *, inclusive: bool) -> list[StoredObject]:
        """Up to `limit` objects in byte order of their keys, from `start` on and below `end` (empty: no end)."""
        operator = ">=" if inclusive else ">"
        query = (
            f"SELECT {_OBJECT} FROM objects WHERE bucket = ? AND key {operator} ? AND key < ? "  # noqa: S608
            "ORDER BY key LIMIT ?"
        )
        return [_object(row) for row in self._db.execute(query, (bucket, start, end or _NO_END, limit))]

    def put(
        self, bucket: str, stored: StoredObject, *, completes: str = "", forbid_overwrite: bool = False
    ) -> list[str]:
        """Insert or replace; `completes` is the upload this object ends. Raises FileAlreadyExists."""
        key = stored.key.encode()
        self._remembered.pop((bucket, stored.key), None)
        with _transaction(self._db):
            dropped = self._blobs("SELECT blob FROM objects WHERE bucket = ? AND key = ?", (bucket, key))
            if dropped and forbid_overwrite:
                raise OssError("FileAlreadyExists", fields={"ObjectName": stored.key})
            self._db.execute(
                "REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    bucket,
                    key,
                    stored.blob,
                    stored.size,
                    stored.etag,
                    str(stored.crc64),
                    stored.modified,
                    stored.type,
                    msgspec.json.encode(stored.attributes),
                    stored.restored_until,
                ),
            )
            if self.versions.kept(bucket) and stored.blob not in dropped:
                self.versions.add(bucket, stored)
                dropped = []
            if completes:
                dropped += self._drop_upload(bucket, key, completes)
        return [blob for blob in dropped if blob != stored.blob]

    def delete(self, bucket: str, keys: Iterable[str], now: float) -> list[str]:
        """`now` is when, in Unix seconds, for the markers of a bucket that keeps versions."""
        dropped = []
        with _transaction(self._db):
            for key in keys:
                self._remembered.pop((bucket, key), None)
                values = (bucket, key.encode())
                if self.versions.kept(bucket):
                    self.versions.add_marker(bucket, key, now)
                else:
                    dropped += self._blobs("SELECT blob FROM objects WHERE bucket = ? AND key = ?", values)
                self._db.execute("DELETE FROM objects WHERE bucket = ? AND key = ?", values)
        return dropped

    # Uploads

    def put_upload(self, bucket: str, upload: Upload) -> None:
        values = (bucket, upload.key.encode(), upload.id, upload.started, msgspec.json.encode(upload.attributes))
        self._db.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?)", values)

    def upload(self, bucket: str, key: str, upload_id: str) -> Upload:
        """Raises NoSuchUpload."""
        query = "SELECT key, id, started, attributes FROM uploads WHERE bucket = ? AND key = ? AND id = ?"
        row = self._db.execute(query, (bucket, key.encode(), upload_id)).fetchone()
        if row is None:
            raise OssError("NoSuchUpload", fields={"UploadId": upload_id})
        return _upload(row)

    def uploads(self, bucket: str) -> Iterator[Upload]:
        query = "SELECT key, id, started, attributes FROM uploads WHERE bucket = ? ORDER BY key, id"
        return (_upload(row) for row in self._db.execute(query, (bucket,)))

    def put_part(self, bucket: str, key: str, upload_id: str, part: Part) -> list[str]:
        """Raises NoSuchUpload when the upload ended while the part came in."""
        blob = part.blob
        with _transaction(self._db):
            self.upload(bucket, key, upload_id)
            query = "SELECT blob FROM parts WHERE upload = ? AND number = ?"
            dropped = self._blobs(query, (upload_id, part.number))
            values = (upload_id, part.number, blob.id, blob.size, blob.md5, str(blob.crc64), part.modified)
            self._db.execute("REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return dropped

    def parts(self, upload_id: str, after: int = 0) -> list[Part]:
        query = (
            "SELECT number, blob, size, md5, crc64, modified FROM parts WHERE upload = ? AND number > ? ORDER BY number"
        )
        rows = self._db.execute(query, (upload_id, after))
        return [
            Part(number=number, blob=Blob(blob, size, md5, int(crc)), modified=modified)
            for number, blob, size, md5, crc, modified in rows
        ]

    def delete_upload(self, bucket: str, key: str, upload_id: str) -> list[str]:
        """Raises NoSuchUpload."""
        with _transaction(self._db):
            self.upload(bucket, key, upload_id)
            return self._drop_upload(bucket, key.encode(), upload_id)

    def _drop_upload(self, bucket: str, key: bytes, upload_id: str) -> list[str]:
        dropped = self._blobs("SELECT blob FROM parts WHERE upload = ?", (upload_id,))
        self._db.execute("DELETE FROM parts WHERE upload = ?", (upload_id,))
        self._db.execute("DELETE FROM uploads WHERE bucket = ? AND key = ? AND id = ?", (bucket, key, upload_id))
        return dropped

    def _blobs(self, query: str, values: tuple[object, ...]) -> list[str]:
        return [row[0] for row in self._db.execute(query, values)]


class _transaction:  # noqa: N801 - reads as a statement, like sqlite3's own connection
    """BEGIN IMMEDIATE, then COMMIT or, on an exception, ROLLBACK."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _bucket(row: tuple[str, float, str, str, bytes | None]) -> Bucket:
    name, created, acl, storage_class, accelerator = row
    return Bucket(name=name, created=created, acl=acl, storage_class=storage_class, accelerator=accelerator)


def _object(row: tuple[bytes, str, int, str, str, float, str, bytes, float | None]) -> StoredObject:
    key, blob, size, etag, crc, modified, kind, attributes, restored_until = row
    return StoredObject(
        key=key.decode(),
        blob=blob,
        size=size,
        etag=etag,
        crc64=int(crc),
        modified=modified,
        type=kind,
        attributes=_decode_attributes(attributes),
        restored_until=restored_until,
    )


def _upload(row: tuple[bytes, str, float, bytes]) -> Upload:
    key, upload_id, started, attributes = row
    return Upload(key=key.decode(), id=upload_id, started=started, attributes=_decode_attributes(attributes))
