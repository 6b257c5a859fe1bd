"""The run record: one JSON Lines file per run, written as it happens and readable while it grows or after a crash."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import make_folder, open_regular, reason, state_dir, write_remedy
from ossconsole.config.text import counted
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event

SUFFIX = ".jsonl"
# A line of ours is a few hundred bytes; anything this long is not ours and must not fill the memory.
MAX_LINE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 18
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Frequent and cheap to lose in a power cut; everything else is synced to the disk at once.
_UNSYNCED = (events.Step, events.Telemetry, events.InfoEvent)


class RecordError(ConsoleError):
    """A run record cannot be opened or read."""


def runs_dir() -> Path:
    """The folder of the run records; it may be missing."""
    return state_dir() / "runs"


def new_run_id(now: float | None = None) -> str:
    """A fresh id that sorts by start time (UTC)."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{stamp}-{secrets.token_hex(2)}"


def record_path(run: str, directory: Path | None = None) -> Path:
    """Where the record of `run` lies. Raises SettingsError where `run` is not a run id."""
    if not _RUN_ID.fullmatch(run):
        raise SettingsError(f"{run!r} is not a run id.", remedy="`ossconsole status` names the newest run.")
    return (directory or runs_dir()) / f"{run}{SUFFIX}"


class RunRecord:
    """Appends events to a record (0600), one write per line, from any thread.

    A disk that fails must not end a run: `append` never raises, `lost` counts the events that are missing and
    `problem` says why (empty while all is well).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.problem = ""
        self._lock = threading.Lock()
        self._torn = False
        make_folder(path.parent)
        try:
            # Never waits for a fifo's reader.
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise RecordError(
                f"The run record {path} cannot be written: {reason(error)}.", remedy=write_remedy(path, error)
            ) from error

    def append(self, event: Event) -> None:
        """Write `event` as one line; warnings, state changes and results are on the disk when this returns."""
        line = events.encode(event) + b"\n"
        with self._lock:
            try:
                self._write(line)
                if not isinstance(event, _UNSYNCED):
                    os.fsync(self._fd)
            except OSError as error:
                self.lost += 1
                self.problem = f"The run record {self.path} lacks {counted(self.lost, 'event')}: {error.strerror}."

    def _write(self, line: bytes) -> None:
        # A full disk can cut a line; the next one then starts on its own line, so that only the cut one is lost.
        data = b"\n" + line if self._torn else line
        written = os.write(self._fd, data)
        if written < len(data):
            self._torn = True
            raise OSError(28, os.strerror(28))
        self._torn = False

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RecordReader:
    """Reads a record piece by piece, also while it grows.

    A line without its end is left for the next `poll`; `skipped` counts the lines that are no known event (a crash
    cut them, or a newer version wrote them).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = 0
        self._pending = b""
        self._overlong = False
        try:
            self._fd = open_regular(path)
        except OSError as error:
            raise RecordError(
                f"The run record {path} cannot be read: {error.strerror}.", remedy="`ossconsole status` names a run."
            ) from error

    def poll(self) -> list[Event]:
        """The next events, some thousand at most; empty when there is nothing new."""
        while block := self._read():
            *lines, self._pending = (self._pending + block).split(b"\n")
            if self._overlong and lines:
                del lines[0]
                self._overlong = False
            if len(self._pending) > MAX_LINE_BYTES:
                self.skipped += not self._overlong
                self._overlong = True
                self._pending = b""
            found = [event for line in lines if line.strip() and (event := self._decode(line))]
            if found:
                return found
        return []

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _BLOCK_BYTES)
        except OSError as error:
            raise RecordError(f"The run record {self.path} cannot be read: {error.strerror}.") from error

    def finish(self) -> list[Event]:
        """What a line that never got its end holds: one event, or none where a crash cut it."""
        line, self._pending = self._pending, b""
        event = None if self._overlong or not line.strip() else self._decode(line)
        return [] if event is None else [event]

    def _decode(self, line: bytes) -> Event | None:
        try:
            return events.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.skipped += 1
            return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path) -> Iterator[Event]:
    """Every event of a record, in constant memory. Raises RecordError when it cannot be read."""
    with RecordReader(path) as reader:
        while found := reader.poll():
            yield from found
        yield from reader.finish()
