"""The event log: what happened in the run, newest at the bottom."""

from __future__ import annotations

from ossconsole.telemetry.narrate import LogLine
from ossconsole.tui.panels.context import Context
from ossconsole.tui.text import Line, clock, safe, shorten, wrap


def event_log(context: Context, width: int, height: int) -> list[Line]:
    lines = list(context.view.log)[-height:]
    return [event_row(line, context, width) for line in lines]


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
