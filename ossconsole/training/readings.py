"""What a benchmark of endpoints reports: its readings, what they come to, and what bounds the setup. No torch here."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted

IMAGENET_SAMPLES = 1_281_167
"""Training pictures of ILSVRC 2012, the epoch of the tutorial's table."""


class Mode(str, enum.Enum):
    """What is done with the batches: nothing, or training steps."""

    LOADER = "loader"
    TRAINING = "training"

    def __str__(self) -> str:
        return self.value


class Temperature(str, enum.Enum):
    """Whether the samples were read through that endpoint before, as far as this benchmark knows."""

    COLD = "cold"
    WARM = "warm"

    def __str__(self) -> str:
        return self.value


class LimitKind(str, enum.Enum):
    """What could bound a setup, each measured without the others."""

    HTTP = "http"
    CONNECTOR = "connector"
    COMPUTE = "compute"

    def __str__(self) -> str:
        return self.value


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: all endpoints are measured with these settings. `dataset` is its prefix."""

    dataset: str
    format: str
    mode: Mode
    workers: int
    batch_size: int


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float
    simulated: bool


class Reading(_Event, frozen=True, kw_only=True, tag="reading"):
    """One measured stretch. `wait_fraction` is the share of the time that training waited for data.

    `fetch_p50_s` and `fetch_p95_s` are of the time a reader process took for a batch.
    """

    cell: Cell
    endpoint: EndpointKind
    temperature: Temperature
    round: int
    samples: int
    seconds: float
    samples_per_s: float
    bytes_per_s: float
    fetch_p50_s: float
    fetch_p95_s: float
    wait_fraction: float | None = None


class Limit(_Event, frozen=True, kw_only=True, tag="limit"):
    """What one part of the setup does alone; `endpoint` is None for the compute."""

    kind: LimitKind
    endpoint: EndpointKind | None
    dataset: str
    workers: int
    batch_size: int
    samples_per_s: float


class Spread(msgspec.Struct, frozen=True):
    """The median of some figures, and their range."""

    median: float
    lowest: float
    highest: float
    readings: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without values."""
        return cls(statistics.median(values), min(values), max(values), len(values)) if values else None

    @property
    def half_width(self) -> float:
        """Half the range as a share of the median."""
        return (self.highest - self.lowest) / 2 / self.median if self.median else 0.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What the readings of a cell come to.

    The keys of `samples_per_s` and `minutes_per_epoch` are "<endpoint> <temperature>"; `minutes_per_epoch` is
    extrapolated from the median. `ratio` has, by temperature, the accelerated rate as a multiple of the standard one,
    taken within each round.
    """

    cell: Cell
    samples_per_s: dict[str, Spread]
    minutes_per_epoch: dict[str, float]
    ratio: dict[str, Spread]


class Summary(_Event, frozen=True, kw_only=True, tag="summary"):
    """The last line. `samples` are those of the epoch that `minutes_per_epoch` is extrapolated to.

    `limits` has samples/s by "<kind> <endpoint>", or "compute".
    """

    samples: int
    rows: tuple[Row, ...]
    limits: dict[str, Spread]
    headline: str
    bound: str


BenchEvent: TypeAlias = Reading | Limit | Summary


def name_of(endpoint: EndpointKind, temperature: Temperature) -> str:
    """The key of an endpoint's figures in a Row."""
    return f"{endpoint} {temperature}"


def row_of(cell: Cell, readings: Iterable[Reading], samples: int) -> Row:
    """The row of `cell`, for an epoch of `samples`."""
    rates: dict[tuple[EndpointKind, Temperature], dict[int, float]] = {}
    for reading in readings:
        if reading.cell == cell:
            rates.setdefault((reading.endpoint, reading.temperature), {})[reading.round] = reading.samples_per_s
    found: dict[str, Spread] = {}
    ratio: dict[str, Spread] = {}
    for (endpoint, temperature), by_round in rates.items():
        if (spread := Spread.of(list(by_round.values()))) is not None:
            found[name_of(endpoint, temperature)] = spread
    for temperature in Temperature:
        base = rates.get((EndpointKind.STANDARD, temperature), {})
        other = rates.get((EndpointKind.ACCELERATED, temperature), {})
        both = [other[number] / base[number] for number in sorted(base.keys() & other.keys())]
        if (spread := Spread.of(both)) is not None:
            ratio[str(temperature)] = spread
    return Row(
        cell=cell,
        samples_per_s=found,
        minutes_per_epoch={name: samples / spread.median / 60 for name, spread in found.items() if spread.median},
        ratio=ratio,
    )


def limits_of(limits: Iterable[Limit]) -> dict[str, Spread]:
    """The limits by name, see Summary."""
    rates: dict[str, list[float]] = {}
    for limit in limits:
        name = f"{limit.kind} {limit.endpoint}" if limit.endpoint else str(limit.kind)
        rates.setdefault(name, []).append(limit.samples_per_s)
    return {name: spread for name, values in rates.items() if (spread := Spread.of(values)) is not None}


def headline(rows: Sequence[Row], *, simulated: bool) -> str:
    """How much faster the accelerated endpoint is, in words: warm where that was measured."""
    ratios = [
        (row.cell, temperature, row.ratio[temperature])
        for row in rows
        for temperature in (str(Temperature.WARM), str(Temperature.COLD))
        if temperature in row.ratio
    ]
    if not ratios:
        return "Only one endpoint was measured."
    modes = [cell.mode for cell, _, _ in ratios]
    mode = Mode.TRAINING if Mode.TRAINING in modes else Mode.LOADER
    temperature = next(temperature for cell, temperature, _ in ratios if cell.mode is mode)
    chosen = [spread for cell, which, spread in ratios if cell.mode is mode and which == temperature]
    verb = "Training" if mode is Mode.TRAINING else "Loading"
    suffix = f" ({temperature} cache{', simulated' if simulated else ''})"
    if len(chosen) == 1:
        one = chosen[0]
        return (
            f"{verb} through the accelerated endpoint is {one.median:.2f}x as fast as through the standard one, "
            f"{one.lowest:.2f} to {one.highest:.2f} over {counted(one.readings, 'round')}{suffix}."
        )
    medians = [spread.median for spread in chosen]
    return (
        f"{verb} through the accelerated endpoint is {min(medians):.2f}x to {max(medians):.2f}x as fast as through "
        f"the standard one over {counted(len(chosen), 'setup')}{suffix}."
    )


def bound(row: Row, limits: dict[str, Spread], *, simulated: bool) -> str:
    """What bounds the setup of `row`, and how far from it that is, in words."""
    endpoint, rate = _best(row)
    what = "Training" if row.cell.mode is Mode.TRAINING else "Loading"
    setup = f"{counted(row.cell.workers, 'worker')} and batches of {row.cell.batch_size}"
    words = {
        f"{LimitKind.HTTP} {endpoint}": f"the {endpoint} endpoint bounds it: plain HTTP GETs get",
        f"{LimitKind.CONNECTOR} {endpoint}": "the connector bounds it: with a transform that does nothing it delivers",
        str(LimitKind.COMPUTE): "the compute bounds it: from synthetic data it does",
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
    return f"{reached}; {words[name]} {known[name]:,.0f}, so this is {rate / known[name]:.0%} of the limit{suffix}."


def _best(row: Row) -> tuple[EndpointKind, float]:
    """The endpoint that is to be fast, the accelerated one where there is one, and its rate, warm if possible."""
    for endpoint in (EndpointKind.ACCELERATED, EndpointKind.STANDARD):
        for temperature in (Temperature.WARM, Temperature.COLD):
            if (found := row.samples_per_s.get(name_of(endpoint, temperature))) is not None:
                return endpoint, found.median
    return EndpointKind.STANDARD, 0.0
