"""The benchmark of a bucket's endpoints: interleaved readings, cold and warm, and the limits of the setup."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable

import msgspec

from ossconsole.config.connector import checked_connector_config
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.profiles import Profile
from ossconsole.dataset.manifest import object_key
from ossconsole.storage.accelerator import find_accelerator
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.actions import presigned_url
from ossconsole.telemetry.cache import FetchTimes
from ossconsole.telemetry.compare import LOOKS, Conditions, installed_versions
from ossconsole.telemetry.measure import Ceiling
from ossconsole.telemetry.visits import EndpointWindow, Waiting
from ossconsole.training.bench.limits import ConnectorReader, HttpReader, Opener, rate
from ossconsole.training.bench.loop import TrainingLoop
from ossconsole.training.bench.readings import (
    IMAGENET_SAMPLES,
    BenchEvent,
    Cell,
    CellSteps,
    Limit,
    LimitKind,
    Mode,
    Reading,
    Row,
    Summary,
    Temperature,
    aa_headline,
    aa_passed,
    bound,
    headline,
    limits_of,
    row_of,
)
from ossconsole.training.bench.sampling import Dataset, Stretch, VisitRequests, first_of, stretch
from ossconsole.training.data import training_data
from ossconsole.training.loading.connector import ConnectorSettings, connector_native_log
from ossconsole.training.loading.loader import BatchLoader, largest_sample_bytes, wanted_prefetch_mb
from ossconsole.training.settings import TrainSettings

log = logging.getLogger(__name__)

_SIGNED = 1024  # objects that the limits are measured on: enough not to read the same one twice at a time


class BenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. `datasets` are prefixes, such as one for each sample format; none means the profile's.

    Each reading takes `seconds` (more where a batch takes longer); `rounds` visits each endpoint of each cell so
    often, in the order ABBA: each round is a pair. `samples` is the epoch that minutes are extrapolated to. With `aa`
    the first of the endpoints is measured under both names.
    """

    endpoints: tuple[EndpointKind, ...] = tuple(EndpointKind)
    datasets: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = tuple(Mode)
    workers: tuple[int, ...] = (2,)
    batch_sizes: tuple[int, ...] = (64,)
    seconds: float = 5.0
    rounds: int = LOOKS[0]
    aa: bool = False
    samples: int = IMAGENET_SAMPLES
    limits: bool = True
    image_size: int = 0
    precision: str = "auto"
    compile: bool = False


class Bench:
    """Measures, and hands each reading to `on_event` as it is made. Raises ConsoleError."""

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
            raise SettingsError(f"Profile {profile.name!r} has none of these endpoints.", remedy="Add one on Setup.")
        self._aa = self._endpoints[0] if settings.aa else None
        if self._aa is not None:
            one = profile.endpoint(self._aa)
            profile = msgspec.structs.replace(profile, standard_endpoint=one, accelerated_endpoint=one)
            self._endpoints = list(EndpointKind)
        self._profile = profile
        self._windows: dict[Cell, dict[EndpointKind, EndpointWindow]] = {}
        self._fetches: dict[Cell, FetchTimes] = {}
        self._loops: dict[str, TrainingLoop] = {}
        self._readings: list[Reading] = []
        self._limits: list[Limit] = []
        with_store = ObjectStore(profile, credentials)
        try:
            prefixes = settings.datasets or (profile.dataset_prefix,)
            self._datasets = {
                prefix: Dataset(training_data(with_store, prefix), one_endpoint=settings.aa) for prefix in prefixes
            }
        finally:
            with_store.close()
        self._cells = [
            Cell(dataset=prefix, format=str(data.manifest.format), mode=mode, workers=workers, batch_size=batch_size)
            for (prefix, data), mode, batch_size, workers in itertools.product(
                self._datasets.items(), settings.modes, settings.batch_sizes, settings.workers
            )
        ]

    def run(self) -> Summary:
        """All readings; the summary is also the last event."""
        last = self._cells[-1]
        for number in range(self._settings.rounds):
            for cell in self._cells:
                order = self._endpoints if number % 2 == 0 else self._endpoints[::-1]
                for kind in order:
                    self._visit(cell, kind, number)
            # Beside the readings, so that a drift shows; twice tell their spread.
            if self._settings.limits and number in {0, self._settings.rounds - 1}:
                self._measure_limits(last)
        summary = self._summary()
        self._on_event(summary)
        return summary

    def _summary(self) -> Summary:
        rows = tuple(self._row(cell) for cell in self._cells)
        limits = limits_of(self._limits)
        simulated = self._profile.simulated
        ceiling = self._ceiling(rows[-1])
        return Summary(
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
        )

    def _row(self, cell: Cell) -> Row:
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
        anchors = self._fetches[cell].anchors if cell in self._fetches else None
        return row_of(cell, self._readings, self._settings.samples, CellSteps(windows, conditions, anchors))

    def _ceiling(self, row: Row) -> Ceiling | None:
        """What `row` uses of the accelerator; None where it does not use it, or its size is not known."""
        if self._aa is EndpointKind.STANDARD:
            return None
        fastest = max(
            (each for each in self._readings if each.cell == row.cell and each.endpoint is EndpointKind.ACCELERATED),
            key=lambda reading: reading.bytes_per_s,
            default=None,
        )
        try:
            bought = find_accelerator(self._profile, self._credentials) if fastest is not None else None
        except ConsoleError as error:  # a key may have no right to it; it is needed for words only
            log.info("The size of the accelerator is not known: %s", error)
            bought = None
        if bought is None or fastest is None:
            return None
        return Ceiling(
            quota_gb=bought.quota_gb,
            peak_bytes_per_s=bought.peak_mb_per_s * 1e6,
            bytes_per_s=fastest.bytes_per_s,
            requests_per_s=None if self._datasets[row.cell.dataset].data.sharded else fastest.samples_per_s,
        )

    # Readings

    def _visit(self, cell: Cell, kind: EndpointKind, number: int) -> None:
        """One reader pool on one endpoint: samples it has not read yet, then those it has."""
        data = self._datasets[cell.dataset]
        requests = VisitRequests(data, kind, cell.batch_size)
        training = self._loop(cell) if cell.mode is Mode.TRAINING else None
        loader = BatchLoader(
            self._connector(cell),
            data.data,
            requests,
            self._train_settings(cell, kind),
            pin=training is not None and training.cuda,
        )
        with contextlib.closing(loader):
            for temperature in Temperature:
                requests.temperature = temperature
                batch = first_of(loader, temperature)
                if batch is None:
                    continue
                found = stretch(loader, batch, workers=cell.workers, seconds=self._settings.seconds, loop=training)
                if found is not None:
                    self._keep(cell, kind, temperature, found)
                    self._emit(self._reading(cell, kind, temperature, number, found))

    def _keep(self, cell: Cell, kind: EndpointKind, temperature: Temperature, found: Stretch) -> None:
        """Counts the steps of a reading."""
        windows = self._windows.setdefault(cell, {each: EndpointWindow(each, cell.workers) for each in EndpointKind})
        fetches = self._fetches.setdefault(cell, FetchTimes())
        before = found.before
        for step in found.steps:
            windows[kind].add(step, before, cold=temperature is Temperature.COLD)
            fetches.add(step)
            before = Waiting.at(step)
        windows[kind].cut()

    def _reading(
        self, cell: Cell, kind: EndpointKind, temperature: Temperature, number: int, found: Stretch
    ) -> Reading:
        return Reading(
            time=time.time(),
            simulated=self._profile.simulated,
            cell=cell,
            endpoint=kind,
            temperature=temperature,
            round=number,
            samples=found.samples,
            seconds=found.seconds,
            samples_per_s=found.samples_per_s,
            bytes_per_s=found.bytes / found.seconds,
            fetch_p50_s=found.fetch_quantile(0.5),
            fetch_p95_s=found.fetch_quantile(0.95),
            wait_fraction=found.wait_fraction,
        )

    # Limits

    def _measure_limits(self, cell: Cell) -> None:
        """On samples that were read before, with the processes of the cell."""
        data = self._datasets[cell.dataset]
        for kind in self._endpoints:
            rows = data.known(kind)[:_SIGNED]
            objects = [
                (object_key(cell.dataset, sample.key), data.manifest.sample_bytes(sample))
                for sample in (data.samples[row] for row in rows)
            ]
            store = ObjectStore(self._profile, self._credentials, kind)
            urls = [(presigned_url(store, key), size) for key, size in objects]
            store.close()
            connector = ConnectorReader(self._connector(cell), kind, objects, cell.batch_size, cell.workers)
            openers: dict[LimitKind, Opener] = {LimitKind.HTTP: HttpReader(urls), LimitKind.CONNECTOR: connector}
            for limit, opener in openers.items():
                found = rate(
                    opener,
                    connector.connector.native_log,
                    processes=cell.workers,
                    seconds=self._settings.seconds / 2,
                )
                self._limit(limit, kind, cell, found)
        if cell.mode is Mode.TRAINING:
            found = self._loop(cell).synthetic_rate(cell.batch_size, self._settings.seconds / 2)
            self._limit(LimitKind.COMPUTE, None, cell, found)

    def _limit(self, kind: LimitKind, endpoint: EndpointKind | None, cell: Cell, found: float) -> None:
        limit = Limit(
            time=time.time(),
            simulated=self._profile.simulated and kind is not LimitKind.COMPUTE,
            kind=kind,
            endpoint=endpoint,
            dataset=cell.dataset,
            workers=cell.workers,
            batch_size=cell.batch_size,
            samples_per_s=found,
        )
        self._limits.append(limit)
        self._on_event(limit)

    def _emit(self, reading: Reading) -> None:
        self._readings.append(reading)
        self._on_event(reading)

    def _connector(self, cell: Cell) -> ConnectorSettings:
        return ConnectorSettings(
            msgspec.structs.replace(self._profile, dataset_prefix=cell.dataset),
            self._credentials,
            checked_connector_config(),
            native_log=connector_native_log(),
        )

    def _loop(self, cell: Cell) -> TrainingLoop:
        """The model and its optimizer, one for all that is measured on a dataset."""
        if cell.dataset not in self._loops:
            settings = self._train_settings(cell, self._endpoints[0])
            self._loops[cell.dataset] = TrainingLoop(settings, self._datasets[cell.dataset].manifest)
        return self._loops[cell.dataset]

    def _train_settings(self, cell: Cell, kind: EndpointKind) -> TrainSettings:
        """Settings that read and compute as a run does, with memory for as many batches as a run would like."""
        settings = TrainSettings(
            batch_size=cell.batch_size,
            workers=cell.workers,
            endpoint=kind,
            image_size=self._settings.image_size,
            precision=self._settings.precision,
            compile=self._settings.compile,
        )
        wanted = wanted_prefetch_mb(settings, largest_sample_bytes(self._datasets[cell.dataset].manifest))
        return msgspec.structs.replace(settings, prefetch_mb=max(settings.prefetch_mb, wanted))
