"""A mounted folder as a path: the same samples, read as files, without the page cache."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.training.bench import mount
from ossconsole.training.bench.benchmark import Bench, BenchSettings
from ossconsole.training.bench.checkpoints import CheckpointBench
from ossconsole.training.bench.mount import FolderSettings, PageCache, folder_settings
from ossconsole.training.bench.results import BenchEvent, Mode, Reading, ReadPath
from ossconsole.training.loading.loader import BatchLoader
from ossconsole.training.plan import Plan
from ossconsole.training.settings import TrainSettings
from tests.training.conftest import TRAIN_SAMPLES, Bucket


def mounted(bucket: Bucket, folder: Path, prefix: str) -> Path:
    for key, picture in bucket.pictures.items():
        path = folder / prefix / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    for path in folder.rglob("*.u8"):
        with path.open("rb") as file:
            os.fdatasync(file.fileno())
    return folder


@pytest.mark.parametrize("root", [True, False], ids=["the bucket", "the prefix"])
def test_the_readers_get_the_same_samples(bucket: Bucket, tmp_path: Path, root: bool) -> None:
    folder = mounted(bucket, tmp_path / "mount", bucket.profile.dataset_prefix if root else "")
    settings = folder_settings(bucket.connector(tmp_path), bucket.data, folder)
    train = TrainSettings(batch_size=16, workers=1, epochs=1, augment=False)
    loader = BatchLoader(settings, bucket.data, Plan(train, TRAIN_SAMPLES, 0), train)
    with contextlib.closing(loader):
        batch = loader.next()
        assert batch is not None
        assert (batch.failed, batch.bad) == ("", ())
        keys = bucket.data.columns("train").keys
        stored = bucket.pictures[keys.get(int(batch.rows[0]))]
        # Rows are HWC, samples CHW: the same bytes in another order.
        assert sorted(batch.data[0].numpy().tobytes()) == sorted(stored)


def test_a_folder_without_the_dataset_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not have the dataset") as caught:
        folder_settings(bucket.connector(tmp_path), bucket.data, tmp_path)
    assert bucket.profile.dataset_prefix in caught.value.remedy


def folder(tmp_path: Path, cache: PageCache) -> mount._Folder:
    settings: FolderSettings = SimpleNamespace(  # type: ignore[assignment]
        folder=tmp_path, skip="data/", cache=cache, profile=SimpleNamespace(bucket="b")
    )
    return mount._Folder(settings)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 100_000])
def test_every_byte_arrives_whatever_the_alignment(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    found = mount.page_cache(path)
    for cache in {found, PageCache.EVICTED}:
        opened = folder(tmp_path, cache)
        wanted = SimpleNamespace(key="oss://b/data/a.tar")
        (whole,) = opened.list_from_uris([wanted], prefetch=True, include_errors=True)
        target = bytearray(size)
        assert (whole.err(), whole.size, whole.readinto(memoryview(target))) == (0, size, size)
        assert bytes(target) == content
        first = size // 3
        part = bytearray(size - first)
        tar = opened.open_ro("b", "data/a.tar", size, 0, "")
        tar.seek(first, 0)
        assert tar.readinto(memoryview(part)) == len(part)
        assert bytes(part) == content[first:]


def test_a_missing_file_is_reported_as_the_connector_does(tmp_path: Path) -> None:
    opened = folder(tmp_path, PageCache.EVICTED)
    wanted = SimpleNamespace(key="oss://b/data/none.u8")
    (missing,) = opened.list_from_uris([wanted], prefetch=True, include_errors=True)
    assert missing.err() == errno.ENOENT
    tar = opened.open_ro("b", "data/none.tar", 10, 0, "")
    with pytest.raises(RuntimeError, match=f"errno={errno.ENOENT}"):
        tar.readinto(memoryview(bytearray(10)))


def test_a_mounted_folder_is_measured_beside_the_endpoints(bucket: Bucket, tmp_path: Path) -> None:
    settings = BenchSettings(
        workers=(1,),
        batch_sizes=(8,),
        seconds=0.1,
        rounds=1,
        modes=(Mode.LOADER,),
        limits=False,
        endpoints=(EndpointKind.STANDARD,),
        mount=mounted(bucket, tmp_path / "mount", bucket.profile.dataset_prefix),
    )
    found: list[BenchEvent] = []
    summary = Bench(bucket.profile, bucket.credentials, settings, found.append).run()
    assert {each.endpoint for each in found if isinstance(each, Reading)} == {ReadPath.STANDARD, ReadPath.MOUNT}
    row = summary.rows[0]
    assert row.mount["standard warm"].pairs == 1
    assert row.times["mount warm"].step.p50 > 0
    assert summary.page_cache


def test_checkpoints_are_written_and_read_through_the_endpoints_and_the_mount(bucket: Bucket, tmp_path: Path) -> None:
    before = {found.key for found in bucket.store().list_all("")}
    summary = CheckpointBench(bucket.profile, bucket.credentials, size=100_000, rounds=2, mount=tmp_path).run()
    reads = {f"read {path}, {again}" for path in ReadPath for again in ("first", "again")}
    assert set(summary.seconds) == {"write standard", "write mount", *reads}
    assert {spread.readings for spread in summary.seconds.values()} == {2}
    assert summary.page_cache
    assert not list(tmp_path.iterdir())
    assert {found.key for found in bucket.store().list_all("")} == before


def test_a_mount_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConsoleError, match="cannot be written"):
        mount.write_synced(tmp_path / "none" / "a.bin", b"1")
    path = tmp_path / "a.bin"
    mount.write_synced(path, b"123")
    with pytest.raises(ConsoleError, match="has 3 of 4 bytes"):
        mount.read_past_cache(path, 4, PageCache.EVICTED)
