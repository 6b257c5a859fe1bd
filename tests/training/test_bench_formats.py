"""The scratch datasets of a benchmark of formats: the same images in each, and nothing left afterwards."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import IMAGENET_MEAN, IMAGENET_STD, SampleFormat, decode
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.training.bench import formats as bench_formats
from ossconsole.training.bench.formats import format_datasets
from ossconsole.training.data import TrainingData, training_data
from tests.training.conftest import Bucket

IMAGES, SIDE = 24, 64
ALL = tuple(SampleFormat)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSSCONSOLE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Smooth images of two classes."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        path = tmp_path / "pictures" / "train" / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "pictures"


def uploaded(bucket: Bucket, source: Path, fmt: SampleFormat, *, per_shard: int = 0) -> TrainingData:
    """The images as a dataset below a prefix of its own, which becomes the bucket's."""
    bucket.profile = msgspec.structs.replace(bucket.profile, dataset_prefix=f"{bucket.profile.dataset_prefix}/{fmt}")
    settings = UploadSettings(source=source, format=fmt, size=SIDE, per_shard=per_shard, workers=1)
    job = create_upload(bucket.profile, bucket.credentials, settings)
    job.start()
    assert job.result().uploaded == IMAGES
    return training_data(bucket.store(), bucket.profile.dataset_prefix)


def pixels(bucket: Bucket, data: TrainingData) -> list[npt.NDArray[np.float64]]:
    """All stored images in levels, in the order of their means."""
    columns = data.columns("train")
    found = []
    for row in range(len(columns)):
        values = decode(data.format, bucket.store().get(data.object_of("train", row)), SIDE, SIDE).transpose(1, 2, 0)
        if data.format is SampleFormat.TENSOR_F32:
            values = (values * IMAGENET_STD + IMAGENET_MEAN) * 255
        found.append(values.astype(np.float64))
    return sorted(found, key=lambda image: float(image.mean()))


@pytest.mark.parametrize("fmt", [SampleFormat.IMAGE_U8, SampleFormat.TENSOR_F32])
def test_the_images_are_those_of_the_dataset(bucket: Bucket, pictures: Path, fmt: SampleFormat) -> None:
    original = pixels(bucket, uploaded(bucket, pictures, fmt))
    with format_datasets(bucket.profile, bucket.credentials, ALL) as prefixes:
        found = {SampleFormat(prefix.rpartition("/")[2]): training_data(bucket.store(), prefix) for prefix in prefixes}
        copied = pixels(bucket, found[SampleFormat.IMAGE_U8])
    assert list(found) == list(ALL)
    assert {each: data.count("train") for each, data in found.items()} == dict.fromkeys(ALL, IMAGES)
    assert max(np.abs(one - other).max() for one, other in zip(original, copied, strict=True)) <= 0.51
    assert found[SampleFormat.IMAGE_JPEG].image_size(0) == SIDE


@pytest.mark.parametrize("fmt", ALL)
def test_a_dataset_in_shards_is_compared_in_shards(
    bucket: Bucket, pictures: Path, state: Path, fmt: SampleFormat
) -> None:
    data = uploaded(bucket, pictures, fmt, per_shard=10)
    journals = set(state.glob("uploads/*"))
    said: list[str] = []
    with format_datasets(bucket.profile, bucket.credentials, ALL, report=said.append) as prefixes:
        found = [training_data(bucket.store(), prefix) for prefix in prefixes]
    assert all(each.sharded and each.count("train") == IMAGES for each in found)
    assert said[-1].startswith("Deleted ")
    assert set(state.glob("uploads/*")) == journals
    assert not list(bucket.store().list_all(f"{data.prefix}/{bench_formats.SCRATCH}/"))


def test_images_of_a_source_are_a_random_choice(
    bucket: Bucket, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_formats, "IMAGES", 16)
    only = (SampleFormat.IMAGE_U8,)
    with format_datasets(bucket.profile, bucket.credentials, only, source=pictures, side=32) as (prefix,):
        data = training_data(bucket.store(), prefix)
    assert (data.count("train"), data.size, len(data.classes)) == (16, 32, 2)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with (
        pytest.raises(ConsoleError, match="no training images"),
        format_datasets(bucket.profile, bucket.credentials, only, source=tmp_path / "empty"),
    ):
        pass


def test_an_image_that_cannot_be_stored_ends_it_and_nothing_stays(bucket: Bucket, pictures: Path, state: Path) -> None:
    (pictures / "train" / "dark" / "0.png").write_bytes(b"no image")
    with (
        pytest.raises(ConsoleError, match="cannot be stored as image-u8") as caught,
        format_datasets(bucket.profile, bucket.credentials, (SampleFormat.IMAGE_U8,), source=pictures),
    ):
        pass
    assert "--source" in caught.value.remedy
    assert not list(bucket.store().list_all(f"{bucket.profile.dataset_prefix}/{bench_formats.SCRATCH}/"))
    assert not list(state.glob("uploads/*"))
