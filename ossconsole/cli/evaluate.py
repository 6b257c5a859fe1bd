"""`ossconsole evaluate`: what a checkpoint gets right and wrong on the validation images."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import click

from ossconsole.cli.options import FiniteRange, Target, json_option, label_options, profile_options, reads_only
from ossconsole.cli.output import report_and_wait, say, say_json
from ossconsole.cli.sandbox import fill_sandbox
from ossconsole.cli.weights import read_named
from ossconsole.config.credentials import start_resource_tracker
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.labels import LabelFiles
from ossconsole.training.settings import AUTO, DEFAULT_MODEL, DEVICES, TrainSettings, check_model

if TYPE_CHECKING:
    from ossconsole.telemetry.predictions import Evaluation

_REPORT_EVERY_S = 5.0
_CLASSES_SHOWN = 10


@click.command(short_help="Accuracy by class, confusions and worst images of a checkpoint.")
@click.argument("checkpoint", default="best")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Model of `latest` and `best`.")
@click.option(
    "--worst", type=click.IntRange(min=0), default=10, show_default=True, help="Misclassified images to list."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Samples per batch. Default: as in a run.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Reader processes.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="GPU or CPU.")
@click.option("--gpu", default=AUTO, show_default=True, help="GPU: auto (the emptiest), its index or its UUID.")
@click.option(
    "--val-split",
    type=FiniteRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share held out, as in the run, where the dataset has no validation images.",
)
@label_options
@json_option
@profile_options
@reads_only
def evaluate(
    *,
    checkpoint: str,
    model: str,
    worst: int,
    batch_size: int | None,
    workers: int,
    device: str,
    gpu: str,
    val_split: float,
    val_labels: str,
    class_index: str,
    as_json: bool,
    target: Target,
) -> None:
    """Evaluate CHECKPOINT on the validation images: accuracy by class, confusions, the worst images.

    CHECKPOINT is a file, a key, oss://BUCKET/KEY, latest or best (the default).
    """
    from ossconsole.storage.client import ObjectStore
    from ossconsole.training import evaluation
    from ossconsole.training.data import training_data

    check_model(model)
    settings = TrainSettings(workers=workers, device=device, gpu=gpu, batch_size=batch_size or 0)
    start_resource_tracker()
    _warn_of_runs()
    with target.open() as opened:
        fill_sandbox(opened)
        with contextlib.closing(ObjectStore(opened.profile, opened.credentials, pause=report_and_wait)) as store:
            found = read_named(checkpoint, model, store)
            if found.problem:
                say(f"Warning: {found.problem}", err=True)
            ready = evaluation.settings_for(found.content, found.uri, settings)
            labels = LabelFiles(val_labels=val_labels, class_index=class_index)
            prefix = opened.profile.dataset_prefix
            data = training_data(store, prefix, val_split=val_split, seed=ready.settings.seed, labels=labels)
        result = evaluation.evaluate(
            ready, data, opened.profile, opened.credentials, worst=worst, on_progress=_EvaluationProgress(quiet=as_json)
        )
    run = str(found.content.facts.get("run", ""))
    saved = _save(run, result)
    if as_json:
        say_json({"event": "summary", **_fields(result), "saved": saved})
        return
    _print(result, found.uri)
    if saved:
        say("")
        say(f"Saved beside the record of the run: `ossconsole report {run}` shows it.")


def _warn_of_runs() -> None:
    """Warns where another process of this machine trains: both then share its processor, and perhaps the GPU."""
    from ossconsole.training.remote.control import peers

    for report in peers():
        if report.run:
            say(
                f"Warning: The run {report.run} (process {report.pid}) is active on this machine: the evaluation takes "
                "part of its processor and GPU time, and the run's figures are lower meanwhile.",
                err=True,
            )


def _save(run: str, result: Evaluation) -> str:
    """Saves the result beside the record of the run that wrote the checkpoint; "" where this machine has none."""
    from ossconsole.config.errors import SettingsError
    from ossconsole.telemetry.predictions import save_predictions
    from ossconsole.telemetry.runs import record_path

    try:
        record = record_path(run)
    except SettingsError:  # the checkpoint names no run
        return ""
    return str(save_predictions(record, result)) if record.exists() else ""


def _fields(result: Evaluation) -> dict[str, Any]:
    """The result for programs, without the pictures."""
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(result)
    for image in fields["worst"]:
        del image["thumbnail"]
    return fields


class _EvaluationProgress:
    """Prints the number of images evaluated so far, every 5 s, on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._at = time.monotonic() + _REPORT_EVERY_S

    def __call__(self, done: int, total: int) -> None:
        if not self._quiet and time.monotonic() >= self._at:
            self._at = time.monotonic() + _REPORT_EVERY_S
            say(f"Evaluated {done:,} of {counted(total, 'image')}.", err=True)


def _print(result: Evaluation, where: str) -> None:
    unread = f"; {counted(result.unread, 'image')} could not be read" if result.unread else ""
    rates = f"top-1 {result.top1:.1%}, top-5 {result.top5:.1%}"
    say(f"{safe_text(where)}: {rates} of {counted(result.images, 'image')}{unread}")
    shown = result.classes[:_CLASSES_SHOWN]
    more = f", the lowest {len(shown)} of {len(result.classes)}" if len(shown) < len(result.classes) else ""
    say("")
    say(f"Top-1 by class{more}:")
    for each in shown:
        say(f"  {each.top1:>6.1%}  {safe_text(each.name)}  ({counted(each.images, 'image')})")
    if result.confusions:
        say("")
        say("Most frequent confusions:")
    for pair in result.confusions:
        names = f"{safe_text(pair.label)} taken for {safe_text(pair.predicted)}"
        say(f"  {pair.images:>6}  {names}  ({pair.share:.0%} of the class)")
    if result.worst:
        say("")
        say("Worst misclassified images:")
    for image in result.worst:
        names = f"{safe_text(image.label)} taken for {safe_text(image.predicted)}"
        say(f"  {safe_text(image.key)}: {names} ({image.probability:.0%})")
