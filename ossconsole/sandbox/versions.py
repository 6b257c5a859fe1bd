"""The versions of objects: a table of the index's SQLite file, which only buckets with versioning use.

Versions are created, listed, read and deleted as the service does. The console never needs more than their list: this
serves tests.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from ossconsole.sandbox.listing import after_all
from ossconsole.sandbox.records import StoredObject
from ossconsole.sandbox.replies import OssError, invalid_argument

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versioned(bucket TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS suspended(bucket TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions(
    bucket TEXT NOT NULL, key BLOB NOT NULL, number INTEGER NOT NULL, id TEXT NOT NULL, blob TEXT NOT NULL,
    size INTEGER NOT NULL, etag TEXT NOT NULL, modified REAL NOT NULL, type TEXT NOT NULL, storage_class TEXT NOT NULL,
    PRIMARY KEY(bucket, key, number)
) WITHOUT ROWID;
"""
# Added later: the whole object, as JSON.
_ADD_DETAILS = "ALTER TABLE versions ADD COLUMN details BLOB NOT NULL DEFAULT ''"
NULL_ID = "null"
"""The version id of an object that was written while the bucket had no versioning, or while it was suspended."""
_VERSION_ID = re.compile(r"null|[0-9a-f]{32}")
_MARKER = ""  # the type of a delete marker
_decode = msgspec.json.Decoder(StoredObject).decode


def check_version_id(version_id: str, name: str = "versionId", *, ec: str = "") -> None:
    """Raises InvalidArgument where `version_id` does not have the form of a version id."""
    if not _VERSION_ID.fullmatch(version_id):
        raise invalid_argument("The version id is not valid.", name, version_id, ec=ec)


class Version(msgspec.Struct, frozen=True):
    """One version of an object, or a delete marker. Times are Unix seconds; `details` is the encoded StoredObject."""

    key: str
    id: str
    is_latest: bool
    is_marker: bool
    size: int
    etag: str
    modified: float
    type: str
    storage_class: str
    blob: str
    details: bytes | str

    def stored(self) -> StoredObject:
        """The object. Raises InternalError for a version that an earlier release of the sandbox stored."""
        if not self.details:
            raise OssError("InternalError", "An earlier release stored this version without its metadata.")
        return _decode(self.details)


_COLUMNS = (
    "key, id, number = (SELECT max(number) FROM versions WHERE bucket = v.bucket AND key = v.key), type = '', "
    "size, etag, modified, type, storage_class, blob, details FROM versions AS v"
)


class Versions:
    """The versions table: used in the index's thread and transactions. The newest row of a key is its current state."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.executescript(_SCHEMA)
        if "details" not in {row[1] for row in db.execute("PRAGMA table_info(versions)")}:
            db.execute(_ADD_DETAILS)
        self.load()

    def load(self) -> None:
        """Reads which buckets have versioning."""
        self._enabled = {row[0] for row in self._db.execute("SELECT bucket FROM versioned")}
        self._suspended = {row[0] for row in self._db.execute("SELECT bucket FROM suspended")}

    def kept(self, bucket: str) -> bool:
        """Whether versioning was ever enabled for the bucket: its objects have version ids, also while suspended."""
        return bucket in self._enabled

    def status(self, bucket: str) -> str | None:
        """`Enabled`, `Suspended`, or None for a bucket that never had versioning."""
        if bucket not in self._enabled:
            return None
        return "Suspended" if bucket in self._suspended else "Enabled"

    def set(self, bucket: str, objects: Iterable[StoredObject], *, suspended: bool) -> None:
        """Enables or suspends versioning (see `load`): what is written while it is suspended has the version id `null`.

        `objects` are those that the bucket has already when it gets versioning.
        """
        self._db.execute("INSERT OR IGNORE INTO versioned VALUES (?)", (bucket,))
        self._db.execute("DELETE FROM suspended WHERE bucket = ?", (bucket,))
        if suspended:
            self._db.execute("INSERT INTO suspended VALUES (?)", (bucket,))
        for stored in objects:
            self._insert(bucket, stored, NULL_ID)

    def drop(self, bucket: str) -> None:
        """Forgets the setting of a deleted bucket (see `load`)."""
        self._db.execute("DELETE FROM versioned WHERE bucket = ?", (bucket,))
        self._db.execute("DELETE FROM suspended WHERE bucket = ?", (bucket,))

    def add(self, bucket: str, stored: StoredObject) -> list[str]:
        """Adds the newest version of an object; returns the blobs of the version that it replaces."""
        version_id, dropped = self._next_id(bucket, stored.key)
        self._insert(bucket, stored, version_id)
        return dropped

    def add_marker(self, bucket: str, key: str, now: float) -> list[str]:
        """Adds a delete marker; returns the blobs of the version that it replaces."""
        version_id, dropped = self._next_id(bucket, key)
        self._add(bucket, key, (version_id, "", 0, "", now, _MARKER, "", b""))
        return dropped

    def _next_id(self, bucket: str, key: str) -> tuple[str, list[str]]:
        """The id of the version to add; while versioning is suspended it replaces the one called `null`.

        It begins with the row's number, so that a list continues after a version that was deleted meanwhile.
        """
        if bucket in self._suspended:
            return NULL_ID, self.remove(bucket, key, NULL_ID)
        query = "SELECT 1 + ifnull(max(number), 0) FROM versions WHERE bucket = ? AND key = ?"
        (number,) = self._db.execute(query, (bucket, key.encode())).fetchone()
        return f"{number:08x}{secrets.token_hex(12)}", []

    def _insert(self, bucket: str, stored: StoredObject, version_id: str) -> None:
        kind, storage_class = stored.type, stored.attributes.storage_class
        content = (version_id, stored.blob, stored.size, stored.etag, stored.modified, kind, storage_class)
        self._add(bucket, stored.key, (*content, msgspec.json.encode(stored)))

    def _add(self, bucket: str, key: str, row: tuple[object, ...]) -> None:
        self._db.execute(
            "INSERT INTO versions SELECT ?, ?, 1 + ifnull(max(number), 0), ?, ?, ?, ?, ?, ?, ?, ? "
            "FROM versions WHERE bucket = ? AND key = ?",
            (bucket, key.encode(), *row, bucket, key.encode()),
        )

    def change(self, bucket: str, stored: StoredObject, version_id: str) -> None:
        """Replaces what is known of a version."""
        content = (stored.blob, stored.size, stored.etag, stored.modified, msgspec.json.encode(stored))
        self._db.execute(
            "UPDATE versions SET blob = ?, size = ?, etag = ?, modified = ?, details = ? "
            "WHERE bucket = ? AND key = ? AND id = ?",
            (*content, bucket, stored.key.encode(), version_id),
        )

    def remove(self, bucket: str, key: str, version_id: str) -> list[str]:
        """Removes a version permanently; returns its blobs."""
        where, values = "bucket = ? AND key = ? AND id = ?", (bucket, key.encode(), version_id)
        dropped = [row[0] for row in self._db.execute(f"SELECT blob FROM versions WHERE {where}", values) if row[0]]  # noqa: S608
        self._db.execute(f"DELETE FROM versions WHERE {where}", values)  # noqa: S608
        return dropped

    def latest(self, bucket: str, key: str) -> Version | None:
        """The key's newest version, which may be a delete marker; None where it has none."""
        query = f"SELECT {_COLUMNS} WHERE bucket = ? AND key = ? ORDER BY number DESC LIMIT 1"
        return next(map(_version, self._db.execute(query, (bucket, key.encode()))), None)

    def get(self, bucket: str, key: str, version_id: str) -> Version | None:
        """The version with this id, None where it does not exist."""
        query = f"SELECT {_COLUMNS} WHERE bucket = ? AND key = ? AND id = ?"
        return next(map(_version, self._db.execute(query, (bucket, key.encode(), version_id))), None)

    @staticmethod
    def unversioned(stored: StoredObject) -> Version:
        """How an object of a bucket without versioning is listed."""
        content = (stored.size, stored.etag, stored.modified, stored.type, stored.attributes.storage_class)
        return Version(stored.key, NULL_ID, True, False, *content, stored.blob, msgspec.json.encode(stored))

    def list(
        self, bucket: str, *, prefix: str, start: bytes, key_marker: str, id_marker: str, limit: int
    ) -> list[Version]:
        """Up to `limit` versions after the markers, by key, the newest of a key first; from the key `start` on."""
        after = key_marker.encode()
        known = "SELECT number FROM versions WHERE bucket = ? AND key = ? AND id = ?"
        row = self._db.execute(known, (bucket, after, id_marker)).fetchone()
        below = row[0] if row else _number(id_marker)
        raw_prefix = prefix.encode()
        query = (
            f"SELECT {_COLUMNS} "
            "WHERE bucket = ? AND key >= ? AND key < ? AND (key > ? OR (key = ? AND number < ?)) "
            "ORDER BY key, number DESC LIMIT ?"
        )
        end = after_all(raw_prefix) or b"\xff"
        rows = self._db.execute(query, (bucket, max(start, raw_prefix), end, after, after, below, limit))
        return [_version(row) for row in rows]


def _number(version_id: str) -> int:
    """The number of the row that had this id."""
    return int(version_id[:8], 16) if version_id not in {"", NULL_ID} else 0


def _version(row: tuple[Any, ...]) -> Version:
    key, version_id, latest, is_marker, *rest = row
    return Version(key.decode(), version_id, bool(latest), bool(is_marker), *rest)
