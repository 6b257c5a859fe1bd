"""Two endpoints side by side: what each delivered, how much faster one is, and how surely that is known."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.events import Step
from ossconsole.telemetry.series import Quantiles

# Reader processes deliver in bursts of one batch each, so single steps scatter wildly; a block spans whole bursts.
BLOCK_MIN_S = 0.5
KEPT_BLOCKS = 256
KEPT_SEGMENTS = 64
MIN_BLOCKS = 4
MIN_SEGMENTS = 2
# A read-through cache is called warm once this share of the samples was read through it before.
WARM_COVERAGE = 0.8
_Z95 = 1.96


class Block(msgspec.Struct, frozen=True, gc=False):
    """Some consecutive settled steps of one endpoint."""

    samples: int
    seconds: float
    wait_s: float
    bytes: int
    steps: int
    copy_s: float
    compute_s: float

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds


class EndpointFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint delivered while settled. Rates are medians over blocks; None where nothing was measured.

    `steps` are those measured, `blocks` the independent readings behind the medians, `visits` the stretches between
    switches that hold a reading. `cold` is True where most of the samples were read for the first time through a
    caching endpoint; the rates of both temperatures are told beside, where both were seen. `rate_low` and `rate_high`
    hold nine tenths of the readings. `copy_s` and `compute_s` are means per step.
    """

    kind: EndpointKind
    steps: int = 0
    blocks: int = 0
    samples_per_s: float | None = None
    step_p50: float | None = None
    step_p95: float | None = None
    fetch_p50: float | None = None
    fetch_p95: float | None = None
    wait_fraction: float | None = None
    bytes_per_s: float | None = None
    cold: bool = False
    visits: int = 0
    rate_low: float | None = None
    rate_high: float | None = None
    cold_rate: float | None = None
    warm_rate: float | None = None
    copy_s: float | None = None
    compute_s: float | None = None


class Comparison(msgspec.Struct, frozen=True):
    """How many times as many samples/s the accelerated endpoint gave as the standard one.

    `spread` is the half width of the 95 % interval as a share of `ratio`. `cold` tells that the accelerated figures
    come from a cache that was still filling.
    """

    ratio: float
    spread: float
    cold: bool = False

    @property
    def decided(self) -> bool:
        """True where the interval leaves 1 out."""
        return abs(math.log(self.ratio)) > math.log1p(self.spread)

    @property
    def words(self) -> str:
        """The ratio with its spread."""
        return f"{self.ratio:.2f}x ± {self.spread * 100:.0f} %"


class _Part:
    """The blocks of one temperature of the cache."""

    def __init__(self) -> None:
        self.blocks: deque[Block] = deque(maxlen=KEPT_BLOCKS)
        self.segments: deque[list[float]] = deque(maxlen=KEPT_SEGMENTS)
        self.steps = 0
        self.step_times = Quantiles()
        self.fetch_times = Quantiles()

    @property
    def rates(self) -> list[float]:
        return [block.samples_per_s for block in self.blocks]

    @property
    def median_rate(self) -> float | None:
        return statistics.median(self.rates) if self.blocks else None

    def share(self, name: str, of: str) -> float | None:
        """The sum of one field of the blocks per unit of another."""
        whole = sum(getattr(block, of) for block in self.blocks)
        return sum(getattr(block, name) for block in self.blocks) / whole if whole else None

    def segment_medians(self) -> list[float]:
        return [statistics.median(segment) for segment in self.segments if segment]


class EndpointWindow:
    """The settled steps of one endpoint, in constant memory; cold and warm cache are kept apart."""

    def __init__(self, kind: EndpointKind) -> None:
        self.kind = kind
        self._cold = _Part()
        self._warm = _Part()
        self._open: list[Step] = []
        self._open_cold = False

    def start_segment(self) -> None:
        """A new stretch on this endpoint begins (after a switch); an unfinished block is dropped."""
        self._open.clear()
        for part in (self._cold, self._warm):
            if not part.segments or part.segments[-1]:
                part.segments.append([])

    def interrupt(self) -> None:
        """Time passed that no step accounts for (a pause): the unfinished block is dropped."""
        self._open.clear()

    def add(self, step: Step, *, cold: bool, burst: int) -> None:
        """Count a settled step; `burst` is how many batches may arrive at once (the reader processes)."""
        part = self._cold if cold else self._warm
        part.steps += 1
        part.step_times.add(step.step_time_s)
        part.fetch_times.add(step.fetch_s)
        if cold != self._open_cold:
            self._open.clear()
            self._open_cold = cold
        self._open.append(step)
        seconds = sum(item.step_time_s for item in self._open)
        if seconds < BLOCK_MIN_S or len(self._open) % burst:
            return
        block = Block(
            samples=sum(item.samples for item in self._open),
            seconds=seconds,
            wait_s=sum(item.data_wait_s for item in self._open),
            bytes=sum(item.bytes for item in self._open),
            steps=len(self._open),
            copy_s=sum(item.copy_s for item in self._open),
            compute_s=sum(item.compute_s for item in self._open),
        )
        self._open.clear()
        part.blocks.append(block)
        if not part.segments:
            part.segments.append([])
        if len(part.segments[-1]) < KEPT_BLOCKS:
            part.segments[-1].append(block.samples_per_s)

    @property
    def part(self) -> _Part:
        """Warm readings once there are enough of them; until then the cold ones."""
        return self._warm if len(self._warm.blocks) >= MIN_BLOCKS or not self._cold.steps else self._cold

    @property
    def cold(self) -> bool:
        return self.part is self._cold

    def figures(self) -> EndpointFigures:
        part = self.part
        low, high = _nine_tenths(part.rates)
        return EndpointFigures(
            kind=self.kind,
            steps=part.steps,
            blocks=len(part.blocks),
            samples_per_s=part.median_rate,
            step_p50=part.step_times.p50,
            step_p95=part.step_times.p95,
            fetch_p50=part.fetch_times.p50,
            fetch_p95=part.fetch_times.p95,
            wait_fraction=part.share("wait_s", "seconds"),
            bytes_per_s=part.share("bytes", "seconds"),
            cold=self.cold,
            visits=sum(bool(segment) for segment in part.segments),
            rate_low=low,
            rate_high=high,
            cold_rate=self._cold.median_rate,
            warm_rate=self._warm.median_rate,
            copy_s=part.share("copy_s", "steps"),
            compute_s=part.share("compute_s", "steps"),
        )


def compare(standard: EndpointWindow, accelerated: EndpointWindow) -> Comparison | None:
    """The ratio and its spread; None until both endpoints have enough readings.

    The spread is the larger of two: that of the blocks, and, once each endpoint was visited three times, that of the
    visits, which also holds what drifts between them.
    """
    base, other = standard.part, accelerated.part
    if min(len(base.blocks), len(other.blocks)) < MIN_BLOCKS:
        return None
    ratio = statistics.median(other.rates) / statistics.median(base.rates)
    spread = _spread(base.rates, other.rates)
    visits = base.segment_medians(), other.segment_medians()
    if min(map(len, visits)) >= 3:
        spread = max(spread, _spread(*visits))
    return Comparison(ratio, spread, accelerated.cold)


def _spread(base: Sequence[float], other: Sequence[float]) -> float:
    """Half width of the 95 % interval of the ratio of two medians, as a share of it (delta method on the logarithm)."""
    return math.expm1(_Z95 * math.hypot(_median_error(base), _median_error(other)))


def _median_error(values: Sequence[float]) -> float:
    """Standard error of the median as a share of it; the deviation is taken from the quartiles, blind to outliers."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    deviation = (high - low) / 1.349
    return 1.2533 * deviation / math.sqrt(len(values)) / middle


def _nine_tenths(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The bounds of the middle nine tenths; of all where they are few."""
    if not values:
        return None, None
    ordered = sorted(values)
    cut = len(ordered) // 20
    return ordered[cut], ordered[-1 - cut]
