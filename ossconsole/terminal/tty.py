"""Owns the terminal: only the App draws on the screen; all other prints, of native code too, go to a log."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import io
import os
import re
import select
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ossconsole.config.credentials import start_resource_tracker
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import open_private, unwritable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MIN_COLUMNS, MIN_ROWS = 60, 18
"""The smallest size in which the console shows its screens; in a smaller one it asks for a larger window."""

_LEAST_COLUMNS, _LEAST_ROWS = 20, 5  # for that request
_LOG_LIMIT_BYTES = 4 << 20
_RETRY_MS = 250
_RESTORE_MS = 500
# Private modes that are set by default: line wrap and the cursor.
_SET_BY_DEFAULT = frozenset({"7", "25"})
_MODE = re.compile(r"\x1b\[\?([0-9]+)([hl])|\x1b\[([<>])[0-9]*u")
_HEADLESS = "Without one, use `ossconsole train`, `demo`, `upload`, `ls` or `status`: they need no terminal."


def check_terminal() -> None:
    """Raises SettingsError unless stdin and stdout are a terminal that a full-screen program can use."""
    if not (os.isatty(0) and os.isatty(1)):
        raise SettingsError(
            "The console needs a terminal, and its input or output is a pipe or a file.",
            remedy=f"{_HEADLESS} Over SSH, request a terminal with `ssh -t`.",
        )
    if os.environ.get("TERM", "") in {"", "dumb", "unknown"}:
        raise SettingsError(
            f"The terminal cannot move its cursor (TERM={os.environ.get('TERM', '')!r}).",
            remedy=f"Set TERM to the terminal's type, such as xterm-256color. {_HEADLESS}",
        )
    columns, rows = os.get_terminal_size(1)
    # Some serial and web terminals report 0x0 for an unknown size; Textual then assumes 80x24.
    if (columns and columns < _LEAST_COLUMNS) or (rows and rows < _LEAST_ROWS):
        raise SettingsError(
            f"The terminal has {columns}x{rows} characters; the console needs {MIN_COLUMNS}x{MIN_ROWS}.",
            remedy=f"Make the window larger. {_HEADLESS}",
        )


class _RawTerminal(io.RawIOBase):
    """Writes to the terminal without blocking the caller for ever.

    Writes to a lost terminal are dropped (`lost`): an error would end the App's writer thread, whose queue would then
    fill and block the event loop. A terminal that does not read is waited for until `discard` is set.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self.lost = False
        self.discard = threading.Event()

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and not (self.lost or self.discard.is_set()):
            done += self._write_some(view[done:], _RETRY_MS)
        return len(view)

    def _write_some(self, view: memoryview, wait_ms: int) -> int:
        try:
            return os.write(self._fd, view)
        except BlockingIOError:
            _poll(self._fd, select.POLLOUT, wait_ms)
        except OSError as error:
            if error.errno not in {errno.EIO, errno.ENXIO, errno.EBADF, errno.EPIPE}:
                raise
            self.lost = True
        return 0

    def write_last(self, data: bytes) -> None:
        """Writes even after `discard`, but waits no longer than a second."""
        done = 0
        for _ in range(2):
            if done < len(data) and not self.lost:
                done += self._write_some(memoryview(data)[done:], _RESTORE_MS)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


class _TerminalFile(io.TextIOWrapper):
    """The text file that the App draws to; tracks the terminal modes that it has changed."""

    def __init__(self, raw: _RawTerminal, encoding: str) -> None:
        super().__init__(io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=True)
        self._changed: dict[str, None] = {}
        self._keyboard_pushes = 0
        self._raw = raw

    def write(self, text: str, /) -> int:
        if "\x1b[" in text and not self._raw.discard.is_set():
            for number, state, keyboard in _MODE.findall(text):
                self._note(number, state, keyboard)
        return super().write(text)

    def _note(self, number: str, state: str, keyboard: str) -> None:
        if keyboard:
            self._keyboard_pushes = max(0, self._keyboard_pushes + (1 if keyboard == ">" else -1))
        elif (state == "h") == (number in _SET_BY_DEFAULT):
            self._changed.pop(number, None)
        else:
            self._changed[number] = None

    def undo(self) -> str:
        """The sequences that reset the changed modes, newest first; empty for none. They count as written."""
        modes = [f"\x1b[?{number}{'h' if number in _SET_BY_DEFAULT else 'l'}" for number in reversed(self._changed)]
        pops = ["\x1b[<u"] * self._keyboard_pushes
        self._changed.clear()
        self._keyboard_pushes = 0
        # CAN first: the last output may have been cut inside a sequence.
        return "".join(["\x18", *pops, *modes, "\x1b[0m"]) if modes or pops else ""


class OwnedTerminal:
    """The terminal while the App has it; created by `owned_terminal`."""

    def __init__(self, raw: _RawTerminal, file: _TerminalFile, log_path: Path) -> None:
        self.file: TextIO = file
        self.log_path = log_path
        self._drawn = file
        self._raw = raw
        self._modes = termios.tcgetattr(0)

    @property
    def lost(self) -> bool:
        """True once the terminal is gone (dropped SSH connection, closed window)."""
        if not self._raw.lost:
            self._raw.lost = terminal_gone(0)
        return self._raw.lost

    def abandon(self) -> None:
        """Stops drawing, so that nothing waits for a terminal that does not read."""
        self._raw.discard.set()

    def restore(self) -> None:
        """Restores the terminal: screen, cursor, mouse, paste, line discipline. Never raises."""
        if self.lost:
            return
        # From the background this would stop the process (SIGTTOU).
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        self._raw.write_last(self._drawn.undo().encode())
        # The terminal may have been lost since the check above.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, self._modes)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})


def terminal_gone(fd: int) -> bool:
    """True where `fd` is not a terminal, or its other side has hung up."""
    return not os.isatty(fd) or bool(_poll(fd, 0, 0) & (select.POLLHUP | select.POLLERR | select.POLLNVAL))


@contextlib.contextmanager
def owned_terminal(log_path: Path) -> Iterator[OwnedTerminal]:
    """Takes the terminal over before Textual is imported, and restores it at the end.

    File descriptors 1 and 2 go to `log_path` (mode 0600), so that prints of native libraries and child processes never
    reach the screen; `sys.stdout`, `sys.stderr` and their originals write to the terminal, where Textual draws. Where
    the terminal is lost at the end, all output stays on the log: the run may continue without it. Raises SettingsError
    where there is no usable terminal, or the log cannot be written.
    """
    check_terminal()
    streams = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
    encoding = sys.stdout.encoding
    for stream in streams[:2]:
        stream.flush()
    log = _open_log(log_path)
    saved = os.dup(1), os.dup(2)
    raw = _RawTerminal(_reopen(1))
    terminal = OwnedTerminal(raw, file := _TerminalFile(raw, encoding), log_path)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # multiprocessing's helper must start before sys.stderr changes: it inherits that file, and inside a running App it
    # could not start.
    start_resource_tracker()
    os.close(log)
    faulthandler.enable(2)
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = file  # type: ignore[misc]
    try:
        yield terminal
    finally:
        _restore_streams(terminal, saved, streams)


def _open_log(path: Path) -> int:
    """Opens the log for appending; a large one is renamed to `<name>.1` first. Raises SettingsError."""
    try:
        if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    except OSError as error:
        raise unwritable(path, error) from error
    return open_private(path)


def _restore_streams(terminal: OwnedTerminal, saved: tuple[int, int], streams: tuple[Any, Any, Any, Any]) -> None:
    terminal.file.flush()
    terminal.restore()
    if not terminal.lost:
        for fd, old in enumerate(saved, start=1):
            os.dup2(old, fd)
    sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]
    for old in saved:
        os.close(old)
    terminal.file.close()


def _reopen(fd: int) -> int:
    """Opens the terminal a second time where possible: non-blocking mode then does not affect the shell."""
    try:
        return os.open(os.ttyname(fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return os.dup(fd)


def _poll(fd: int, events: int, wait_ms: int) -> int:
    poller = select.poll()
    poller.register(fd, events)
    return next((ready for _, ready in poller.poll(wait_ms)), 0)
