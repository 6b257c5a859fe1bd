"""The comparison of a folder of this machine with a prefix of the bucket, and what a transfer between them would do."""

from __future__ import annotations

import enum
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import is_folder
from ossconsole.config.text import safe_text
from ossconsole.storage.jobs.download import DownloadItem, local_component, plan_downloads
from ossconsole.storage.jobs.job import Job
from ossconsole.storage.multipart import file_crc64, is_partial
from ossconsole.storage.objects import SYMLINK, ObjectSummary

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_READ_SIZE = 4 << 20
_LINK_TO_NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_NAMES_LISTED_ALONE = 50  # with more names, one listing of the prefix needs fewer requests


class Direction(str, enum.Enum):
    """Which side a transfer writes to."""

    UPLOAD = "upload"
    DOWNLOAD = "download"


class SyncDifference(str, enum.Enum):
    """How the source of a transfer differs from its target. EXTRA exists at the target alone."""

    NEW = "new"
    CHANGED = "changed"
    SAME = "same"
    EXTRA = "extra"


class LocalFile(msgspec.Struct, frozen=True):
    """A file of this machine: its path relative to the folder, with slashes, and its size in bytes."""

    name: str
    path: Path
    size: int


class SyncEntry(msgspec.Struct, frozen=True):
    """One file, one object, or both. `object` is None where the bucket has none; `size` is that of the source.

    Of an EXTRA entry the size is that of the target, as it has no source.
    """

    key: str
    path: Path
    size: int
    difference: SyncDifference
    object: ObjectSummary | None = None


class SyncPlan(msgspec.Struct, frozen=True):
    """The plan of a transfer. `folder` and `prefix` are compared; `others` counts entries that are not files."""

    direction: Direction
    folder: Path
    prefix: str
    entries: tuple[SyncEntry, ...]
    others: int = 0

    def of(self, difference: SyncDifference) -> list[SyncEntry]:
        """The entries with this difference, in the order of their keys."""
        return [entry for entry in self.entries if entry.difference is difference]

    def total(self, difference: SyncDifference) -> tuple[int, int]:
        """The number of entries with this difference, and their bytes."""
        found = self.of(difference)
        return len(found), sum(entry.size for entry in found)


class _Pair(msgspec.Struct, frozen=True):
    """An object and the file of the same name; either may be missing."""

    key: str
    path: Path
    size: int
    file: LocalFile | None
    object: ObjectSummary | None


def entries_below(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """The files below a folder, and the links to folders, which are not followed."""
    for parent, folders, names in os.walk(folder, onerror=on_error):
        links = (name for name in folders if os.path.islink(os.path.join(parent, name)))  # noqa: PTH114, PTH118
        yield from (Path(parent, name) for name in (*links, *names))


class SyncComparison(Job):
    """Compares what is below `folder` with what is below `prefix`; the plan is in `plan` after the end.

    Sizes decide first, then equal times; else the file is read for the MD5 of the listing or the CRC64 of a HEAD.
    `names` limits both sides to these files and folders directly below them.
    """

    skipped_label = "same"

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        prefix: str,
        direction: Direction,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        """`prefix` is "" or ends in "/". The names of folders end in "/"; by default everything is compared."""
        super().__init__(f"Comparison with {safe_text(store.uri(prefix))}")
        self.plan: SyncPlan | None = None
        self._store = store.pausing(self.wait_to_retry)
        self._folder = folder
        self._prefix = prefix
        self._direction = direction
        self._names = names
        self._differences: dict[tuple[str, Path], SyncDifference] = {}
        self._others = 0
        self._links: set[str] = set()

    def work(self) -> None:
        """Lists both sides, then compares the pairs. A file or folder that cannot be read is a failure."""
        pairs = self._pairs()
        self.pool(self.counted(pairs), lambda pair: self.attempt(pair, self._compare))
        if not self.failures:
            entries = (
                SyncEntry(pair.key, pair.path, pair.size, self._differences[pair.key, pair.path], pair.object)
                for pair in pairs
                if not (pair.file is None and self._is_behind_link(pair.key))
            )
            ordered = tuple(sorted(entries, key=lambda entry: entry.key))
            self.plan = SyncPlan(self._direction, self._folder, self._prefix, ordered, self._others)

    # Both sides

    def _pairs(self) -> list[_Pair]:
        objects = self._objects()
        files = {file.path: file for file in self._files(self._tops(objects))}
        if self._direction is Direction.DOWNLOAD:
            by_path = {item.path: (item, found) for item, found in objects}
            paths = [*by_path, *(path for path in files if path not in by_path)]
            return [self._pair(files.get(path), *by_path.get(path, (None, None))) for path in paths]
        by_key = {item.key: (item, found) for item, found in objects}
        keys = {self._prefix + file.name: file for file in files.values()}
        return [self._pair(keys.get(key), *by_key.get(key, (None, None))) for key in {**by_key, **keys}]

    def _pair(self, file: LocalFile | None, item: DownloadItem | None, summary: ObjectSummary | None) -> _Pair:
        up = self._direction is Direction.UPLOAD
        size = file.size if file and (up or summary is None) else summary.size if summary else 0
        key = item.key if item else self._prefix + (file.name if file else "")
        path = file.path if file else item.path if item else self._folder
        return _Pair(key, path, size, file, summary)

    def _objects(self) -> list[tuple[DownloadItem, ObjectSummary]]:
        found = []
        for one in self._listed():
            self.check_cancelled()
            if not (one.key.endswith("/") and one.size == 0):  # the marker of a folder
                found.append(one)
        found.sort(key=lambda one: one.key)
        return list(zip(plan_downloads(found, self._prefix, self._folder), found, strict=True))

    def _listed(self) -> Iterator[ObjectSummary]:
        if self._names is None:
            yield from self._store.list_all(self._prefix)
        elif len(self._names) > _NAMES_LISTED_ALONE:
            names = set(self._names)
            for found in self._store.list_all(self._prefix):
                top, slash, _ = found.key[len(self._prefix) :].partition("/")
                if top + slash in names:
                    yield found
        else:
            for name in self._names:
                if name.endswith("/"):
                    yield from self._store.list_all(self._prefix + name)
                else:  # the object itself is the first with this beginning
                    page = self._store.list_page(self._prefix + name, delimiter="", max_keys=1)
                    yield from (found for found in page.objects if found.key == self._prefix + name)

    def _files(self, tops: Iterable[Path]) -> Iterator[LocalFile]:
        for top in tops:
            walked = is_folder(top) and not top.is_symlink()
            for path in entries_below(top, self.fail_folder) if walked else [top]:
                yield from self._file(path)

    def _tops(self, objects: Sequence[tuple[DownloadItem, ObjectSummary]]) -> list[Path]:
        """The files and folders directly below the folder that are compared."""
        if not self._folder.exists():
            return []
        if self._names is None:
            return [Path(entry.path) for entry in os.scandir(self._folder)]
        up = self._direction is Direction.UPLOAD
        names = {name.rstrip("/") if up else local_component(name.rstrip("/")) for name in self._names}
        names.update(item.path.relative_to(self._folder).parts[0] for item, _ in objects)
        return [path for name in sorted(names) if os.path.lexists(path := self._folder / name)]

    def _file(self, path: Path) -> Iterator[LocalFile]:
        self.check_cancelled()
        if is_partial(path):
            return
        try:
            status = path.stat()
        except OSError as error:
            if error.errno not in _LINK_TO_NOTHING:
                self.fail_folder(error)
                return
            status = None
        if status is not None and stat.S_ISREG(status.st_mode):
            yield LocalFile(path.relative_to(self._folder).as_posix(), path, status.st_size)
        else:
            self._others += 1
            if path.is_symlink():
                self._links.add(path.relative_to(self._folder).as_posix())

    def _is_behind_link(self, key: str) -> bool:
        """Whether the object would be a file in a linked folder, which is not followed: it may be there."""
        path = PurePosixPath(key[len(self._prefix) :])
        up = self._direction is Direction.UPLOAD
        return up and any(str(each) in self._links for each in (path, *path.parents))

    # One pair

    def _compare(self, pair: _Pair) -> None:
        difference = self._difference(pair)
        # A file `100%` has the key of the object that a download writes to `100%25`.
        self._differences[pair.key, pair.path] = difference
        self.tracker.complete(pair.key, pair.size, skipped=difference is SyncDifference.SAME)

    def _difference(self, pair: _Pair) -> SyncDifference:
        source, target = pair.file, pair.object
        if source is not None and target is not None:
            return SyncDifference.SAME if self._same(source, target) else SyncDifference.CHANGED
        has_source = (source is not None) == (self._direction is Direction.UPLOAD)
        return SyncDifference.NEW if has_source else SyncDifference.EXTRA

    def _same(self, file: LocalFile, summary: ObjectSummary) -> bool:
        if summary.type == SYMLINK:  # a listing has the size of the link
            info = self._store.head(summary.key)
            return info.size == file.size and info.crc64 == file_crc64(file.path)
        if summary.size != file.size:
            return False
        # A download sets the time of the object, a whole second; a file written in that second has parts of it.
        if file.path.stat().st_mtime_ns == summary.modified * 10**9:
            return True
        if summary.md5 and summary.md5 == _md5(file.path, self.check_cancelled):
            return True
        return self._store.head(summary.key).crc64 == file_crc64(file.path)


class DeleteFiles(Job):
    """Deletes files of this machine. One that has changed its size since it was listed stays, as a failure."""

    def __init__(self, folder: Path, entries: Sequence[SyncEntry]) -> None:
        super().__init__(f"Delete in {safe_text(str(folder))}", threads=1)
        self._entries = entries

    def work(self) -> None:
        """Deletes file by file; a symbolic link is deleted, not what it names."""
        self.pool(self.counted(self._entries), lambda entry: self.attempt(entry, self._delete))

    def _delete(self, entry: SyncEntry) -> None:
        if entry.path.stat().st_size != entry.size:
            raise ConsoleError(f"{safe_text(str(entry.path))} has changed, so it was kept.", remedy="Compare again.")
        entry.path.unlink()
        self.tracker.complete(entry.key, entry.size)


def _md5(path: Path, check: Callable[[], None]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(_READ_SIZE):
            check()
            digest.update(data)
    return digest.hexdigest()
