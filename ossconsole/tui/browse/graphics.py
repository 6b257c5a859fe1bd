"""Pictures in the terminal's own graphics (kitty's or sixel), through textual-image where it is installed.

The terminal is told by its name, never asked: Textual's reader would take its answer for keys. `OSSCONSOLE_PICTURES`
(`kitty`, `sixel` or `blocks`) overrides the guess.
"""

from __future__ import annotations

import enum
import fcntl
import importlib.util
import io
import os
import struct
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from textual.widget import Widget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VARIABLE = "OSSCONSOLE_PICTURES"
# Terminals that show kitty's placeholders; others that know the protocol without them draw nothing.
_KITTY_NAMES = ("kitty", "ghostty")
_SIXEL_NAMES = ("foot", "mlterm", "contour", "yaft", "wezterm")
_SIXEL_PROGRAMS = {"WezTerm", "iTerm.app", "mintty"}
_DEFAULT_CELL = (10, 20)  # pixels, of the VT340, which sixel comes from


class Graphics(str, enum.Enum):
    """How a picture is drawn."""

    KITTY = "kitty"
    SIXEL = "sixel"
    BLOCKS = "blocks"


def graphics_of(environment: Mapping[str, str]) -> Graphics:
    """What the terminal can show, by what the environment says of it."""
    wanted = environment.get(VARIABLE, "")
    if wanted in {graphics.value for graphics in Graphics}:
        return Graphics(wanted)
    if environment.get("TMUX") or environment.get("STY"):
        return Graphics.BLOCKS  # a multiplexer eats the graphics, or draws them in another pane
    term = environment.get("TERM", "")
    if any(name in term for name in _KITTY_NAMES) or environment.get("KITTY_WINDOW_ID"):
        return Graphics.KITTY
    by_name = any(name in term for name in _SIXEL_NAMES)
    return Graphics.SIXEL if by_name or environment.get("TERM_PROGRAM") in _SIXEL_PROGRAMS else Graphics.BLOCKS


def picture_widget(pixels: NDArray[np.uint8], graphics: Graphics) -> Widget | None:
    """A widget that draws the picture in the terminal's graphics; None where half blocks are all there is."""
    if graphics is Graphics.BLOCKS or importlib.util.find_spec("textual_image") is None:
        return None
    from PIL import Image

    with _nothing_asked():
        from textual_image.widget import SixelImage, TGPImage
    widget: Widget = (TGPImage if graphics is Graphics.KITTY else SixelImage)(Image.fromarray(pixels))
    return widget


@contextmanager
def _nothing_asked() -> Iterator[None]:
    """At its first import textual-image asks the terminal for its size and abilities, unless there is none."""
    width, height = _cell_pixels()
    os.environ.setdefault("TEXTUAL_CELL_WIDTH", str(width))
    os.environ.setdefault("TEXTUAL_CELL_HEIGHT", str(height))
    terminal = sys.__stdout__
    sys.__stdout__ = io.TextIOWrapper(io.BytesIO())  # type: ignore[misc]
    try:
        yield
    finally:
        sys.__stdout__ = terminal  # type: ignore[misc]


def _cell_pixels() -> tuple[int, int]:
    """Width and height of a cell in pixels, as the terminal told the kernel."""
    try:
        answer = fcntl.ioctl(sys.__stdout__ or sys.stdout, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    except (OSError, ValueError):
        return _DEFAULT_CELL
    rows, columns, width, height = struct.unpack("HHHH", answer)
    if not (rows and columns and width and height):
        return _DEFAULT_CELL
    return width // columns, height // rows
