"""Files of a source and where their bytes are, the source that is a folder, and the samples planned from files.

Sources are iterated file by file so that a million need no memory.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.labels import find_label_file
from ossconsole.dataset.manifest import key_problem
from ossconsole.dataset.source.arrangement import SPLIT_NAMES, FolderContents

if TYPE_CHECKING:
    import zipfile


class PathLocation(msgspec.Struct, frozen=True, array_like=True, tag="file"):
    """A file on the disk."""

    path: str


class SpanLocation(msgspec.Struct, frozen=True, array_like=True, tag="span"):
    """A member of an uncompressed tar: `size` bytes at byte `offset`."""

    path: str
    offset: int
    size: int


class ZipLocation(msgspec.Struct, frozen=True, array_like=True, tag="zip"):
    """The member of a zip whose header is at `offset`; a name may occur in it more than once."""

    path: str
    offset: int


class BytesLocation(msgspec.Struct, frozen=True, array_like=True, tag="bytes"):
    """The bytes of a member of a compressed tar, which can only be read sequentially."""

    data: bytes


FileLocation: TypeAlias = PathLocation | SpanLocation | ZipLocation | BytesLocation


def read_location(location: FileLocation) -> bytes:
    """The file's bytes. Raises OSError, or any exception of zipfile for a damaged member."""
    if isinstance(location, BytesLocation):
        return location.data
    if isinstance(location, ZipLocation):
        archive, members = _open_zip(location.path)
        return archive.read(members[location.offset])
    with open(location.path, "rb") as file:  # noqa: PTH123  a Path for each of a million files costs more than the open
        if isinstance(location, SpanLocation):
            file.seek(location.offset)
            return file.read(location.size)
        return file.read()


@functools.lru_cache(maxsize=4)
def _open_zip(path: str) -> tuple[zipfile.ZipFile, dict[int, zipfile.ZipInfo]]:
    """The archive, and its members by the offset of their headers."""
    import zipfile  # not for every preparation process

    archive = zipfile.ZipFile(path)
    return archive, {member.header_offset: member for member in archive.infolist()}


MAX_FILE_BYTES = 512 << 20  # of an image file
MAX_LISTED_IMAGES = 8
"""Images of a folder whose names decide what the folder is."""

_MAX_DEPTH = 32

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif"}
)
"""The extensions of image files: torchvision.datasets.folder.IMG_EXTENSIONS, and those that a codec may read."""

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVE_SUFFIXES = (*TAR_SUFFIXES, ".zip")

HIDDEN_FOLDER = "a hidden folder, or one of a tool"

_HIDDEN = re.compile(
    r"(?:^|/)(?:\.(?!\.?(?:/|$))|(?:__MACOSX|__pycache__|@eaDir|#recycle|\$RECYCLE\.BIN|lost\+found)(?:/|$))"
)
"""Hidden names, and folders that Macs, Windows, Python, file systems and network storage leave behind."""


def is_hidden(path: str) -> bool:
    """Whether a part of the path is hidden, or a folder that a tool leaves behind."""
    return _HIDDEN.search(path) is not None


def is_image_name(name: str) -> bool:
    """Whether a file name has an image's extension and is not hidden (`._cat.jpg` has a Mac's file attributes)."""
    stem, dot, suffix = name.rpartition(".")
    return bool(stem) and dot + suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def folder_of(archive: str) -> str:
    """The name of the folder that stands for an archive: its own without the ending."""
    for suffix in ARCHIVE_SUFFIXES:
        archive = archive[: -len(suffix)] if archive.lower().endswith(suffix) else archive
    return archive


class SourceFile(msgspec.Struct, frozen=True, gc=False):
    """One file of a source. `path` is relative with `/`; `size` in bytes; `mtime_ns` as the file system reports it."""

    path: str
    size: int
    mtime_ns: int
    location: FileLocation


class UnreadableEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry that is not a readable file. `lost` when it may be an image."""

    path: str
    reason: str
    lost: bool = True


class FolderEntry(msgspec.Struct, frozen=True, gc=False):
    """A folder of a source; only those that may be empty are listed."""

    path: str


Entry: TypeAlias = SourceFile | UnreadableEntry | FolderEntry


class ImageSource(Protocol):
    """Files and folders in no particular order."""

    path: Path
    countable: bool
    """Whether iterating over it a second time just to count is cheap."""

    def entries(self) -> Iterator[Entry]:
        """Every file, and folders. Raises ConsoleError when the source as a whole cannot be read."""

    def read(self, name: str) -> bytes | None:
        """The file `name` in or beside the source (the tutorial keeps its label files there), else None."""


class FolderSource:
    """The images below a folder. Class folders may be links; deeper links to folders are not followed."""

    countable = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts: list[str] = [""]
        """The folders that are read, relative to `path`; what is in them are class folders."""

    def contents(self, folder: str) -> FolderContents:
        """As Tree.contents."""
        folders: list[str] = []
        images: list[str] = []
        try:
            with os.scandir(self.path / folder) as found:
                for entry in found:
                    if _is_folder(entry) or _was_split(entry):
                        if not is_hidden(entry.name):
                            folders.append(entry.name)
                    elif len(images) < MAX_LISTED_IMAGES and is_image_name(entry.name):
                        images.append(entry.name)
        except OSError:  # `entries` names it
            return FolderContents()
        return FolderContents(tuple(sorted(folders)), tuple(images))

    def names(self, folder: str = "") -> list[str]:
        """The names of what is directly in a folder, folders with a slash. Raises ConsoleError."""
        try:
            with os.scandir(self.path / folder) as found:
                return sorted(entry.name + ("/" if _is_folder(entry) else "") for entry in found)
        except OSError as error:
            raise ConsoleError(f"{self.path / folder} cannot be read: {error.strerror}.") from error

    def entries(self) -> Iterator[Entry]:
        """As ImageSource.entries."""
        for start in self.starts:
            yield from self._walk(self.path / start, start, depth=0)

    def counts(self) -> Iterator[int]:
        """The number of files in each folder, without reading any of them; links count as files."""
        for start in self.starts:
            yield from self._count(self.path / start, depth=0)

    def _count(self, folder: Path, depth: int) -> Iterator[int]:
        try:
            with os.scandir(folder) as entries:
                folders, files = [], 0
                for entry in entries:
                    followed = depth == 0 and not _leads_up(entry)
                    if _is_folder(entry, follow_symlinks=followed) and not is_hidden(entry.name):
                        folders.append(Path(entry.path))
                    else:
                        files += 1
        except OSError:
            yield 1  # `entries` has one entry for it
            return
        yield files
        for below in folders if depth < _MAX_DEPTH else ():
            yield from self._count(below, depth + 1)

    def read(self, name: str) -> bytes | None:
        """As ImageSource.read: from the top, or beside it."""
        return find_label_file(self.path, name)

    def _walk(self, folder: Path, relative: str, depth: int) -> Iterator[Entry]:
        if depth == 1:
            yield FolderEntry(relative)
        try:
            entries = os.scandir(folder)
        except OSError as error:
            yield UnreadableEntry(relative, f"the folder cannot be read: {error.strerror}")
            return
        with entries:
            for entry in entries:
                path = f"{relative}/{entry.name}" if relative else entry.name
                try:
                    if entry.is_dir(follow_symlinks=depth == 0):
                        if depth == 0 and _leads_up(entry):
                            yield UnreadableEntry(path, "a symbolic link to a folder that it is in", lost=False)
                        elif is_hidden(entry.name):
                            yield UnreadableEntry(f"{path}/", HIDDEN_FOLDER, lost=False)
                        elif depth < _MAX_DEPTH:
                            yield from self._walk(Path(entry.path), path, depth + 1)
                        else:
                            yield UnreadableEntry(path, f"a folder below {_MAX_DEPTH} others")
                        continue
                    yield _file_entry(entry, path, lost=depth == 0 and entry.is_symlink())
                except OSError as error:
                    yield UnreadableEntry(path, f"{error.strerror}")


def _is_folder(entry: os.DirEntry[str], *, follow_symlinks: bool = True) -> bool:
    """Whether it is a folder; False for a link that cannot be followed, which `entries` names."""
    try:
        return entry.is_dir(follow_symlinks=follow_symlinks)
    except OSError:
        return False


def _leads_up(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to a folder that it is in: followed, every image would be in one more class."""
    if not entry.is_symlink():
        return False
    inside, target = (os.path.realpath(path) for path in (os.path.dirname(entry.path), entry.path))  # noqa: PTH120
    return Path(inside).is_relative_to(target)  # Path.resolve raises for a link to itself


def _was_split(entry: os.DirEntry[str]) -> bool:
    """Whether it is the link of a split that leads nowhere now: `entries` names it."""
    return entry.name.lower() in SPLIT_NAMES and entry.is_symlink() and not Path(entry.path).exists()


def _file_entry(entry: os.DirEntry[str], path: str, *, lost: bool) -> SourceFile | UnreadableEntry:
    """`lost`: an entry that is not a file counts as lost, as it is a link where class folders are."""
    try:
        is_file = entry.is_file()
    except OSError:  # a loop of links
        is_file = False
    if not is_file:
        return UnreadableEntry(path, not_a_file(entry.path), lost=lost)
    status = entry.stat()
    return SourceFile(path, status.st_size, status.st_mtime_ns, PathLocation(entry.path))


def source_problem(path: Path) -> str:
    """Why `path` is neither a folder nor a file, like `does not exist`; "" for those."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name with a zero byte
        return "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else f"is {not_a_file(str(path))}"


def not_a_file(path: str) -> str:
    """The kind of a path that is not a regular file; symbolic links are followed."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - as cheap as it gets
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a symbolic link to itself"
        return "a symbolic link to nothing" if error.errno == errno.ENOENT else f"{error.strerror}"
    kinds = (
        (stat.S_ISDIR, "a symbolic link to a folder, which is not followed"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((words for is_kind, words in kinds if is_kind(mode)), "a device")


# Planned samples: what the files become, before anything is prepared

_JPEG_SUFFIXES = (".jpeg", ".jpg")


class PlannedSample(msgspec.Struct, frozen=True, gc=False):
    """One image to become a sample.

    `path` is inside the source. `key` is relative to the dataset prefix and without the format's suffix; `spare_key`
    replaces it when another file has that key already (`a.jpg` beside `a.jpeg`).
    """

    path: str
    split: str
    class_name: str
    key: str
    spare_key: str
    size: int
    mtime_ns: int
    location: FileLocation

    def keys(self, suffix: str) -> tuple[str, ...]:
        """The key and the spare key with the format's `suffix`; for "" the key that keeps the file's own suffix."""
        return (self.key + suffix, self.spare_key + suffix) if suffix else (self.spare_key,)


class SkippedFile(msgspec.Struct, frozen=True, gc=False):
    """A file that does not become a sample, and why. `lost` when it should have become one."""

    path: str
    reason: str
    lost: bool


PlanItem: TypeAlias = PlannedSample | SkippedFile


def planned_sample(file: SourceFile, key_path: str, split: str, class_name: str) -> PlanItem:
    """The sample of a file, unless its name cannot be a key."""
    if problem := key_problem(key_path):
        return SkippedFile(file.path, problem, lost=True)
    stem, dot, suffix = key_path.rpartition(".")
    # The tutorial's rule is `.JPEG` to `.pt`; other images keep their suffix, so that `a.png` and `a.jpg` differ.
    key = stem if dot + suffix.lower() in _JPEG_SUFFIXES else key_path
    return PlannedSample(file.path, split, class_name, key, key_path, file.size, file.mtime_ns, file.location)
