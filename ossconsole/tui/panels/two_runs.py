"""Two runs beside each other: a table of what differs and what came of it, and curves over the same axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.series import Point
from ossconsole.telemetry.view import RunView
from ossconsole.tui import plot
from ossconsole.tui.glyphs import Glyphs
from ossconsole.tui.panels.charts import ChartSpec
from ossconsole.tui.text import MISSING, Line, compact, duration, number, percent, rate, safe, shorten

STYLES = ("primary", "good")
"""One look for each of the two runs; neither is that of an endpoint."""
_LABEL = 24
_AXIS = 7

Pair = tuple[RunView, RunView]


def differences(views: Pair, glyphs: Glyphs, width: int, height: int) -> list[Line]:
    """Settings that differ, then the results; rows that do not fit are counted."""
    column = (width - _LABEL) // 2
    head = Line((" run", "dim")).to(_LABEL)
    for place, (view, style) in enumerate(zip(views, STYLES, strict=True), 1):
        head.add(shorten(f"{place}: {view.run.run if view.run else MISSING}", column - 1), style)
        head.to(_LABEL + column * place)
    rows = [*_settings(views), *_results(views)]
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


def _settings(views: Pair) -> list[tuple[str, tuple[str, str]]]:
    """The settings in which the runs differ, and whose figures are simulated."""
    first, second = (view.run.settings if view.run else {} for view in views)
    rows = [
        (name.replace("_", " "), (str(first.get(name, MISSING)), str(second.get(name, MISSING))))
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    ]
    figures = ["simulated" if view.run and view.run.simulated else "measured" for view in views]
    return [*rows, ("figures", (figures[0], figures[1]))]


def _results(views: Pair) -> list[tuple[str, tuple[str, str]]]:
    return [(name, (words(views[0]), words(views[1]))) for name, words in _RESULTS]


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
    ("accelerated gives", _ratio),
    ("measured over", _conditions),
    ("data wait standard", _wait(EndpointKind.STANDARD)),
    ("data wait accelerated", _wait(EndpointKind.ACCELERATED)),
    ("train loss", lambda view: number(view.last_epoch.train_loss if view.last_epoch else None)),
    ("val loss", lambda view: number(view.last_epoch.val_loss if view.last_epoch else None)),
    ("top-1", lambda view: percent(view.last_epoch.top1 if view.last_epoch else None, 1)),
    ("best top-1", lambda view: percent(view.best_top1, 1)),
)


def overlay(views: Pair, spec: ChartSpec, glyphs: Glyphs, width: int, height: int) -> list[Line]:
    """Both runs' curves below each other on the same axes, from the start of each run."""
    inner = width - _AXIS - 1
    rows = (height - 1) // 2
    heading = Line((f"{glyphs.rule} ", "rule"), (f"{spec.title} ", "title"), ("1 above, 2 below ", "dim"))
    heading.to(width, "rule", glyphs.rule)
    if rows < 1 or inner < 4:
        return [heading]
    count = inner * plot.DOTS[glyphs.chart][0]
    span = max(_age(view) for view in views)
    found = [_points(view, spec.series, span, count) for view in views]
    both = [point for points in found for point in points]
    scale = plot.scale_from_zero(both) if spec.scale == "zero" else plot.scale_around(both)
    lines = [heading]
    for view, points, style in zip(views, found, STYLES, strict=True):
        start = view.run.time if view.run else 0.0
        columns = plot.columns_of(points, start, start + span, count)
        lines += _curve(plot.draw(columns, scale, rows, glyphs.chart), scale, glyphs, style)
    return lines


def _curve(cells: Sequence[str], scale: plot.Scale, glyphs: Glyphs, style: str) -> list[Line]:
    lines = []
    for index, row in enumerate(cells):
        label = compact(scale.high) if index == 0 else compact(scale.low) if index == len(cells) - 1 else ""
        axis = Line((label.rjust(_AXIS)[:_AXIS], "dim"), (glyphs.tick if label else glyphs.vertical, "rule"))
        lines.append(axis.add(row, style))
    return lines


def _age(view: RunView) -> float:
    return max(1.0, view.elapsed_s(view.last_time or 0.0) or 1.0)


def _points(view: RunView, name: str, span: float, count: int) -> list[Point]:
    series = view.series.get(name)
    if series is None or view.run is None:
        return []
    return series.window(view.run.time, view.run.time + span, count)
