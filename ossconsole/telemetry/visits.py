"""Visits of endpoints, cut out of a run's steps; each switch makes one pair: the visit before it and the one after.

A stretch is the time between two switches. Batches that were prefetched from the other endpoint, and the first turn of
all readers, are left out: the endpoint is settling. The first visit of a stretch takes as long as a visit must; the
rest, up to the next switch, is the second one. So a stretch in the middle has one visit of each of two pairs. A
switch makes no pair where the stretch before it was too short for its second visit.

How long a visit must be does not depend on what is read: it is VISIT_S, and longer where that holds too few turns of
the readers or drains of the read-ahead. The number of pairs makes the interval narrow. Visits get longer only if a look
at the pairs shows that too many would be needed, or that neighbouring pairs are correlated.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.cache import HitRate, TimeCounts, count_time
from ossconsole.telemetry.compare import LOOKS, TARGET, Estimate, Side, estimate, lag_correlation
from ossconsole.telemetry.events import Step
from ossconsole.telemetry.series import Quantiles

VISIT_S = 3.0
"""A visit lasts at least this long; longer where it holds too few turns of the readers or drains of the read-ahead."""

_MAX_VISIT_S = 60.0
_MIN_SETTLING = 4  # batches of the endpoint switched to; a turn of all readers at least
_TURNS = 4  # of all readers in a visit
_DRAINS = 2  # of what is read ahead
_CORRELATION = 0.2  # between neighbouring pairs, above which visits grow
_ALIKE_GROWTH = 1.5
_GROWTH = 2.0  # at most, from one look to the next
_PAIRS_WANTED = 13  # that shall be enough; visits grow where they are not

_KEPT_TURNS = 512
_KEPT_VISITS = 128
_STALL = 3.0  # a turn that takes this many times the median one stalls
_MIN_TURNS = 8  # turns before one is called typical
FIGURE_S = 0.5
FIGURE_STEPS = 4
"""Fewer settled steps than this give no figures of an endpoint."""


class Waiting(msgspec.Struct, frozen=True):
    """The number of batches read ahead at a step; `full` where the limit was reached."""

    batches: int
    full: bool

    @classmethod
    def at(cls, step: Step) -> Waiting:
        """The read-ahead that `step` reports."""
        return cls(step.queued, step.readers_idle)

    def grown_from(self, before: Waiting) -> int:
        """The number of batches by which it grew. Two full ones count as equal: batches in progress say nothing
        then."""
        return 0 if self.full and before.full else self.batches - before.batches


class Tally:
    """Sums over settled steps. `grown` is by how many batches the read-ahead grew until the last interruption."""

    def __init__(self) -> None:
        self.steps = 0
        self.samples = 0
        self.grown = 0
        self.seconds = 0.0
        self.wait_s = 0.0
        self.copy_s = 0.0
        self.compute_s = 0.0
        self.decode_s = 0.0
        self.bytes = 0
        self.cold = 0
        self.singles = TimeCounts()
        self._from: Waiting | None = None
        self._to: Waiting | None = None

    def add(self, step: Step, before: Waiting, *, cold: bool) -> None:
        """Count a step; `before` is the read-ahead when it began."""
        self.steps += 1
        self.samples += step.samples
        if self._from is None:
            self._from = before
        self._to = Waiting.at(step)
        self.seconds += step.step_time_s
        self.wait_s += step.data_wait_s
        self.copy_s += step.copy_s
        self.compute_s += step.compute_s
        self.decode_s += step.decode_s
        self.bytes += step.bytes
        self.cold += cold
        count_time(self.singles, step)

    def cut(self) -> None:
        """The next step does not follow the last one."""
        self.grown, self._from, self._to = self._grown, None, None

    @property
    def _grown(self) -> int:
        open_ = self._to.grown_from(self._from) if self._to is not None and self._from is not None else 0
        return self.grown + open_

    def __add__(self, other: Tally) -> Tally:
        total = Tally()
        for name in _SUMS:
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total.grown = self._grown + other._grown
        return total

    @property
    def rate(self) -> float:
        """Samples/s that arrived, at most what the compute could use; 0 where nothing did.

        What arrived is what was used and by how much the read-ahead grew: after a switch to a slower endpoint the steps
        keep their pace for a while, but the read-ahead runs dry.
        """
        if self.seconds <= 0:
            return 0.0
        arrived = self.samples * (1 + self._grown / self.steps)
        busy = max(self.seconds - self.wait_s, 1e-9)
        return max(0.0, min(arrived / self.seconds, self.samples / busy))


_SUMS = ("steps", "samples", "seconds", "wait_s", "copy_s", "compute_s", "decode_s", "bytes", "cold", "singles")


class Visit(msgspec.Struct, frozen=True):
    """One reading: a whole visit.

    `hit_rate` is the estimated share of samples that came from the accelerator's cache, None where it is unknown.
    `cold` is True while the cache was still filling.
    """

    kind: EndpointKind
    samples_per_s: float
    seconds: float
    steps: int
    hit_rate: float | None
    cold: bool


class EndpointFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of an endpoint while settled. They are None where too little was measured.

    `samples_per_s` is the mean over the time, of what arrived, at most what the compute could use. `visits` were
    completed; nine tenths of them lie between `rate_low` and `rate_high`. `typical_step_s` is the median time of a
    step, taken over turns of all readers, who deliver in bursts. `cold` is True where most of the samples were read
    for the first time through a caching endpoint; `cold_rate` and `warm_rate` are set where both
    were seen. `copy_s` and `compute_s` are means per step. `decoding` is the mean number of readers that
    were decoding.
    """

    kind: EndpointKind
    steps: int = 0
    visits: int = 0
    samples_per_s: float | None = None
    typical_step_s: float | None = None
    stall_share: float | None = None
    step_p50: float | None = None
    step_p95: float | None = None
    fetch_p50: float | None = None
    fetch_p95: float | None = None
    wait_fraction: float | None = None
    bytes_per_s: float | None = None
    cold: bool = False
    rate_low: float | None = None
    rate_high: float | None = None
    cold_rate: float | None = None
    warm_rate: float | None = None
    copy_s: float | None = None
    compute_s: float | None = None
    decoding: float | None = None

    def side(self, samples_per_epoch: int) -> Side:
        """This endpoint's side of a comparison; `samples_per_epoch` 0 where not known."""
        rate = self.samples_per_s
        minutes = samples_per_epoch / rate / 60 if rate and samples_per_epoch else None
        return Side(samples_per_s=rate, minutes_per_epoch=minutes, stall_share=self.stall_share)


class _Part:
    """The settled steps of one endpoint with one temperature of the cache, in constant memory."""

    def __init__(self, workers: int) -> None:
        self.tally = Tally()
        self.visits: deque[float] = deque(maxlen=_KEPT_VISITS)
        self.count = 0
        self.turns: deque[float] = deque(maxlen=_KEPT_TURNS)
        self.step_times = Quantiles()
        self.fetch_times = Quantiles()
        self._workers = workers
        self._turn: list[float] = []

    def add(self, step: Step, before: Waiting, *, cold: bool) -> None:
        self.tally.add(step, before, cold=cold)
        self.step_times.add(step.step_time_s)
        self.fetch_times.add(step.fetch_s)
        self._turn.append(step.step_time_s)
        if len(self._turn) >= self._workers:
            self.turns.append(sum(self._turn))
            self._turn.clear()

    def cut(self) -> None:
        """The next step does not follow the last one: a turn holds steps that do."""
        self._turn.clear()
        self.tally.cut()

    def keep(self, visit: Visit) -> None:
        self.visits.append(visit.samples_per_s)
        self.count += 1

    @property
    def rate(self) -> float | None:
        enough = self.tally.steps >= max(FIGURE_STEPS, self._workers) and self.tally.seconds >= FIGURE_S
        return self.tally.rate if enough else None

    @property
    def typical_step_s(self) -> float | None:
        return statistics.median(self.turns) / self._workers if len(self.turns) >= _MIN_TURNS else None

    @property
    def stall_share(self) -> float | None:
        if len(self.turns) < _MIN_TURNS:
            return None
        typical, total = statistics.median(self.turns), sum(self.turns)
        return sum(turn - typical for turn in self.turns if turn > _STALL * typical) / total if total > 0 else None


class EndpointWindow:
    """One endpoint's settled steps; cold and warm cache are kept apart."""

    def __init__(self, kind: EndpointKind, workers: int = 1) -> None:
        self.kind = kind
        self.parts = {cold: _Part(workers) for cold in (True, False)}

    def add(self, step: Step, before: Waiting, *, cold: bool) -> None:
        """Count a settled step; `before` as in Tally."""
        self.parts[cold].add(step, before, cold=cold)
        self.parts[not cold].cut()

    def cut(self) -> None:
        """The next step does not follow the last one."""
        for part in self.parts.values():
            part.cut()

    @property
    def cold(self) -> bool:
        """Whether the figures are those of a cold cache: until there are enough of a warm one."""
        return self.parts[False].rate is None and self.parts[True].tally.steps > 0

    def figures(self) -> EndpointFigures:
        """The metrics of the endpoint so far, of a cold or of a warm cache."""
        part = self.parts[self.cold]
        tally = part.tally
        low, high = _nine_tenths(part.visits)
        return EndpointFigures(
            kind=self.kind,
            steps=tally.steps,
            visits=part.count,
            samples_per_s=part.rate,
            typical_step_s=part.typical_step_s,
            stall_share=part.stall_share,
            step_p50=part.step_times.p50,
            step_p95=part.step_times.p95,
            fetch_p50=part.fetch_times.p50,
            fetch_p95=part.fetch_times.p95,
            wait_fraction=_share(tally.wait_s, tally.seconds),
            bytes_per_s=_share(tally.bytes, tally.seconds),
            cold=self.cold,
            rate_low=low,
            rate_high=high,
            cold_rate=self.parts[True].rate,
            warm_rate=self.parts[False].rate,
            copy_s=_share(tally.copy_s, tally.steps),
            compute_s=_share(tally.compute_s, tally.steps),
            decoding=_share(tally.decode_s, tally.seconds),
        )


class Pairs:
    """The pairs of one temperature of the cache, and the estimate of the last look."""

    def __init__(self) -> None:
        self.count = 0
        self.looks = 0
        self.estimate: Estimate | None = None
        self.correlation = 0.0
        self._log_ratios: list[float] = []
        self._weights: list[float] = []

    def add(self, standard: Visit, accelerated: Visit, weight: float = 1.0) -> bool:
        """Take a pair; True where it led to a new estimate. `weight` is the planned length of its visits relative to
        the first ones. The actual length depends on their rates, and would bias the mean.
        """
        self.count += 1
        if len(self._log_ratios) == LOOKS[-1]:
            return False
        self._log_ratios.append(math.log(accelerated.samples_per_s / standard.samples_per_s))
        self._weights.append(weight)
        found = estimate(self._log_ratios, self._weights)
        if found is None:
            return False
        self.looks += 1
        self.estimate, self.correlation = found, lag_correlation(self._log_ratios, self._weights)
        return True

    @property
    def missing(self) -> float:
        """The weight that each further pair needs so that the interval is precise at _PAIRS_WANTED pairs or the next
        look."""
        found = self.estimate
        if found is None or self.count >= LOOKS[-1]:
            return 0.0
        half = math.log(found.high / found.low) / 2 / math.log1p(TARGET)
        until = next(look for look in LOOKS if look > found.pairs and look >= _PAIRS_WANTED)
        return sum(self._weights) * (half * half - 1) / (until - found.pairs)


class Visits:
    """Cuts the settled steps of a run into visits and pairs. Call `switch`, `interrupt` and `add` as they happen."""

    def __init__(self, workers: int = 1, hit_rate: Callable[[TimeCounts], HitRate | None] = lambda _: None) -> None:
        self.growth = 1.0
        """The planned length of the visits, relative to the first ones."""
        self._hit_rate = hit_rate  # by the times of single samples
        self.pairs = {cold: Pairs() for cold in (True, False)}
        self.windows = {kind: EndpointWindow(kind, workers) for kind in EndpointKind}
        self.short = 0
        """Stretches in a row that were too short for a visit."""
        self._workers = workers
        self._turn = max(workers, _MIN_SETTLING)
        self._kind: EndpointKind | None = None
        self._waiting: Waiting | None = None  # at the last step; None where the next one does not follow it
        self._peak = 0
        self._settling = 0
        self._drained = True
        self._before: Visit | None = None  # of the other endpoint, waiting for its partner
        self._complete = False  # whether the first visit of the stretch is over
        self._paired = False  # whether it is in a pair
        self._first = Tally()
        self._rest = Tally()

    def start(self, kind: EndpointKind, settling: int) -> None:
        """The run starts or resumes on an endpoint; its first `settling` batches do not count."""
        self._kind, self._settling, self._before = kind, settling, None
        self._begin_stretch()

    def switch(self, kind: EndpointKind) -> None:
        """Batches requested from now on come from `kind`."""
        if kind is self._kind:
            return
        self._before = self._last_visit()
        self._kind = kind
        self._settling, self._drained = self._turn, False
        self.short = 0 if self._before is not None else self.short + 1
        self._begin_stretch()

    def _begin_stretch(self) -> None:
        self._first, self._rest = Tally(), Tally()
        self._complete = self._paired = False
        self.interrupt()

    def _last_visit(self) -> Visit | None:
        """The visit of the stretch that ends: the part that is in no pair yet, if it is long enough."""
        assert self._kind is not None or not self._first.steps  # noqa: S101 - steps are counted after a start only
        tally = self._rest if self._paired else self._first + self._rest
        if self._kind is None or not self.enough(tally):
            return None
        return self._visit(self._kind, tally)

    def _visit(self, kind: EndpointKind, tally: Tally) -> Visit:
        hits = self._hit_rate(tally.singles) if kind is EndpointKind.ACCELERATED else None
        cold = hits.cold if hits is not None else None
        if cold is None:
            cold = tally.cold * 2 > tally.steps
        visit = Visit(kind, tally.rate, tally.seconds, tally.steps, hits.reported if hits is not None else None, cold)
        self.windows[kind].parts[cold].keep(visit)
        return visit

    def interrupt(self) -> None:
        """Time passed that no step accounts for (a pause, a validation)."""
        self._waiting = None
        for window in self.windows.values():
            window.cut()
        self._first.cut()
        self._rest.cut()

    def follow(self, step: Step) -> None:
        """Take a step that does not count, but that the next counted step follows."""
        self._waiting = Waiting.at(step)
        self._peak = max(self._peak, step.queued)

    def add(self, step: Step, *, cold: bool) -> None:
        """Take a step; it counts where it is settled."""
        before = self._waiting
        self.follow(step)
        kind = step.endpoint
        if kind is None or kind is not self._kind:
            return
        self._drained = True
        if self._settling:
            self._settling -= 1
            return
        if before is None or step.step_time_s <= 0:
            return
        self.windows[kind].add(step, before, cold=cold)
        (self._rest if self._complete else self._first).add(step, before, cold=cold)
        if not self._complete and self.enough(self._first):
            self._complete = True
            self._pair_up()

    def _pair_up(self) -> None:
        """The first visit of the stretch is complete; it makes a pair with the one before the switch."""
        assert self._kind is not None  # noqa: S101 - steps are counted after a start only
        before, self._before = self._before, None
        if before is None:
            return
        visit = self._visit(self._kind, self._first)
        self._paired = True
        both = {before.kind: before, visit.kind: visit}
        accelerated = both[EndpointKind.ACCELERATED]
        if min(before.samples_per_s, visit.samples_per_s) <= 0:
            return
        pairs = self.pairs[accelerated.cold]
        if pairs.add(both[EndpointKind.STANDARD], accelerated, self.growth):
            self._grow(pairs, min(before.seconds, visit.seconds))

    def _grow(self, pairs: Pairs, seconds: float) -> None:
        """Longer visits than those of `seconds` where neighbours are alike, or too many pairs would be needed."""
        factor = max(_ALIKE_GROWTH if pairs.correlation > _CORRELATION else 1.0, pairs.missing / self.growth)
        self.growth *= max(1.0, min(factor, _GROWTH, _MAX_VISIT_S / seconds))

    def enough(self, tally: Tally, times: float = 1.0) -> bool:
        """Whether it is long enough for `times` visits. After _MAX_VISIT_S each they need not have grown."""
        steps = max(_TURNS * self._workers, _DRAINS * self._peak)
        grown = times if tally.seconds >= times * _MAX_VISIT_S else times * self.growth
        return tally.seconds >= grown * VISIT_S and tally.steps >= grown * steps

    @property
    def complete(self) -> bool:
        """Whether the first visit of the stretch is over: the pair of the last switch is made then."""
        return self._complete

    def ripe(self, times: float) -> bool:
        """Whether the stretch has given the pair of the last switch, and `times` a visit for the next one."""
        if self._paired:
            return self.enough(self._rest, times)
        return self._complete and self.enough(self._first + self._rest, times)

    @property
    def settling(self) -> tuple[int, int] | None:
        """How many of the batches that settle after a switch are still to come, of how many; None when settled."""
        if self._drained and not self._settling:
            return None
        return self._turn - self._settling, self._turn

    @property
    def cold(self) -> bool:
        """Whether the pairs to report are those of a cold cache: until there was a look at those of a warm one."""
        return self.pairs[False].estimate is None and self.pairs[True].count > self.pairs[False].count


def decode_share(decode_s: float, seconds: float, workers: int) -> float | None:
    """The share of the time of `workers` readers in which they decode, 0 to 1; None where `seconds` is 0.

    Not their share of `fetch_s`: of batches that a reader fetches together, each holds the time of the other.
    """
    return min(1.0, decode_s / (seconds * workers)) if seconds > 0 else None


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _nine_tenths(values: deque[float]) -> tuple[float | None, float | None]:
    """The bounds of the middle nine tenths; of all where they are few."""
    if not values:
        return None, None
    ordered = sorted(values)
    cut = len(ordered) // 20
    return ordered[cut], ordered[-1 - cut]
