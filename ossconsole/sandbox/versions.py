"""Versions of objects, in buckets that keep them: what overwriting and deleting leave behind.

Kept, listed and counted as the service does; a version cannot be read or deleted by its id here, nor can keeping be
suspended.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable

import msgspec

from ossconsole.sandbox.listing import after_all
from ossconsole.sandbox.records import StoredObject

_SCHEMA = """
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
        db.executescript(_SCHEMA)
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
