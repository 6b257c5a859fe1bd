"""The results of a benchmark: its readings and their comparison. No torch here."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import StrEnum, counted
from ossconsole.telemetry.cache import hit_rate
from ossconsole.telemetry.compare import Comparison, ComparisonReport, Conditions, Side, estimate
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


class ReadPath(StrEnum):
    """What samples are read through: one of the bucket's endpoints, or a mounted folder."""

    STANDARD = EndpointKind.STANDARD.value
    ACCELERATED = EndpointKind.ACCELERATED.value
    MOUNT = "mount"

    @property
    def words(self) -> str:
        """With its article."""
        return "the mounted folder" if self is ReadPath.MOUNT else f"the {self} endpoint"


class LimitKind(str, enum.Enum):
    """The possible bottlenecks of a setup, each measured without the others."""

    HTTP = "http"
    CONNECTOR = "connector"
    COMPUTE = "compute"

    def __str__(self) -> str:
        return self.value


class BenchCase(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: settings with which all endpoints are measured. `dataset` is its prefix.

    `prefetch_mb` is the memory of the batch buffers; 0 is automatic.
    """

    dataset: str
    format: str
    mode: Mode
    workers: int
    batch_size: int
    prefetch_mb: int = 0

    @property
    def words(self) -> str:
        """All but the dataset's prefix, as text."""
        prefetch = f", {self.prefetch_mb} MB of buffers" if self.prefetch_mb else ""
        return f"{self.mode}, {self.format}, {counted(self.workers, 'worker')}, batch {self.batch_size}{prefetch}"


class ModelSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What the rate of the training steps alone depends on.

    `precision` is fp32, bf16 or fp16; `device` is the name of the GPU, or of the processor with its number of threads.
    `batch_size` is that of each process.
    """

    model: str
    image_size: int
    batch_size: int
    precision: str
    compile: bool
    device: str


class Quantiles(msgspec.Struct, frozen=True):
    """The quantiles of durations, in seconds; all 0 without any."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """The quantiles of the values, by the nearest rank."""
        ordered = sorted(values)
        if not ordered:
            return cls()
        return cls(*(ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95, 0.99)))


class _BenchEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float
    simulated: bool


class Reading(_BenchEvent, frozen=True, kw_only=True, tag="reading"):
    """One measured interval. `wait_fraction` is the share of its time that training waited for data.

    `fetch_p50_s` and `fetch_p95_s` are quantiles of a reader process's time for a batch, as `fetch` is, and `step` of
    the time from one batch to the next. `stall_share` is the share of the time in stalls, `decode_share` that of the
    readers' time in which they decode.
    """

    cell: BenchCase
    endpoint: ReadPath
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
    fetch: Quantiles = Quantiles()
    step: Quantiles = Quantiles()
    stall_share: float = 0.0


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


STALL = 3.0
"""A turn that takes this many times the median one is a stall."""


def stall_share(step_s: Sequence[float], workers: int = 1) -> float:
    """The share of the time in stalls, beyond the median.

    `workers` steps are a turn: the batches of several readers arrive close to each other.
    """
    turns = [sum(step_s[first : first + workers]) for first in range(0, len(step_s) - workers + 1, workers)]
    if not turns or sum(turns) <= 0:
        return 0.0
    typical = statistics.median(turns)
    return sum(each - typical for each in turns if each > STALL * typical) / sum(turns)


class Times(msgspec.Struct, frozen=True):
    """How long steps and fetches took: `step` from one batch to the next, `fetch` a reader for a batch, in seconds.

    `stalls` is the share of the time in stalls, of turns of all readers.
    """

    step: Quantiles
    fetch: Quantiles
    stalls: float

    @classmethod
    def of(cls, step_s: Sequence[float], fetch_s: Sequence[float], workers: int) -> Times:
        """Of the times of all steps, by that many readers."""
        return cls(Quantiles.of(step_s), Quantiles.of(fetch_s), stall_share(step_s, workers))


class PathRatio(msgspec.Struct, frozen=True):
    """A ratio of rates from that many pairs; the 95 % interval is null where their number is too small."""

    pairs: int
    ratio: float
    low: float | None = None
    high: float | None = None


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a case.

    The keys of `samples_per_s` and `minutes_per_epoch` are "<endpoint> <temperature>"; `minutes_per_epoch` is
    extrapolated from the mean time per sample. `ratio` has, by temperature, the spread of the accelerated rate as a
    multiple of the standard rate of the same round. `comparison` has, by temperature, the decision from the pairs of
    readings, with its 95 % interval. `mount` has the rates of the mounted folder, as multiples of those of the path
    and temperature that are its keys. `times` has the distributions over all readings, by path and temperature.
    """

    cell: BenchCase
    samples_per_s: dict[str, Spread]
    minutes_per_epoch: dict[str, float]
    ratio: dict[str, Spread]
    comparison: dict[str, ComparisonReport] = {}
    mount: dict[str, PathRatio] = {}
    times: dict[str, Times] = {}


class FormatResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a sample format through one endpoint. Rates are means over the time of all readings.

    `ratio` is that of the samples/s to those of the first format, by pairs of readings of the same round; `low` and
    `high` bound its 95 % interval. They are null for the first format; the interval also where its number of `pairs` is
    too small. `decode_share` is the share of the readers' time in which they decoded.
    """

    cell: BenchCase
    endpoint: ReadPath
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
    `page_cache` says how this machine's page cache was kept out of the readings of a mounted folder. `model` is what
    the limit "compute" was measured with, null where it was not.
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
    page_cache: str = ""
    model: ModelSetup | None = None


BenchEvent: TypeAlias = Reading | Limit | BenchSummary


def result_key(endpoint: str, temperature: CacheState) -> str:
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
        """The median step time of the standard endpoint by that of the accelerated one; None where one is unknown."""
        steps = {
            kind: window.parts[temperature is CacheState.COLD].typical_step_s for kind, window in self.windows.items()
        }
        slow, fast = steps.get(EndpointKind.STANDARD), steps.get(EndpointKind.ACCELERATED)
        return slow / fast if slow and fast else None

    def hit_rate(self, temperature: CacheState) -> float | None:
        """The estimated share of samples that hit the accelerator's cache, 0 to 1; None where it is imprecise."""
        rate = hit_rate(self.tally(EndpointKind.ACCELERATED, temperature).singles, self.hit_limit_s)
        return rate.reported if rate is not None else None


def result_row(cell: BenchCase, readings: Iterable[Reading], samples: int, steps: CaseSteps | None = None) -> ResultRow:
    """The result of a case, for an epoch of `samples`; `steps` are those of its readings."""
    of_cell = [reading for reading in readings if reading.cell == cell]
    rates: dict[tuple[str, CacheState], dict[int, float]] = {}
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
        cell=cell,
        samples_per_s=samples_per_s,
        minutes_per_epoch=minutes,
        ratio=ratio,
        comparison=comparison,
        mount=_mount_ratios(rates),
    )


def _mount_ratios(rates: Mapping[tuple[str, CacheState], Mapping[int, float]]) -> dict[str, PathRatio]:
    """The mounted folder compared with each endpoint, by pairs of readings of the same round."""
    found = {}
    for (path, temperature), by_round in rates.items():
        mounted = rates.get((ReadPath.MOUNT, temperature), {})
        if path != ReadPath.MOUNT and (ratio := path_ratio(mounted, by_round)) is not None:
            found[result_key(path, temperature)] = ratio
    return found


def path_ratio(rates: Mapping[int, float], base: Mapping[int, float]) -> PathRatio | None:
    """The ratio of rates by round to those of `base`; None without a round that both have."""
    logs = [
        math.log(rates[number] / base[number])
        for number in sorted(rates.keys() & base.keys())
        if rates[number] > 0 and base[number] > 0
    ]
    if not logs:
        return None
    found = estimate(logs, [1.0] * len(logs))
    interval = (found.low, found.high) if found is not None else (None, None)
    return PathRatio(len(logs), math.exp(statistics.mean(logs)), *interval)


def _mean_rate(readings: Iterable[Reading], endpoint: str, temperature: CacheState) -> float | None:
    """Samples/s over the time of all readings: minutes per epoch include the slow intervals."""
    selected = [each for each in readings if (each.endpoint, each.temperature) == (endpoint, temperature)]
    seconds = sum(reading.seconds for reading in selected)
    samples = sum(reading.samples_per_s * reading.seconds for reading in selected)
    return samples / seconds if samples > 0 else None


def _compared(readings: Sequence[Reading], temperature: CacheState, samples: int, steps: CaseSteps) -> Comparison:
    """The comparison of the pairs of readings, one pair per round."""
    cold = temperature is CacheState.COLD
    visits = {
        (each.round, str(each.endpoint)): Visit(
            EndpointKind(each.endpoint), each.samples_per_s, each.seconds, 0, None, cold
        )
        for each in readings
        if each.temperature is temperature and each.samples_per_s > 0 and each.endpoint is not ReadPath.MOUNT
    }
    pairs = Pairs()
    for number in sorted({number for number, _ in visits}):
        standard, accelerated = (visits.get((number, str(kind))) for kind in EndpointKind)
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
    grouped: dict[tuple[BenchCase, ReadPath, CacheState], dict[int, Reading]] = {}
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
    endpoint: ReadPath,
    temperature: CacheState,
    by_round: Mapping[int, Reading],
    base: Mapping[int, Reading],
) -> FormatResult:
    taken = list(by_round.values())
    seconds = sum(each.seconds for each in taken)
    size = sum(each.bytes_per_s * each.seconds for each in taken)
    found = path_ratio(_rates(by_round), _rates(base))
    return FormatResult(
        cell=cell,
        endpoint=endpoint,
        temperature=temperature,
        samples_per_s=sum(each.samples_per_s * each.seconds for each in taken) / seconds,
        bytes_per_s=size / seconds,
        bytes_per_sample=size / sum(each.samples for each in taken),
        decode_share=sum(each.decode_share * each.seconds for each in taken) / seconds,
        pairs=found.pairs if found is not None else 0,
        ratio=found.ratio if found is not None else None,
        low=found.low if found is not None else None,
        high=found.high if found is not None else None,
    )


def _rates(readings: Mapping[int, Reading]) -> dict[int, float]:
    return {number: each.samples_per_s for number, each in readings.items()}


def limit_spreads(limits: Iterable[Limit]) -> dict[str, Spread]:
    """The limits by name; see BenchSummary."""
    rates: dict[str, list[float]] = {}
    for limit in limits:
        name = f"{limit.kind} {limit.endpoint}" if limit.endpoint else str(limit.kind)
        rates.setdefault(name, []).append(limit.samples_per_s)
    return {name: spread for name, values in rates.items() if (spread := Spread.of(values)) is not None}
