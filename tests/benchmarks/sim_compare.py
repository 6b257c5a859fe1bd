"""The comparison of endpoints against a truth that is known: `python -m tests.benchmarks.sim_compare`.

The real BatchLoader, Measurement and AutoCompare run in virtual time over reader processes that are made up: each takes
as long for a batch as its endpoint's model says. Seeds are fixed and no clock is read, so the figures repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import cast
from unittest import mock

import numpy as np

from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample
from ossconsole.telemetry import events
from ossconsole.telemetry.auto import AutoCompare
from ossconsole.telemetry.compare import Comparison, weighted_mean
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.measure import Measurement
from ossconsole.telemetry.view import RunView
from ossconsole.telemetry.visits import Pairs, Visit
from ossconsole.training.data import TrainingData
from ossconsole.training.loading import loader as loader_module
from ossconsole.training.loading.loader import Batch, BatchLoader
from ossconsole.training.loading.pool import QUEUED
from ossconsole.training.loading.reader import ReaderShare, ReadRequest, ReadResult
from ossconsole.training.plan import BatchRequest, Split
from ossconsole.training.settings import TrainSettings

STANDARD, ACCELERATED = EndpointKind.STANDARD, EndpointKind.ACCELERATED
STEP_S = {64: 0.1, 256: 0.4}
"""Seconds that a batch of that size takes to compute."""

_TICK_S = 0.25  # how often the console looks at the run
_MAX_S = 7200.0
_BLOCK_S = 0.5  # within which the level of a correlated endpoint stays
_EPOCH_BATCHES = 150
_BATCH_MB = {64: 9.6, 256: 38.5}  # image-u8 at 224 px
_PREFETCH_MB = 512


@dataclass(frozen=True)
class Cell:
    """One setup. `standard` and `accelerated` are what the endpoints give as a multiple of the compute rate.

    `noise` is the deviation of the logarithm of a fetch's time; `variation` is how it is correlated over time.
    """

    workers: int
    batch: int
    variation: str
    standard: float = 0.83
    accelerated: float = 1.6
    noise: float = 0.2

    @property
    def same(self) -> bool:
        """Whether both endpoints are one: an A/A test."""
        return self.standard == self.accelerated

    @property
    def name(self) -> str:
        return f"{self.workers} workers, batch {self.batch}, {self.variation}{', A/A' if self.same else ''}"


@dataclass
class FetchTimes:
    """How long fetches take at which moment; `rng` is the run's own."""

    cell: Cell
    rng: np.random.Generator
    level: float = 1.0  # of both endpoints' times, in calibration
    hits: list[tuple[float, float]] = field(default_factory=list)
    """When batches were begun through the cache, and which share of them it held."""
    _levels: dict[EndpointKind, list[float]] = field(default_factory=lambda: {kind: [] for kind in EndpointKind})
    _cached: set[int] = field(default_factory=set)

    def drift(self, now: float) -> float:
        """By what both endpoints' times are multiplied then."""
        return math.exp(0.3 * now / 600) if self.cell.variation == "drifting" else self.level

    def speed(self, kind: EndpointKind) -> float:
        return self.cell.standard if kind is STANDARD else self.cell.accelerated

    def fetch(self, kind: EndpointKind, now: float, rows: list[int]) -> float:
        """Seconds that a reader takes for a batch it begins then."""
        cell, base = self.cell, STEP_S[self.cell.batch] * self.cell.workers
        slow = self.drift(now) / self.speed(kind)
        if cell.variation == "cold to warm" and kind is ACCELERATED:
            hits = sum(row in self._cached for row in rows) / len(rows)
            self._cached.update(rows)
            self.hits.append((now, hits))
            slow = hits / cell.accelerated + (1 - hits) / cell.standard
        took = base * slow * math.exp(self.rng.normal(-(cell.noise**2) / 2, cell.noise))
        if cell.variation == "correlated":
            took *= self._correlated(kind, now)
        elif cell.variation == "stalling" and self.rng.random() < (0.02 if kind is STANDARD or cell.same else 0.01):
            took += 6 * STEP_S[cell.batch]
        return took

    def _correlated(self, kind: EndpointKind, now: float, rho: float = 0.6, deviation: float = 0.15) -> float:
        levels = self._levels[kind]
        while len(levels) <= now / _BLOCK_S:
            before = levels[-1] if levels else self.rng.normal(0, deviation)
            levels.append(rho * before + math.sqrt(1 - rho * rho) * self.rng.normal(0, deviation))
        return math.exp(levels[int(now / _BLOCK_S)])


@dataclass
class _Reader:
    held: deque[ReadRequest] = field(default_factory=deque)
    todo: deque[ReadRequest] = field(default_factory=deque)
    done: deque[ReadResult] = field(default_factory=deque)
    current: ReadRequest | None = None
    kind: EndpointKind = STANDARD
    begun: float = 0.0
    end: float = math.inf


class Pool:
    """A ReaderPool in virtual time."""

    def __init__(self, world: World, share: ReaderShare, workers: int) -> None:
        self._world = world
        self._share = share
        self._readers = [_Reader() for _ in range(workers)]

    @property
    def idle(self) -> bool:
        return any(not reader.held for reader in self._readers)

    def has_room(self, _request: BatchRequest) -> bool:
        return any(len(reader.held) < QUEUED for reader in self._readers)

    def send(self, request: ReadRequest) -> None:
        self._advance()
        reader = min(self._readers, key=lambda each: len(each.held))
        reader.held.append(request)
        reader.todo.append(request)
        if reader.current is None:
            self._begin(reader, self._world.now)

    def poll(self, timeout_s: float) -> list[ReadResult]:
        self._advance()
        if timeout_s and not any(reader.done for reader in self._readers):
            self._world.now = min(reader.end for reader in self._readers)
            self._advance()
        found = []
        for reader in self._readers:  # one result of each pipe that is ready
            if reader.done:
                found.append(reader.done.popleft())
                reader.held.popleft()
        return found

    def close(self) -> None:
        pass

    def _begin(self, reader: _Reader, at: float) -> None:
        reader.current = request = reader.todo.popleft()
        reader.kind, reader.begun = self._share.switch.endpoint, at
        rows: list[int] = self._share.rows_of(request.slot, request.samples).tolist()
        reader.end = at + self._world.fetch_times.fetch(reader.kind, at, rows)

    def _advance(self) -> None:
        for reader in self._readers:
            while reader.current is not None and reader.end <= self._world.now:
                request, at = reader.current, reader.end
                took = at - reader.begun
                reader.done.append(ReadResult(request.number, request.slot, reader.kind, 1, took, 0.0, 0, (), ""))
                reader.current, reader.end = None, math.inf
                if reader.todo:
                    self._begin(reader, at)


class _Plan:
    """Epochs of batches of `rows` samples each, for ever."""

    def __init__(self, rows: int, rng: np.random.Generator) -> None:
        self._rows, self._rng = rows, rng

    def requests(self, start: int = 0) -> Iterator[BatchRequest]:
        for epoch in itertools.count(1):
            order = self._rng.permutation(self._rows * _EPOCH_BATCHES).reshape(-1, self._rows)
            for index, rows in enumerate(order):
                number, last = (epoch - 1) * _EPOCH_BATCHES + index, index == _EPOCH_BATCHES - 1
                yield BatchRequest(number, epoch, Split.TRAIN, index, rows, last)


class _Loader(BatchLoader):
    """The loader without its batches' contents, which cost more time than all the rest."""

    def _batch(self, request: BatchRequest, result: ReadResult, wait_s: float, *, readers_idle: bool) -> Batch:
        return Batch(
            request=request,
            data=self._slots,
            rows=request.indices,
            endpoint=result.endpoint,
            bytes=result.bytes,
            fetch_s=result.seconds,
            decode_s=0.0,
            single_s=None,
            wait_s=wait_s,
            queued=len(self._ready),
            readers_idle=readers_idle,
            retries=result.retries,
            bad=(),
            failed=result.failed,
        )


class World:
    """One run in virtual time: the real loader over made-up readers, and a step that takes STEP_S."""

    def __init__(self, cell: Cell, seed: int, *, level: float = 1.0, start: EndpointKind = STANDARD) -> None:
        self.cell = cell
        self.now = 0.0
        self.rng = np.random.default_rng(seed)
        self.fetch_times = FetchTimes(cell, self.rng, level)
        rows = 8 if cell.variation == "cold to warm" else 1  # samples of a batch as the loader sees it
        samples = tuple(Sample(f"train/a/{number}.u8", 0, 8, 8) for number in range(rows * _EPOCH_BATCHES))
        manifest = Manifest(format=SampleFormat.IMAGE_U8, size=8, classes=("a",), splits={"train": samples})
        settings = TrainSettings(batch_size=rows, workers=cell.workers, epochs=10**6, endpoint=start)
        slots = min(cell.workers * loader_module.MAX_AHEAD + 2, int(_PREFETCH_MB / _BATCH_MB[cell.batch]))
        with (
            mock.patch.object(loader_module, "slot_count", return_value=slots),
            mock.patch.object(
                loader_module, "ReaderPool", lambda _c, share, *_a, workers, **_k: self._pool(share, workers)
            ),
        ):
            self.loader = _Loader(None, TrainingData(manifest, "p"), _Plan(rows, np.random.default_rng(seed)), settings)  # type: ignore[arg-type]

    def _pool(self, share: ReaderShare, workers: int) -> Pool:
        return Pool(self, share, workers)

    def steps(self) -> Iterator[events.Step]:
        """The run's steps, for ever."""
        number, before = 0, 0.0
        while True:
            number += 1
            begun = self.now
            batch = self.loader.next()
            assert batch is not None
            wait = self.now - begun
            self.now += STEP_S[self.cell.batch] * self.rng.normal(1, 0.01)
            took, before = self.now - before, self.now
            yield events.Step(
                time=self.now,
                step=number,
                epoch=batch.request.epoch,
                samples=self.cell.batch,
                loss=1.0,
                lr=0.1,
                endpoint=batch.endpoint,
                data_wait_s=wait,
                step_time_s=took,
                fetch_s=batch.fetch_s,
                bytes=1,
                samples_per_s=self.cell.batch / took,
                compute_s=took - wait,
                queued=batch.queued,
                readers_idle=batch.readers_idle,
            )

    def throughput(self, kind: EndpointKind, batches: int, *, skip: int = 0) -> float:
        """Share of the compute rate that a stretch on an endpoint gives, after `skip` batches of it."""
        self.loader.switch.endpoint = kind
        steps = self.steps()
        for _ in range(skip):
            next(steps)
        begun = self.now
        for _ in range(batches):
            next(steps)
        return batches * STEP_S[self.cell.batch] / (self.now - begun)


@dataclass(frozen=True)
class Outcome:
    """What came of a run: the comparison, the truth (nan where there was no estimate), visits, and virtual seconds.

    `decided_visits` had been made when the interval first decided, nan where it never did; `visits` are those of the
    whole run, until it was precise too.
    """

    comparison: Comparison
    truth: float
    decided_visits: float
    visits: int
    seconds: float

    @property
    def covered(self) -> bool:
        found = self.comparison.estimate
        return found is not None and found.low <= self.truth <= found.high

    @property
    def error(self) -> float:
        found = self.comparison.estimate
        return math.inf if found is None else abs(found.ratio / self.truth - 1)


Truth = Callable[[FetchTimes, EndpointKind, float, float], float]
"""The throughput of an endpoint in the long run, with the fetch times between two moments."""


class _Run:
    """What AutoCompare reads of a RunView, whose charts are not what is tested, and cost most."""

    def __init__(self) -> None:
        self.measurement = Measurement()
        self.endpoint: EndpointKind | None = None

    @property
    def comparison(self) -> Comparison:
        return self.measurement.comparison

    @property
    def visits(self) -> int:
        return sum(self.measurement.figures(kind).visits for kind in EndpointKind)

    def apply(self, event: events.Event) -> None:
        self.measurement.apply(event)
        if isinstance(event, events.Switch):
            self.endpoint = event.endpoint


def compared(cell: Cell, seed: int, truth: Truth) -> Outcome:
    """One run with auto-A/B to its end."""
    world = World(cell, seed)
    with contextlib.closing(world.loader):  # a table has thousands of runs, each with shared memory
        return _run_to_end(world, seed, truth)


def _run_to_end(world: World, seed: int, truth: Truth) -> Outcome:
    cell, run, auto = world.cell, _Run(), AutoCompare(seed)
    run.endpoint = STANDARD
    settings = {"batch_size": cell.batch, "workers": cell.workers, "endpoint": "standard"}
    run.apply(events.Run(time=0, run="r", version="0", settings=settings, epochs=10**6, steps_per_epoch=_EPOCH_BATCHES))
    run.apply(events.State(time=0, state=RunState.RUNNING))
    truths: dict[bool, list[tuple[float, float]]] = {True: [], False: []}  # and the pairs' weights
    switched = tick = 0.0

    def noted(pairs: Pairs, standard: Visit, accelerated: Visit, weight: float) -> bool:
        cold = pairs is run.measurement.visits.pairs[True]
        first = run.endpoint is ACCELERATED  # the visit of the endpoint in use came after the switch
        ends = {ACCELERATED: world.now if first else switched, STANDARD: switched if first else world.now}
        both = {
            visit.kind: truth(world.fetch_times, visit.kind, ends[visit.kind] - visit.seconds, ends[visit.kind])
            for visit in (standard, accelerated)
        }
        truths[cold].append((math.log(both[ACCELERATED] / both[STANDARD]), weight))
        return add(pairs, standard, accelerated, weight)

    add = Pairs.add
    epoch, looks, decided_visits = 1, 0, math.nan
    with mock.patch.object(Pairs, "add", noted):
        for step in world.steps():
            if step.epoch != epoch:
                size = _EPOCH_BATCHES * cell.batch
                run.apply(
                    events.Epoch(
                        time=step.time,
                        epoch=epoch,
                        train_loss=1,
                        val_loss=None,
                        top1=None,
                        top5=None,
                        seconds=1,
                        samples=size,
                    )
                )
                epoch = step.epoch
            run.apply(step)
            if run.measurement.looks != looks:
                looks = run.measurement.looks
                if math.isnan(decided_visits) and run.comparison.decided:
                    decided_visits = run.visits
            if world.now >= tick:
                tick = world.now + _TICK_S
                kind = auto.decide(cast(RunView, run))
                if kind is not None and not auto.done:
                    switched = world.now
                    world.loader.switch.endpoint = kind
                    run.apply(events.Switch(time=world.now, endpoint=kind, reason="auto A/B", step=step.step))
            if auto.done or world.now > _MAX_S:
                break
    found = run.comparison
    used = truths[found.cold][: found.estimate.pairs if found.estimate else 0]
    truth_of_run = math.exp(weighted_mean(*zip(*used, strict=True))) if used else math.nan
    return Outcome(found, truth_of_run, decided_visits, run.visits, world.now)


@functools.cache
def _long_run(cell: Cell, kind: EndpointKind, level: float, batches: int) -> float:
    """The throughput of long stretches on one endpoint."""
    worlds = [World(cell, seed, level=level, start=kind) for seed in range(980, 984)]
    return statistics.harmonic_mean([world.throughput(kind, batches // 4, skip=200) for world in worlds])


def calibrated(cell: Cell, batches: int = 8000) -> Truth:
    """The truth of a cell, from long stretches on one endpoint."""
    changing = cell.variation in {"cold to warm", "drifting"}
    steady = replace(cell, variation="independent") if changing else cell

    def long_run(kind: EndpointKind, level: float, count: int) -> float:
        if kind is STANDARD or cell.same:  # the other endpoint does not matter, so that one run serves several cells
            return _long_run(replace(steady, accelerated=steady.standard), STANDARD, level, count)
        return _long_run(steady, kind, level, count)

    if not changing:
        count = (
            batches if cell.variation == "independent" else 5 * batches
        )  # what is correlated or rare averages slowly
        fixed = {kind: long_run(kind, 1.0, count) for kind in EndpointKind}
        return lambda _fetch_times, kind, _since, _until: fixed[kind]
    logs = np.linspace(0, 1, 6)
    table = {kind: [long_run(kind, math.exp(log), batches // 3) for log in logs] for kind in EndpointKind}

    def throughput(fetch_times: FetchTimes, kind: EndpointKind, since: float, until: float) -> float:
        if cell.variation == "drifting":
            return float(np.interp(math.log(fetch_times.drift((since + until) / 2)), logs, table[kind]))
        if kind is STANDARD:
            return table[kind][0]
        hits = statistics.fmean(share for at, share in fetch_times.hits if since <= at <= until)
        return float(np.interp(math.log(hits + (1 - hits) * cell.accelerated / cell.standard), logs, table[kind]))

    return throughput


@dataclass(frozen=True)
class Row:
    """What a cell's runs came to. Shares are of all runs; `error` and visits of those that were decided.

    `visits` is the median at the first decision, `visits_in_all` at the end, where the ratio is precise.
    """

    cell: str
    truth: float
    coverage: float
    decided: float
    error_p95: float
    visits: float
    visits_in_all: float
    precise: float
    seconds: float
    runs: int


def measured(cell: Cell, runs: int, first_seed: int = 0) -> Row:
    """A cell's runs, by seed."""
    truth = calibrated(cell)
    found = [compared(cell, first_seed + number, truth) for number in range(runs)]
    decided = [each for each in found if each.comparison.decided]
    return Row(
        cell=cell.name,
        truth=statistics.median(each.truth for each in found),
        coverage=sum(each.covered for each in found) / runs,
        decided=len(decided) / runs,
        error_p95=float(np.quantile([each.error for each in decided], 0.95)) if decided else math.nan,
        visits=statistics.median(each.decided_visits for each in decided) if decided else math.nan,
        visits_in_all=statistics.median(each.visits for each in decided) if decided else math.nan,
        precise=sum(each.comparison.estimate is not None and each.comparison.estimate.precise for each in found) / runs,
        seconds=statistics.median(each.seconds for each in found),
        runs=runs,
    )


VARIATIONS = ("independent", "correlated", "drifting", "stalling", "cold to warm")
CELLS = [Cell(workers, batch, variation) for variation in VARIATIONS for workers in (1, 2, 4, 8) for batch in STEP_S]
SAME = [
    Cell(workers, batch, variation, accelerated=Cell.standard)
    for variation in VARIATIONS[:-1]
    for workers in (1, 2, 4, 8)
    for batch in STEP_S
]


@dataclass(frozen=True)
class Adapted:
    """The throughput of an endpoint after a stretch on a faster one, as a share of that on it alone."""

    workers: int
    noise: float
    gives: float
    share: float


def adapted(workers: int, noise: float, gives: float, batches: int = 3000) -> Adapted:
    """As `review`'s t_adapt: 600 batches on an endpoint of twice the compute rate come before."""
    cell = Cell(workers, 64, "independent", standard=gives, accelerated=2.0, noise=noise)
    alone = World(cell, 3).throughput(STANDARD, batches, skip=200)
    used = World(cell, 3)
    used.throughput(ACCELERATED, 600)
    return Adapted(workers, noise, gives, used.throughput(STANDARD, batches, skip=200) / alone)


ADAPTED = [(workers, noise, gives) for noise in (0.05, 0.2) for workers in (1, 2, 4, 8) for gives in (0.85, 0.6)]


def failures(rows: list[Row], adapted_rows: list[Adapted]) -> list[str]:
    """Which floors are missed."""
    missed = [f"{row.cell}: coverage {row.coverage:.1%} < 93 %" for row in rows if row.coverage < 0.93]
    missed += [f"{row.cell}: error {row.error_p95:.1%} > 5 %" for row in rows if row.error_p95 > 0.05]
    missed += [
        f"{row.cell}: {row.visits:g} visits > 24"
        for row in rows
        if row.visits > 24 and row.cell.endswith("independent") and row.truth < 1.25
    ]
    missed += [f"{row}: < 0.98" for row in adapted_rows if row.share < 0.98]
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others follow it")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    cells = [cell for cell in (*CELLS, *SAME) if chosen.only in cell.name]
    with multiprocessing.get_context("spawn").Pool(chosen.jobs) as pool:
        after = [pool.apply_async(adapted, setup) for setup in ADAPTED] if not chosen.only else []
        pending = [pool.apply_async(measured, (cell, chosen.runs, chosen.seed)) for cell in cells]
        adapted_rows, rows = [each.get() for each in after], []
        for each in pending:
            rows.append(each.get())
            if not chosen.json:
                _say(_words(rows[-1]))
    missed = failures(rows, adapted_rows)
    if chosen.json:
        tables = {"rows": [vars(row) for row in rows], "adapted": [vars(row) for row in adapted_rows]}
        _say(json.dumps({**tables, "missed": missed}))
    else:
        for found in adapted_rows:
            _say(f"{found.workers} workers, noise {found.noise}, gives {found.gives}: {found.share:.3f} of alone")
        _say("\n".join(missed) or "all floors are kept")
    return bool(missed)


def _words(row: Row) -> str:
    return (
        f"{row.cell:48s} truth {row.truth:.3f}  coverage {row.coverage:6.1%}  decided {row.decided:6.1%}  "
        f"precise {row.precise:6.1%}  error p95 {row.error_p95:5.1%}  visits {row.visits:3.0f} then "
        f"{row.visits_in_all:3.0f}  {row.seconds:5.0f} s"
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
