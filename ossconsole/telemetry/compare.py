"""How many times as fast the accelerated endpoint is: an interval over pairs of visits, and what it decides.

The unit is the pair: what was measured before a switch of endpoints and after it (see `visits`, and `auto` for their
order). The estimate is the mean of the logarithms of the pairs' ratios, weighted by the planned length of the visits,
with a t interval. It is made at LOOKS only, with a critical value that holds 95 % over all of them together, so that
stopping at any of them keeps the 95 % (Pocock 1977, Biometrika 64, 191-199; repeated confidence intervals: Jennison and
Turnbull 1989, J. R. Statist. Soc. B 51, 305-361).

There are two stages. The comparison is decided at the first look whose interval leaves 1 out, or allows no difference
of more than TARGET. It is precise when half the interval is at most TARGET too.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Sequence

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted

_LIBRARIES = ("ossconsole", "torch", "osstorchconnector")


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions of a comparison, as JSON too; what is not known is empty or null.

    `minutes` are those of the settled steps of both endpoints. `stored_as` is "objects" (one for each sample) or
    "shards". `warm_share` is the estimated share of the samples of the accelerated endpoint that came from its cache,
    0 to 1. `processes` train together.
    """

    pairs: int = 0
    minutes: float = 0.0
    batch_size: int = 0
    workers: int = 0
    processes: int = 1
    sample_format: str = ""
    bytes_per_sample: float | None = None
    stored_as: str = ""
    warm_share: float | None = None
    region: str = ""
    simulated: bool = False
    versions: dict[str, str] = {}

    @property
    def topics(self) -> dict[str, str]:
        """All that is known, by topic, each short enough for a line of a terminal."""
        size = None if self.bytes_per_sample is None else f"{counted(f'{self.bytes_per_sample:,.0f}', 'byte')}/sample"
        parts: dict[str, tuple[str | None, ...]] = {
            "length": (counted(self.pairs, "pair"), f"{self.minutes:.1f} min of settled steps"),
            "training": (
                f"batch {self.batch_size}" if self.batch_size else None,
                counted(self.workers, "worker") if self.workers else None,
                counted(self.processes, "process", "processes") if self.processes > 1 else None,
            ),
            "samples": (
                self.sample_format,
                size,
                {"objects": "one object per sample"}.get(self.stored_as, self.stored_as),
            ),
            "cache": (
                None if self.warm_share is None else f"{self.warm_share * 100:.0f} % from the cache (estimated)",
            ),
            "bucket": (f"region {self.region}" if self.region else None, "simulated" if self.simulated else None),
            "versions": tuple(f"{name} {number}" for name, number in self.versions.items()),
        }
        texts = {topic: ", ".join(part for part in known if part) for topic, known in parts.items()}
        return {topic: text for topic, text in texts.items() if text}

    @property
    def words(self) -> str:
        """All that is known, in one line."""
        return ", ".join(self.topics.values())


def installed_versions() -> dict[str, str]:
    """The versions of the programs that a figure depends on, of those that are installed."""
    from importlib.metadata import distributions

    found = {(item.name or "").lower(): item.version for name in _LIBRARIES for item in distributions(name=name)}
    return {name: found[name] for name in _LIBRARIES if name in found}


LOOKS = (6, 9, 13, 20, 30, 45)
"""Numbers of pairs at which the interval is made (a group-sequential test). After the last one it stays as it is."""

# Student's t at one nominal level (0.0098, two-sided) for each look. At this level all intervals of a sequence of
# independent normal pairs hold the truth in 95 % of sequences if the visits double after each look, and in 96 % if they
# stay as long as they are (200,000 simulated; tested).
_CRITICAL = dict(zip(LOOKS, (4.053, 3.369, 3.065, 2.87, 2.765, 2.7), strict=True))

TARGET = 0.05
"""Half width of the interval, as a share of the ratio, at which it is precise; also the margin of "no difference"."""


def next_look(pairs: int) -> int:
    """The first of LOOKS with more than `pairs` pairs; the last one where there is none."""
    return next((look for look in LOOKS if look > pairs), LOOKS[-1])


class Decision(str, enum.Enum):
    """The conclusion from the interval."""

    ACCELERATED = "the accelerated endpoint is faster"
    STANDARD = "the standard endpoint is faster"
    SAME = "no difference"
    NONE = "undecided"

    def __str__(self) -> str:
        return self.value


class Estimate(msgspec.Struct, frozen=True):
    """The ratio and its 95 % interval, from that many pairs."""

    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def precise(self) -> bool:
        """Whether half the interval is at most TARGET of the ratio."""
        return math.sqrt(self.high / self.low) <= 1 + TARGET

    @property
    def decision(self) -> Decision:
        """Which endpoint is faster: decided where the interval excludes 1, or lies within TARGET of it."""
        if self.low > 1:
            return Decision.ACCELERATED
        if self.high < 1:
            return Decision.STANDARD
        return Decision.SAME if self.within <= TARGET else Decision.NONE

    @property
    def within(self) -> float:
        """The largest difference that the interval allows, as a share."""
        return max(self.high, 1 / self.low) - 1


def estimate(log_ratios: Sequence[float], weights: Sequence[float]) -> Estimate | None:
    """From the logarithms of the pairs' ratios; a pair of twice the length has twice the weight and half the variance.

    None where the number of pairs is not one of LOOKS.
    """
    count = len(log_ratios)
    if count not in _CRITICAL:
        return None
    mean = weighted_mean(log_ratios, weights)
    squares = sum(weight * (value - mean) ** 2 for value, weight in zip(log_ratios, weights, strict=True))
    error = math.sqrt(squares / (count - 1) / sum(weights))
    # Neighbouring readings may have a common cause of delay: with correlation the interval must be wider.
    error *= math.sqrt(1 + 2 * max(0.0, lag_correlation(log_ratios, weights)))
    half = _CRITICAL[count] * error
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half), count)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def lag_correlation(values: Sequence[float], weights: Sequence[float]) -> float:
    """The correlation of neighbours, -1 to 1; 0 where all values are equal."""
    mean = weighted_mean(values, weights)
    scaled = [math.sqrt(weight) * (value - mean) for value, weight in zip(values, weights, strict=True)]
    squares = sum(value**2 for value in scaled)
    products = sum(one * next_ for one, next_ in itertools.pairwise(scaled))
    return products / squares if squares > 0 else 0.0


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint of a comparison, over its settled steps. None where it was measured too briefly.

    `minutes_per_epoch` is the mean time per sample times the samples of an epoch. `stall_share` is the share of the
    time in stalls: what turns of all readers took beyond the median, where they took more than 3 times the median.
    """

    samples_per_s: float | None = None
    minutes_per_epoch: float | None = None
    stall_share: float | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast as the standard endpoint the accelerated one is, in mean time per sample.

    `pairs` were collected, `estimate` is of the last look, None before the first. `typical_ratio` is the ratio of the
    median times of a step, which stalls do not change. `hit_rate` is the estimated share of samples that came from the
    accelerator's cache, `coverage` the share of the dataset that this run has read through it. `cold` is True where the
    pairs are those of a cache that was still filling, `too_short` where the run is switched too often for pairs, `over`
    where no more pairs will come.
    """

    pairs: int = 0
    estimate: Estimate | None = None
    standard: Side = Side()
    accelerated: Side = Side()
    typical_ratio: float | None = None
    hit_rate: float | None = None
    coverage: float = 0.0
    cold: bool = False
    conditions: Conditions | None = None
    too_short: bool = False
    over: bool = False

    @property
    def decision(self) -> Decision:
        """The estimate's decision; NONE before the first estimate."""
        return self.estimate.decision if self.estimate is not None else Decision.NONE

    @property
    def decided(self) -> bool:
        """True where the interval leaves 1 out, or shows that there is no relevant difference."""
        return self.decision is not Decision.NONE

    @property
    def faster(self) -> EndpointKind | None:
        """The faster endpoint; None while that is undecided, and where there is no difference."""
        return {Decision.ACCELERATED: EndpointKind.ACCELERATED, Decision.STANDARD: EndpointKind.STANDARD}.get(
            self.decision
        )

    @property
    def needed(self) -> int:
        """The number of pairs of the next look; of the last one after it."""
        return next_look(self.pairs)

    @property
    def collecting(self) -> str:
        """How many pairs there are, of how many that the next look needs; "" where no other look comes."""
        if self.over or self.pairs >= LOOKS[-1]:
            return ""
        return f"collecting {self.pairs}/{self.needed} pairs{': visits too short' if self.too_short else ''}"

    @property
    def ratio(self) -> str:
        """The ratio alone, "" unless one endpoint is faster: an undecided one is never shown."""
        return f"{self.estimate.ratio:.2f}x" if self.estimate is not None and self.faster is not None else ""

    @property
    def interval(self) -> str:
        """The interval, "" before the first look."""
        if self.estimate is None:
            return ""
        digits = 2 if self.decided or self.estimate.within < 0.15 else 1
        return f"{self.estimate.low:.{digits}f} to {self.estimate.high:.{digits}f}"

    @property
    def words(self) -> str:
        """The result in few words: a ratio with its interval only where it is decided."""
        if self.estimate is None:
            return f"too short: {self.pairs} of {self.needed} pairs" if self.over else self.collecting
        if self.ratio:
            return f"{self.ratio} ({self.interval}), {self.estimate.pairs} pairs"
        if self.decision is Decision.SAME:
            return f"no difference found within ± {max(1, math.ceil(self.estimate.within * 100 - 0.05))} %"
        return f"inconclusive: {self.interval}x"

    @property
    def sentence(self) -> str:
        """The result as the predicate of "the accelerated endpoint"; "" unless decided."""
        cold = f" ({self.cache_words})" if self.cold else ""
        if self.ratio:
            return f"gives {self.words.replace(' (', ' of standard (', 1)}{cold}"
        return f"gives the same as standard: {self.words}{cold}" if self.decided else ""

    @property
    def cache_state(self) -> str:
        """The accelerator's cache in the measured pairs; it may be full by now."""
        full = self.coverage >= _WHOLE
        return "cache warm" if not self.cold else "cache was filling" if full else "cache filling"

    @property
    def cache_words(self) -> str:
        """The state of the accelerator's cache, as far as it is known."""
        state = self.cache_state
        return state if self.hit_rate is None else f"{state}, hit rate {self.hit_rate * 100:.0f} % (estimated)"

    def report(self) -> ComparisonReport:
        """The comparison as JSON, for a record and `--json`."""
        found = self.estimate
        return ComparisonReport(
            pairs=self.pairs,
            decision=self.decision,
            words=self.words,
            ratio=found.ratio if found is not None and self.decided else None,
            low=found.low if found is not None else None,
            high=found.high if found is not None else None,
            standard=self.standard,
            accelerated=self.accelerated,
            typical_ratio=self.typical_ratio,
            hit_rate=self.hit_rate,
            coverage=self.coverage,
            cold=self.cold,
            conditions=self.conditions,
        )


_WHOLE = 0.995  # of the dataset was read through the cache


class ComparisonReport(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison as JSON. `ratio` is null unless decided; `low` and `high` bound the 95 % interval."""

    pairs: int
    decision: Decision
    words: str
    ratio: float | None
    low: float | None
    high: float | None
    standard: Side
    accelerated: Side
    typical_ratio: float | None
    hit_rate: float | None
    coverage: float
    cold: bool
    conditions: Conditions | None = None
