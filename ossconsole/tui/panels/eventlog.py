"""The event log: what happened in the run, newest at the bottom."""

from __future__ import annotations

from ossconsole.telemetry.events import Saving
from ossconsole.telemetry.narrate import LogLine, megabytes
from ossconsole.tui.panels.context import Context
from ossconsole.tui.text import Line, clock, percent, safe, shorten, shorten_middle, wrap


def event_log(context: Context, width: int, height: int) -> list[Line]:
    """The newest events; below them how far the checkpoint is that is being written."""
    saving = context.view.saving
    below = [_progress(saving, context, width)] if saving is not None else []
    count = height - len(below)
    lines = list(context.view.log)[-count:] if count > 0 else []
    return [*(event_row(line, context, width) for line in lines), *below]


def _progress(saving: Saving, context: Context, width: int) -> Line:
    row = Line((f" {clock(saving.time)} ", "dim"), (f"{context.glyphs.up} ", "primary"))
    done = f"{megabytes(saving.written)[:-3]} of {megabytes(saving.bytes)}"
    share = saving.written / saving.bytes if saving.bytes else 0.0
    tail = f": {done}, {percent(share)}"
    key = shorten_middle(safe(saving.key), width - row.width - len(tail) - len(_SAVING), context.glyphs.ellipsis)
    return row.add(f"{_SAVING}{key}{tail}", "text")


_SAVING = "writing checkpoint "


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
