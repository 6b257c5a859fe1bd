"""Figures three rows high, for what matters most on a screen."""

from __future__ import annotations

from ossconsole.tui.glyphs import Glyphs

HEIGHT = 3

_NAMES = "0123456789.x"
# Three cells each, a column between them; of the point only the middle one is used.
_BLOCKS = (
    "█▀█ ▀█  ▀▀█ ▀▀█ █ █ █▀▀ █▀▀ ▀▀█ █▀█ █▀█        ",
    "█ █  █  █▀▀  ▀█ ▀▀█ ▀▀█ █▀█   █ █▀█ ▀▀█     ▀▄▀",
    "▀▀▀ ▀▀▀ ▀▀▀ ▀▀▀   ▀ ▀▀▀ ▀▀▀   ▀ ▀▀▀ ▀▀▀  ▀  ▀ ▀",
)
_ASCII = (
    " _       _   _       _   _   _   _   _         ",
    "| |   |  _|  _| |_| |_  |_    | |_| |_|     \\ /",
    "|_|   | |_   _|   |  _| |_|   | |_|  _|  .  / \\",
)


def large(text: str, glyphs: Glyphs) -> tuple[str, str, str]:
    """The rows of `text`, which is made of digits, points and "x"."""
    font = _ASCII if glyphs.chart == "ascii" else _BLOCKS
    cells = [slice(4 * at + 1, 4 * at + 2) if name == "." else slice(4 * at, 4 * at + 3) for name, at in _places(text)]
    first, second, third = (" ".join(row[cell] for cell in cells) for row in font)
    return first, second, third


def _places(text: str) -> list[tuple[str, int]]:
    return [(name, _NAMES.index(name)) for name in text]
