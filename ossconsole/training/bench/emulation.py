"""`bench --emulate`: how many emulated accelerators an endpoint feeds, and whether host or storage limits it."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import Profile
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import TRAIN
from ossconsole.storage.accelerator import find_accelerator
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry.host import free_memory
from ossconsole.training.bench.accelerators import AcceleratorGroup, AcceleratorTask
from ossconsole.training.bench.buyers import BuyersTable, DatasetFacts, Measured, buyers_table
from ossconsole.training.bench.mount import folder_settings
from ossconsole.training.bench.results import CacheState, Quantiles, ReadPath, stall_share
from ossconsole.training.bench.workloads import (
    CALIBRATED_AU,
    MIN_AU,
    NOT_A_RESULT,
    RuleCheck,
    Steps,
    Workload,
    largest_passing,
    unmet_rules,
)
from ossconsole.training.data import USUAL_SIZE, training_data
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.settings import TrainSettings

_BUSY = 0.75  # share of the time that readers run or wait for a processor, from which on they are the limit
_CALIBRATION_S = 2.0
_CALIBRATION_STEPS = 10  # at least
_CLOSE = 0.03  # to the least AU: such a trial is repeated, and the mean counts
_REPEATS = 3  # trials at most
_AHEAD = 2  # batches for each reader that are read ahead when a trial ends
_MEMORY_PER_ACCELERATOR = 600_000_000  # bytes: torch in its process, besides the batch buffers (seen with 2.14)
_MAX_ACCELERATORS = 64


class EmulationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of an emulation. `accelerators` are the numbers to try; none: search for the most that pass.

    Each number is tried `rounds` times on each endpoint, in ABBA order; a search is made once. `workers` are those of
    each accelerator. `mount` is a folder that has the bucket's objects as files: a third path beside the endpoints.
    """

    workload: Workload
    accelerators: tuple[int, ...] = ()
    steps: int = 100
    rounds: int = 2
    workers: int = 2
    endpoints: tuple[EndpointKind, ...] = tuple(EndpointKind)
    dataset: str = ""
    mount: Path | None = None


class _EmulationEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float


class Calibration(_EmulationEvent, frozen=True, kw_only=True, tag="calibration"):
    """The AU of that many accelerators with a buffer that is always full; 99 % on a host that is fast enough."""

    accelerators: int
    au: float
    passed: bool


class Warming(_EmulationEvent, frozen=True, kw_only=True, tag="warming"):
    """The first read of the samples of the next trials through an endpoint, by all accelerators, at full speed."""

    path: str
    accelerators: int
    samples: int
    samples_per_s: float
    bytes_per_s: float
    simulated: bool


class Trial(_EmulationEvent, frozen=True, kw_only=True, tag="trial"):
    """One measurement; a cold one reads samples that were not read through the path before.

    `au` is DLIO's, of all steps but the first, the mean of all accelerators, 0 to 1.
    `sustained_au` leaves out the steps that only drained what was read ahead; it decides whether the trial `passed`.
    Rates are over all steps. `readers_busy` is the share of the time that a reader ran or waited for a processor,
    the mean of all. `step` and `fetch` are seconds of a step of all accelerators, and of a reader for a batch.
    `stall_share` is the share of the time in steps of more than 3 times the
    median, beyond the median.
    """

    path: str
    accelerators: int
    round: int
    steps: int
    au: float
    sustained_au: float
    passed: bool
    samples_per_s: float
    bytes_per_s: float
    readers_busy: float
    step: Quantiles
    fetch: Quantiles
    stall_share: float
    simulated: bool
    temperature: CacheState = CacheState.WARM


class Fed(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a number of accelerators on an endpoint: the mean of its trials, and the deviation of their AU.

    `cold_au` is DLIO's AU of the trials on samples that were not read before, `cold_sigma` its deviation. It is None
    on the standard endpoint, which has no cache, and where the dataset has too few samples. It decides nothing.
    """

    path: str
    accelerators: int
    trials: int
    au: float
    au_sigma: float
    sustained_au: float
    samples_per_s: float
    bytes_per_s: float
    passed: bool
    calibrated_au: float
    readers_busy: float
    cold_au: float | None = None
    cold_sigma: float = 0.0


class PathResult(msgspec.Struct, frozen=True, kw_only=True):
    """How many accelerators an endpoint feeds: the most that passed, 0 for none. `words` say what limits it.

    `limit` is "storage", "host", or "" where no number failed. `fed` are all numbers that were tried, ascending.
    """

    path: str
    accelerators: int
    limit: str
    words: str
    fed: tuple[Fed, ...]


class EmulationSummary(_EmulationEvent, frozen=True, kw_only=True, tag="emulation"):
    """The result, the last line. `dlio` has DLIO's names for the best trial of each path.

    `page_cache` says how this machine's page cache was kept out of the readings of a mounted folder.
    """

    workload: Workload
    dataset: str
    format: str
    stored_as: str
    bytes_per_sample: float
    workers: int
    simulated: bool
    paths: tuple[PathResult, ...]
    unmet_rules: tuple[str, ...]
    note: str = NOT_A_RESULT
    buyers: BuyersTable | None = None
    page_cache: str = ""
    dlio: dict[str, dict[str, float | str]] = {}


EmulationEvent: TypeAlias = Calibration | Warming | Trial | EmulationSummary


@dataclass
class _Path:
    """An endpoint: its name, its connector, whether it has a cache, and how many samples of an epoch were read."""

    name: str
    connector: ConnectorSettings
    kind: EndpointKind
    cached: bool = False
    read: int = 0
    trials: list[Trial] = field(default_factory=list)


class Emulation:
    """Runs the trials; `on_event` gets each at once. Raises ConsoleError."""

    def __init__(
        self,
        profile: Profile,
        credentials: CredentialSource,
        settings: EmulationSettings,
        on_event: Callable[[EmulationEvent], None] = lambda _: None,
    ) -> None:
        self._profile = profile
        self._credentials = credentials
        self._settings = settings
        self._on_event = on_event
        self._calibrated: dict[int, float] = {}
        prefix = settings.dataset or profile.dataset_prefix
        with contextlib.closing(ObjectStore(profile, credentials)) as store:
            self._data = training_data(store, prefix)
        connector = ConnectorSettings.of(profile, credentials)
        self._paths = [
            _Path(str(kind), _on_dataset(connector, prefix), kind, cached=kind is EndpointKind.ACCELERATED)
            for kind in settings.endpoints
            if profile.endpoint(kind)
        ]
        if not self._paths:
            raise SettingsError(f"Profile {profile.name!r} has none of these endpoints.", remedy="Add one in Setup.")
        self._page_cache = ""
        if settings.mount is not None:
            folder = folder_settings(_on_dataset(connector, prefix), self._data, settings.mount)
            self._page_cache = str(folder.cache)
            self._paths.append(_Path(str(ReadPath.MOUNT), folder, EndpointKind.STANDARD, cached=True))
        self._group = AcceleratorGroup(self._data, connector.native_log)

    def run(self) -> EmulationSummary:
        """All trials; the summary is also the last event."""
        with contextlib.closing(self._group):
            if self._settings.accelerators:
                self._try_all(self._settings.accelerators)
            else:
                for path in self._paths:
                    self._search(path)
        summary = self._summary()
        self._on_event(summary)
        return summary

    def _try_all(self, numbers: Sequence[int]) -> None:
        for round_ in range(self._settings.rounds):
            for number in numbers:
                for path in self._paths if round_ % 2 == 0 else self._paths[::-1]:
                    self._try(path, number, round_)

    def _search(self, path: _Path) -> None:
        """Finds the largest number that passes, up to what the memory of this machine holds."""

        def passes(number: int) -> bool:
            while True:
                trials = [each for each in _warm_trials(path.trials) if each.accelerators == number]
                mean = statistics.mean(each.sustained_au for each in trials) if trials else 0.0
                if trials and (abs(mean - MIN_AU) > _CLOSE or len(trials) >= _REPEATS):
                    return mean >= MIN_AU
                self._try(path, number, len(trials))

        largest_passing(passes, self.most)

    @property
    def most(self) -> int:
        """The most accelerators that a search tries: what the free memory holds."""
        settings = self._settings
        row_bytes = max(1, int(self._bytes_per_sample), 3 * self._data.image_size(0) ** 2)
        buffers = settings.workload.batch_size * row_bytes * 4 * (settings.workers + 2)
        return max(1, min(_MAX_ACCELERATORS, free_memory() // (_MEMORY_PER_ACCELERATOR + buffers)))

    def _try(self, path: _Path, number: int, round_: int) -> None:
        """One trial, after the calibration of that number and the first read of its samples.

        Through a cache the first read is a trial too, where enough samples were never read.
        """
        if number not in self._calibrated:
            self._calibrate(number)
        settings, count = self._settings, self._data.count(TRAIN)
        span = number * settings.workload.batch_size  # samples of a step
        first, needed = 0, span * settings.steps
        if path.cached:
            unread = -(-path.read // span)
            # The order of samples in tars depends on the number of accelerators.
            fresh = not path.read or not self._data.sharded
            if fresh and (unread + settings.steps) * span <= count:
                first = unread
                path.read = min(count, (first + settings.steps + _AHEAD * settings.workers) * span)
                self._measure(path, number, round_, first, CacheState.COLD)
            elif path.read < min(count, needed):
                self._warm(path, number)
                path.read = min(count, needed)
        self._measure(path, number, round_, first, CacheState.WARM)

    def _measure(self, path: _Path, number: int, round_: int, first: int, temperature: CacheState) -> None:
        """One trial of the batches from `first` of an epoch on."""
        steps = self._group.run(self._task(path, number, self._settings.workload.step_s, first))
        trial = _trial(path.name, round_, steps, temperature, simulated=self._profile.simulated)
        path.trials.append(trial)
        self._on_event(trial)

    def _task(self, path: _Path, number: int, step_s: float, first: int = 0) -> AcceleratorTask:
        settings = TrainSettings(
            batch_size=self._settings.workload.batch_size, workers=self._settings.workers, endpoint=path.kind
        )
        return AcceleratorTask(path.connector, settings, number, self._settings.steps, step_s, first)

    def _calibrate(self, number: int) -> None:
        """Steps with a buffer that is always full; the better of two attempts counts."""
        workload = self._settings.workload
        count = max(_CALIBRATION_STEPS, min(self._settings.steps, math.ceil(_CALIBRATION_S / workload.step_s)))
        task = AcceleratorTask(None, TrainSettings(), number, count, workload.step_s)
        found = 0.0
        for _ in range(2):
            found = max(found, statistics.mean(each.au for each in self._group.run(task)))
            if found >= CALIBRATED_AU:
                break
        self._calibrated[number] = found
        self._on_event(Calibration(time=time.time(), accelerators=number, au=found, passed=found >= CALIBRATED_AU))

    def _warm(self, path: _Path, number: int) -> None:
        steps = self._group.run(self._task(path, number, 0.0))
        seconds = max(each.ended[-1] for each in steps) - min(each.begun for each in steps)
        samples = sum(each.samples for each in steps)
        self._on_event(
            Warming(
                time=time.time(),
                path=path.name,
                accelerators=number,
                samples=samples,
                samples_per_s=samples / seconds,
                bytes_per_s=sum(each.bytes for each in steps) / seconds,
                simulated=self._profile.simulated,
            )
        )

    @property
    def _bytes_per_sample(self) -> float:
        return float(self._data.columns(TRAIN).sizes.mean())

    def _summary(self) -> EmulationSummary:
        settings, simulated = self._settings, self._profile.simulated
        results = [path_result(path.name, path.trials, self._calibrated, settings.workload) for path in self._paths]
        rounds = min((each.trials for result in results for each in result.fed), default=0)
        largest = max((result.accelerators for result in results), default=0) or 1
        batch_size, count = settings.workload.batch_size, self._data.count(TRAIN)
        found = RuleCheck(settings.steps, rounds, largest, batch_size, count, self._bytes_per_sample, simulated)
        return EmulationSummary(
            time=time.time(),
            workload=settings.workload,
            dataset=self._data.prefix,
            format=str(self._data.format),
            stored_as="shards" if self._data.sharded else "objects",
            bytes_per_sample=self._bytes_per_sample,
            workers=settings.workers,
            simulated=simulated,
            paths=tuple(results),
            buyers=self._buyers(results),
            page_cache=self._page_cache,
            unmet_rules=tuple(unmet_rules(found, settings.workload.name)),
            dlio={
                result.path: dlio_names(best, self._bytes_per_sample)
                for result in results
                if (best := _best(result)) is not None
            },
        )

    def _buyers(self, results: Sequence[PathResult]) -> BuyersTable:
        data = self._data
        facts = DatasetFacts(
            format=str(data.format),
            bytes_per_sample=self._bytes_per_sample,
            side=data.image_size(0) or USUAL_SIZE,
            sharded=data.sharded,
        )
        found = next((each for each in results if each.path == EndpointKind.ACCELERATED), None)
        measured = None
        if found is not None and (bought := find_accelerator(self._profile, self._credentials)) is not None:
            failed = next((each for each in found.fed if not each.passed), None)
            limited = failed is not None and found.limit == "storage"
            measured = Measured(
                quota_gb=bought.quota_gb,
                accelerators=found.accelerators,
                bytes_per_s=failed.bytes_per_s if failed is not None and limited else None,
                simulated=self._profile.simulated,
            )
        return buyers_table(self._settings.workload, facts, measured)


def _on_dataset(connector: ConnectorSettings, prefix: str) -> ConnectorSettings:
    profile = msgspec.structs.replace(connector.profile, dataset_prefix=prefix)
    return replace(connector, profile=profile)


def _trial(path: str, round_: int, steps: Sequence[Steps], temperature: CacheState, *, simulated: bool) -> Trial:
    seconds = max(each.ended[-1] for each in steps) - min(each.begun for each in steps)
    ends = [max(moments) for moments in zip(*(each.ended for each in steps), strict=True)]
    times = [after - before for before, after in itertools.pairwise(ends)]
    sustained = statistics.mean(each.sustained_au for each in steps)
    return Trial(
        time=time.time(),
        path=path,
        accelerators=len(steps),
        round=round_,
        steps=len(ends),
        au=statistics.mean(each.au for each in steps),
        sustained_au=sustained,
        passed=sustained >= MIN_AU,
        samples_per_s=sum(each.samples for each in steps) / seconds,
        bytes_per_s=sum(each.bytes for each in steps) / seconds,
        readers_busy=statistics.mean(each.readers_busy for each in steps),
        step=Quantiles.of(times),
        fetch=Quantiles.of([each for one in steps for each in one.fetch_s]),
        stall_share=stall_share(times),
        simulated=simulated,
        temperature=temperature,
    )


def path_result(path: str, trials: Sequence[Trial], calibrated: Mapping[int, float], workload: Workload) -> PathResult:
    """The result of all trials of a path; `calibrated` has the AU with a full buffer by number of accelerators."""
    numbers = sorted({each.accelerators for each in _warm_trials(trials)})
    by_number = {number: [each for each in trials if each.accelerators == number] for number in numbers}
    fed = tuple(_fed(tried, calibrated.get(number, 0.0)) for number, tried in by_number.items())
    best = max((each.accelerators for each in fed if each.passed), default=0)
    failed = next((each for each in fed if each.accelerators > best), None)
    feeds = counted(best, "accelerator") if best else "no accelerator"
    simulated = ", simulated" if any(each.simulated for each in trials) else ""
    setup = f"({workload.name}, batch {workload.batch_size}{simulated})"
    words = f"{ReadPath(path).words.capitalize()} feeds {feeds} {setup}"
    if failed is None:
        return PathResult(path=path, accelerators=best, limit="", words=f"{words}; more were not tried.", fed=fed)
    limit, why = _limit(failed)
    reached = f"{failed.accelerators} would reach an AU of {failed.sustained_au * 100:.0f} %"
    return PathResult(path=path, accelerators=best, limit=limit, words=f"{words}; {reached}: {why}.", fed=fed)


def _limit(failed: Fed) -> tuple[str, str]:
    """What limits a number that failed, and the reason in words."""
    if failed.calibrated_au < CALIBRATED_AU:
        why = f"its AU is {failed.calibrated_au * 100:.1f} % with a buffer that is always full"
    elif failed.readers_busy >= _BUSY:
        why = f"its readers ran or waited for a processor {failed.readers_busy * 100:.0f} % of the time"
    else:
        return "storage", "the storage is the limit"
    return "host", f"this host is the limit, {why}"


def _warm_trials(trials: Sequence[Trial]) -> list[Trial]:
    return [each for each in trials if each.temperature is CacheState.WARM]


def _fed(tried: Sequence[Trial], calibrated: float) -> Fed:
    trials = _warm_trials(tried)
    cold = [each.au for each in tried if each.temperature is CacheState.COLD]

    def mean(name: str) -> float:
        return float(statistics.mean(getattr(each, name) for each in trials))

    aus = [each.au for each in trials]
    return Fed(
        path=trials[0].path,
        accelerators=trials[0].accelerators,
        trials=len(trials),
        au=mean("au"),
        au_sigma=statistics.stdev(aus) if len(aus) > 1 else 0.0,
        sustained_au=mean("sustained_au"),
        samples_per_s=mean("samples_per_s"),
        bytes_per_s=mean("bytes_per_s"),
        passed=mean("sustained_au") >= MIN_AU,
        calibrated_au=calibrated,
        readers_busy=mean("readers_busy"),
        cold_au=statistics.mean(cold) if cold else None,
        cold_sigma=statistics.stdev(cold) if len(cold) > 1 else 0.0,
    )


def _best(result: PathResult) -> Fed | None:
    """The largest number that passed, else the smallest that was tried."""
    passed = [each for each in result.fed if each.passed]
    return passed[-1] if passed else next(iter(result.fed), None)


def dlio_names(fed: Fed, bytes_per_sample: float) -> dict[str, float | str]:
    """The figures under the names of DLIO's `summary.json`; MB/s are MiB/s of samples of the mean size, as there."""
    return {
        "num_accelerators": fed.accelerators,
        "train_au_mean_percentage": fed.au * 100,
        "train_au_stdev_percentage": fed.au_sigma * 100,
        "train_au_meet_expectation": "success" if fed.au >= MIN_AU else "fail",
        "train_throughput_mean_samples_per_second": fed.samples_per_s,
        "train_io_mean_MB_per_second": fed.samples_per_s * bytes_per_sample / 2**20,
    }
