"""What `ossconsole bench` prints: one line for each measurement, then the tables and conclusions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ossconsole.cli.output import say
from ossconsole.config.text import counted, safe_text
from ossconsole.telemetry.compare import LOOKS, Decision
from ossconsole.training.bench.results import (
    BenchCase,
    BenchSummary,
    CacheState,
    Limit,
    LimitKind,
    Mode,
    Quantiles,
    Reading,
    ReadPath,
    result_key,
)
from ossconsole.training.bench.workloads import CALIBRATED_AU

if TYPE_CHECKING:
    from rich.table import Table

    from ossconsole.telemetry.compare import ComparisonReport
    from ossconsole.training.bench.buyers import BuyersTable
    from ossconsole.training.bench.checkpoints import CheckpointSummary
    from ossconsole.training.bench.emulation import EmulationSummary
    from ossconsole.training.bench.results import FormatResult, PathRatio, ResultRow
    from ossconsole.training.bench.saved import BenchComparison, SavedBench


def print_event(event: object) -> None:
    """Prints one measurement on stderr, and the tables of a summary on stdout."""
    from ossconsole.training.bench.checkpoints import CheckpointReading, CheckpointSummary
    from ossconsole.training.bench.emulation import Calibration, EmulationSummary, Trial, Warming

    if isinstance(event, Reading):
        wait = "" if event.wait_fraction is None else f"  data wait {event.wait_fraction:.0%}"
        say(
            f"{_named(event.cell)}{counted(event.cell.workers, 'worker'):>11}  batch {event.cell.batch_size:<5}"
            f"{event.endpoint:<12}{event.temperature:<6}{event.samples_per_s:>10,.1f} samples/s{wait}",
            err=True,
        )
    elif isinstance(event, Calibration):
        verdict = "" if event.passed else f", below {CALIBRATED_AU * 100:.0f} %: this host is a limit"
        say(f"{_accelerators(event.accelerators)} with a full buffer: AU {event.au:.1%}{verdict}", err=True)
    elif isinstance(event, Warming):
        say(
            f"{_accelerators(event.accelerators)} read {counted(event.samples, 'sample')} through {event.path} "
            f"for the first time: {event.samples_per_s:,.1f} samples/s",
            err=True,
        )
    elif isinstance(event, Trial):
        say(
            f"{_accelerators(event.accelerators)} on {event.path:<12}{event.temperature:<5}AU {event.sustained_au:6.1%}"
            f"  {event.samples_per_s:>10,.1f} samples/s  {event.bytes_per_s / 1e6:>8,.1f} MB/s",
            err=True,
        )
    elif isinstance(event, CheckpointReading):
        say(f"{event.what:<28}{event.seconds:8.2f} s  {event.bytes_per_s / 1e6:>8,.1f} MB/s", err=True)
    elif isinstance(event, Limit):
        name = f"{_LIMITS[event.kind]}{f', {event.endpoint}' if event.endpoint else ''}"
        say(f"limit: {name:<48}{event.samples_per_s:>10,.1f} samples/s", err=True)
    elif isinstance(event, BenchSummary):
        print_summary(event)
    elif isinstance(event, EmulationSummary):
        print_emulation(event)
    elif isinstance(event, CheckpointSummary):
        print_checkpoints(event)


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
        for where in itertools.product(ReadPath, CacheState):
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
    _print_distributions(summary)
    say(summary.headline)
    for line in _mount_lines(summary):
        say(line)
    say(summary.bound)
    if summary.ceiling is not None:
        say(f"Accelerator: {summary.ceiling.words}.")
    for row in summary.rows:
        for temperature, found in row.comparison.items():
            say(_detail(row, temperature, found))


def _detail(row: ResultRow, temperature: str, report: ComparisonReport) -> str:
    """The interval, stalls and conditions behind a row's number, in one line."""
    parts = [report.words]
    if report.typical_ratio is not None:
        parts.append(f"typical step {report.typical_ratio:.2f}x")
    for name, side in (("standard", report.standard), ("accelerated", report.accelerated)):
        if side.stall_share is not None:
            parts.append(f"{name} stalls {side.stall_share:.0%} of the time")
    if report.conditions is not None:
        parts.append(report.conditions.words)
    return f"{row.cell.mode}, {temperature}: {'; '.join(parts)}"


def _print_distributions(summary: BenchSummary) -> None:
    """The times of steps and fetches by path, one table for each setup."""
    from rich.console import Console

    for row in summary.rows:
        if not row.times:
            continue
        table = _new_table(f"Times of a step and of a reader for a batch, ms: {row.cell.words}")
        table.add_column("path", no_wrap=True)
        for title in ("step p50", "p95", "p99", "stalls", "fetch p50", "p95", "p99"):
            table.add_column(title, justify="right", no_wrap=True)
        for where, times in row.times.items():
            table.add_row(where, *_ms(times.step), f"{times.stalls * 100:.0f} %", *_ms(times.fetch))
        Console(highlight=False).print(table)


def _ms(times: Quantiles) -> tuple[str, str, str]:
    """In ms; whole ones above 100, so that the table fits 80 columns."""
    p50, p95, p99 = (f"{each * 1e3:,.{0 if each >= 0.1 else 1}f}" for each in (times.p50, times.p95, times.p99))
    return p50, p95, p99


def _mount_lines(summary: BenchSummary) -> Iterator[str]:
    """The mounted folder compared with the endpoints."""
    for row in summary.rows:
        for where, ratio in row.mount.items():
            yield (f"Mounted folder, {row.cell.words}: {_path_ratio(ratio)} of {where}.")
    if summary.page_cache:
        yield f"Mounted folder: {summary.page_cache}; what the mount itself caches is part of it."


def _path_ratio(measured: PathRatio) -> str:
    if measured.low is None or measured.high is None:
        return f"{measured.ratio:.2f}x ({counted(measured.pairs, 'pair')}: an interval needs --rounds {LOOKS[0]})"
    if measured.low <= 1 <= measured.high:
        return f"no difference found ({measured.low:.2f} to {measured.high:.2f}, {counted(measured.pairs, 'pair')})"
    return f"{measured.ratio:.2f}x ({measured.low:.2f} to {measured.high:.2f}, {counted(measured.pairs, 'pair')})"


def print_emulation(summary: EmulationSummary) -> None:
    """Prints what each number of accelerators reached, the buyer's table, and what does not meet the rules."""
    from rich.console import Console

    from ossconsole.training.bench.report import emulation_figures

    console = Console(highlight=False)
    workload, simulated = summary.workload, ", simulated" if summary.simulated else ""
    table = _new_table(
        f"Emulated accelerators: {workload.name}, batch {workload.batch_size}, {workload.step_s * 1e3:,.0f} ms/step, "
        f"{summary.format} ({summary.stored_as}){simulated}"
    )
    for title in ("path", "N", "AU", "±", "sust.", "cold", "samples/s", "MB/s", "full", "pass"):
        table.add_column(title, justify="left" if title == "path" else "right", no_wrap=True)
    for result in summary.paths:
        for each in result.fed:
            table.add_row(each.path, str(each.accelerators), *emulation_figures(each), "yes" if each.passed else "no")
    console.print(table)
    say("N: accelerators; ±: deviation of the AU; sust.: sustained, without batches read ahead, decides.")
    say("cold: AU on samples that were not read before, through a path with a cache; full: AU with a full buffer.")
    for result in summary.paths:
        say(result.words)
    if summary.page_cache:
        say(f"Mounted folder: {summary.page_cache}.")
    if summary.buyers is not None:
        _print_buyers(summary.buyers)
    say(summary.note)
    for line in summary.unmet_rules:
        say(f"- {line}")


def _print_buyers(buyers: BuyersTable) -> None:
    from rich.console import Console

    from ossconsole.training.bench.buyers import sized

    table = _new_table(f"Accelerators of {buyers.workload} that an OSS accelerator feeds")
    table.add_column("size", justify="right")
    table.add_column("MB/s", justify="right")
    for name, size in buyers.sample_bytes.items():
        table.add_column(f"{name}\n{size / 1e3:,.1f} KB", justify="right", no_wrap=True)
    table.add_column("CNY/month\nestimated", justify="right")
    for row in buyers.rows:
        cells = [f"{feed.accelerators:,}{'+' if feed.or_more else ''} {feed.origin}" for feed in row.feeds]
        table.add_row(sized(row.quota_gb), f"{row.mb_per_s:,.0f}", *cells, f"{row.cny_per_month:,.0f}")
    Console(highlight=False).print(table)
    for note in buyers.notes:
        say(note)


def print_checkpoints(summary: CheckpointSummary) -> None:
    """Prints the seconds and MB/s of writes and reads."""
    from rich.console import Console

    simulated = ", simulated" if summary.simulated else ""
    table = _new_table(f"Checkpoints of {summary.bytes / 1e6:,.0f} MB{simulated}")
    table.add_column("")
    for title in ("median s", "lowest", "highest", "MB/s", "rounds"):
        table.add_column(title, justify="right")
    for what, spread in summary.seconds.items():
        times = (spread.median, spread.lowest, spread.highest)
        rate = summary.bytes / spread.median / 1e6
        table.add_row(what, *(f"{each:.2f}" for each in times), f"{rate:,.1f}", str(spread.readings))
    Console(highlight=False).print(table)
    if summary.page_cache:
        say(f"Mounted folder: {summary.page_cache}; writes end with fsync.")


def print_comparison(comparison: BenchComparison) -> None:
    """Prints what differs between two saved benchmarks."""
    from rich.console import Console

    table = _new_table(f"{comparison.second}, compared with {comparison.first}")
    table.add_column("measured")
    for title in (comparison.first, comparison.second, "ratio", "95 %", "result"):
        table.add_column(title, justify="right")
    for each in comparison.differences:
        interval = "" if each.low is None or each.high is None else f"{each.low:.2f} to {each.high:.2f}"
        rates = (f"{each.first:,.1f}", f"{each.second:,.1f}")
        table.add_row(safe_text(each.what), *rates, f"{each.ratio:.2f}x", interval, str(each.verdict))
    Console(highlight=False).print(table)
    say("Samples/s (bytes/s of checkpoints). The intervals hold together, for what varies within a benchmark.")
    for name, (before, after) in comparison.changed.items():
        say(f"{name.replace('_', ' ')}: {before or 'unknown'} -> {after or 'unknown'}")


def print_saved(benches: Sequence[SavedBench], folder: Path) -> None:
    """Prints one line for each saved benchmark."""
    for each in benches:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.saved))
        where = each.provenance
        place = where.instance_type or where.processor
        simulated = "  simulated" if where.simulated else ""
        say(f"{each.name:<24}{when}  {where.bucket}/{where.dataset}  {place}{simulated}")
    if not benches:
        say(f"There are no saved benchmarks in {folder}: `ossconsole bench --save NAME` saves one.")


def _accelerators(count: int) -> str:
    return f"{counted(count, 'accelerator'):>16}"


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
    prefetches = len({row.cell.prefetch_mb for row in summary.rows}) > 1
    shown = [
        (endpoint, temperature)
        for endpoint in ReadPath
        for temperature in CacheState
        if any(result_key(endpoint, temperature) in row.samples_per_s for row in rows)
    ]
    if several:
        table.add_column("dataset")
        table.add_column("format")
    for title in (
        "batch",
        "workers",
        *(("prefetch\nMB",) if prefetches else ()),
        *(f"{endpoint}\n{temperature}" for endpoint, temperature in shown),
    ):
        table.add_column(title, justify="right")
    shown_ratios = (str(CacheState.WARM), str(CacheState.COLD))
    ratio = next((each for each in shown_ratios if any(each in row.comparison for row in rows)), "")
    if ratio:
        table.add_column(f"speed-up\n{ratio}", justify="right")
    for row in rows:
        cells = [escape(safe_text(row.cell.dataset)), row.cell.format] if several else []
        cells += [str(row.cell.batch_size), str(row.cell.workers)]
        cells += [str(row.cell.prefetch_mb or "auto")] if prefetches else []
        minutes = [row.minutes_per_epoch.get(result_key(endpoint, temperature)) for endpoint, temperature in shown]
        cells += ["" if each is None else f"{each:,.2f}" for each in minutes]
        table.add_row(*cells, *([_ratio(row, ratio)] if ratio else []))
    return table


_SWEPT: dict[str, Callable[[BenchCase], str]] = {
    "mode": lambda cell: str(cell.mode),
    "batch": lambda cell: str(cell.batch_size),
    "workers": lambda cell: str(cell.workers),
    "ahead": lambda cell: f"{cell.prefetch_mb} MB" if cell.prefetch_mb else "auto",
}
"""The settings that a sweep varies, by the title of their column; `ahead` are the batch buffers."""


def _format_table(results: Sequence[FormatResult], *, simulated: bool) -> Table:
    """The formats side by side, of one endpoint and state of the cache."""
    first = results[0]
    cells = [each.cell for each in results]
    titles = [title for title, value in _SWEPT.items() if len({value(cell) for cell in cells}) > 1]
    where = f"{first.endpoint} endpoint, {first.temperature}{', simulated' if simulated else ''}"
    table = _new_table(f"Formats of the same images, {where}")
    columns: dict[str, Callable[[FormatResult], str]] = {
        "samples/s": lambda each: f"{each.samples_per_s:,.0f}",
        "MB/s": lambda each: f"{each.bytes_per_s / 1e6:,.1f}",
        "KB": lambda each: f"{each.bytes_per_sample / 1e3:,.1f}",
        "decode": lambda each: f"{each.decode_share:.0%}",
        "ratio": lambda each: "" if each.ratio is None else f"{each.ratio:.2f}x",
        "95 %": lambda each: "" if each.low is None or each.high is None else f"{each.low:.2f} to {each.high:.2f}",
    }
    if titles:  # so that it fits 80 columns
        del columns["MB/s"]
    table.add_column("format", no_wrap=True)
    for title in (*titles, *columns):
        table.add_column(title, justify="right", no_wrap=True)
    for each in results:
        swept = (_SWEPT[title](each.cell) for title in titles)
        table.add_row(each.cell.format, *swept, *(text(each) for text in columns.values()))
    return table


def _format_lines(summary: BenchSummary) -> Iterator[str]:
    """The notes below the table."""
    setups = dict.fromkeys((each.cell.workers, each.cell.batch_size) for each in summary.formats)
    of = ", ".join(f"{counted(workers, 'worker')} with batches of {size}" for workers, size in setups)
    setup = of if len(setups) == 1 else "of the same setup"
    yield f"ratio: of the samples/s to those of {summary.formats[0].cell.format}; {setup}."
    yield "KB: of a sample. decode: share of the readers' time; near 100 % the readers are the limit, not the endpoint."
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
