"""The request log: one JSON object per line, in `sandbox.log` of the sandbox's folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ossconsole.config.files import open_private

_MAX_BYTES = 64 << 20
_SECRET_PARAMETERS = frozenset({"x-oss-signature", "Signature", "x-oss-security-token", "security-token"})


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `time` is Unix seconds, `ms` from the request line to the last byte of the reply."""

    time: float
    endpoint: str
    method: str
    operation: str
    bucket: str
    key: str
    query: dict[str, str]
    status: int
    bytes: int
    user_agent: str
    request_id: str
    ms: float
    code: str = ""
    """The error code, empty for a success."""
    fault: str = ""
    """The fault that befell it, empty for none."""


def shown_query(query: dict[str, str]) -> dict[str, str]:
    """The parameters without signatures and tokens: a presigned URL is a secret while it lasts."""
    return {name: value for name, value in query.items() if name not in _SECRET_PARAMETERS}


class RequestLog:
    """Appends records; at 64 MiB the file becomes `sandbox.log.1` and a new one begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()
        self._encoder = msgspec.json.Encoder()

    def write(self, record: RequestRecord) -> None:
        line = self._encoder.encode(record) + b"\n"
        # On a full disk requests are still answered, as the service's own log would not stop it.
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line)
        self._size += len(line)
        if self._size > _MAX_BYTES:
            with contextlib.suppress(OSError):
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self.close()
            self._open()

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> None:
        self._descriptor = open_private(self._path)
        self._size = os.fstat(self._descriptor).st_size


def read_log(path: Path) -> Iterator[RequestRecord]:
    """The records of a log, oldest first; lines that are none (what the process said on stderr) are passed over."""
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"{") and line.endswith(b"}\n"):
                yield msgspec.json.decode(line, type=RequestRecord)
