"""The file that the App draws to, on a pseudo-terminal in this process."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import threading
import tty
from collections.abc import Iterator

import pytest

from ossconsole.terminal.tty import _RawTerminal, _TerminalFile, terminal_gone

ENTER = "\x1b[?1049h\x1b[?2004h\x1b[?25l\x1b[>1u\x1b[?7h"
LEAVE = "\x1b[<u\x1b[?25h\x1b[?2004l\x1b[?1049l"


class Drawing:
    """Both sides of a pty, and the file on it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self.raw = _RawTerminal(os.open(os.ttyname(self.slave), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
        self.file = _TerminalFile(self.raw, "utf-8")

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def received(self) -> bytes:
        found = b""
        while select.select([self.master], [], [], 0.2)[0]:
            found += os.read(self.master, 1 << 16)
        return found

    def close(self) -> None:
        self.raw.discard.set()
        self.file.close()
        for fd in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def drawing() -> Iterator[Drawing]:
    made = Drawing()
    yield made
    made.close()


def test_nothing_changed_is_nothing_to_undo(drawing: Drawing) -> None:
    drawing.file.write("\x1b[31mplain colours\x1b[0m\x1b[?25h\x1b[?7h")
    assert drawing.file.undo() == ""
    drawing.file.write(ENTER + LEAVE)
    assert drawing.file.undo() == ""


def test_undo_resets_the_changed_modes_newest_first(drawing: Drawing) -> None:
    drawing.file.write(ENTER + "\x1b[?2004l")
    assert drawing.file.undo() == "\x18\x1b[<u\x1b[?25h\x1b[?1049l\x1b[0m"
    assert drawing.file.undo() == ""


def test_writing_to_a_lost_terminal_is_not_an_error(drawing: Drawing) -> None:
    assert not terminal_gone(drawing.slave)
    drawing.hang_up()
    drawing.file.write("drawn")
    drawing.file.flush()
    assert drawing.raw.lost
    assert terminal_gone(drawing.slave)
    drawing.raw.write_last(b"nor is this")


def test_a_large_drawing_arrives_whole_at_a_slow_reader(drawing: Drawing) -> None:
    text = "".join(f"{number:06}\n" for number in range(40_000))

    def draw() -> None:
        drawing.file.write(text)
        drawing.file.flush()

    writer = threading.Thread(target=draw, daemon=True)
    writer.start()
    found = b""
    while len(found) < len(text):
        assert select.select([drawing.master], [], [], 30)[0]
        found += os.read(drawing.master, 3000)
    writer.join(30)
    assert found.decode() == text


def test_abandoning_frees_a_writer_and_remembers_what_reached_the_terminal(drawing: Drawing) -> None:
    drawing.file.write(ENTER)
    drawing.file.flush()
    started = threading.Event()

    def flood() -> None:
        started.set()
        drawing.file.write("x" * (1 << 20))
        drawing.file.flush()

    writer = threading.Thread(target=flood, daemon=True)
    writer.start()
    assert started.wait(30)
    writer.join(0.5)
    assert writer.is_alive()
    drawing.raw.discard.set()
    writer.join(30)
    assert not writer.is_alive()
    # The App leaves in good order, but none of it is sent any more.
    drawing.file.write(LEAVE)
    drawing.file.flush()
    assert drawing.received().endswith(b"x")
    drawing.raw.write_last(drawing.file.undo().encode())
    assert drawing.received() == b"\x18\x1b[<u\x1b[?25h\x1b[?2004l\x1b[?1049l\x1b[0m"


@pytest.mark.timeout(30)
def test_restoring_returns_from_a_terminal_that_does_not_read(drawing: Drawing) -> None:
    fd = drawing.raw.fileno()
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"x")
    drawing.raw.write_last(b"y" * (1 << 20))
    assert not drawing.raw.lost
    assert len(drawing.received()) < 1 << 20


def test_text_that_cannot_be_encoded_is_replaced(drawing: Drawing) -> None:
    drawing.file.write("broken \udcff name")
    drawing.file.flush()
    assert drawing.received() == b"broken ? name"
