"""The A/B panel: the measurements of both endpoints, and their ratio with its confidence interval."""

from __future__ import annotations

from collections.abc import Callable

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted
from ossconsole.telemetry.events import percent as coarse_percent
from ossconsole.telemetry.visits import EndpointFigures
from ossconsole.tui.kit.plot import large, nice_ceiling
from ossconsole.tui.kit.text import (
    MISSING,
    Line,
    compact,
    joined,
    percent,
    rate,
    safe,
    short_times,
    shorten,
    size,
    wrap,
)
from ossconsole.tui.train.monitor import DashboardContext

_ROWS: tuple[tuple[str, int, Callable[[EndpointFigures], str]], ...] = (
    ("samples/s", 1, lambda figures: rate(figures.samples_per_s)),
    ("data wait", 2, lambda figures: percent(figures.wait_fraction)),
    ("read", 5, lambda figures: f"{size(figures.bytes_per_s)}/s" if figures.bytes_per_s is not None else MISSING),
    ("fetch p50", 6, lambda figures: short_times((figures.fetch_p50,))),
    ("fetch p95", 3, lambda figures: short_times((figures.fetch_p95,))),
    ("typ. step", 8, lambda figures: short_times((figures.typical_step_s,))),
    ("step p50", 9, lambda figures: short_times((figures.step_p50,))),
    ("step p95", 10, lambda figures: short_times((figures.step_p95,))),
    ("copy", 11, lambda figures: short_times((figures.copy_s,))),
    ("compute", 12, lambda figures: short_times((figures.compute_s,))),
    ("stalls", 7, lambda figures: percent(figures.stall_share)),
    ("cold cache", 13, lambda figures: _per_second(figures.cold_rate)),
    (
        "warm cache",
        14,
        lambda figures: _per_second(figures.warm_rate if figures.kind is EndpointKind.ACCELERATED else None),
    ),
    ("batches", 4, lambda figures: f"{figures.steps:,}" if figures.steps else MISSING),
    ("visits", 15, lambda figures: f"{figures.visits:,}" if figures.visits else MISSING),
)
"""Title, priority and value, in the order of the table. Where not all fit, those with the lowest numbers show."""


def _per_second(samples: float | None) -> str:
    return MISSING if samples is None else f"{rate(samples)}/s"


LABEL_WIDTH = 11
# Columns farther apart than this are hard to compare.
MAX_COLUMN = 22
_RANGES_HEIGHT = 4
_LARGE_FROM = 6  # rows of the panel


def comparison(context: DashboardContext, width: int, height: int, *, key: str = "b") -> list[Line]:
    """Heading, a column per endpoint with the rows that fit, and the result; `key` shows all rows."""
    figures = [context.view.figures(kind) for kind in EndpointKind]
    result = [*_large(context, height), *_result(context, width)]
    room = height - 1 - len(result)
    shown = min(len(_ROWS), max(0, room - 1))
    hidden = f"{key}: {len(_ROWS) - shown} more" if shown < len(_ROWS) else ""
    simulated = "simulated" if context.simulated else ""
    lines = [context.heading("A/B", width, joined((simulated, hidden)), simulated, hidden)]
    lines += table(context, figures, width, shown) if shown else [_rates(context, figures, width)] * (room > 0)
    room = height - len(lines) - len(result)
    if room >= _RANGES_HEIGHT:
        lines += [Line(), *_ranges(context, figures, width)]
        room = height - len(lines) - len(result)
    lines += [Line()] * room
    return [*lines, *result][:height]


def detail_lines(context: DashboardContext, width: int) -> list[Line]:
    """All rows, and how the figures are measured."""
    figures = [context.view.figures(kind) for kind in EndpointKind]
    lines = [*table(context, figures, width, len(_ROWS)), *_ranges(context, figures, width), *_result(context, width)]
    return [*lines, Line(), *(Line((f" {text}", "dim")) for text in _explanation(context, width))]


def table(context: DashboardContext, figures: list[EndpointFigures], width: int, count: int) -> list[Line]:
    """The names of the endpoints and the `count` rows that matter most."""
    column = min(MAX_COLUMN, (width - LABEL_WIDTH - 1) // 2)
    head = Line(("", "dim")).to(LABEL_WIDTH)
    for kind in EndpointKind:
        used = kind is context.view.delivering
        name = context.glyphs.named(kind) if column > len(kind.value) + 2 else context.glyphs.short(kind)
        head.extend(_right(name, str(kind) if used else "dim", column))
    lines = [head]
    for name, priority, value in _ROWS:
        if priority > count:
            continue
        row = Line((f" {name}", "dim")).to(LABEL_WIDTH)
        for item in figures:
            style = "strong" if name == "samples/s" else "text"
            text = value(item)
            row.extend(_right(text, "dim" if text == MISSING else style, column))
        lines.append(row)
    return lines


def _right(text: str, style: str, width: int) -> Line:
    return Line((" " * max(0, width - len(text)), "text"), (text, style))


def _ranges(context: DashboardContext, figures: list[EndpointFigures], width: int) -> list[Line]:
    """A bar for the rates of the visits, from the lowest to the highest, with the endpoint's glyph at the mean."""
    known = [item.rate_high for item in figures if item.rate_high is not None]
    if not known:
        return []
    top = nice_ceiling(max(known) * 1.05)
    room = width - LABEL_WIDTH - 1
    scale = Line(("", "dim")).to(LABEL_WIDTH).add("0", "dim")
    lines = [scale.right(Line((f"{compact(top)} samples/s ", "dim")), width)]
    for item in figures:
        line = Line((f" {context.glyphs.short(item.kind)}", str(item.kind))).to(LABEL_WIDTH)
        if item.samples_per_s is not None and item.rate_low is not None and item.rate_high is not None:
            low, at, high = (
                min(room - 1, int(value / top * room)) for value in (item.rate_low, item.samples_per_s, item.rate_high)
            )
            low, high = min(low, at), max(high, at)  # the mean includes steps outside the visits
            bar = context.glyphs.bar_full
            marked = bar * (at - low) + context.glyphs.endpoint(item.kind) + bar * (high - at)
            line.add(" " * low).add(marked, str(item.kind))
        lines.append(line)
    return lines


def _explanation(context: DashboardContext, width: int) -> list[str]:
    found = context.view.comparison
    text = (
        "samples/s: mean over all steady time, capped by the compute; bars show the middle 90 % of the visits; "
        "± is a 95 % confidence interval over pairs of visits before and after each switch; warm-up excluded"
    )
    if context.has_accelerated and context.view.figures(EndpointKind.ACCELERATED).steps:
        text += f"; {found.cache_words}, {coarse_percent(found.coverage)} of the dataset read through it"
    lines = wrap(text, width - 2)
    if found.typical_ratio is not None:
        lines += wrap(f"typical step, stalls excluded: {found.typical_ratio:.2f}x", width - 2)
    if found.conditions is not None:
        lines += wrap(f"conditions: {found.conditions.words}", width - 2)
    ceiling = context.view.measurement.ceiling
    return lines if ceiling is None else lines + wrap(f"accelerator: {ceiling.words}", width - 2)


def _large(context: DashboardContext, height: int) -> list[Line]:
    """The ratio in digits of three rows, once it is decided."""
    found = context.view.comparison
    if not found.decided or found.estimate is None or height < _LARGE_FROM:
        return []
    style = str(found.faster) if found.faster is not None else "strong"
    return [Line((f"  {row}", style)) for row in large(f"{found.estimate.ratio:.2f}x", context.glyphs)]


def _rates(context: DashboardContext, figures: list[EndpointFigures], width: int) -> Line:
    """Both rates on one line, for panels without room for a table."""
    line = Line()
    for item in figures:
        line.add(f" {context.glyphs.endpoint(item.kind)} {rate(item.samples_per_s)}", str(item.kind))
    return line.add(" samples/s", "dim").to(width)


def _result(context: DashboardContext, width: int) -> list[Line]:
    """The ratio, or what is missing for it."""
    view, glyphs = context.view, context.glyphs
    lines = []
    if view.settling is not None and view.endpoint is not None:
        passed, needed = view.settling
        lines.append(
            Line((" switching to ", "warn")).extend(context.named(view.endpoint)).add(f" {passed}/{needed}", "warn")
        )
    elif view.comparison.pairs:
        # Auto A/B and the control count their pairs themselves.
        if view.comparison.estimate is not None or " pairs" not in context.comparison_status:
            lines.append(_comparison_line(context, width))
    else:
        lines.append(Line((shorten(f" {_missing(context)}", width, glyphs.ellipsis), "dim")))
    if context.comparison_status:
        lines.append(Line((shorten(f" {context.comparison_status}", width, glyphs.ellipsis), "primary")))
    return lines


def _comparison_line(context: DashboardContext, width: int) -> Line:
    """The result of the last evaluation; a ratio only once it is decided."""
    found, glyphs = context.view.comparison, context.glyphs
    if not found.ratio or found.estimate is None:
        open_ = found.estimate is not None and not found.decided and found.collecting
        progress = f", {found.pairs}/{found.needed} pairs" if open_ else ""
        text = f" {found.words.replace('±', glyphs.plus_minus)}{progress}"
        return Line((shorten(text, width, glyphs.ellipsis), "strong" if found.decided else "dim"))
    line = Line((f" {glyphs.endpoint(found.faster or EndpointKind.ACCELERATED)} {found.ratio} ", str(found.faster)))
    line.add(f"({found.interval}), {found.estimate.pairs} pairs", "strong")
    note = f" {found.cache_state}" if found.cold else " of standard"
    return line.add(note, "dim") if line.width + len(note) <= width else line


def _missing(context: DashboardContext) -> str:
    view = context.view
    if view.run is None:
        return "no run yet"
    if context.foreign_loader:
        return f"{safe(context.foreign_loader)} has no endpoints"
    if not context.has_accelerated:
        return "no accelerated endpoint in the profile"
    if view.warming is not None:
        return f"warming up, {view.warming[0]} of {counted(view.warming[1], 'batch', 'batches')}"
    figures = {kind: view.figures(kind) for kind in EndpointKind}
    kind = next((kind for kind, found in figures.items() if found.samples_per_s is None), None)
    return view.comparison.words if kind is None else _unmeasured(kind, figures[kind].steps, context)


def _unmeasured(kind: EndpointKind, steps: int, context: DashboardContext) -> str:
    view = context.view
    if view.state is not None and view.state.final:
        return f"{kind} was measured too briefly" if steps else f"{kind} was not measured"
    if kind is view.endpoint:
        return f"measuring {kind}"
    manual = context.has_controls and not context.comparison_status
    return f"press e to measure {kind}" if manual else f"{kind} not measured yet"
