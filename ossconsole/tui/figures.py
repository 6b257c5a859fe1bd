"""Figures three rows high, for what matters most on a screen."""

from __future__ import annotations

from ossconsole.tui.glyphs import Glyphs

HEIGHT = 3

_NAMES = "0123456789.x"
# Three cells each, a column between them.
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
    first, second, third = (" ".join(row[4 * at : 4 * at + 3] for at in map(_NAMES.index, text)) for row in font)
    return first, second, third
