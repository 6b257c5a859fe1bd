"""The tiles: the run's figures of this moment, as many as the width holds, the most telling first."""

from __future__ import annotations

from dataclasses import dataclass

from ossconsole.config.text import counted
from ossconsole.telemetry.verdict import COMPUTE_BOUND, IO_BOUND
from ossconsole.tui.panels.context import Context
from ossconsole.tui.text import MISSING, Line, number, percent, rate, short_times, shorten, size

TILE_WIDTH = 15
HEIGHT = 3


@dataclass(frozen=True)
class Tile:
    label: str
    value: Line
    note: Line


def tiles(context: Context, width: int) -> list[Line]:
    """Three lines: labels, figures, notes."""
    count = max(1, min(8, width // TILE_WIDTH))
    shown = _tiles(context, wide=count >= 8)[:count]
    lines = [Line((" ", "text")) for _ in range(HEIGHT)]
    for index, tile in enumerate(shown):
        end = 1 + (width - 1) * (index + 1) // len(shown)
        room = end - lines[0].width - 1
        lines[0].add(shorten(tile.label, room), "dim").to(end)
        lines[1].extend(tile.value).to(end - 1).to(end)
        lines[2].extend(tile.note).to(end - 1).to(end)
    return lines


def _tiles(context: Context, *, wide: bool) -> list[Tile]:
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


def _speed(context: Context) -> Tile:
    step, kind = context.view.last_step, context.view.delivering
    note = Line() if kind is None else context.named(kind)
    return Tile("samples/s", _figure(rate(step.samples_per_s) if step else MISSING), note)


def _wait(context: Context) -> Tile:
    split = context.view.split
    if split is None:
        return Tile("data wait", _figure(MISSING), Line())
    style = "good" if split.wait_fraction < COMPUTE_BOUND else "bad" if split.wait_fraction >= IO_BOUND else "warn"
    note = short_times((split.wait, split.total), " of ")
    return Tile("data wait", Line((percent(split.wait_fraction), style)), Line((note, "dim")))


def _step_time(context: Context) -> Tile:
    split = context.view.split
    if split is None:
        return Tile("step time", _figure(MISSING), Line())
    note = f"copy {short_times((split.copy,))}"
    return Tile("step time", _figure(short_times((split.total,))), Line((note, "dim")))


def _fetch(context: Context, *, compact: bool = False) -> Tile:
    kind = context.view.delivering
    label = "fetch p50/p95"
    if kind is None:
        return Tile(label, _figure(MISSING), Line())
    figures = context.view.figures(kind)
    value = _figure(short_times((figures.fetch_p50, figures.fetch_p95)))
    note = f"{size(context.view.bytes_per_s)}/s" if compact else counted(figures.steps, "batch", "batches")
    return Tile(label, value, Line((note, "dim")))


def _throughput(context: Context) -> Tile:
    view = context.view
    value = MISSING if view.bytes_per_s is None else f"{size(view.bytes_per_s)}/s"
    return Tile("read", _figure(value), Line((counted(view.samples, "sample"), "dim")))


def _loss(context: Context, *, compact: bool = False) -> Tile:
    view = context.view
    step, epoch = view.last_step, view.last_epoch
    validation = f"val {number(epoch.val_loss, 4)}" if epoch and epoch.val_loss is not None else ""
    note = f"lr {number(step.lr)}" if compact and step else validation
    value = (
        Line(("not finite", "bad"))
        if step and step.loss is None
        else _figure(number(step.loss, 4) if step else MISSING)
    )
    return Tile("loss", value, Line((note, "dim")))


def _accuracy(context: Context) -> Tile:
    epoch = context.view.last_epoch
    if epoch is None or epoch.top1 is None:
        return Tile("top-1", _figure(MISSING), Line(("after epoch 1", "dim") if context.view.run else ("", "dim")))
    note = f"top-5 {percent(epoch.top5)}" if epoch.top5 is not None else ""
    return Tile("top-1", _figure(percent(epoch.top1, 1)), Line((note, "dim")))


def _learning_rate(context: Context) -> Tile:
    step = context.view.last_step
    checkpoint = context.view.last_checkpoint
    note = f"saved epoch {checkpoint.epoch}" if checkpoint else ""
    return Tile("learning rate", _figure(number(step.lr) if step else MISSING), Line((note, "dim")))


def _figure(text: str) -> Line:
    return Line((text, "dim" if text == MISSING else "strong"))
