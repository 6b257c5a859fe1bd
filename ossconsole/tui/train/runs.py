"""RunsScreen: all recorded runs, to replay, watch, compare and export; RunCompareScreen: marked runs side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import export
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.report import write_report
from ossconsole.telemetry.runs import RunSummary, list_runs, read_events
from ossconsole.telemetry.series import Point
from ossconsole.telemetry.view import RunView
from ossconsole.tui.kit import actions, plot
from ossconsole.tui.kit.canvas import Painter, Panel
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.kit.text import MISSING, Line, compact, duration, moment, number, percent, rate, safe, shorten
from ossconsole.tui.train.charts import AXIS_WIDTH, LOSS, SPEED, ChartSpec, TimeWindow, time_ticks
from ossconsole.tui.train.replay import Replay, ReplayScreen


def _write_report(record: Path, target: Path) -> Path:
    from ossconsole.training.bench.buyers import run_buyers  # imports numpy

    return write_report(record, target, more=run_buyers)


STYLES = ("primary", "good", "warn", "bad", "strong", "dim")
"""The colours of the runs; none is the colour of an endpoint."""
_DASHES = ((1, 1), (4, 6), (2, 4), (8, 10), (1, 3), (6, 7))
"""The columns of dots that are drawn, of how many: curves differ without colours, too."""
MOST_RUNS = len(STYLES)
_LABEL = 24

Views = Sequence[RunView]


def differences(views: Views, glyphs: Glyphs, width: int, height: int) -> list[Line]:
    """The settings that differ, then the results; rows that do not fit are counted."""
    column = (width - _LABEL) // len(views)
    head = Line((" run", "dim")).to(_LABEL)
    for place, (view, style) in enumerate(zip(views, STYLES, strict=False), 1):
        name = view.run.run if view.run else MISSING
        head.add(shorten(f"{place}: {name}" if column > len(name) + 3 else f"{place}", column - 1), style)
        head.to(_LABEL + column * place)
    results = [(name, [value(view) for view in views]) for name, value in _RESULTS]
    rows = [*_settings(views), *results]
    lines = [head]
    for at, (name, values) in enumerate(rows):
        if len(lines) == height - 1 and at < len(rows) - 1:
            lines.append(Line((f" and {len(rows) - at} more rows", "dim")))
            break
        line = Line((f" {name}", "dim")).to(_LABEL)
        for index, value in enumerate(values):
            line.add(shorten(safe(value), column - 1, glyphs.ellipsis), "text").to(_LABEL + column * (index + 1))
        lines.append(line)
    return lines


def _settings(views: Views) -> list[tuple[str, list[str]]]:
    """The settings that differ, and whether the figures are simulated."""
    found = [view.run.settings if view.run else {} for view in views]
    names = dict.fromkeys(name for settings in found for name in settings)
    rows = [
        (name.replace("_", " "), [str(settings.get(name, MISSING)) for settings in found])
        for name in names
        if any(settings.get(name) != found[0].get(name) for settings in found)
    ]
    figures = ["simulated" if view.run and view.run.simulated else "measured" for view in views]
    return [*rows, ("figures", figures)]


def _speed(kind: EndpointKind) -> Callable[[RunView], str]:
    return lambda view: rate(view.figures(kind).samples_per_s)


def _wait(kind: EndpointKind) -> Callable[[RunView], str]:
    return lambda view: percent(view.figures(kind).wait_fraction)


def _conditions(view: RunView) -> str:
    found = view.comparison
    return found.conditions.words if found.pairs and found.conditions is not None else MISSING


def _ratio(view: RunView) -> str:
    found = view.comparison
    return found.words if found.pairs else MISSING


_RESULTS: tuple[tuple[str, Callable[[RunView], str]], ...] = (
    ("state", lambda view: str(view.state or MISSING)),
    ("time", lambda view: duration(view.elapsed_s(view.last_time or 0.0))),
    ("steps", lambda view: f"{view.step:,}"),
    ("samples/s standard", _speed(EndpointKind.STANDARD)),
    ("samples/s accelerated", _speed(EndpointKind.ACCELERATED)),
    ("accelerated/standard", _ratio),
    ("conditions", _conditions),
    ("data wait standard", _wait(EndpointKind.STANDARD)),
    ("data wait accelerated", _wait(EndpointKind.ACCELERATED)),
    ("train loss", lambda view: number(view.last_epoch.train_loss if view.last_epoch else None)),
    ("val loss", lambda view: number(view.last_epoch.val_loss if view.last_epoch else None)),
    ("top-1", lambda view: percent(view.last_epoch.top1 if view.last_epoch else None, 1)),
    ("best top-1", lambda view: percent(view.best_top1, 1)),
)


def overlay(views: Views, spec: ChartSpec, glyphs: Glyphs, width: int, height: int) -> list[Line]:
    """The curves of all runs on the same axes, from the start of each run."""
    inner = width - AXIS_WIDTH - 1
    rows = height - 2
    heading = _legend(views, spec, glyphs, width)
    if rows < 1 or inner < 4:
        return [heading]
    across = plot.DOTS[glyphs.chart][0]
    count = inner * across
    span = max(_age(view) for view in views)
    found = [_points(view, spec.series, span, count) for view in views]
    everything = [point for points in found for point in points]
    scale = plot.scale_from_zero(everything) if spec.scale == "zero" else plot.scale_around(everything)
    curves = []
    for view, points, (drawn, period) in zip(views, found, _DASHES, strict=False):
        start = view.run.time if view.run else 0.0
        columns = plot.columns_of(points, start, start + span, count)
        dashed = [column if at % (period * across) < drawn * across else None for at, column in enumerate(columns)]
        curves.append(plot.draw(dashed, scale, rows, glyphs.chart))
    lines = [heading]
    for index in range(rows):
        label = compact(scale.high) if index == 0 else compact(scale.low) if index == rows - 1 else ""
        axis = Line((label.rjust(AXIS_WIDTH)[:AXIS_WIDTH], "dim"), (glyphs.tick if label else glyphs.vertical, "rule"))
        lines.append(axis.extend(_layered([curve[index] for curve in curves], inner)))
    return [*lines, time_ticks(TimeWindow(0.0, span), 0.0, inner)]


def _legend(views: Views, spec: ChartSpec, glyphs: Glyphs, width: int) -> Line:
    """The title, and the dashes of each run with its number."""
    line = Line((f"{glyphs.rule} ", "rule"), (f"{spec.title} ", "title"))
    for place, (_, style, (drawn, period)) in enumerate(zip(views, STYLES, _DASHES, strict=False), 1):
        dashes = "".join(glyphs.bar_full if at % period < drawn else " " for at in range(6))
        line.add(f" {dashes} ", style).add(f"{place} ", style)
    return line.to(width, "rule", glyphs.rule)


def _layered(rows: Sequence[str], width: int) -> Line:
    """The same row of all curves, the first run in front."""
    line = Line()
    for at in range(width):
        index = next((number for number, row in enumerate(rows) if at < len(row) and row[at] != " "), None)
        line.add(" " if index is None else rows[index][at], "text" if index is None else STYLES[index])
    return line


def _age(view: RunView) -> float:
    return max(1.0, view.elapsed_s(view.last_time or 0.0) or 1.0)


def _points(view: RunView, name: str, span: float, count: int) -> list[Point]:
    series = view.series.get(name)
    if series is None or view.run is None:
        return []
    return series.window(view.run.time, view.run.time + span, count)


class RunCompareScreen(ConsoleScreen):
    """Runs side by side, at most MOST_RUNS; a thread reads their records."""

    SCOPE = "compare"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("compare")]

    def __init__(self, runs: Sequence[RunSummary]) -> None:
        super().__init__()
        self._runs = runs
        self._views: Views | None = None

    def body(self) -> ComposeResult:
        yield Panel(self._table, id="two-runs")
        yield Panel(self._curves(SPEED), id="two-speeds")
        yield Panel(self._curves(LOSS), id="two-losses")

    def on_mount(self) -> None:
        """Read the records."""
        self._load()

    @work(thread=True, exclusive=True, group="compare", exit_on_error=False)
    def _load(self) -> None:
        try:
            views = [_reduced(Path(run.path)) for run in self._runs]
        except ConsoleError as error:
            self.app.call_from_thread(self.show_error, error)
            return
        self._views = views

    def _table(self, width: int, height: int) -> Sequence[Line]:
        if self._views is None:
            return [Line((" Reading the records.", "dim"))]
        return differences(self._views, self.glyphs, width, height)

    def _curves(self, spec: ChartSpec) -> Painter:
        def paint(width: int, height: int) -> Sequence[Line]:
            if self._views is None:
                return []
            return overlay(self._views, spec, self.glyphs, width, height)

        return paint


def _reduced(path: Path) -> RunView:
    """The whole record, reduced; lets other threads run in between."""
    view = RunView()
    for count, event in enumerate(read_events(path)):
        view.apply(event)
        if count % 500 == 0:
            time.sleep(0)
    return view


_EXPORTS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "csv": (".csv", export.export_csv),
    "json": (".json", export.export_json),
    "tensorboard": ("-tensorboard", export.export_tensorboard),
}
_STATE_STYLES = {RunState.FINISHED: "good", RunState.FAILED: "bad", RunState.STOPPED: "dim"}


class RunsScreen(ConsoleScreen):
    """All recorded runs, the newest first; at most MOST_RUNS are marked."""

    SCOPE = "runs"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("runs")]

    def __init__(self) -> None:
        super().__init__()
        self._marked: list[str] = []
        self._listed = False

    def body(self) -> ComposeResult:
        yield VirtualTable[RunSummary](self._row, self._header, id="runs")
        yield Panel(self._status, id="runs-status")

    @property
    def table(self) -> VirtualTable[RunSummary]:
        """The runs."""
        return self.query_one("#runs", VirtualTable)

    def on_mount(self) -> None:
        """List the runs."""
        self.table.focus()
        self._list()

    @work(thread=True, exclusive=True, group="runs", exit_on_error=False)
    def _list(self) -> None:
        try:
            found = list_runs()
        except ConsoleError as error:
            self.app.call_from_thread(self.show_error, error)
            return
        self.app.call_from_thread(self._show_runs, found)

    def _show_runs(self, found: Sequence[RunSummary]) -> None:
        known = self.table.cursor_row
        self._listed = True
        at = next((index for index, run in enumerate(found) if known is not None and run.run == known.run), 0)
        self.table.show(found, at)
        self.tick()

    # Drawing

    def _columns(self, width: int) -> list[tuple[str, int, Callable[[RunSummary], str]]]:
        columns: list[tuple[str, int, Callable[[RunSummary], str]]] = [
            ("samples/s", 10, lambda run: rate(run.samples_per_s)),
            ("wait", 7, lambda run: percent(run.wait_fraction)),
            ("top-1", 8, lambda run: percent(run.top1, 1)),
            ("loss", 8, lambda run: number(run.loss)),
            ("step", 8, lambda run: f"{run.step:,}"),
            ("endpoint", 13, lambda run: str(run.endpoint or "")),
        ]
        room, shown = width - 2 - 21 - 13, []
        for column in columns:
            room -= column[1]
            if room >= 0:
                shown.append(column)
        return shown

    def _header(self, width: int) -> Line:
        line = Line(("  started", "dim")).to(23).add("state").to(36)
        line.pieces = [(text, "dim") for text, _ in line.pieces]
        for title, size, _ in self._columns(width):
            line.add(title.rjust(size), "dim")
        return line

    def _row(self, run: RunSummary, width: int) -> Line:
        mark = self.glyphs.done if run.run in self._marked else " "
        line = Line((mark, "primary"), (f" {moment(run.started)}", "text")).to(23)
        words = "interrupted" if run.interrupted else str(run.state)
        line.add(words, "bad" if run.interrupted else _STATE_STYLES.get(run.state, "primary")).to(36)
        for _, size, value in self._columns(width):
            line.add(shorten(safe(value(run)), size - 1).rjust(size), "text")
        return line

    def _status(self, width: int, _height: int) -> Sequence[Line]:
        run = self.table.cursor_row
        if run is None:
            return [Line((" No recorded runs." if self._listed else " Listing runs.", "dim"))]
        details = [
            run.run,
            "simulated" if run.simulated else "",
            f"on {run.host}" if run.alive is None else "",
            run.error,
        ]
        text = "  ".join(safe(part) for part in details if part)
        return [Line((f" {shorten(text, width - 2, self.glyphs.ellipsis)}", "bad" if run.error else "dim"))]

    # Actions

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        """Enable the comparison once two runs are marked."""
        if action == "compare":
            return True if len(self._marked) >= 2 else None
        return True

    def _on_virtual_table_moved(self) -> None:
        """Show the run under the cursor below the table."""
        self.tick()

    def _on_virtual_table_opened(self) -> None:
        """Open the run that was clicked."""
        self.action_replay()

    def action_replay(self) -> None:
        """Replay the run, or follow it while it is alive."""
        run = self.table.cursor_row
        if run is None:
            return
        try:
            replay = Replay(Path(run.path), follow=run.alive is True and not run.state.final)
        except ConsoleError as error:
            self.show_error(error)
            return
        self.app.push_screen(ReplayScreen(run, replay))

    def action_mark(self) -> None:
        """Mark or unmark the run for a comparison."""
        run = self.table.cursor_row
        if run is None:
            return
        if run.run in self._marked:
            self._marked.remove(run.run)
        else:
            self._marked = [*self._marked[1 - MOST_RUNS :], run.run]
        self.table.refresh()
        self.table.action_move(1)

    def action_compare(self) -> None:
        """Compare the marked runs, the oldest first."""
        marked = [run for run in self.table.rows if run.run in self._marked]
        if len(marked) >= 2:
            self.app.push_screen(RunCompareScreen(sorted(marked, key=lambda run: run.started)))

    def action_refresh(self) -> None:
        """List the runs again."""
        self._list()

    @work(exclusive=True, group="export", exit_on_error=False)
    async def action_export(self) -> None:
        """Write the run to a file in the working directory."""
        run = self.table.cursor_row
        if run is None:
            return
        choice = await self.app.push_screen_wait(
            ConfirmScreen(
                "Export",
                f"Writes to {Path.cwd()}; the file is named after the run.",
                (
                    Choice("", "Cancel"),
                    Choice("csv", "CSV"),
                    Choice("json", "JSON"),
                    Choice("tensorboard", "TensorBoard"),
                ),
            )
        )
        if choice:
            suffix, write = _EXPORTS[choice]
            self._write(write, Path(run.path), Path.cwd() / f"{run.run}{suffix}")

    def action_report(self) -> None:
        """Write a page about the run to the working directory."""
        run = self.table.cursor_row
        if run is not None:
            self._write(_write_report, Path(run.path), Path.cwd() / f"{run.run}.html")

    @work(thread=True, exclusive=True, group="export-file", exit_on_error=False)
    def _write(self, write: Callable[[Path, Path], object], record: Path, target: Path) -> None:
        try:
            write(record, target)
        except ConsoleError as error:
            self.app.call_from_thread(self.show_error, error)
            return
        self.notify(f"Written to {target}", markup=False, timeout=8)
