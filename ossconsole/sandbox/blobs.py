"""Blob files: the bytes of objects and parts, each written once under a name of its own and then only read.

A blob counts when the index names it. One that no index row names (the process was killed between the two) is
removed when the folder is next opened.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from fastcrc import crc64

from ossconsole.sandbox.records import Blob

_COPY_BYTES = 1 << 20


class BlobWriter:
    """Takes the bytes of one blob as they arrive; `finish` or `discard` ends it."""

    def __init__(self, path: Path, blob_id: str) -> None:
        self._path = path
        self._id = blob_id
        self._file: BinaryIO = path.open("xb", buffering=0)
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc = 0
        self.size = 0

    def write(self, data: bytes) -> None:
        """Raises OSError, also when the disk is full."""
        _write(self._file, data)
        self._md5.update(data)
        self._crc = crc64.xz(data, self._crc)
        self.size += len(data)

    def md5(self) -> bytes:
        return self._md5.digest()

    def finish(self) -> Blob:
        self._file.close()
        return Blob(self._id, self.size, self._md5.hexdigest().upper(), self._crc)

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class BlobFolder:
    """The folder of blob files, spread over 256 subfolders."""

    def __init__(self, root: Path) -> None:
        self._root = root
        for number in range(256):
            (root / f"{number:02x}").mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, blob_id: str) -> str:
        return f"{self._root}/{blob_id[:2]}/{blob_id}"

    def writer(self) -> BlobWriter:
        blob_id = secrets.token_hex(16)
        return BlobWriter(Path(self.path(blob_id)), blob_id)

    def link(self, blob_id: str) -> str:
        """A second blob with the same bytes, at no cost; returns its id."""
        copy = secrets.token_hex(16)
        Path(self.path(copy)).hardlink_to(self.path(blob_id))
        return copy

    def join(self, blobs: Iterable[Blob]) -> Blob:
        """One blob of the bytes of many, in order. Reads everything: meant for a thread. Raises OSError."""
        return self._gather((blob.id, 0, blob.size) for blob in blobs)

    def slice(self, blob_id: str, start: int, length: int) -> Blob:
        """A blob of some bytes of another. Meant for a thread. Raises OSError."""
        return self._gather([(blob_id, start, length)])

    def _gather(self, pieces: Iterable[tuple[str, int, int]]) -> Blob:
        writer = self.writer()
        try:
            for blob_id, start, length in pieces:
                with Path(self.path(blob_id)).open("rb", buffering=0) as file:
                    file.seek(start)
                    _copy(file, writer, length)
        except BaseException:
            writer.discard()
            raise
        return writer.finish()

    def append(self, blob: Blob, added: str) -> Blob:
        """`blob` longer by the bytes of `added`, in place: its readers go no further than the size in the index."""
        size, crc = blob.size, blob.crc64
        with Path(self.path(blob.id)).open("r+b", buffering=0) as target, Path(self.path(added)).open("rb") as source:
            target.seek(size)
            while data := source.read(_COPY_BYTES):
                _write(target, data)
                size, crc = size + len(data), crc64.xz(data, crc)
        return Blob(blob.id, size, "", crc)

    def remove(self, blob_ids: Iterable[str]) -> None:
        for blob_id in blob_ids:
            Path(self.path(blob_id)).unlink(missing_ok=True)

    def sweep(self, known: set[str]) -> int:
        """Remove the blobs that are not in `known`; returns how many there were."""
        found = {entry.name for number in range(256) for entry in os.scandir(self._root / f"{number:02x}")}
        self.remove(found - known)
        return len(found - known)


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _copy(source: BinaryIO, writer: BlobWriter, length: int) -> None:
    left = length
    while left:
        data = source.read(min(left, _COPY_BYTES))
        if not data:
            raise OSError(f"a blob is {left} bytes shorter than the index says")
        writer.write(data)
        left -= len(data)
