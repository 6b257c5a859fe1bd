"""What the Train screen shows before there is a run: what is being made ready, or how to start."""

from __future__ import annotations

from collections.abc import Sequence

from ossconsole.tui.panels.context import Context
from ossconsole.tui.services import Stage, StageState
from ossconsole.tui.text import Line, safe, shorten, wrap

_STYLES = {
    StageState.WAITING: "dim",
    StageState.ACTIVE: "strong",
    StageState.DONE: "good",
    StageState.FAILED: "bad",
}

_HOW = Line((" Press ", "dim"), ("n", "primary"), (" to set one up", "dim"), (", ", "dim"), ("r", "primary"))
_HOW.add(" for the runs so far.", "dim")


def idle(context: Context, stages: Sequence[Stage], width: int, *, starting: bool) -> list[Line]:
    """`starting` tells that a run was started and has not reported yet."""
    errors = context.view.errors
    if errors:
        text = wrap(safe(errors[-1].text), width - 4)
        rows = [Line((f"  {part}", "text")) for part in text]
        return [Line(), Line((f" {context.glyphs.failed} The run did not start", "bad")), *rows, Line(), _HOW]
    if starting:
        stages = [*stages, Stage("training run", StageState.ACTIVE, "loading torch, the manifest and the readers")]
    if not stages:
        return [
            Line(),
            Line((" No run yet. ", "strong")).extend(_HOW),
            Line(),
            Line((" While it runs, ", "dim"), ("e", "primary"), (" switches the endpoint, ", "dim"))
            .add("a", "primary")
            .add(" measures both.", "dim"),
        ]
    lines = [context.heading("Making ready", width), Line()]
    marks = {
        StageState.WAITING: context.glyphs.waiting,
        StageState.ACTIVE: context.glyphs.running,
        StageState.DONE: context.glyphs.done,
        StageState.FAILED: context.glyphs.failed,
    }
    label_width = max(len(stage.label) for stage in stages) + 5
    for stage in stages:
        style = _STYLES[stage.state]
        line = Line((f"  {marks[stage.state]} {safe(stage.label)}", style)).to(label_width)
        room = width - line.width - 1
        lines.append(line.add(shorten(safe(stage.detail), room, context.glyphs.ellipsis), "dim"))
    return lines
