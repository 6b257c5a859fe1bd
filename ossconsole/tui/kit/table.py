"""VirtualTable: only visible rows are drawn, so that a million rows cost no more than a screenful."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ossconsole.tui.kit.canvas import StyleCache
from ossconsole.tui.kit.text import Line

Row = TypeVar("Row")
RowPainter = Callable[[Row, int], Line]
"""Draws one row for a width in cells."""


def row_bindings(first: str) -> list[BindingType]:
    """The keys that move the cursor of a table; `first` are those of its first row."""
    return [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup,ctrl+u", "page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+d", "page(1)", "Page down", show=False),
        Binding(first, "edge(-1)", "First", show=False),
        Binding("end,G", "edge(1)", "Last", show=False),
    ]


class VirtualTable(ScrollView, Generic[Row], can_focus=True):
    """A cursor over rows; `painter` draws one of them, `header` the line above."""

    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = row_bindings("home,g")

    cursor: reactive[int] = reactive(0)

    class Opened(Message):
        """A row was clicked while the cursor was on it."""

        def __init__(self, table: ScrollView, index: int) -> None:
            super().__init__()
            self.table = table
            self.index = index

        @property
        def control(self) -> ScrollView:
            """The table, for `textual.on`."""
            return self.table

    class Moved(Message):
        """The cursor has moved to another row."""

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
        self._style_cache = StyleCache(self)
        self.shows_cursor = True
        """False while the keys act on another pane."""

    @property
    def rows(self) -> Sequence[Row]:
        """All rows."""
        return self._rows

    @property
    def cursor_row(self) -> Row | None:
        """The row under the cursor; None in an empty table."""
        return self._rows[self.cursor] if 0 <= self.cursor < len(self._rows) else None

    def show(self, rows: Sequence[Row], cursor: int = 0) -> None:
        """Replace all rows."""
        self._rows = list(rows)
        self._measure()
        self.cursor = self._clamped(cursor)
        self.refresh()

    def _measure(self) -> None:
        self.virtual_size = Size(self._width, len(self._rows) + self._head)

    @property
    def _width(self) -> int:
        """The width of a row, without the scroll bar."""
        return self.scrollable_content_region.width

    @property
    def _head(self) -> int:
        return 1 if self._header is not None else 0

    def _clamped(self, index: int) -> int:
        return max(0, min(index, len(self._rows) - 1))

    def watch_cursor(self, old: int, new: int) -> None:
        """Scroll the cursor into view and post `Moved`."""
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
        """Keep the cursor in view."""
        self._measure()
        self.watch_cursor(self.cursor, self.cursor)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._style_cache.clear()

    def render_line(self, y: int) -> Strip:
        """The header or one visible row."""
        width = self._width
        if y < self._head and self._header is not None:
            return self._style_cache.strip(self._header(width).to(width), width)
        index = self.scroll_offset.y + y - self._head
        if index >= len(self._rows):
            return self._style_cache.blank(width)
        line = self._painter(self._rows[index], width).to(width)
        return self._style_cache.strip(line, width, cursor=index == self.cursor and self.shows_cursor)

    def action_move(self, step: int) -> None:
        """Move the cursor by `step` rows."""
        self.cursor = self._clamped(self.cursor + step)

    def action_page(self, direction: int) -> None:
        """Move the cursor by a page."""
        self.cursor = self._clamped(self.cursor + direction * max(1, self.size.height - self._head - 1))

    def action_edge(self, direction: int) -> None:
        """Move the cursor to the first (-1) or the last row."""
        self.cursor = 0 if direction < 0 else self._clamped(len(self._rows) - 1)

    def on_click(self, event: events.Click) -> None:
        """Move the cursor; a second click on the row opens it."""
        index = self.scroll_offset.y + event.y - self._head
        if not 0 <= index < len(self._rows):
            return
        clicked_again = index == self.cursor
        self.cursor = index
        if clicked_again:
            self.post_message(self.Opened(self, index))
