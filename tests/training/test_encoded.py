"""Encoded images in the bucket: the same rows for any readers, ranks and interruptions; a corrupt one is skipped."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import fastcrc
import msgspec
import numpy as np
import pytest
from PIL import Image

from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.listing import manifest_from_listing
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import Corrupt, FaultPlan, Rule
from ossconsole.telemetry import events
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.loader import Batch, BatchLoader
from ossconsole.training.plan import Plan, Split
from ossconsole.training.settings import TrainSettings
from tests.training.conftest import Bucket, StartRun, finished, steps

COUNTS = {"train": 30, "val": 10}
CLASSES = ("dark", "light")
KINDS = ("JPEG", "PNG", "WEBP")

Rows = dict[tuple[int, Split, int], bytes]
"""The bytes of a row by epoch, split and sample."""


def encoded(label: int, number: int) -> tuple[str, bytes]:
    """The ending and the bytes of an image whose brightness is its class; every size is different."""
    random = np.random.default_rng(number)
    levels = random.integers(0, 100, (40 + number, 60, 3)) + 120 * label
    buffer = io.BytesIO()
    kind = KINDS[number % len(KINDS)]
    Image.fromarray(levels.astype(np.uint8)).save(buffer, kind)
    return kind.lower(), buffer.getvalue()


@pytest.fixture
def images(bucket: Bucket) -> TrainingData:
    """Images of several formats and sizes, of unknown height and width, below a prefix beside that of the bucket."""
    bucket.profile = msgspec.structs.replace(bucket.profile, dataset_prefix=f"{bucket.profile.dataset_prefix}-encoded")
    store, prefix = bucket.store(), bucket.profile.dataset_prefix
    splits = {}
    for split, count in COUNTS.items():
        samples = []
        for number in range(count):
            label = number % len(CLASSES)
            ending, data = encoded(label, number)
            key = f"{split}/{CLASSES[label]}/{number:03}.{ending}"
            store.put(object_key(prefix, key), data)
            samples.append(Sample(key, label, 0, 0, fastcrc.crc64.xz(data), len(data)))
        splits[split] = tuple(samples)
    manifest = Manifest(format=SampleFormat.IMAGE_JPEG, size=0, classes=CLASSES, splits=splits)
    write_manifest(store, prefix, manifest)
    return TrainingData(manifest, prefix)


def batches(
    bucket: Bucket,
    data: TrainingData,
    tmp_path: Path,
    *,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 1,
) -> Iterator[Batch]:
    settings = TrainSettings(batch_size=8 // world, workers=workers, epochs=2, image_size=32, seed=4)
    plan = Plan(settings, data.count("train"), data.count("val"), rank=rank, world=world)
    with contextlib.closing(BatchLoader(bucket.connector(tmp_path), data, plan, settings, start=start)) as loader:
        while (batch := loader.next()) is not None:
            assert not batch.failed
            yield batch


def rows_of(found: Iterator[Batch]) -> Rows:
    return {
        (batch.request.epoch, batch.request.split, int(sample)): row.numpy().tobytes()
        for batch in found
        for sample, row in zip(batch.rows, batch.data, strict=True)
    }


def test_rows_depend_on_seed_epoch_and_sample_alone(bucket: Bucket, images: TrainingData, tmp_path: Path) -> None:
    alone = rows_of(batches(bucket, images, tmp_path))
    assert len(alone) == 2 * sum(COUNTS.values())
    assert rows_of(batches(bucket, images, tmp_path, workers=4)) == alone
    ranks = [rows_of(batches(bucket, images, tmp_path, rank=rank, world=2)) for rank in range(2)]
    assert not ranks[0].keys() & ranks[1].keys()
    assert ranks[0] | ranks[1] == alone
    rest = rows_of(batches(bucket, images, tmp_path, start=3))
    assert rest == {key: alone[key] for key in rest}
    for sample in range(COUNTS["train"]):
        assert alone[1, Split.TRAIN, sample] != alone[2, Split.TRAIN, sample]
    for sample in range(COUNTS["val"]):
        assert alone[1, Split.VAL, sample] == alone[2, Split.VAL, sample]


def test_the_number_of_readers_does_not_change_the_losses(
    images: TrainingData, start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert images.format.encoded
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # otherwise the number of readers changes the order of sums
    runs = [finished(start_run(batch_size=8, image_size=32, workers=workers)) for workers in (1, 4)]
    losses = [[step.loss for step in steps(found)] for found in runs]
    assert losses[0] == losses[1]
    assert None not in losses[0]


def test_a_corrupt_image_is_skipped_named_and_counted(
    bucket: Bucket, images: TrainingData, start_run: StartRun
) -> None:
    store, prefix = bucket.store(), bucket.profile.dataset_prefix
    key = images.object_of("train", 0)
    columns = images.columns("train")
    store.put(key, b"\xff\xd8\xff" + bytes(int(columns.sizes[0]) - 3))
    samples = [
        Sample(columns.keys.get(row), row % 2, 0, 0, bytes=int(columns.sizes[row])) for row in range(COUNTS["train"])
    ]
    manifest = Manifest(format=SampleFormat.IMAGE_JPEG, size=0, classes=CLASSES, splits={"train": tuple(samples)})
    write_manifest(store, prefix, manifest)
    found = finished(start_run(bucket.profile, batch_size=10, image_size=32, val_split=0.0))
    warnings = [event.message for event in found if isinstance(event, events.WarningEvent)]
    relative = key.removeprefix(f"{prefix}/")
    assert any(f"Skipped {relative}: it cannot be decoded: " in message for message in warnings), warnings
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.samples, summary.skipped_samples) == (COUNTS["train"] - 1, 1)


def with_etags(bucket: Bucket, etag_of: Callable[[Sample], str]) -> TrainingData:
    """The images as a listing gives them, without CRC64, and with other ETags."""
    listed, _ = manifest_from_listing(bucket.store(), bucket.profile.dataset_prefix)
    splits = {
        split: tuple(msgspec.structs.replace(sample, md5=etag_of(sample)) for sample in samples)
        for split, samples in listed.splits.items()
    }
    return TrainingData(msgspec.structs.replace(listed, splits=splits), bucket.profile.dataset_prefix)


@pytest.fixture
def unchecked(bucket: Bucket, images: TrainingData) -> TrainingData:
    """The listed images without any checksum."""
    assert images.format.encoded
    return with_etags(bucket, lambda _: "")


def test_bytes_that_differ_from_the_etag_are_read_again(
    bucket: Bucket, unchecked: TrainingData, tmp_path: Path
) -> None:
    expected = rows_of(batches(bucket, unchecked, tmp_path))
    control = SandboxControl(bucket.sandbox.info)
    corrupt = Rule(action=Corrupt(), operation="GetObject", key=f"{bucket.profile.dataset_prefix}/train/*", times=1)
    data = with_etags(bucket, lambda sample: sample.md5)
    control.set_faults(FaultPlan(rules=[corrupt]))
    try:
        assert rows_of(batches(bucket, data, tmp_path)) == expected
        assert control.status().fault_hits == [1]
    finally:
        control.clear_faults()


def test_etags_that_are_no_md5s_are_no_longer_compared(bucket: Bucket, unchecked: TrainingData, tmp_path: Path) -> None:
    data = with_etags(bucket, lambda sample: hashlib.md5(sample.key.encode()).hexdigest())
    retries = []

    def counted() -> Iterator[Batch]:
        for batch in batches(bucket, data, tmp_path):
            assert not batch.bad
            retries.append(batch.retries)
            yield batch

    assert rows_of(counted()) == rows_of(batches(bucket, unchecked, tmp_path))
    assert retries == [1, *[0] * (len(retries) - 1)]
