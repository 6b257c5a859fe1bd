"""Training on tar shards that an upload made, through the real connector."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.telemetry import events
from ossconsole.training.data import TrainingData, training_data
from ossconsole.training.loading.loader import BatchLoader
from ossconsole.training.plan import Plan, Split
from ossconsole.training.settings import TrainSettings
from tests.training.conftest import Bucket, StartRun, finished

PER_CLASS, CLASSES = 35, ("dark", "light")
SIDE = 192


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes; 70 images for training, 20 for validation."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("val", 10)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                values = random.integers(0, 100, (SIDE, SIDE, 3), dtype=np.uint8) + np.uint8(label * 120)
                Image.fromarray(values).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def sharded(bucket: Bucket, pictures: Path) -> TrainingData:
    """The images as shards of 25 samples, below a separate prefix."""
    bucket.profile = msgspec.structs.replace(bucket.profile, dataset_prefix=f"{bucket.profile.dataset_prefix}/shards")
    settings = UploadSettings(source=pictures, format=SampleFormat.IMAGE_U8, size=SIDE, per_shard=25, workers=1)
    job = create_upload(bucket.profile, bucket.credentials, settings)
    job.start()
    assert job.result().uploaded == 2 * PER_CLASS + 20
    return training_data(bucket.store(), bucket.profile.dataset_prefix)


def test_each_member_arrives_once_with_its_own_label(bucket: Bucket, sharded: TrainingData, tmp_path: Path) -> None:
    # 24 samples are 2.6 MB: side by side in one tar they are read in passing, else one by one.
    settings = TrainSettings(batch_size=24, workers=1, epochs=2)
    assert sharded.sharded
    plan = Plan(settings, sharded.count("train"), sharded.count("val"), stored_order=True)
    loader = BatchLoader(bucket.connector(tmp_path), sharded, plan, settings)
    seen: dict[tuple[int, Split], list[int]] = {}
    try:
        while (batch := loader.next()) is not None:
            assert not batch.failed
            assert not batch.bad
            seen.setdefault((batch.request.epoch, batch.request.split), []).extend(batch.rows.tolist())
            means = batch.data.float().mean(dim=1)
            labels = sharded.columns(str(batch.request.split)).labels[batch.rows]
            for label, mean in zip(labels, means, strict=True):
                assert (mean > 110) == sharded.classes[label].startswith("light")
    finally:
        loader.close()
    for epoch in (1, 2):
        assert sorted(seen[epoch, Split.TRAIN]) == list(range(2 * PER_CLASS))
        assert sorted(seen[epoch, Split.VAL]) == list(range(20))
    assert seen[1, Split.TRAIN] != seen[2, Split.TRAIN]
    log = [msgspec.json.decode(line) for line in bucket.sandbox.log_path.read_text().splitlines()]
    reads = [line for line in log if line["key"].startswith(f"{bucket.profile.dataset_prefix}/train/shard")]
    gets = [line for line in reads if line["operation"] == "GetObject" and "OSSConnector" in line["user_agent"]]
    sizes = {line["bytes"] for line in gets if line["key"].endswith(".tar")}
    assert 2 << 20 in sizes
    assert 512 + 3 * SIDE * SIDE in sizes


def test_a_run_trains_on_them(bucket: Bucket, sharded: TrainingData, start_run: StartRun) -> None:
    found = finished(start_run(bucket.profile, batch_size=32, learning_rate=0.02, image_size=32))
    epoch = next(event for event in found if isinstance(event, events.Epoch))
    assert (epoch.samples, epoch.val_samples) == (sharded.count("train"), sharded.count("val"))


def test_a_plan_in_stored_order_takes_neighbours_and_leaves_none_out() -> None:
    plan = Plan(TrainSettings(batch_size=8, epochs=1), 43, 0, stored_order=True)
    batches = [request.indices for request in plan.requests()]
    assert sorted(np.concatenate(batches).tolist()) == list(range(43))
    for rows in batches:
        assert set(np.diff(rows).tolist()) <= {1, -42}
