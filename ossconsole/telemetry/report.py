"""The report of a run: a page with its result, charts, epochs, checkpoints, and how it was measured."""

from __future__ import annotations

import math
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import reason, write_remedy
from ossconsole.config.text import counted
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import ComparisonReport, Decision
from ossconsole.telemetry.diagnosis import diagnose_loader, final_advice
from ossconsole.telemetry.events import Event, RunState, megabytes, number, percent
from ossconsole.telemetry.loader_waits import LoaderWaits
from ossconsole.telemetry.measure import Measurement
from ossconsole.telemetry.page import (
    Band,
    Bars,
    Chart,
    Charts,
    Facts,
    Page,
    Part,
    Pictures,
    Section,
    Table,
    Text,
    to_html,
    to_markdown,
)
from ossconsole.telemetry.predictions import Evaluation, read_predictions
from ossconsole.telemetry.runs import RecordError, read_events

FORMATS = {"html": to_html, "md": to_markdown}
"""How a page is written, by the name of the format."""

_EPOCHS = 16  # the newest of them are shown, so that the page prints on two sheets
_CHECKPOINTS = 6
_TIMED_STEPS = 20  # fewer have no 95th percentile
_PROBLEMS = 8
_CLASSES = 12  # with the lowest accuracy
_BANDS = 40  # more cannot be seen
_HOW = """The data wait is the time that the training loop waited for a batch. The ratio is the mean over pairs of
visits, before and after a switch of the endpoints; its 95 % interval holds at every look. Warm-up steps, batches read
ahead before a switch, pauses and validations are left out."""
_HOW_LOADER = """The data wait is the time that the loop of the script waited for a batch of its loader. Warm-up steps,
pauses and what the script does between epochs are left out."""


def write_page(page: Page, target: Path, form: str) -> Path:
    """Writes the page in a format of FORMATS. Raises ConsoleError."""
    text = FORMATS[form](page)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConsoleError(
            f"The report {target} cannot be written: {reason(error)}.", remedy=write_remedy(target, error)
        ) from error
    return target


MoreSections = Callable[[Measurement], list[Section]]
"""What a page adds from the measurement of a run, before how it was measured."""


def _nothing(_measurement: Measurement) -> list[Section]:
    return []


def write_report(record: Path, target: Path, form: str = "html", *, more: MoreSections = _nothing) -> Path:
    """Writes the report of a run record; returns the path. Raises ConsoleError."""
    return write_page(run_page(read_events(record), read_predictions(record), more), target, form)


def run_page(recorded: Iterable[Event], predictions: Evaluation | None = None, more: MoreSections = _nothing) -> Page:
    """The report of a run from its events, and from its saved predictions.

    Raises RecordError without the run's first event.
    """
    gathered = _Gathered()
    for event in recorded:
        gathered.apply(event)
    if gathered.run is None:
        raise RecordError("The record has no start of a run.", remedy="`ossconsole status` names the newest run.")
    return gathered.page(gathered.run, predictions, more)


class _Steps:
    """What the charts show of the steps, in 40 bytes for each: a run of some days has millions of them."""

    def __init__(self) -> None:
        self.numbers, self.rates, self.waits, self.losses = (array("d") for _ in range(4))
        self.times = array("d")  # without the first step of each epoch, which has the start of the loader
        self.last: events.Step | None = None
        self._bands: list[Band] = []

    def add(self, step: events.Step) -> None:
        """Takes the next step."""
        self.numbers.append(step.step)
        self.rates.append(step.samples_per_s)
        self.waits.append(step.wait_fraction * 100)
        self.losses.append(math.nan if step.loss is None else step.loss)
        if self.last is not None and self.last.epoch == step.epoch:
            self.times.append(step.step_time_s)
        self.last = step
        self._extend_bands(step.step, str(step.endpoint or ""))

    def _extend_bands(self, step: int, kind: str) -> None:
        if len(self._bands) > _BANDS:
            return
        if not self._bands or self._bands[-1].kind != kind:
            self._bands.append(Band(step, step, kind))
        else:
            self._bands[-1] = Band(self._bands[-1].start, step, kind)

    @property
    def bands(self) -> list[Band]:
        """Where batches came from which endpoint; none where there was only one, or too many switches to see."""
        return self._bands if 1 < len(self._bands) <= _BANDS else []


class _Gathered:
    """Collects the parts of the page from the events of a record."""

    def __init__(self) -> None:
        self.run: events.Run | None = None
        self.summary: events.Summary | None = None
        self.state = RunState.STARTING
        self.last = 0.0
        self._measurement = Measurement()
        self._steps = _Steps()
        self._loader_waits = LoaderWaits(None)
        self._epochs: list[events.Epoch] = []
        self._checkpoints: list[events.Checkpoint] = []
        self._compared: ComparisonReport | None = None
        self._problems: dict[str, int] = {}

    def apply(self, event: Event) -> None:
        """Takes one event, in the order of the record."""
        self.last = max(self.last, event.time)
        if isinstance(event, events.Telemetry):
            return
        self._measurement.apply(event)
        match event:
            case events.Step():
                self._steps.add(event)
                self._loader_waits.add(event.epoch, event.data_wait_s)
            case events.LoaderWorkers() | events.RankWork():
                self._loader_waits.apply(event)
            case events.Run():
                self.run = self.run or event
                self._loader_waits = LoaderWaits.of(event)
            case events.Epoch():
                self._epochs.append(event)
            case events.Checkpoint():
                self._checkpoints.append(event)
            case events.Compared():
                self._compared = event.comparison
            case events.WarningEvent() | events.ErrorEvent():
                text = f"{event.message} {event.remedy}".strip()
                self._problems[text] = self._problems.get(text, 0) + 1
            case events.State():
                self.state = event.state
            case events.Summary():
                self.summary, self.state = event, event.state

    @property
    def comparison(self) -> ComparisonReport | None:
        """The newest result of the comparison; None where one endpoint alone was used."""
        if self.summary is not None and self.summary.comparison is not None:
            return self.summary.comparison
        measured = self._measurement.comparison
        return self._compared or (measured.report() if measured.pairs else None)

    def page(self, run: events.Run, predictions: Evaluation | None, more: MoreSections) -> Page:
        """The page."""
        simulated = " (simulated storage)" if run.simulated else ""
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.time))
        endpoints = [self._endpoints()] if self._measurement.endpoints() else []
        how = _HOW if endpoints else _HOW_LOADER
        sections = [
            Section("Result", [Facts(self._results(run)), *endpoints]),
            Section("Charts", [Charts(self._charts())]),
            *([Section("Predictions", _predictions(predictions))] if predictions is not None else []),
            *self._optional(),
            *more(self._measurement),
            Section("How it was measured", [Text([how.replace("\n", " ")]), Facts(self._settings(run))]),
        ]
        return Page(
            title=f"Training run {run.run} of {started}{simulated}",
            headline=self._headline(run),
            conditions=self._conditions(run),
            sections=sections,
        )

    def _headline(self, run: events.Run) -> str:
        found = self.comparison
        simulated = ", simulated" if run.simulated else ""
        if found is not None and found.decision is not Decision.NONE:
            if found.decision is Decision.SAME:
                return f"Both endpoints are equally fast: {found.words}{simulated}"
            words = found.words.replace(" (", " of the standard one (", 1)
            return f"Training through the accelerated endpoint: {words}{simulated}"
        rate, wait = self._rates()
        if rate is None or wait is None:
            return f"The run is {self.state}: too short for a rate"
        alone = f"{rate:,.0f} samples/s, data wait {percent(wait)}{simulated}"
        return f"{alone}; the endpoints: {found.words}" if found is not None else alone

    def _rates(self) -> tuple[float | None, float | None]:
        whole = self.summary or self._measurement
        return whole.samples_per_s, whole.wait_fraction

    def _conditions(self, run: events.Run) -> list[str]:
        found = self.comparison
        lines = [found.conditions.words] if found is not None and found.conditions is not None else []
        if not lines:
            lines = [
                ", ".join(
                    part
                    for part in (
                        run.sample_format,
                        {"objects": "one object per sample"}.get(run.stored_as, run.stored_as),
                        f"region {run.region}" if run.region else "",
                        *(f"{name} {version}" for name, version in run.versions.items()),
                    )
                    if part
                )
            ]
        advice = self._loader_verdict(run) if run.loader and not self._measurement.endpoints() else self._advice()
        if advice:
            lines.append(f"Verdict: {advice}")
        return lines

    def _advice(self) -> str:
        return self.summary.advice if self.summary is not None else final_advice(self._measurement)

    def _loader_verdict(self, run: events.Run) -> str:
        """What bounded a watched loop, over the whole run; "" where that was too short."""
        _, wait = self._rates()
        if wait is None:
            return ""
        found = diagnose_loader(run, self._loader_waits, wait)
        return f"{found.bottleneck.value}: {found.text}; {found.advice}"

    def _results(self, run: events.Run) -> list[tuple[str, str]]:
        rate, wait = self._rates()
        best = max((each.top1 for each in self._epochs if each.top1 is not None), default=None)
        epochs = counted(len(self._epochs), "epoch")
        known = {
            "state": str(self.state),
            "data": f"oss://{run.bucket}" if run.bucket else "",
            "steps": f"{len(self._steps.numbers):,}, {epochs}{'' if run.loader else ' validated'}",
            "duration": _duration(self.last - run.time),
            "samples/s": "" if rate is None else f"{rate:,.1f}",
            "data wait": "" if wait is None else percent(wait),
            "step": self._step_times() if run.loader else "",
            "AU": "" if wait is None else f"{percent(1 - wait)} (the share of the time that was not spent waiting)",
            "best top-1": "" if best is None else f"{best * 100:.1f} %",
            "loss": number(self._steps.last.loss) if self._steps.last else "",
            "error": self.summary.error if self.summary is not None else "",
        }
        ceiling = self._measurement.ceiling
        rows = [(label, value) for label, value in known.items() if value]
        return [*rows, ("accelerator", ceiling.words)] if ceiling is not None else rows

    def _step_times(self) -> str:
        """The quantiles of all steps but the first of each epoch, which has the start of the loader."""
        if len(self._steps.times) < _TIMED_STEPS:
            return ""
        cuts = statistics.quantiles(self._steps.times, n=20)
        return f"p50 {_milliseconds(cuts[9])}, p95 {_milliseconds(cuts[18])}"

    def _endpoints(self) -> Table:
        header = ("endpoint", "steps", "samples/s", "data wait", "step p50", "step p95", "stalls", "read")
        rows = []
        for name, each in self._measurement.endpoints().items():
            kind = next(kind for kind in self._measurement.visits.windows if str(kind) == name)
            figures = self._measurement.figures(kind)
            rows.append(
                (
                    name,
                    f"{each.steps:,}",
                    each.reason or f"{each.samples_per_s:,.1f}",
                    "" if each.wait_fraction is None else percent(each.wait_fraction),
                    _milliseconds(figures.step_p50),
                    _milliseconds(figures.step_p95),
                    "" if figures.stall_share is None else percent(figures.stall_share),
                    f"{each.bytes / 1e9:,.2f} GB",
                )
            )
        return Table(header, rows)

    def _charts(self) -> list[Chart]:
        steps = self._steps
        x, bands = steps.numbers, steps.bands
        charts = [
            Chart("Samples/s", x, steps.rates, "step", bands),
            Chart("Data wait, %", x, steps.waits, "step", bands),
            Chart("Training loss", x, steps.losses, "step", from_zero=False),
        ]
        measured = [each for each in self._epochs if each.top1 is not None]
        if len(measured) > 1:
            accuracies = [100 * (each.top1 or 0.0) for each in measured]
            charts.append(Chart("Top-1, %", [float(each.epoch) for each in measured], accuracies, "epoch"))
        return charts

    def _optional(self) -> list[Section]:
        sections = []
        if self._epochs:
            sections.append(Section("Epochs", [_epoch_table(self._epochs)]))
        if self._checkpoints:
            sections.append(Section("Checkpoints", [_checkpoint_table(self._checkpoints)]))
        if self._problems:
            lines = [f"{text}{f' ({count} times)' if count > 1 else ''}" for text, count in self._problems.items()]
            more = [f"… and {len(lines) - _PROBLEMS} more"] if len(lines) > _PROBLEMS else []
            sections.append(Section("Warnings and errors", [Text([*lines[:_PROBLEMS], *more])]))
        return sections

    def _settings(self, run: events.Run) -> list[tuple[str, str]]:
        shown = {name: value for name, value in run.settings.items() if value not in ("", None)}
        text = ", ".join(f"{name} {value}" for name, value in shown.items())
        return [
            ("program", f"ossconsole {run.version} on {run.host or 'an unknown host'}, {counted(run.cores, 'core')}"),
            ("settings", text or "unknown"),
        ]


def _predictions(evaluation: Evaluation) -> list[Part]:
    """Accuracy, the classes with the lowest one, confusions, and the worst misclassified images."""
    facts = {
        "checkpoint": evaluation.checkpoint,
        "top-1": f"{evaluation.top1 * 100:.1f} % of {counted(evaluation.images, 'validation image')}",
        "top-5": f"{evaluation.top5 * 100:.1f} %",
        "not read": counted(evaluation.unread, "image") if evaluation.unread else "",
    }
    shown = evaluation.classes[:_CLASSES]
    hidden = len(evaluation.classes) - len(shown)
    note = f"{counted(hidden, 'class', 'classes')} with a higher accuracy not shown." if hidden else ""
    bars = Bars([(each.name, each.top1, counted(each.images, "image")) for each in shown], note)
    confusions = [
        (each.label, each.predicted, f"{each.images:,}", f"{each.share * 100:.0f} % of the class")
        for each in evaluation.confusions
    ]
    pictures = [
        (each.thumbnail, (f"{each.label} → {each.predicted}", f"p {each.probability:.2f}"))
        for each in evaluation.worst
        if each.thumbnail
    ]
    parts: list[Part] = [Facts([(label, value) for label, value in facts.items() if value]), bars]
    if confusions:
        parts.append(Table(("true", "predicted", "images", "share"), confusions))
    if pictures:
        parts += [Text(["The worst misclassified images (true → predicted, probability):"]), Pictures(pictures)]
    return parts


def _epoch_table(epochs: Sequence[events.Epoch]) -> Table:
    header = ("epoch", "train loss", "val loss", "top-1", "top-5", "seconds")
    rows = [
        (
            str(each.epoch),
            number(each.train_loss),
            number(each.val_loss),
            "" if each.top1 is None else f"{each.top1 * 100:.1f} %",
            "" if each.top5 is None else f"{each.top5 * 100:.1f} %",
            f"{each.seconds:,.1f}",
        )
        for each in epochs[-_EPOCHS:]
    ]
    return Table(header, rows, note=_left_out(len(epochs), _EPOCHS, "epoch"))


def _checkpoint_table(checkpoints: Sequence[events.Checkpoint]) -> Table:
    header = ("key", "step", "size", "seconds", "MB/s")
    rows = [
        (
            each.key,
            f"{each.step:,}",
            megabytes(each.bytes),
            f"{each.seconds:.1f}",
            f"{each.bytes / each.seconds / 1e6:,.1f}" if each.seconds > 0 else "",
        )
        for each in checkpoints[-_CHECKPOINTS:]
    ]
    return Table(header, rows, note=_left_out(len(checkpoints), _CHECKPOINTS, "checkpoint"))


def _left_out(count: int, shown: int, noun: str) -> str:
    return f"{counted(count - shown, f'earlier {noun}')} not shown." if count > shown else ""


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.0f} ms"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
