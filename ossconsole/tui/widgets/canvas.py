"""Canvas: a widget drawn from lines of styled pieces, of which only what changed is sent to the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.segment import Segment
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from ossconsole.tui.glyphs import ASCII
from ossconsole.tui.text import Line, Piece
from ossconsole.tui.widgets.ink import Inkwell


class Canvas(Widget):
    """Subclasses give their lines in `paint`; `redraw` paints again and refreshes the cells that differ."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, classes=classes)
        self._lines: list[Line] = []
        self._inks = Inkwell(self)

    def paint(self, width: int, height: int) -> Sequence[Line]:
        """The lines to show in `width` x `height` cells; missing ones are blank, longer ones are cut."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Paint again; cheap where nothing changed, and it sends nothing then."""
        width, height = self.size
        if not self.is_attached or not width or not height:
            return
        lines = list(self.paint(width, height))[:height]
        if getattr(self.app, "glyphs", None) is ASCII:
            lines = [line.in_ascii() for line in lines]
        lines = [line.to(width) for line in lines]
        regions = list(_differences(self._lines, lines, width))
        self._lines = lines
        if regions:
            self.refresh(*regions)

    def on_resize(self) -> None:
        self._lines = []
        self.redraw()
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._inks.clear()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y >= len(self._lines):
            return Strip.blank(width, self._inks.style("text"))
        line = self._lines[y]
        return Strip(
            [Segment(text, self._inks.style(style)) for text, style in line.pieces], line.width
        ).adjust_cell_length(width, self._inks.style("text"))


def _differences(old: Sequence[Line], new: Sequence[Line], width: int) -> list[Region]:
    """The cells in which the lines differ, by whole pieces: Textual sends a piece as a whole, with its colours."""
    regions = []
    for y, (before, after) in enumerate(zip_longest(old, new)):
        if before is None or after is None:
            regions.append(Region(0, y, width, 1))
        elif before.pieces != after.pieces:
            regions += [Region(start, y, end - start, 1) for start, end in _changes(before.pieces, after.pieces)]
    return regions


def _changes(before: Sequence[Piece], after: Sequence[Piece]) -> list[tuple[int, int]]:
    """First cell and the one behind the last of each stretch of new pieces."""
    known = set(_placed(before))
    found: list[tuple[int, int]] = []
    for place in _placed(after):
        start, text, _ = place
        if place in known:
            continue
        end = start + cell_len(text)
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _placed(pieces: Sequence[Piece]) -> Iterator[tuple[int, str, str]]:
    """The pieces with the cell each begins in."""
    at = 0
    for text, style in pieces:
        yield at, text, style
        at += cell_len(text)
