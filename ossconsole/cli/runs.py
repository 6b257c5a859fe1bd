"""`ossconsole status`, `export` and `report`: summaries, exports and reports of run records and benchmarks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec

from ossconsole.cli.options import Target, json_option, profile_options, reads_only
from ossconsole.cli.output import say, say_json
from ossconsole.config.resolve import FIELDS
from ossconsole.config.text import counted, safe_text
from ossconsole.telemetry.events import Event, percent, to_log_line, worst_classes
from ossconsole.telemetry.ranks import slowest
from ossconsole.telemetry.runs import RecordReader, RunSummary, find_run, is_alive, record_path
from ossconsole.telemetry.view import RunView


@click.command(short_help="Show the state of a run.")
@click.argument("run", default="")
@json_option
@click.option("--follow", "follows", is_flag=True, help="Print a sentence for each change until the run ends.")
@profile_options
@reads_only
def status(run: str, as_json: bool, follows: bool, target: Target) -> None:
    """Show the state of RUN; without RUN the newest active run, else the newest."""
    if as_json and follows:
        raise click.UsageError("--json and --follow cannot be given together.")
    summary = _find(run, target)
    if follows:
        _follow(summary)
        return
    if as_json:
        fields = {**msgspec.to_builtins(summary), "interrupted": summary.interrupted, "slowest": slowest(summary.ranks)}
        say_json(fields)
        return
    for label, value in _lines(summary):
        say(f"{label:<12}{value}")


@click.command(short_help="Convert the record of a run for other programs.")
@click.argument("run", default="")
@click.option("--csv", "form", flag_value="csv", help="Write steps and epochs as two CSV files.")
@click.option("--json", "form", flag_value="json", help="Write every event into one JSON file.")
@click.option("--tensorboard", "form", flag_value="tensorboard", help="Write a TensorBoard event file into a folder.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="File, or a folder for it. Default: named after the run."
)
@profile_options
@reads_only
def export(run: str, form: str | None, output: Path | None, target: Target) -> None:
    """Convert the record of RUN (default: the newest run) for other programs."""
    from ossconsole.telemetry.export import export_csv, export_json, export_tensorboard

    if form is None:
        raise click.UsageError("Select a format: --csv, --json or --tensorboard.")
    summary = _find(run, target)
    record = Path(summary.path)
    written: Sequence[Path]
    if form == "tensorboard":
        written = [export_tensorboard(record, output or Path(f"{summary.run}-tensorboard"))]
    else:
        name = Path(f"{summary.run}.{form}")
        path = name if output is None else output / name if output.is_dir() else output
        written = export_csv(record, path) if form == "csv" else [export_json(record, path)]
    for each in written:
        say(each)


@click.command(short_help="Write a page about a run or a saved benchmark.")
@click.argument("name", metavar="[RUN|BENCH]", default="")
@click.option("--format", "form", type=click.Choice(["html", "md"]), default="html", show_default=True, help="Format.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File. Default: named after the run.")
@profile_options
@reads_only
def report(name: str, form: str, out: Path | None, target: Target) -> None:
    """Write a page about RUN (default: the newest run) or a saved benchmark, to send or print.

    It is one file that loads nothing from a network, and has no secret in it.
    """
    from ossconsole.telemetry.report import write_page, write_report

    if name and not _is_run(name):
        from ossconsole.training.bench.report import bench_page
        from ossconsole.training.bench.saved import load

        say(write_page(bench_page(load(name)), out or Path(f"{name}.{form}"), form))
        return
    from ossconsole.training.bench.buyers import run_buyers

    summary = _find(name, target)
    say(write_report(Path(summary.path), out or Path(f"{summary.run}.{form}"), form, more=run_buyers))


def _is_run(name: str) -> bool:
    """Whether there is a run of that name; a benchmark of the same name is not found then."""
    return record_path(name).exists()


def _find(run: str, target: Target) -> RunSummary:
    target.refuse_flags(set(FIELDS) - {"bucket"}, "runs are selected by --profile and --bucket alone.")
    return find_run(run, profile=target.flags.get("profile", ""), bucket=target.flags.get("bucket", ""))


def _lines(summary: RunSummary) -> list[tuple[str, str]]:
    """The known values of the summary: label and text."""
    state = "interrupted (its process has ended)" if summary.interrupted else str(summary.state)
    rate = (summary.reason or None) if summary.samples_per_s is None else f"{summary.samples_per_s:.1f}"
    simulated = " (simulated)" if summary.simulated else ""
    comparison = summary.comparison
    conditions = comparison.conditions if comparison is not None else None
    known = {
        "run": summary.run,
        "state": state,
        "process": _process(summary),
        "started": _when(summary.started),
        "last event": _when(summary.updated),
        "step": f"{summary.step} (epoch {summary.epoch})" if summary.step else None,
        "device": _device(summary),
        "samples/s": rate,
        "model": summary.ceiling or None,
        "data wait": None if summary.wait_fraction is None else f"{percent(summary.wait_fraction)} of the step",
        "slowest": slowest(summary.ranks) or None,
        "A/B": None if comparison is None else comparison.words,
        **{f"  {topic}": text for topic, text in (conditions.topics if conditions is not None else {}).items()},
        "endpoint": None if summary.endpoint is None else f"{summary.endpoint}{simulated}",
        "loss": None if summary.loss is None else f"{summary.loss:.4f}",
        "top-1": None if summary.top1 is None else f"{summary.top1 * 100:.1f} %",
        "lowest": worst_classes(summary.class_top1) or None,
        "checkpoint": summary.checkpoint or None,
        "error": summary.error or None,
        "record": summary.path,
    }
    return [(label, text) for label, text in known.items() if text is not None]


def _process(summary: RunSummary) -> str | None:
    """The process of a run that may still be active; of one on another machine that cannot be found out here."""
    if summary.alive is None and not summary.state.final:
        return f"{summary.pid} on {summary.host}; whether it is still active can be seen only there"
    return f"{summary.pid} on {summary.host}" if summary.alive else None


def _device(summary: RunSummary) -> str | None:
    if not summary.gpus:
        return summary.device or None
    used = "" if summary.gpu_utilization is None else f", {summary.gpu_utilization:.0f} % used in the last sample"
    return f"{counted(len(summary.gpus), 'GPU')}{used}: {', '.join(summary.gpus)}"


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


# `status --follow`: sentences for screen readers, and for logs

_POLL_S = 0.5
_STATE_EVERY_S = 15.0


def _follow(summary: RunSummary) -> None:
    """Prints the state of the run, then a sentence for each of its events until it ends. Raises ConsoleError."""
    view = RunView()
    with RecordReader(Path(summary.path)) as record:
        for event in _new_events(record):
            view.apply(event)
        say(_state_sentence(view))
        said = time.monotonic()
        while view.state is None or not view.state.final:
            # Before the last read, which then has all of its events.
            ended = view.run is None or is_alive(view.run) is False
            if not ended:
                time.sleep(_POLL_S)
            for event in _new_events(record):
                view.apply(event)
                line = to_log_line(event)
                if line is not None:
                    say(_sentence(line.text))
            if ended:
                if view.state is None or not view.state.final:
                    say("The process of the run has ended without a last event.")
                return
            if time.monotonic() - said >= _STATE_EVERY_S:
                said = time.monotonic()
                say(_state_sentence(view))


def _new_events(record: RecordReader) -> Iterator[Event]:
    while events := record.poll():
        yield from events


def _state_sentence(view: RunView) -> str:
    """Where the run is, how fast, and what it waits for; without symbols and columns."""
    name = view.run.run if view.run else "The run"
    state = view.state.value if view.state is not None else "starting"
    if view.last_step is None:
        return f"{name} is {state}; no step yet."
    step, epochs = view.last_step, view.run.epochs if view.run else 0
    of_steps = f" of {view.total_steps}" if view.total_steps else ""
    of_epochs = f" of {epochs}" if epochs else ""
    parts = [f"{name} is {state}: step {step.step}{of_steps}, epoch {step.epoch}{of_epochs}"]
    through = f" through the {step.endpoint} endpoint" if step.endpoint is not None else ""
    parts.append(f"{step.samples_per_s:.0f} samples per second{through}")
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
