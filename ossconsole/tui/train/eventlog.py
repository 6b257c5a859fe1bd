"""The event log of a run: a panel with the newest events, and a screen with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from ossconsole.telemetry.events import LogLine, Saving, megabytes
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.kit.text import Line, clock, percent, safe, shorten, shorten_middle, wrap
from ossconsole.tui.train.context import Context


def event_log(context: Context, width: int, height: int) -> list[Line]:
    """The newest events; below them how far the checkpoint is that is being written."""
    saving = context.view.saving
    below = [_progress(saving, context, width)] if saving is not None else []
    count = height - len(below)
    lines = list(context.view.log)[-count:] if count > 0 else []
    return [*(event_row(line, context, width) for line in lines), *below]


def _progress(saving: Saving, context: Context, width: int) -> Line:
    row = Line((f" {clock(saving.time)} ", "dim"), (f"{context.glyphs.up} ", "primary"))
    done = f"{megabytes(saving.written)[:-3]} of {megabytes(saving.bytes)}"
    share = saving.written / saving.bytes if saving.bytes else 0.0
    tail = f": {done}, {percent(share)}"
    key = shorten_middle(safe(saving.key), width - row.width - len(tail) - len(_SAVING), context.glyphs.ellipsis)
    return row.add(f"{_SAVING}{key}{tail}", "text")


_SAVING = "writing checkpoint "


def event_text(line: LogLine, width: int) -> list[Line]:
    """The whole text of one event, broken between words."""
    style = {"error": "bad", "warning": "warn"}.get(line.level, "text")
    return [Line((part, style)) for part in wrap(safe(line.text), width)]


def event_row(line: LogLine, context: Context, width: int) -> Line:
    """Time, mark and as much of the text as fits."""
    glyphs = context.glyphs
    marks = {"good": (glyphs.done, "good"), "warning": ("!", "warn"), "error": (glyphs.failed, "bad")}
    if line.endpoint is not None:
        mark, style = glyphs.endpoint(line.endpoint), str(line.endpoint)
    else:
        mark, style = marks.get(line.level, (glyphs.dot, "dim"))
    row = Line((f" {clock(line.time)} ", "dim"), (f"{mark} ", style))
    look = {"error": "bad", "info": "dim"}.get(line.level, "text")
    return row.add(shorten(safe(line.text), width - row.width, glyphs.ellipsis), look)


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
