"""CompareScreen: two runs side by side: settings that differ, results, and their curves on one scale."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry.record import read_events
from ossconsole.telemetry.runs import RunSummary
from ossconsole.telemetry.view import RunView
from ossconsole.tui import actions
from ossconsole.tui.panels.charts import LOSS, SPEED, ChartSpec
from ossconsole.tui.panels.two_runs import differences, overlay
from ossconsole.tui.screens.base import ConsoleScreen
from ossconsole.tui.text import Line
from ossconsole.tui.widgets.panel import Painter, Panel


class CompareScreen(ConsoleScreen):
    """Reads both records in a thread."""

    SCOPE = "compare"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("compare")]

    def __init__(self, first: RunSummary, second: RunSummary) -> None:
        super().__init__()
        self._runs = (first, second)
        self._views: tuple[RunView, RunView] | None = None

    def body(self) -> ComposeResult:
        yield Panel(self._table, id="two-runs")
        yield Panel(self._curves(SPEED), id="two-speeds")
        yield Panel(self._curves(LOSS), id="two-losses")

    def on_mount(self) -> None:
        self._load()

    def tick(self) -> None:
        for panel in self.query(Panel):
            panel.redraw()

    @work(thread=True, exclusive=True, group="compare", exit_on_error=False)
    def _load(self) -> None:
        try:
            first, second = (_reduced(Path(run.path)) for run in self._runs)
        except ConsoleError as error:
            self.app.call_from_thread(self.tell, error)
            return
        self._views = (first, second)

    def _table(self, width: int, height: int) -> Sequence[Line]:
        if self._views is None:
            return [Line((" Reading both records.", "dim"))]
        return differences(self._views, self.glyphs, width, height)

    def _curves(self, spec: ChartSpec) -> Painter:
        def paint(width: int, height: int) -> Sequence[Line]:
            if self._views is None:
                return []
            return overlay(self._views, spec, self.glyphs, width, height)

        return paint

    def action_leave(self) -> None:
        self.dismiss(None)


def _reduced(path: Path) -> RunView:
    """The whole record in one view; other threads get their turn in between."""
    view = RunView()
    for number, event in enumerate(read_events(path)):
        view.apply(event)
        if number % 500 == 0:
            time.sleep(0)
    return view
