"""Sources of image files (a folder, a tar, a zip), iterated file by file so that a million need no memory."""

from __future__ import annotations

import errno
import functools
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import SPLITS

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


@functools.lru_cache(maxsize=1)
def _open_zip(path: str) -> tuple[zipfile.ZipFile, dict[int, zipfile.ZipInfo]]:
    """The archive, and its members by the offset of their headers."""
    import zipfile  # not for every preparation process

    archive = zipfile.ZipFile(path)
    return archive, {member.header_offset: member for member in archive.infolist()}


MAX_FILE_BYTES = 512 << 20  # of an image file
MAX_LABEL_FILE_BYTES = 64 << 20
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_FORGET_TAR_MEMBERS_EVERY = 1000
_MAX_DEPTH = 32


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


def open_source(path: Path) -> ImageSource:
    """The source at `path`. Raises ConsoleError when it is not a folder, a tar or a zip."""
    if path.is_dir():
        return FolderSource(path)
    if not path.is_file():
        raise ConsoleError(f"{path} does not exist.", remedy="Enter a folder, a tar or a zip of images.")
    if zipfile.is_zipfile(path):
        return ZipSource(path)
    if path.name.lower().endswith(TAR_SUFFIXES):
        return TarSource(path)
    raise ConsoleError(
        f"{path} is not a folder, a .tar, a .tar.gz or a .zip.",
        remedy="Enter a folder with train/<class>/, an archive of one, or a .csv or .tsv of path and label.",
    )


class FolderSource:
    """`train/` and `val/` below a folder. Class folders may be links; deeper links to folders are not followed."""

    countable = True

    def __init__(self, path: Path) -> None:
        """Raises ConsoleError when there is neither `train/` nor `val/`."""
        self.path = path
        self._splits = [split for split in SPLITS if (path / split).is_dir()]
        if not self._splits:
            raise ConsoleError(
                f"{path} has neither a train/ nor a val/ folder.",
                remedy="Put the images into train/<class>/ and val/<class>/ there, or enter a .csv of path and label.",
            )

    def entries(self) -> Iterator[Entry]:
        """As ImageSource.entries."""
        for split in self._splits:
            yield from self._walk(self.path / split, split, depth=0)

    def beside(self) -> list[str]:
        """The names of what is beside `train/` and `val/`, folders with a slash. Raises ConsoleError."""
        try:
            with os.scandir(self.path) as found:
                names = [entry.name + ("/" if entry.is_dir() else "") for entry in found]
        except OSError as error:
            raise ConsoleError(f"{self.path} cannot be read: {error.strerror}.") from error
        return [name for name in names if name.rstrip("/") not in self._splits]

    def counts(self) -> Iterator[int]:
        """The number of files in each folder, without reading any of them; links count as files."""
        for split in self._splits:
            yield from self._count(self.path / split, depth=0)

    def _count(self, folder: Path, depth: int) -> Iterator[int]:
        try:
            with os.scandir(folder) as entries:
                folders, files = [], 0
                for entry in entries:
                    if entry.is_dir(follow_symlinks=depth == 0):
                        folders.append(Path(entry.path))
                    else:
                        files += 1
        except OSError:
            yield 1  # the entry that `entries` gives for it
            return
        yield files
        for below in folders if depth < _MAX_DEPTH else ():
            yield from self._count(below, depth + 1)

    def read(self, name: str) -> bytes | None:
        """As ImageSource.read."""
        return _read_beside(self.path / name) or _read_beside(self.path.absolute().parent / name)

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
                path = f"{relative}/{entry.name}"
                try:
                    if entry.is_dir(follow_symlinks=depth == 0):
                        if depth < _MAX_DEPTH:
                            yield from self._walk(Path(entry.path), path, depth + 1)
                        else:
                            yield UnreadableEntry(path, f"a folder below {_MAX_DEPTH} others")
                        continue
                    yield _file_entry(entry, path)
                except OSError as error:
                    yield UnreadableEntry(path, f"{error.strerror}")


def _file_entry(entry: os.DirEntry[str], path: str) -> SourceFile | UnreadableEntry:
    try:
        is_file = entry.is_file()
    except OSError:  # a loop of links
        is_file = False
    if not is_file:
        return UnreadableEntry(path, not_a_file(entry.path), lost=False)
    status = entry.stat()
    return SourceFile(path, status.st_size, status.st_mtime_ns, PathLocation(entry.path))


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


class TarSource:
    """A tar of images; an uncompressed one is read at its members' offsets, a compressed one sequentially."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.countable = _is_plain_tar(path)

    def entries(self) -> Iterator[Entry]:
        """As ImageSource.entries."""
        try:
            with tarfile.open(self.path, "r:") if self.countable else tarfile.open(self.path, "r|*") as archive:
                for number, member in enumerate(archive):
                    if number % _FORGET_TAR_MEMBERS_EVERY == 0:
                        archive.members = []  # type: ignore[attr-defined]  # it keeps every member otherwise
                    if member.isdir():
                        yield FolderEntry(member.name.removeprefix("./"))
                    else:
                        yield self._entry(archive, member)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ConsoleError(f"{self.path} cannot be read: {error}.", remedy="Fetch the archive again.") from error

    def read(self, name: str) -> bytes | None:
        """As ImageSource.read."""
        return _read_beside(self.path.absolute().parent / name)

    def _entry(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> SourceFile | UnreadableEntry:
        path = member.name.removeprefix("./")
        if not member.isreg():
            return UnreadableEntry(path, "a link or a device in the archive", lost=False)
        mtime_ns = int(member.mtime * 1e9)
        if self.countable:
            location = SpanLocation(str(self.path), member.offset_data, member.size)
            return SourceFile(path, member.size, mtime_ns, location)
        if member.size > MAX_FILE_BYTES:
            return UnreadableEntry(path, f"{member.size} bytes are too many for an image")
        stream = archive.extractfile(member)
        return SourceFile(path, member.size, mtime_ns, BytesLocation(stream.read() if stream else b""))


def _is_plain_tar(path: Path) -> bool:
    """True for an uncompressed tar; the name does not matter."""
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False
    except OSError as error:
        raise ConsoleError(f"{path} cannot be read: {error.strerror}.") from error


class ZipSource:
    """A zip of images."""

    countable = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> Iterator[Entry]:
        """As ImageSource.entries."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.infolist():
                    if member.is_dir():
                        yield FolderEntry(member.filename.rstrip("/"))
                    else:
                        yield self._entry(member)
        except (zipfile.BadZipFile, OSError) as error:
            raise ConsoleError(f"{self.path} cannot be read: {error}.", remedy="Fetch the archive again.") from error

    def read(self, name: str) -> bytes | None:
        """As ImageSource.read."""
        return _read_beside(self.path.absolute().parent / name)

    def _entry(self, member: zipfile.ZipInfo) -> SourceFile | UnreadableEntry:
        if member.flag_bits & 1:
            return UnreadableEntry(member.filename, "encrypted in the archive")
        # A zip's times are multiples of 2 s without a zone; its CRC-32 detects a change better.
        return SourceFile(
            member.filename, member.file_size, member.CRC, ZipLocation(str(self.path), member.header_offset)
        )


def _read_beside(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LABEL_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConsoleError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_LABEL_FILE_BYTES:
        raise ConsoleError(f"{path} is larger than {MAX_LABEL_FILE_BYTES >> 20} MB.")
    return data
