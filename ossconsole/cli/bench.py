"""`ossconsole bench`: compares the two endpoints, and finds the bottleneck."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from ossconsole.cli.options import Target, profile_options
from ossconsole.cli.output import say, say_json
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.formats import SampleFormat
from ossconsole.telemetry.compare import LOOKS, Decision
from ossconsole.training.bench.results import (
    IMAGENET_SAMPLES,
    BenchCase,
    BenchSummary,
    CacheState,
    Limit,
    LimitKind,
    Mode,
    Reading,
    result_key,
)
from ossconsole.training.settings import DEFAULT_MODEL, PRECISIONS, check_model

if TYPE_CHECKING:
    from rich.table import Table

    from ossconsole.telemetry.compare import ComparisonReport
    from ossconsole.training.bench.results import BenchEvent, FormatResult, ResultRow

F = TypeVar("F", bound=Callable[..., Any])
_ENDPOINTS = [str(kind) for kind in EndpointKind]
_MODES = [str(mode) for mode in Mode]


def _repeatable(name: str, parameter: str, text: str, **attributes: Any) -> Callable[[F], F]:
    return click.option(name, parameter, multiple=True, show_default=True, help=f"{text}; repeatable.", **attributes)


@click.command()
@_repeatable("--endpoint", "endpoints", "Endpoint to measure", type=click.Choice(_ENDPOINTS), default=_ENDPOINTS)
@_repeatable("--workers", "workers", "Reader processes", type=click.IntRange(1), default=(2,))
@_repeatable("--batch-size", "batch_sizes", "Samples per batch", type=click.IntRange(1), default=(64,))
@_repeatable("--mode", "modes", "Reading only, or training (default: both)", type=click.Choice(_MODES))
@_repeatable("--dataset", "datasets", "Dataset prefix (default: the profile's)", metavar="PREFIX")
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
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds per reading.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=6,
    show_default=True,
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
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", help="Precision of the forward pass.")
@click.option("--compile", is_flag=True, help="Compile the model with torch.compile.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per reading; the last one is the summary.")
@profile_options
def bench(
    *,
    target: Target,
    endpoints: tuple[str, ...],
    workers: tuple[int, ...],
    batch_sizes: tuple[int, ...],
    modes: tuple[str, ...],
    datasets: tuple[str, ...],
    formats: tuple[SampleFormat, ...],
    source: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure both endpoints with the training loop, interleaved, and report the bottleneck.

    First and later reads of a sample through an endpoint (cold and warm) are measured separately. Nothing is written to
    the bucket, except with --formats. Exit code 1 also where the control (--aa) finds its two sides different.
    """
    if (formats and (datasets or options["aa"])) or (source is not None and not formats):
        raise click.UsageError("--formats cannot be combined with --dataset or --aa, and --source needs --formats.")
    from ossconsole.cli.sandbox import fill_sandbox
    from ossconsole.training.preflight import broken_library, check_libraries, check_precision
    from ossconsole.training.settings import TrainSettings

    check_model(options["model"])
    check_libraries()
    check_precision(TrainSettings(precision=options["precision"]))
    try:
        from ossconsole.training.bench.benchmark import Bench, BenchSettings
        from ossconsole.training.bench.formats import format_datasets
    except ImportError as error:
        raise broken_library(error) from error

    chosen = modes or ((Mode.LOADER,) if formats else _MODES)
    settings = BenchSettings(
        endpoints=tuple(kind for kind in EndpointKind if str(kind) in endpoints),
        workers=tuple(dict.fromkeys(workers)),
        batch_sizes=tuple(dict.fromkeys(batch_sizes)),
        modes=tuple(mode for mode in Mode if mode in chosen),
        datasets=tuple(prefix.strip("/") for prefix in datasets),
        compare_formats=bool(formats),
        **options,
    )
    report: Callable[[BenchEvent], None] = say_json if as_json else _print_reading
    with target.open() as opened, contextlib.ExitStack() as scratch:
        profile, credentials = opened.profile, opened.credentials
        if not settings.datasets or profile.dataset_prefix in settings.datasets:
            fill_sandbox(opened)
        if formats:
            datasets = scratch.enter_context(
                format_datasets(profile, credentials, formats, source, settings.image_size, report=_say_progress)
            )
            settings = msgspec.structs.replace(settings, datasets=datasets, limits=False)
        summary = Bench(profile, credentials, settings, report).run()
    if not as_json:
        print_summary(summary)
    return 1 if summary.aa_passed is False else 0


def _say_progress(text: str) -> None:
    say(f"{text}.", err=True)


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


def _print_reading(event: BenchEvent) -> None:
    """Prints one measurement on stderr; the table follows at the end."""
    if isinstance(event, Reading):
        wait = "" if event.wait_fraction is None else f"  data wait {event.wait_fraction:.0%}"
        say(
            f"{_named(event.cell)}{counted(event.cell.workers, 'worker'):>11}  batch {event.cell.batch_size:<5}"
            f"{event.endpoint:<12}{event.temperature:<6}{event.samples_per_s:>10,.1f} samples/s{wait}",
            err=True,
        )
    elif isinstance(event, Limit):
        name = f"{_LIMITS[event.kind]}{f', {event.endpoint}' if event.endpoint else ''}"
        say(f"limit: {name:<48}{event.samples_per_s:>10,.1f} samples/s", err=True)


def _named(cell: BenchCase) -> str:
    return f"{cell.mode:<9}{cell.format:<11}"


_LIMITS = {
    LimitKind.HTTP: "plain HTTP GETs",
    LimitKind.CONNECTOR: "the connector alone",
    LimitKind.COMPUTE: "computing on synthetic data",
}


def print_summary(summary: BenchSummary) -> None:
    """Prints the table, the conclusion, and the details of each number."""
    from rich.console import Console

    console = Console(highlight=False)
    if summary.formats:
        for where in itertools.product(EndpointKind, CacheState):
            side_by_side = [each for each in summary.formats if (each.endpoint, each.temperature) == where]
            if side_by_side:
                console.print(_format_table(side_by_side, simulated=summary.simulated))
        for line in _format_lines(summary):
            say(line)
        return
    for mode in Mode:
        rows = [row for row in summary.rows if row.cell.mode is mode]
        if rows:
            console.print(_table(mode, rows, summary))
    say(summary.headline)
    say(summary.bound)
    if summary.ceiling is not None:
        say(f"Accelerator: {summary.ceiling.words}.")
    for row in summary.rows:
        for temperature, found in row.comparison.items():
            say(_detail(row, temperature, found))


def _detail(row: ResultRow, temperature: str, found: ComparisonReport) -> str:
    """The interval, stalls and conditions behind a row's number, in one line."""
    parts = [found.words]
    if found.typical_ratio is not None:
        parts.append(f"typical step {found.typical_ratio:.2f}x")
    for name, side in (("standard", found.standard), ("accelerated", found.accelerated)):
        if side.stall_share is not None:
            parts.append(f"{name} stalls {side.stall_share:.0%} of the time")
    if found.conditions is not None:
        parts.append(found.conditions.words)
    return f"{row.cell.mode}, {temperature}: {'; '.join(parts)}"


def _new_table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _table(mode: Mode, rows: list[ResultRow], summary: BenchSummary) -> Table:
    """A table in the tutorial's layout: minutes per epoch by batch size and workers, and the speed-up."""
    from rich.markup import escape

    what = "training" if mode is Mode.TRAINING else "reading alone"
    simulated = ", simulated" if summary.simulated else ""
    table = _new_table(f"Minutes per epoch of {counted(summary.samples, 'sample')}, {what} (extrapolated{simulated})")
    several = len({row.cell.dataset for row in summary.rows}) > 1
    shown = [
        (endpoint, temperature)
        for endpoint in EndpointKind
        for temperature in CacheState
        if any(result_key(endpoint, temperature) in row.samples_per_s for row in rows)
    ]
    if several:
        table.add_column("dataset")
        table.add_column("format")
    for title in ("batch", "workers", *(f"{endpoint}\n{temperature}" for endpoint, temperature in shown)):
        table.add_column(title, justify="right")
    shown_ratios = (str(CacheState.WARM), str(CacheState.COLD))
    ratio = next((each for each in shown_ratios if any(each in row.comparison for row in rows)), "")
    if ratio:
        table.add_column(f"speed-up\n{ratio}", justify="right")
    for row in rows:
        cells = [escape(safe_text(row.cell.dataset)), row.cell.format] if several else []
        cells += [str(row.cell.batch_size), str(row.cell.workers)]
        minutes = [row.minutes_per_epoch.get(result_key(endpoint, temperature)) for endpoint, temperature in shown]
        cells += ["" if each is None else f"{each:,.2f}" for each in minutes]
        table.add_row(*cells, *([_ratio(row, ratio)] if ratio else []))
    return table


def _format_table(found: Sequence[FormatResult], *, simulated: bool) -> Table:
    """The formats side by side, of one endpoint and state of the cache."""
    first = found[0]
    setups = len({(each.cell.mode, each.cell.workers, each.cell.batch_size) for each in found})
    where = f"{first.endpoint} endpoint, {first.temperature}{', simulated' if simulated else ''}"
    table = _new_table(f"Formats of the same images, {where}")
    table.add_column("format")
    titles = ("mode", "batch", "workers") if setups > 1 else ()
    for title in (*titles, "samples/s", "MB/s", "KB/sample", "decoding", "ratio", "95 %"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in found:
        setup = (str(each.cell.mode), str(each.cell.batch_size), str(each.cell.workers)) if setups > 1 else ()
        table.add_row(
            each.cell.format,
            *setup,
            f"{each.samples_per_s:,.0f}",
            f"{each.bytes_per_s / 1e6:,.1f}",
            f"{each.bytes_per_sample / 1e3:,.1f}",
            f"{each.decode_share:.0%}",
            "" if each.ratio is None else f"{each.ratio:.2f}x",
            "" if each.low is None or each.high is None else f"{each.low:.2f} to {each.high:.2f}",
        )
    return table


def _format_lines(summary: BenchSummary) -> Iterator[str]:
    """What to know about the table."""
    setups = dict.fromkeys((each.cell.workers, each.cell.batch_size) for each in summary.formats)
    of = ", ".join(f"{counted(workers, 'worker')} with batches of {size}" for workers, size in setups)
    yield f"ratio: of the samples/s to those of {summary.formats[0].cell.format}; {of}."
    yield "decoding: share of the readers' time; near 100 % the readers are the limit, not the endpoint."
    pairs = min((each.pairs for each in summary.formats if each.ratio is not None), default=0)
    if pairs and all(each.low is None for each in summary.formats):
        yield f"{counted(pairs, 'pair')} of readings: an interval needs --rounds {LOOKS[0]}."


def _ratio(row: ResultRow, temperature: str) -> str:
    """The ratio where it is decided; its interval is printed below the table."""
    found = row.comparison.get(temperature)
    if found is None:
        return ""
    words = {Decision.SAME: "same", Decision.NONE: "undecided"}
    return words.get(found.decision) or f"{found.ratio:.2f}x"
