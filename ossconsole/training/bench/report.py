"""The report of a saved benchmark: a page with its result, tables, the buyer's table, and how it was measured."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ossconsole.config.text import counted
from ossconsole.telemetry.page import Chart, Charts, Facts, Groups, Page, Part, Section, Table, Text
from ossconsole.training.bench.buyers import buyers_section, sized
from ossconsole.training.bench.checkpoints import CheckpointSummary
from ossconsole.training.bench.conclusions import headline_comparisons
from ossconsole.training.bench.emulation import EmulationSummary, Fed, PathResult
from ossconsole.training.bench.results import BenchSummary, Quantiles, ReadPath, ResultRow
from ossconsole.training.bench.saved import Provenance, SavedBench
from ossconsole.training.bench.workloads import MIN_AU

_BENCH_HOW = (
    "Endpoints are read in turn, in ABBA order, each with samples new to it (cold) and then the same again (warm).",
    "A ratio is the mean over pairs of readings of the same round, with a 95 % interval.",
)
_EMULATION_HOW = (
    "An accelerator is a process with a loader of its own.",
    "A step takes the next batch in host memory, sleeps for the known compute time, and waits for the others.",
    "AU is the compute time of all steps but the first, of the time from the end of the first.",
    "The sustained AU leaves out the steps that only drained what was read ahead.",
    "The cold AU is that of samples that were not read before, through a path that has a cache.",
    f"A number of accelerators passes where its sustained AU is at least {MIN_AU * 100:.0f} %.",
)


def bench_page(bench: SavedBench) -> Page:
    """The report of a saved benchmark."""
    summary = bench.summary
    how: tuple[str, ...] = ()
    simulated = " (simulated storage)" if summary.simulated else ""
    saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(bench.saved))
    if isinstance(summary, BenchSummary):
        headline, sections, how = summary.headline, _endpoint_sections(bench, summary), _BENCH_HOW
    elif isinstance(summary, EmulationSummary):
        headline = _fed_headline(summary)
        sections, how = _emulation_sections(summary), _EMULATION_HOW
    else:
        headline, sections = _checkpoint_headline(summary), [_checkpoints(summary)]
    return Page(
        title=f"Benchmark {bench.name} of {saved}{simulated}",
        headline=headline,
        conditions=_conditions(bench),
        sections=[*sections, Section("How it was measured", [Text(how), Facts(_provenance(bench.provenance))])],
    )


def _conditions(bench: SavedBench) -> list[str]:
    summary = bench.summary
    if isinstance(summary, EmulationSummary):
        workload = f"{summary.workload.name}, batch {summary.workload.batch_size}"
        samples = f"{summary.format} ({summary.stored_as}), {summary.bytes_per_sample:,.0f} bytes/sample"
        return [f"{workload}; {samples}; {counted(summary.workers, 'reader')} for each accelerator", summary.note]
    if isinstance(summary, BenchSummary):
        known = [each.conditions for _, _, each in headline_comparisons(summary.rows) if each.conditions]
        most = max(known, key=lambda each: each.pairs, default=None)
        return [*([most.words] if most is not None else []), summary.bound]
    return []


def _endpoint_sections(bench: SavedBench, summary: BenchSummary) -> list[Section]:
    parts: list[Part] = [
        Groups([(Text([f"{row.cell.words}:"]), _rates(row), Facts(_compared(row))) for row in summary.rows])
    ]
    parts.append(Text([f"Minutes are for an epoch of {counted(summary.samples, 'sample')}."]))
    if summary.page_cache:
        parts.append(Text([f"Mounted folder: {summary.page_cache}; what the mount itself caches is part of it."]))
    if summary.ceiling is not None:
        parts.append(Text([f"Accelerator: {summary.ceiling.words}."]))
    sections = [Section("Result", parts)]
    if charts := _rounds(bench):
        sections.append(Section("Samples/s by round", [Charts(charts)]))
    titles = ("path", "step p50", "p95", "p99", "fetch p50", "p95", "p99")
    times = [
        (
            Text([f"{row.cell.words}:"]),
            Table(titles, [(where, *_ms(found.step), *_ms(found.fetch)) for where, found in row.times.items()]),
        )
        for row in summary.rows
        if row.times
    ]
    if times:
        sections.append(Section("Times, ms", [Groups(times)]))
    if summary.limits:
        rates = [(name, f"{spread.median:,.1f}") for name, spread in summary.limits.items()]
        sections.append(Section("Each part alone", [Table(("part", "samples/s"), rates)]))
    return sections


def _rates(row: ResultRow) -> Table:
    rows = [
        (
            where,
            f"{spread.median:,.1f}",
            f"{spread.lowest:,.1f} to {spread.highest:,.1f}",
            f"{row.minutes_per_epoch[where]:,.2f}" if where in row.minutes_per_epoch else "",
            f"{row.times[where].stalls * 100:.0f} %" if where in row.times else "",
        )
        for where, spread in row.samples_per_s.items()
    ]
    return Table(("path", "samples/s", "range", "min/epoch", "stalls"), rows)


def _compared(row: ResultRow) -> list[tuple[str, str]]:
    """The ratios of the paths, by state of the cache."""
    ratios = [(f"ratio, {temperature}", found.words) for temperature, found in row.comparison.items()]
    mount = [
        (f"mount, of {where}", f"{each.ratio:.2f}x" + _interval(each.low, each.high))
        for where, each in row.mount.items()
    ]
    return ratios + mount


_MAX_CHARTS = 6  # on a page that prints on two sheets


def _rounds(bench: SavedBench) -> list[Chart]:
    """The readings in the order of their rounds: whether the storage was steady."""
    found: dict[str, list[tuple[int, float]]] = {}
    for each in bench.readings:
        title = f"{each.endpoint} {each.temperature}, {each.cell.words}"
        found.setdefault(title, []).append((each.round + 1, each.samples_per_s))
    drawn = {title: points for title, points in found.items() if len(points) > 2}
    return [
        Chart(title, [float(number) for number, _ in points], [rate for _, rate in points], "round")
        for title, points in list(drawn.items())[:_MAX_CHARTS]
    ]


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"


def _ms(times: Quantiles) -> tuple[str, str, str]:
    return f"{times.p50 * 1e3:,.1f}", f"{times.p95 * 1e3:,.1f}", f"{times.p99 * 1e3:,.1f}"


def emulation_figures(fed: Fed) -> tuple[str, ...]:
    """For a table: AU, its deviation, the sustained AU, the cold AU, samples/s, MB/s, the AU with a full buffer."""
    return (
        *(f"{share * 100:.1f} %" for share in (fed.au, fed.au_sigma, fed.sustained_au)),
        "" if fed.cold_au is None else f"{fed.cold_au * 100:.1f} %",
        f"{fed.samples_per_s:,.1f}",
        f"{fed.bytes_per_s / 1e6:,.1f}",
        f"{fed.calibrated_au * 100:.1f} %",
    )


def _emulation_sections(summary: EmulationSummary) -> list[Section]:
    header = ("path", "number", "pass", "AU", "±", "sustained", "cold AU", "samples/s", "MB/s", "full buffer")
    rows = [
        (each.path, str(each.accelerators), "yes" if each.passed else "no", *emulation_figures(each))
        for result in summary.paths
        for each in result.fed
    ]
    charts = [_au_chart(result) for result in summary.paths if len(result.fed) > 2]
    parts: list[Part] = [Text([result.words for result in summary.paths]), Table(header, rows)]
    if summary.page_cache:
        parts.append(Text([f"Mounted folder: {summary.page_cache}."]))
    if charts:
        parts.append(Charts(charts))
    sections = [Section("Result", parts)]
    if summary.buyers is not None:
        sections.append(buyers_section(summary.buyers))
    return [*sections, Section("Rules of MLPerf Storage that are not met", [Text(summary.unmet_rules)])]


def _fed_headline(summary: EmulationSummary) -> str:
    """How many accelerators each path feeds; "at least" where no number failed."""
    fed = [
        f"{ReadPath(result.path).words} {'' if result.limit else 'at least '}{result.accelerators}"
        for result in summary.paths
    ]
    simulated = " (simulated)" if summary.simulated else ""
    return f"Accelerators of {summary.workload.name} that are fed: {', '.join(fed)}{simulated}"


def _au_chart(result: PathResult) -> Chart:
    numbers = [float(each.accelerators) for each in result.fed]
    return Chart(
        f"Sustained AU by number of accelerators, {result.path}, %",
        numbers,
        [each.sustained_au * 100 for each in result.fed],
        "accelerators",
    )


def _checkpoint_headline(summary: CheckpointSummary) -> str:
    rates = [f"{what} {summary.bytes / spread.median / 1e6:,.0f} MB/s" for what, spread in summary.seconds.items()]
    return f"Checkpoints of {summary.bytes / 1e6:,.0f} MB: {'; '.join(rates)}"


def _checkpoints(summary: CheckpointSummary) -> Section:
    rows = [
        (what, *(f"{each:.2f}" for each in (spread.median, spread.lowest, spread.highest)), str(spread.readings))
        for what, spread in summary.seconds.items()
    ]
    note = f"Mounted folder: {summary.page_cache}; writes end with fsync." if summary.page_cache else ""
    return Section("Seconds", [Table(("", "median", "lowest", "highest", "rounds"), rows, note=note)])


def _provenance(provenance: Provenance) -> Sequence[tuple[str, str]]:
    size = sized(provenance.accelerator_gb) if provenance.accelerator_gb else ""
    known = {
        "command": provenance.command,
        "dataset": f"oss://{provenance.bucket}/{provenance.dataset}" if provenance.bucket else "",
        "mount": provenance.mount,
        "endpoints": ", ".join(f"{name} {host}" for name, host in provenance.endpoints.items() if host),
        "region, zone": ", ".join(part for part in (provenance.region, provenance.zone) if part),
        "accelerator": size,
        "instance": provenance.instance_type,
        "processor": f"{provenance.processor}, {counted(provenance.cores, 'core')}, {provenance.memory_gb:,.1f} GB",
        "network": provenance.nic,
        "versions": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
        "system": f"Python {provenance.python}, Linux {provenance.kernel}",
    }
    return [(label, value) for label, value in known.items() if value]
