"""A mounted folder in place of the connector: the same samples and the same readers' work, through the file system.

The folder is what ossfs, a local disk or a file store such as CPFS shows of the bucket. The page cache of this machine
is kept out of the figures: files are read with O_DIRECT, or evicted from it before each read where that does not work.
What the mount caches itself, such as ossfs on a local disk, is part of the storage that is measured.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.text import StrEnum
from ossconsole.dataset.manifest import TRAIN
from ossconsole.training.bench.limits import CONNECTIONS
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.connector import ConnectorSettings

_ALIGNMENT = 4096  # bytes: the largest that O_DIRECT needs on the usual file systems


class PageCache(StrEnum):
    """How the page cache is kept out of a measurement."""

    DIRECT = "O_DIRECT: the page cache is bypassed"
    EVICTED = "posix_fadvise: each file is evicted from the page cache before it is read"
    KEPT = "the page cache could not be kept out: these figures may be those of memory"


@dataclass(frozen=True)
class FolderSettings(ConnectorSettings):
    """In place of a connector's settings. `skip` is the start of each key that is not part of its path in `folder`."""

    folder: Path
    skip: str
    cache: PageCache

    def open(
        self,
        kind: EndpointKind,  # noqa: ARG002 - as the connector's
        *,
        number: int = 0,  # noqa: ARG002
        total: int = 1,  # noqa: ARG002
    ) -> Any:
        """The folder, with the methods of the connector's `DataSet` that the readers call."""
        return _Folder(self)


def folder_settings(connector: ConnectorSettings, data: TrainingData, folder: Path) -> FolderSettings:
    """Finds the dataset in a mounted folder, as the bucket's root or as the dataset's prefix.

    Raises SettingsError where the first and the last sample are in neither.
    """
    prefix = f"{data.prefix.strip('/')}/"
    keys = [data.object_of(TRAIN, row) for row in (0, data.count(TRAIN) - 1)]
    for skip in ("", prefix):
        paths = [folder / key.removeprefix(skip) for key in keys]
        if all(path.is_file() for path in paths):
            return FolderSettings(
                connector.profile,
                connector.credentials,
                connector.config_path,
                connector.native_log,
                folder.absolute(),
                skip,
                page_cache(paths[0]),
            )
    raise SettingsError(
        f"{folder} does not have the dataset: {folder / keys[0]} is not a file.",
        remedy=f"Mount the bucket, or its folder {prefix}, and give that folder.",
    )


def page_cache(path: Path) -> PageCache:
    """How the page cache can be kept out for files like `path`: tries to read it. Raises SettingsError."""
    try:
        size = path.stat().st_size
        with contextlib.suppress(OSError), _opened(path, PageCache.DIRECT) as descriptor:
            _direct_read(descriptor, 0, size, memoryview(bytearray(size)))
            return PageCache.DIRECT
        with _opened(path, PageCache.EVICTED) as descriptor:
            return PageCache.KEPT if _is_cached(descriptor) else PageCache.EVICTED
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.", remedy="Check the mount.") from error


def write_synced(path: Path, data: bytes) -> None:
    """Writes a new file, until the storage below the mount has it (fsync). Raises ConsoleError."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConsoleError(
            f"{path} cannot be written: {error.strerror}.", remedy="Mount the folder so that you can write to it."
        ) from error


def read_past_cache(path: Path, size: int, cache: PageCache) -> None:
    """Reads `size` bytes and discards them. Raises ConsoleError where there are fewer."""
    try:
        count = _read(path, 0, size, memoryview(bytearray(size)), cache)
    except OSError as error:
        raise ConsoleError(f"{path} cannot be read: {error.strerror}.", remedy="Check the mount.") from error
    if count != size:
        raise ConsoleError(f"{path} has {count:,} of {size:,} bytes.", remedy="Run it again.")


def _is_cached(descriptor: int) -> bool:
    """Whether the file's first byte is in the page cache (also where the file system cannot say)."""
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _opened(path: Path, cache: PageCache) -> Iterator[int]:
    """A descriptor for reading; with EVICTED the file is not in the page cache. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if cache is PageCache.DIRECT else 0))
    try:
        if cache is PageCache.EVICTED:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        yield descriptor
    finally:
        os.close(descriptor)


def _direct_read(descriptor: int, offset: int, size: int, target: memoryview) -> int:
    """Reads whole blocks into aligned memory and copies the wanted part; returns its bytes. Raises OSError."""
    start = offset // _ALIGNMENT * _ALIGNMENT
    wanted = offset + size - start
    with mmap.mmap(-1, max(_ALIGNMENT, -(-wanted // _ALIGNMENT) * _ALIGNMENT)) as aligned:
        filled = 0
        while filled < wanted:
            with memoryview(aligned)[filled:] as rest:
                count = os.preadv(descriptor, [rest], start + filled)
            filled += count
            if count % _ALIGNMENT or not count:  # the end of the file
                break
        have = max(0, min(filled - (offset - start), size))
        target[:have] = aligned[offset - start : offset - start + have]
    return have


def _read(path: Path, offset: int, size: int, target: memoryview, cache: PageCache) -> int:
    """Reads up to `size` bytes into `target`; returns their number. Raises OSError."""
    with _opened(path, cache) as descriptor:
        if cache is PageCache.DIRECT:
            return _direct_read(descriptor, offset, size, target)
        filled = 0
        while filled < size and (count := os.preadv(descriptor, [target[filled:size]], offset + filled)):
            filled += count
        return filled


class _Folder:
    """The connector's `DataSet` on files."""

    def __init__(self, settings: FolderSettings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="mount")

    def list_from_uris(self, objects: Sequence[Any], prefetch: bool, include_errors: bool) -> Iterator[_Object]:  # noqa: ARG002 - as the connector's
        """The files of native data objects, read ahead in as many threads as the connector has connections."""
        waiting = deque(objects)
        running: deque[Future[_Object]] = deque()
        while waiting or running:
            while waiting and len(running) < CONNECTIONS:
                running.append(self._pool.submit(self._whole, waiting.popleft()))
            yield running.popleft().result()

    def open_ro(self, _bucket: str, key: str, size: int, _type: int, _label: str) -> _Range:
        """A tar."""
        return _Range(self._path(key), size, self._settings.cache)

    def _whole(self, wanted: Any) -> _Object:
        key = str(wanted.key).removeprefix(f"oss://{self._settings.profile.bucket}/")
        path = self._path(key)
        try:
            size = path.stat().st_size
            data = memoryview(bytearray(size))
            count = _read(path, 0, size, data, self._settings.cache)
        except OSError as error:
            return _Object(memoryview(b""), 0, error)
        return _Object(data[:count], size)

    def _path(self, key: str) -> Path:
        return self._settings.folder / key.removeprefix(self._settings.skip)


@dataclass(frozen=True)
class _Object:
    """A file that was read, with the methods of the connector's object."""

    data: memoryview
    size: int
    error: OSError | None = None

    def err(self) -> int:
        """The errno, 0 for none."""
        return 0 if self.error is None else self.error.errno or errno.EIO

    def error_msg(self) -> str:
        """The reason in words."""
        return "" if self.error is None else str(self.error)

    def readinto(self, target: memoryview) -> int:
        """Copies the bytes; returns their number."""
        count = min(len(target), len(self.data))
        target[:count] = self.data[:count]
        return count


class _Range:
    """A tar that is read in parts."""

    def __init__(self, path: Path, size: int, cache: PageCache) -> None:
        self._path = path
        self._size = size
        self._cache = cache
        self._at = 0

    def seek(self, offset: int, _whence: int) -> None:
        """The next read begins here."""
        self._at = offset

    def readinto(self, target: memoryview) -> int:
        """Reads a part; returns its bytes. Raises RuntimeError, as the connector does."""
        try:
            return _read(self._path, self._at, min(len(target), self._size - self._at), target, self._cache)
        except OSError as error:
            raise RuntimeError(f"{error} errno={error.errno}") from error
