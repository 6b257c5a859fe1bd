"""`ossconsole status --follow`: a run as sentences, one for each change; for screen readers, and for logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ossconsole.config.text import counted, safe_text
from ossconsole.telemetry.events import Event, percent, to_log_line
from ossconsole.telemetry.runs import RecordReader, RunSummary, find_run
from ossconsole.telemetry.view import RunView

_POLL_S = 0.5
_STATE_EVERY_S = 15.0


def follow(summary: RunSummary, say: Callable[[str], None]) -> None:
    """Prints the state of the run, then each of its events until it ends. Raises ConsoleError."""
    view = RunView()
    with RecordReader(Path(summary.path)) as record:
        for event in _all(record):
            view.apply(event)
        say(state_sentence(view))
        said = time.monotonic()
        while view.state is None or not view.state.final:
            if find_run(summary.run).alive is False:
                say("The process of the run has ended without a last event.")
                return
            time.sleep(_POLL_S)
            for event in _all(record):
                view.apply(event)
                line = to_log_line(event)
                if line is not None:
                    say(_sentence(line.text))
            if time.monotonic() - said >= _STATE_EVERY_S:
                said = time.monotonic()
                say(state_sentence(view))


def _all(record: RecordReader) -> Iterator[Event]:
    while events := record.poll():
        yield from events


def state_sentence(view: RunView) -> str:
    """Where the run is, how fast, and what it waits for; without symbols and columns."""
    name = view.run.run if view.run else "The run"
    state = view.state.value if view.state is not None else "starting"
    if view.last_step is None:
        return f"{name} is {state}; no step yet."
    step, epochs = view.last_step, view.run.epochs if view.run else 0
    of_steps = f" of {view.total_steps}" if view.total_steps else ""
    of_epochs = f" of {epochs}" if epochs else ""
    parts = [f"{name} is {state}: step {step.step}{of_steps}, epoch {step.epoch}{of_epochs}"]
    parts.append(f"{step.samples_per_s:.0f} samples per second through the {step.endpoint} endpoint")
    split = view.split
    if split is not None:
        parts.append(f"waiting for data takes {percent(split.wait_fraction)} of a step".replace(" %", " percent"))
    if view.best_top1 is not None:
        parts.append(f"best top-1 {percent(view.best_top1)}".replace(" %", " percent"))
    if view.errors:
        parts.append(counted(len(view.errors), "error"))
    return f"{', '.join(parts)}."


def _sentence(text: str) -> str:
    text = safe_text(text)
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
