"""The checkpoint writer: a process of its own, because the connector may retry without end or abort its process."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import recv_handle, send_handle

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.training.child import become_child
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.shared_memory import SPAWN

_STOP_TIMEOUT_S = 5.0
_PIECE = 4 << 20  # bytes; small enough to show how a slow write goes on


class CheckpointWriter:
    """Writes bytes to the bucket with the connector, through the standard endpoint.

    The process starts with the first checkpoint and serves the run; it is replaced when it died or had to be ended.
    """

    def __init__(self, connector: ConnectorSettings) -> None:
        self._connector = connector
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def write(self, key: str, data: bytes, timeout_s: float, on_written: Callable[[int], None]) -> None:
        """Writes `data` to `key`, whose content is deleted first; `on_written` gets how many bytes the connector took.

        Raises ConsoleError, after at most `timeout_s`.
        """
        uri = f"oss://{self._connector.profile.bucket}/{key}"
        try:
            pipe = self._started()
        except OSError as error:
            self.close()
            raise ConsoleError(
                f"No process could be started to write the checkpoint {uri}: {error.strerror}.",
                remedy="Free memory or descriptors (`ulimit -n`); the run goes on, and the next one is tried as usual.",
            ) from error
        try:
            _send(pipe, key, data)
            problem = _answer(pipe, time.monotonic() + timeout_s, on_written)
        except (EOFError, OSError) as error:
            self.close()
            raise ConsoleError(
                f"The process that wrote the checkpoint {uri} ended unexpectedly.",
                remedy="The connector's log tells more; the run goes on, and the next checkpoint is tried as usual.",
            ) from error
        if problem is None:
            self.close()
            raise ConsoleError(
                f"The checkpoint {uri} was not written within {timeout_s:g} s.",
                remedy="Check the standard endpoint with `ossconsole doctor`; the run goes on.",
            )
        if problem:
            raise ConsoleError(
                f"The connector did not write the checkpoint {uri}: {problem}.",
                remedy="`ossconsole doctor` shows what the key may do; the run goes on.",
            )

    def close(self) -> None:
        """Ends the process."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.kill()
            self._process.join(_STOP_TIMEOUT_S)
            self._process = None

    def _started(self) -> Connection:
        if self._process is not None and not self._process.is_alive():
            self.close()
        if self._pipe is None:
            self._pipe, theirs = SPAWN.Pipe()
            with theirs:
                process = SPAWN.Process(
                    target=_serve, args=(self._connector, theirs), name="checkpoint-writer", daemon=True
                )
                process.start()
            self._process = process
        return self._pipe


def _answer(pipe: Connection, deadline: float, on_written: Callable[[int], None]) -> str | None:
    """What the process says in the end: "" or why it failed; None where it says nothing until the deadline."""
    while pipe.poll(max(0.0, deadline - time.monotonic())):
        said: int | str = pipe.recv()
        if isinstance(said, str):
            return said
        on_written(said)
    return None


def _send(pipe: Connection, key: str, data: bytes) -> None:
    """Hands `data` over as a file in memory: a write to the pipe of a process that does not read would block."""
    descriptor = os.memfd_create("ossconsole-checkpoint")
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        pipe.send(key)
        send_handle(pipe, descriptor, None)


def _receive(pipe: Connection) -> tuple[str, mmap.mmap]:
    """Raises EOFError when the pipe is closed."""
    key: str = pipe.recv()
    descriptor = recv_handle(pipe)
    with contextlib.closing(os.fdopen(descriptor, "rb")):
        return key, mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)


def _serve(connector: ConnectorSettings, pipe: Connection) -> None:
    """Answers each key and its data with the bytes written so far, then "" or why it failed, until the pipe closes."""
    become_child(connector.native_log)
    opened = None
    while True:
        try:
            key, data = _receive(pipe)
        except (EOFError, OSError):
            return
        try:
            opened = opened or connector.open(EndpointKind.STANDARD)
            # As OssCheckpoint.writer does.
            with opened.open_wo(connector.profile.bucket, key) as writer:
                for start in range(0, len(data), _PIECE):
                    writer.write(data[start : start + _PIECE])
                    pipe.send(min(start + _PIECE, len(data)))
        except RuntimeError as error:  # the connector's only exception
            pipe.send(str(error) or "it gave no reason")
        else:
            pipe.send("")
