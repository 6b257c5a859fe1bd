"""RunCompareScreen: marked runs side by side: their settings and results, and their curves on the same axes."""

from __future__ import annotations

import itertools
import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.telemetry import events
from ossconsole.telemetry.runs import RunSummary, read_events
from ossconsole.telemetry.series import Point, Series
from ossconsole.telemetry.view import RunView
from ossconsole.tui.kit import actions, plot
from ossconsole.tui.kit.canvas import Painter, Panel
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.text import MISSING, Line, duration, number, percent, rate, safe, shorten, wrap
from ossconsole.tui.train.charts import (
    AXIS_WIDTH,
    LOSS,
    SPEED,
    ChartSpec,
    TimeWindow,
    axis,
    step_ticks,
    tick_rows,
    time_ticks,
    with_grid,
)

STYLES = ("primary", "good", "warn", "bad", "strong", "dim")
"""The colours of the runs; none is the colour of an endpoint."""
_DASHES = ((1, 1), (4, 6), (2, 4), (8, 10), (1, 3), (6, 7))
"""The columns of dots that are drawn, of how many: curves differ without colours, too."""
MAX_RUNS = len(STYLES)
_LABEL = 24

Views = Sequence[RunView]


def differences(views: Views, glyphs: Glyphs, width: int, height: int) -> list[Line]:
    """The settings that differ, marked, then the results; rows that do not fit are counted.

    Long values are broken into lines where rows are left.
    """
    column = (width - _LABEL) // len(views)
    head = Line((" run", "dim")).to(_LABEL)
    for place, (view, style) in enumerate(zip(views, STYLES, strict=False), 1):
        name = view.run.run if view.run else MISSING
        head.add(shorten(f"{place}: {name}" if column > len(name) + 3 else f"{place}", column - 1), style)
        head.to(_LABEL + column * place)
    results = [(name, [value(view) for view in views]) for name, value in _RESULTS]
    settings = _settings(views)
    rows = [*settings, *results]
    lines = [head]
    for at, (name, values) in enumerate(rows):
        if len(lines) == height - 1 and at < len(rows) - 1:
            lines.append(Line((f" and {len(rows) - at} more rows: a higher terminal shows them", "dim")))
            break
        mark = "!" if at < len(settings) - 1 else " "  # the last one is the source of the figures
        label = Line((mark, "warn"), (name, "dim"))
        lines += _side_by_side(label, values, column, glyphs, most=max(1, height - len(lines) - (len(rows) - at - 1)))
    return lines


def _side_by_side(label: Line, values: Sequence[str], column: int, glyphs: Glyphs, *, most: int) -> list[Line]:
    """A row of the table, of at most so many lines."""
    parts = [wrap(safe(value), column - 1) for value in values]
    for found in [each for each in parts if len(each) > most]:
        found[most - 1 :] = [shorten(" ".join(found[most - 1 :]), column - 1, glyphs.ellipsis)]
    lines = []
    for at in range(max(map(len, parts))):
        line = (label if at == 0 else Line()).to(_LABEL)
        for index, found in enumerate(parts, 1):
            line.add(found[at] if at < len(found) else "", "text").to(_LABEL + column * index)
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
    return [*rows, ("source", figures)]


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


@dataclass
class ComparedRun:
    """A run, reduced, with the series that are compared by step; `view` has them by time."""

    view: RunView = field(default_factory=RunView)
    by_step: dict[str, Series] = field(default_factory=lambda: {name: Series() for name in ("samples_per_s", "loss")})

    def apply(self, event: events.Event) -> None:
        """Applies one event, in the order of the record."""
        self.view.apply(event)
        if isinstance(event, events.Step):
            self.by_step["samples_per_s"].append(event.step, event.samples_per_s)
            self.by_step["loss"].append(event.step, event.loss)

    def points(self, name: str, axes: Axes, span: float, count: int) -> list[Point]:
        """The series from the start of the run, at most `count` points."""
        if axes.by_step:
            return self.by_step[name].window(0.0, span, count)
        series, start = self.view.series.get(name), self.view.run.time if self.view.run else 0.0
        found = series.window(start, start + span, count) if series is not None else []
        return [point._replace(time=point.time - start) for point in found]

    def length(self, axes: Axes) -> float:
        """Steps, or seconds, from the start to the end of the run."""
        if axes.by_step:
            return max(1.0, float(self.view.step))
        return max(1.0, self.view.elapsed_s(self.view.last_time or 0.0) or 1.0)


@dataclass(frozen=True)
class Axes:
    """How curves are compared: over steps or over time, smoothed over a share of the horizontal axis."""

    by_step: bool = False
    smoothing: float = 0.02

    def words(self, span: float) -> str:
        """The axis and the smoothing, for the legend; `span` is the length of the axis."""
        axis_name, width = "by step" if self.by_step else "by time", self.smoothing * span
        if not width:
            return f"{axis_name}, not smoothed"
        over = counted(max(1, round(width)), "step") if self.by_step else f"{width:.2g} s"
        return f"{axis_name}, smoothed over {over if self.by_step or width < 60 else duration(width)}"


SMOOTHINGS = (0.0, 0.02, 0.05, 0.1)
CURVES = (SPEED, replace(LOSS, series="loss", behind=""))


def smoothed(points: Sequence[Point], width: float) -> list[Point]:
    """The mean of the finite values within `width` around each point."""
    if not width:
        return list(points)
    times = [point.time for point in points]
    finite = [math.isfinite(point.last) for point in points]
    sums = [
        0.0,
        *itertools.accumulate(point.last if known else 0.0 for point, known in zip(points, finite, strict=True)),
    ]
    counts = [0, *itertools.accumulate(map(int, finite))]
    result = []
    for point, known in zip(points, finite, strict=True):
        low, high = bisect_left(times, point.time - width / 2), bisect_right(times, point.time + width / 2)
        mean = (sums[high] - sums[low]) / (counts[high] - counts[low]) if known else math.nan
        result.append(point._replace(low=mean, high=mean, last=mean))
    return result


def overlay(
    runs: Sequence[ComparedRun], spec: ChartSpec, glyphs: Glyphs, width: int, height: int, *, axes: Axes = Axes()
) -> list[Line]:
    """The curves of all runs on the same axes, from the start of each run."""
    inner = width - AXIS_WIDTH - 1
    rows = height - 2
    span = max(run.length(axes) for run in runs)
    heading = _legend(runs, spec, glyphs, width, axes.words(span))
    if rows < 1 or inner < 4:
        return [heading]
    across = plot.DOTS[glyphs.chart][0]
    count = inner * across
    found = [smoothed(run.points(spec.series, axes, span, count), axes.smoothing * span) for run in runs]
    everything = [point for points in found for point in points]
    scale = plot.scale_from_zero(everything) if spec.scale == "zero" else plot.scale_around(everything)
    curves = []
    for points, (drawn, period) in zip(found, _DASHES, strict=False):
        columns = plot.columns_of(points, 0.0, span, count)
        dashed = [column if at % (period * across) < drawn * across else None for at, column in enumerate(columns)]
        curves.append(plot.draw(dashed, scale, rows, glyphs.chart))
    lines = [heading]
    for index in range(rows):
        line = axis(scale, index, rows, glyphs, spec.unit).extend(_layered([curve[index] for curve in curves], inner))
        lines.append(with_grid(line, glyphs) if index in tick_rows(rows) else line)
    return [*lines, step_ticks(span, inner) if axes.by_step else time_ticks(TimeWindow(0.0, span), 0.0, inner)]


def _legend(runs: Sequence[ComparedRun], spec: ChartSpec, glyphs: Glyphs, width: int, note: str) -> Line:
    """The title, the dashes of each run with its number, and the axes."""
    line = Line((f"{glyphs.rule} ", "rule"), (f"{spec.title} ", "title"))
    for place, (_, style, (drawn, period)) in enumerate(zip(runs, STYLES, _DASHES, strict=False), 1):
        dashes = "".join(glyphs.bar_full if at % period < drawn else " " for at in range(6))
        line.add(f" {dashes} ", style).add(f"{place} ", style)
    end = Line((f" {note} ", "dim"), (glyphs.rule, "rule"))
    if line.width + end.width + 2 <= width:
        line.to(width - end.width, "rule", glyphs.rule).extend(end)
    return line.to(width, "rule", glyphs.rule)


def _layered(rows: Sequence[str], width: int) -> Line:
    """The same row of all curves, the first run in front."""
    line = Line()
    fronts = [
        next((number for number, row in enumerate(rows) if at < len(row) and row[at] != " "), None)
        for at in range(width)
    ]
    for front, cells in itertools.groupby(range(width), lambda at: fronts[at]):
        text = "".join(" " if front is None else rows[front][at] for at in cells)
        line.add(text, "text" if front is None else STYLES[front])
    return line


class RunCompareScreen(ConsoleScreen):
    """Runs side by side, at most MAX_RUNS; a thread reads their records."""

    SCOPE = "compare"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("compare")]

    def __init__(self, runs: Sequence[RunSummary]) -> None:
        super().__init__()
        self._runs = runs
        self._compared: Sequence[ComparedRun] = ()
        self._problem = ""
        self._axes = Axes()

    def body(self) -> ComposeResult:
        yield Panel(self._table, id="two-runs")
        for spec, name in zip(CURVES, ("two-speeds", "two-losses"), strict=True):
            yield Panel(self._curves(spec), id=name)

    def on_mount(self) -> None:
        """Read the records."""
        self._load()

    @work(thread=True, exclusive=True, group="compare", exit_on_error=False)
    def _load(self) -> None:
        try:
            self._compared = [_reduced(Path(run.path)) for run in self._runs]
        except ConsoleError as error:
            self._problem = str(error)

    def _table(self, width: int, height: int) -> Sequence[Line]:
        if self._problem:
            return [Line((f" {part}", "bad")) for part in wrap(safe(self._problem), width - 2)]
        if not self._compared:
            return [Line((" Reading the records.", "dim"))]
        return differences([run.view for run in self._compared], self.glyphs, width, height)

    def _curves(self, spec: ChartSpec) -> Painter:
        def paint(width: int, height: int) -> Sequence[Line]:
            return overlay(self._compared, spec, self.glyphs, width, height, axes=self._axes) if self._compared else []

        return paint

    def action_axis(self) -> None:
        """Show the curves over steps, or over time."""
        self._axes = replace(self._axes, by_step=not self._axes.by_step)
        self.tick()

    def action_smoothing(self) -> None:
        """Smooth the curves over the next share of the axis."""
        at = SMOOTHINGS.index(self._axes.smoothing)
        self._axes = replace(self._axes, smoothing=SMOOTHINGS[(at + 1) % len(SMOOTHINGS)])
        self.tick()


def _reduced(path: Path) -> ComparedRun:
    """The whole record, reduced; lets other threads run in between."""
    run = ComparedRun()
    for count, event in enumerate(read_events(path)):
        run.apply(event)
        if count % 500 == 0:
            time.sleep(0)
    return run
