"""A recorded run as a row of figures, in the list of runs and below an idle Train screen."""

from __future__ import annotations

from collections.abc import Callable

from ossconsole.telemetry.compare import Decision
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import RunSummary
from ossconsole.tui.kit.text import MISSING, Line, duration, moment, number, percent, rate, safe, shorten

_STATE_STYLES = {RunState.FINISHED: "good", RunState.FAILED: "bad", RunState.STOPPED: "dim"}
_STARTED, _STATE = 21, 13  # cells
_MARGIN = 2

Value = Callable[[RunSummary], str]


def _speed_up(run: RunSummary) -> str:
    """The ratio of the endpoints, once it is decided."""
    found = run.comparison
    if found is None or found.decision is Decision.NONE:
        return MISSING
    return "same" if found.decision is Decision.SAME or found.ratio is None else f"{found.ratio:.2f}x"


_COLUMNS: tuple[tuple[str, int, Value], ...] = (
    ("samples/s", 10, lambda run: rate(run.samples_per_s)),
    ("wait", 7, lambda run: percent(run.wait_fraction)),
    ("top-1", 8, lambda run: percent(run.top1, 1)),
    ("loss", 8, lambda run: number(run.loss)),
    ("speed-up", 10, _speed_up),
    ("step", 9, lambda run: f"{run.step:,}"),
    ("endpoint", 13, lambda run: str(run.endpoint or "")),
    ("time", 10, lambda run: duration(run.updated - run.started)),
    ("epoch", 7, lambda run: f"{run.epoch:,}"),
    ("val loss", 10, lambda run: number(run.val_loss)),
    ("bucket", 26, lambda run: "sandbox" if run.simulated else run.bucket),
)
"""Title, cells and value, the most useful first."""
_WORDS = {"endpoint", "bucket"}
"""The columns with words, which start below their title; figures end below it."""


def _cell(title: str, text: str, cells: int) -> str:
    return f"  {shorten(text, cells - 2)}".ljust(cells) if title in _WORDS else shorten(text, cells - 1).rjust(cells)


def _fitting(width: int) -> list[tuple[str, int, Value]]:
    room, shown = width - _MARGIN - _STARTED - _STATE, []
    for column in _COLUMNS:
        room -= column[1]
        if room < 0:
            break
        shown.append(column)
    return shown


def run_header(width: int) -> Line:
    """The titles of the columns that fit."""
    line = Line(("  started", "dim")).to(_MARGIN + _STARTED, "dim").add("state", "dim")
    line.to(_MARGIN + _STARTED + _STATE, "dim")
    for title, cells, _ in _fitting(width):
        line.add(_cell(title, title, cells), "dim")
    return line


def run_row(run: RunSummary, width: int, mark: str = " ") -> Line:
    """The run in the columns that fit; `mark` is one cell."""
    line = Line((mark, "primary"), (f" {moment(run.started)}", "text")).to(_MARGIN + _STARTED)
    words = "interrupted" if run.interrupted else str(run.state)
    line.add(words, "bad" if run.interrupted else _STATE_STYLES.get(run.state, "primary"))
    line.to(_MARGIN + _STARTED + _STATE)
    for title, cells, value in _fitting(width):
        line.add(_cell(title, safe(value(run)), cells), "text")
    return line
