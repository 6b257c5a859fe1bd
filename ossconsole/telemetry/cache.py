"""The accelerator's cache as far as a run can see it: the share of hits, and what was read before.

The time of a whole batch does not show its share of hits: the connector returns samples in order, so that a batch takes
as long as its misses do unless nearly all of it are hits. `training.loading.pool.SingleSamples` times single samples.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.events import Step

WARM = 0.8
"""A cache is called warm once this share of the samples comes from it."""

MAX_ERROR = 0.05
"""The standard error of a hit rate above which it is not reported."""

_KEPT = 512
_MIN_SAMPLES = 8  # samples; the times of fewer are not evaluated
_SEARCH_EVERY = 32  # samples between two searches for the modes
_APART = 2.0  # a miss takes at least this many times as long as a hit
_EXPLAINED = 0.8  # of the variance, by two modes; of one normal mode the best split explains 0.64
_BELOW = 0.9  # of what the fastest samples from the bucket take, a hit takes less
_SURE = 2.0  # standard errors
_BIN = 0.05  # of the logarithm of a time

TimeCounts = Counter[int]
"""How many single samples took how long, by bins of 5 % of the time."""


def count_time(counts: TimeCounts, step: Step) -> None:
    """Count the single sample that was timed with a step, if there was one."""
    if step.single_s is not None and step.single_s > 0:
        counts[round(math.log(step.single_s) / _BIN)] += 1


class HitRate(NamedTuple):
    """The estimated share of hits, 0 to 1, and its standard error from the number of samples that were timed."""

    value: float
    error: float

    @property
    def cold(self) -> bool | None:
        """Whether the cache is cold by this; None while the samples are too few to tell."""
        return None if abs(self.value - WARM) < _SURE * self.error else self.value < WARM

    @property
    def reported(self) -> float | None:
        """The share; None where its standard error is above MAX_ERROR."""
        return self.value if self.error <= MAX_ERROR else None


def hit_rate(counts: Mapping[int, int], limit_s: float | None) -> HitRate | None:
    """The share of samples that took less than `limit_s`; None without samples, or without a limit.

    The error is that of Agresti and Coull (1998), which is not 0 where all samples are hits.
    """
    total = sum(counts.values())
    if limit_s is None or not total:
        return None
    hits = sum(count for place, count in counts.items() if place * _BIN < math.log(limit_s))
    shrunk = (hits + 2) / (total + 4)
    return HitRate(hits / total, math.sqrt(shrunk * (1 - shrunk) / (total + 4)))


def modes(seconds: Sequence[float]) -> tuple[float, float] | None:
    """The times of hits and of misses, where the times fall into two modes; None where there is only one.

    The best split of the logarithms (Otsu 1979) counts where it explains most of their variance.
    """
    logs = sorted(math.log(value) for value in seconds if value > 0)
    count = len(logs)
    if count < _MIN_SAMPLES:
        return None
    mean = statistics.fmean(logs)
    total = sum((value - mean) ** 2 for value in logs)
    best, at, below = 0.0, 0, 0.0
    for place, value in enumerate(logs[:-1], 1):
        below += value - mean
        between = below * below * count / (place * (count - place))
        if between > best:
            best, at = between, place
    if total <= 0 or best / total < _EXPLAINED or not 0.05 * count <= at <= 0.95 * count:
        return None
    hit, miss = math.exp(statistics.fmean(logs[:at])), math.exp(statistics.fmean(logs[at:]))
    return (hit, miss) if miss >= _APART * hit else None


class SingleTimes:
    """The newest times of single samples from both endpoints, and what a hit of the cache takes at most."""

    def __init__(self) -> None:
        self._times: dict[EndpointKind, deque[float]] = {kind: deque(maxlen=_KEPT) for kind in EndpointKind}
        self._limit_s: float | None = None
        self._age = 0  # of the limit, in samples

    def add(self, step: Step) -> None:
        """Count the single sample that was timed with a step, if there was one."""
        if step.endpoint is not None and step.single_s is not None and step.single_s > 0:
            self._times[step.endpoint].append(step.single_s)
            self._age += 1

    @property
    def limit_s(self) -> float | None:
        """Seconds below which a sample is a hit; None while unknown. Once known it is kept."""
        if self._age >= (_SEARCH_EVERY if self._limit_s is not None else 1):
            self._limit_s, self._age = self._found() or self._limit_s, 0
        return self._limit_s

    def _found(self) -> float | None:
        accelerated, standard = self._times[EndpointKind.ACCELERATED], self._times[EndpointKind.STANDARD]
        if len(accelerated) < _MIN_SAMPLES:
            return None
        found = modes(accelerated)
        middle = math.sqrt(found[0] * found[1]) if found is not None else None
        if len(standard) < _MIN_SAMPLES:
            return middle
        slow = found[1] if found is not None else statistics.median(accelerated)
        origin, fastest = statistics.median(standard), _BELOW * sorted(standard)[len(standard) // 20]
        if slow * _APART <= origin:  # even the slow mode is clearly faster than the bucket: both are hits
            return fastest
        # Otherwise the slow mode is that of the misses. A busy machine makes hits slower, so each time that is too
        # short for a miss counts as a hit.
        if middle is not None:
            return max(middle, fastest * min(1.0, slow / origin))
        return fastest if slow >= fastest else None


class Coverage:
    """Which share of the samples was read through the cache, and whether a batch is mostly read for the first time.

    Within an epoch no sample comes twice, so a batch is as warm as the cache was when the epoch began. Where the single
    samples timed in this epoch tell the share of hits they decide instead: the cache may hold what an earlier run read,
    or be too small.
    """

    def __init__(self) -> None:
        self.covered = 0.0
        self._at_epoch_start = 0.0
        self._epoch = 0
        self._counts = TimeCounts()  # of this epoch
        self.size = 0
        """Samples of an epoch, once one has ended."""

    def add(self, step: Step, size: int, limit_s: float | None) -> bool:
        """Count a step of a dataset of `size` samples (0: unknown); True where its samples were cold.

        `limit_s` is what a hit takes at most, None where not known.
        """
        if step.epoch != self._epoch:
            self._epoch, self._at_epoch_start = step.epoch, self.covered
            self._counts.clear()
        if step.endpoint is EndpointKind.STANDARD:
            return False
        size = self.size or size
        if size:
            self.covered = min(1.0, self.covered + step.samples / size * (1 - self._at_epoch_start))
        # Without the time of this step: a step must not be sorted by its own time.
        found = hit_rate(self._counts, limit_s)
        count_time(self._counts, step)
        cold = found.cold if found is not None else None
        return self._at_epoch_start < WARM if cold is None else cold

    def end_epoch(self, samples: int) -> None:
        """An epoch of `samples` samples (0: unknown) ended."""
        self.size = samples or self.size
