"""The results of a benchmark: its readings, their comparison, and the bottleneck of the setup. No torch here."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted
from ossconsole.telemetry.cache import hit_rate
from ossconsole.telemetry.compare import LOOKS, Comparison, ComparisonReport, Conditions, Decision, Side, estimate
from ossconsole.telemetry.measure import CeilingReport
from ossconsole.telemetry.visits import EndpointWindow, Pairs, Tally, Visit

IMAGENET_SAMPLES = 1_281_167
"""Training images of ILSVRC 2012, the epoch of the tutorial's table."""


class Mode(str, enum.Enum):
    """Whether the batches are only loaded, or trained on."""

    LOADER = "loader"
    TRAINING = "training"

    def __str__(self) -> str:
        return self.value


class CacheState(str, enum.Enum):
    """Whether this benchmark read the samples through the endpoint before; `temperature` in records."""

    COLD = "cold"
    WARM = "warm"

    def __str__(self) -> str:
        return self.value


class LimitKind(str, enum.Enum):
    """The possible bottlenecks of a setup, each measured without the others."""

    HTTP = "http"
    CONNECTOR = "connector"
    COMPUTE = "compute"

    def __str__(self) -> str:
        return self.value


class BenchCase(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: settings with which all endpoints are measured. `dataset` is its prefix."""

    dataset: str
    format: str
    mode: Mode
    workers: int
    batch_size: int


class _BenchEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float
    simulated: bool


class Reading(_BenchEvent, frozen=True, kw_only=True, tag="reading"):
    """One measured interval. `wait_fraction` is the share of its time that training waited for data.

    `fetch_p50_s` and `fetch_p95_s` are quantiles of a reader process's time for a batch, `decode_share` is the share of
    the readers' time in which they decode.
    """

    cell: BenchCase
    endpoint: EndpointKind
    temperature: CacheState
    round: int
    samples: int
    seconds: float
    samples_per_s: float
    bytes_per_s: float
    fetch_p50_s: float
    fetch_p95_s: float
    wait_fraction: float | None = None
    decode_share: float = 0.0


class Limit(_BenchEvent, frozen=True, kw_only=True, tag="limit"):
    """The rate of one part of the setup alone; `endpoint` is None for the compute."""

    kind: LimitKind
    endpoint: EndpointKind | None
    dataset: str
    workers: int
    batch_size: int
    samples_per_s: float


class Spread(msgspec.Struct, frozen=True):
    """The median and the range of figures; `readings` is their number."""

    median: float
    lowest: float
    highest: float
    readings: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of the values, None without any."""
        return cls(statistics.median(values), min(values), max(values), len(values)) if values else None


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a case.

    The keys of `samples_per_s` and `minutes_per_epoch` are "<endpoint> <temperature>"; `minutes_per_epoch` is
    extrapolated from the mean time per sample. `ratio` has, by temperature, the spread of the accelerated rate as a
    multiple of the standard rate of the same round. `comparison` has, by temperature, the decision from the pairs of
    readings, with its 95 % interval.
    """

    cell: BenchCase
    samples_per_s: dict[str, Spread]
    minutes_per_epoch: dict[str, float]
    ratio: dict[str, Spread]
    comparison: dict[str, ComparisonReport] = {}


class FormatResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a sample format through one endpoint. Rates are means over the time of all readings.

    `ratio` is that of the samples/s to those of the first format, by pairs of readings of the same round; `low` and
    `high` bound its 95 % interval. They are null for the first format; the interval also where its number of `pairs` is
    too small. `decode_share` is the share of the readers' time in which they decoded.
    """

    cell: BenchCase
    endpoint: EndpointKind
    temperature: CacheState
    samples_per_s: float
    bytes_per_s: float
    bytes_per_sample: float
    decode_share: float
    pairs: int = 0
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


class BenchSummary(_BenchEvent, frozen=True, kw_only=True, tag="summary"):
    """The last line. `samples` is the size of the epoch that `minutes_per_epoch` is extrapolated to.

    `limits` has samples/s by "<kind> <endpoint>", or "compute". `aa` is the endpoint that was measured under both
    names, "" for none; `aa_passed` is whether 1.00 is inside the interval, null without one. `ceiling` is the used part
    of the accelerator, null when its size is unknown. `formats` compares sample formats, where that was requested.
    """

    samples: int
    rows: tuple[ResultRow, ...]
    limits: dict[str, Spread]
    headline: str
    bound: str
    aa: str = ""
    aa_passed: bool | None = None
    ceiling: CeilingReport | None = None
    formats: tuple[FormatResult, ...] = ()


BenchEvent: TypeAlias = Reading | Limit | BenchSummary


def result_key(endpoint: EndpointKind, temperature: CacheState) -> str:
    """The key of an endpoint's figures in a ResultRow."""
    return f"{endpoint} {temperature}"


@dataclass(frozen=True)
class CaseSteps:
    """The steps of a case's readings, by endpoint, and their conditions.

    `hit_limit_s` is the longest time of a sample that hits the accelerator's cache, None when unknown.
    """

    windows: Mapping[EndpointKind, EndpointWindow] = field(default_factory=dict)
    conditions: Conditions = field(default_factory=Conditions)
    hit_limit_s: float | None = None

    def tally(self, endpoint: EndpointKind, temperature: CacheState) -> Tally:
        """The sums over the steps of an endpoint's readings of that temperature."""
        window = self.windows.get(endpoint)
        return Tally() if window is None else window.parts[temperature is CacheState.COLD].tally

    def stall_share(self, endpoint: EndpointKind, temperature: CacheState) -> float | None:
        """The share of the time in stalled steps, None without steps."""
        window = self.windows.get(endpoint)
        return None if window is None else window.parts[temperature is CacheState.COLD].stall_share

    def typical_ratio(self, temperature: CacheState) -> float | None:
        """The median step time of the standard endpoint, relative to the accelerated one."""
        steps = {
            kind: window.parts[temperature is CacheState.COLD].typical_step_s for kind, window in self.windows.items()
        }
        slow, fast = steps.get(EndpointKind.STANDARD), steps.get(EndpointKind.ACCELERATED)
        return slow / fast if slow and fast else None

    def hit_rate(self, temperature: CacheState) -> float | None:
        """The estimated share of samples that hit the accelerator's cache."""
        rate = hit_rate(self.tally(EndpointKind.ACCELERATED, temperature).singles, self.hit_limit_s)
        return rate.reported if rate is not None else None


def result_row(cell: BenchCase, readings: Iterable[Reading], samples: int, steps: CaseSteps | None = None) -> ResultRow:
    """The result of a case, for an epoch of `samples`; `steps` are those of its readings."""
    of_cell = [reading for reading in readings if reading.cell == cell]
    rates: dict[tuple[EndpointKind, CacheState], dict[int, float]] = {}
    for reading in of_cell:
        rates.setdefault((reading.endpoint, reading.temperature), {})[reading.round] = reading.samples_per_s
    samples_per_s: dict[str, Spread] = {}
    minutes: dict[str, float] = {}
    ratio: dict[str, Spread] = {}
    comparison: dict[str, ComparisonReport] = {}
    for (endpoint, temperature), by_round in rates.items():
        if (spread := Spread.of(list(by_round.values()))) is not None:
            samples_per_s[result_key(endpoint, temperature)] = spread
        if (mean := _mean_rate(of_cell, endpoint, temperature)) is not None:
            minutes[result_key(endpoint, temperature)] = samples / mean / 60
    for temperature in CacheState:
        base = rates.get((EndpointKind.STANDARD, temperature), {})
        other = rates.get((EndpointKind.ACCELERATED, temperature), {})
        both = [other[number] / base[number] for number in sorted(base.keys() & other.keys()) if base[number]]
        if (spread := Spread.of(both)) is not None:
            ratio[str(temperature)] = spread
            comparison[str(temperature)] = _compared(of_cell, temperature, samples, steps or CaseSteps()).report()
    return ResultRow(
        cell=cell, samples_per_s=samples_per_s, minutes_per_epoch=minutes, ratio=ratio, comparison=comparison
    )


def _mean_rate(readings: Iterable[Reading], endpoint: EndpointKind, temperature: CacheState) -> float | None:
    """Samples/s over the time of all readings: minutes per epoch include the slow intervals."""
    selected = [each for each in readings if (each.endpoint, each.temperature) == (endpoint, temperature)]
    seconds = sum(reading.seconds for reading in selected)
    samples = sum(reading.samples_per_s * reading.seconds for reading in selected)
    return samples / seconds if samples > 0 else None


def _compared(readings: Sequence[Reading], temperature: CacheState, samples: int, steps: CaseSteps) -> Comparison:
    """The comparison of the pairs of readings, one pair per round."""
    cold = temperature is CacheState.COLD
    visits = {
        (each.round, each.endpoint): Visit(each.endpoint, each.samples_per_s, each.seconds, 0, None, cold)
        for each in readings
        if each.temperature is temperature and each.samples_per_s > 0
    }
    pairs = Pairs()
    for number in sorted({number for number, _ in visits}):
        standard, accelerated = (visits.get((number, kind)) for kind in EndpointKind)
        if standard is not None and accelerated is not None:
            pairs.add(standard, accelerated)
    sides = []
    for kind in EndpointKind:
        rate = _mean_rate(readings, kind, temperature)
        minutes = samples / rate / 60 if rate else None
        stalls = steps.stall_share(kind, temperature)
        sides.append(Side(samples_per_s=rate, minutes_per_epoch=minutes, stall_share=stalls))
    hits = steps.hit_rate(temperature)
    taken = sum(visit.seconds for visit in visits.values())
    return Comparison(
        pairs=pairs.count,
        estimate=pairs.estimate,
        standard=sides[0],
        accelerated=sides[1],
        typical_ratio=steps.typical_ratio(temperature),
        hit_rate=hits,
        cold=cold,
        conditions=msgspec.structs.replace(steps.conditions, pairs=pairs.count, minutes=taken / 60, warm_share=hits),
        over=True,
    )


def format_results(readings: Sequence[Reading]) -> tuple[FormatResult, ...]:
    """The formats side by side: a result for each case, endpoint and temperature, in the order of the readings.

    The first format is that of the first reading. Its readings and those of another one are compared where everything
    but the dataset is equal.
    """
    grouped: dict[tuple[BenchCase, EndpointKind, CacheState], dict[int, Reading]] = {}
    for each in readings:
        grouped.setdefault((each.cell, each.endpoint, each.temperature), {})[each.round] = each
    first = readings[0].cell if readings else None
    results = []
    for (cell, endpoint, temperature), by_round in grouped.items():
        assert first is not None  # noqa: S101
        base_cell = msgspec.structs.replace(cell, dataset=first.dataset, format=first.format)
        base = grouped.get((base_cell, endpoint, temperature), {}) if base_cell != cell else {}
        results.append(_format_result(cell, endpoint, temperature, by_round, base))
    return tuple(results)


def _format_result(
    cell: BenchCase,
    endpoint: EndpointKind,
    temperature: CacheState,
    by_round: Mapping[int, Reading],
    base: Mapping[int, Reading],
) -> FormatResult:
    taken = list(by_round.values())
    seconds = sum(each.seconds for each in taken)
    size = sum(each.bytes_per_s * each.seconds for each in taken)
    ratios = [
        math.log(by_round[number].samples_per_s / base[number].samples_per_s)
        for number in sorted(by_round.keys() & base.keys())
        if by_round[number].samples_per_s > 0 and base[number].samples_per_s > 0
    ]
    found = estimate(ratios, [1.0] * len(ratios))
    return FormatResult(
        cell=cell,
        endpoint=endpoint,
        temperature=temperature,
        samples_per_s=sum(each.samples_per_s * each.seconds for each in taken) / seconds,
        bytes_per_s=size / seconds,
        bytes_per_sample=size / sum(each.samples for each in taken),
        decode_share=sum(each.decode_share * each.seconds for each in taken) / seconds,
        pairs=len(ratios),
        ratio=math.exp(statistics.mean(ratios)) if ratios else None,
        low=found.low if found is not None else None,
        high=found.high if found is not None else None,
    )


def limit_spreads(limits: Iterable[Limit]) -> dict[str, Spread]:
    """The limits by name; see BenchSummary."""
    rates: dict[str, list[float]] = {}
    for limit in limits:
        name = f"{limit.kind} {limit.endpoint}" if limit.endpoint else str(limit.kind)
        rates.setdefault(name, []).append(limit.samples_per_s)
    return {name: spread for name, values in rates.items() if (spread := Spread.of(values)) is not None}


def _headline_comparisons(rows: Sequence[ResultRow]) -> list[tuple[ResultRow, str, ComparisonReport]]:
    """The comparisons for the headline: of training when that was measured, with a warm cache when there are any."""
    comparisons = [
        (row, str(temperature), row.comparison[str(temperature)])
        for row in rows
        for temperature in (CacheState.WARM, CacheState.COLD)
        if str(temperature) in row.comparison
    ]
    training = [each for each in comparisons if each[0].cell.mode is Mode.TRAINING] or comparisons
    return [each for each in training if each[1] == training[0][1]]


def headline(rows: Sequence[ResultRow], *, simulated: bool) -> str:
    """One sentence about how much faster the accelerated endpoint is, where the comparison is decided."""
    compared = _headline_comparisons(rows)
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
        for _, _, each in _headline_comparisons(rows)
        if each.low is not None and each.high is not None
    ]
    return all(low <= 1 <= high for low, high in intervals) if intervals else None


def aa_headline(rows: Sequence[ResultRow], endpoint: EndpointKind, *, simulated: bool) -> str:
    """One sentence about the result of the A/A control."""
    passed, compared = aa_passed(rows), _headline_comparisons(rows)
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
    known = {name: limits[name].median for name in words if name in limits}
    reached = (
        f"{what} with {setup} through the {endpoint} endpoint does {counted(f'{rate:,.0f}', 'sample/s', 'samples/s')}"
    )
    suffix = " (simulated)" if simulated else ""
    if not known:
        return f"{reached}{suffix}; the limits were not measured."
    name = min(known, key=lambda each: known[each])
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
