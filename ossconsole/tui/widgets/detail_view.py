"""DetailView: lines and pictures one below the other, scrolled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ossconsole.tui.browse.pictures import half_blocks, letters
from ossconsole.tui.text import Line
from ossconsole.tui.widgets.ink import Inkwell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PictureBlock:
    """A picture among the lines; `tall` ones take the whole width and are scrolled, others fit below what is above."""

    def __init__(self, pixels: NDArray[np.uint8], *, tall: bool = False) -> None:
        self.pixels = pixels
        self.tall = tall


_LOWEST_PICTURE = 12  # cells
Block = Line | PictureBlock
Painter = Callable[[int, int], Sequence[Block]]
"""Gives the blocks for so many cells of width and height."""


class DetailView(ScrollView, can_focus=True):
    """Draws what `painter(width, height)` gives; `redraw` asks it again."""

    ALLOW_SELECT = False
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
        self._blocks: Sequence[Block] = ()
        self._rows: list[Line | Strip] = []
        self._inks = Inkwell(self)
        self.plain = False
        """Letters instead of half blocks."""

    def redraw(self) -> None:
        """Paint again; pictures are drawn anew only when they changed."""
        width, height = self.scrollable_content_region.size
        if not self.is_attached or not width:
            return
        blocks = self._painter(width, height)
        rows: list[Line | Strip] = []
        for block in blocks:
            if isinstance(block, Line):
                rows.append(block.to(width))
            else:
                draw = letters if self.plain else half_blocks
                room = block.pixels.shape[0] if block.tall else max(_LOWEST_PICTURE, height - len(rows) - 1)
                rows.extend(draw(block.pixels, width - 2, room))
        changed = [y for y, (old, new) in enumerate(zip_longest(self._rows, rows)) if not _same(old, new)]
        self._rows = rows
        self.virtual_size = Size(width, len(rows))
        top = self.scroll_offset.y
        regions = [Region(0, y - top, width, 1) for y in changed if top <= y < top + height]
        if regions:
            self.refresh(*regions)

    def on_resize(self) -> None:
        self._rows = []
        self.redraw()
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._inks.clear()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        at = y + self.scroll_offset.y
        if at >= len(self._rows):
            return Strip.blank(width, self._inks.style("text"))
        row = self._rows[at]
        if isinstance(row, Line):
            row = Strip([Segment(text, self._inks.style(style)) for text, style in row.pieces])
        elif self.plain:
            row = row.apply_style(self._inks.style("text"))
        return row.adjust_cell_length(width, self._inks.style("text"))


def _same(old: Line | Strip | None, new: Line | Strip | None) -> bool:
    if isinstance(old, Line) and isinstance(new, Line):
        return old.pieces == new.pieces
    return old is not None and old == new
