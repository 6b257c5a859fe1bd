"""PartedFile: one large object coming in as parts, in a hidden file that a later try goes on with."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from pathlib import Path

import fastcrc
import msgspec

from ossconsole.config.decoding import decode_json
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import safe_text
from ossconsole.storage.objects import ObjectInfo

PART_SIZE = 8 << 20
_READ_SIZE = 4 << 20


class _Journal(msgspec.Struct):
    """Which parts of which version of the object are on disk."""

    etag: str
    size: int
    part_size: int
    done: list[int]


class ChecksumError(ConsoleError):
    """The bytes on disk differ from the object's CRC64."""


class PartedFile:
    """The parts of one object, written by many threads into a hidden file beside `target`."""

    def __init__(self, target: Path, info: ObjectInfo, part_size: int = PART_SIZE) -> None:
        """Opens or goes on with the hidden file. Raises ConsoleError when another download is writing it, OSError."""
        self.target = target
        self.info = info
        self._part_size = part_size
        self._data_path = hidden_path(target)
        self._journal_path = self._data_path.with_suffix(".ossconsole-parts")
        self._lock = threading.Lock()
        self._fd = open_hidden(target)
        try:
            self._done = self._resume()
            os.ftruncate(self._fd, info.size)
        except BaseException:
            self.close()
            raise
        self._waiting = set(range(self.part_count)) - self._done
        self._unsettled = len(self._waiting)

    @property
    def part_count(self) -> int:
        return -(-self.info.size // self._part_size)

    @property
    def resumed_bytes(self) -> int:
        """What earlier tries had brought in."""
        return sum(self.span(part)[1] for part in self._done)

    @property
    def waiting(self) -> list[int]:
        """The parts still to be fetched."""
        return sorted(self._waiting)

    def span(self, part: int) -> tuple[int, int]:
        """The offset and the length of a part."""
        start = part * self._part_size
        return start, min(self._part_size, self.info.size - start)

    def write(self, offset: int, data: bytes) -> None:
        write_all(self._fd, data, offset)

    def part_done(self, part: int) -> bool:
        """Notes a part as written; True when that made it whole."""
        with self._lock:
            self._done.add(part)
            self._waiting.discard(part)
            journal = _Journal(self.info.etag, self.info.size, self._part_size, sorted(self._done))
            fresh = self._journal_path.with_suffix(".ossconsole-new")
            fresh.write_bytes(msgspec.json.encode(journal))
            fresh.replace(self._journal_path)
            is_whole = not self._waiting
        self._settle()
        return is_whole

    def part_failed(self) -> None:
        """Notes that a part will not come; after the last part the hidden file is let go of."""
        self._settle()

    def _settle(self) -> None:
        with self._lock:
            self._unsettled -= 1
            over = self._unsettled == 0 and bool(self._waiting)
        if over:
            self.close()

    def commit(self) -> None:
        """Compares the CRC64 and moves the file to its place. Raises ChecksumError, after which a try starts over."""
        if self.info.crc64 is not None and self._crc64() != self.info.crc64:
            self._journal_path.unlink(missing_ok=True)
            self.close()
            raise ChecksumError(
                f"{safe_text(self.info.key)} arrived with another CRC64.", remedy="Try again: it starts over."
            )
        os.fsync(self._fd)
        os.utime(self._fd, (self.info.modified, self.info.modified))
        self._data_path.replace(self.target)
        self._journal_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Lets go of the hidden file, which stays for a later try unless it was committed."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _resume(self) -> set[int]:
        try:
            journal: _Journal = decode_json(self._journal_path.read_bytes(), _Journal)
        except (FileNotFoundError, msgspec.DecodeError):
            return set()
        same = (journal.etag, journal.size, journal.part_size) == (self.info.etag, self.info.size, self._part_size)
        if not same or os.fstat(self._fd).st_size != self.info.size:
            return set()
        return {part for part in journal.done if 0 <= part < self.part_count}

    def _crc64(self) -> int:
        crc, offset = 0, 0
        while data := os.pread(self._fd, _READ_SIZE, offset):
            crc = fastcrc.crc64.xz(data, crc)
            offset += len(data)
        return crc


def hidden_path(target: Path) -> Path:
    """The file beside `target` that it comes in as; the same in every try."""
    stem = hashlib.sha256(target.name.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return target.with_name(f".{stem}.ossconsole-part")


def open_hidden(target: Path) -> int:
    """Opens the hidden file of `target` for this download alone. Raises ConsoleError when another one has it."""
    path = hidden_path(target)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConsoleError(
                f"Another download is writing {safe_text(str(target))}.",
                remedy="Wait for it, or choose another folder.",
            ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # the other download moved it to its place between the opening and the lock


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Writes every byte at the offset, however little the system takes at once."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
