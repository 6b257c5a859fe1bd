"""A small dataset in a real sandbox, read by the real connector."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import pytest

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry import events
from ossconsole.telemetry.sampler import Sampler
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.run import TrainingRun
from ossconsole.training.settings import TrainSettings

SIDE = 32
DEADLINE_S = 120.0
TRAIN_SAMPLES = 96
VAL_SAMPLES = 24
CLASSES = ("blue", "green", "red")


StartRun = Callable[..., TrainingRun]


@dataclass
class Bucket:
    """The sandbox with one dataset in it; `pictures` are the stored images by relative key."""

    sandbox: SandboxProcess
    profile: Profile
    credentials: CredentialSource
    manifest: Manifest
    pictures: dict[str, bytes]

    @property
    def data(self) -> TrainingData:
        return TrainingData(self.manifest, self.profile.dataset_prefix)

    def store(self, kind: EndpointKind = EndpointKind.STANDARD) -> ObjectStore:
        return ObjectStore(self.profile, self.credentials, kind)

    def connector(self, tmp_path: Path) -> ConnectorSettings:
        config = tmp_path / "connector.json"
        config.write_bytes(
            msgspec.json.encode(
                {
                    "logLevel": 1,
                    "logPath": str(tmp_path / "connector.log"),
                    "datasetConfig": {"prefetchConcurrency": 24, "prefetchWorker": 2},
                    "checkpointConfig": {"prefetchConcurrency": 24, "prefetchWorker": 4, "uploadConcurrency": 64},
                }
            )
        )
        return ConnectorSettings(self.profile, self.credentials, config, tmp_path / "native.log")


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with SandboxProcess.start(tmp_path_factory.mktemp("sandbox"), unshaped=True) as process:
        yield process


@pytest.fixture
def bucket(sandbox: SandboxProcess, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    """Pictures whose class is their colour, below a prefix of the test's own, which is emptied after it."""
    made = bucket_in(sandbox, request.node.name)
    yield made
    empty(made)


def empty(bucket: Bucket) -> None:
    """Deletes dataset and checkpoints: those of all tests would be several GB."""
    with contextlib.closing(bucket.store()) as store:
        for prefix in (bucket.profile.dataset_prefix, bucket.profile.checkpoint_prefix):
            store.delete_many([found.key for found in store.list_all(f"{prefix}/")])


def bucket_in(sandbox: SandboxProcess, name: str) -> Bucket:
    """The dataset in a sandbox, below prefixes that end with `name`."""
    profile = msgspec.structs.replace(
        sandbox.profile(), dataset_prefix=f"dataset/{name}", checkpoint_prefix=f"checkpoints/{name}"
    )
    credentials = FixedSource(sandbox.credentials())
    store = ObjectStore(profile, credentials)
    random = np.random.default_rng(0)
    pictures: dict[str, bytes] = {}
    splits: dict[str, tuple[Sample, ...]] = {}
    for split, count in (("train", TRAIN_SAMPLES), ("val", VAL_SAMPLES)):
        samples = []
        for number in range(count):
            label = number % len(CLASSES)
            picture = random.integers(0, 120, (3, SIDE, SIDE), dtype=np.uint8)
            picture[2 - label] += 100
            key = f"{split}/{CLASSES[label]}/{number:03d}.u8"
            pictures[key] = picture.tobytes()
            store.put(object_key(profile.dataset_prefix, key), pictures[key])
            samples.append(Sample(key, label, SIDE, SIDE))
        splits[split] = tuple(samples)
    manifest = Manifest(format=SampleFormat.IMAGE_U8, size=SIDE, classes=CLASSES, splits=splits)
    write_manifest(store, profile.dataset_prefix, manifest)
    return Bucket(sandbox, profile, credentials, manifest, pictures)


@pytest.fixture
def start_run(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartRun]:
    """Starts runs on the bucket and ends those that a failed test leaves."""
    monkeypatch.setenv("OSSCONSOLE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("OSSCONSOLE_CONFIG_DIR", str(tmp_path / "config"))
    runs: list[TrainingRun] = []
    sampler = Sampler()
    sampler.start()

    def start(
        profile: Profile | None = None,
        *,
        interactive: bool = False,
        on_event: Callable[[events.Event], None] | None = None,
        **settings: object,
    ) -> TrainingRun:
        chosen = TrainSettings(**{"batch_size": 16, "workers": 1, "epochs": 1, **settings})  # type: ignore[arg-type]
        run = TrainingRun(
            profile or bucket.profile, bucket.credentials, chosen, sampler, interactive=interactive, on_event=on_event
        )
        runs.append(run)
        run.start()
        return run

    yield start
    for run in runs:
        run.stop()
        assert run.wait(DEADLINE_S)
    sampler.stop()


def finished(run: TrainingRun, deadline_s: float = DEADLINE_S) -> list[events.Event]:
    assert run.wait(deadline_s), "the run did not end"
    assert run.error is None, run.error
    return run.drain()


def steps(found: list[events.Event]) -> list[events.Step]:
    return [event for event in found if isinstance(event, events.Step)]


E = TypeVar("E", bound=events.Event)


def only(found: list[events.Event], kind: type[E]) -> list[E]:
    return [event for event in found if isinstance(event, kind)]
