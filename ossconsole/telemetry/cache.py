"""The accelerator's cache as far as a run can see it: the share of hits from fetch times, and what was read before."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.events import Step

WARM = 0.8
"""A cache is called warm once this share of the samples comes from it."""

_KEPT = 512
_LEAST = 8  # fetches before anything is said of them
_ANEW_EVERY = 32  # fetches after which the modes are looked for again
_APART = 1.5  # a miss takes at least this many times as long as a hit
_EXPLAINED = 0.8  # of the variance, by two modes; of one normal mode the best split explains 0.64


def modes(seconds: Sequence[float]) -> tuple[float, float] | None:
    """The fetch times of hits and of misses, where the times fall into two modes; None where there is only one.

    The best split of the logarithms (Otsu 1979) counts where it explains most of their variance.
    """
    logs = sorted(math.log(value) for value in seconds if value > 0)
    count = len(logs)
    if count < _LEAST:
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


def hit_rate(seconds: Iterable[float], hit_s: float, miss_s: float) -> float | None:
    """The estimated share of hits among samples that were fetched in batches, 0 to 1; None without any.

    `seconds` are the batches' fetch times; one of hits alone takes `hit_s`, one of misses alone `miss_s`.
    """
    times = [value for value in seconds if math.isfinite(value)]
    if not times or miss_s <= hit_s:
        return None
    return min(1.0, max(0.0, (miss_s - statistics.fmean(times)) / (miss_s - hit_s)))


class FetchTimes:
    """The newest fetch times of both endpoints, and which times of the accelerated one are hits and which misses."""

    def __init__(self) -> None:
        self._times: dict[EndpointKind, deque[float]] = {kind: deque(maxlen=_KEPT) for kind in EndpointKind}
        self._anchors: tuple[float, float] | None = None
        self._age = 0  # of the anchors, in fetches

    def add(self, step: Step) -> None:
        """Count the fetch of a step."""
        if step.fetch_s > 0 and math.isfinite(step.fetch_s):
            self._times[step.endpoint].append(step.fetch_s)
            self._age += 1

    @property
    def anchors(self) -> tuple[float, float] | None:
        """What a batch of hits takes and what one of misses, seconds; None while that cannot be told."""
        if self._age >= (_ANEW_EVERY if self._anchors is not None else _LEAST):
            self._anchors, self._age = self._found(), 0
        return self._anchors

    def _found(self) -> tuple[float, float] | None:
        accelerated, standard = self._times[EndpointKind.ACCELERATED], self._times[EndpointKind.STANDARD]
        origin = statistics.median(standard) if len(standard) >= _LEAST else None
        found = modes(accelerated)
        if found is not None:
            # Batches that are partly hits make a mode of their own; a miss takes what the origin takes at least.
            return found if origin is None else (found[0], max(found[1], origin))
        if origin is None or len(accelerated) < _LEAST:
            return None
        typical = statistics.median(accelerated)
        # One mode: all are hits where they are clearly faster than the origin. Else nothing is known of hits.
        return (typical, origin) if typical * _APART <= origin else None


class Coverage:
    """Which share of the samples was read through the cache, and whether a batch is mostly read for the first time.

    Within an epoch no sample comes twice, so a batch is as warm as the cache was when the epoch began. Where the fetch
    times tell hits from misses they decide instead: the cache may hold what an earlier run read, or be too small.
    """

    def __init__(self) -> None:
        self.covered = 0.0
        self._at_epoch_start = 0.0
        self._epoch = 0
        self.size = 0
        """Samples of an epoch, once one has ended."""

    def add(self, step: Step, size: int, anchors: tuple[float, float] | None) -> bool:
        """Count a step of a dataset of `size` samples (0: unknown); True where its samples were cold."""
        if step.epoch != self._epoch:
            self._epoch, self._at_epoch_start = step.epoch, self.covered
        if step.endpoint is EndpointKind.STANDARD:
            return False
        size = self.size or size
        if size:
            self.covered = min(1.0, self.covered + step.samples / size * (1 - self._at_epoch_start))
        found = hit_rate((step.fetch_s,), *anchors) if anchors is not None else None
        return (self._at_epoch_start if found is None else found) < WARM

    def end_epoch(self, samples: int) -> None:
        """An epoch of `samples` samples (0: unknown) ended."""
        self.size = samples or self.size
