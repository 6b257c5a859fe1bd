"""The loader through the real connector and sandbox: every sample exactly once, whatever happens on the way."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import object_key
from ossconsole.training.loading.loader import MAX_AHEAD, Batch, BatchLoader, LoaderError, slot_count
from ossconsole.training.plan import Plan, Split
from ossconsole.training.settings import TrainSettings
from tests.training.conftest import SIDE, TRAIN_SAMPLES, VAL_SAMPLES, Bucket

MakeLoader = Callable[..., BatchLoader]


@pytest.fixture
def make_loader(bucket: Bucket, tmp_path: Path) -> Iterator[MakeLoader]:
    loaders = []

    def make(**settings: object) -> BatchLoader:
        chosen = TrainSettings(**{"batch_size": 4, "workers": 2, "epochs": 1, **settings})  # type: ignore[arg-type]
        counts = [len(bucket.manifest.splits[str(split)]) for split in Split]
        loader = BatchLoader(bucket.connector(tmp_path), bucket.data, Plan(chosen, *counts), chosen)
        loaders.append(loader)
        return loader

    yield make
    for loader in loaders:
        loader.close()


def keys(bucket: Bucket, batch: Batch) -> list[str]:
    return [bucket.manifest.splits[str(batch.request.split)][row].key for row in batch.rows]


def test_a_switch_in_mid_epoch_loses_and_repeats_nothing(bucket: Bucket, make_loader: MakeLoader) -> None:
    loader = make_loader(augment=False)
    delivered: Counter[str] = Counter()
    endpoints: list[EndpointKind] = []
    while (batch := loader.next()) is not None:
        for row, key in enumerate(keys(bucket, batch)):
            delivered[key] += 1
            stored = np.frombuffer(bucket.pictures[key], np.uint8).reshape(3, SIDE, SIDE)
            assert batch.data[row].numpy().tobytes() == stored.transpose(1, 2, 0).tobytes()
        if batch.request.split is Split.TRAIN:
            endpoints.append(batch.endpoint)
            if batch.request.index == 0:
                loader.switch.endpoint = EndpointKind.ACCELERATED
    assert delivered == dict.fromkeys(bucket.pictures, 1)
    assert len(bucket.pictures) == TRAIN_SAMPLES + VAL_SAMPLES
    assert endpoints[0] is EndpointKind.STANDARD
    assert endpoints[-1] is EndpointKind.ACCELERATED
    assert set(endpoints[loader.ahead + 2 :]) == {EndpointKind.ACCELERATED}  # all that was not yet under way


def test_the_samples_are_read_by_the_connector_one_request_each(bucket: Bucket, make_loader: MakeLoader) -> None:
    loader = make_loader()
    while loader.next() is not None:
        pass
    lines = [
        line
        for line in bucket.sandbox.log_path.read_text().splitlines()
        if "OSSConnector" in line and f"{bucket.profile.dataset_prefix}/" in line
    ]
    assert len(lines) == TRAIN_SAMPLES + VAL_SAMPLES


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_stuck_reader_is_replaced_and_the_epoch_continues(
    bucket: Bucket, make_loader: MakeLoader, number: signal.Signals
) -> None:
    loader = make_loader(workers=1, fetch_deadline_s=5)
    delivered: Counter[str] = Counter()
    failures = 0
    hit = False
    while True:
        try:
            batch = loader.next()
        except LoaderError:
            failures += 1
            continue
        if batch is None:
            break
        delivered.update(keys(bucket, batch))
        if not hit:
            hit = True
            for child in multiprocessing.active_children():
                if child.pid and child.name.startswith("reader-"):
                    os.kill(child.pid, number)
    assert failures >= 1
    assert delivered == dict.fromkeys(bucket.pictures, 1)


def test_missing_and_wrong_sized_samples_are_left_out_by_name(bucket: Bucket, make_loader: MakeLoader) -> None:
    store = bucket.store()
    prefix = bucket.profile.dataset_prefix
    store.delete(object_key(prefix, "train/blue/000.u8"))
    store.put(object_key(prefix, "train/green/001.u8"), b"short")
    store.put(object_key(prefix, "train/red/002.u8"), bucket.pictures["train/red/002.u8"] + b"more")
    loader = make_loader()
    delivered: Counter[str] = Counter()
    bad: dict[str, str] = {}
    while (batch := loader.next()) is not None:
        delivered.update(keys(bucket, batch))
        bad.update({sample.key: sample.reason for sample in batch.bad})
    assert set(bad) == {"train/blue/000.u8", "train/green/001.u8", "train/red/002.u8"}
    assert "5 bytes" in bad["train/green/001.u8"]
    assert delivered == dict.fromkeys(set(bucket.pictures) - set(bad), 1)


def test_a_dead_endpoint_fails_the_batch_which_can_be_retried(bucket: Bucket, tmp_path: Path) -> None:
    profile = msgspec.structs.replace(bucket.profile, accelerated_endpoint="http://0.0.3:9")
    broken = Bucket(bucket.sandbox, profile, bucket.credentials, bucket.manifest, bucket.pictures)
    settings = TrainSettings(batch_size=32, workers=1, epochs=1, endpoint=EndpointKind.ACCELERATED)
    loader = BatchLoader(broken.connector(tmp_path), bucket.data, Plan(settings, TRAIN_SAMPLES, VAL_SAMPLES), settings)
    try:
        batch = next_of(loader)
        assert batch is not None
        assert batch.failed
        loader.retry(batch)
        loader.switch.endpoint = EndpointKind.STANDARD
        again = next_of(loader)
        assert again is not None
        assert not again.failed
        assert again.request.number == batch.request.number
        assert len(again.rows) == 32
    finally:
        loader.close()


def next_of(loader: BatchLoader) -> Batch | None:
    """The next batch. On a busy machine the connector may wait for a dead endpoint for ever: its reader is replaced."""
    try:
        return loader.next()
    except LoaderError:
        return loader.next()


def test_an_interrupted_wait_ends(bucket: Bucket, tmp_path: Path) -> None:
    settings = TrainSettings(batch_size=8, workers=1, epochs=1)
    loader = BatchLoader(
        bucket.connector(tmp_path),
        bucket.data,
        Plan(settings, TRAIN_SAMPLES, VAL_SAMPLES),
        settings,
        interrupted=lambda: True,
    )
    assert loader.next() is None
    loader.close()


def test_locked_pages_are_unlocked_once(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, int]] = []
    for name in ("lock_pages", "unlock_pages"):
        monkeypatch.setattr(
            f"ossconsole.training.loading.loader.{name}",
            lambda slots, name=name: found.append((name, slots.data_ptr())),
        )
    settings = TrainSettings(batch_size=8, workers=1, epochs=1)
    loader = BatchLoader(bucket.connector(tmp_path), bucket.data, Plan(settings, 8, 0), settings, pin=True)
    loader.close()
    loader.close()
    assert [name for name, _ in found] == ["lock_pages", "unlock_pages"]
    assert found[0][1] == found[1][1]


def test_prefetch_follows_the_memory_limit() -> None:
    settings = TrainSettings(batch_size=64, workers=2, prefetch_mb=400)
    assert slot_count(settings, 602_112, free_bytes=0) == 10
    assert slot_count(settings, 12_288, free_bytes=0) == 18
    with pytest.raises(ConsoleError, match=r"155 MB of buffers; 100 MB are allowed"):
        slot_count(TrainSettings(batch_size=64, workers=2, prefetch_mb=100), 602_112, free_bytes=1 << 40)


@pytest.mark.parametrize("row_bytes", [224 * 224 * 3, 602_112])
def test_automatic_prefetch_takes_what_is_needed_of_a_quarter_of_the_free_memory(row_bytes: int) -> None:
    large = TrainSettings(batch_size=256, workers=8)  # README's own example
    assert slot_count(large, row_bytes, free_bytes=64 << 30) == 8 * MAX_AHEAD + 2
    assert slot_count(large, row_bytes, free_bytes=8_000_000_000) == 2_000_000_000 // (256 * row_bytes)
    with pytest.raises(ConsoleError, match=r"500 MB are a quarter of the free memory") as error:
        slot_count(large, 602_112, free_bytes=2_000_000_000)
    assert "--prefetch-mb 1542" in error.value.remedy
