"""Whether two benchmarks, measured at different times, differ: the interval of the ratio of their means.

Neighbouring readings may have a common cause of delay: their mean is then less precise than that of independent ones.
Each series of logarithms is taken as a first-order autoregression: for a given correlation of neighbours, its
generalised least squares mean is Student's t with n - 1 degrees of freedom. The correlation is unknown, the same for
all series, and integrated out: each possible value counts by its restricted likelihood over all series together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from ossconsole.config.text import StrEnum
from ossconsole.telemetry.compare import TARGET

_Floats = npt.NDArray[np.float64]

MIN_READINGS = 3
"""Readings of each side below which there is no interval."""

ERROR = 0.05
"""Of all comparisons of two benchmarks together: how often one finds a difference although there is none."""

_CORRELATIONS = np.arange(0.0, 0.95, 0.1, dtype=np.float64)
_PRIOR = np.log1p(-_CORRELATIONS)  # smaller correlations are more likely


class Verdict(StrEnum):
    """What an interval says. SAME allows no difference of more than TARGET, NOT_SHOWN a larger one, and 1 too."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "no difference"
    NOT_SHOWN = "no difference shown"
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
    both = [what for what in first if first[what] and second.get(what)]
    pairs = {what: (_Series(first[what]), _Series(second[what])) for what in both}
    enough = [pair for pair in pairs.values() if min(len(side.logs) for side in pair) >= MIN_READINGS]
    likely = _PRIOR + sum((side.likelihood for pair in enough for side in pair if side.varies), np.zeros(1))
    weights = np.exp(likely - likely.max())
    error = ERROR / max(1, len(enough))
    return [_difference(what, *pair, weights / weights.sum(), error) for what, pair in pairs.items()]


def _difference(what: str, first: _Series, second: _Series, weights: _Floats, error: float) -> Difference:
    mean, other = (
        float(weights @ side.means) if len(side.logs) >= MIN_READINGS else side.mean for side in (first, second)
    )
    found = Difference(
        what=what,
        first=math.exp(mean),
        second=math.exp(other),
        verdict=Verdict.TOO_FEW,
        ratio=math.exp(other - mean),
    )
    if min(len(first.logs), len(second.logs)) < MIN_READINGS:
        return found
    low = high = other - mean
    if first.varies or second.varies:
        low, high = _interval(first, second, weights, error)
    verdict = Verdict.SAME if max(high, -low) <= math.log1p(TARGET) else Verdict.NOT_SHOWN
    verdict = Verdict.FASTER if low > 0 else Verdict.SLOWER if high < 0 else verdict
    return msgspec.structs.replace(found, verdict=verdict, low=math.exp(low), high=math.exp(high))


class _Series:
    """The logarithms of the readings of one side. Its arrays have a value for each of the correlations."""

    def __init__(self, readings: Sequence[float]) -> None:
        self.logs = np.log(np.asarray(readings, dtype=np.float64))
        self.mean = float(self.logs.mean())
        self.varies = bool(np.ptp(self.logs) > 0)
        self.freedom = len(self.logs) - 1

    @functools.cached_property
    def means(self) -> _Floats:
        """The generalised least squares means: the first and the last reading weigh more than the others."""
        logs, inner = self.logs, 1 - _CORRELATIONS
        means: _Floats = (logs[0] + logs[-1] + inner * logs[1:-1].sum()) / self._weight
        return means

    @property
    def _weight(self) -> _Floats:
        weight: _Floats = len(self.logs) - (len(self.logs) - 2) * _CORRELATIONS
        return weight

    @property
    def _information(self) -> _Floats:
        """The inverse of the variance of the mean, for a variance of 1."""
        information: _Floats = self._weight / (1 + _CORRELATIONS)
        return information

    @functools.cached_property
    def _squares(self) -> _Floats:
        """The sums of the squares of the whitened residuals."""
        left = self.logs - self.means[:, None]
        steps = left[:, 1:] - _CORRELATIONS[:, None] * left[:, :-1]
        squares: _Floats = left[:, 0] ** 2 + (steps**2).sum(axis=1) / (1 - _CORRELATIONS**2)
        return squares

    @property
    def variances(self) -> _Floats:
        """The variances of the means."""
        variances: _Floats = self._squares / self.freedom / self._information
        return variances

    @property
    def likelihood(self) -> _Floats:
        """The logarithm of the restricted likelihood."""
        determinant = self.freedom * np.log1p(-(_CORRELATIONS**2)) + np.log(self._information)
        likelihood: _Floats = -(determinant + self.freedom * np.log(self._squares)) / 2
        return likelihood


_PARTS, _ROUNDS = 8, 4  # of the search for an interval's ends; between the last points it is a line


def _interval(first: _Series, second: _Series, weights: _Floats, error: float) -> tuple[float, float]:
    """The interval of the difference of the means, with Welch's degrees of freedom for each correlation."""
    shifts = second.means - first.means
    variances = first.variances + second.variances
    freedom = variances**2 / (first.variances**2 / first.freedom + second.variances**2 / second.freedom)
    errors = np.sqrt(variances)

    def quantile(share: float) -> float:
        # Of a t with 2 degrees of freedom or more at most 1 / (2 * t ** 2) is above t.
        reach = float(errors.max()) / math.sqrt(error)
        low, high = float(shifts.min()) - reach, float(shifts.max()) + reach
        for _ in range(_ROUNDS):
            points = np.linspace(low, high, _PARTS + 1)
            shares = weights @ t_share((points - shifts[:, None]) / errors[:, None], freedom[:, None])
            after = min(max(1, int(np.searchsorted(shares, share))), _PARTS)
            low, high = float(points[after - 1]), float(points[after])
        return float(np.interp(share, shares[after - 1 : after + 1], (low, high)))

    return quantile(error / 2), quantile(1 - error / 2)


_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(24)
_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def t_share(values: _Floats, freedom: _Floats) -> _Floats:
    """The share of Student's t below each of the values: its density, integrated by Gauss and Legendre's rule."""
    # With t = sqrt(freedom) * tan(angle) the density is a power of the cosine.
    angles = np.arctan(values / np.sqrt(freedom))
    constants = np.exp(_log_gamma((freedom + 1) / 2) - _log_gamma(freedom / 2)) / math.sqrt(math.pi)
    heights = np.cos(angles[..., None] * (_NODES + 1) / 2) ** (freedom[..., None] - 1)
    share: _Floats = 0.5 + constants * angles / 2 * (heights @ _NODE_WEIGHTS)
    return share
