"""ObjectTable: the rows of a view, a cursor that stays on its row whatever is loaded or sorted, and chosen rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, overload

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from ossconsole.storage.listing import RowView
from ossconsole.tui.kit.table import RowPainter, VirtualTable
from ossconsole.tui.kit.text import Line


class _ViewRows(Sequence[int]):
    """The row numbers of a view, without a list of them."""

    def __init__(self, view: RowView) -> None:
        self._view = view

    def __len__(self) -> int:
        return len(self._view)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [int(row) for row in self._view.order[index]]
        return int(self._view.order[index])


class ObjectTable(VirtualTable[int], inherit_bindings=False):
    """Shows a RowView. `painter` draws a row number, `header` the line above; `g` belongs to the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup,ctrl+u", "page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+d", "page(1)", "Page down", show=False),
        Binding("home", "edge(-1)", "First", show=False),
        Binding("end,G", "edge(1)", "Last", show=False),
    ]

    class HeaderClicked(Message):
        """The header was clicked at this column of cells."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    def __init__(self, painter: RowPainter[int], header: Callable[[int], Line], view: RowView, *, id: str) -> None:  # noqa: A002
        super().__init__(painter, header, id=id)
        self.view = view
        self._rows = _ViewRows(view)  # type: ignore[assignment]

    def set_view(self, view: RowView, *, go_to: int | None = None, above: int | None = None) -> None:
        """Shows another view. The cursor goes to the row `go_to`, or stays on its row, or else at its place.

        `above` is how many rows are to show above it; without it, as many as before. At the very top it stays there.
        """
        row = go_to if go_to is not None else self.current
        same_rows = view.rows is self.view.rows
        before, top = self.cursor, round(self.scroll_target_y)
        position = None
        if row is not None and (go_to is not None or (same_rows and before > 0)):
            position = view.position(row)
        self.view = view
        self._rows = _ViewRows(view)  # type: ignore[assignment]
        self._measure()
        target = self._clamped(before if position is None else position)
        with self.prevent(self.Moved):
            self.cursor = target
        offset = above if above is not None else before - top
        self.scroll_to(y=max(0, target - offset), animate=False, force=True, immediate=True)
        self.watch_cursor(target, target)
        self.refresh()

    @property
    def rows_above(self) -> int:
        """How many rows show above the cursor."""
        return self.cursor - round(self.scroll_target_y)

    def on_click(self, event: events.Click) -> None:
        if event.y < self._head:
            self.post_message(self.HeaderClicked(event.x))
            return
        super().on_click(event)
