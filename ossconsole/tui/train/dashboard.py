"""Dashboard: a run's figures, charts, comparison and events, for live, replayed and attached runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Grid, Horizontal, Vertical

from ossconsole.telemetry.events import LogLine, RunState, Saving, megabytes
from ossconsole.telemetry.runs import RunSummary
from ossconsole.telemetry.view import RunView
from ossconsole.tui.console import ConsoleState, Ready
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.canvas import Painter, Panel
from ossconsole.tui.kit.dialogs import DetailScreen
from ossconsole.tui.kit.screen import ConsoleModal, ConsoleScreen
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.kit.text import Line, clock, percent, safe, shorten_around_key, shorten_middle, wrap
from ossconsole.tui.train import compare, headline, machine
from ossconsole.tui.train.charts import LOSS, SPEED, ChartSpec, TimeAxis, TimeWindow, chart, chart_specs
from ossconsole.tui.train.monitor import DashboardContext

SLOTS = 8
# Charts are redrawn on every second tick: what moves them is seconds old, and they are most of the bytes.
CHART_TICKS = 2
# Below this height the small charts leave their rows to the large one.
SMALL_CHARTS_FROM = 22
_CARD_ROWS = 7  # of a run that has ended, at most
# And below this one the event log leaves rows to the charts.
MANY_EVENTS_FROM = 36


class RunSource(Protocol):
    """A run to show: the live one, or a replay."""

    @property
    def view(self) -> RunView:
        """The events so far, reduced."""

    @property
    def now(self) -> float:
        """The time of the run in Unix seconds; in a replay, that of the record."""


class Dashboard(ConsoleScreen):
    """The base of the screens that show one run. Subclasses give `source` and their own keys."""

    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("view")]
    EXTRA_SCOPES: ClassVar[tuple[str, ...]] = ("view",)

    def __init__(self) -> None:
        super().__init__()
        self._axis = TimeAxis()
        self._first_chart = 0
        self._raw = False
        self._log = False
        self._ticks = 0

    @property
    def source(self) -> RunSource:
        """The run to show."""
        raise NotImplementedError

    @property
    def record(self) -> Path | None:
        """The record of the run; None where there is no run."""
        raise NotImplementedError

    @property
    def state(self) -> ConsoleState:
        """The state to explain while there is no run; a record needs no bucket."""
        return Ready()

    @property
    def recent(self) -> Sequence[RunSummary]:
        """Recorded runs to show while there is no run, the newest first."""
        return ()

    @property
    def starting(self) -> bool:
        """True for a run that was started and has not reported yet."""
        return False

    @property
    def has_controls(self) -> bool:
        """True where the screen has the keys that change the run."""
        return False

    @property
    def comparison_status(self) -> str:
        """The state of auto A/B or of the A/A control, if one is active."""
        return ""

    @property
    def reading(self) -> float | None:
        """How much of the record of a live run was read, 0 to 1, while the view shows its past; else None."""
        return None

    @property
    def requested(self) -> str:
        """A request to the run that has not taken effect yet."""
        return ""

    def body(self) -> ComposeResult:
        yield Panel(lambda width, height: headline.verdict(self.context, width, height), id="verdict")
        yield Panel(lambda width, _: [headline.progress(self.context, width)], id="progress")
        yield Panel(lambda width, _: [headline.failure(self.context, width)], id="failure")
        yield Panel(lambda width, _: headline.tiles(self.context, width), id="tiles")
        yield Panel(self._idle, id="idle")
        with Vertical(id="live"):
            with Horizontal(id="main"):
                yield Panel(self._speed, id="speed", classes="chart")
                yield Panel(lambda width, height: compare.comparison(self.context, width, height), id="compare")
            with Grid(id="charts"):
                for slot in range(SLOTS):
                    yield Panel(self._chart(slot), id=f"slot-{slot}", classes="chart")
        with Container(id="bottom"):
            yield Panel(lambda width, height: machine.machine(self.context, width, height), id="machine")
            yield Panel(self._events, id="events")

    def on_mount(self) -> None:
        """Paint for the first time."""
        self.tick()

    def tick(self) -> None:
        """Update the layout; paint the charts on every second tick."""
        view = self.source.view
        self._ticks += 1
        self.set_class(view.run is None, "-idle")
        self.set_class(self.size.height < SMALL_CHARTS_FROM, "-short")
        self.set_class(self.size.height < MANY_EVENTS_FROM, "-tight")
        failed = view.state is RunState.FAILED
        self.set_class(failed, "-failed")
        self.set_class(view.state is not None and view.state.final, "-over")
        self.set_class(headline.has_more_advice(view), "-more-advice")
        self.set_class(bool(view.errors) and not failed, "-failing")
        for panel in self.query("#verdict"):
            over = view.state is not None and view.state.final
            panel.styles.height = len(headline.verdict(self.context, self.size.width, _CARD_ROWS)) if over else None
        gpus = len(view.telemetry.gpus) if view.telemetry else 0
        for panel in self.query("#machine"):
            panel.styles.height = min(max(1, gpus), self._gpu_rows()) + (machine.HOST_LINES if self._high else 1)
        self.draw(charts=self._ticks % CHART_TICKS == 0)

    def draw(self, *, charts: bool = True) -> None:
        """Paint the visible panels; the charts only with `charts`."""
        for panel in self.query(Panel):
            if panel.display and (charts or not panel.has_class("chart")):
                panel.redraw()

    def draw_charts(self) -> None:
        """Paint the visible charts."""
        for panel in self.query(".chart").results(Panel):
            if panel.display:
                panel.redraw()

    def on_screen_resume(self) -> None:
        """Have the next tick paint the charts: that of ConsoleScreen's handler, which Textual calls after this one."""
        self._ticks = -1

    @property
    def _high(self) -> bool:
        return self.has_class("-high")

    def _gpu_rows(self) -> int:
        return 1 if self.has_class("-low") else 4 if self.has_class("-middle") else 8

    # Panels

    @property
    def context(self) -> DashboardContext:
        """What the panels are drawn from, now."""
        profile = self.services.profile
        return DashboardContext(
            view=self.source.view,
            now=self.source.now,
            glyphs=self.glyphs,
            has_accelerated=profile is None or profile.accelerated_endpoint is not None,
            comparison_status=self.comparison_status,
            has_controls=self.has_controls,
            requested=self.requested,
            price_per_hour=self.console.price_per_hour,
            reading=self.reading,
        )

    @property
    def window(self) -> TimeWindow:
        """The time window of all charts."""
        return self._axis.window(self.source.view, self.source.now)

    def _idle(self, width: int, height: int) -> Sequence[Line]:
        found = headline.idle(self.context, self.state, width, starting=self.starting, recent=self.recent)
        return found[:height]

    def _speed(self, width: int, height: int) -> Sequence[Line]:
        note = f"{SMALL_CHARTS_FROM} rows for more" if self.has_class("-short") else ""
        return chart(self.context, SPEED, self.window, width, height, note=note)

    def _chart(self, slot: int) -> Painter:
        def paint(width: int, height: int) -> Sequence[Line]:
            specs = self._specs()
            if slot >= len(specs):
                return []
            shown = self._shown_charts()
            hidden = len(specs) - shown
            note = f"v: {hidden} more" if hidden > 0 and slot == shown - 1 else ""
            return chart(self.context, specs[slot], self.window, width, height, note=note)

        return paint

    def _specs(self) -> list[ChartSpec]:
        """The specs of the charts from the first slot on."""
        specs = chart_specs(self.source.view, raw=self._raw, log=self._log)
        first = self._first_chart % len(specs)
        return specs[first:] + specs[:first]

    def _draw_loss(self) -> None:
        """Paint the chart of the loss, where it shows."""
        for slot, spec in enumerate(self._specs()[: self._shown_charts()]):
            if spec.title.startswith(LOSS.title):
                self.query_one(f"#slot-{slot}", Panel).redraw()

    def _shown_charts(self) -> int:
        columns = 2 if self.has_class("-narrow") else 3 if self.has_class("-wide") else 4
        return columns * (2 if self._high else 1)

    def _events(self, width: int, height: int) -> Sequence[Line]:
        context = self.context
        older = len(context.view.log) - (height - 1)
        note = f"i: {older} more" if older > 0 else ""
        return [context.heading("events", width, note), *event_log(context, width, height - 1)]

    # Actions

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        """Enable Dismiss while there are errors, and Predictions where there is a checkpoint."""
        view = self.source.view
        if action == "dismiss_errors":
            return True if view.errors else None
        if action == "predictions":
            return True if view.last_checkpoint is not None else None
        return True

    def action_zoom(self, direction: int) -> None:
        """A shorter (1) or longer (-1) time window."""
        self._axis.zoom(self.source.view, self.source.now, direction)
        self.draw_charts()

    def action_pan(self, direction: int) -> None:
        """Move the window, or the crosshair, later (1) or earlier (-1)."""
        self._axis.move(self.source.view, self.source.now, direction)
        self.draw_charts()

    def action_follow(self) -> None:
        """Return to the newest values."""
        self._axis.follow()
        self.draw_charts()

    def action_crosshair(self) -> None:
        """Show or hide the crosshair."""
        self._axis.toggle_cursor(self.source.view, self.source.now)
        self.draw_charts()

    def action_next_charts(self) -> None:
        """Show the charts that did not fit."""
        self._first_chart = (self._first_chart + self._shown_charts()) % len(self._specs())
        self.draw_charts()

    def action_log_scale(self) -> None:
        """Toggle the logarithmic axis of the loss."""
        self._log = not self._log
        self._draw_loss()

    def action_raw(self) -> None:
        """Toggle the raw loss alone."""
        self._raw = not self._raw
        self._draw_loss()

    def action_comparison(self) -> None:
        """Show all measurements of both endpoints."""
        self.app.push_screen(DetailScreen("A/B", "b", lambda width, _: compare.detail_lines(self.context, width)))

    def action_machine(self) -> None:
        """Show all metrics of GPUs and host."""
        self.app.push_screen(DetailScreen("Machine", "g", lambda width, _: machine.detail_lines(self.context, width)))

    def action_events(self) -> None:
        """Show all events in full."""

        self.app.push_screen(EventsScreen(self.context))

    @work(exclusive=True, group="predictions", exit_on_error=False)
    async def action_predictions(self) -> None:
        """Show what the checkpoint of the run gets right and wrong; evaluate it first where that was not done."""
        from ossconsole.tui.train.predictions import show_predictions

        if self.record is not None:
            await show_predictions(self, self.record)

    def action_dismiss_errors(self) -> None:
        """Hide the errors so far."""
        self.source.view.dismiss_errors()
        self.tick()


def event_log(context: DashboardContext, width: int, height: int) -> list[Line]:
    """The newest events; below them the progress of the checkpoint that is being written.

    Where rows are left, long events are shown in full.
    """
    saving = context.view.saving
    below = [_progress(saving, context, width)] if saving is not None else []
    count = height - len(below)
    lines = list(context.view.log)[-count:] if count > 0 else []
    rows: list[Line] = []
    for at, line in enumerate(lines):
        left = count - len(rows) - (len(lines) - at - 1)
        full = _event_rows(line, context, width) if left > 1 else []
        fits = 0 < len(full) <= left and all(row.width <= width for row in full)
        rows += full if fits else [event_row(line, context, width)]
    return [*rows, *below]


def _progress(saving: Saving, context: DashboardContext, width: int) -> Line:
    row = Line((f" {clock(saving.time)} ", "dim"), (f"{context.glyphs.up} ", "primary"))
    done = f"{megabytes(saving.written)[:-3]} of {megabytes(saving.bytes)}"
    share = saving.written / saving.bytes if saving.bytes else 0.0
    tail = f": {done}, {percent(share)}"
    key = shorten_middle(safe(saving.key), width - row.width - len(tail) - len(_SAVING), context.glyphs.ellipsis)
    return row.add(f"{_SAVING}{key}{tail}", "text")


_SAVING = "writing checkpoint "


def event_text(line: LogLine, width: int) -> list[Line]:
    """The text of one event in full, broken between words."""
    style = {"error": "bad", "warning": "warn"}.get(line.level, "text")
    return [Line((part, style)) for part in wrap(safe(line.text), width)]


def event_row(line: LogLine, context: DashboardContext, width: int) -> Line:
    """Time, mark and as much of the text as fits."""
    row, style = _begin(line, context)
    return row.add(shorten_around_key(safe(line.text), width - row.width, context.glyphs.ellipsis), style)


def _event_rows(line: LogLine, context: DashboardContext, width: int) -> list[Line]:
    """Time, mark and the whole text, broken between words."""
    row, style = _begin(line, context)
    indent = row.width
    first, *rest = wrap(safe(line.text), width - indent)
    return [row.add(first, style), *(Line().to(indent).add(part, style) for part in rest)]


def _begin(line: LogLine, context: DashboardContext) -> tuple[Line, str]:
    """Time and mark of an event, and the style of its text."""
    glyphs = context.glyphs
    marks = {"good": (glyphs.done, "good"), "warning": ("!", "warn"), "error": (glyphs.failed, "bad")}
    if line.endpoint is not None:
        mark, mark_style = glyphs.endpoint(line.endpoint), str(line.endpoint)
    else:
        mark, mark_style = marks.get(line.level, (glyphs.dot, "dim"))
    text_style = {"error": "bad", "info": "dim"}.get(line.level, "text")
    return Line((f" {clock(line.time)} ", "dim"), (f"{mark} ", mark_style)), text_style


_FOLLOW_S = 0.5


class EventsScreen(ConsoleModal):
    """All events in full, also those that follow; the newest is at the bottom, and selected until another one is."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("i,q", "back", show=False)]

    def __init__(self, context: DashboardContext) -> None:
        super().__init__()
        self._drawn_with = context
        self._lines: list[LogLine] = []

    def compose(self) -> ComposeResult:
        with self.frame("Events", "esc close", classes="-full"):
            yield VirtualTable[LogLine](lambda line, width: event_row(line, self._drawn_with, width), id="all-events")
            yield Panel(self._selected, id="event")

    @property
    def table(self) -> VirtualTable[LogLine]:
        """The events, oldest first."""
        return self.query_one(VirtualTable)

    def on_mount(self) -> None:
        """Select the newest event."""
        self.table.focus()
        self.follow()
        self.set_interval(_FOLLOW_S, self.follow)

    def follow(self) -> None:
        """Show the events so far; the selected one stays selected, unless it was the newest."""
        lines, before, row = list(self._drawn_with.view.log), self._lines, self.table.cursor_row
        if lines and before and lines[-1] is before[-1]:
            return
        self._lines = lines
        newest = row is None or row is before[-1]
        at = next((index for index, line in enumerate(lines) if line is row), 0)
        self.table.show(lines, len(lines) - 1 if newest else at)
        self.query_one(Panel).redraw()

    def _on_virtual_table_moved(self) -> None:
        """Show the text of the selected event."""
        self.query_one(Panel).redraw()

    def _selected(self, width: int, height: int) -> Sequence[Line]:
        line = self.table.cursor_row
        return [Line(), *event_text(line, width)][:height] if line else [Line(), Line(("No events yet.", "dim"))]
