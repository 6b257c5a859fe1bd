"""The benchmark of a bucket's endpoints: interleaved readings, cold and warm, and the limits of the setup."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable

import msgspec

from ossconsole.config.connector import checked_connector_config
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.profile import Profile
from ossconsole.dataset.manifest import object_key
from ossconsole.storage.actions import presigned_url
from ossconsole.storage.client import ObjectStore
from ossconsole.training.benchloop import TrainingLoop
from ossconsole.training.connector import ConnectorSettings, connector_native_log
from ossconsole.training.data import training_data
from ossconsole.training.limits import ConnectorReader, HttpReader, Opener, rate
from ossconsole.training.loader import BatchLoader, largest_sample_bytes, wanted_prefetch_mb
from ossconsole.training.readings import (
    IMAGENET_SAMPLES,
    BenchEvent,
    Cell,
    Limit,
    LimitKind,
    Mode,
    Reading,
    Summary,
    Temperature,
    bound,
    headline,
    limits_of,
    row_of,
)
from ossconsole.training.settings import TrainSettings
from ossconsole.training.visits import Dataset, Stretch, VisitRequests, first_of, stretch

_SIGNED = 1024  # objects that the limits are measured on: enough not to read the same one twice at a time


class BenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. `datasets` are prefixes, such as one for each sample format; none means the profile's.

    Each reading takes `seconds` (more where a batch takes longer); `rounds` visits each endpoint of each cell so
    often, in the order ABBA. `samples` is the epoch that minutes are extrapolated to.
    """

    endpoints: tuple[EndpointKind, ...] = tuple(EndpointKind)
    datasets: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = tuple(Mode)
    workers: tuple[int, ...] = (2,)
    batch_sizes: tuple[int, ...] = (64,)
    seconds: float = 5.0
    rounds: int = 2
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
        self._profile = profile
        self._credentials = credentials
        self._settings = settings
        self._on_event = on_event
        self._endpoints = [kind for kind in settings.endpoints if profile.endpoint(kind)]
        if not self._endpoints:
            raise SettingsError(f"Profile {profile.name!r} has none of these endpoints.", remedy="Add one on Setup.")
        self._loops: dict[str, TrainingLoop] = {}
        self._readings: list[Reading] = []
        self._limits: list[Limit] = []
        with_store = ObjectStore(profile, credentials)
        try:
            prefixes = settings.datasets or (profile.dataset_prefix,)
            self._datasets = {prefix: Dataset(training_data(with_store, prefix)) for prefix in prefixes}
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
            if self._settings.limits:
                self._measure_limits(last)
        rows = tuple(row_of(cell, self._readings, self._settings.samples) for cell in self._cells)
        limits = limits_of(self._limits)
        simulated = self._profile.simulated
        summary = Summary(
            time=time.time(),
            simulated=simulated,
            samples=self._settings.samples,
            rows=rows,
            limits=limits,
            headline=headline(rows, simulated=simulated),
            bound=bound(rows[-1], limits, simulated=simulated),
        )
        self._on_event(summary)
        return summary

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
                    self._emit(self._reading(cell, kind, temperature, number, found))

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
            samples_per_s=found.samples / found.seconds,
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
