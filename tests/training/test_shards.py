"""Training on tar shards that an upload made, through the real connector."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, read_manifest
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import Corrupt, FaultPlan, Rule
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry import events
from ossconsole.training.bench.benchmark import Bench, BenchSettings
from ossconsole.training.bench.emulation import Emulation, EmulationSettings
from ossconsole.training.bench.requests import BenchDataset, BenchRequests
from ossconsole.training.bench.results import BenchEvent, CacheState, Mode, Reading, ReadPath
from ossconsole.training.bench.workloads import parse_workload
from ossconsole.training.child import spawn
from ossconsole.training.data import Tar, Tars, TrainingData, training_data
from ossconsole.training.loading.loader import Batch, BatchLoader, LoaderError
from ossconsole.training.loading.range_fetcher import FetchedRange, RangeFetcher, RangeRequest, TarRanges, fetch_ranges
from ossconsole.training.loading.reader import MISSING
from ossconsole.training.loading.shard_windows import SPAN_BYTES, ShardWindows
from ossconsole.training.loading.shared_memory import EndpointSwitch, SampleTable
from ossconsole.training.plan import LANES, WINDOW_BYTES, Plan, Split, Window
from ossconsole.training.settings import TrainSettings
from tests.training.conftest import Bucket, StartRun, finished

PER_CLASS, CLASSES = 120, ("dark", "light")
TRAIN_SAMPLES, VAL_SAMPLES = 2 * PER_CLASS, 20
SIDE = 192
SAMPLE_BYTES = 3 * SIDE * SIDE
BATCH = 20  # 2.2 MB
PER_TAR = 90  # 10 MB


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes; 240 images for training, 20 for validation."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("val", VAL_SAMPLES // 2)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                values = random.integers(0, 100, (SIDE, SIDE, 3), dtype=np.uint8) + np.uint8(label * 120)
                Image.fromarray(values).save(folder / split / name / f"{number}.png", compress_level=0)
    return folder


@dataclass
class Uploaded:
    """The images as shards of PER_TAR samples, and as single objects in the same order."""

    bucket: Bucket
    data: TrainingData
    as_objects: TrainingData

    @property
    def store(self) -> ObjectStore:
        return self.bucket.store()

    @contextlib.contextmanager
    def replaced(self, key: str, content: bytes | None) -> Iterator[None]:
        """Another object, or none, at a key."""
        before = self.store.get(key)
        self.store.delete(key)
        try:
            if content is not None:
                self.store.put(key, content)
            yield
        finally:
            self.store.put(key, before)


NewLoader = Callable[..., BatchLoader]


@pytest.fixture(scope="module")
def uploaded(sandbox: SandboxProcess, pictures: Path) -> Uploaded:
    bucket = Bucket(sandbox, sandbox.profile(), FixedSource(sandbox.credentials()), None, {})  # type: ignore[arg-type]
    shards = upload(bucket, "dataset/shards", pictures, PER_TAR)
    upload(bucket, "dataset/objects", pictures, 0)
    listed = read_manifest(bucket.store(), "dataset/objects")
    known = {sample.key: sample for samples in listed.splits.values() for sample in samples}
    splits = {
        split: tuple(known[columns.keys.get(row)] for row in range(len(columns)))
        for split, columns in shards.splits.items()
    }
    bucket.profile = msgspec.structs.replace(bucket.profile, dataset_prefix="dataset/shards")
    manifest = msgspec.structs.replace(listed, splits=splits)
    return Uploaded(bucket, shards, TrainingData(manifest, "dataset/objects"))


def upload(bucket: Bucket, prefix: str, folder: Path, per_shard: int) -> TrainingData:
    profile = msgspec.structs.replace(bucket.profile, dataset_prefix=prefix)
    settings = UploadSettings(source=folder, format=SampleFormat.IMAGE_U8, size=SIDE, per_shard=per_shard, workers=1)
    job = create_upload(profile, bucket.credentials, settings)
    job.start()
    assert job.result().uploaded == TRAIN_SAMPLES + VAL_SAMPLES
    return training_data(bucket.store(), prefix)


@pytest.fixture
def loaders(uploaded: Uploaded, tmp_path: Path) -> Iterator[NewLoader]:
    """Makes loaders of the shards, or of the same samples as objects, and closes them."""
    made: list[BatchLoader] = []

    def new(data: TrainingData | None = None, start: int = 0, **settings: Any) -> BatchLoader:
        chosen = TrainSettings(**{"batch_size": BATCH, "workers": 1, "epochs": 1, **settings})
        data = data or uploaded.data
        plan = plan_of(data, chosen)
        made.append(BatchLoader(uploaded.bucket.connector(tmp_path), data, plan, chosen, start=start))
        return made[-1]

    yield new
    for loader in made:
        loader.close()


def plan_of(data: TrainingData, settings: TrainSettings) -> Plan:
    return Plan(settings, data.count("train"), data.count("val"), tar_bytes=data.tar_bytes)


def batches_of(loader: BatchLoader) -> Iterator[Batch]:
    while (batch := loader.next()) is not None:
        assert not batch.failed
        yield batch


def contents(loader: BatchLoader) -> list[tuple[int, Split, dict[int, bytes]]]:
    """Epoch, split, and bytes by row of each batch."""
    found = []
    for batch in batches_of(loader):
        assert not batch.bad
        rows = zip(batch.rows.tolist(), batch.data, strict=True)
        found.append((batch.request.epoch, batch.request.split, {row: data.numpy().tobytes() for row, data in rows}))
    return found


def by_split(found: list[tuple[int, Split, dict[int, bytes]]]) -> dict[tuple[int, Split], dict[int, bytes]]:
    merged: dict[tuple[int, Split], dict[int, bytes]] = {}
    for epoch, split, rows in found:
        assert not rows.keys() & merged.setdefault((epoch, split), {}).keys()
        merged[epoch, split].update(rows)
    return merged


def reads(bucket: Bucket, since: int = 0) -> list[dict[str, Any]]:
    """The connector's GETs of tars in the sandbox's log, without the first `since` lines of that log."""
    lines = bucket.sandbox.log_path.read_text().splitlines()[since:]
    log = [msgspec.json.decode(line) for line in lines if "OSSConnector" in line]
    below = f"{bucket.profile.dataset_prefix}/"
    return [line for line in log if line["key"].startswith(below) and line["key"].endswith(".tar")]


def log_length(bucket: Bucket) -> int:
    return len(bucket.sandbox.log_path.read_text().splitlines())


def test_readers_take_few_large_parts_of_the_tars(uploaded: Uploaded, loaders: NewLoader) -> None:
    since = log_length(uploaded.bucket)
    found = by_split(contents(loaders(epochs=2)))
    for epoch in (1, 2):
        assert found[epoch, Split.TRAIN].keys() == set(range(TRAIN_SAMPLES))
        assert found[epoch, Split.VAL].keys() == set(range(VAL_SAMPLES))
    sizes = [line["bytes"] for line in reads(uploaded.bucket, since)]
    assert {line["operation"] for line in reads(uploaded.bucket, since)} == {"GetObject"}
    assert len(sizes) <= 2 * (TRAIN_SAMPLES + VAL_SAMPLES) / 20
    assert sum(sizes) < 1.01 * 2 * (TRAIN_SAMPLES + VAL_SAMPLES) * SAMPLE_BYTES
    assert sum(size < 1 << 20 for size in sizes) <= 2 * 4 * 2  # at the ends of the four tars, in two epochs


def test_a_run_resumes_within_its_windows(loaders: NewLoader) -> None:
    whole = contents(loaders(epochs=2))
    assert contents(loaders(epochs=2, start=10)) == whole[10:]


@pytest.mark.parametrize("workers", [1, 4])
def test_shards_give_the_pixels_of_the_objects_for_any_number_of_readers(
    loaders: NewLoader, uploaded: Uploaded, workers: int
) -> None:
    shards = contents(loaders(workers=workers, epochs=2))
    assert by_split(shards) == by_split(contents(loaders(uploaded.as_objects, epochs=2)))
    wanted = [
        request.indices.tolist()
        for request in plan_of(uploaded.data, TrainSettings(batch_size=BATCH, epochs=2)).requests()
    ]
    assert [list(rows) for _, _, rows in shards] == wanted


def test_a_switch_is_effective_for_the_windows_that_are_held(uploaded: Uploaded, loaders: NewLoader) -> None:
    loader = loaders()
    since = log_length(uploaded.bucket)
    batches = []
    for batch in batches_of(loader):
        batches.append(batch)
        loader.switch.endpoint = EndpointKind.ACCELERATED
    rows = [row for batch in batches if batch.request.split is Split.TRAIN for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(TRAIN_SAMPLES))
    before, after = ([b for b in batches if b.endpoint is kind] for kind in EndpointKind)
    assert batches == before + after
    assert len(before) <= loader.ahead + 1
    fetched = sum(line["bytes"] for line in reads(uploaded.bucket, since) if line["endpoint"] == "accelerated")
    assert fetched >= sum(batch.bytes for batch in after)


@pytest.mark.parametrize("name", ["reader-1", "range-fetcher-1"])
def test_a_replaced_reader_continues_with_its_windows(loaders: NewLoader, name: str) -> None:
    loader = loaders(workers=2)
    rows: list[int] = []
    failures: list[str] = []
    while True:
        try:
            batch = loader.next()
        except LoaderError as error:
            failures.append(str(error))
            continue
        if batch is None:
            break
        if not rows:
            child = next(each for each in multiprocessing.active_children() if each.name == name)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        rows += batch.rows.tolist() if batch.request.split is Split.TRAIN else []
    assert failures == ["Reader process 1 ended unexpectedly (SIGKILL)."]
    assert sorted(rows) == list(range(TRAIN_SAMPLES))
    loader.close()
    assert not [each for each in multiprocessing.active_children() if each.name.startswith(("reader", "range"))]


@contextlib.contextmanager
def fetching(uploaded: Uploaded, folder: Path) -> Iterator[tuple[BaseProcess, RangeFetcher]]:
    """A fetcher and its process, which ends with the block."""
    connector, switch = uploaded.bucket.connector(folder), EndpointSwitch(EndpointKind.STANDARD)
    bucket = connector.profile.bucket
    process, pipe = spawn("range-fetcher", fetch_ranges, bucket, connector.open, switch, connector.native_log)
    try:
        yield process, RangeFetcher(pipe)
    finally:
        process.kill()
        process.join()


def test_what_is_fetched_ahead_is_skipped_after_a_switch(uploaded: Uploaded, tmp_path: Path) -> None:
    tar = uploaded.data.tars("train").tars[0]
    with fetching(uploaded, tmp_path) as (process, fetcher):
        memory, view = fetcher.allocate(2048)
        wanted = RangeRequest(memory, 1024, EndpointKind.STANDARD, tar, 512, 1024, ahead=True)
        other = wanted._replace(kind=EndpointKind.ACCELERATED)
        fetcher.start(other)
        fetcher.start(wanted)
        assert fetcher.wait(wanted) == FetchedRange(wanted)
        assert view[1024:] == uploaded.store.get(tar.key)[512:1536]
        assert view[:1024] == bytes(1024)
        fetcher.start(other)
        assert fetcher.wait(other).skipped
        fetcher.start(other._replace(ahead=False))
        assert fetcher.wait(other._replace(ahead=False)).failed == ""
        missing = wanted._replace(tar=tar._replace(key="no.tar"))
        fetcher.start(missing)
        assert not fetcher.wait(missing).exists
        for size in range(3000, 3020):
            fetcher.free(fetcher.allocate(size)[0])
        fetcher.start(wanted)
        assert fetcher.wait(wanted) == FetchedRange(wanted)  # so all the memory was freed before
        descriptors = [str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
        # Those of the mappings in use and kept for the next use: any other one would keep memory that is freed.
        assert sum("ossconsole-batches" in name for name in descriptors) == 2
    with pytest.raises((EOFError, OSError)):
        fetcher.wait(wanted)


def test_memory_is_used_again_unless_a_range_of_it_may_still_arrive(uploaded: Uploaded, tmp_path: Path) -> None:
    tar = uploaded.data.tars("train").tars[0]
    with fetching(uploaded, tmp_path) as (_, fetcher):
        first, _ = fetcher.allocate(2048)
        wanted = RangeRequest(first, 0, EndpointKind.STANDARD, tar, 0, 1024)
        fetcher.start(wanted)
        fetcher.wait(wanted)
        fetcher.free(first)
        again, view = fetcher.allocate(1024)
        assert (again, len(view)) == (first, 1024)
        fetcher.start(wanted)
        fetcher.free(first)
        assert fetcher.allocate(1024)[0] != first


def test_samples_of_a_missing_tar_are_left_out_by_name(uploaded: Uploaded, loaders: NewLoader) -> None:
    tar = uploaded.data.tars("train").tars[1]
    with uploaded.replaced(tar.key, None):
        batches = list(batches_of(loaders()))
    bad = {bad.row: (bad.key, bad.reason) for batch in batches for bad in batch.bad}
    keys = uploaded.data.columns("train").keys
    assert bad == {row: (keys.get(row), MISSING) for row in range(PER_TAR, 2 * PER_TAR)}
    rows = [row for batch in batches if batch.request.split is Split.TRAIN for row in batch.rows.tolist()]
    assert sorted(rows) == [*range(PER_TAR), *range(2 * PER_TAR, TRAIN_SAMPLES)]


def test_a_sample_whose_bytes_differ_from_the_list_is_left_out(uploaded: Uploaded, loaders: NewLoader) -> None:
    tars = uploaded.data.tars("train")
    content = bytearray(uploaded.store.get(tars.tars[0].key))
    content[tars.offsets[7] + 1000] ^= 1
    with uploaded.replaced(tars.tars[0].key, bytes(content)):
        batches = list(batches_of(loaders()))
    (bad,) = [bad for batch in batches for bad in batch.bad]
    assert bad.row == 7
    assert "CRC64" in bad.reason


def test_bytes_changed_on_the_way_are_read_again(uploaded: Uploaded, loaders: NewLoader) -> None:
    control = SandboxControl(uploaded.bucket.sandbox.info)
    control.set_faults(FaultPlan(rules=[Rule(action=Corrupt(), operation="GetObject", key="*.tar", times=1)]))
    try:
        batches = list(batches_of(loaders()))
    finally:
        control.clear_faults()
    assert not [bad for batch in batches for bad in batch.bad]
    assert sum(batch.retries for batch in batches) == 1


def test_a_benchmark_reads_neighbours(uploaded: Uploaded) -> None:
    requests = BenchRequests(BenchDataset(uploaded.data), EndpointKind.STANDARD, BATCH)
    found = list(itertools.islice(requests.requests(), 2 * TRAIN_SAMPLES // BATCH + LANES))
    for number, request in enumerate(found[:-LANES]):
        assert request.window == Window(number, Split.TRAIN, int(request.indices[0]), BATCH)
        assert request.next_window == found[number + LANES].window
        assert request.lane == number % LANES
        assert set(np.diff(request.indices)) == {1}


def test_a_benchmark_of_shards_has_no_limits_of_single_objects(uploaded: Uploaded) -> None:
    settings = BenchSettings(workers=(2,), batch_sizes=(BATCH,), seconds=0.1, rounds=1, modes=(Mode.LOADER,))
    found: list[BenchEvent] = []
    summary = Bench(uploaded.bucket.profile, uploaded.bucket.credentials, settings, found.append).run()
    readings = [event for event in found if isinstance(event, Reading)]
    assert {(each.endpoint, each.temperature) for each in readings} == {
        (path, state) for path in (ReadPath.STANDARD, ReadPath.ACCELERATED) for state in CacheState
    }
    assert summary.limits == {}


@pytest.mark.slow
def test_accelerators_are_emulated_on_them(uploaded: Uploaded) -> None:
    numbers = (1, 2)
    settings = EmulationSettings(workload=parse_workload("40/s:4"), workers=1, accelerators=numbers, steps=10, rounds=1)
    summary = Emulation(uploaded.bucket.profile, uploaded.bucket.credentials, settings).run()
    assert summary.stored_as == "shards"
    assert [[each.accelerators for each in path.fed] for path in summary.paths] == [list(numbers)] * 2
    assert all(0 < each.au <= 1 for path in summary.paths for each in path.fed)


def test_a_run_trains_on_them(uploaded: Uploaded, start_run: StartRun) -> None:
    found = finished(start_run(uploaded.bucket.profile, batch_size=32, learning_rate=0.02, image_size=32))
    epoch = next(event for event in found if isinstance(event, events.Epoch))
    assert (epoch.samples, epoch.val_samples) == (TRAIN_SAMPLES, VAL_SAMPLES)


@pytest.mark.slow
def test_two_ranks_fetch_each_sample_once(uploaded: Uploaded, start_run: StartRun) -> None:
    since = log_length(uploaded.bucket)
    settings = {"batch_size": BATCH // 2, "learning_rate": 0.02, "image_size": 32}
    found = finished(start_run(uploaded.bucket.profile, processes=2, **settings))
    epoch = next(event for event in found if isinstance(event, events.Epoch))
    assert (epoch.samples, epoch.val_samples) == (TRAIN_SAMPLES, VAL_SAMPLES)
    fetched = sum(line["bytes"] for line in reads(uploaded.bucket, since))
    assert fetched < 1.01 * (TRAIN_SAMPLES + VAL_SAMPLES) * SAMPLE_BYTES


class Recorder:
    """A connector whose tars have any bytes; `reads` are the tar, the offset and the bytes of each request."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, int, int]] = []

    def open_ro(self, _bucket: str, key: str, _size: int, _type: int, _label: str) -> Any:
        return RecordedTar(self, key)


class RecordedTar:
    """One tar of a Recorder."""

    def __init__(self, recorder: Recorder, key: str) -> None:
        self._recorder = recorder
        self._key = key
        self._offset = 0

    def seek(self, offset: int, _whence: int) -> None:
        self._offset = offset

    def readinto(self, buffer: memoryview) -> int:
        self._recorder.reads.append((self._key, self._offset, len(buffer)))
        return len(buffer)


class DirectFetcher:
    """Fetches in the test's process, at the request; counts the bytes of memory in use and the most of them."""

    def __init__(self, connector: object) -> None:
        self._ranges = TarRanges("bucket", lambda _kind: connector)
        self._memories: dict[int, memoryview] = {}
        self._found: dict[RangeRequest, FetchedRange] = {}
        self._allocated = 0
        self.most = 0
        self.switched = False

    @property
    def held(self) -> int:
        return sum(map(len, self._memories.values()))

    def allocate(self, size: int) -> tuple[int, memoryview]:
        self._allocated += 1
        self._memories[self._allocated] = memoryview(bytearray(size))
        self.most = max(self.most, self.held)
        return self._allocated, self._memories[self._allocated]

    def free(self, memory: int) -> None:
        del self._memories[memory]

    def start(self, request: RangeRequest) -> None:
        skipped = request.ahead and self.switched
        fetched = self._ranges.fetch(request, self._memories[request.memory]) if not skipped else None
        self._found[request] = fetched or FetchedRange(request, skipped=True)

    def wait(self, request: RangeRequest) -> FetchedRange:
        return self._found.pop(request)


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("switched", [False, True])
def test_reads_have_4_to_8_mib_and_windows_are_freed(workers: int, switched: bool) -> None:
    # 12,000 images of 25 to 35 KB in 10 tars of 36 MB.
    count, per_tar = 12_000, 1200
    sizes = np.random.default_rng(0).integers(25_000, 35_000, count)
    blocks = 512 + -(-sizes // 512) * 512
    offsets = np.concatenate([np.cumsum(tar) - tar + 512 for tar in blocks.reshape(-1, per_tar)])
    tar_bytes = blocks.reshape(-1, per_tar).sum(axis=1) + 1024
    samples = tuple(Sample(f"train/one/{row}.jpg", 0, 0, 0, 0, int(sizes[row])) for row in range(count))
    manifest = Manifest(format=SampleFormat.IMAGE_JPEG, size=256, classes=("one",), splits={"train": samples})
    tars = Tars(
        tuple(Tar(f"{number}.tar", int(size)) for number, size in enumerate(tar_bytes)),
        np.arange(0, count, per_tar),
        offsets,
    )
    data = TrainingData(manifest, "dataset", {"train": tars})
    table = SampleTable(data)
    connector = Recorder()
    fetchers = [DirectFetcher(connector) for _ in range(workers)]
    for fetcher in fetchers:
        fetcher.switched = switched
    readers = [ShardWindows(table, fetcher) for fetcher in fetchers]
    announced, late = set(), 0
    for request in plan_of(data, TrainSettings(batch_size=64, epochs=1)).requests():
        assert request.window is not None
        reads = len(connector.reads)
        reader = readers[request.lane % workers]
        read = reader.read(
            request.lane,
            request.window,
            EndpointKind.STANDARD,
            request.indices,
            next_window=request.next_window,
        )
        for row, found in zip(request.indices, read, strict=True):
            assert found is not None
            assert len(found) == sizes[row]
        # A window that was announced is there, or requested, before its first batch.
        late += request.window in announced and request.next_window is None and len(connector.reads) > reads
        announced.add(request.next_window)
    table.close()
    assert len(announced) > 10
    assert late == 0 or switched
    assert sum(size for _, _, size in connector.reads) < 1.01 * tar_bytes.sum()
    assert len(connector.reads) < count / 100
    small = [read for read in connector.reads if read[2] < SPAN_BYTES / 2]
    assert max(size for _, _, size in connector.reads) < SPAN_BYTES + 40_000
    assert len(small) <= 2 * len(tar_bytes) + 3 * LANES  # at the ends of tars, and in the short windows of the lanes
    assert sum(fetcher.held for fetcher in fetchers) == 0
    assert sum(fetcher.most for fetcher in fetchers) < (LANES + 2 * workers) * (WINDOW_BYTES + 40_000)
