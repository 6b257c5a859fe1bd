"""DetailView: a scrolled column of lines and images.

An image is drawn with half blocks, with letters on terminals without colours, or with the terminal's own graphics
(kitty or sixel) if textual-image is installed. The protocol is selected by the name of the terminal, which is never
queried: Textual would read the answer as keys. `OSSCONSOLE_PICTURES` (`kitty`, `sixel` or `blocks`) overrides it.
"""

from __future__ import annotations

import enum
import fcntl
import functools
import importlib.util
import io
import itertools
import os
import struct
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, ClassVar

from rich.color import Color, ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from ossconsole.dataset.contents import fit
from ossconsole.tui.kit.canvas import StyleCache
from ossconsole.tui.kit.text import Line, safe, shorten_middle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HALF = "▀"
_RAMP = " .:-=+*#%@"


def half_blocks(pixels: NDArray[np.uint8], width: int, height: int, *, limited: bool) -> list[Strip]:
    """An RGB image (uint8, height x width x 3), fitted into `width` x `height` cells.

    `limited` uses the colours that a terminal of 256 shows. Below an odd number of pixels the ground shows.
    """
    small = fit(pixels, width, height * 2)
    if limited:
        small = in_256_colours(small)
    strips = []
    for y in range(0, small.shape[0], 2):
        below = small[y + 1].tolist() if y + 1 < len(small) else [()] * small.shape[1]
        pairs = [(tuple(top), tuple(low)) for top, low in zip(small[y].tolist(), below, strict=True)]
        segments = [
            Segment(
                _HALF * len(list(run)), Style(color=Color.from_rgb(*top), bgcolor=Color.from_rgb(*low) if low else None)
            )
            for (top, low), run in groupby(pairs)
        ]
        strips.append(Strip(segments, small.shape[1]))
    return strips


def in_256_colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The nearest colour that a terminal of 256 has, for each pixel (RGB, any shape that ends in 3).

    Rich maps a colour by its saturation, which leaves red and green speckles in what is nearly grey.
    """
    steps = pixels >> (8 - _TABLE_BITS)
    found: NDArray[np.uint8] = _table_of_256()[steps[..., 0], steps[..., 1], steps[..., 2]]
    return found


_TABLE_BITS = 5  # of each channel
# A wrong hue is seen sooner than a wrong brightness.
_WEIGHTS = (1.0, 2.0, 2.0)


@functools.cache
def _table_of_256() -> NDArray[np.uint8]:
    """The nearest colour of 256 for each step of red, green and blue."""
    import numpy as np

    shown, named = zip(*_shown_of_256(), strict=True)
    to_luma = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])  # BT.601, Y Cb Cr
    weights = np.array(_WEIGHTS)
    centres = (np.arange(1 << _TABLE_BITS) + 0.5) * (256 >> _TABLE_BITS)
    grid = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1).reshape(-1, 3)
    palette = np.array(shown) @ to_luma.T * weights
    found = np.empty(len(grid), np.intp)
    for begin in range(0, len(grid), 4096):
        part = grid[begin : begin + 4096] @ to_luma.T * weights
        found[begin : begin + 4096] = ((part[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1)
    side = 1 << _TABLE_BITS
    return np.array(named, np.uint8)[found].reshape(side, side, side, 3)


def _shown_of_256() -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Each colour that a terminal of 256 can be made to show, and the one that Rich maps to it."""
    values = (0, 95, 135, 175, 215, 255)
    greys = [round(step * 255 / 25) for step in range(26)]
    seen: set[int] = set()
    for red, green, blue in (*itertools.product(values, repeat=3), *((grey, grey, grey) for grey in greys)):
        mapped = Color.from_rgb(red, green, blue).downgrade(ColorSystem.EIGHT_BIT)
        if mapped.number is not None and mapped.number not in seen:
            seen.add(mapped.number)
            yield tuple(mapped.get_truecolor()), (red, green, blue)  # type: ignore[misc]


def letters(pixels: NDArray[np.uint8], width: int, height: int) -> list[Strip]:
    """The brightness of an RGB image as letters, fitted into `width` x `height` cells (twice as high as wide)."""
    import numpy as np

    small = fit(pixels, width, height * 2)[::2]
    levels = (small @ np.array([0.299, 0.587, 0.114])) / 256 * len(_RAMP)  # ITU-R BT.601 luma
    return [Strip([Segment("".join(_RAMP[int(level)] for level in row), Style())], len(row)) for row in levels]


def image_rows(pixels: NDArray[np.uint8], width: int, height: int, widget: Widget, *, plain: bool) -> list[Strip]:
    """An RGB image as the terminal of `widget` can show it: with letters for `plain`, else in its colours."""
    if plain:
        return letters(pixels, width, height)
    return half_blocks(pixels, width, height, limited=widget.app.console.color_system == "256")


@dataclass(frozen=True, eq=False)
class ImageBlock:
    """An RGB image among the lines, fitted below the lines above."""

    pixels: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ImageRow:
    """RGB images side by side, each in the middle of a square `side` cells wide, with _GAP cells between them."""

    images: Sequence[NDArray[np.uint8]]
    side: int

    @property
    def rows(self) -> int:
        """The height in cells, which are twice as high as wide."""
        return -(-self.side // 2)

    def strips(self, widget: Widget, *, plain: bool) -> list[Strip]:
        """The rows of cells; what is between the images and around them has no colours."""
        height = self.rows
        squares = []
        for pixels in self.images:
            rows = image_rows(pixels, self.side, height, widget, plain=plain)
            above, left = (height - len(rows)) // 2, (self.side - rows[0].cell_length) // 2
            below = height - above - len(rows)
            blank, gap = Strip.blank(self.side + _GAP), Strip.blank(left)
            inner = [Strip.join([gap, row]).adjust_cell_length(self.side + _GAP) for row in rows]
            squares.append([*[blank] * above, *inner, *[blank] * below])
        return [Strip.join([Strip.blank(1), *row]) for row in zip(*squares, strict=True)]


_MIN_IMAGE_ROWS = 12  # cells
Block = Line | ImageBlock | ImageRow
Painter = Callable[[int, int], Sequence[Block]]
"""Returns the blocks for a width and a height in cells."""


_SHEET_CELLS = 18  # of an image in a sheet, with the gap
_GAP = 2


def image_sheet(images: Sequence[tuple[NDArray[np.uint8], Sequence[str]]], width: int, ellipsis: str) -> list[Block]:
    """Images side by side, each about 16 cells wide, with the lines of its caption below it."""
    columns = max(2, min(len(images), (width - 1) // _SHEET_CELLS))
    cell = (width - 1) // columns
    blocks: list[Block] = []
    for begin in range(0, len(images), columns):
        row = images[begin : begin + columns]
        blocks.append(ImageRow([pixels for pixels, _ in row], cell - _GAP))
        for number in range(max(len(captions) for _, captions in row)):
            line = Line()
            for place, (_, captions) in enumerate(row):
                text = safe(captions[number]) if number < len(captions) else ""
                line.to(1 + place * cell).add(shorten_middle(text, cell - _GAP, ellipsis), "dim")
            blocks.append(line)
    return blocks


class DetailView(ScrollView, can_focus=True):
    """A scrolled view drawn by `painter`, which `redraw` calls again."""

    ALLOW_SELECT = False
    # A scroll bar that appears sends no Resize: what is painted for the full width would be cut.
    DEFAULT_CSS = "DetailView { scrollbar-gutter: stable; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_up", show=False),
        Binding("down,j", "scroll_down", show=False),
        Binding("pageup,ctrl+u", "page_up", show=False),
        Binding("pagedown,ctrl+d", "page_down", show=False),
        Binding("home", "scroll_home", show=False),
        Binding("end,G", "scroll_end", show=False),
    ]

    def __init__(self, painter: Painter, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._painter = painter
        self._rows: list[Line | Strip] = []
        self._style_cache = StyleCache(self)
        self.plain = False
        """Draws images with letters instead of half blocks."""

    def redraw(self) -> None:
        """Paint again; only changed rows are sent."""
        width, height = self.scrollable_content_region.size
        if not self.is_attached or not width:
            return
        blocks = self._painter(width, height)
        rows: list[Line | Strip] = []
        for block in blocks:
            if isinstance(block, Line):
                rows.append(block.to(width))
            elif isinstance(block, ImageRow):
                rows.extend(block.strips(self, plain=self.plain))
            else:
                room = max(_MIN_IMAGE_ROWS, height - len(rows) - 1)
                rows.extend(
                    Strip.join([Strip.blank(1), row])
                    for row in image_rows(block.pixels, width - 2, room, self, plain=self.plain)
                )
        changed = [y for y, (old, new) in enumerate(zip_longest(self._rows, rows)) if not _same(old, new)]
        self._rows = rows
        self.virtual_size = Size(width, len(rows))
        top = self.scroll_offset.y
        regions = [Region(0, y - top, width, 1) for y in changed if top <= y < top + height]
        if regions:
            self.refresh(*regions)

    def on_resize(self) -> None:
        """Paint for the new size."""
        self._rows = []
        self.redraw()
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._style_cache.clear()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        at = y + self.scroll_offset.y
        if at >= len(self._rows):
            return self._style_cache.blank(width)
        row = self._rows[at]
        if isinstance(row, Line):
            return self._style_cache.strip(row, width)
        row = row.apply_style(self._style_cache.style("text"))
        return row.adjust_cell_length(width, self._style_cache.style("text"))


def _same(old: Line | Strip | None, new: Line | Strip | None) -> bool:
    if isinstance(old, Line) and isinstance(new, Line):
        return old.pieces == new.pieces
    return old is not None and old == new


VARIABLE = "OSSCONSOLE_PICTURES"
# Terminals that support kitty's placeholders; others that know the protocol without them draw nothing.
_KITTY_NAMES = ("kitty", "ghostty")
_SIXEL_NAMES = ("foot", "mlterm", "contour", "yaft", "wezterm")
_SIXEL_PROGRAMS = {"WezTerm", "iTerm.app", "mintty"}
_DEFAULT_CELL = (10, 20)  # pixels, of the VT340, the first sixel terminal


class Graphics(str, enum.Enum):
    """How an image is drawn."""

    KITTY = "kitty"
    SIXEL = "sixel"
    BLOCKS = "blocks"


def graphics_of(environment: Mapping[str, str]) -> Graphics:
    """The graphics of the terminal, by its environment variables."""
    wanted = environment.get(VARIABLE, "")
    if wanted in {graphics.value for graphics in Graphics}:
        return Graphics(wanted)
    if environment.get("TMUX") or environment.get("STY"):
        return Graphics.BLOCKS  # a multiplexer drops the graphics, or draws them in another pane
    term = environment.get("TERM", "")
    if any(name in term for name in _KITTY_NAMES) or environment.get("KITTY_WINDOW_ID"):
        return Graphics.KITTY
    by_name = any(name in term for name in _SIXEL_NAMES)
    return Graphics.SIXEL if by_name or environment.get("TERM_PROGRAM") in _SIXEL_PROGRAMS else Graphics.BLOCKS


def image_widget(pixels: NDArray[np.uint8], graphics: Graphics) -> Widget | None:
    """A widget that draws an RGB image in the terminal's graphics; None for half blocks."""
    if graphics is Graphics.BLOCKS or importlib.util.find_spec("textual_image") is None:
        return None
    from PIL import Image

    with _terminal_not_queried():
        from textual_image.widget import SixelImage, TGPImage
    widget: Widget = (TGPImage if graphics is Graphics.KITTY else SixelImage)(Image.fromarray(pixels))
    return widget


@contextmanager
def _terminal_not_queried() -> Iterator[None]:
    """Hides the terminal from the first import of textual-image, which would query its size and features."""
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
    """Width and height of a cell in pixels, from the kernel."""
    try:
        answer = fcntl.ioctl(sys.__stdout__ or sys.stdout, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    except (OSError, ValueError):
        return _DEFAULT_CELL
    rows, columns, width, height = struct.unpack("HHHH", answer)
    if not (rows and columns and width and height):
        return _DEFAULT_CELL
    return width // columns, height // rows
