"""Whether two benchmarks, measured at different times, differ: Welch's interval of the ratio of their means."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from ossconsole.config.text import StrEnum

LEAST = 3
"""Readings of each side below which there is no interval."""

ERROR = 0.05
"""Of all comparisons of two benchmarks together: how often one finds a difference although there is none."""


class Verdict(StrEnum):
    """What an interval says."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "no difference"
    TOO_FEW = "too few readings"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast the second benchmark is in `what`; the interval is null with too few readings."""

    what: str
    first: float
    second: float
    verdict: Verdict
    ratio: float
    low: float | None = None
    high: float | None = None


def differences(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> list[Difference]:
    """The differences in what both benchmarks measured: rates of their readings, positive, in the order of the first.

    Bonferroni's correction makes the intervals of all of them hold together.
    """
    shared = [what for what in first if what in second]
    enough = sum(min(len(first[what]), len(second[what])) >= LEAST for what in shared)
    return [_difference(what, first[what], second[what], ERROR / max(1, enough)) for what in shared]


def _difference(what: str, first: Sequence[float], second: Sequence[float], error: float) -> Difference:
    logs = [[math.log(value) for value in side] for side in (first, second)]
    means = [statistics.mean(side) for side in logs]
    shift = means[1] - means[0]
    found = Difference(
        what=what, first=math.exp(means[0]), second=math.exp(means[1]), verdict=Verdict.TOO_FEW, ratio=math.exp(shift)
    )
    if min(len(first), len(second)) < LEAST:
        return found
    variances = [_variance_of_mean(side) for side in logs]
    total = sum(variances)
    half = 0.0
    if total > 0:
        freedom = total**2 / sum(each**2 / (len(side) - 1) for each, side in zip(variances, logs, strict=True))
        half = t_quantile(1 - error / 2, freedom) * math.sqrt(total)
    verdict = Verdict.FASTER if shift > half else Verdict.SLOWER if shift < -half else Verdict.SAME
    return msgspec.structs.replace(found, verdict=verdict, low=math.exp(shift - half), high=math.exp(shift + half))


_MOST_ALIKE = 0.8


def _variance_of_mean(values: Sequence[float]) -> float:
    """Larger where neighbours are alike (a drift): their mean is less sure than their number makes it look.

    The correlation of few neighbours comes out too low, by about (1 + 3 r) / n (Kendall 1954, Biometrika 41).
    """
    count, mean = len(values), statistics.mean(values)
    squares = sum((value - mean) ** 2 for value in values)
    products = sum((one - mean) * (next_ - mean) for one, next_ in itertools.pairwise(values))
    correlation = products / squares if squares > 0 else 0.0
    if count > LEAST:
        correlation = (correlation + 1 / count) / (1 - 3 / count)
    alike = min(_MOST_ALIKE, max(0.0, correlation))
    return squares / (count - 1) / count * (1 + alike) / (1 - alike)


_STEPS = 2000


def t_quantile(share: float, freedom: float) -> float:
    """The quantile `share` (above 0.5) of Student's t, by integrating its density."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    # With t = sqrt(freedom) * tan(angle) the density is cos(angle) ** (freedom - 1), on a finite range.
    scale *= math.sqrt(freedom)
    wanted, angle, width = share - 0.5, 0.0, math.pi / 2 / _STEPS
    for _ in range(_STEPS):
        middle = math.cos(angle + width / 2) ** (freedom - 1)
        area = scale * width * middle
        if area >= wanted:
            return math.sqrt(freedom) * math.tan(angle + width * wanted / area)
        wanted -= area
        angle += width
    return math.inf
