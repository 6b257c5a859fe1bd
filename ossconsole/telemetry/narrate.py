"""The event log of a run: what each event is called in words."""

from __future__ import annotations

import functools
from typing import Literal

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted, safe_text
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event, RunState

Level = Literal["info", "good", "switch", "warning", "error"]


class LogLine(msgspec.Struct, frozen=True):
    """One line of the event log. `time` is Unix seconds; `endpoint` is set where the line is about one."""

    time: float
    level: Level
    text: str
    endpoint: EndpointKind | None = None


_STATE_WORDS = {
    RunState.PAUSED: "paused",
    RunState.STOPPING: "stopping: a checkpoint is written first",
}


def narrate(event: Event) -> LogLine | None:
    """The line for an event; None for those that come too often or say nothing new.

    The record that it may come from is a file of anybody's: the text is made safe for a terminal.
    """
    line = _narrate(event)
    return line and msgspec.structs.replace(line, text=safe_text(line.text))


@functools.singledispatch
def _narrate(event: Event) -> LogLine | None:  # noqa: ARG001 - the events not named below come too often for a line
    return None


@_narrate.register
def _(event: events.Run) -> LogLine:
    return LogLine(event.time, "info", f"run {event.run} starts")


@_narrate.register
def _(event: events.State) -> LogLine | None:
    words = _STATE_WORDS.get(event.state)
    return LogLine(event.time, "info", words) if words else None


@_narrate.register
def _(event: events.Switch) -> LogLine:
    reason = f" ({event.reason})" if event.reason else ""
    return LogLine(event.time, "switch", f"switched to {event.endpoint}{reason}", event.endpoint)


@_narrate.register
def _(event: events.Epoch) -> LogLine:
    return LogLine(event.time, "good", _epoch_words(event))


@_narrate.register
def _(event: events.Checkpoint) -> LogLine:
    return LogLine(event.time, "good", f"checkpoint {event.key}: {megabytes(event.bytes)} in {event.seconds:.1f} s")


@_narrate.register
def _(event: events.InfoEvent) -> LogLine:
    return LogLine(event.time, "info", event.message)


@_narrate.register
def _(event: events.WarningEvent) -> LogLine:
    return LogLine(event.time, "warning", f"{event.message} {event.remedy}".strip())


@_narrate.register
def _(event: events.ErrorEvent) -> LogLine:
    return LogLine(event.time, "error", f"{event.message} {event.remedy}".strip())


@_narrate.register
def _(event: events.Compared) -> LogLine:
    return LogLine(event.time, "good", f"A/B after {counted(event.comparison.pairs, 'pair')}: {event.comparison.words}")


@_narrate.register
def _(event: events.Summary) -> LogLine:
    return LogLine(event.time, "good", _summary_words(event))


def _epoch_words(event: events.Epoch) -> str:
    parts = [f"train loss {number(event.train_loss)}"]
    if event.val_loss is not None:
        parts.append(f"val loss {number(event.val_loss)}")
    if event.top1 is not None:
        parts.append(f"top-1 {percent(event.top1)}")
    if event.top5 is not None:
        parts.append(f"top-5 {percent(event.top5)}")
    return f"epoch {event.epoch} in {event.seconds:.1f} s: {', '.join(parts)}"


def _summary_words(event: events.Summary) -> str:
    words = f"{event.state}: {counted(event.epochs, 'epoch')}, {counted(event.steps, 'step')} in {event.seconds:.0f} s"
    if event.samples_per_s is None or event.wait_fraction is None:
        return f"{words}, {event.reason} for a rate" if event.reason else words
    rate = counted(f"{event.samples_per_s:.0f}", "sample/s", "samples/s")
    words += f", {rate}, data wait {percent(event.wait_fraction)}"
    return f"{words}, A/B {event.comparison.words}" if event.comparison is not None else words


def number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def percent(fraction: float) -> str:
    return f"{fraction * 100:.0f} %" if fraction >= 0.0995 or fraction == 0 else f"{fraction * 100:.1f} %"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
