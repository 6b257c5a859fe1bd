"""The conclusions of a benchmark in words: its headline, the A/A control, and the bottleneck of the setup."""

from __future__ import annotations

from collections.abc import Sequence

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted
from ossconsole.telemetry.compare import LOOKS, ComparisonReport, Decision
from ossconsole.training.bench.results import CacheState, LimitKind, Mode, ResultRow, Spread, result_key


def headline_comparisons(rows: Sequence[ResultRow]) -> list[tuple[ResultRow, str, ComparisonReport]]:
    """The comparisons for the headline: of training when that was measured, with a warm cache when there are any."""
    comparisons = [
        (row, str(temperature), row.comparison[str(temperature)])
        for row in rows
        for temperature in (CacheState.WARM, CacheState.COLD)
        if str(temperature) in row.comparison
    ]
    training = [each for each in comparisons if each[0].cell.mode is Mode.TRAINING] or comparisons
    return [each for each in training if each[1] == training[0][1]]


def decided(row: ResultRow) -> bool:
    """Whether the ratio of this case is decided, with a warm cache where that was measured."""
    return any(report.decision is not Decision.NONE for _, _, report in headline_comparisons([row]))


def headline(rows: Sequence[ResultRow], *, simulated: bool) -> str:
    """One sentence about how much faster the accelerated endpoint is, where the comparison is decided."""
    compared = headline_comparisons(rows)
    if not compared:
        return "Only one endpoint was measured."
    row, temperature, _ = compared[0]
    verb = "Training" if row.cell.mode is Mode.TRAINING else "Loading"
    suffix = f" ({temperature} cache{', simulated' if simulated else ''})"
    if len(compared) == 1:
        return f"{verb} through the accelerated endpoint{_predicate(compared[0][2])}{suffix}."
    ratios = [report.ratio for _, _, report in compared if report.ratio is not None]
    decided = f"{counted(len(ratios), 'setup')} of {len(compared)} decided"
    between = f": {min(ratios):.2f}x to {max(ratios):.2f}x of standard" if ratios else ""
    return f"{verb} through the accelerated endpoint, {decided}{between}{suffix}."


def _predicate(report: ComparisonReport) -> str:
    if report.decision in {Decision.ACCELERATED, Decision.STANDARD} and report.ratio is not None:
        interval = f"{report.low:.2f} to {report.high:.2f}"
        return f" is {report.ratio:.2f}x as fast as through the standard one, {interval} over {report.pairs} pairs"
    if report.decision is Decision.SAME:
        return f": {report.words}, over {report.pairs} pairs"
    more = next((look for look in LOOKS if look > report.pairs), None)
    return f" is undecided, {report.words}" + (f"; use --rounds {more}" if more else "")


def aa_passed(rows: Sequence[ResultRow]) -> bool | None:
    """Whether 1.00 is inside every interval of the headline; None without intervals."""
    intervals = [
        (each.low, each.high)
        for _, _, each in headline_comparisons(rows)
        if each.low is not None and each.high is not None
    ]
    return all(low <= 1 <= high for low, high in intervals) if intervals else None


def aa_headline(rows: Sequence[ResultRow], endpoint: EndpointKind, *, simulated: bool) -> str:
    """One sentence about the result of the A/A control."""
    passed, compared = aa_passed(rows), headline_comparisons(rows)
    what = f"A/A control, the {endpoint} endpoint under both names{' (simulated)' if simulated else ''}"
    if passed is None:
        pairs = min((report.pairs for _, _, report in compared), default=0)
        return f"{what}: {counted(pairs, 'pair')}; an interval needs --rounds {LOOKS[0]}."
    intervals = ", ".join(
        f"{report.low:.2f} to {report.high:.2f}" for _, _, report in compared if report.low is not None
    )
    verdict = (
        "1.00 is inside, as expected"
        if passed
        else "1.00 is outside, as in 1 of 20 controls by chance: repeat it before you rely on results of this setup"
    )
    return f"{what}: {intervals} over {compared[0][2].pairs} pairs; {verdict}."


_MOST = 1.1
"""A rate beyond this share of a part's own rate shows that they were not measured under the same conditions."""


def bound(row: ResultRow, limits: dict[str, Spread], *, simulated: bool) -> str:
    """One sentence about the bottleneck of the setup of `row`, and how close to it the setup is."""
    endpoint, rate = _best(row)
    what = "Training" if row.cell.mode is Mode.TRAINING else "Loading"
    setup = f"{counted(row.cell.workers, 'worker')} and batches of {row.cell.batch_size}"
    words = {
        f"{LimitKind.HTTP} {endpoint}": f"the {endpoint} endpoint bounds it: plain HTTP GETs get",
        f"{LimitKind.CONNECTOR} {endpoint}": "the connector bounds it: with a no-op transform it delivers",
        str(LimitKind.COMPUTE): "the compute bounds it: on synthetic data it does",
    }
    if row.cell.mode is Mode.LOADER:
        del words[str(LimitKind.COMPUTE)]
    known = {name: limits[name].median for name in words if name in limits and limits[name].median > 0}
    reached = (
        f"{what} with {setup} through the {endpoint} endpoint does {counted(f'{rate:,.0f}', 'sample/s', 'samples/s')}"
    )
    suffix = " (simulated)" if simulated else ""
    if not known:
        return f"{reached}{suffix}; the limits were not measured."
    name = min(known, key=lambda each: known[each])
    if rate > _MOST * known[name]:
        what = words[name].partition(": ")[2]
        return (
            f"{reached}{suffix}; its bottleneck is not known: alone, {what} {known[name]:,.0f}, which is less. "
            "The machine was slower meanwhile: measure again while nothing else runs on it."
        )
    found = f"{reached}; {words[name]} {known[name]:,.0f}, so this is {rate / known[name]:.0%} of the limit{suffix}."
    compute = known.get(str(LimitKind.COMPUTE))
    if compute and name != str(LimitKind.COMPUTE):
        found += f" It is {rate / compute:.0%} of the model's own ceiling, {compute:,.0f} on synthetic data."
    return found


def _best(row: ResultRow) -> tuple[EndpointKind, float]:
    """The accelerated endpoint, the standard one without it, and its rate, warm if measured."""
    for endpoint in (EndpointKind.ACCELERATED, EndpointKind.STANDARD):
        for temperature in (CacheState.WARM, CacheState.COLD):
            if (spread := row.samples_per_s.get(result_key(endpoint, temperature))) is not None:
                return endpoint, spread.median
    return EndpointKind.STANDARD, 0.0
