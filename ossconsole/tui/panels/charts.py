"""Charts over time: one curve each, one style a row, the endpoint in use along the time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ossconsole.telemetry.series import Point
from ossconsole.telemetry.view import RunView, Span
from ossconsole.tui import plot
from ossconsole.tui.panels.context import Context
from ossconsole.tui.text import MISSING, Line, number

AXIS_WIDTH = 6
# More stretches of colour than this a row would cost more bytes than they tell.
MAX_COLOURED_SPANS = 8


@dataclass(frozen=True)
class ChartSpec:
    """What a chart shows. `lane` adds the endpoint in use and the time below the curve, and colours the curve by it."""

    title: str
    series: str
    scale: Literal["zero", "percent", "around", "log"] = "zero"
    unit: str = ""
    style: str = "primary"
    lane: bool = False


@dataclass(frozen=True)
class TimeWindow:
    """The stretch of time that the charts show, in Unix seconds."""

    start: float
    end: float
    label: str = ""
    cursor: float | None = field(default=None)

    def column(self, time: float, width: int) -> int:
        """The cell of `time` in `width` cells; outside of 0..width-1 where it is not shown."""
        return int((time - self.start) / (self.end - self.start) * width)


def chart(context: Context, spec: ChartSpec, window: TimeWindow, width: int, height: int) -> list[Line]:
    """Heading, curve with its axis, and with `lane` two rows for endpoint and time."""
    inner = width - AXIS_WIDTH - 1
    rows = height - 1 - (2 if spec.lane else 0)
    if inner < 4 or rows < 1:
        return [context.heading(spec.title, width)]
    series = context.view.series.get(spec.series)
    across = plot.DOTS[context.glyphs.chart][0]
    points = series.window(window.start, window.end, inner * across) if series else []
    scale = _scale(spec, points)
    columns = plot.columns_of(points, window.start, window.end, inner * across)
    cells = plot.draw(columns, scale, rows, context.glyphs.chart)
    value = points[-1].last if points else None
    text = number(value) if value is not None else MISSING
    note = f"{text}{spec.unit}" + (f"  {window.label}" if spec.lane and window.label else "")
    lines = [context.heading(spec.title, width, note)]
    spans = _visible_spans(context.view, window) if spec.lane else []
    for index, row in enumerate(cells):
        lines.append(_axis(scale, index, rows, context).extend(_curve(row, spec, spans, window, context)))
    if spec.lane:
        lines += [_lane(context, spans, window, inner), _times(window, inner)]
    return lines


def _scale(spec: ChartSpec, points: Sequence[Point]) -> plot.Scale:
    if spec.scale == "percent":
        return plot.Scale(0.0, 100.0)
    if spec.scale == "zero":
        return plot.scale_from_zero(points)
    return plot.scale_around(points, log=spec.scale == "log")


def _axis(scale: plot.Scale, index: int, rows: int, context: Context) -> Line:
    """The label of a row: at the top, the bottom, and the middle where there is room."""
    value = None
    if index == 0:
        value = scale.high
    elif index == rows - 1:
        value = scale.low
    elif rows >= 7 and rows % 2 and index == rows // 2 and not scale.log:
        value = (scale.low + scale.high) / 2
    label = "" if value is None else number(value)
    line = Line((label.rjust(AXIS_WIDTH)[:AXIS_WIDTH], "dim"))
    return line.add(context.glyphs.tick if value is not None else context.glyphs.vertical, "rule")


def _curve(row: str, spec: ChartSpec, spans: Sequence[Span], window: TimeWindow, context: Context) -> Line:
    """One row of cells, in the colour of the endpoint that delivered; a dotted line where it was switched."""
    width = len(row)
    marks = {window.column(span.time, width) for span in context.view.switches}
    marked = "".join(context.glyphs.marker if cell == " " and at in marks else cell for at, cell in enumerate(row))
    if not spans:
        return Line((marked, spec.style))
    line = Line()
    for at, span in enumerate(spans):
        end = window.column(spans[at + 1].time, width) if at + 1 < len(spans) else width
        line.add(marked[line.width : max(line.width, end)], str(span.endpoint))
    return line


def _visible_spans(view: RunView, window: TimeWindow) -> list[Span]:
    """The stretches of one endpoint in the window, the first from its start; none where they are too many."""
    before = [span for span in view.spans if span.time <= window.start]
    inside = [span for span in view.spans if window.start < span.time < window.end]
    spans = [*(Span(window.start, span.endpoint) for span in before[-1:]), *inside]
    if len(spans) > MAX_COLOURED_SPANS:
        return []
    if spans and spans[0].time > window.start:
        spans[0] = Span(window.start, spans[0].endpoint)
    return spans


def _lane(context: Context, spans: Sequence[Span], window: TimeWindow, width: int) -> Line:
    """The endpoint in use as glyph and colour, along the time axis."""
    glyphs = context.glyphs
    line = Line((" " * AXIS_WIDTH, "dim"), (glyphs.corner, "rule"))
    if not spans:
        return line.to(AXIS_WIDTH + 1 + width, "rule", glyphs.rule)
    for at, span in enumerate(spans):
        end = window.column(spans[at + 1].time, width) if at + 1 < len(spans) else width
        cells = max(0, end - (line.width - AXIS_WIDTH - 1))
        if cells:
            line.add(glyphs.endpoint(span.endpoint) + glyphs.bar_full * (cells - 1), str(span.endpoint))
    return line


def _times(window: TimeWindow, width: int) -> Line:
    """Times before the right edge, at round distances."""
    span = window.end - window.start
    step = next((step for step in _TIME_STEPS if span / step <= max(1, width / 12)), _TIME_STEPS[-1])
    cells = [" "] * width
    back = 0.0
    while back <= span:
        text = "now" if back == 0 else f"-{_short(back)}"
        at = min(width - len(text), window.column(window.end - back, width) - len(text) // 2)
        if at >= 0:
            cells[at : at + len(text)] = text
        back += step
    return Line((" " * (AXIS_WIDTH + 1), "dim"), ("".join(cells), "dim"))


_TIME_STEPS = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800)


def _short(seconds: float) -> str:
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min" if total % 60 == 0 else f"{total // 60}:{total % 60:02d}"
    return f"{total / 3600:g} h"
