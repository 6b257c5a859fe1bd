"""What the Train screen shows before there is a run: what is being made ready, or how to start."""

from __future__ import annotations

from collections.abc import Sequence

from ossconsole.tui.panels.context import Context
from ossconsole.tui.panels.notice import notice, try_again
from ossconsole.tui.services import ConsoleState, Ready, Stage, StageState, Starting
from ossconsole.tui.text import Line, safe, wrap

_STYLES = {
    StageState.WAITING: "dim",
    StageState.ACTIVE: "strong",
    StageState.DONE: "good",
    StageState.FAILED: "bad",
}

_HOW = Line((" Press ", "dim"), ("n", "primary"), (" to set one up", "dim"), (", ", "dim"), ("r", "primary"))
_HOW.add(" for the runs so far.", "dim")
_WHILE_IT_RUNS = Line((" While it runs, ", "dim"), ("e", "primary"), (" switches the endpoint, ", "dim"))
_WHILE_IT_RUNS.add("a", "primary").add(" measures both.", "dim")


def idle(context: Context, state: ConsoleState, width: int, *, starting: bool) -> list[Line]:
    """`starting` tells that a run was started and has not reported yet."""
    errors = context.view.errors
    if errors:
        text = wrap(safe(errors[-1].text), width - 4)
        rows = [Line((f"  {part}", "text")) for part in text]
        return [Line(), Line((f" {context.glyphs.failed} The run did not start", "bad")), *rows, Line(), _HOW]
    stages = state.stages
    if starting:
        stages = (*stages, Stage("training run", StageState.ACTIVE, "loading torch, the manifest and the readers"))
    title = "Prepared" if isinstance(state, Ready) and not starting else "Preparing"
    lines = [context.heading(title, width), Line(), *_stage_lines(context, stages, width)] if stages else []
    if starting:
        return lines
    if isinstance(state, Ready):
        next_steps = [Line((" No run yet. ", "strong")).extend(_HOW)]
        next_steps += [Line(), _WHILE_IT_RUNS] if not stages else []
    elif isinstance(state, Starting) and stages:
        next_steps = [Line((" A run can start as soon as the sample dataset is there.", "dim"))]
    elif any(stage.state is StageState.FAILED for stage in stages):
        next_steps = [try_again()]
    else:
        next_steps = notice(state, context.glyphs, width)
    return [*lines, Line(), *next_steps]


def _stage_lines(context: Context, stages: Sequence[Stage], width: int) -> list[Line]:
    marks = {
        StageState.WAITING: context.glyphs.waiting,
        StageState.ACTIVE: context.glyphs.running,
        StageState.DONE: context.glyphs.done,
        StageState.FAILED: context.glyphs.failed,
    }
    lines = []
    label_width = max(len(stage.label) for stage in stages) + 5
    for stage in stages:
        style = _STYLES[stage.state]
        line = Line((f"  {marks[stage.state]} {safe(stage.label)}", style)).to(label_width)
        first, *rest = wrap(safe(stage.detail), width - label_width - 1) or [""]
        look = "text" if stage.state is StageState.FAILED else "dim"
        lines.append(line.add(first, look))
        lines += [Line().to(label_width).add(part, look) for part in rest]
    return lines
