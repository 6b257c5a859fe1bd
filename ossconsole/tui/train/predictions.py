"""PredictionsScreen: what the checkpoint of a run gets right and wrong, and the progress of its evaluation."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.storage.jobs.job import JobState
from ossconsole.telemetry.predictions import Evaluation, read_predictions
from ossconsole.training.run_evaluation import EvaluationJob
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.jobs import job_line
from ossconsole.tui.kit.screen import ConsoleModal, ConsoleScreen
from ossconsole.tui.kit.scroll import Block, DetailView, ImageRow, image_sheet
from ossconsole.tui.kit.text import Line, heading, percent, safe, shorten_middle, wrap

_REFRESH_S = 0.5
_CLASSES = 10  # with the lowest accuracy, at least; more where rows are left
_BAR = 20  # cells
_NUMBERS = 15  # cells of accuracy and number of images behind a bar
_TWO_COLUMNS_FROM = 100  # cells


async def show_predictions(screen: ConsoleScreen, record: Path) -> None:
    """Shows the saved predictions of a run; where there are none, evaluates its checkpoint. Call it in a worker."""
    job = _newest_evaluation(screen, record)
    try:
        saved = await asyncio.to_thread(read_predictions, record)
        if saved is None and (job is None or not job.alive):
            job = await asyncio.to_thread(_start, screen, record)
    except ConsoleError as error:
        screen.show_error(error)
        return
    await screen.ask(PredictionsScreen(record, saved, job))


def _start(screen: ConsoleScreen | ConsoleModal, record: Path) -> EvaluationJob:
    """Starts an evaluation and lists it, also where nobody waits for it any more; blocks. Raises ConsoleError."""
    job = screen.services.start_evaluation(record)
    screen.console.jobs.append(job)
    return job


def _newest_evaluation(screen: ConsoleScreen | ConsoleModal, record: Path) -> EvaluationJob | None:
    """The evaluation of the run that was started last in this session."""
    found = (job for job in reversed(screen.console.jobs) if isinstance(job, EvaluationJob) and job.record == record)
    return next(found, None)


class PredictionsScreen(ConsoleModal):
    """Accuracy by class, confusions and the worst misclassified images; closing it does not end an evaluation."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p,q", "back", show=False),
        Binding("x", "cancel", show=False),
        Binding("e", "evaluate", show=False),
    ]

    def __init__(self, record: Path, evaluation: Evaluation | None, job: EvaluationJob | None) -> None:
        super().__init__()
        self._record = record
        self._found = evaluation
        self._pictures = _decoded(evaluation)
        self._job = job

    def compose(self) -> ComposeResult:
        with self.frame("Predictions", classes="-full", id="predictions-frame"):
            yield DetailView(self._blocks, id="predictions")

    def on_mount(self) -> None:
        """Paint twice a second while an evaluation is active."""
        view = self.query_one(DetailView)
        view.plain = self.plain
        view.focus()
        self.set_interval(_REFRESH_S, self._tick)
        self._show_keys()

    def _tick(self) -> None:
        job = self._job
        if job is not None and not job.alive and job.state is JobState.DONE:
            self._job = None
            self._read()
        self._show_keys()
        self.query_one(DetailView).redraw()

    @work(thread=True, exclusive=True, group="predictions", exit_on_error=False)
    def _read(self) -> None:
        """Reads what the evaluation has saved."""
        try:
            found = read_predictions(self._record)
        except ConsoleError as error:
            self.app.call_from_thread(self.show_error, error)
            return
        self.app.call_from_thread(self._show, found)

    def _show(self, evaluation: Evaluation | None) -> None:
        self._found, self._pictures = evaluation, _decoded(evaluation)
        self.query_one(DetailView).redraw()

    def _show_keys(self) -> None:
        alive = self._job is not None and self._job.alive
        keys = "x cancel · esc close (it continues)" if alive else "e evaluate again · esc close"
        self.query_one("#predictions-frame").border_subtitle = keys

    def _blocks(self, width: int, height: int) -> list[Block]:
        blocks: list[Block] = []
        job = self._job
        if job is not None:
            blocks.append(job_line(job, width, self.glyphs))
            problem = wrap(safe(str(job.error)), width - 2) if job.error is not None else []
            blocks += [Line((f" {part}", "bad")) for part in problem]
        if self._found is not None:
            worst = _worst(self._found, self._pictures, width, self.glyphs)
            room = height - len(blocks) - sum(block.rows if isinstance(block, ImageRow) else 1 for block in worst)
            blocks += [*_result(self._found, width, room, self.glyphs), *worst]
        return blocks

    # Actions

    def action_cancel(self) -> None:
        """End the evaluation without a result."""
        if self._job is not None:
            self._job.cancel()

    @work(exclusive=True, group="evaluate", exit_on_error=False)
    async def action_evaluate(self) -> None:
        """Evaluate the checkpoint again, for example after a change of the dataset."""
        self._job = _newest_evaluation(self, self._record)  # where the key is pressed twice
        if self._job is not None and self._job.alive:
            return
        try:
            self._job = await asyncio.to_thread(_start, self, self._record)
        except ConsoleError as error:
            self.show_error(error)
            return
        self._tick()


def _decoded(evaluation: Evaluation | None) -> list[NDArray[np.uint8]]:
    """The thumbnails as uint8 (height, width, 3)."""
    worst = evaluation.worst if evaluation is not None else []
    return [np.asarray(Image.open(io.BytesIO(each.thumbnail)).convert("RGB")) for each in worst if each.thumbnail]


def _result(evaluation: Evaluation, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The accuracy, the classes with the lowest one, and the confusions; side by side where there is room.

    As many classes as fit `height` rows, but at least _CLASSES: the view scrolls.
    """
    rates = Line(
        (f" top-1 {percent(evaluation.top1, 1)}", "strong"), (f"  top-5 {percent(evaluation.top5, 1)}", "text")
    )
    rates.add(f"  of {counted(evaluation.images, 'validation image')}", "dim")
    if evaluation.unread:
        rates.add(f"  {evaluation.unread:,} not read", "warn")
    where = Line((f" {shorten_middle(safe(evaluation.checkpoint), width - 2, glyphs.ellipsis)}", "dim"))
    room = height - len((rates, where)) - 1  # the heading of the classes
    if width < _TWO_COLUMNS_FROM:
        confusions = _confusions(evaluation, width, glyphs)
        return [rates, where, *_classes(evaluation, width, room - len(confusions), glyphs), *confusions]
    half = width // 2
    classes = _classes(evaluation, half - 1, room, glyphs)
    pairs = zip_longest(classes, _confusions(evaluation, width - half, glyphs), fillvalue=None)
    return [rates, where, *((left or Line()).to(half).extend(right or Line()) for left, right in pairs)]


def _classes(evaluation: Evaluation, width: int, count: int, glyphs: Glyphs) -> list[Line]:
    shown = evaluation.classes[: max(_CLASSES, count)]
    hidden = len(evaluation.classes) - len(shown)
    title = "top-1 by class, the lowest first" if hidden else "top-1 by class"
    lines = [heading(title, width, glyphs.rule, f"{hidden} more" if hidden else "")]
    room = width - _BAR - _NUMBERS - 3
    for each in shown:
        filled = round(_BAR * each.top1)
        line = Line((f" {shorten_middle(safe(each.name), room, glyphs.ellipsis)}", "text")).to(room + 2)
        line.add(glyphs.bar_full * filled, "primary").add(glyphs.bar_empty * (_BAR - filled), "rule")
        line.add(f" {percent(each.top1):>5}", "strong").add(f" of {each.images:,}", "dim")
        lines.append(line)
    return lines


def _confusions(evaluation: Evaluation, width: int, glyphs: Glyphs) -> list[Line]:
    lines = [heading("confusions, true to predicted", width, glyphs.rule)]
    if not evaluation.confusions:
        return [*lines, Line((" none", "dim"))]
    room = (width - 23) // 2
    for each in evaluation.confusions:
        names = [shorten_middle(safe(name), room, glyphs.ellipsis) for name in (each.label, each.predicted)]
        line = Line((f" {names[0]} {glyphs.arrow} {names[1]}", "text"))
        figures = Line((f"{each.images:,}", "strong"), (f"  {percent(each.share)} of class ", "dim"))
        lines.append(line.right(figures, width))
    return lines


def _worst(evaluation: Evaluation, pictures: Sequence[NDArray[np.uint8]], width: int, glyphs: Glyphs) -> list[Block]:
    """The sheet of the worst misclassified images."""
    if not pictures:
        return []
    shown = [each for each in evaluation.worst if each.thumbnail]
    captions = [
        (safe(each.label), f"{glyphs.arrow} {safe(each.predicted)}", f"p {each.probability:.2f}") for each in shown
    ]
    title = heading(f"worst misclassified, true {glyphs.arrow} predicted", width, glyphs.rule)
    return [Line(), title, *image_sheet(list(zip(pictures, captions, strict=True)), width, glyphs.ellipsis)]
