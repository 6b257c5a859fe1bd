"""The headline of the Train screen: diagnosis, progress and tiles; before the first run, how to start one."""

from __future__ import annotations

from collections.abc import Sequence

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted
from ossconsole.telemetry.diagnosis import Bottleneck, diagnose
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.measure import COMPUTE_BOUND, IO_BOUND
from ossconsole.telemetry.runs import RunSummary
from ossconsole.telemetry.view import RunView
from ossconsole.tui.console import ConsoleState, PreparationStage, Ready, StageState, Starting
from ossconsole.tui.kit.screen import notice, retry_hint, stage_lines
from ossconsole.tui.kit.text import (
    MISSING,
    Line,
    compact,
    duration,
    moment,
    number,
    percent,
    rate,
    safe,
    short_times,
    shorten,
    size,
    tile_lines,
    wrap,
)
from ossconsole.tui.train import finish
from ossconsole.tui.train.monitor import DashboardContext
from ossconsole.tui.train.run_rows import run_header, run_row

_BOUND_STYLES = {
    Bottleneck.IO: "bad",
    Bottleneck.MIXED: "warn",
    Bottleneck.DECODE: "bad",
    Bottleneck.COMPUTE: "good",
    Bottleneck.HOST: "warn",
    Bottleneck.UNDECIDED: "strong",
    Bottleneck.NONE: "strong",
}
_STATE_STYLES = {
    RunState.COMPILING: "warn",
    RunState.RUNNING: "good",
    RunState.VALIDATING: "good",
    RunState.PAUSED: "warn",
    RunState.STOPPING: "warn",
    RunState.FAILED: "bad",
}
_SPLIT_CELLS = 40
_MIN_SHARE = 0.005  # of the step time, for a part to show


def verdict(context: DashboardContext, width: int, height: int) -> list[Line]:
    """What limits the run, and the parts of the step time; below, what to do, and what another format would give."""
    if context.reading is not None:
        return _reading(context, context.reading)
    found = diagnose(context.view, context.now, has_accelerated=context.has_accelerated)
    if context.view.state is not None and context.view.state.final:
        return finish.card(context, found, width, height)
    style = _BOUND_STYLES[found.bottleneck]
    edge = context.glyphs.left_edge
    first = Line((f"{edge}", style))
    text = safe(found.text)
    if found.bottleneck is Bottleneck.NONE:
        first.add(text[:1].upper() + text[1:], style)
    else:
        first.add(found.bottleneck.value, style).add(f": {text}", "text")
        first.right(_split(context, width - first.width), width)
    more = [each for each in (found.ceiling, found.format_advice) if each]
    rows = [row for each in more for row in _fitted(each, width - 2, height - 2, context)][: max(0, height - 2)]
    rest = [*_fitted(found.advice, width - 2, height - 1 - len(rows), context), *rows]
    return [first, *(Line((edge, style), (part, "dim")) for part in rest)]


def _reading(context: DashboardContext, share: float) -> list[Line]:
    """In place of a verdict, which would be one about the past."""
    edge, then = (context.glyphs.left_edge, "strong"), context.view.last_time
    first = Line(edge, (f"Reading the record of the run: {percent(share)}", "strong"))
    return [first, Line(edge, (f"the figures are those of {moment(then)}" if then is not None else "", "dim"))]


def _fitted(text: str, width: int, height: int, context: DashboardContext) -> list[str]:
    """The text in at most `height` lines of that width, shortened where it is too long."""
    parts = wrap(safe(text), width)
    if len(parts) > height > 0:
        parts[height - 1] = shorten(" ".join(parts[height - 1 :]), width, context.glyphs.ellipsis)
    return parts[: max(0, height)]


def has_more_advice(view: RunView) -> bool:
    """Whether the verdict needs rows for what another format would give, or for the model's ceiling.

    They stay where that is known for one of the endpoints, so that the layout does not jump with each switch.
    """
    if view.summary is not None:
        return bool(view.summary.advice)
    if (view.run is not None and view.run.benchmark is not None) or (view.devices is not None and view.devices.ceiling):
        return True
    return any(view.measurement.format_gain(kind) is not None for kind in EndpointKind)


def _split(context: DashboardContext, room: int) -> Line:
    """The parts of the recent step times, also as a bar where there is room."""
    split = context.view.split
    if split is None or split.total <= 0:
        return Line()
    parts = [("wait", split.wait, "warn"), ("copy", split.copy, "dim"), ("compute", split.compute, "good")]
    if split.host >= _MIN_SHARE * split.total:
        parts.append(("host", split.host, "bad"))
    glyphs = context.glyphs
    line = Line(("step ", "dim"), (short_times((split.total,)), "strong"), (" =", "dim"))
    # Formatted together with the total, so that all share its unit.
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


def progress(context: DashboardContext, width: int) -> Line:
    """State, epoch, step and remaining time on one line."""
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
    if context.reading is not None:
        left = Line((f" {glyphs.running} reading the record{glyphs.ellipsis}", "warn"))
    elif context.requested:
        left = Line((f" {mark} {context.requested}{glyphs.ellipsis}", "warn"))
    epoch = view.last_step.epoch if view.last_step else 0
    if epoch:
        left.add(f"  epoch {epoch}" + (f"/{view.run.epochs}" if view.run.epochs else ""))
    total = view.total_steps
    left.add(f"  step {view.step:,}" + (f"/{total:,}" if total else ""))
    right = Line()
    if total:
        right.add(f"  {percent(view.step / total)}", "strong")
    eta = view.eta_s() if context.reading is None else None
    if eta is not None:
        right.add(f"  ETA {duration(eta)}", "text")
    right.add(f"  elapsed {duration(view.elapsed_s(context.now))} ", "dim")
    room = width - left.width - right.width - 3
    if total and room >= 8:
        left.add("  ").extend(_bar(view.step / total, room, context))
    if left.width + right.width >= width:
        right = Line((f"  {percent(view.step / total)} ", "strong")) if total else Line()
    return left.right(right, width)


def _bar(fraction: float, width: int, context: DashboardContext) -> Line:
    glyphs = context.glyphs
    halves = round(min(1.0, fraction) * width * 2)
    full = glyphs.bar_full * (halves // 2) + (glyphs.bar_half if halves % 2 else "")
    return Line((full, "primary"), (glyphs.bar_empty * (width - len(full)), "rule"))


def failure(context: DashboardContext, width: int) -> Line:
    """The newest error that is not dismissed."""
    errors = context.view.errors
    if not errors:
        return Line()
    more = f" (+{len(errors) - 1})" if len(errors) > 1 else ""
    text = shorten(f"{context.glyphs.failed} {safe(errors[-1].text)}", width - len(more) - 1)
    return Line((text + more, "bad"))


TILE_WIDTH = 15
Tile = tuple[str, Line, Line]
"""Label, value and note."""


def tiles(context: DashboardContext, width: int) -> list[Line]:
    """Three lines: labels, figures and notes of the tiles that fit."""
    count = max(1, min(8, width // TILE_WIDTH))
    return tile_lines(_tiles(context, wide=count >= 8)[:count], width)


def _tiles(context: DashboardContext, *, wide: bool) -> list[Tile]:
    if wide:
        return [
            _speed(context),
            _wait(context),
            _step_time(context),
            _fetch(context),
            _throughput(context),
            _loss(context),
            _accuracy(context),
            _learning_rate(context),
        ]
    return [
        _speed(context),
        _wait(context),
        _fetch(context, compact=True),
        _loss(context, compact=True),
        _accuracy(context),
    ]


def _speed(context: DashboardContext) -> Tile:
    step, kind = context.view.last_step, context.view.delivering
    note = Line() if kind is None else context.named(kind)
    return "samples/s", _figure(rate(step.samples_per_s) if step else MISSING), note


def _wait(context: DashboardContext) -> Tile:
    split = context.view.split
    if split is None:
        return "data wait", _figure(MISSING), Line()
    style = "good" if split.wait_fraction < COMPUTE_BOUND else "bad" if split.wait_fraction >= IO_BOUND else "warn"
    note = short_times((split.wait, split.total), " of ")
    return "data wait", Line((percent(split.wait_fraction), style)), Line((note, "dim"))


def _step_time(context: DashboardContext) -> Tile:
    split = context.view.split
    if split is None:
        return "step time", _figure(MISSING), Line()
    note = f"copy {short_times((split.copy,))}"
    return "step time", _figure(short_times((split.total,))), Line((note, "dim"))


def _fetch(context: DashboardContext, *, compact: bool = False) -> Tile:
    kind = context.view.delivering
    label = "fetch p50/p95"
    if kind is None:
        return label, _figure(MISSING), Line()
    figures = context.view.figures(kind)
    value = _figure(short_times((figures.fetch_p50, figures.fetch_p95)))
    note = f"{size(context.view.bytes_per_s)}/s" if compact else _count(figures.steps, "batch", "batches")
    return label, value, Line((note, "dim"))


def _throughput(context: DashboardContext) -> Tile:
    view = context.view
    value = MISSING if view.bytes_per_s is None else f"{size(view.bytes_per_s)}/s"
    return "read", _figure(value), Line((_count(view.samples, "sample", "samples"), "dim"))


def _count(number_: int, one: str, many: str) -> str:
    """A count with its unit, which fits a tile: 120,676,352 samples do not."""
    text = counted(number_, one, many)
    return text if len(text) < TILE_WIDTH else f"{compact(number_)} {many}"


def _loss(context: DashboardContext, *, compact: bool = False) -> Tile:
    view = context.view
    step, epoch = view.last_step, view.last_epoch
    validation = f"val {number(epoch.val_loss, 4)}" if epoch and epoch.val_loss is not None else ""
    note = f"lr {number(step.lr)}" if compact and step else validation
    value = (
        Line(("not finite", "bad"))
        if step and step.loss is None
        else _figure(number(step.loss, 4) if step else MISSING)
    )
    return "loss", value, Line((note, "dim"))


def _accuracy(context: DashboardContext) -> Tile:
    epoch = context.view.last_epoch
    if epoch is None or epoch.top1 is None:
        return "top-1", _figure(MISSING), Line(("after epoch 1", "dim") if context.view.run else ("", "dim"))
    note = f"top-5 {percent(epoch.top5)}" if epoch.top5 is not None else ""
    return "top-1", _figure(percent(epoch.top1, 1)), Line((note, "dim"))


def _learning_rate(context: DashboardContext) -> Tile:
    step = context.view.last_step
    checkpoint = context.view.last_checkpoint
    note = f"saved epoch {checkpoint.epoch}" if checkpoint else ""
    return "learning rate", _figure(number(step.lr) if step else MISSING), Line((note, "dim"))


def _figure(text: str) -> Line:
    return Line((text, "dim" if text == MISSING else "strong"))


_HOW = Line((" Press ", "dim"), ("n", "primary"), (" to configure a run", "dim"), (", ", "dim"), ("r", "primary"))
_HOW.add(" for recorded runs.", "dim")
_WHILE_IT_RUNS = Line((" During a run, ", "dim"), ("e", "primary"), (" switches the endpoint, ", "dim"))
_WHILE_IT_RUNS.add("a", "primary").add(" measures both.", "dim")


def idle(
    context: DashboardContext, state: ConsoleState, width: int, *, starting: bool, recent: Sequence[RunSummary] = ()
) -> list[Line]:
    """The panel without a run; `starting` for a run that was started and has not reported yet.

    `recent` are recorded runs, the newest first.
    """
    errors = context.view.errors
    if errors:
        text = wrap(safe(errors[-1].text), width - 4)
        rows = [Line((f"  {part}", "text")) for part in text]
        return [Line(), Line((f" {context.glyphs.failed} The run did not start", "bad")), *rows, Line(), _HOW]
    stages = state.stages
    if starting:
        detail = "loading torch, the manifest and the readers"
        stages = (*stages, PreparationStage("training run", StageState.ACTIVE, detail))
    title = "Prepared" if isinstance(state, Ready) and not starting else "Preparing"
    lines = [context.heading(title, width), Line(), *stage_lines(context.glyphs, stages, width)] if stages else []
    if starting:
        return lines
    if isinstance(state, Ready):
        next_steps = [Line((" No active run. " if recent else " No run yet. ", "strong")).extend(_HOW)]
        next_steps += [Line(), _WHILE_IT_RUNS] if not stages else []
        if recent:
            rows = [run_row(run, width) for run in recent]
            next_steps += [Line(), context.heading("recorded runs", width, "r: all"), run_header(width), *rows]
    elif isinstance(state, Starting) and stages:
        next_steps = [Line((" A run can start once the sample dataset is complete.", "dim"))]
    elif any(stage.state is StageState.FAILED for stage in stages):
        next_steps = [retry_hint()]
    else:
        next_steps = notice(state, context.glyphs, width)
    return [*lines, Line(), *next_steps]
