"""EventsScreen: all events of a run that are kept, the chosen one with its whole text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from ossconsole.telemetry.narrate import LogLine
from ossconsole.tui.panels.context import Context
from ossconsole.tui.panels.eventlog import event_row, event_text
from ossconsole.tui.screens.base import ConsoleModal
from ossconsole.tui.text import Line
from ossconsole.tui.widgets.panel import Panel
from ossconsole.tui.widgets.table import VirtualTable


class EventsScreen(ConsoleModal):
    """The newest event is at the bottom, and chosen at first."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,i,q", "dismiss", "Close", show=False)]

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._drawn_from = context

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -full") as dialog:
            dialog.border_title = "Events"
            dialog.border_subtitle = "esc closes"
            yield VirtualTable[LogLine](lambda line, width: event_row(line, self._drawn_from, width), id="all-events")
            yield Panel(self._chosen, id="event")

    @property
    def table(self) -> VirtualTable[LogLine]:
        return self.query_one(VirtualTable)

    def on_mount(self) -> None:
        lines = list(self._drawn_from.view.log)
        self.table.show(lines, len(lines) - 1)
        self.table.focus()

    def on_virtual_table_moved(self) -> None:
        self.query_one(Panel).redraw()

    def _chosen(self, width: int, height: int) -> Sequence[Line]:
        line = self.table.current
        return [Line(), *event_text(line, width)][:height] if line else [Line(), Line(("Nothing yet.", "dim"))]
