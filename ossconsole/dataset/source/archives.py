"""Sources that are archives: a tar (also one of tars), a zip, or a folder of them; none is unpacked."""

from __future__ import annotations

import codecs
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.dataset.labels import LABEL_FILE_NAMES, MAX_LABEL_FILE_BYTES, find_label_file, read_label_file
from ossconsole.dataset.manifest import UnusedCounter
from ossconsole.dataset.source.arrangement import FolderContents
from ossconsole.dataset.source.files import (
    ARCHIVE_SUFFIXES,
    MAX_FILE_BYTES,
    MAX_LISTED_IMAGES,
    TAR_SUFFIXES,
    BytesLocation,
    Entry,
    FolderEntry,
    FolderSource,
    ImageSource,
    SourceFile,
    SpanLocation,
    UnreadableEntry,
    ZipLocation,
    folder_of,
    is_hidden,
    is_image_name,
    read_location,
    source_problem,
)

_FORGET_TAR_MEMBERS_EVERY = 1000
_MAX_PARTS = 64  # of a path; longer ones are no images of a class
_MAX_LABEL_FILES = 12
_UTF8_FLAG = 0x800  # of a zip's member: its name is UTF-8
_INNER = "an archive in the archive: unpack the outer one, then upload the folder"
_INNER_DAMAGED = "an archive in the archive that is cut off or damaged: fetch it again, then upload"
_NOT_UTF8 = "its name is not UTF-8: give the encoding with --names, for example --names cp932 or gb18030"
_NO_END = "without an end mark, as where a download was cut off: files may be missing"
_NO_LIST = "the list of its files, which ends it, is missing or damaged"
_FETCH_AGAIN = "Fetch the archive again."
IMAGES_INSIDE = (".parquet", ".arrow", ".tfrecord", ".tfrecords", ".lmdb", ".h5", ".hdf5")
"""The endings of files that hold images and are not read."""

IMAGES_INSIDE_REMEDY = "Write the images in them as files into train/<class>/, and enter that folder."
_CLASS_SUFFIX = ".cls"  # WebDataset's file with the class of the image beside it
UNKNOWN_ENCODING = "not UTF-8; read as cp437. If they look wrong, give --names, for example --names cp932 or gb18030"
"""The caution about names of a zip."""


def open_source(path: Path, names: str = "") -> ImageSource:
    """The source at `path`; `names` is the encoding of names in archives that are not UTF-8.

    Raises ConsoleError when it is not a folder, a tar or a zip.
    """
    decoder = NameDecoder(names)
    if problem := source_problem(path):
        raise ConsoleError(f"{path} {problem}.", remedy="Enter a folder, a tar or a zip of images.")
    if path.is_dir():
        return FolderSource(path)
    if zipfile.is_zipfile(path):
        return ZipSource(path, decoder)
    if path.name.lower().endswith(TAR_SUFFIXES):
        return TarSource(path, decoder)
    if path.name.lower().endswith(".zip"):
        raise ConsoleError(f"{path} cannot be read: {_NO_LIST}.", remedy=_FETCH_AGAIN)
    raise ConsoleError(
        f"{path} is not a folder, a .tar, a .tar.gz or a .zip.",
        remedy=IMAGES_INSIDE_REMEDY
        if path.name.lower().endswith(IMAGES_INSIDE)
        else "Enter a folder with train/<class>/, an archive of one, or a .csv or .tsv of path and label.",
    )


class NameDecoder:
    """Decodes names of files in archives. `unknown` counts those whose encoding had to be guessed.

    The archives of a source share it. `endless` counts those whose last file may not be their last.
    """

    def __init__(self, encoding: str) -> None:
        """Raises SettingsError when Python does not know the encoding."""
        try:
            " ".encode(encoding or "utf-8")  # Python has codecs for other data, too, such as hex
            self.encoding = codecs.lookup(encoding).name if encoding else ""
        except (LookupError, ValueError) as error:
            raise SettingsError(
                f"{encoding!r} is not an encoding.",
                remedy="Use cp932 (Japanese), gb18030 (Chinese) or euc_kr (Korean).",
            ) from error
        self.begin()

    def begin(self) -> None:
        """Counts from zero."""
        self.unknown, self.endless = UnusedCounter("name"), UnusedCounter("archive")

    def of_tar(self, name: str) -> str:
        """A name as tarfile gives it; one that cannot be decoded keeps its surrogates."""
        try:
            name.encode()
        except UnicodeEncodeError:
            return self._decode(name.encode("utf-8", "surrogateescape")) or name
        return name

    def of_zip(self, member: zipfile.ZipInfo) -> str:
        """The name of a zip's member. Old programs wrote no UTF-8, or wrote it without the flag for it."""
        name = member.filename
        if not name.isascii() and not member.flag_bits & _UTF8_FLAG:
            try:
                raw = name.encode("cp437")
            except UnicodeEncodeError:  # from an extra field
                raw = name.encode()
            try:
                name = raw.decode()
            except UnicodeDecodeError:
                decoded = self._decode(raw)
                if not decoded:
                    self.unknown.add(name, UNKNOWN_ENCODING)
                name = decoded or name
        return name if "/" in name else name.replace("\\", "/")  # as some programs on Windows write them

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode(self.encoding) if self.encoding else ""
        except UnicodeDecodeError:
            return ""


class FolderTree:
    """The folders of an archive as a Tree, and its label files: from one pass over what is in it."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        """Raises ConsoleError when the archive cannot be read."""
        self.label_files: dict[str, bytes] = {}
        """The content of the files that are named as label files, by path."""
        self.class_file = ""
        """A file that has the class of the image beside it, as in a WebDataset; "" where there is none."""
        self._folders: dict[str, set[str]] = {"": set()}
        self._images: dict[str, list[str]] = {}
        for entry in entries:
            if is_hidden(entry.path) or entry.path.count("/") > _MAX_PARTS:
                continue
            if isinstance(entry, FolderEntry):
                self._folder(entry.path)
            elif isinstance(entry, SourceFile):
                self._add(entry)

    def contents(self, folder: str) -> FolderContents:
        """As Tree.contents."""
        return FolderContents(tuple(sorted(self._folders.get(folder, ()))), tuple(self._images.get(folder, ())))

    def _add(self, file: SourceFile) -> None:
        folder, _, name = file.path.rpartition("/")
        self._folder(folder)
        if name.endswith(_CLASS_SUFFIX):
            self.class_file = self.class_file or file.path
        images = self._images.setdefault(folder, [])
        if len(images) < MAX_LISTED_IMAGES and is_image_name(name):
            images.append(name)
        if name in LABEL_FILE_NAMES and file.size <= MAX_LABEL_FILE_BYTES and len(self.label_files) < _MAX_LABEL_FILES:
            self.label_files[file.path] = read_location(file.location)

    def _folder(self, path: str) -> set[str]:
        found = self._folders.get(path)
        if found is None:
            found = self._folders[path] = set()
            above, _, name = path.rpartition("/")
            self._folder(above).add(name)
        return found


class TarSource:
    """A tar of images, or of tars of images. An uncompressed one is read at its members' offsets, else sequentially."""

    def __init__(self, path: Path, names: NameDecoder) -> None:
        self.path = path
        self.names = names
        self.countable = _is_plain_tar(path)

    def entries(self) -> Iterator[Entry]:
        """As ImageSource.entries. A member of an inner tar is in a folder with the name of that tar."""
        try:
            if self.countable:
                with self.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
                    yield from self._members(archive)
                    if not _has_end(archive):
                        self.names.endless.add(self.path.name, _NO_END)
            else:
                with _open_compressed(self.path) as archive:
                    yield from self._members(archive)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ConsoleError(f"{self.path} cannot be read: {error}.", remedy=_FETCH_AGAIN) from error

    def read(self, name: str) -> bytes | None:
        """As ImageSource.read: from beside the archive."""
        return read_label_file(self.path.absolute().parent / name)

    def _members(self, archive: tarfile.TarFile) -> Iterator[Entry]:
        for number, member in enumerate(archive):
            if number % _FORGET_TAR_MEMBERS_EVERY == 0:
                archive.members = []  # type: ignore[attr-defined]  # it keeps every member otherwise
            name = _relative(self.names.of_tar(member.name))
            if member.isdir():
                yield from _folder_entry(name)
            elif self.countable and member.isreg() and name.lower().endswith(".tar"):
                yield from self._inner(archive, name, member)
            else:
                yield self._entry(archive, member, name)

    def _inner(self, archive: tarfile.TarFile, path: str, outer: tarfile.TarInfo) -> Iterator[Entry]:
        """The files of a tar in the tar."""
        problem = _INNER
        try:
            with tarfile.open(fileobj=archive.extractfile(outer), mode="r:") as inner:
                for member in inner:
                    problem = _INNER_DAMAGED
                    if member.isreg() and member.offset_data + member.size > outer.size:
                        yield UnreadableEntry(path, problem)
                        return
                    if not member.isdir():
                        name = _in_folder(path, _relative(self.names.of_tar(member.name)))
                        yield self._entry(inner, member, name, start=outer.offset_data)
                if not _has_end(inner):
                    self.names.endless.add(path, _NO_END)
        except tarfile.ReadError:
            yield UnreadableEntry(path, problem)

    def _entry(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, *, start: int = 0
    ) -> SourceFile | UnreadableEntry:
        """A member of `archive`, which begins at byte `start` of the file."""
        if not member.isreg():
            return UnreadableEntry(path, "a link or a device in the archive", lost=False)
        if problem := _name_problem(path):
            return UnreadableEntry(path, problem)
        mtime_ns = int(member.mtime * 1e9)
        if self.countable:
            location = SpanLocation(str(self.path), start + member.offset_data, member.size)
            return SourceFile(path, member.size, mtime_ns, location)
        if member.size > MAX_FILE_BYTES:
            return UnreadableEntry(path, f"{member.size} bytes are too many for an image")
        stream = archive.extractfile(member)
        return SourceFile(path, member.size, mtime_ns, BytesLocation(stream.read() if stream else b""))


def _has_end(archive: tarfile.TarFile) -> bool:
    """Whether the archive ends with the empty blocks that end one.

    Raises ReadError where reading ended at a damaged header: tarfile takes it for the end of an archive.
    """
    file = archive.fileobj
    assert file is not None  # noqa: S101
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if any(block):
        raise tarfile.ReadError(f"the header at byte {archive.offset} is damaged")
    return bool(block)


def _is_plain_tar(path: Path) -> bool:
    """True for an uncompressed tar; the name does not matter."""
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False
    except OSError as error:
        raise ConsoleError(f"{path} cannot be read: {error.strerror}.") from error


def _open_compressed(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r|*")
    except TypeError as error:  # so says Python 3.11 of a gzip that is cut off within its first bytes
        raise tarfile.ReadError("its first bytes are cut off") from error


_DAMAGED_ZIP = (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError, struct.error)
"""What zipfile raises for damaged lists of members, and for names that are marked as UTF-8 and are not."""


class ZipSource:
    """A zip of images."""

    countable = True

    def __init__(self, path: Path, names: NameDecoder) -> None:
        self.path = path
        self.names = names

    def entries(self) -> Iterator[Entry]:
        """As ImageSource.entries."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.infolist():
                    name = _relative(self.names.of_zip(member))
                    if member.is_dir():
                        yield from _folder_entry(name)
                    else:
                        yield self._entry(member, name)
        except _DAMAGED_ZIP as error:
            raise ConsoleError(f"{self.path} cannot be read: {error}.", remedy=_FETCH_AGAIN) from error

    def read(self, name: str) -> bytes | None:
        """As ImageSource.read: from beside the archive."""
        return read_label_file(self.path.absolute().parent / name)

    def _entry(self, member: zipfile.ZipInfo, path: str) -> SourceFile | UnreadableEntry:
        if member.flag_bits & 1:
            return UnreadableEntry(path, "encrypted in the archive")
        if problem := _name_problem(path):
            return UnreadableEntry(path, problem)
        # A zip's times are multiples of 2 s without a zone; its CRC-32 detects a change better.
        return SourceFile(path, member.file_size, member.CRC, ZipLocation(str(self.path), member.header_offset))


class ArchivesSource:
    """The archives in a folder, each as a folder of its name: the tutorial's three tars, or ImageNet's two."""

    def __init__(self, path: Path, archives: Sequence[TarSource | ZipSource]) -> None:
        self.path = path
        self.names = archives[0].names
        self.countable = all(archive.countable for archive in archives)
        self._archives = archives

    def entries(self) -> Iterator[Entry]:
        """As ImageSource.entries."""
        for archive in self._archives:
            for entry in archive.entries():
                yield msgspec.structs.replace(entry, path=_in_folder(archive.path.name, entry.path))

    def read(self, name: str) -> bytes | None:
        """As ImageSource.read: from the folder, or beside it."""
        return find_label_file(self.path, name)


def archives_in(folder: FolderSource, names: str) -> ArchivesSource | None:
    """The archives directly in a folder; None without any. Raises ConsoleError, SettingsError."""
    decoder = NameDecoder(names)
    found: list[TarSource | ZipSource] = []
    for name in folder.names():
        path = folder.path / name
        if name.lower().endswith(ARCHIVE_SUFFIXES) and not is_hidden(name) and path.is_file():
            archive = open_source(path, names)
            assert isinstance(archive, TarSource | ZipSource)  # noqa: S101
            archive.names = decoder
            found.append(archive)
    return ArchivesSource(folder.path, found) if found else None


def _relative(name: str) -> str:
    """A name in an archive as unpacking it makes it, below the folder where that happens."""
    return name.removeprefix("./").lstrip("/")


def _folder_entry(name: str) -> Iterator[FolderEntry]:
    """The folder of a name, unless it is the top of the archive, which `tar -c .` adds."""
    if (path := name.rstrip("/")) not in {"", "."}:
        yield FolderEntry(path)


def _in_folder(archive: str, path: str) -> str:
    """The path in a folder with the archive's name, unless the archive has a folder of that name at its top."""
    folder = folder_of(archive)
    name = folder.rpartition("/")[2]
    return f"{folder[: -len(name)]}{path}" if path == name or path.startswith(f"{name}/") else f"{folder}/{path}"


def _name_problem(path: str) -> str:
    """Why the archive's member with this name cannot be read as an image; "" when it can."""
    if not path.isprintable() and any("\udc80" <= letter <= "\udcff" for letter in path):
        return _NOT_UTF8
    return _INNER if path.lower().endswith(ARCHIVE_SUFFIXES) else ""
