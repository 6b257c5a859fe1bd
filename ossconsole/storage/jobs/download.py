"""Downloads of objects and prefixes into a folder: parallel, resumable, verified, each file renamed into place."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import itertools
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import fastcrc
import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import safe_text
from ossconsole.storage.bodies import read_stored
from ossconsole.storage.jobs.actions import ObjectOrPrefix, objects_of
from ossconsole.storage.jobs.job import DEFAULT_THREADS, Job
from ossconsole.storage.jobs.threads import read_ahead
from ossconsole.storage.multipart import (
    PART_SIZE,
    ChecksumError,
    ResumableFile,
    file_crc64,
    open_partial,
    partial_path,
    write_all,
)
from ossconsole.storage.objects import SYMLINK, ObjectSummary

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_MAX_COMPONENT_BYTES = 255  # of ext4, XFS and overlayfs
_KEPT_BYTES = 200  # of a longer component; the rest becomes a hash
_LOOKS_ENCODED = re.compile(r"%(?=[0-9A-Fa-f]{2}|$)")


def local_component(name: str) -> str:
    """One part of a key as a file name: never empty, `.`, `..` or too long, and without control characters.

    The mapping is injective: unsafe characters are percent-encoded, and a literal `%` too where it would be ambiguous.
    """
    if not name:
        return "%"
    if set(name) == {"."} and len(name) <= 2:
        return "%2E" * len(name)
    encoded = _LOOKS_ENCODED.sub("%25", name)
    if not encoded.isprintable():
        encoded = "".join(c if c.isprintable() else quote(c, errors="surrogatepass") for c in encoded)
    raw = encoded.encode()
    if len(raw) <= _MAX_COMPONENT_BYTES:
        return encoded
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return raw[:_KEPT_BYTES].decode(errors="ignore") + "~" + digest


def check_inside(folder: Path, path: Path) -> None:
    """Raises ConsoleError when a symbolic link on the disk would lead `path` out of `folder`."""
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ConsoleError(
            f"{safe_text(str(path))} leads out of {folder} through a symbolic link.",
            remedy="Select another folder, or remove the link.",
        )


_READ_SIZE = 256 << 10  # between two checks for a cancel
_COUNTED_AHEAD = 20_000  # objects counted and waiting, so that totals are known early in bounded memory
_ROUNDS = 3  # of a large object that arrives with another CRC64; a small one is retried as any request


class Existing(str, enum.Enum):
    """What to do with an existing file that differs; one with the same content is never fetched again."""

    KEEP = "keep"
    REPLACE = "replace"
    RENAME = "rename"


class DownloadItem(msgspec.Struct, frozen=True):
    """One object and the file it becomes; `is_link` while the size is not yet that of a symbolic link's target."""

    key: str
    size: int
    modified: int
    path: Path
    is_link: bool = False


class Download(Job):
    """Downloads objects and prefixes into `folder`, under their names relative to `base`.

    Files with the same size and time, or the same CRC64, are skipped; a large object continues where an earlier
    download of it stopped.
    """

    moves_bytes = True

    def __init__(
        self,
        store: ObjectStore,
        sources: Sequence[ObjectOrPrefix],
        base: str,
        folder: Path,
        *,
        existing: Existing = Existing.KEEP,
        threads: int = DEFAULT_THREADS,
    ) -> None:
        """`sources` are objects, and prefixes that stand for everything below them; all begin with `base`."""
        super().__init__(f"Download to {safe_text(str(folder))}", threads=threads)
        self.folder = folder
        self._store = store.pausing(self.wait_to_retry)
        self._sources = sources
        self._base = base
        self._existing = existing
        self._open_files: set[ResumableFile] = set()
        self._mismatched: list[DownloadItem] = []
        self._rounds_left = _ROUNDS
        self._kept = 0  # files that differ
        self._lock = threading.Lock()

    def retry(self) -> Download:
        """A new job that does what this one has not."""
        return Download(
            self._store, self._sources, self._base, self.folder, existing=self._existing, threads=self._threads
        )

    def work(self) -> None:
        """Downloads everything; objects that arrive with another CRC64 are fetched again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._round(self._tasks())
            while self._mismatched:
                mismatched, self._mismatched = self._mismatched, []
                self.note = "another CRC64: fetched again"
                self._round(itertools.chain.from_iterable(map(self._parts, mismatched)))
        finally:
            for file in self._open_files:
                file.close()
            if self._kept:
                self.note = f"{self._kept:,} of them differ and were kept"

    def _round(self, tasks: Iterable[Callable[[], None]]) -> None:
        self._rounds_left -= 1
        self.pool(tasks, lambda task: task())

    # Tasks

    def _tasks(self) -> Iterator[Callable[[], None]]:
        counted = self.counted(plan_downloads(objects_of(self._store, self._sources), self._base, self.folder))
        for item in itertools.chain.from_iterable(map(self._followed, read_ahead(counted, _COUNTED_AHEAD))):
            if item.size <= PART_SIZE:
                yield lambda item=item: self.attempt(item, self._small)  # type: ignore[misc]
            else:
                yield from self._parts(item)

    def _followed(self, item: DownloadItem) -> list[DownloadItem]:
        """The item; a symbolic link with the size of its target, or none where it has no target."""
        if not item.is_link:
            return [item]
        found: list[DownloadItem] = []

        def follow(item: DownloadItem) -> None:
            info = self._store.head(item.key)
            self.tracker.add_total(0, info.size - item.size)
            found.append(msgspec.structs.replace(item, size=info.size, modified=info.modified, is_link=False))

        self.attempt(item, follow)
        return found

    def _parts(self, item: DownloadItem) -> Iterator[Callable[[], None]]:
        opened: list[ResumableFile] = []
        self.attempt(item, lambda item: opened.extend(self._open(item)))
        if not opened:
            return
        file = opened[0]
        self.tracker.advance((item.key, -1), file.resumed_bytes)
        waiting = file.waiting
        if not waiting:
            yield lambda: self.attempt(item, lambda item: self._commit(item, file))
        for part in waiting:
            yield lambda part=part: self.attempt(item, lambda item: self._part(item, file, part))  # type: ignore[misc]

    # One object

    def _target(self, item: DownloadItem) -> Path | None:
        """The file to write, its folder made; None when there is nothing to do."""
        check_inside(self.folder, item.path)
        item.path.parent.mkdir(parents=True, exist_ok=True)
        if item.key.endswith("/") and item.size == 0:
            return None  # a folder marker
        path, number = item.path, 0
        while os.path.lexists(path):
            if self._same(item, path):
                return None
            if self._existing is Existing.KEEP:
                with self._lock:
                    self._kept += 1
                return None
            if self._existing is Existing.REPLACE:
                break
            number += 1
            path = item.path.with_name(f"{item.path.stem} ({number}){item.path.suffix}")
        return path

    def _same(self, item: DownloadItem, path: Path) -> bool:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != item.size:
            return False
        # A download sets the time of the object, a whole second; a file written in that second has parts of it.
        if status.st_mtime_ns == item.modified * 10**9:
            return True
        crc64 = self._store.head(item.key).crc64
        if crc64 is None or crc64 != file_crc64(path):
            return False
        os.utime(path, (item.modified, item.modified))
        return True

    def _small(self, item: DownloadItem) -> None:
        target = self._target(item)
        if target is None:
            self.tracker.complete(item.key, item.size, skipped=True)
            return
        hidden = partial_path(target)
        descriptor = open_partial(target)
        try:
            self._fetch_small(item, descriptor)
            os.utime(descriptor, (item.modified, item.modified))
            hidden.replace(target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                hidden.unlink()
            raise
        finally:
            os.close(descriptor)
        self.tracker.complete(item.key, item.size)

    def _fetch_small(self, item: DownloadItem, descriptor: int) -> None:
        def request() -> None:
            os.ftruncate(descriptor, 0)
            crc, done = 0, 0
            with contextlib.closing(self._store.sdk.get_object(item.key)) as result:
                while data := read_stored(result, _READ_SIZE):  # without oss2's own, slow CRC64
                    self.check_cancelled()
                    write_all(descriptor, data, done)
                    crc = fastcrc.crc64.xz(data, crc)
                    done += len(data)
                    self.tracker.advance(item.key, min(done, item.size))
            if result.server_crc is not None and crc != result.server_crc:
                import oss2

                raise oss2.exceptions.InconsistentError(f"{done} bytes came with another CRC64", result.request_id)

        self._store.call(f"downloading {self._store.uri(safe_text(item.key))}", request)

    def _open(self, item: DownloadItem) -> list[ResumableFile]:
        target = self._target(item)
        if target is None:
            self.tracker.complete(item.key, item.size, skipped=True)
            return []
        file = ResumableFile(target, self._store.head(item.key))
        self._open_files.add(file)
        _check_space(target, file)
        return [file]

    def _part(self, item: DownloadItem, file: ResumableFile, part: int) -> None:
        try:
            self._fetch_part(item, file, part)
        except (ConsoleError, OSError):
            file.part_failed()
            raise
        if file.part_done(part):
            self._commit(item, file)

    def _fetch_part(self, item: DownloadItem, file: ResumableFile, part: int) -> None:
        start, length = file.span(part)
        headers = {"If-Match": f'"{file.info.etag}"', "x-oss-range-behavior": "standard"}
        done = 0

        def request() -> None:
            nonlocal done  # an attempt continues where the one before stopped
            span = (start + done, start + length - 1)
            with contextlib.closing(self._store.sdk.get_object(item.key, byte_range=span, headers=headers)) as result:
                while data := read_stored(result, _READ_SIZE):
                    self.check_cancelled()
                    file.write(start + done, data)
                    done += len(data)
                    self.tracker.advance((item.key, part), done)
            if done != length:
                import oss2

                raise oss2.exceptions.InconsistentError(f"{done} of {length} bytes arrived", result.request_id)

        self._store.call(f"downloading {self._store.uri(safe_text(item.key))}", request)

    def _commit(self, item: DownloadItem, file: ResumableFile) -> None:
        try:
            file.commit()
        except ChecksumError:
            if not self._rounds_left:
                raise
            with self._lock:
                self._mismatched.append(item)
        else:
            self.tracker.complete(item.key, 0)


def _check_space(target: Path, file: ResumableFile) -> None:
    """Raises ConsoleError where the rest of a large file cannot fit, before minutes of it fill the disk."""
    partial = partial_path(target)
    there = max(file.resumed_bytes, partial.stat().st_blocks * 512)
    missing, status = file.info.size - there, os.statvfs(target.parent)
    free = status.f_bavail * status.f_frsize
    if missing <= free or not status.f_blocks:  # some file systems of a network know no sizes
        return
    if not file.resumed_bytes:
        partial.unlink(missing_ok=True)
    raise ConsoleError(
        f"{safe_text(str(target))} needs {missing:,} bytes more, and its disk has {free:,} free.",
        remedy="Free space, or select another folder.",
    )


def plan_downloads(objects: Iterable[ObjectSummary], base: str, folder: Path) -> Iterator[DownloadItem]:
    """Each object with its file below `folder`. `objects` are in the order of their keys.

    Where one object's name is also a folder of others (`a` and `a/b`), the folder's name gets a trailing `%`, which no
    other name can have.
    """
    prefixes: list[str] = []  # earlier keys that the current one begins with
    for found in objects:
        while prefixes and not found.key.startswith(prefixes[-1]):
            prefixes.pop()
        shadowed = {len(key) for key in prefixes if found.key.startswith("/", len(key))}
        path, is_link = _place(found.key, base, folder, shadowed), found.type == SYMLINK
        yield DownloadItem(found.key, found.size, found.modified, path, is_link)
        prefixes.append(found.key)


def _place(key: str, base: str, folder: Path, shadowed: set[int]) -> Path:
    """`shadowed` are the ends, in the key, of folders whose name belongs to an object as well."""
    path, end = folder, len(base)
    for part in key[len(base) :].split("/"):
        end += len(part)
        path /= local_component(part) + ("%" if end in shadowed else "")
        end += 1
    return path
