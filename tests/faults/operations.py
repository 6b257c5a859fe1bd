"""The five things the console does with a bucket, each small, checked to the byte, and done again without the fault."""

from __future__ import annotations

import abc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import fastcrc
import numpy as np
import torch

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.download import Download
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.sampler import Sampler
from ossconsole.training.checkpoints.store import CheckpointStore, RunProgress, checkpoint_key, stable_key
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.run import TrainingRun
from ossconsole.training.settings import TrainSettings
from tests.dataset.uploads import check_manifest_is_the_bucket, wanted

SIDE = 32
TRAIN, BATCH, EPOCHS = 24, 8, 2
LARGE = 9 << 20  # more than one part of a download
CHECKPOINT = 17 << 20  # two parts of the connector's uploads


@dataclass(frozen=True)
class World:
    """A bucket with a prefix of the test's own; `clean` reaches it through the endpoint that no plan takes down."""

    profile: Profile
    credentials: CredentialSource
    clean: ObjectStore
    folder: Path
    pictures: Path
    connector: ConnectorSettings
    timeout_s: float
    calm: Callable[[], None]
    """Ends every fault, so that what an operation left can be looked at."""

    @property
    def prefix(self) -> str:
        return self.profile.dataset_prefix

    def store(self) -> ObjectStore:
        return ObjectStore(self.profile, self.credentials)

    def with_profile(self, profile: Profile) -> World:
        """The same bucket, reached as `profile` says."""
        return replace(self, profile=profile, connector=replace(self.connector, profile=profile))


@dataclass
class Result:
    """`message` is the first that the user sees, after `seconds`; `problem` is why the operation failed, "" if not."""

    problem: str = ""
    message: str = ""
    seconds: float = 0.0
    total: float = 0.0
    retries: int = 0


@dataclass
class Operation(abc.ABC):
    """`kinds` are the requests it is made of."""

    world: World
    kinds: ClassVar[tuple[str, ...]] = ("GetObject",)
    keys: ClassVar[str | None] = None
    """Which objects the faults are for, as a shell pattern."""
    deadline_s = 60.0
    midway: Callable[[], None] = lambda: None
    """Called once while the operation is at work (upload, training)."""
    _began: float = field(default=0.0)

    @abc.abstractmethod
    def prepare(self) -> None:
        """What must be in the bucket before."""

    @abc.abstractmethod
    def perform(self) -> Result:
        """Does it once. Asserts that what it leaves is whole, whether or not it failed."""

    def run(self) -> Result:
        self._began = time.monotonic()
        result = self.perform()
        result.total = self.elapsed
        if result.problem and not result.message:
            result.message, result.seconds = result.problem, self.elapsed
        return result

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began


class Listing(Operation):
    kinds = ("ListObjects",)

    def prepare(self) -> None:
        self._keys = [f"{self.world.prefix}/{number:03d}" for number in range(12)]
        for key in self._keys:
            self.world.clean.put(key, b"x")

    def perform(self) -> Result:
        store, found, token = self.world.store(), [], ""
        try:
            while True:
                page = store.list_page(f"{self.world.prefix}/", delimiter="", token=token, max_keys=5)
                found += [summary.key for summary in page.objects]
                token = page.next_token
                if not token:
                    break
        except ConsoleError as error:
            assert found == self._keys[: len(found)]
            return Result(str(error))
        assert found == self._keys
        return Result()


class Upload(Operation):
    kinds = ("PutObject", "HeadObject", "ListObjects")
    deadline_s = 240.0

    def prepare(self) -> None:
        self.settings = UploadSettings(source=self.world.pictures, size=16, workers=1, parallelism=4)

    def perform(self) -> Result:
        job = create_upload(self.world.profile, self.world.credentials, self.settings)
        job.start()
        result = Result()
        midway = [self.midway]
        while not job.wait(0.02):
            progress = job.progress()
            if progress.recent_failures and not result.message:
                result.message, result.seconds = progress.recent_failures[0].reason, self.elapsed
            if progress.uploaded and midway:
                midway.pop()()
            assert self.elapsed < self.deadline_s
        self.world.calm()
        summary, progress = job.summary(), job.progress()
        result.retries = progress.retries
        if job.error is not None or summary.failed:
            failures = "; ".join(failure.reason for failure in summary.failures)
            result.problem = f"{job.error or ''} {failures}".strip()
        expected = wanted(self.world.pictures, self.settings.preprocessing)
        there = self._there()
        # Whatever happened: every object is whole, and all that are counted are there.
        assert all(there[key] == expected[key] for key in there)
        if not result.problem:
            assert there == expected
            assert summary.uploaded + summary.skipped == len(expected)
            check_manifest_is_the_bucket(self.world.clean, self.world.prefix)
        return result

    def _there(self) -> dict[str, bytes]:
        below = f"{self.world.prefix}/"
        keys = [summary.key for summary in self.world.clean.list_all(below)]
        return {key.removeprefix(below): self.world.clean.get(key) for key in keys if not key.endswith("manifest.json")}


class Downloading(Operation):
    kinds = ("GetObject", "HeadObject", "ListObjects")
    deadline_s = 120.0

    def prepare(self) -> None:
        dice = random.Random(1)
        self._objects = {f"{number:03d}.bin": dice.randbytes(3000) for number in range(4)}
        self._objects["large.bin"] = dice.randbytes(LARGE)
        for name, data in self._objects.items():
            self.world.clean.put(f"{self.world.prefix}/{name}", data)

    def perform(self) -> Result:
        folder = self.world.folder / "downloaded"
        base = f"{self.world.prefix}/"
        job = Download(self.world.store(), [base], base, folder)
        job.start()
        result = Result()
        while not job.wait(0.02):
            if job.failures and not result.message:
                result.message, result.seconds = job.failures[0].reason, self.elapsed
            assert self.elapsed < self.deadline_s
        self.world.calm()
        if job.error is not None or job.failures:
            result.problem = str(job.error or "; ".join(failure.reason for failure in job.failures))
        seen = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
        assert all(seen[name] == self._objects[name] for name in seen)
        if not result.problem:
            assert seen == self._objects
        return result


class Checkpointing(Operation):
    kinds = ("UploadPart", "HeadObject", "CopyObject", "InitiateMultipartUpload", "CompleteMultipartUpload")
    deadline_s = 120.0
    _made = 0

    def prepare(self) -> None:
        self._old = b"the checkpoint before"
        self.world.clean.put(stable_key(self.world.profile.checkpoint_prefix), self._old)

    def perform(self) -> Result:
        Checkpointing._made += 1
        data = np.random.default_rng(self._made).bytes(CHECKPOINT)
        progress = RunProgress(epoch=1, step=self._made, train_sums=[], metrics={})
        stable = stable_key(self.world.profile.checkpoint_prefix)
        checkpoints = CheckpointStore(
            self.world.connector, self.world.store(), "run", keep=0, timeout_s=4 * self.world.timeout_s
        )
        try:
            checkpoints.save(data, progress)
        except ConsoleError as error:
            self.world.calm()
            # Half of a checkpoint must not be seen, and the one before must not be lost.
            assert self.world.clean.get(stable) in (self._old, data)
            return Result(str(error))
        finally:
            checkpoints.close()
        self.world.calm()
        self._old = data
        assert self.world.clean.get(stable) == data
        key = checkpoint_key(self.world.profile.checkpoint_prefix, "run", progress)
        assert self.world.clean.head(key).crc64 == fastcrc.crc64.xz(data)
        return Result()


class Training(Operation):
    kinds = ("GetObject",)
    keys = "*.u8"
    deadline_s = 120.0
    patience_s = 2.0
    epochs = EPOCHS
    fall_back = False
    switch_to: EndpointKind | None = None
    """Where to switch after the first step."""

    def prepare(self) -> None:
        dice = np.random.default_rng(0)
        bodies = [dice.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8).tobytes() for _ in range(TRAIN)]
        samples = tuple(
            Sample(f"train/c{n % 2}/{n:03d}.u8", n % 2, SIDE, SIDE, fastcrc.crc64.xz(body))
            for n, body in enumerate(bodies)
        )
        for sample, body in zip(samples, bodies, strict=True):
            self.world.clean.put(object_key(self.world.prefix, sample.key), body)
        manifest = Manifest(format=SampleFormat.IMAGE_U8, size=SIDE, classes=("c0", "c1"), splits={"train": samples})
        write_manifest(self.world.clean, self.world.prefix, manifest)

    def perform(self) -> Result:
        result = Result()

        def watch(event: events.Event) -> None:
            if isinstance(event, events.Step):
                if event.step == 1:
                    self.midway()
                    if self.switch_to is not None:
                        run.switch(self.switch_to)
            elif isinstance(event, events.WarningEvent | events.ErrorEvent) and not result.message:
                result.message, result.seconds = event.message, self.elapsed

        settings = TrainSettings(
            epochs=self.epochs,
            batch_size=BATCH,
            workers=1,
            fall_back=self.fall_back,
            # A reader that starts on a busy machine takes two seconds by itself.
            fetch_deadline_s=5 * self.world.timeout_s,
            patience_s=self.patience_s,
            val_split=0.0,
        )
        try:
            run = TrainingRun(self.world.profile, self.world.credentials, settings, Sampler(), on_event=watch)
        except ConsoleError as error:
            return Result(str(error))
        run.start()
        try:
            assert run.wait(self.deadline_s)
        finally:
            run.stop()
            run.wait(60)
        steps = [event for event in run.drain() if isinstance(event, events.Step)]
        assert [step.step for step in steps] == list(range(1, len(steps) + 1))
        if run.error is not None:
            result.problem = str(run.error)
            return result
        assert run.summary is not None
        assert run.summary.state is RunState.FINISHED
        result.retries = run.summary.retries
        assert run.summary.samples + run.summary.skipped_samples == TRAIN * self.epochs
        if run.summary.skipped_samples:
            result.problem = result.message
        assert run.summary.samples == sum(step.samples for step in steps)
        return result


OPERATIONS: dict[str, type[Operation]] = {
    "listing": Listing,
    "upload": Upload,
    "training": Training,
    "checkpoint": Checkpointing,
    "download": Downloading,
}


class TinyModel(torch.nn.Module):
    """Stands in for ResNet-18 where the weights are not what is tested: its checkpoints take no time."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(images.mean((2, 3)))
        return found


def tiny_model(_settings: TrainSettings, classes: tuple[str, ...], *_source: object, **_reports: object) -> TinyModel:
    return TinyModel(len(classes))
