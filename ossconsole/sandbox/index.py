"""The index: an SQLite file of buckets, objects, versions, uploads and parts.

Every change is one transaction, and an object's bytes are already complete in a blob file when a row names them:
that commit is the moment at which a write becomes visible, whole or not at all.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ossconsole.config.files import private_database
from ossconsole.sandbox.records import Attributes, Blob, Bucket, Part, StoredObject, Upload
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.versions import Versions

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
CREATE TABLE IF NOT EXISTS bucket_rules(
    bucket TEXT NOT NULL, name TEXT NOT NULL, rule BLOB NOT NULL, PRIMARY KEY(bucket, name)
) WITHOUT ROWID;
"""
_OBJECT = "key, blob, size, etag, crc64, modified, type, attributes, restored_until"
_CACHED_ROWS = 65_536
_NO_END = b"\xff"  # above every UTF-8 key
_decode_attributes = msgspec.json.Decoder(Attributes).decode


class Index:
    """Used from one thread. Methods that replace or drop rows return the ids of blobs that no row names any more."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(private_database(path), isolation_level=None, cached_statements=64)
        # Every epoch reads the same objects: their rows are decoded once.
        self._cached: dict[tuple[str, str], StoredObject] = {}
        # One process per folder, so the file may stay locked and a read needs no system call.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        # Commits survive a kill -9 of the process; syncing them against a power cut would cost every PUT a disk flush.
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_SCHEMA}")
        self.versions = Versions(self._db)
        # Nearly no bucket has a rule, and every write needs to know.
        self._with_rules = {row[0] for row in self._db.execute("SELECT bucket FROM bucket_rules")}

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def blob_ids(self) -> set[str]:
        """The ids of all blobs that a row names."""
        query = "SELECT blob FROM objects UNION ALL SELECT blob FROM parts UNION ALL SELECT blob FROM versions"
        return {row[0] for row in self._db.execute(query)}

    # Buckets

    def buckets(self) -> list[Bucket]:
        """All buckets, by name."""
        rows = self._db.execute("SELECT name, created, acl, storage_class, accelerator FROM buckets ORDER BY name")
        return [Bucket(*row) for row in rows]

    def put_bucket(self, bucket: Bucket) -> None:
        """Creates or replaces a bucket."""
        self._db.execute("REPLACE INTO buckets VALUES (?, ?, ?, ?, ?)", msgspec.structs.astuple(bucket))

    def delete_bucket(self, name: str) -> None:
        """Deletes the bucket with its rules. Raises BucketNotEmpty."""
        for table in ("objects", "uploads", "versions"):
            if self._db.execute(f"SELECT 1 FROM {table} WHERE bucket = ? LIMIT 1", (name,)).fetchone():  # noqa: S608
                raise OssError("BucketNotEmpty", fields={"BucketName": name})
        with self._changing_versioning():
            self._db.execute("DELETE FROM buckets WHERE name = ?", (name,))
            self._db.execute("DELETE FROM bucket_rules WHERE bucket = ?", (name,))
            self.versions.drop(name)

    def set_versioning(self, bucket: str, *, suspended: bool = False) -> None:
        """Enables or suspends versioning; a bucket that never had it may start with it suspended."""
        with self._changing_versioning():
            present = [] if self.versions.kept(bucket) else self.scan(bucket, b"", b"", -1, inclusive=True)
            self.versions.set(bucket, present, suspended=suspended)

    @contextlib.contextmanager
    def _changing_versioning(self) -> Iterator[None]:
        """A transaction; `versions` is read again after its end or failure."""
        try:
            with _transaction(self._db):
                yield
        finally:
            self.versions.load()

    def rule(self, bucket: str, name: str) -> bytes | None:
        """The bucket's rule called `name`, encoded; None where it has none."""
        if bucket not in self._with_rules:
            return None
        query = "SELECT rule FROM bucket_rules WHERE bucket = ? AND name = ?"
        row = self._db.execute(query, (bucket, name)).fetchone()
        return bytes(row[0]) if row else None

    def set_rule(self, bucket: str, name: str, rule: bytes | None) -> None:
        """Sets the bucket's rule called `name`; None removes it."""
        if rule is None:
            self._db.execute("DELETE FROM bucket_rules WHERE bucket = ? AND name = ?", (bucket, name))
        else:
            self._db.execute("REPLACE INTO bucket_rules VALUES (?, ?, ?)", (bucket, name, rule))
            self._with_rules.add(bucket)

    def usage(self, bucket: str) -> dict[str, tuple[int, int]]:
        """Objects in the bucket and their bytes, by storage class."""
        query = (
            "SELECT json_extract(attributes, '$.storage_class'), count(*), total(size) FROM objects WHERE bucket = ? "
            "GROUP BY 1"
        )
        return {row[0]: (int(row[1]), int(row[2])) for row in self._db.execute(query, (bucket,))}

    # Objects

    def get(self, bucket: str, key: str) -> StoredObject | None:
        """The object, None where it does not exist."""
        found = self._cached.get((bucket, key))
        if found is not None:
            return found
        query = f"SELECT {_OBJECT} FROM objects WHERE bucket = ? AND key = ?"  # noqa: S608
        row = self._db.execute(query, (bucket, key.encode())).fetchone()
        if row is None:
            return None
        if len(self._cached) >= _CACHED_ROWS:
            self._cached.clear()
        return self._cached.setdefault((bucket, key), _object(row))

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
        """Inserts or replaces; `completes` is the id of the upload that it completes. Raises FileAlreadyExists."""
        key = stored.key.encode()
        self._cached.pop((bucket, stored.key), None)
        with _transaction(self._db):
            dropped = self._blobs("SELECT blob FROM objects WHERE bucket = ? AND key = ?", (bucket, key))
            # "If versioning is enabled or suspended, the x-oss-forbid-overwrite header does not take effect."
            if dropped and forbid_overwrite and not self.versions.kept(bucket):
                raise OssError("FileAlreadyExists", fields={"ObjectName": stored.key})
            latest = self.versions.latest(bucket, stored.key) if self.versions.kept(bucket) else None
            self._replace(bucket, stored)
            if latest is not None and latest.type == stored.type == "Appendable":
                # The page of AppendObject: "OSS does not create previous versions for this Appendable object."
                self.versions.change(bucket, stored, latest.id)
            elif self.versions.kept(bucket):
                dropped = self.versions.add(bucket, stored)
            if completes:
                dropped += self._drop_upload(bucket, key, completes)
        return [blob for blob in dropped if blob != stored.blob]

    def _replace(self, bucket: str, stored: StoredObject) -> None:
        self._cached.pop((bucket, stored.key), None)
        content = (stored.blob, stored.size, stored.etag, str(stored.crc64))
        attributes = msgspec.json.encode(stored.attributes)
        values = (*content, stored.modified, stored.type, attributes, stored.restored_until)
        self._db.execute(
            "REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (bucket, stored.key.encode(), *values)
        )

    def change(self, bucket: str, stored: StoredObject, version_id: str = "") -> None:
        """Replaces the attributes of an object, or of one of its versions; the bytes stay."""
        with _transaction(self._db):
            latest = self.versions.latest(bucket, stored.key) if self.versions.kept(bucket) else None
            if latest is None or version_id in {"", latest.id}:
                self._replace(bucket, stored)
            if latest is not None:
                self.versions.change(bucket, stored, version_id or latest.id)

    def delete_version(self, bucket: str, key: str, version_id: str) -> list[str]:
        """Deletes a version permanently; the one before it becomes the current one."""
        self._cached.pop((bucket, key), None)
        with _transaction(self._db):
            before = self.versions.latest(bucket, key)
            dropped = self.versions.remove(bucket, key, version_id)
            latest = self.versions.latest(bucket, key)
            if before == latest:
                pass
            elif latest is None or latest.is_marker:
                self._db.execute("DELETE FROM objects WHERE bucket = ? AND key = ?", (bucket, key.encode()))
            else:
                self._replace(bucket, latest.stored())
        return dropped

    def delete(self, bucket: str, keys: Iterable[str], now: float) -> list[str]:
        """Deletes the objects that exist; `now` (Unix seconds) is the time of the delete markers."""
        dropped = []
        with _transaction(self._db):
            for key in keys:
                self._cached.pop((bucket, key), None)
                values = (bucket, key.encode())
                if self.versions.kept(bucket):
                    dropped += self.versions.add_marker(bucket, key, now)
                else:
                    dropped += self._blobs("SELECT blob FROM objects WHERE bucket = ? AND key = ?", values)
                self._db.execute("DELETE FROM objects WHERE bucket = ? AND key = ?", values)
        return dropped

    # Uploads

    def put_upload(self, bucket: str, upload: Upload) -> None:
        """Adds a multipart upload."""
        values = (bucket, upload.key.encode(), upload.id, upload.started, msgspec.json.encode(upload.attributes))
        self._db.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?)", values)

    def upload(self, bucket: str, key: str, upload_id: str) -> Upload:
        """The unfinished multipart upload. Raises NoSuchUpload."""
        query = "SELECT key, id, started, attributes FROM uploads WHERE bucket = ? AND key = ? AND id = ?"
        row = self._db.execute(query, (bucket, key.encode(), upload_id)).fetchone()
        if row is None:
            raise OssError("NoSuchUpload", fields={"UploadId": upload_id})
        return _upload(row)

    def uploads(self, bucket: str) -> Iterator[Upload]:
        """The unfinished uploads of a bucket, by key and id."""
        query = "SELECT key, id, started, attributes FROM uploads WHERE bucket = ? ORDER BY key, id"
        return (_upload(row) for row in self._db.execute(query, (bucket,)))

    def put_part(self, bucket: str, key: str, upload_id: str, part: Part) -> list[str]:
        """Adds or replaces a part. Raises NoSuchUpload where the upload ended while the part was received."""
        blob = part.blob
        with _transaction(self._db):
            self.upload(bucket, key, upload_id)
            query = "SELECT blob FROM parts WHERE upload = ? AND number = ?"
            dropped = self._blobs(query, (upload_id, part.number))
            values = (upload_id, part.number, blob.id, blob.size, blob.md5, str(blob.crc64), part.modified)
            self._db.execute("REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return dropped

    def parts(self, upload_id: str, after: int = 0) -> list[Part]:
        """The parts whose number is above `after`, in order."""
        query = (
            "SELECT number, blob, size, md5, crc64, modified FROM parts WHERE upload = ? AND number > ? ORDER BY number"
        )
        rows = self._db.execute(query, (upload_id, after))
        return [
            Part(number, Blob(blob, size, md5, int(crc)), modified) for number, blob, size, md5, crc, modified in rows
        ]

    def delete_upload(self, bucket: str, key: str, upload_id: str) -> list[str]:
        """Deletes the upload with its parts; returns the ids of their blobs. Raises NoSuchUpload."""
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
    """BEGIN IMMEDIATE, then COMMIT or, on an exception (also of the COMMIT: a full disk), ROLLBACK."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def _object(row: tuple[bytes, str, int, str, str, float, str, bytes, float | None]) -> StoredObject:
    key, blob, size, etag, crc, modified, kind, attributes, restored_until = row
    decoded = _decode_attributes(attributes)
    return StoredObject(key.decode(), blob, size, etag, int(crc), modified, kind, decoded, restored_until)


def _upload(row: tuple[bytes, str, float, bytes]) -> Upload:
    key, upload_id, started, attributes = row
    return Upload(upload_id, key.decode(), started, _decode_attributes(attributes))
