"""Journal: the samples of a dataset prefix that are in the bucket, on disk, so that a killed upload can resume."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import hashlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import READ_WRITE, is_damage, open_private, private_database, set_aside, state_dir
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Sample
from ossconsole.dataset.source.files import PlannedSample, SkippedFile, folder_of
from ossconsole.storage.jobs.job import Failure

log = logging.getLogger(__name__)

_COMMIT_EVERY_S = 0.1
_PAGE = 1000
_IMPORTED = "\x00"  # begins the path of a sample whose file this journal has never seen
_MOVED = "\x01"  # begins the path of a sample whose file has another split or label by now: it is in no manifest
_LISTED = "sent > 0 AND path NOT GLOB char(1) || '*'"  # without what has moved
_HAS_MOVED = "sent > 0 AND path GLOB char(1) || '*'"
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
    path TEXT NOT NULL PRIMARY KEY,      -- inside the source
    key TEXT NOT NULL UNIQUE,            -- relative to the dataset prefix
    class TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,   -- of the file when it was sent
    recipe TEXT NOT NULL DEFAULT '',
    height INTEGER NOT NULL DEFAULT 0, width INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    crc64 TEXT NOT NULL DEFAULT '', etag TEXT NOT NULL DEFAULT '',
    sent INTEGER NOT NULL DEFAULT 0,     -- the run that sent it, 0 while it is not in the bucket
    seen INTEGER NOT NULL DEFAULT 0,     -- the last run that planned it
    error TEXT NOT NULL DEFAULT '', code TEXT NOT NULL DEFAULT '', request_id TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (number INTEGER PRIMARY KEY, source TEXT NOT NULL, began REAL NOT NULL);
"""


class PlanAction(str, enum.Enum):
    """What to do with a planned sample."""

    UNCHANGED = "unchanged"
    SEND = "send"
    CONFLICT = "conflict"
    REPEATED = "repeated"

    @property
    def reason(self) -> str:
        """Why a sample with this action is not sent."""
        if self is PlanAction.REPEATED:
            return "its name occurs in the source more than once; the first one is used"
        return "its key belongs to another file"


class PlanDecision(msgspec.Struct, frozen=True):
    """The action, the sample's key, and the CRC64 of the object in the bucket ("" when unknown).

    `doubtful` when the bucket may have an object of unknown content under the key.
    """

    action: PlanAction
    key: str = ""
    crc64: str = ""
    doubtful: bool = False


class SentSample(msgspec.Struct, frozen=True):
    """A sample that is in the bucket; `size` and `mtime_ns` of its file, `bytes` of the object."""

    path: str
    size: int
    mtime_ns: int
    height: int
    width: int
    bytes: int
    crc64: str
    etag: str


class ExpectedObject(msgspec.Struct, frozen=True, gc=False):
    """An object that should be in the bucket.

    `present` when this run's source has its file, `this_run` when this run sent it, `failed` when this run could not.
    """

    key: str
    bytes: int
    crc64: str
    etag: str
    path: str
    present: bool
    this_run: bool
    failed: bool


class JournalError(ConsoleError):
    """The journal cannot be read or written."""


def journal_path(profile: Profile, prefix: str) -> Path:
    """Where the journal of a dataset prefix is kept; a bucket's name is unique in all of OSS."""
    name = hashlib.sha256(f"{profile.region}/{profile.bucket}/{prefix}".encode()).hexdigest()[:20]
    return state_dir() / "uploads" / f"{name}.sqlite"


def remove_journal(profile: Profile, prefix: str) -> None:
    """Deletes what is kept for a dataset prefix that was deleted: the journal, its lock, and tars built for it."""
    path = journal_path(profile, prefix)
    for found in path.parent.glob(f"{path.stem}.*"):
        if found.is_dir():
            shutil.rmtree(found, ignore_errors=True)
        else:
            found.unlink(missing_ok=True)


class JournalLock:
    """The lock file beside a journal, held until `close`."""

    def __init__(self, path: Path) -> None:
        """Raises JournalError while another upload holds it, SettingsError, OSError."""
        self._file = open_private(path.with_suffix(".lock"), READ_WRITE)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise JournalError(
                "Another upload to this dataset prefix is running.", remedy="Wait for it, or cancel it."
            ) from error

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._file)


class _DatabaseErrors:
    """Serialises access to the database; an error of it or its disk becomes a JournalError."""

    def __init__(self, path: Path) -> None:
        self._path = self._kept = path
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        if is_damage(error):
            raise self._damaged(error) from error
        if isinstance(error, sqlite3.Error | OSError):
            raise JournalError(
                f"The upload's journal {self._path} cannot be used: {error}.",
                remedy="Free space on its disk (or set OSSCONSOLE_STATE_DIR to another) and run the upload again.",
            ) from error

    def _damaged(self, error: BaseException | None) -> JournalError:
        """The error of a file found damaged in use; the next upload creates a new one."""
        with contextlib.suppress(SettingsError):  # another thread has done it, or the folder cannot be written
            self._kept = set_aside(self._path)
        return JournalError(
            f"The upload's journal {self._path} is damaged: {error}.",
            remedy=f"It is kept as {self._kept}. Run the upload again: it finds what is in the bucket.",
        )


def _prepare(database: sqlite3.Connection) -> None:
    """Creates the tables. Raises sqlite3.DatabaseError where the file is not a journal of this version."""
    database.execute("PRAGMA journal_mode=WAL")
    # What a power cut loses is sent again; a kill of the process loses nothing that was committed.
    database.execute("PRAGMA synchronous=NORMAL")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version not in {0, _SCHEMA_VERSION}:
        raise sqlite3.DatabaseError("another version of ossconsole wrote it")
    database.executescript(_SCHEMA)
    with contextlib.closing(sqlite3.connect(":memory:")) as model:
        model.executescript(_SCHEMA)
        if _columns(database) != _columns(model):
            raise sqlite3.DatabaseError("its tables are not those of a journal")
    database.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")


def _columns(database: sqlite3.Connection) -> list[str]:
    return [row[1] for table in ("samples", "runs") for row in database.execute(f"PRAGMA table_info({table})")]


class Journal:
    """One dataset prefix's journal, for one upload at a time; safe to use from many threads."""

    def __init__(self, path: Path, *, source: str, recipe: str) -> None:
        """Opens or creates it, and counts a new run. Raises JournalError, also while another upload has it open."""
        self.path = path
        self._recipe = recipe
        self._errors = _DatabaseErrors(path)
        self._committed = time.monotonic()
        self._beside_others = 0
        self._listed = _LISTED
        with self._errors:
            self._prefix_lock = JournalLock(path)
            try:
                self._open(source)
            except BaseException:
                self._prefix_lock.close()
                raise

    def _open(self, source: str) -> None:
        """Opens or creates the file. A damaged one is set aside: its content can be found in the bucket as well."""
        self._db = sqlite3.connect(private_database(self.path), check_same_thread=False, isolation_level=None)
        try:
            _prepare(self._db)
            self._was_empty = self._is_empty()  # then every file is most likely new
            (self._beside_others,) = self._db.execute("PRAGMA application_id").fetchone()
            self._run = self._begin(source)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._db.close()
            if not is_damage(error):
                raise
            aside = set_aside(self.path)
            log.warning("The upload's journal was damaged (%s). It is kept as %s; a new one is created.", error, aside)
            self._open(source)

    @property
    def is_empty(self) -> bool:
        """Whether it has no samples."""
        with self._errors:
            return self._is_empty()

    def _is_empty(self) -> bool:
        return self._db.execute("SELECT 1 FROM samples LIMIT 1").fetchone() is None

    def _begin(self, source: str) -> int:
        cursor = self._db.execute("INSERT INTO runs (source, began) VALUES (?, ?)", (source, time.time()))
        self._db.execute("BEGIN")
        return int(cursor.lastrowid or 0)

    # Planning

    def plan(self, sample: PlannedSample, suffix: str) -> PlanDecision:
        """Decides what to do with a planned sample, and its key. `suffix` is that of PreprocessConfig."""
        keys = sample.keys(suffix)
        if self._was_empty and self._insert(sample, keys[0]):
            return PlanDecision(PlanAction.SEND, keys[0], doubtful=self.beside_others)
        row = self._one(
            "SELECT key, size, mtime_ns, recipe, crc64, sent, class, seen FROM samples WHERE path = ?", sample.path
        )
        if row is None:
            return self._reserve(sample, keys)
        key, size, mtime_ns, recipe, crc64, sent, class_name, seen = row
        if seen == self._run:
            return PlanDecision(PlanAction.REPEATED)
        if key not in keys:
            if recipe != self._recipe or not sent:  # an unfinished upload in another format planned it
                self._write("DELETE FROM samples WHERE path = ?", sample.path)
            else:
                self._write("UPDATE samples SET path = ? WHERE path = ?", _MOVED + key, sample.path)
            return self._reserve(sample, keys)
        same = sent and recipe == self._recipe and class_name == sample.class_name
        self._write(
            "UPDATE samples SET seen = ?, class = ?, error = '', code = '', request_id = '' WHERE path = ?",
            *(self._run, sample.class_name, sample.path),
        )
        unchanged = same and (size, mtime_ns) == (sample.size, sample.mtime_ns)
        # Without a CRC64 it may have been sent but not recorded: the upload was killed in between.
        return PlanDecision(
            PlanAction.UNCHANGED if unchanged else PlanAction.SEND, key, crc64 if sent else "", doubtful=not crc64
        )

    def missing_key(self, path: str) -> str:
        """The key of a sample that `mark_missing` was called for, "" for any other."""
        row = self._one("SELECT key FROM samples WHERE path = ? AND sent = 0 AND error = ''", path)
        return str(row[0]) if row else ""

    def _reserve(self, sample: PlannedSample, keys: tuple[str, ...]) -> PlanDecision:
        for key in keys:
            owner = self._one("SELECT path FROM samples WHERE key = ?", key)
            if owner is None:
                self._insert(sample, key)
                return PlanDecision(PlanAction.SEND, key, doubtful=self.beside_others)
            if owner[0].startswith((_IMPORTED, _MOVED)):
                self._write(
                    "UPDATE samples SET path = ?, class = ?, seen = ? WHERE key = ?",
                    *(sample.path, sample.class_name, self._run, key),
                )
                return PlanDecision(PlanAction.SEND, key, doubtful=True)
        return PlanDecision(PlanAction.CONFLICT)

    def _insert(self, sample: PlannedSample, key: str) -> bool:
        """False when its path or the key exists already."""
        return self._write(
            "INSERT OR IGNORE INTO samples (path, key, class, size, mtime_ns, seen) VALUES (?, ?, ?, 0, 0, ?)",
            *(sample.path, key, sample.class_name, self._run),
        )

    @property
    def beside_others(self) -> bool:
        """Whether the bucket may have objects below the prefix that this journal does not know."""
        return bool(self._beside_others)

    def set_beside_others(self, beside: bool) -> None:
        """Sets `beside_others`, also for later runs: what is there need not be of an upload, and must not be lost."""
        if beside is not self.beside_others:
            self._beside_others = int(beside)
            self._write(f"PRAGMA application_id={self._beside_others}")

    def keep_lost(self, item: SkippedFile) -> None:
        """The source has this file, folder or archive, but cannot give it now: its samples of earlier runs stay."""
        path = folder_of(item.path)
        try:
            path.encode()
        except UnicodeEncodeError:  # never a sample
            return
        inside = f"{path}/" if path else "", f"{path}0" if path else "\U0010ffff"  # "0" follows "/"
        keep = "UPDATE samples SET seen = ?, error = ? WHERE sent > 0 AND"
        self._write(f"{keep} path = ?", self._run, item.reason, path)
        self._write(f"{keep} path > ? AND path < ?", self._run, item.reason, *inside)

    def import_sample(self, sample: Sample, class_name: str, size: int, etag: str) -> None:
        """Adds a sample of the manifest that another upload sent; its file is not in this source."""
        self._write(
            "INSERT OR IGNORE INTO samples (path, key, class, size, mtime_ns, height, width, bytes, crc64, etag, sent) "
            "VALUES (?, ?, ?, 0, 0, ?, ?, ?, ?, ?, ?)",
            *(_IMPORTED + sample.key, sample.key, class_name, sample.height, sample.width, size),
            *(str(sample.crc64 or ""), etag, self._run),
        )

    # Sending

    def mark_sent(self, sample: SentSample) -> None:
        """Records a sample as sent."""
        self._write(
            "UPDATE samples SET size = ?, mtime_ns = ?, recipe = ?, height = ?, width = ?, bytes = ?, crc64 = ?, "
            "etag = ?, sent = ?, error = '' WHERE path = ?",
            *(sample.size, sample.mtime_ns, self._recipe, sample.height, sample.width, sample.bytes, sample.crc64),
            *(sample.etag, self._run, sample.path),
        )
        self.commit()  # a sample that is not recorded is sent again

    def mark_unchanged(self, path: str, size: int, mtime_ns: int, height: int, width: int) -> None:
        """The file or the config changed, but the sample is the same as in the bucket."""
        self._write(
            "UPDATE samples SET size = ?, mtime_ns = ?, recipe = ?, height = ?, width = ? WHERE path = ?",
            *(size, mtime_ns, self._recipe, height, width, path),
        )

    def fail(self, failure: Failure) -> None:
        """The file did not become a sample. An earlier run's sample stays; the next run retries."""
        self._write(
            "UPDATE samples SET error = ?, code = ?, request_id = ? WHERE path = ?",
            *(failure.reason, failure.code, failure.request_id, failure.path),
        )

    def mark_missing(self, path: str) -> None:
        """The verification did not find the sample in the bucket."""
        self._write("UPDATE samples SET sent = 0 WHERE path = ?", path)

    def set_etag(self, path: str, etag: str) -> None:
        """The object has another ETag than when it was sent, and the same content."""
        self._write("UPDATE samples SET etag = ? WHERE path = ?", etag, path)

    def forget_other_settings(self) -> None:
        """The bucket has no dataset yet: samples of other settings that this run did not plan are not part of it."""
        self._write("UPDATE samples SET sent = 0 WHERE recipe NOT IN ('', ?) AND seen < ?", *(self._recipe, self._run))

    def forget_all(self) -> None:
        """Forgets all samples: the bucket has nothing below the prefix."""
        self._write("UPDATE samples SET sent = 0")

    # Afterwards

    def expected(self) -> Iterator[ExpectedObject]:
        """The objects that should be in the bucket, in the order of OSS's listings."""
        for key, size, crc64, etag, path, seen, sent, error in self._pages(
            "key, bytes, crc64, etag, path, seen, sent, error", "sent > 0"
        ):
            yield ExpectedObject(key, size, crc64, etag, path, seen == self._run, sent == self._run, bool(error))

    def samples(self, split: str, labels: dict[str, int], fmt: SampleFormat) -> Iterator[Sample]:
        """The samples of a split in the bucket, by key."""
        columns = "key, class, height, width, crc64, bytes"
        for key, class_name, height, width, crc64, size in self._pages(columns, self._listed, f"{split}/"):
            listed = size if fmt.encoded else 0
            yield Sample(key, labels[class_name], height, width, int(crc64) if crc64.isdecimal() else 0, listed)

    def classes(self) -> list[str]:
        """The classes that have samples in the bucket."""
        with self._errors:
            query = f"SELECT DISTINCT class FROM samples WHERE {self._listed}"  # noqa: S608
            return [row[0] for row in self._db.execute(query)]

    def has_samples(self, split: str) -> bool:
        """Whether a split has samples in the bucket."""
        return next(self._pages("key", self._listed, f"{split}/"), None) is not None

    def unfinished(self) -> list[str]:
        """Paths of this run's files that are neither in the bucket nor failed."""
        with self._errors:
            query = "SELECT path FROM samples WHERE sent = 0 AND error = '' AND seen = ?"
            return [row[0] for row in self._db.execute(query, (self._run,))]

    def removed(self) -> Iterator[str]:
        """Keys in the bucket whose files this run did not find in the source."""
        for (key,) in self._pages("key", f"{_LISTED} AND seen < {self._run}"):
            yield key

    def moved(self) -> Iterator[str]:
        """Keys in the bucket whose files have another key by now, as their split or label is another one."""
        for (key,) in self._pages("key", _HAS_MOVED):
            yield key

    def leave_out_removed(self) -> None:
        """From now on `samples`, `classes` and `has_samples` are without those that `removed` returns."""
        self._listed = f"{_LISTED} AND seen = {self._run}"

    def forget(self, keys: Iterable[str]) -> None:
        """The objects were deleted."""
        for key in keys:
            self._write("DELETE FROM samples WHERE key = ?", key)

    def drop_unsent(self) -> None:
        """Frees the keys of files that are neither in the source nor in the bucket."""
        self._write("DELETE FROM samples WHERE sent = 0 AND seen < ?", self._run)

    def commit(self) -> None:
        """Writes the changes so far to the disk."""
        with self._errors:
            if self._db.in_transaction:  # a full disk ends it
                self._db.execute("COMMIT")
            self._db.execute("BEGIN")
            self._committed = time.monotonic()

    def close(self) -> None:
        """Commits and releases the lock."""
        with self._errors:
            try:
                if self._db.in_transaction:
                    self._db.execute("COMMIT")
            finally:
                self._db.close()
                self._prefix_lock.close()

    # Access

    def _one(self, query: str, *values: object) -> Any:
        with self._errors:
            return self._db.execute(query, values).fetchone()

    def _write(self, statement: str, *values: object) -> bool:
        """Whether any row was written."""
        with self._errors:
            written = self._db.execute(statement, values).rowcount > 0
            if time.monotonic() - self._committed > _COMMIT_EVERY_S:
                self.commit()
            return written

    def _pages(self, columns: str, where: str, prefix: str = "") -> Iterator[tuple[Any, ...]]:
        """Rows by key, a page at a time, so that the lock is never held for long."""
        after = prefix
        query = f"SELECT key, {columns} FROM samples WHERE key > ? AND {where} ORDER BY key LIMIT {_PAGE}"  # noqa: S608
        while True:
            with self._errors:
                rows = self._db.execute(query, (after,)).fetchall()
            for key, *row in rows:
                if not key.startswith(prefix):
                    return
                yield tuple(row)
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]
