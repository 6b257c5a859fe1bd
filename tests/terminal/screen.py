"""A program in a real pseudo-terminal, and what it did to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pyte

# Generous: what is asserted is that things end, not how fast this machine is today.
DEADLINE_S = 40.0
_MODE = re.compile(rb"\x1b\[\?([0-9]+)([hl])")
_SET_BY_DEFAULT = {7, 25}


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A pty with `python -m MODULE ARGUMENTS` in a session of its own.

    Where the pty is not `controlling`, its end sends no signal.
    """

    def __init__(
        self,
        module: str,
        *arguments: str | Path,
        columns: int = 80,
        rows: int = 24,
        term: str = "xterm-256color",
        controlling: bool = True,
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.output = b""
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.modes_before = termios.tcgetattr(self.slave)
        self._size = columns, rows
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=os.environ | {"TERM": term, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
            preexec_fn=_take_terminal if controlling else None,  # noqa: PLW1509 - an ioctl, nothing that locks
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        for fd in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)

    def read(self, wait_s: float = 0.05) -> bytes:
        """What has arrived, waiting at most `wait_s` for the first of it."""
        ready, _, _ = select.select([self.master], [], [], wait_s)
        data = os.read(self.master, 1 << 16) if ready else b""
        self.output += data
        return data

    def until(self, text: bytes | Callable[[], bool]) -> None:
        """Read until `text` was written (or the condition holds)."""
        happened = text if callable(text) else lambda: text in self.output
        end = time.monotonic() + DEADLINE_S
        while not happened():
            self.read()
            if self.process.poll() is not None and not self.read():
                assert happened(), f"ended with {self.process.returncode}: {self.output!r}"
            assert time.monotonic() < end, f"nothing like {text!r} in {self.output!r}"

    def finish(self) -> int:
        """Read to the end of the process; its exit code, negative for a signal."""
        end = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            self.read()
            assert time.monotonic() < end, f"still running: {self.output[-2000:]!r}"
        while self.read():
            pass
        return self.process.returncode

    def resize(self, columns: int, rows: int) -> None:
        """The window changes its size; the kernel tells the program."""
        self._size = columns, rows
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """The other side goes away, as when an SSH connection drops."""
        os.close(self.master)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def changed_modes(self) -> set[int]:
        """The private modes that are not as a terminal has them at the start."""
        state = {int(number): letter == b"h" for number, letter in _MODE.findall(self.output)}
        return {number for number, on in state.items() if on != (number in _SET_BY_DEFAULT)}

    @property
    def keyboard_pushes(self) -> int:
        return len(re.findall(rb"\x1b\[>[0-9]*u", self.output)) - len(re.findall(rb"\x1b\[<[0-9]*u", self.output))

    @property
    def line_discipline_restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.modes_before

    @property
    def lines(self) -> list[str]:
        """What a user would see, as a terminal emulator shows it."""
        screen = pyte.Screen(*self._size)
        # pyte knows no alternate screen: only what came after it was left is on the normal one.
        visible = self.output.rsplit(b"\x1b[?1049l", 1)[-1]
        pyte.ByteStream(screen).feed(visible)
        return [line.rstrip() for line in screen.display if line.strip()]

    @property
    def cells(self) -> str:
        """The screen of a full-screen program that is still running, a line per row."""
        screen = pyte.Screen(*self._size)
        pyte.ByteStream(screen).feed(self.output)
        return "\n".join(screen.display)

    def until_shown(self, text: str) -> None:
        """Read until the running program shows `text`."""
        self.until(lambda: text in self.cells)

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def assert_restored(self) -> None:
        assert self.changed_modes == set()
        assert self.keyboard_pushes <= 0
        assert self.line_discipline_restored
