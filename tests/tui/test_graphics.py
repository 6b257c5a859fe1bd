"""The terminal's own graphics: selected by name, never by a query, whose answer would arrive as keys."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import numpy as np
import pytest
from textual.app import App, ComposeResult

from ossconsole.tui.kit.scroll import Graphics, graphics_of, image_widget

pytest.importorskip("textual_image")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-256color"}, Graphics.BLOCKS),
        ({"TERM": "xterm-kitty"}, Graphics.KITTY),
        ({"TERM": "xterm-ghostty"}, Graphics.KITTY),
        ({"TERM": "foot"}, Graphics.SIXEL),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, Graphics.SIXEL),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, Graphics.BLOCKS),
        ({"TERM": "xterm", "OSSCONSOLE_PICTURES": "sixel"}, Graphics.SIXEL),
        ({"TERM": "xterm-kitty", "OSSCONSOLE_PICTURES": "nonsense"}, Graphics.KITTY),
        ({}, Graphics.BLOCKS),
    ],
)
def test_the_terminal_is_detected_by_its_name(environment: dict[str, str], expected: Graphics) -> None:
    assert graphics_of(environment) is expected


class PictureApp(App[None]):
    """One picture in the graphics named on the command line."""

    def compose(self) -> ComposeResult:
        widget = image_widget(np.full((32, 32, 3), 200, np.uint8), Graphics(sys.argv[1]))
        assert widget is not None
        yield widget


def run_in_pty(graphics: str, until: bytes) -> bytes:
    """What the app writes to a terminal that answers nothing, up to `until`."""
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tui.test_graphics", graphics],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
    )
    os.close(terminal)
    written, deadline = b"", time.monotonic() + 20
    try:
        while until not in written and time.monotonic() < deadline:
            if select.select([controller], [], [], 0.2)[0]:
                written += os.read(controller, 1 << 16)
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    return written


@pytest.mark.parametrize(("graphics", "start"), [("kitty", b"\x1b_G"), ("sixel", b"\x1bP")])
def test_the_image_is_sent_without_a_query(graphics: str, start: bytes) -> None:
    written = run_in_pty(graphics, start)
    assert start in written
    assert b"\x1b[16t" not in written  # the question for the size of a cell
    assert b"a=q" not in written  # the question for kitty's graphics


def test_half_blocks_are_all_there_is_without_them() -> None:
    assert image_widget(np.zeros((2, 2, 3), np.uint8), Graphics.BLOCKS) is None


if __name__ == "__main__":
    PictureApp().run()
