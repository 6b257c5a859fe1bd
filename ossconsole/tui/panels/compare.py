"""The A/B panel: what each endpoint delivered, how many times as much the accelerated one, and how surely."""

from __future__ import annotations

from collections.abc import Callable

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.compare import MIN_BLOCKS, EndpointFigures
from ossconsole.tui.panels.context import Context
from ossconsole.tui.text import MISSING, Line, joined, percent, rate, short_times, shorten, size

_ROWS: tuple[tuple[str, Callable[[EndpointFigures], str]], ...] = (
    ("samples/s", lambda figures: rate(figures.samples_per_s)),
    ("data wait", lambda figures: percent(figures.wait_fraction)),
    ("fetch p95", lambda figures: short_times((figures.fetch_p95,))),
    ("step p95", lambda figures: short_times((figures.step_p95,))),
    ("batches", lambda figures: f"{figures.steps:,}" if figures.steps else MISSING),
    ("fetch p50", lambda figures: short_times((figures.fetch_p50,))),
    ("step p50", lambda figures: short_times((figures.step_p50,))),
    ("read", lambda figures: f"{size(figures.bytes_per_s)}/s" if figures.bytes_per_s is not None else MISSING),
    ("readings", lambda figures: f"{figures.blocks:,}" if figures.blocks else MISSING),
)


LABEL_WIDTH = 11


def comparison(context: Context, width: int, height: int) -> list[Line]:
    """Heading, a column per endpoint, as many rows as fit, and the result at the bottom."""
    figures = [context.view.figures(kind) for kind in EndpointKind]
    column = (width - LABEL_WIDTH - 1) // 2
    head = Line(("", "dim")).to(LABEL_WIDTH)
    for kind in EndpointKind:
        used = kind is context.view.delivering
        name = context.glyphs.named(kind) if column > len(kind.value) + 2 else context.glyphs.short(kind)
        head.extend(_right(name, str(kind) if used else "dim", column))
    result = _result(context, width)
    shown = _ROWS[: max(0, height - 2 - len(result))]
    hidden = f"{len(_ROWS) - len(shown)} rows hidden" if len(shown) < len(_ROWS) else ""
    note = joined(("simulated" if context.simulated else "", hidden), ", ")
    lines = [context.heading("A/B", width, note), head]
    for name, words in shown:
        row = Line((f" {name}", "dim")).to(LABEL_WIDTH)
        for item in figures:
            style = "strong" if name == "samples/s" else "text"
            text = words(item)
            row.extend(_right(text, "dim" if text == MISSING else style, column))
        lines.append(row)
    while len(lines) + len(result) < height:
        lines.append(Line())
    return [*lines, *result][:height]


def _right(text: str, style: str, width: int) -> Line:
    return Line((" " * max(0, width - len(text)), "text"), (text, style))


def _result(context: Context, width: int) -> list[Line]:
    """The ratio, or what it still needs."""
    view, glyphs = context.view, context.glyphs
    found = view.comparison
    lines = []
    if view.settling is not None and view.endpoint is not None:
        passed, needed = view.settling
        lines.append(
            Line((" settling on ", "warn")).extend(context.named(view.endpoint)).add(f" {passed}/{needed}", "warn")
        )
    elif found is not None:
        line = Line((f" {glyphs.accelerated} {found.ratio:.2f}x ", "accelerated"))
        line.add(f"{glyphs.plus_minus} {found.spread * 100:.0f} %", "strong")
        line.add(" cache filling" if found.cold else " of standard" if found.decided else " undecided", "dim")
        lines.append(line)
    else:
        lines.append(Line((shorten(f" {_missing(context)}", width, glyphs.ellipsis), "dim")))
    if context.auto_words:
        lines.append(Line((shorten(f" {context.auto_words}", width, glyphs.ellipsis), "primary")))
    return lines


def _missing(context: Context) -> str:
    if context.view.run is None:
        return "no run yet"
    if not context.has_accelerated:
        return "no accelerated endpoint in the profile"
    for kind in EndpointKind:
        blocks = context.view.figures(kind).blocks
        if blocks < MIN_BLOCKS:
            if context.view.state is not None and context.view.state.final:
                return f"{kind} was not measured"
            if kind is context.view.endpoint:
                return f"{kind}: {blocks} of {MIN_BLOCKS} readings"
            return f"press e to measure {kind}"
    return ""
