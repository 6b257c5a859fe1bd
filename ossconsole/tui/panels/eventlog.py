"""The event log: what happened in the run, newest at the bottom."""

from __future__ import annotations

from ossconsole.telemetry.narrate import LogLine
from ossconsole.tui.panels.context import Context
from ossconsole.tui.text import Line, clock, safe, shorten


def event_log(context: Context, width: int, height: int) -> list[Line]:
    lines = list(context.view.log)[-height:]
    return [_row(line, context, width) for line in lines]


def _row(line: LogLine, context: Context, width: int) -> Line:
    glyphs = context.glyphs
    marks = {"good": (glyphs.done, "good"), "warning": ("!", "warn"), "error": (glyphs.failed, "bad")}
    if line.endpoint is not None:
        mark, style = glyphs.endpoint(line.endpoint), str(line.endpoint)
    else:
        mark, style = marks.get(line.level, (glyphs.dot, "dim"))
    row = Line((f" {clock(line.time)} ", "dim"), (f"{mark} ", style))
    look = {"error": "bad", "info": "dim"}.get(line.level, "text")
    return row.add(shorten(safe(line.text), width - row.width, glyphs.ellipsis), look)
