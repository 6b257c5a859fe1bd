"""Charts over time, and the time axis they share: follow, zoom, pan and a crosshair."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ossconsole.config.text import counted
from ossconsole.telemetry.series import Point
from ossconsole.telemetry.view import RunView, Span
from ossconsole.tui.kit import plot
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.text import MISSING, Line, clock, compact, duration, joined, number, short_times, size
from ossconsole.tui.train.monitor import DashboardContext

SPANS_S = (15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 604800)
_DEFAULT = SPANS_S.index(120)


@dataclass(frozen=True)
class TimeWindow:
    """The time that the charts show, in Unix seconds. `cursor` is the time of the crosshair, None when off."""

    start: float
    end: float
    label: str = ""
    cursor: float | None = None

    def column(self, time: float, width: int) -> int:
        """The cell of `time` in `width` cells; outside 0..width-1 where it is not visible."""
        return int((time - self.start) / (self.end - self.start) * width)

    def on_grid(self, width: int, origin: float) -> TimeWindow:
        """The window aligned to a whole number of cells after `origin`.

        Curves then stand still until a cell has passed: most updates change only the newest cell.
        """
        cell = (self.end - self.start) / width
        ahead = (origin - self.start) % cell
        return replace(self, start=self.start + ahead, end=self.end + ahead)


class TimeAxis:
    """Follows the newest values until it is moved; the crosshair moves by a hundredth of the window."""

    def __init__(self) -> None:
        self._level = _DEFAULT
        self._end: float | None = None
        self._cursor: float | None = None
        self._everything = False

    @property
    def following(self) -> bool:
        """Whether the window ends at the newest values."""
        return self._end is None

    def window(self, view: RunView, now: float) -> TimeWindow:
        """The window to draw; while the run is shorter than it, the curves grow from the left."""
        newest, oldest = self._bounds(view, now)
        span = self._span(newest, oldest)
        end = newest if self._end is None else self._end
        end = max(end, oldest + span)
        cursor = None if self._cursor is None else min(max(self._cursor, end - span), end)
        text = "all" if self._everything else _span_words(span)
        label = text if self.following else f"{text}, {duration(newest - end)} ago"
        return TimeWindow(end - span, end, label, cursor)

    def zoom(self, view: RunView, now: float, direction: int) -> None:
        """A shorter (1) or longer (-1) window with the same right edge; the longest shows the whole run."""
        newest, oldest = self._bounds(view, now)
        if direction > 0 and self._everything:
            self._everything = False
            return
        level = self._level - direction
        if direction < 0 and SPANS_S[self._level] >= newest - oldest:
            self._everything = True
            self._end = None
            return
        self._level = max(0, min(level, len(SPANS_S) - 1))

    def move(self, view: RunView, now: float, direction: int) -> None:
        """Moves the crosshair by a hundredth of the window, or without one the window by a quarter; later is 1."""
        window = self.window(view, now)
        span = window.end - window.start
        if self._cursor is None or window.cursor is None:
            self._pan(view, now, direction * span / 4)
            return
        wanted = window.cursor + direction * span / 100
        if not window.start <= wanted <= window.end:
            self._pan(view, now, direction * span / 4)
        self._cursor = wanted

    def _pan(self, view: RunView, now: float, by: float) -> None:
        newest, oldest = self._bounds(view, now)
        window = self.window(view, now)
        span = window.end - window.start
        end = max(window.end + by, oldest + span)
        self._end = None if end >= newest else end

    def follow(self) -> None:
        """Returns to the newest values, without a crosshair."""
        self._end = None
        self._cursor = None

    def toggle_cursor(self, view: RunView, now: float) -> None:
        """Shows the crosshair at the newest value, or hides it."""
        if self._cursor is not None:
            self._cursor = None
            return
        window = self.window(view, now)
        newest, _ = self._bounds(view, now)
        self._cursor = min(newest, window.end)

    def _bounds(self, view: RunView, now: float) -> tuple[float, float]:
        """The time of the newest and of the oldest value."""
        over = view.state is not None and view.state.final
        newest = view.last_time if over and view.last_time is not None else now
        return newest, min(view.run.time, newest) if view.run else newest

    def _span(self, newest: float, oldest: float) -> float:
        return max(float(SPANS_S[0]), newest - oldest) if self._everything else float(SPANS_S[self._level])


def _span_words(span: float) -> str:
    for seconds, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if span >= seconds:
            return f"{span / seconds:g} {word}"
    return f"{span:g} s"


AXIS_WIDTH = 7
_TICK_SHARES = (0.0, 0.5, 1.0)
_MANY_TICK_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_GRID_CELLS = 4  # from one dot of a grid line to the next
_GRID_RUN = 8  # blank cells: each shorter run would be another piece to send
_TIMES_FROM = 7  # rows of a chart without a lane
# More coloured spans than this in a row cost too many bytes over SSH.
MAX_COLOURED_SPANS = 8
_DOTTED = " █"


@dataclass(frozen=True)
class ChartSpec:
    """What a chart shows. `lane` adds the endpoint in use and the time below the curve, and colours the curve by it.

    `behind` is a series whose values are drawn as dots behind the curve.
    """

    title: str
    series: str
    scale: Literal["zero", "percent", "around", "log"] = "zero"
    unit: str = ""
    style: str = "primary"
    lane: bool = False
    behind: str = ""


SPEED = ChartSpec("samples/s", "samples_per_s", lane=True)
WAIT = ChartSpec("data wait", "wait", scale="percent", unit=" %", style="warn")
LOSS = ChartSpec("loss", "loss_smooth", scale="around", behind="loss")
ACCURACY = ChartSpec("top-1", "top1", scale="percent", unit=" %", style="good")
STEP = ChartSpec("step", "step_ms", unit=" ms")
FETCH = ChartSpec("fetch", "fetch_ms", unit=" ms")
READ = ChartSpec("read", "read", unit=" MB/s")
RATE = ChartSpec("learning rate", "lr", style="dim")
GRADIENT = ChartSpec("gradient norm", "grad_norm", scale="around")
CPU = ChartSpec("CPU", "host.cpu", scale="percent", unit=" %", style="dim")
MEMORY = ChartSpec("RAM", "host.memory", unit=" GiB", style="dim")


def chart_specs(view: RunView, *, raw: bool, log: bool) -> list[ChartSpec]:
    """The small charts for the data of this run, the most useful first."""
    loss = replace(LOSS, scale="log" if log else "around", title="loss, log" if log else "loss")
    if raw:
        loss = replace(loss, series="loss", title=f"{loss.title}, raw", behind="")
    own = [gpu for gpu in view.gpus if gpu.mig is None]
    others = [gpu for gpu in (view.telemetry.gpus if view.telemetry else ()) if gpu.mig is None and gpu not in own]
    pairs = [_gpu_pair(f"GPU {gpu.index}", f"gpu{gpu.index}") for gpu in (*own, *others)]
    if len(own) > 1:
        pairs.insert(0, _gpu_pair(counted(len(own), "GPU"), "gpus"))
    first, further = pairs[:1], pairs[1:]
    return [
        WAIT,
        loss,
        *(spec for pair in first for spec in pair),
        ACCURACY,
        STEP,
        FETCH,
        READ,
        CPU,
        MEMORY,
        RATE,
        *([GRADIENT] if GRADIENT.series in view.series else []),
        *(spec for pair in further for spec in pair),
    ]


def _gpu_pair(title: str, series: str) -> tuple[ChartSpec, ChartSpec]:
    """Utilization and power of one GPU, or the mean and the sum of several."""
    return (
        ChartSpec(f"{title} util", f"{series}.utilization", "percent", " %", "good"),
        ChartSpec(f"{title} power", f"{series}.power", "zero", " W", "good"),
    )


def chart(
    context: DashboardContext, spec: ChartSpec, window: TimeWindow, width: int, height: int, *, note: str = ""
) -> list[Line]:
    """Heading, curve with axes and grid; with `lane` also the endpoint in use. Low charts have no time axis."""
    inner = width - AXIS_WIDTH - 1
    timed = height >= _TIMES_FROM and not spec.lane
    rows = height - 1 - (2 if spec.lane else 1 if timed else 0)
    if inner < 4 or rows < 1:
        return [context.heading(spec.title, width)]
    window = window.on_grid(inner, context.view.run.time if context.view.run else 0.0)
    symbols = context.glyphs.chart
    count = inner * plot.DOTS[symbols][0]
    points, loose = (_points(context.view, name, window, count) for name in (spec.series, spec.behind))
    scale = _scale(spec, [*points, *loose])
    shown = scale if points or loose or spec.scale == "percent" else None  # of nothing it would be from 0 to 1
    cells = plot.draw(plot.columns_of(points, window.start, window.end, count), scale, rows, symbols)
    dots = plot.scatter(plot.columns_of(loose, window.start, window.end, count, join=False), scale, rows, symbols)
    lines = [context.heading(spec.title, width, *_notes(points, loose, window, spec, note))]
    spans = _visible_spans(context.view, window) if spec.lane else []
    for index, (row, behind) in enumerate(zip(cells, dots, strict=True)):
        marked = _marked(row, behind, window, context)
        curve = _by_endpoint(marked, spans, window) if spans else _in_front(marked, behind, spec.style)
        lines.append(axis(shown, index, rows, context.glyphs, spec.unit).extend(curve))
        if index in tick_rows(rows):
            lines[-1] = with_grid(lines[-1], context.glyphs)
    if spec.lane:
        lines.append(_lane(context, spans, window, inner))
    return [*lines, _times(context, window, inner)] if spec.lane or timed else lines


def _points(view: RunView, name: str, window: TimeWindow, count: int) -> list[Point]:
    series = view.series.get(name)
    return series.window(window.start, window.end, count) if series else []


def _notes(
    points: Sequence[Point], loose: Sequence[Point], window: TimeWindow, spec: ChartSpec, note: str
) -> list[str]:
    """The value, the time window and `note`, from the longest variant to the shortest."""
    value = _value(points, window, spec)
    label = window.label if spec.lane else ""
    if spec.behind and points:
        value, label = f"smoothed {value}", f"raw {_value(loose, window, spec)}"
    if window.cursor is None:
        return [joined((value, label, note)), joined((value, note)), value]
    at = f"at {clock(window.cursor)}"
    return [joined((value, at, label, note)), joined((value, at, note)), joined((value, at)), value]


def _value(points: Sequence[Point], window: TimeWindow, spec: ChartSpec) -> str:
    """The newest value, or that at the crosshair."""
    finite = [point for point in points if not math.isnan(point.last)]
    if window.cursor is None or not finite:
        return _words(points[-1].last, spec) if points else MISSING
    at = bisect.bisect_left([point.time for point in finite], window.cursor)
    near = min(finite[max(0, at - 1) : at + 1], key=lambda point: abs(point.time - (window.cursor or 0.0)))
    return _words(near.last, spec)


def _words(value: float, spec: ChartSpec) -> str:
    """A value with its unit, as the tiles write it."""
    if math.isnan(value):
        return MISSING
    if spec.unit == " ms":
        return short_times((value / 1000,))
    if spec.unit == " MB/s":
        return f"{size(value * 1e6)}/s"
    return f"{_percents(value) if spec.scale == 'percent' else number(value)}{spec.unit}"


def _percents(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _scale(spec: ChartSpec, points: Sequence[Point]) -> plot.Scale:
    if spec.scale == "percent":
        return plot.Scale(0.0, 100.0)
    if spec.scale == "zero":
        return plot.scale_from_zero(points)
    return plot.scale_around(points, log=spec.scale == "log")


def tick_rows(rows: int) -> dict[int, float]:
    """The rows with a tick and a grid line, and the share of the axis that each is at, from 0 at the bottom."""
    shares = _TICK_SHARES[:: 1 if rows >= 5 else 2]
    if rows >= 11:
        shares = _MANY_TICK_SHARES
    return {round((1 - share) * (rows - 1)): share for share in shares} if rows > 1 else {0: 1.0}


def axis(scale: plot.Scale | None, index: int, rows: int, glyphs: Glyphs, unit: str = "") -> Line:
    """The axis in a row, with the value and, at the top, the unit where the row has a tick; no scale, no values."""
    share = tick_rows(rows).get(index)
    label = ""
    if share is not None and scale is not None:
        label = _axis_label(scale, scale.value(share), unit if index == 0 else "", unit)
    line = Line((label.rjust(AXIS_WIDTH)[:AXIS_WIDTH], "dim"))
    return line.add(glyphs.vertical if share is None else glyphs.tick, "rule")


def _axis_label(scale: plot.Scale, value: float, shown: str, unit: str) -> str:
    """A value of the axis, in seconds or KB/s where that suits all of its values better."""
    if unit == " ms" and scale.high >= 1000:
        value, shown = value / 1000, shown and " s"
    elif unit == " MB/s" and scale.high < 1:
        value, shown = value * 1000, shown and " KB/s"
    label = f"{value:.4g}" if 100 <= value < 1000 and value % 1 else compact(value)
    return next((text for text in (label + shown, label + shown.strip()) if len(text) <= AXIS_WIDTH), label)


def with_grid(line: Line, glyphs: Glyphs) -> Line:
    """The row of a chart with dots where it is blank, in few pieces."""
    drawn = Line()
    for text, style in line.pieces:
        for run in re.findall(" +|[^ ]+", text):
            cells = range(drawn.width, drawn.width + len(run))
            if cells.start > AXIS_WIDTH and run[0] == " " and len(run) >= _GRID_RUN:
                drawn.add("".join(glyphs.dot if at % _GRID_CELLS == 0 else " " for at in cells), "rule")
            else:
                drawn.add(run, style)
    return drawn


def _marked(row: str, dots: str, window: TimeWindow, context: DashboardContext) -> str:
    """The row with a dotted line at each switch of the endpoint and with the crosshair, in blank cells only."""
    width = len(row)
    marks = {window.column(span.time, width): context.glyphs.marker for span in context.view.switches}
    if window.cursor is not None:
        marks[min(width - 1, window.column(window.cursor, width))] = context.glyphs.cross
    return "".join(marks.get(at, cell) if cell == dots[at] == " " else cell for at, cell in enumerate(row))


def _by_endpoint(row: str, spans: Sequence[Span], window: TimeWindow) -> Line:
    """The row in the colours of the endpoints that delivered the batches."""
    width, line = len(row), Line()
    for at, span in enumerate(spans):
        end = window.column(spans[at + 1].time, width) if at + 1 < len(spans) else width
        line.add(row[line.width : max(line.width, end)], str(span.endpoint))
    return line


def _in_front(row: str, dots: str, style: str) -> Line:
    """The row, with the dots where it is blank or a full bar.

    Blanks keep the style before them, which makes fewer pieces to send.
    """
    line, start, current = Line(), 0, style
    merged = "".join(dot if dot != " " and cell in _DOTTED else cell for cell, dot in zip(row, dots, strict=True))
    for at, (cell, shown) in enumerate(zip(row, merged, strict=True)):
        wanted = current if shown == " " else style if shown == cell else "dim"
        if wanted != current:
            line.add(merged[start:at], current)
            start, current = at, wanted
    return line.add(merged[start:], current)


def _visible_spans(view: RunView, window: TimeWindow) -> list[Span]:
    """The spans of one endpoint each in the window, the first from its start; empty where they are too many."""
    before = [span for span in view.spans if span.time <= window.start]
    inside = [span for span in view.spans if window.start < span.time < window.end]
    spans = [*before[-1:], *inside]
    if not spans or len(spans) > MAX_COLOURED_SPANS:
        return []
    return [Span(window.start, spans[0].endpoint), *spans[1:]]


def _lane(context: DashboardContext, spans: Sequence[Span], window: TimeWindow, width: int) -> Line:
    """The endpoint in use as glyph and colour, along the time axis."""
    glyphs = context.glyphs
    line = Line((" " * AXIS_WIDTH, "dim"), (glyphs.corner, "rule"))
    if not spans:
        return line.extend(_dense_lane(context, window, width))
    for at, span in enumerate(spans):
        end = window.column(spans[at + 1].time, width) if at + 1 < len(spans) else width
        cells = max(0, end - (line.width - AXIS_WIDTH - 1))
        if cells:
            line.add(glyphs.endpoint(span.endpoint) + glyphs.bar_full * (cells - 1), str(span.endpoint))
    return line


def _dense_lane(context: DashboardContext, window: TimeWindow, width: int) -> Line:
    """For many switches: a glyph where each span begins, without colour."""
    cells = [context.glyphs.rule] * width
    for span in context.view.spans:
        at = window.column(span.time, width)
        if 0 <= at < width:
            cells[at] = context.glyphs.endpoint(span.endpoint)
    return Line(("".join(cells), "dim"))


def _times(context: DashboardContext, window: TimeWindow, width: int) -> Line:
    """Times since the start of the run, at round intervals."""
    return time_ticks(window, context.view.run.time if context.view.run else window.start, width)


def time_ticks(window: TimeWindow, origin: float, width: int) -> Line:
    """Times since `origin` (Unix seconds) below a chart with an axis, at round intervals."""
    span = window.end - window.start
    step = next((step for step in _TIME_STEPS if width * step / span >= _TICK_CELLS), _TIME_STEPS[-1])
    return _ticks(window, origin, width, step, duration)


def step_ticks(last: float, width: int) -> Line:
    """Numbers of steps below a chart with an axis that ends at step `last`, at round intervals."""
    return _ticks(TimeWindow(0.0, last), 0.0, width, plot.nice_ceiling(last * _TICK_CELLS / width), compact)


def _ticks(window: TimeWindow, origin: float, width: int, step: float, words: Callable[[float], str]) -> Line:
    cells = [" "] * width
    tick = math.ceil((window.start - origin) / step) * step
    while origin + tick <= window.end:
        text = words(tick)
        at = window.column(origin + tick, width)
        if at + len(text) <= width:
            cells[at : at + len(text)] = text
        tick += step
    return Line((" " * (AXIS_WIDTH + 1), "dim"), ("".join(cells), "dim"))


_TIME_STEPS = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800)
_TICK_CELLS = 10
