"""The card of a run that has ended: its result, the speed-up, the checkpoint, and what can be done next."""

from __future__ import annotations

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted
from ossconsole.telemetry.diagnosis import Diagnosis
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.view import RunView
from ossconsole.tui.kit.text import Line, duration, number, percent, safe, shorten, shorten_middle, size, wrap
from ossconsole.tui.train.monitor import DashboardContext

_LABEL = 14
_STYLES = {RunState.FINISHED: "good", RunState.FAILED: "bad"}
_KEYS = (("T", "resume"), ("p", "predictions"), ("n", "new run"), ("r", "all runs"))
_OF_A_CHECKPOINT = ("T", "p")


def card(context: DashboardContext, diagnosis: Diagnosis, width: int, height: int) -> list[Line]:
    """The rows of the card of a run that has ended, as far as they fit; `diagnosis` is of that run."""
    view, glyphs = context.view, context.glyphs
    state = view.state or RunState.STOPPED
    style = _STYLES.get(state, "warn")
    mark = glyphs.failed if state is RunState.FAILED else glyphs.done
    edge = (glyphs.left_edge, style)
    first = Line(edge, (f" {mark} {state.value.capitalize()}", style)).to(_LABEL + 1).add(f" {_done(view)}", "text")
    best = next((text for text in _accuracy(view) if first.width + len(text) + 2 <= width), "")
    if best:
        first.right(Line((best, "strong"), (" ", "text")), width)
    text_width = width - _LABEL - 2
    last = _row(edge, "next", _keys(context, text_width)) if context.has_controls else None
    room = height - 1 - (last is not None)
    rows: list[Line] = []
    if state is RunState.FAILED and diagnosis.advice:
        parts = wrap(safe(diagnosis.advice), text_width)
        rows += [_row(edge, "" if at else "reason", Line((part, "bad"))) for at, part in enumerate(parts)]
    elif diagnosis.advice:
        rows.append(_row(edge, "speed-up", _speed_up(context, diagnosis.advice, text_width)))
    if diagnosis.ceiling:
        rows.append(_row(edge, "model", Line((shorten(safe(diagnosis.ceiling), text_width), "text"))))
    checkpoint = _checkpoint(context, text_width)
    if checkpoint is not None:
        rows.append(_row(edge, "checkpoint", checkpoint))
    if diagnosis.format_advice:
        parts = wrap(safe(diagnosis.format_advice), text_width)
        rows += [_row(edge, "" if at else "advice", Line((part, "dim"))) for at, part in enumerate(parts)]
    return [first, *rows[:room], *([last] if last is not None else [])]


def _row(edge: tuple[str, str], label: str, value: Line) -> Line:
    return Line(edge, (f" {label}", "dim")).to(_LABEL + 1).add(" ").extend(value)


def _done(view: RunView) -> str:
    """Epochs, steps and time of the run."""
    steps = f"{view.step:,} of {counted(view.total_steps, 'step')}" if view.total_steps else counted(view.step, "step")
    if view.state is RunState.FINISHED:
        steps = counted(view.step, "step")
    return f"{counted(view.completed_epochs, 'epoch')}, {steps} in {duration(view.elapsed_s(view.last_time or 0.0))}"


def _accuracy(view: RunView) -> list[str]:
    """The best accuracy, or the loss; the longest variant first."""
    if view.best_top1 is not None:
        top1 = f"top-1 {percent(view.best_top1, 1)}"
        return [f"best {top1}", top1]
    loss = view.last_epoch.val_loss if view.last_epoch else None
    return [f"val loss {number(loss, 4)}"] if loss is not None else []


def _speed_up(context: DashboardContext, words: str, width: int) -> Line:
    """The comparison of the endpoints; where one is faster, with what it saves in each epoch.

    That is time, and money where the price of the machine is known; the accelerator's own price is not in it.
    """
    view = context.view
    found = view.comparison
    if found.faster is None:
        return Line((shorten(safe(words), width), "text"))
    line = Line((found.ratio, str(found.faster)), (f" of standard ({found.interval})", "strong"))
    saved = _saved_minutes(view)
    if saved is not None:
        money = f" and CNY {saved / 60 * context.price_per_hour:.2f}" if context.price_per_hour else ""
        time = f"saves {duration(saved * 60)}"
        variants = (f"; {found.faster} {time}{money} per epoch", f"; {time}{money} per epoch", f"; {time}/epoch")
        line.add(next((text for text in variants if line.width + len(text) <= width), ""), "text")
    return line.to(min(line.width, width))


def _saved_minutes(view: RunView) -> float | None:
    """The minutes that the faster endpoint saves per epoch."""
    found = view.comparison
    sides = {EndpointKind.STANDARD: found.standard, EndpointKind.ACCELERATED: found.accelerated}
    if found.faster is None:
        return None
    fast, slow = sides[found.faster].minutes_per_epoch, sides[found.faster.other].minutes_per_epoch
    return None if fast is None or slow is None else max(0.0, slow - fast)


def _checkpoint(context: DashboardContext, width: int) -> Line | None:
    saved = context.view.last_checkpoint
    if saved is None:
        return None
    key = safe(saved.key)  # in full, where that is possible: it can be copied
    notes = (f"  epoch {saved.epoch}, step {saved.step:,}, {size(saved.bytes)}", f"  {size(saved.bytes)}", "")
    note = next((note for note in notes if len(key) + len(note) <= width), "")
    return Line((shorten_middle(key, width - len(note), context.glyphs.ellipsis), "text"), (note, "dim"))


def _keys(context: DashboardContext, width: int) -> Line:
    """The keys of the next steps; a run without a checkpoint cannot be resumed or evaluated."""
    line = Line()
    for key, text in _KEYS:
        gap = f" {context.glyphs.dot} " if line.width else ""
        fits = line.width + len(f"{gap}{key} {text}") <= width
        if fits and (key not in _OF_A_CHECKPOINT or context.view.last_checkpoint is not None):
            line.add(gap, "dim").add(key, "primary").add(f" {text}", "text")
    return line
