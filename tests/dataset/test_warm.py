"""Warm-up: what it reads of a dataset, that it fills the cache, resumes, and says what it does not read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import state_dir
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import manifest_key, read_manifest
from ossconsole.dataset.shards.index import read_packed_list
from ossconsole.dataset.warm import dataset_source, listed_source
from ossconsole.storage.accelerator import (
    AcceleratedPath,
    Accelerator,
    delete_accelerator,
    read_accelerator,
    save_accelerator,
)
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs import warm
from ossconsole.storage.jobs.job import JobState
from ossconsole.storage.jobs.threads import BandwidthCap
from ossconsole.storage.jobs.warm import WarmItem, WarmJournal, WarmPlan, WarmSource, WarmUp, plan_warm
from ossconsole.storage.retry import NO_RETRY
from tests.dataset.conftest import make_pictures
from tests.dataset.uploads import settings_for, upload
from tests.sandboxed import Sandboxed, sandboxed
from tests.waiting import run_to_end


@pytest.fixture(scope="module")
def sandboxed_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxed]:
    """With a cache, which an unshaped sandbox has not."""
    with sandboxed(tmp_path_factory.mktemp("warm"), arguments=("--cache-mb", "64")) as running:
        yield running


@pytest.fixture
def accelerated(sandboxed_bucket: Sandboxed, profile: Profile) -> Iterator[ObjectStore]:
    """The bucket through the accelerated endpoint, its cache empty, its accelerator caching everything."""
    opened = ObjectStore(profile, sandboxed_bucket.owner, EndpointKind.ACCELERATED, timeout_s=5.0, retry=NO_RETRY)
    sandboxed_bucket.control.clear_cache()
    yield opened
    opened.close()


@pytest.fixture
def keys(sandboxed_bucket: Sandboxed, profile: Profile, store: ObjectStore, tmp_path: Path) -> list[str]:
    """The keys of an uploaded dataset."""
    source = make_pictures(tmp_path / "source")
    upload(profile, sandboxed_bucket.owner, settings_for(source, SampleFormat.IMAGE_JPEG))
    return [item.key for item in dataset_source(store, profile.dataset_prefix).items()]


def plan(store: ObjectStore, accelerated: ObjectStore, **options: bool) -> WarmPlan:
    return plan_warm(dataset_source(store, accelerated.profile.dataset_prefix), accelerated, **options)


def misses(sandboxed_bucket: Sandboxed, accelerated: ObjectStore, keys: list[str]) -> int:
    """How many of the objects are not in the cache."""
    before = sandboxed_bucket.control.status().cache_misses
    for key in keys:
        accelerated.get(key)
    return sandboxed_bucket.control.status().cache_misses - before


def test_every_sample_is_in_the_cache_afterwards(
    sandboxed_bucket: Sandboxed, store: ObjectStore, accelerated: ObjectStore, keys: list[str]
) -> None:
    found = plan(store, accelerated)
    assert (found.objects, found.todo, found.beyond, found.outside) == (8, 8, 0, 0)
    assert "by its manifest" in found.source.text
    assert found.lines()[1] == "It fits: the accelerator in cn-sandbox-a has 50 GB."
    job = run_to_end(WarmUp(accelerated, found))
    assert job.state is JobState.DONE
    assert job.progress().items_done == 8
    assert job.progress().bytes_done == found.bytes
    assert misses(sandboxed_bucket, accelerated, keys) == 0


def test_a_second_warm_up_reads_nothing_and_again_reads_everything(
    store: ObjectStore, accelerated: ObjectStore, keys: list[str]
) -> None:
    run_to_end(WarmUp(accelerated, plan(store, accelerated)))
    second = plan(store, accelerated)
    assert (second.todo, second.warmed) == (0, len(keys))
    assert "were read before" in " ".join(second.lines())
    job = run_to_end(WarmUp(accelerated, second))
    assert (job.state, job.progress().items_done) == (JobState.DONE, 0)
    assert plan(store, accelerated, again=True).todo == len(keys)


def test_a_sample_that_was_replaced_is_read_again(
    sandboxed_bucket: Sandboxed, store: ObjectStore, accelerated: ObjectStore, keys: list[str], tmp_path: Path
) -> None:
    run_to_end(WarmUp(accelerated, plan(store, accelerated)))
    profile = accelerated.profile
    manifest = read_manifest(store, profile.dataset_prefix)
    first, *rest = manifest.splits["train"]
    changed = msgspec.structs.replace(
        manifest, splits={**manifest.splits, "train": (msgspec.structs.replace(first, crc64=1), *rest)}
    )
    store.put(manifest_key(profile.dataset_prefix), msgspec.json.encode(changed))
    assert plan(store, accelerated).todo == 1


def test_a_cancelled_warm_up_resumes(
    sandboxed_bucket: Sandboxed, store: ObjectStore, accelerated: ObjectStore, keys: list[str]
) -> None:
    job = WarmUp(accelerated, plan(store, accelerated), threads=1)
    acquire, calls = BandwidthCap.acquire, []

    def cancel_at_the_third(cap: BandwidthCap, size: int) -> None:
        calls.append(size)
        if len(calls) == 3:
            job.cancel()
        acquire(cap, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BandwidthCap, "acquire", cancel_at_the_third)
        assert run_to_end(job).state is JobState.CANCELLED
    rest = plan(store, accelerated)
    assert rest.todo + rest.warmed == len(keys)
    assert rest.warmed in {2, 3}
    assert run_to_end(WarmUp(accelerated, rest)).progress().items_done == rest.todo
    assert misses(sandboxed_bucket, accelerated, keys) == 0


def test_shards_are_read_in_ranges_with_their_indexes(
    sandboxed_bucket: Sandboxed,
    store: ObjectStore,
    accelerated: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = accelerated.profile
    source = make_pictures(tmp_path / "source")
    upload(profile, sandboxed_bucket.owner, settings_for(source, SampleFormat.IMAGE_U8, per_shard=3))
    packed = read_packed_list(store, profile.dataset_prefix)
    assert packed is not None
    monkeypatch.setattr(warm, "RANGE_SIZE", 1000)
    monkeypatch.setattr(warm, "_SMALL", 999)
    found = plan(store, accelerated)
    assert found.objects == 2 * len(packed.shards)
    job = run_to_end(WarmUp(accelerated, found))
    assert (job.state, job.progress().items_done) == (JobState.DONE, found.objects)
    keys = [item.key for item in found.source.items()]
    assert misses(sandboxed_bucket, accelerated, keys) == 0
    assert plan(store, accelerated).todo == 0


def test_a_prefix_without_a_dataset_is_listed(store: ObjectStore, accelerated: ObjectStore) -> None:
    below = f"{accelerated.profile.dataset_prefix}/"
    store.put(f"{below}x", b"1234")
    store.put(below, b"")
    store.sdk.put_object(f"{below}archived", b"12", headers={"x-oss-storage-class": "Archive"})
    found = plan_warm(listed_source(store, below), accelerated)
    assert (found.objects, found.bytes) == (1, 4)
    assert "listed without 1 archived object: 1 object, 0.0 MB." in found.lines()[0]
    assert run_to_end(WarmUp(accelerated, found)).failures == []
    found = plan(store, accelerated)  # what is no dataset is listed, too
    assert (found.objects, found.bytes) == (1, 4)
    with pytest.raises(ConsoleError, match="there are no objects"):
        plan_warm(listed_source(store, f"{below}nothing/"), accelerated)


def test_an_object_that_is_gone_fails_alone(store: ObjectStore, accelerated: ObjectStore, keys: list[str]) -> None:
    found = plan(store, accelerated)
    data = store.get(keys[0])
    store.delete(keys[0])
    job = run_to_end(WarmUp(accelerated, found))
    assert job.state is JobState.FAILED
    assert [(failure.path, failure.code) for failure in job.failures] == [(keys[0], "NoSuchKey")]
    assert job.progress().items_done == len(keys) - 1
    store.put(keys[0], data)
    again = run_to_end(job.retry())
    assert (again.state, again.progress().items_done, again.progress().items_total) == (JobState.DONE, 1, 1)


BIG = WarmSource("a list", lambda: [WarmItem(f"k{number}", 20 * 10**9, "") for number in range(4)])


def test_what_does_not_fit_is_not_read_and_named(accelerated: ObjectStore) -> None:
    found = plan_warm(BIG, accelerated)
    assert (found.todo, found.beyond, found.beyond_bytes) == (2, 2, 40 * 10**9)
    text = " ".join(found.lines())
    assert "It does not fit: the accelerator in cn-sandbox-a has 50 GB." in text
    assert "2 objects (40.0 GB) are not read" in text
    assert "To read: 40.0 GB, at least 2 min at the accelerator's documented peak." in text
    assert found.seconds(10e6) == 4000
    assert "at least 67 min at the limit" in " ".join(found.lines(10e6))


def configure(store: ObjectStore, *paths: str) -> Accelerator:
    present = read_accelerator(store)
    wanted = msgspec.structs.replace(
        present or Accelerator(zone="cn-sandbox-a", quota_gb=50), paths=tuple(map(AcceleratedPath, paths))
    )
    save_accelerator(store, wanted, present=present)
    found = read_accelerator(store)
    assert found is not None
    return found


def test_objects_outside_the_accelerated_paths_are_not_read(
    store: ObjectStore, accelerated: ObjectStore, keys: list[str]
) -> None:
    try:
        configure(accelerated, f"{accelerated.profile.dataset_prefix}/train/")
        found = plan(store, accelerated)
        assert (found.todo, found.outside) == (6, 2)
        assert "2 objects outside the accelerated paths are not read" in " ".join(found.lines())
        configure(accelerated, "elsewhere/")
        with pytest.raises(ConsoleError, match="none of it is in the accelerated paths"):
            plan(store, accelerated)
    finally:
        configure(accelerated)


def test_without_an_accelerator_nothing_is_read(store: ObjectStore, accelerated: ObjectStore, keys: list[str]) -> None:
    run_to_end(WarmUp(accelerated, plan(store, accelerated)))
    delete_accelerator(accelerated, "cn-sandbox-a")
    try:
        with pytest.raises(ConsoleError, match="has no accelerator"):
            plan(store, accelerated)
    finally:
        configure(accelerated)
    assert plan(store, accelerated).todo == len(keys)  # the new accelerator's cache is empty


def test_a_key_that_may_only_read_is_enough(
    sandboxed_bucket: Sandboxed, store: ObjectStore, accelerated: ObjectStore, keys: list[str]
) -> None:
    keys_of_reader = sandboxed_bucket.keys["read-only"]
    limited = ObjectStore(accelerated.profile, keys_of_reader, EndpointKind.ACCELERATED, timeout_s=5.0, retry=NO_RETRY)
    found = plan_warm(dataset_source(store, accelerated.profile.dataset_prefix), limited)
    assert run_to_end(WarmUp(limited, found)).progress().items_done == len(keys)


def test_a_key_that_may_not_list_the_accelerator_can_warm_up(
    accelerated: ObjectStore, store: ObjectStore, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_store: ObjectStore) -> Accelerator:
        raise StorageError("AccessDenied.", code="AccessDenied")

    monkeypatch.setattr(warm, "read_accelerator", refuse)
    found = plan(store, accelerated)
    assert found.todo == len(keys)
    assert "Whether it fits is unknown: AccessDenied." in found.lines()


def test_two_warm_ups_of_one_bucket_never_run_together(accelerated: ObjectStore) -> None:
    with (
        WarmJournal.open(accelerated, None),
        pytest.raises(ConsoleError, match="Another warm-up"),
        WarmJournal.open(accelerated, None),
    ):
        pass


def test_a_record_that_was_cut_short_is_dropped(accelerated: ObjectStore) -> None:
    with WarmJournal.open(accelerated, None) as journal:
        journal.add(7)
    (path,) = (state_dir() / "warm").iterdir()
    with path.open("ab") as file:
        file.write(b"cut")
    with WarmJournal.open(accelerated, None) as journal:
        assert 7 in journal
        journal.add(8)
    assert path.stat().st_size == 32 + 2 * 8
    with WarmJournal.open(accelerated, None) as journal:
        assert 7 in journal
        assert 8 in journal


def test_the_time_of_the_last_reading_survives_later_plans(accelerated: ObjectStore) -> None:
    with WarmJournal.open(accelerated, None) as journal:
        journal.add(7)
    (path,) = (state_dir() / "warm").iterdir()
    os.utime(path, (1e9, 1e9))
    for _ in range(2):
        with WarmJournal.open(accelerated, None) as journal:
            assert journal.written_at == 1e9


def test_a_record_that_a_full_disk_cut_does_not_shift_the_later_ones(
    accelerated: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, space = os.pwrite, [5]

    def fill(descriptor: int, data: bytes, offset: int) -> int:
        if not space:
            return write(descriptor, data, offset)
        if not space[0]:
            space.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        size, space[0] = space[0], 0
        return write(descriptor, data[:size], offset)

    with WarmJournal.open(accelerated, None) as journal:
        journal.add(7)
        monkeypatch.setattr(os, "pwrite", fill)
        with pytest.raises(OSError, match="No space"):
            journal.save()
        journal.add(8)
    with WarmJournal.open(accelerated, None) as journal:
        assert 7 not in journal
        assert 8 in journal
