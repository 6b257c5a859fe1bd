"""VirtualTable: rows drawn only where they are seen, so that a million of them cost no more than a screenful."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ossconsole.tui.kit.canvas import Inkwell
from ossconsole.tui.kit.text import Line

Row = TypeVar("Row")
RowPainter = Callable[[Row, int], Line]
"""Draws one row in so many cells."""


class VirtualTable(ScrollView, Generic[Row], can_focus=True):
    """A cursor over `rows`; `painter` draws one of them, `header` the line above."""

    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup,ctrl+u", "page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+d", "page(1)", "Page down", show=False),
        Binding("home,g", "edge(-1)", "First", show=False),
        Binding("end,G", "edge(1)", "Last", show=False),
    ]

    cursor: reactive[int] = reactive(0)

    class Opened(Message):
        """The row under the cursor was chosen."""

        def __init__(self, table: ScrollView, index: int) -> None:
            super().__init__()
            self.table = table
            self.index = index

        @property
        def control(self) -> ScrollView:
            return self.table

    class Moved(Message):
        """The cursor is on another row."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    def __init__(
        self,
        painter: RowPainter[Row],
        header: Callable[[int], Line] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - Textual's name
    ) -> None:
        super().__init__(id=id)
        self._painter = painter
        self._header = header
        self._rows: list[Row] = []
        self._inks = Inkwell(self)

    @property
    def rows(self) -> Sequence[Row]:
        return self._rows

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self.cursor] if 0 <= self.cursor < len(self._rows) else None

    def show(self, rows: Sequence[Row], cursor: int = 0) -> None:
        """Replace all rows."""
        self._rows = list(rows)
        self._measure()
        self.cursor = self._clamped(cursor)
        self.refresh()

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows at the end; cursor and scroll stay."""
        self._rows.extend(rows)
        self._measure()
        self.refresh()

    def _measure(self) -> None:
        self.virtual_size = Size(self._width, len(self._rows) + self._head)

    @property
    def _width(self) -> int:
        """Of a row: what the scroll bar leaves."""
        return self.scrollable_content_region.width

    @property
    def _head(self) -> int:
        return 1 if self._header is not None else 0

    def _clamped(self, index: int) -> int:
        return max(0, min(index, len(self._rows) - 1))

    def watch_cursor(self, old: int, new: int) -> None:
        top = self.scroll_offset.y
        room = max(1, self.size.height - self._head)
        if new < top:
            self.scroll_to(y=new, animate=False, force=True, immediate=True)
        elif new >= top + room:
            self.scroll_to(y=new - room + 1, animate=False, force=True, immediate=True)
        for index in (old, new):
            self.refresh(Region(0, index - self.scroll_offset.y + self._head, self.size.width, 1))
        self.post_message(self.Moved(new))

    def on_resize(self) -> None:
        self._measure()
        self.watch_cursor(self.cursor, self.cursor)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._inks.clear()

    def render_line(self, y: int) -> Strip:
        width = self._width
        if y < self._head and self._header is not None:
            return self._strip(self._header(width), width, cursor=False)
        index = self.scroll_offset.y + y - self._head
        if index >= len(self._rows):
            return Strip.blank(width, self._inks.style("text", cursor=False))
        return self._strip(self._painter(self._rows[index], width), width, cursor=index == self.cursor)

    def _strip(self, line: Line, width: int, *, cursor: bool) -> Strip:
        pieces = line.to(width).pieces
        return Strip([Segment(text, self._inks.style(style, cursor=cursor)) for text, style in pieces], width)

    def action_move(self, step: int) -> None:
        self.cursor = self._clamped(self.cursor + step)

    def action_page(self, direction: int) -> None:
        self.cursor = self._clamped(self.cursor + direction * max(1, self.size.height - self._head - 1))

    def action_edge(self, direction: int) -> None:
        self.cursor = 0 if direction < 0 else self._clamped(len(self._rows) - 1)

    def on_click(self, event: events.Click) -> None:
        index = self.scroll_offset.y + event.y - self._head
        if not 0 <= index < len(self._rows):
            return
        again = index == self.cursor
        self.cursor = index
        if again:
            self.post_message(self.Opened(self, index))
