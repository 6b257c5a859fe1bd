"""Large objects in parts: resumable multipart uploads and downloads, and unfinished uploads in a bucket."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fastcrc
import msgspec

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import decode_json, read_private, set_aside, state_dir, write_private
from ossconsole.config.text import safe_text
from ossconsole.storage.errors import StorageError
from ossconsole.storage.objects import ObjectInfo

if TYPE_CHECKING:
    import oss2

    from ossconsole.storage.client import ObjectStore

log = logging.getLogger(__name__)

PART_SIZE = 8 << 20
MAX_PARTS = 10_000  # OSS's limit
_NO_SUCH_UPLOAD = "NoSuchUpload"


class _ResumeState(msgspec.Struct):
    """What a later attempt needs: the upload, which file it sends, and the ETags with which OSS answered its parts."""

    upload_id: str
    size: int
    mtime_ns: int
    part_size: int
    etags: dict[int, str] = {}


class ResumableUpload:
    """The parts of one file: `send` each of `numbers` from any thread, then `complete`.

    Parts that an earlier attempt of the unchanged file has sent are not sent again.
    """

    def __init__(self, store: ObjectStore, path: Path, key: str, part_size: int = PART_SIZE) -> None:
        """Starts or resumes the upload. Raises OSError, StorageError."""
        self.key = key
        self._store = store
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(self._fd)
            self.size = status.st_size
            part_size = max(part_size, -(-self.size // MAX_PARTS))
            self._memory_path = _memory_path(store, path, key)
            self._memory, self._there = self._resume(_ResumeState("", self.size, status.st_mtime_ns, part_size))
        except BaseException:
            os.close(self._fd)
            raise
        self._lock = threading.Lock()
        self._sent: list[oss2.models.PartInfo] = []
        self._claimed = False

    @property
    def numbers(self) -> range:
        """The parts, from 1."""
        return range(1, -(-self.size // self._memory.part_size) + 1)

    def claim(self) -> bool:
        """True for one caller, once every part is in the bucket: that caller completes the upload."""
        with self._lock:
            if self._claimed or len(self._sent) < len(self.numbers):
                return False
            self._claimed = True
            return True

    def send(self, number: int, before: Callable[[int], None] = lambda _: None) -> int:
        """Sends one part, unless an earlier attempt has; returns its bytes. Raises OSError, StorageError.

        `before` is called with the number of bytes just before they are sent.
        """
        import oss2  # not for the screens that import this module

        start = (number - 1) * self._memory.part_size
        data = os.pread(self._fd, min(self._memory.part_size, self.size - start), start)
        if len(data) != min(self._memory.part_size, self.size - start):
            raise self._changed()
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest().upper()
        etag = self._there.get(number, "")
        if not etag or etag not in {self._memory.etags.get(number), md5}:
            before(len(data))
            action = f"writing part {number} of {self._store.uri(safe_text(self.key))}"
            upload = functools.partial(self._store.sdk.upload_part, self.key, self._memory.upload_id, number, data)
            etag = self._store.call(action, upload).etag.upper()

        part = oss2.models.PartInfo(number, etag, size=len(data), part_crc=fastcrc.crc64.xz(data))
        with self._lock:
            self._sent.append(part)
            if etag != md5 and self._memory.etags.get(number) != etag:
                # Encrypted by KMS, for example: only this record says that the part is the file's.
                self._memory.etags[number] = etag
                self._remember()
        return len(data)

    def complete(self) -> None:
        """Completes the object and compares its CRC64 with the file's.

        Raises ConsoleError when the file was changed during the upload, StorageError.
        """
        status = self._path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self._memory.mtime_ns):
            self._give_up(self._memory.upload_id)
            raise self._changed()
        action = f"putting {self._store.uri(safe_text(self.key))} together"
        complete = functools.partial(
            self._store.sdk.complete_multipart_upload, self.key, self._memory.upload_id, self._sent
        )
        try:
            self._store.call(action, complete)
        except StorageError as error:
            # The answer to an earlier attempt may have been lost: then the upload has ended and the object exists.
            if error.code != _NO_SUCH_UPLOAD or self._store.head(self.key).crc64 != self._crc64():
                raise
        self._forget()

    def close(self) -> None:
        """Closes the file; an upload that is not complete can be resumed."""
        os.close(self._fd)

    def _give_up(self, upload_id: str) -> None:
        """Aborts an upload whose parts are of no use any more, but would be billed."""
        try:
            abort_upload(self._store, UnfinishedUpload(self.key, upload_id, 0, 0, 0))
        except StorageError as error:
            log.warning("The parts of an upload stay in the bucket: %s", error)

    def _forget(self) -> None:
        try:
            self._memory_path.unlink(missing_ok=True)
        except OSError as error:  # a later upload notices that this one has ended
            log.warning("%s cannot be deleted: %s", self._memory_path, error.strerror)

    def _crc64(self) -> int:
        import oss2

        return int(oss2.utils.calc_obj_crc_from_parts(sorted(self._sent, key=lambda part: part.part_number)))

    def _changed(self) -> ConsoleError:
        return ConsoleError(f"{safe_text(str(self._path))} was changed during its upload.", remedy="Upload it again.")

    def _resume(self, fresh: _ResumeState) -> tuple[_ResumeState, dict[int, str]]:
        """The upload to continue and the ETags of its parts by number; a new one unless the file is unchanged."""
        known = self._remembered()
        if known is not None and (known.size, known.mtime_ns) == (fresh.size, fresh.mtime_ns):
            try:
                parts = _list_parts(self._store, self.key, known.upload_id)
                return known, {part.part_number: part.etag.strip('"').upper() for part in parts}
            except StorageError as error:
                if error.code != _NO_SUCH_UPLOAD:
                    raise
        elif known is not None:  # of the file as it was before
            self._give_up(known.upload_id)
        begin = functools.partial(self._store.sdk.init_multipart_upload, self.key)
        fresh.upload_id = self._store.call(f"beginning {self._store.uri(safe_text(self.key))}", begin).upload_id
        self._memory = fresh
        self._remember()
        return fresh, {}

    def _remember(self) -> None:
        try:
            write_private(self._memory_path, msgspec.json.encode(self._memory))
        except SettingsError as error:  # only a later attempt needs it
            log.warning("This upload cannot be resumed if it ends early: %s", error)

    def _remembered(self) -> _ResumeState | None:
        try:
            data = read_private(self._memory_path)
            return None if data is None else decode_json(data, _ResumeState)
        except SettingsError as error:
            log.warning("An earlier attempt of this upload cannot be resumed: %s", error)
        except msgspec.DecodeError:
            with contextlib.suppress(SettingsError):
                log.warning("A damaged resume file of an earlier upload is kept as %s", set_aside(self._memory_path))
        return None


def _memory_path(store: ObjectStore, path: Path, key: str) -> Path:
    name = hashlib.sha256(f"{store.profile.bucket}\n{key}\n{path.absolute()}".encode()).hexdigest()[:24]
    return state_dir() / "uploads" / f"{name}.parts.json"


class UnfinishedUpload(msgspec.Struct, frozen=True):
    """A multipart upload that is neither complete nor aborted. `begun` in seconds since the epoch (UTC)."""

    key: str
    upload_id: str
    begun: int
    parts: int
    bytes: int


def list_uploads(store: ObjectStore, prefix: str = "") -> Iterator[UnfinishedUpload]:
    """The unfinished uploads below `prefix`, each with the count and bytes of its parts (one more request each)."""
    key_marker = upload_marker = ""
    while True:
        page = store.call(
            f"listing the unfinished uploads of {store.uri(safe_text(prefix))}",
            functools.partial(
                store.sdk.list_multipart_uploads, prefix, key_marker=key_marker, upload_id_marker=upload_marker
            ),
        )
        for upload in page.upload_list:
            try:
                sizes = [part.size for part in _list_parts(store, upload.key, upload.upload_id)]
            except StorageError as error:
                if error.code != _NO_SUCH_UPLOAD:
                    raise
                continue  # it has ended since the listing
            yield UnfinishedUpload(upload.key, upload.upload_id, upload.initiation_date, len(sizes), sum(sizes))
        if not page.is_truncated:
            return
        key_marker, upload_marker = page.next_key_marker, page.next_upload_id_marker


def abort_upload(store: ObjectStore, upload: UnfinishedUpload) -> None:
    """Ends the upload and frees its parts; it may have ended meanwhile. Raises StorageError."""
    try:
        store.call(
            f"aborting an upload of {store.uri(safe_text(upload.key))}",
            lambda: store.sdk.abort_multipart_upload(upload.key, upload.upload_id),
        )
    except StorageError as error:
        if error.code != _NO_SUCH_UPLOAD:
            raise


def _list_parts(store: ObjectStore, key: str, upload_id: str) -> Iterator[oss2.models.PartInfo]:
    marker = ""
    while True:
        page = store.call(
            f"listing the parts of an upload of {store.uri(safe_text(key))}",
            functools.partial(store.sdk.list_parts, key, upload_id, marker=marker),
        )
        yield from page.parts
        if not page.is_truncated:
            return
        marker = page.next_marker


_READ_SIZE = 4 << 20


class _Journal(msgspec.Struct):
    """The parts on the disk, and the version of the object that they belong to."""

    etag: str
    size: int
    part_size: int
    done: list[int]


class ChecksumError(ConsoleError):
    """The bytes on disk differ from the object's CRC64."""


class ResumableFile:
    """The parts of one object, written by many threads into a hidden partial file beside `target`."""

    def __init__(self, target: Path, info: ObjectInfo, part_size: int = PART_SIZE) -> None:
        """Opens or resumes the partial file. Raises ConsoleError when another download is writing it, OSError."""
        self.target = target
        self.info = info
        self._part_size = part_size
        self._data_path = partial_path(target)
        self._journal_path = self._data_path.with_suffix(".ossconsole-parts")
        self._lock = threading.Lock()
        self._fd = open_partial(target)
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
        """The number of parts."""
        return -(-self.info.size // self._part_size)

    @property
    def resumed_bytes(self) -> int:
        """The bytes that earlier attempts have fetched."""
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
        """Writes all of `data` at `offset`. Raises OSError."""
        write_all(self._fd, data, offset)

    def part_done(self, part: int) -> bool:
        """Records a part as written; True when it was the last missing one. Raises OSError."""
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
        """Records that a part failed; after the last part the partial file is closed."""
        self._settle()

    def _settle(self) -> None:
        with self._lock:
            self._unsettled -= 1
            over = self._unsettled == 0 and bool(self._waiting)
        if over:
            self.close()

    def commit(self) -> None:
        """Compares the CRC64 and renames the file to `target`. Raises ChecksumError; the next attempt starts over."""
        if self.info.crc64 is not None and file_crc64(self._data_path) != self.info.crc64:
            self._journal_path.unlink(missing_ok=True)
            self.close()
            raise ChecksumError(
                f"{safe_text(self.info.key)} arrived with another CRC64.", remedy="Try again: the download starts over."
            )
        os.fsync(self._fd)
        os.utime(self._fd, (self.info.modified, self.info.modified))
        self._data_path.replace(self.target)
        self._journal_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Closes the partial file, which stays for a later attempt unless it was committed."""
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


def file_crc64(path: Path) -> int:
    """The CRC64 of a file, as OSS computes it. Raises OSError."""
    crc = 0
    with path.open("rb") as file:
        while data := file.read(_READ_SIZE):
            crc = fastcrc.crc64.xz(data, crc)
    return crc


def partial_path(target: Path) -> Path:
    """The hidden file beside `target` that a download writes first; the same for every attempt."""
    stem = hashlib.sha256(target.name.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return target.with_name(f".{stem}.ossconsole-part")


def is_partial(path: Path) -> bool:
    """Whether it is a file that an unfinished download has left."""
    return path.name.startswith(".") and path.suffix in {".ossconsole-part", ".ossconsole-parts", ".ossconsole-new"}


def open_partial(target: Path) -> int:
    """Opens the partial file of `target` for this download alone. Raises ConsoleError when another one has it."""
    path = partial_path(target)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConsoleError(
                f"Another download is writing {safe_text(str(target))}.",
                remedy="Wait for it, or select another folder.",
            ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # the other download renamed it between the opening and the lock


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Writes every byte at the offset; one system call may write only some of them. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
