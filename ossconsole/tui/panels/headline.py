"""The headline: the verdict in words, and how far the run is."""

from __future__ import annotations

from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.verdict import Bound, judge
from ossconsole.tui.panels.context import Context
from ossconsole.tui.text import Line, duration, percent, safe, short_times, shorten, wrap

_BOUND_STYLES = {
    Bound.IO: "bad",
    Bound.MIXED: "warn",
    Bound.COMPUTE: "good",
    Bound.HOST: "warn",
    Bound.UNDECIDED: "strong",
    Bound.NONE: "strong",
}
_STATE_STYLES = {
    RunState.RUNNING: "good",
    RunState.VALIDATING: "good",
    RunState.PAUSED: "warn",
    RunState.STOPPING: "warn",
    RunState.FAILED: "bad",
}
_SPLIT_CELLS = 40
_SPEAK_OF = 0.005  # share of the step, below which a part is nothing


def verdict(context: Context, width: int, height: int) -> list[Line]:
    """What bounds the run and where a step's time goes, and below it what to do."""
    found = judge(context.view, context.now, has_accelerated=context.has_accelerated)
    style = _BOUND_STYLES[found.bound]
    if context.view.state is RunState.FAILED:
        style = "bad"
    edge = context.glyphs.left_edge
    first = Line((f"{edge}", style))
    text = safe(found.text)
    if found.bound is Bound.NONE:
        first.add(text[:1].upper() + text[1:], style)
    else:
        first.add(found.bound.value, style).add(f": {text}", "text")
        first.right(_split(context, width - first.width), width)
    advice = wrap(safe(found.advice), width - 2)
    if len(advice) > height - 1 > 0:
        advice[height - 2] = shorten(" ".join(advice[height - 2 :]), width - 2, context.glyphs.ellipsis)
    return [first, *(Line((edge, style), (part, "dim")) for part in advice[: height - 1])]


def _split(context: Context, room: int) -> Line:
    """The parts of the recent steps, as a bar too where there is room."""
    split = context.view.split
    if split is None or split.total <= 0:
        return Line()
    parts = [("wait", split.wait, "warn"), ("copy", split.copy, "dim"), ("compute", split.compute, "good")]
    if split.host >= _SPEAK_OF * split.total:
        parts.append(("host", split.host, "bad"))
    glyphs = context.glyphs
    line = Line(("step ", "dim"), (short_times((split.total,)), "strong"), (" =", "dim"))
    # Together with the whole, so that all of them are in its unit.
    shown = short_times((split.total, *(seconds for _, seconds, _ in parts))).split(" ")[0 : 2 * len(parts) + 2 : 2]
    for at, ((name, _, style), text) in enumerate(zip(parts, shown[1:], strict=True)):
        line.add(f"{' +' if at else ''} {name} ", "dim").add(text, style)
    line.add(" ", "dim")
    cells = min(_SPLIT_CELLS, room - line.width - 3)
    if cells < _SPLIT_CELLS // 2:
        return line
    bar = Line()
    marks = (glyphs.bar_empty, glyphs.bar_half, glyphs.bar_full, glyphs.bar_empty)
    for (_, seconds, style), mark in zip(parts, marks, strict=False):
        bar.add(mark * round(seconds / split.total * cells), style)
    return bar.to(cells).add("  ").extend(line)


def progress(context: Context, width: int) -> Line:
    """State, epoch, step and the way to the end on one line."""
    view, glyphs = context.view, context.glyphs
    if view.run is None or view.state is None:
        return Line()
    marks = {
        RunState.PAUSED: glyphs.paused,
        RunState.FINISHED: glyphs.done,
        RunState.STOPPED: glyphs.done,
        RunState.FAILED: glyphs.failed,
    }
    mark = marks.get(view.state, glyphs.running)
    left = Line((f" {mark} {view.state}", _STATE_STYLES.get(view.state, "strong")))
    epoch = view.last_step.epoch if view.last_step else 0
    if epoch:
        left.add(f"  epoch {epoch}" + (f"/{view.run.epochs}" if view.run.epochs else ""))
    total = view.total_steps
    left.add(f"  step {view.step:,}" + (f"/{total:,}" if total else ""))
    right = Line()
    if total:
        right.add(f"  {percent(view.step / total)}", "strong")
    eta = view.eta_s()
    if eta is not None:
        right.add(f"  ETA {duration(eta)}", "text")
    right.add(f"  {duration(view.elapsed_s(context.now))} in ", "dim")
    room = width - left.width - right.width - 3
    if total and room >= 8:
        left.add("  ").extend(_bar(view.step / total, room, context))
    if left.width + right.width >= width:
        right = Line((f"  {percent(view.step / total)} ", "strong")) if total else Line()
    return left.right(right, width)


def _bar(fraction: float, width: int, context: Context) -> Line:
    glyphs = context.glyphs
    halves = round(min(1.0, fraction) * width * 2)
    full = glyphs.bar_full * (halves // 2) + (glyphs.bar_half if halves % 2 else "")
    return Line((full, "primary"), (glyphs.bar_empty * (width - len(full)), "rule"))


def failure(context: Context, width: int) -> Line:
    """The newest error that was not dismissed."""
    errors = context.view.errors
    if not errors:
        return Line()
    more = f" (+{len(errors) - 1})" if len(errors) > 1 else ""
    text = shorten(f"{context.glyphs.failed} {safe(errors[-1].text)}", width - len(more) - 1)
    return Line((text + more, "bad"))
