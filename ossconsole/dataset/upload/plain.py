"""PlainUpload: uploads any file or folder unchanged, large files in parts."""

from __future__ import annotations

import functools
import hashlib
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fastcrc
import msgspec

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.text import safe_text
from ossconsole.dataset.manifest import Unused, UnusedCounter, key_problem, object_key
from ossconsole.dataset.source.files import not_a_file, source_problem
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.actions import Delete
from ossconsole.storage.jobs.download import Download, Existing
from ossconsole.storage.jobs.job import DEFAULT_THREADS, Job
from ossconsole.storage.jobs.sync import DeleteFiles, Direction, SyncDifference, SyncEntry, SyncPlan, entries_below
from ossconsole.storage.jobs.threads import BandwidthCap
from ossconsole.storage.multipart import PART_SIZE, ResumableUpload, file_crc64


class PlainFile(msgspec.Struct, frozen=True):
    """A file and the object it becomes."""

    path: Path
    key: str
    size: int


class PlainUpload(Job):
    """Sends a file, or everything below a folder, to keys below `prefix`.

    Objects with the same content are skipped, others are replaced. A large file continues where an earlier upload of it
    stopped. Symbolic links to folders are not followed; they and all entries that are not regular files are counted in
    `unused`. A symbolic link without a target is a failure. `bandwidth` caps the bytes per second; None for no cap.
    With `entries` of a comparison only these files are sent, and a new one fails where its object has come to exist.
    """

    def __init__(
        self,
        store: ObjectStore,
        source: Path,
        prefix: str,
        *,
        threads: int = DEFAULT_THREADS,
        part_size: int = PART_SIZE,
        bandwidth: float | None = None,
        entries: Sequence[SyncEntry] | None = None,
    ) -> None:
        """Raises SettingsError when `source` is not a file or folder."""
        named = entries[0].path if entries and len(entries) == 1 else source
        super().__init__(f"Upload of {safe_text(str(named))}", threads=threads)
        if problem := source_problem(source):
            raise SettingsError(f"{source} {problem}.", remedy="Enter a file or a folder.")
        self._store = store.pausing(self.wait_to_retry)
        self._source = source
        self._prefix = prefix.strip("/")
        self._part_size = part_size
        self._cap = BandwidthCap(bandwidth, self.gate)
        self._entries = entries
        self._must_be_new = {entry.key for entry in entries or () if entry.difference is SyncDifference.NEW}
        self._existing: dict[str, tuple[int, str]] = {}
        self._open: set[ResumableUpload] = set()
        self._unused = UnusedCounter()
        self._lock = threading.Lock()

    def retry(self) -> PlainUpload | None:
        """A job for the rest. Of a comparison only its failures: what else is missing a new comparison finds."""
        entries = None
        if self._entries is not None:
            failed = {failure.path for failure in self.failures}
            entries = [entry for entry in self._entries if entry.key in failed]
            if not entries or self.error is not None:
                return None
        return PlainUpload(
            self._store,
            self._source,
            self._prefix,
            threads=self._threads,
            part_size=self._part_size,
            bandwidth=self._cap.limit,
            entries=entries,
        )

    @property
    def unused(self) -> tuple[Unused, ...]:
        """The entries below the folder that are not sent, by reason."""
        return self._unused.groups()

    def work(self) -> None:
        """Lists the prefix, then sends what differs. Raises Cancelled, ConsoleError, OSError."""
        if self._entries is None:
            below = object_key(self._prefix, "")
            self._existing = {found.key: (found.size, found.etag.strip('"')) for found in self._store.list_all(below)}
        try:
            self.pool(self._tasks(), lambda task: task())
        finally:
            for upload in self._open:
                upload.close()

    # Tasks

    def _tasks(self) -> Iterator[Callable[[], None]]:
        for file in self.counted(self._files()):
            if problem := key_problem(file.key):
                self.fail(file.key, ConsoleError(f"{safe_text(str(file.path))}: {problem}."), file.size)
            elif file.size > self._part_size:
                yield from self._parts(file)
            else:
                yield lambda file=file: self.attempt(file, self._small)  # type: ignore[misc]

    def _files(self) -> Iterator[PlainFile]:
        if self._entries is not None:
            yield from (PlainFile(entry.path, entry.key, entry.size) for entry in self._entries)
            return
        if self._source.is_file():
            yield PlainFile(self._source, object_key(self._prefix, self._source.name), self._source.stat().st_size)
            return
        for path in entries_below(self._source, self.fail_folder):
            relative = path.relative_to(self._source).as_posix()
            try:
                status = path.stat()
            except OSError:
                self.tracker.add_total(1, 0)
                self.fail(relative, ConsoleError(f"{safe_text(str(path))}: {not_a_file(str(path))}."))
                continue
            if stat.S_ISREG(status.st_mode):
                yield PlainFile(path, object_key(self._prefix, relative), status.st_size)
            else:
                self._unused.add(relative, not_a_file(str(path)))

    def _parts(self, file: PlainFile) -> Iterator[Callable[[], None]]:
        opened: list[ResumableUpload] = []
        self.attempt(file, lambda file: opened.extend(self._begin(file)))
        for upload in opened:
            for number in upload.numbers:
                yield functools.partial(self._attempt_part, file, upload, number)

    def _attempt_part(self, file: PlainFile, upload: ResumableUpload, number: int) -> None:
        if not self.has_failed(file.key):  # with another part
            self.attempt(file, lambda file: self._part(file, upload, number))

    # One file

    def _small(self, file: PlainFile) -> None:
        data = file.path.read_bytes()
        if self._is_there(file.key, data):
            self.tracker.complete(file.key, file.size, skipped=True)
            return
        self._check_new(file.key)
        self._cap.acquire(file.size)
        self._store.put(file.key, data)
        self.tracker.complete(file.key, file.size)

    def _is_there(self, key: str, data: bytes) -> bool:
        """Whether the bucket has the bytes. An ETag that is not their MD5 says nothing: the CRC64 of a HEAD does."""
        size, etag = self._existing.get(key, (-1, ""))
        if size != len(data):
            return False
        if etag.lower() == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return True
        return self._store.head(key).crc64 == fastcrc.crc64.xz(data)

    def _check_new(self, key: str) -> None:
        """Raises ConsoleError where an object exists that the comparison did not find."""
        if key in self._must_be_new and self._store.exists(key):
            raise ConsoleError(
                f"{safe_text(self._store.uri(key))} exists by now and was not replaced.", remedy="Compare again."
            )

    def _begin(self, file: PlainFile) -> list[ResumableUpload]:
        """The upload whose parts are to be sent; none when the bucket has the file already."""
        size, _ = self._existing.get(file.key, (-1, ""))
        if size == file.size and self._store.head(file.key).crc64 == file_crc64(file.path):
            self.tracker.complete(file.key, file.size, skipped=True)
            return []
        self._check_new(file.key)
        upload = ResumableUpload(self._store, file.path, file.key, self._part_size)
        with self._lock:
            self._open.add(upload)
        return [upload]

    def _part(self, file: PlainFile, upload: ResumableUpload, number: int) -> None:
        self.tracker.advance((file.key, number), upload.send(number, self._cap.acquire))
        if not upload.claim():
            return
        with self._lock:
            self._open.discard(upload)
        try:
            upload.complete()
        finally:
            upload.close()
        self.tracker.complete(file.key, 0)  # its bytes were counted part by part


def transfer_jobs(
    store: ObjectStore, plan: SyncPlan, *, replace: bool, delete: bool, threads: int = DEFAULT_THREADS
) -> list[Job]:
    """The jobs that do what the plan says, to run one after the other, each only after the success of the one before.

    New files are copied; changed ones only with `replace`. With `delete`, what the source does not have is deleted.
    """
    new, extra = plan.of(SyncDifference.NEW), plan.of(SyncDifference.EXTRA) if delete else []
    changed = plan.of(SyncDifference.CHANGED) if replace else []
    jobs: list[Job] = []
    if plan.direction is Direction.UPLOAD:
        if new or changed:
            jobs.append(PlainUpload(store, plan.folder, plan.prefix, entries=[*new, *changed], threads=threads))
        if extra:
            jobs.append(Delete(store, [entry.object for entry in extra if entry.object is not None]))
        return jobs
    for entries, existing in ((new, Existing.KEEP), (changed, Existing.REPLACE)):
        if objects := [entry.object for entry in entries if entry.object is not None]:
            jobs.append(Download(store, objects, plan.prefix, plan.folder, existing=existing, threads=threads))
    return [*jobs, DeleteFiles(plan.folder, extra)] if extra else jobs
