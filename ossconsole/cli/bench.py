"""`ossconsole bench`: compares endpoints and a mounted folder, emulates accelerators, saves and compares results."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
from click.core import ParameterSource

from ossconsole.cli.options import FiniteRange, OpenTarget, Target, profile_options, settings_options
from ossconsole.cli.output import say, say_json
from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.formats import SampleFormat
from ossconsole.telemetry.compare import LOOKS
from ossconsole.training.bench.results import IMAGENET_SAMPLES, Mode
from ossconsole.training.bench.workloads import WORKLOADS, parse_workload
from ossconsole.training.settings import DEFAULT_MODEL, TrainSettings

if TYPE_CHECKING:
    from ossconsole.training.bench.results import BenchSummary

F = TypeVar("F", bound=Callable[..., Any])
Report = Callable[[Any], None]
_ENDPOINTS = [str(kind) for kind in EndpointKind]
_MODES = [str(mode) for mode in Mode]
_EMULATION_ROUNDS = 2
_COMPUTE = ("precision", "compile", "device", "gpu")
"""Settings of a run that are settings of the measured training steps too."""
_MAX_ROUNDS = LOOKS[2]


def _repeatable(name: str, parameter: str, text: str, **attributes: Any) -> Callable[[F], F]:
    return click.option(name, parameter, multiple=True, show_default=True, help=f"{text}; repeatable.", **attributes)


@click.command(short_help="Measure both endpoints, interleaved, and name the bottleneck.")
@click.argument("action", required=False, type=click.Choice(["list"]))
@_repeatable("--endpoint", "endpoints", "Endpoint to measure", type=click.Choice(_ENDPOINTS), default=_ENDPOINTS)
@_repeatable("--workers", "workers", "Reader processes", type=click.IntRange(1), default=(2,))
@_repeatable("--batch-size", "batch_sizes", "Samples per batch", type=click.IntRange(1), default=(64,))
@_repeatable("--prefetch-mb", "prefetch_mb", "MB of batch buffers, 0 = automatic", type=click.IntRange(0), default=(0,))
@_repeatable("--mode", "modes", "Reading only, or training (default: both)", type=click.Choice(_MODES))
@_repeatable("--dataset", "datasets", "Dataset prefix (default: the profile's)", metavar="PREFIX")
@click.option(
    "--mount",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Also measure the same samples as files of this folder: the mounted bucket, or its dataset prefix.",
)
@click.option(
    "--emulate",
    "workload",
    metavar="WORKLOAD",
    help=f"Emulate accelerators that train on what is read: {', '.join(WORKLOADS)}, or RATE/s:BATCH of your own. "
    "DLIO's method; not an MLPerf result.",
)
@click.option(
    "--accelerators",
    metavar="N,N,…|max",
    callback=lambda _context, _option, text: _numbers(text),
    help="With --emulate: numbers of accelerators to try, or max (default): the most that are fed.",
)
@click.option(
    "--steps", type=click.IntRange(10), default=100, show_default=True, help="With --emulate: steps of each trial."
)
@click.option(
    "--checkpoint-mb",
    type=click.IntRange(1),
    help="Measure writing and reading checkpoints of this size instead, also in the folder of --mount; delete them.",
)
@click.option("--save", metavar="NAME", help="Save the result under this name, with what it depends on.")
@click.option(
    "--compare", nargs=2, metavar="NAME NAME", help="Compare two saved benchmarks: is the second one different?"
)
@click.option(
    "--formats",
    metavar="A,B,…",
    callback=lambda _context, _option, text: _formats(text),
    help="Compare sample formats, such as image-jpeg,image-u8,tensor-f32, on the same images: uploads some of the "
    "dataset's in each format, reads them (no training), and deletes them.",
)
@click.option(
    "--source",
    type=click.Path(exists=True, path_type=Path),
    help="With --formats: take the images from this source instead.",
)
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds per reading.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    show_default=f"{LOOKS[0]} to {_MAX_ROUNDS}, until the ratio is decided or more would take it beyond 3 minutes; "
    f"{LOOKS[0]} with --aa, --formats, --mount, --checkpoint-mb; {_EMULATION_ROUNDS} with --emulate",
    help="Pairs of readings, one of each endpoint, in ABBA order. 6, 9, 13, 20, 30 and 45 give an interval.",
)
@click.option(
    "--aa", is_flag=True, help="Control: measure the first endpoint under both names; the interval must contain 1.00."
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=IMAGENET_SAMPLES,
    show_default=True,
    help="Samples of the epoch for the extrapolated minutes.",
)
@click.option("--limits/--no-limits", default=True, help="Also measure HTTP, connector and compute separately.")
@click.option("--image-size", type=click.IntRange(0), default=0, help="Side of the training crop in px; 0 = as stored.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="MODEL", help="Model, as for `train`.")
@settings_options(TrainSettings, only=_COMPUTE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per reading; the last one is the summary.")
@profile_options
@click.pass_context
def bench(context: click.Context, /, *, target: Target, **options: Any) -> int:
    """Measure both endpoints with the training loop, interleaved, and report the bottleneck.

    First and later reads of a sample through an endpoint (cold and warm) are measured separately. --workers,
    --batch-size, --prefetch-mb and --dataset given several times measure every combination. Nothing is written to the
    bucket, except with --formats and --checkpoint-mb. `bench list` names the saved results. Exit code 1 also where the
    control (--aa) finds its two sides different.
    """
    as_json, save = options.pop("as_json"), options.pop("save")
    action, compare = options.pop("action"), options.pop("compare")
    if action or compare:
        return _show_saved(compare, as_json=as_json)
    _check_usage(context, options)
    from ossconsole.training.preflight import broken_library, check_device, check_libraries

    trained = TrainSettings(model=options["model"], **{name: options[name] for name in _COMPUTE})
    check_libraries()
    check_device(trained)
    try:
        from ossconsole.training.bench.saved import SUMMARIES, check_new, provenance, saved_now
        from ossconsole.training.bench.saved import save as save_bench
    except ImportError as error:
        raise broken_library(error) from error

    if save:
        check_new(save)
    taken: list[Any] = []
    report: Report = say_json if as_json else _tables().print_event

    def keep(event: Any) -> None:
        taken.append(event)
        report(event)

    with target.open() as opened:
        try:
            return _measure(context, opened, options, keep)
        finally:  # also after an error or Ctrl-C, where enough was measured for a summary
            if save and taken and isinstance(taken[-1], SUMMARIES):
                dataset = (options["datasets"] or (opened.profile.dataset_prefix,))[0]
                mount = str(options["mount"] or "")
                found = provenance(opened.profile, opened.credentials, dataset, sys.argv[1:], mount=mount)
                say(f"Saved: {save_bench(saved_now(save, found, taken))}", err=as_json)


def _tables() -> ModuleType:
    """The tables of results; their modules load too slowly for --help."""
    from ossconsole.cli import bench_tables

    return bench_tables


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _check_usage(context: click.Context, options: dict[str, Any]) -> None:
    """Raises UsageError for options that exclude each other: an option without effect is a mistake."""
    formats, source, mount = options["formats"], options["source"], options["mount"]
    if (formats and (options["datasets"] or options["aa"])) or (source is not None and not formats):
        raise click.UsageError("--formats cannot be combined with --dataset or --aa, and --source needs --formats.")
    if mount is not None and (formats or options["aa"]):
        raise click.UsageError("--mount cannot be combined with --formats or --aa.")
    emulation = ("accelerators", "steps")
    if options["workload"] is None and any(_given(context, name) for name in emulation):
        raise click.UsageError("--accelerators and --steps need --emulate.")
    alone = {"--emulate": options["workload"], "--checkpoint-mb": options["checkpoint_mb"]}
    for name in (name for name, value in alone.items() if value is not None):
        others = {"modes", "formats", "aa", "prefetch_mb", "seconds", "samples", "image_size", "model", *_COMPUTE}
        others |= {"workers", "batch_sizes", "datasets"} if name == "--checkpoint-mb" else set()
        others |= {"workload"} if name == "--checkpoint-mb" else set()
        wrong = sorted(each for each in others if _given(context, each))
        if wrong:
            raise click.UsageError(f"{name} cannot be combined with the option for {wrong[0].replace('_', ' ')}.")
    several = [name for name in ("workers", "batch_sizes", "datasets") if len(set(options[name])) > 1]
    if options["workload"] is not None and several:
        raise click.UsageError(f"--emulate takes one value for {several[0].replace('_', ' ')}.")


def _measure(context: click.Context, opened: OpenTarget, options: dict[str, Any], report: Report) -> int:
    """Runs what was selected, whose summary is the last thing reported; returns the exit code."""
    if options["checkpoint_mb"] is not None:
        from ossconsole.training.bench.checkpoints import CheckpointBench

        size = options["checkpoint_mb"] * 1_000_000
        CheckpointBench(
            opened.profile,
            opened.credentials,
            size=size,
            rounds=options["rounds"] or LOOKS[0],
            mount=options["mount"],
            on_event=report,
        ).run()
        return 0
    if options["workload"] is not None:
        _emulate(context, opened, options, report)
        return 0
    summary = _compare_endpoints(opened, options, report)
    return 1 if summary.aa_passed is False else 0


def _emulate(context: click.Context, opened: OpenTarget, options: dict[str, Any], report: Report) -> None:
    from ossconsole.cli.sandbox import fill_sandbox
    from ossconsole.training.bench.emulation import Emulation, EmulationSettings

    batch_size = options["batch_sizes"][0] if _given(context, "batch_sizes") else 0
    workload = parse_workload(options["workload"]).with_batch(batch_size)
    dataset = options["datasets"][0].strip("/") if options["datasets"] else ""
    settings = EmulationSettings(
        workload=workload,
        accelerators=options["accelerators"],
        steps=options["steps"],
        rounds=options["rounds"] or _EMULATION_ROUNDS,
        workers=options["workers"][0],
        endpoints=tuple(kind for kind in EndpointKind if str(kind) in options["endpoints"]),
        dataset=dataset,
        mount=options["mount"],
    )
    if not dataset:
        fill_sandbox(opened)
    Emulation(opened.profile, opened.credentials, settings, report).run()


def _compare_endpoints(opened: OpenTarget, options: dict[str, Any], report: Report) -> BenchSummary:
    from ossconsole.cli.sandbox import fill_sandbox
    from ossconsole.training.bench.benchmark import Bench, BenchSettings
    from ossconsole.training.bench.formats import format_datasets

    profile, credentials, formats = opened.profile, opened.credentials, options["formats"]
    chosen = options["modes"] or ((Mode.LOADER,) if formats else _MODES)
    endpoints = tuple(kind for kind in EndpointKind if str(kind) in options["endpoints"])
    # Otherwise the comparison that was requested is not that of the two endpoints.
    until_decided = not options["rounds"] and len(endpoints) > 1 and not (formats or options["aa"] or options["mount"])
    given = {name: value for name, value in options.items() if name in BenchSettings.__struct_fields__}
    given |= {
        "endpoints": endpoints,
        "rounds": options["rounds"] or (_MAX_ROUNDS if until_decided else LOOKS[0]),
        "until_decided": until_decided,
        "workers": tuple(dict.fromkeys(options["workers"])),
        "batch_sizes": tuple(dict.fromkeys(options["batch_sizes"])),
        "prefetch_mb": tuple(dict.fromkeys(options["prefetch_mb"])),
        "modes": tuple(mode for mode in Mode if mode in chosen),
        "datasets": tuple(prefix.strip("/") for prefix in options["datasets"]),
    }
    settings = BenchSettings(**given, compare_formats=bool(formats))
    if not settings.datasets or profile.dataset_prefix in settings.datasets:
        fill_sandbox(opened)
    with contextlib.ExitStack() as scratch:
        if formats:
            datasets = scratch.enter_context(
                format_datasets(
                    profile, credentials, formats, options["source"], settings.image_size, report=_say_progress
                )
            )
            settings = msgspec.structs.replace(settings, datasets=datasets, limits=False)
        return Bench(profile, credentials, settings, report).run()


def _show_saved(compare: tuple[str, str] | None, *, as_json: bool) -> int:
    """Compares two saved benchmarks, or lists all."""
    from ossconsole.training.bench import saved

    if compare:
        comparison = saved.compare(*(saved.load(name) for name in compare))
        if as_json:
            say_json(comparison)
        else:
            _tables().print_comparison(comparison)
        return 0
    benches = saved.saved_benches()
    if as_json:
        say_json([{"name": each.name, "saved": each.saved, "provenance": each.provenance} for each in benches])
    else:
        _tables().print_saved(benches, saved.benches_dir())
    return 0


def _say_progress(text: str) -> None:
    say(f"{text}.", err=True)


def _numbers(text: str | None) -> tuple[int, ...]:
    """Numbers of accelerators, ascending; none for a search. Raises BadParameter."""
    if text is None or text.strip() == "max":
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter("give numbers such as 1,2,4, or max.")
    return tuple(sorted({int(part) for part in parts}))


def _formats(text: str | None) -> tuple[SampleFormat, ...]:
    """The formats named in a list with commas, each once. Raises BadParameter."""
    names = dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip())
    known = [str(fmt) for fmt in SampleFormat]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}.")
    if text is not None and len(names) < 2:
        raise click.BadParameter("name at least two formats.")
    return tuple(SampleFormat(name) for name in names)
