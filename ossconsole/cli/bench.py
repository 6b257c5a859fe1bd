"""`ossconsole bench`: compares the two endpoints, and finds the bottleneck."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ossconsole.cli.options import Target, profile_options
from ossconsole.cli.output import say, say_json
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted, safe_text
from ossconsole.telemetry.compare import Decision
from ossconsole.training.bench.results import (
    IMAGENET_SAMPLES,
    BenchSummary,
    CacheState,
    Limit,
    LimitKind,
    Mode,
    Reading,
    result_key,
)
from ossconsole.training.settings import PRECISIONS

if TYPE_CHECKING:
    from rich.table import Table

    from ossconsole.telemetry.compare import ComparisonReport
    from ossconsole.training.bench.results import BenchEvent, ResultRow

F = TypeVar("F", bound=Callable[..., Any])
_ENDPOINTS = [str(kind) for kind in EndpointKind]
_MODES = [str(mode) for mode in Mode]


def _repeatable(name: str, parameter: str, text: str, **attributes: Any) -> Callable[[F], F]:
    return click.option(name, parameter, multiple=True, show_default=True, help=f"{text}; repeatable.", **attributes)


@click.command()
@_repeatable("--endpoint", "endpoints", "Endpoint to measure", type=click.Choice(_ENDPOINTS), default=_ENDPOINTS)
@_repeatable("--workers", "workers", "Reader processes", type=click.IntRange(1), default=(2,))
@_repeatable("--batch-size", "batch_sizes", "Samples per batch", type=click.IntRange(1), default=(64,))
@_repeatable("--mode", "modes", "Reading only, or training", type=click.Choice(_MODES), default=_MODES)
@_repeatable("--dataset", "datasets", "Dataset prefix (default: the profile's)", metavar="PREFIX")
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
    as_json: bool,
    **options: Any,
) -> int:
    """Measure both endpoints with the training loop, interleaved, and report the bottleneck.

    First and later reads of a sample through an endpoint (cold and warm) are measured separately. Nothing is written to
    the bucket. Exit code 1 also where the control (--aa) finds its two sides different.
    """
    from ossconsole.cli.sandbox import fill_sandbox
    from ossconsole.training.preflight import broken_library, check_libraries, check_precision

    check_libraries()
    check_precision(options["precision"])
    try:
        from ossconsole.training.bench.benchmark import Bench, BenchSettings
    except ImportError as error:
        raise broken_library(error) from error

    settings = BenchSettings(
        endpoints=tuple(kind for kind in EndpointKind if str(kind) in endpoints),
        workers=tuple(dict.fromkeys(workers)),
        batch_sizes=tuple(dict.fromkeys(batch_sizes)),
        modes=tuple(mode for mode in Mode if str(mode) in modes),
        datasets=tuple(prefix.strip("/") for prefix in datasets),
        **options,
    )
    report: Callable[[BenchEvent], None] = say_json if as_json else _print_reading
    with target.open() as opened:
        if not settings.datasets or opened.profile.dataset_prefix in settings.datasets:
            fill_sandbox(opened)
        summary = Bench(opened.profile, opened.credentials, settings, report).run()
    if not as_json:
        print_summary(summary)
    return 1 if summary.aa_passed is False else 0


def _print_reading(event: BenchEvent) -> None:
    """Prints one measurement on stderr; the table follows at the end."""
    if isinstance(event, Reading):
        wait = "" if event.wait_fraction is None else f"  data wait {event.wait_fraction:.0%}"
        say(
            f"{event.cell.mode:<9}{counted(event.cell.workers, 'worker'):>11}  batch {event.cell.batch_size:<5}"
            f"{event.endpoint:<12}{event.temperature:<6}{event.samples_per_s:>10,.1f} samples/s{wait}",
            err=True,
        )
    elif isinstance(event, Limit):
        name = f"{_LIMITS[event.kind]}{f', {event.endpoint}' if event.endpoint else ''}"
        say(f"limit: {name:<48}{event.samples_per_s:>10,.1f} samples/s", err=True)


_LIMITS = {
    LimitKind.HTTP: "plain HTTP GETs",
    LimitKind.CONNECTOR: "the connector alone",
    LimitKind.COMPUTE: "computing on synthetic data",
}


def print_summary(summary: BenchSummary) -> None:
    """Prints the table, the conclusion, and the details of each number."""
    from rich.console import Console

    console = Console(highlight=False)
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


def _table(mode: Mode, rows: list[ResultRow], summary: BenchSummary) -> Table:
    """A table in the tutorial's layout: minutes per epoch by batch size and workers, and the speed-up."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    what = "training" if mode is Mode.TRAINING else "reading alone"
    simulated = ", simulated" if summary.simulated else ""
    table = Table(
        title=f"Minutes per epoch of {counted(summary.samples, 'sample')}, {what} (extrapolated{simulated})",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
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


def _ratio(row: ResultRow, temperature: str) -> str:
    """The ratio where it is decided; its interval is printed below the table."""
    found = row.comparison.get(temperature)
    if found is None:
        return ""
    words = {Decision.SAME: "same", Decision.NONE: "undecided"}
    return words.get(found.decision) or f"{found.ratio:.2f}x"
