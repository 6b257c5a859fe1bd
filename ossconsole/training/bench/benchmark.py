"""The benchmark of a bucket's endpoints: interleaved readings, cold and warm, and the limits of the setup."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import Profile
from ossconsole.dataset.manifest import TRAIN, object_key
from ossconsole.storage.accelerator import find_accelerator
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.actions import presigned_url
from ossconsole.telemetry.cache import SingleTimes
from ossconsole.telemetry.compare import LOOKS, Conditions, installed_versions, next_look
from ossconsole.telemetry.events import Step
from ossconsole.telemetry.measure import Ceiling
from ossconsole.telemetry.visits import EndpointWindow, Waiting, decode_share
from ossconsole.training.bench.conclusions import aa_headline, aa_passed, bound, decided, headline
from ossconsole.training.bench.limits import ConnectorReader, HttpReader, ReaderFactory, rate
from ossconsole.training.bench.mount import folder_settings
from ossconsole.training.bench.requests import BenchDataset, BenchRequests
from ossconsole.training.bench.results import (
    IMAGENET_SAMPLES,
    BenchCase,
    BenchEvent,
    BenchSummary,
    CacheState,
    CaseSteps,
    Limit,
    LimitKind,
    Mode,
    ModelSetup,
    Quantiles,
    Reading,
    ReadPath,
    ResultRow,
    Times,
    format_results,
    limit_spreads,
    result_key,
    result_row,
    stall_share,
)
from ossconsole.training.bench.sampling import (
    Interval,
    TrainingLoop,
    first_batch,
    measure_interval,
)
from ossconsole.training.data import training_data
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.loader import BatchLoader
from ossconsole.training.settings import AUTO, DEFAULT_MODEL, TrainSettings

_SIGNED = 1024  # objects for the limits: enough that none is read twice at the same time


_PATIENCE_S = 180.0  # a case that stays undecided is not measured longer, but for LOOKS[0] rounds


class BenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a benchmark. `datasets` are prefixes, such as one per sample format; none means the profile's.

    Each reading takes at least `seconds`. Each of the `rounds` measures a pair of readings, one per endpoint, in the
    order ABBA. With `until_decided` a case takes part only until its ratio is decided, and the benchmark ends at the
    first interval after which the next one would not come within three minutes. `samples` is the size of the
    epoch that minutes are extrapolated to. With `aa` the first of the endpoints is measured under both names. With
    `compare_formats` the datasets hold the same images in several formats.
    `mount` is a folder that has the bucket's objects as files: a third path beside the endpoints.
    """

    endpoints: tuple[EndpointKind, ...] = tuple(EndpointKind)
    datasets: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = tuple(Mode)
    workers: tuple[int, ...] = (2,)
    batch_sizes: tuple[int, ...] = (64,)
    prefetch_mb: tuple[int, ...] = (0,)
    seconds: float = 3.0
    rounds: int = LOOKS[0]
    until_decided: bool = False
    aa: bool = False
    compare_formats: bool = False
    samples: int = IMAGENET_SAMPLES
    limits: bool = True
    image_size: int = 0
    model: str = DEFAULT_MODEL
    precision: str = "auto"
    compile: bool = False
    device: str = AUTO
    gpu: str = AUTO
    mount: Path | None = None


class Bench:
    """Runs the benchmark; `on_event` gets each reading and limit at once. Raises ConsoleError."""

    def __init__(
        self,
        profile: Profile,
        credentials: CredentialSource,
        settings: BenchSettings,
        on_event: Callable[[BenchEvent], None] = lambda _: None,
    ) -> None:
        self._credentials = credentials
        self._settings = settings
        self._on_event = on_event
        self._endpoints = [kind for kind in settings.endpoints if profile.endpoint(kind)]
        if not self._endpoints:
            raise SettingsError(
                f"Profile {profile.name!r} has none of these endpoints.", remedy="Add one on the Setup screen."
            )
        self._aa = self._endpoints[0] if settings.aa else None
        if self._aa is not None:
            one = profile.endpoint(self._aa)
            profile = msgspec.structs.replace(profile, standard_endpoint=one, accelerated_endpoint=one)
            self._endpoints = list(EndpointKind)
        self._paths = [ReadPath(kind) for kind in self._endpoints]
        if settings.mount is not None:
            self._paths.append(ReadPath.MOUNT)
        self._times_singles = self._aa is None and EndpointKind.ACCELERATED in self._endpoints
        self._profile = profile
        self._windows: dict[BenchCase, dict[EndpointKind, EndpointWindow]] = {}
        self._singles: dict[BenchCase, SingleTimes] = {}
        self._loops: dict[str, TrainingLoop] = {}
        self._readings: list[Reading] = []
        self._limits: list[Limit] = []
        self._model: ModelSetup | None = None
        self._steps: dict[BenchCase, dict[str, list[Step]]] = {}
        with_store = ObjectStore(profile, credentials)
        try:
            prefixes = settings.datasets or (profile.dataset_prefix,)
            self._datasets = {
                prefix: BenchDataset(training_data(with_store, prefix), one_endpoint=settings.aa) for prefix in prefixes
            }
        finally:
            with_store.close()
        self._cells = [
            BenchCase(
                dataset=prefix,
                format=str(data.data.format),
                mode=mode,
                workers=workers,
                batch_size=batch_size,
                prefetch_mb=prefetch_mb,
            )
            for (prefix, data), mode, batch_size, workers, prefetch_mb in itertools.product(
                self._datasets.items(), settings.modes, settings.batch_sizes, settings.workers, settings.prefetch_mb
            )
        ]
        # Finds the files, so that a wrong folder fails here.
        self._folders = {
            prefix: folder_settings(self._connector(prefix), data.data, settings.mount)
            for prefix, data in self._datasets.items()
            if settings.mount is not None
        }

    def run(self) -> BenchSummary:
        """Takes all readings; the summary is also the last event, also where an error or Ctrl-C ends them early."""
        try:
            self._take_readings()
        except (ConsoleError, KeyboardInterrupt):
            if {each.cell for each in self._readings} == set(self._cells):
                self._on_event(self._summary())
            raise
        summary = self._summary()
        self._on_event(summary)
        return summary

    def _take_readings(self) -> None:
        last, undecided, number = self._cells[-1], list(self._cells), 0
        begun = time.monotonic()
        while undecided and number < self._settings.rounds:
            # Datasets too are in ABBA order.
            for cell in undecided if number % 2 == 0 else undecided[::-1]:
                order = self._paths if number % 2 == 0 else self._paths[::-1]
                for path in order:
                    self._visit(cell, path, number)
            number += 1
            # After the first and the last round, so that a drift shows.
            if self._settings.limits and number == 1:
                self._measure_limits(last)
            if self._settings.until_decided and number in LOOKS:
                undecided = [cell for cell in undecided if not decided(self._row(cell))]
                if (time.monotonic() - begun) / number * next_look(number) > _PATIENCE_S:
                    break
        if self._settings.limits and number > 1:
            self._measure_limits(last)

    def _summary(self) -> BenchSummary:
        rows = tuple(self._row(cell) for cell in self._cells)
        limits = limit_spreads(self._limits)
        simulated = self._profile.simulated
        ceiling = self._ceiling(rows[-1])
        return BenchSummary(
            time=time.time(),
            simulated=simulated,
            samples=self._settings.samples,
            rows=rows,
            limits=limits,
            headline=aa_headline(rows, self._aa, simulated=simulated)
            if self._aa is not None
            else headline(rows, simulated=simulated),
            bound=bound(rows[-1], limits, simulated=simulated),
            aa=str(self._aa or ""),
            aa_passed=aa_passed(rows) if self._aa is not None else None,
            ceiling=ceiling.report() if ceiling is not None else None,
            formats=format_results(self._readings) if self._settings.compare_formats else (),
            page_cache=next((str(each.cache) for each in self._folders.values()), ""),
            model=self._model,
        )

    def _row(self, cell: BenchCase) -> ResultRow:
        windows = self._windows.get(cell, {})
        data = self._datasets[cell.dataset].data
        tallies = [part.tally for window in windows.values() for part in window.parts.values()]
        samples = sum(tally.samples for tally in tallies)
        conditions = Conditions(
            batch_size=cell.batch_size,
            workers=cell.workers,
            sample_format=cell.format,
            bytes_per_sample=sum(tally.bytes for tally in tallies) / samples if samples else None,
            stored_as="shards" if data.sharded else "objects",
            region=self._profile.region,
            simulated=self._profile.simulated,
            versions=installed_versions(),
        )
        limit_s = self._singles[cell].limit_s if cell in self._singles else None
        row = result_row(cell, self._readings, self._settings.samples, CaseSteps(windows, conditions, limit_s))
        times = {
            name: Times.of([step.step_time_s for step in steps], [step.fetch_s for step in steps], cell.workers)
            for name, steps in self._steps.get(cell, {}).items()
        }
        return msgspec.structs.replace(row, times=times)

    def _ceiling(self, row: ResultRow) -> Ceiling | None:
        """How much of the accelerator's bandwidth `row` uses; None when it uses none, or the size is unknown."""
        if self._aa is EndpointKind.STANDARD:
            return None
        fastest = max(
            (each for each in self._readings if each.cell == row.cell and each.endpoint is ReadPath.ACCELERATED),
            key=lambda reading: reading.bytes_per_s,
            default=None,
        )
        bought = find_accelerator(self._profile, self._credentials) if fastest is not None else None
        if bought is None or fastest is None:
            return None
        return Ceiling(
            quota_gb=bought.quota_gb,
            peak_bytes_per_s=bought.peak_mb_per_s * 1e6,
            bytes_per_s=fastest.bytes_per_s,
            requests_per_s=None if self._datasets[row.cell.dataset].data.sharded else fastest.samples_per_s,
        )

    # Readings

    def _visit(self, cell: BenchCase, path: ReadPath, number: int) -> None:
        """The readings of one case on one path: unread samples (cold), then the same again (warm)."""
        data = self._datasets[cell.dataset]
        requests = BenchRequests(data, path, cell.batch_size)
        training = self._loop(cell) if cell.mode is Mode.TRAINING else None
        loader = BatchLoader(
            self._connector(cell.dataset) if path is not ReadPath.MOUNT else self._folders[cell.dataset],
            data.data,
            requests,
            self._train_settings(cell, EndpointKind.STANDARD if path is ReadPath.MOUNT else EndpointKind(path)),
            pin=training is not None and training.cuda,
            time_singles=self._times_singles and path is not ReadPath.MOUNT,
        )
        with contextlib.closing(loader):
            for temperature in CacheState:
                requests.temperature = temperature
                try:
                    batch = first_batch(loader, temperature)
                    if batch is None:
                        continue
                    interval = measure_interval(
                        loader, batch, workers=cell.workers, seconds=self._settings.seconds, loop=training
                    )
                except ConsoleError as error:  # it does not know where its batches come from
                    raise ConsoleError(f"Through {path.words}: {error.message}", remedy=error.remedy) from error
                if interval is not None:
                    if path is not ReadPath.MOUNT:
                        self._keep(cell, EndpointKind(path), temperature, interval)
                    steps = self._steps.setdefault(cell, {}).setdefault(result_key(path, temperature), [])
                    steps.extend(interval.steps)
                    reading = self._reading(cell, path, temperature, number, interval)
                    self._readings.append(reading)
                    self._on_event(reading)

    def _keep(self, cell: BenchCase, kind: EndpointKind, temperature: CacheState, interval: Interval) -> None:
        """Adds the steps of a reading to the figures of its case."""
        windows = self._windows.setdefault(cell, {each: EndpointWindow(each, cell.workers) for each in EndpointKind})
        singles = self._singles.setdefault(cell, SingleTimes())
        before = interval.before
        for step in interval.steps:
            windows[kind].add(step, before, cold=temperature is CacheState.COLD)
            singles.add(step)
            before = Waiting.at(step)
        windows[kind].cut()

    def _reading(
        self, cell: BenchCase, path: ReadPath, temperature: CacheState, number: int, interval: Interval
    ) -> Reading:
        return Reading(
            time=time.time(),
            simulated=self._profile.simulated,
            cell=cell,
            endpoint=path,
            temperature=temperature,
            round=number,
            samples=interval.samples,
            seconds=interval.seconds,
            samples_per_s=interval.samples_per_s,
            bytes_per_s=interval.bytes / interval.seconds,
            fetch_p50_s=interval.fetch_quantile(0.5),
            fetch_p95_s=interval.fetch_quantile(0.95),
            wait_fraction=interval.wait_fraction,
            decode_share=decode_share(interval.decode_s, interval.seconds, cell.workers) or 0.0,
            fetch=Quantiles.of([step.fetch_s for step in interval.steps]),
            step=Quantiles.of([step.step_time_s for step in interval.steps]),
            stall_share=stall_share([step.step_time_s for step in interval.steps], cell.workers),
        )

    # Limits

    def _measure_limits(self, cell: BenchCase) -> None:
        """Measures endpoint, connector and compute alone, on samples read before, with the processes of the case.

        Endpoint and connector are measured on whole objects, so not for samples in tars.
        """
        data = self._datasets[cell.dataset]
        for kind in () if data.data.sharded else self._endpoints:
            rows = data.already_read(kind)[:_SIGNED]
            samples = data.data.columns(TRAIN)
            objects = [
                (object_key(cell.dataset, samples.keys.get(row)), int(samples.sizes[row])) for row in rows.tolist()
            ]
            store = ObjectStore(self._profile, self._credentials, kind)
            urls = [(presigned_url(store, key), size) for key, size in objects]
            store.close()
            connector = ConnectorReader(self._connector(cell.dataset), kind, objects, cell.batch_size, cell.workers)
            factories: dict[LimitKind, ReaderFactory] = {
                LimitKind.HTTP: HttpReader(urls),
                LimitKind.CONNECTOR: connector,
            }
            for limit, factory in factories.items():
                measured = rate(
                    factory,
                    connector.connector.native_log,
                    processes=cell.workers,
                    seconds=self._settings.seconds / 2,
                )
                self._limit(limit, kind, cell, measured)
        if cell.mode is Mode.TRAINING:
            self._model = self._loop(cell).setup(cell.batch_size)
            measured = self._loop(cell).synthetic_rate(cell.batch_size, self._settings.seconds / 2)
            self._limit(LimitKind.COMPUTE, None, cell, measured)

    def _limit(self, kind: LimitKind, endpoint: EndpointKind | None, cell: BenchCase, measured: float) -> None:
        limit = Limit(
            time=time.time(),
            simulated=self._profile.simulated and kind is not LimitKind.COMPUTE,
            kind=kind,
            endpoint=endpoint,
            dataset=cell.dataset,
            workers=cell.workers,
            batch_size=cell.batch_size,
            samples_per_s=measured,
        )
        self._limits.append(limit)
        self._on_event(limit)

    def _connector(self, dataset: str) -> ConnectorSettings:
        return ConnectorSettings.of(msgspec.structs.replace(self._profile, dataset_prefix=dataset), self._credentials)

    def _loop(self, cell: BenchCase) -> TrainingLoop:
        """The training loop of a dataset, shared by its cases."""
        if cell.dataset not in self._loops:
            settings = self._train_settings(cell, self._endpoints[0])
            self._loops[cell.dataset] = TrainingLoop(settings, self._datasets[cell.dataset].data)
        return self._loops[cell.dataset]

    def _train_settings(self, cell: BenchCase, kind: EndpointKind) -> TrainSettings:
        """The settings of a run for this case."""
        return TrainSettings(
            batch_size=cell.batch_size,
            workers=cell.workers,
            endpoint=kind,
            image_size=self._settings.image_size,
            model=self._settings.model,
            precision=self._settings.precision,
            compile=self._settings.compile,
            device=self._settings.device,
            gpu=self._settings.gpu,
            prefetch_mb=cell.prefetch_mb,
        )
