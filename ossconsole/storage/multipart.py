"""PartedUpload: one large file going up in parts, by many threads, which a later try goes on with."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import fastcrc
import msgspec
import oss2

from ossconsole.config.decoding import decode_json
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import read_private, set_aside, write_private
from ossconsole.config.paths import state_dir
from ossconsole.config.text import safe_text
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError

log = logging.getLogger(__name__)

PART_SIZE = 8 << 20
MAX_PARTS = 10_000  # OSS's limit
_NO_SUCH_UPLOAD = "NoSuchUpload"


class _Memory(msgspec.Struct):
    """What a later try needs: the upload, and the file it is of."""

    upload_id: str
    size: int
    mtime_ns: int
    part_size: int


class PartedUpload:
    """The parts of one file; `send` each of `numbers` from any thread, then `complete`, or `abort`.

    What an earlier try has sent is compared with the file, part by part, and not sent again.
    """

    def __init__(self, store: ObjectStore, path: Path, key: str, part_size: int = PART_SIZE) -> None:
        """Begins the upload, or goes on with it. Raises OSError, StorageError."""
        self.key = key
        self._store = store
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(self._fd)
            self.size = status.st_size
            part_size = max(part_size, -(-self.size // MAX_PARTS))
            self._memory_path = _memory_path(store, path, key)
            self._memory, self._there = self._resume(_Memory("", self.size, status.st_mtime_ns, part_size))
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
        """True for one caller, once every part is in the bucket: that one completes the upload."""
        with self._lock:
            if self._claimed or len(self._sent) < len(self.numbers):
                return False
            self._claimed = True
            return True

    def send(self, number: int, before: Callable[[int], None] = lambda _: None) -> int:
        """Sends one part, unless an earlier try has, and gives its length. Raises OSError, StorageError.

        `before` is called with the length when it is about to be sent.
        """
        start = (number - 1) * self._memory.part_size
        data = os.pread(self._fd, min(self._memory.part_size, self.size - start), start)
        if len(data) != min(self._memory.part_size, self.size - start):
            raise self._changed()
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest().upper()
        if self._there.get(number) != etag:
            before(len(data))
            action = f"writing part {number} of {self._store.uri(safe_text(self.key))}"
            upload = functools.partial(self._store.sdk.upload_part, self.key, self._memory.upload_id, number, data)
            etag = self._store.call(action, upload).etag
        part = oss2.models.PartInfo(number, etag, size=len(data), part_crc=fastcrc.crc64.xz(data))
        with self._lock:
            self._sent.append(part)
        return len(data)

    def complete(self) -> None:
        """Makes the object out of the parts, and compares its CRC64 with the file's.

        Raises ConsoleError when the file was changed meanwhile, StorageError.
        """
        status = self._path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self._memory.mtime_ns):
            raise self._changed()
        action = f"putting {self._store.uri(safe_text(self.key))} together"
        complete = functools.partial(
            self._store.sdk.complete_multipart_upload, self.key, self._memory.upload_id, self._sent
        )
        try:
            self._store.call(action, complete)
        except StorageError as error:
            # The answer to an earlier try may have been lost: then the upload is gone and the object there.
            if error.code != _NO_SUCH_UPLOAD or self._store.head(self.key).crc64 != self._crc64():
                raise
        self._forget()

    def abort(self) -> None:
        """Gives the upload up and frees its parts. Raises StorageError."""
        self._forget()
        self._store.call(
            f"aborting the upload of {self._store.uri(safe_text(self.key))}",
            lambda: self._store.sdk.abort_multipart_upload(self.key, self._memory.upload_id),
        )

    def close(self) -> None:
        os.close(self._fd)

    def _forget(self) -> None:
        try:
            self._memory_path.unlink(missing_ok=True)
        except OSError as error:  # a later upload finds that it is over
            log.warning("%s cannot be deleted: %s", self._memory_path, error.strerror)

    def _crc64(self) -> int:
        return int(oss2.utils.calc_obj_crc_from_parts(sorted(self._sent, key=lambda part: part.part_number)))

    def _changed(self) -> ConsoleError:
        return ConsoleError(
            f"{safe_text(str(self._path))} was changed while it was uploaded.", remedy="Upload it again."
        )

    def _resume(self, fresh: _Memory) -> tuple[_Memory, dict[int, str]]:
        """The upload to go on with and the ETags of its parts; a new one where there is none of this very file."""
        known = self._remembered()
        if known is not None and (known.size, known.mtime_ns) == (fresh.size, fresh.mtime_ns):
            try:
                return known, self._parts(known.upload_id)
            except StorageError as error:
                if error.code != _NO_SUCH_UPLOAD:
                    raise
        begin = functools.partial(self._store.sdk.init_multipart_upload, self.key)
        fresh.upload_id = self._store.call(f"beginning {self._store.uri(safe_text(self.key))}", begin).upload_id
        try:
            write_private(self._memory_path, msgspec.json.encode(fresh))
        except SettingsError as error:  # of use to a later try alone
            log.warning("An upload that ends early will start over: %s", error)
        return fresh, {}

    def _remembered(self) -> _Memory | None:
        try:
            data = read_private(self._memory_path)
            return None if data is None else decode_json(data, _Memory)
        except SettingsError as error:
            log.warning("An earlier try of this upload is not known: %s", error)
        except msgspec.DecodeError:
            with contextlib.suppress(SettingsError):
                log.warning("A damaged note of an earlier upload is kept as %s", set_aside(self._memory_path))
        return None

    def _parts(self, upload_id: str) -> dict[int, str]:
        found: dict[int, str] = {}
        marker = ""
        while True:
            page = self._store.call(
                f"listing the parts of {self._store.uri(safe_text(self.key))}",
                functools.partial(self._store.sdk.list_parts, self.key, upload_id, marker=marker),
            )
            found |= {part.part_number: part.etag.strip('"').upper() for part in page.parts}
            if not page.is_truncated:
                return found
            marker = page.next_marker


def _memory_path(store: ObjectStore, path: Path, key: str) -> Path:
    name = hashlib.sha256(f"{store.profile.bucket}\n{key}\n{path.absolute()}".encode()).hexdigest()[:24]
    return state_dir() / "uploads" / f"{name}.parts.json"
