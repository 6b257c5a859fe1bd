"""The pool of readers and the loader above it, with the readers' ends of the pipes in the test's hands."""

from __future__ import annotations

import errno
import gc
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample
from ossconsole.training.child import SPAWN
from ossconsole.training.data import Tar, Tars, TrainingData
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.loading.loader import MAX_AHEAD, BatchLoader, LoaderError
from ossconsole.training.loading.pool import (
    SAMPLES_PER_SINGLE,
    ReaderLostError,
    ReaderPool,
    SingleSamples,
    _ReaderProcess,
)
from ossconsole.training.loading.reader import ReadRequest, _Attempt
from ossconsole.training.loading.shared_memory import SampleTable
from ossconsole.training.plan import LANES, BatchRequest, Plan, Split, Window
from ossconsole.training.settings import TrainSettings

LARGE_BATCH = 4096
WINDOW = Window(0, Split.TRAIN, 0, 1)


class Killed:
    """A process that ended by SIGKILL."""

    exitcode = -signal.SIGKILL

    def __init__(self) -> None:
        self.kills = 0

    def join(self, _timeout_s: float | None = None) -> None: ...

    def kill(self) -> None:
        self.kills += 1


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The ends of the readers, in the order in which they were started."""
    found: list[Connection] = []

    def start(_pool: ReaderPool, _number: int) -> _ReaderProcess:
        ours, theirs = SPAWN.Pipe()
        found.append(theirs)
        process: Any = Killed()
        return _ReaderProcess(process, ours)

    monkeypatch.setattr(ReaderPool, "_start", start)
    return found


def pool_of(workers: int) -> ReaderPool:
    connector: Any = SimpleNamespace(native_log=Path(os.devnull))
    share: Any = None
    return ReaderPool(connector, share, workers=workers, deadline_s=60)


def request(number: int) -> ReadRequest:
    return ReadRequest(number, 0, Split.TRAIN, 1, 0)


@pytest.mark.parametrize("dead", [0, 1])
def test_results_are_kept_when_another_reader_died(ends: list[Connection], dead: int) -> None:
    pool = pool_of(2)
    for number in range(2):
        pool.send(request(number))
    result: Any = "what it read"
    ends[1 - dead].send(result)
    ends[dead].close()
    assert pool.poll(1) == [result]
    with pytest.raises(ReaderLostError, match=f"process {dead} ended unexpectedly .SIGKILL"):
        pool.poll(0)
    assert ends[2].recv().number == dead  # asked again
    assert pool.poll(0) == []


def test_two_readers_that_die_together_are_both_replaced_and_reported(ends: list[Connection]) -> None:
    pool = pool_of(2)
    for number in range(2):
        pool.send(request(number))
    for end in ends:
        end.close()
    for _ in range(2):
        with pytest.raises(ReaderLostError, match="SIGKILL"):
            pool.poll(0)
    assert sorted(end.recv().number for end in ends[2:]) == [0, 1]


def test_all_batches_of_a_lane_are_read_by_one_reader(ends: list[Connection]) -> None:
    pool = pool_of(3)
    lanes = [number % LANES for number in range(3 * LANES)]
    for number, lane in enumerate(lanes):
        assert pool.has_room(BatchRequest(number, 1, Split.TRAIN, number, np.arange(1), False, window=WINDOW))
        pool.send(request(number)._replace(lane=lane, window=WINDOW))
    for reader, end in enumerate(ends):
        sent = [number for number, lane in enumerate(lanes) if lane % 3 == reader]
        assert [end.recv().number for _ in sent] == sent
        assert not end.poll()


def data_of(samples: int) -> TrainingData:
    """Pictures of one pixel, with keys as long as ImageNet's."""
    listed = tuple(Sample(f"train/n01440764/é_{number:050}.u8", 0, 1, 1, number) for number in range(samples))
    manifest = Manifest(format=SampleFormat.IMAGE_U8, size=1, classes=("one",), splits={"train": listed})
    return TrainingData(manifest, "dataset/imagenet/ILSVRC/Data")


def loader_of(
    samples: int, *, pin: bool = False, interrupted: Callable[[], bool] = bool, **settings: Any
) -> BatchLoader:
    connector: Any = SimpleNamespace(native_log=Path(os.devnull))
    chosen = TrainSettings(**{"epochs": 1, "workers": 1, **settings})
    return BatchLoader(connector, data_of(samples), Plan(chosen, samples, 0), chosen, pin=pin, interrupted=interrupted)


@pytest.mark.usefixtures("ends")
def test_readers_of_shards_beyond_the_lanes_need_no_memory() -> None:
    columns = data_of(64).columns("train")
    tars = {"train": Tars((Tar("a.tar", 1 << 20),), np.zeros(1, np.int64), np.arange(64) * 1024 + 512)}
    manifest = Manifest(format=SampleFormat.IMAGE_U8, size=1, classes=("one",), splits={})
    data = TrainingData(manifest, "dataset", tars, splits={"train": columns})
    connector: Any = SimpleNamespace(native_log=Path(os.devnull))
    chosen = TrainSettings(epochs=1, batch_size=1, workers=4 * LANES)
    loader = BatchLoader(connector, data, Plan(chosen, 64, 0, tar_bytes=data.tar_bytes), chosen)
    assert len(loader._slots) == LANES * MAX_AHEAD + 2
    loader.close()


def memory_files() -> int:
    """How many descriptors of shared buffers are open, mappings included."""
    gc.collect()
    return sum("ossconsole-batches" in str(path.resolve()) for path in Path("/proc/self/fd").iterdir())


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("ends")
def test_large_batches_for_a_reader_that_never_reads_do_not_block_the_loop() -> None:
    loader = loader_of(4 * LARGE_BATCH, batch_size=LARGE_BATCH, fetch_deadline_s=0.1)
    with pytest.raises(LoaderError, match=r"within 0.1 s; it was replaced"):
        loader.next()
    loader.close()
    stopped = loader_of(4 * LARGE_BATCH, batch_size=LARGE_BATCH, interrupted=lambda: True)
    assert stopped.next() is None
    stopped.close()


def test_readers_find_every_sample_by_its_row() -> None:
    data = data_of(50)
    table = SampleTable(data)
    rows = np.array([49, 0, 7, 7])
    found = table.look_up(Split.TRAIN, rows)
    table.close()
    assert found.keys == tuple(data.object_of("train", row) for row in rows.tolist())
    assert (found.sizes.tolist(), found.crc64s.tolist()) == ([3] * 4, rows.tolist())


def test_a_reader_that_cannot_be_started_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def start(_pool: ReaderPool, number: int) -> _ReaderProcess:
        if number == 2:
            raise ConsoleError("The reader process 2 could not be started.")
        started.append(Killed())
        return _ReaderProcess(started[-1], SPAWN.Pipe()[0])

    monkeypatch.setattr(ReaderPool, "_start", start)
    before = memory_files()
    with pytest.raises(ConsoleError, match="could not be started"):
        loader_of(8, batch_size=2, workers=3)
    assert [process.kills for process in started] == [1, 1]
    assert memory_files() == before


def test_a_failed_read_says_which_sample_was_the_first() -> None:
    table = SampleTable(data_of(1))
    wanted = table.look_up(Split.TRAIN, np.zeros(4, np.int64))
    table.close()
    transform = SampleTransform(SampleFormat.IMAGE_U8, 1, 1, augment=False, seed=0)
    asked = ReadRequest(0, 0, Split.TRAIN, 1, 4)
    attempt = _Attempt(asked, wanted, np.zeros((4, 3), np.uint8), transform, compare_etags=True)
    attempt.begin(EndpointKind.STANDARD, 0.0)
    for code in (0, errno.EIO, errno.EPERM):
        attempt.take(
            SimpleNamespace(err=lambda code=code: code, error_msg=str, size=3, readinto=lambda into: len(into))  # noqa: PLW0108
        )
    attempt.fail("the next one raises", attempt.missing[0])
    assert attempt.missing == [3]
    assert attempt.result("errno 5", retries=2, reader=0).failed_at == 1


@pytest.mark.parametrize("broken", ["lost", "not started again"])
def test_single_samples_never_end_the_run(ends: list[Connection], monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    connector: Any = SimpleNamespace(native_log=Path(os.devnull))
    loader = loader_of(4 * SAMPLES_PER_SINGLE, batch_size=SAMPLES_PER_SINGLE)
    singles = SingleSamples(connector, loader._share, deadline_s=60)
    rows = np.arange(SAMPLES_PER_SINGLE)
    assert singles.take(0, EndpointKind.STANDARD) is None
    for number in range(2):
        singles.offer(BatchRequest(number, 1, Split.TRAIN, number, rows, last=False))
    assert ends[-1].poll(0)
    ends[-1].close()

    def refuse(_pool: ReaderPool, _number: int) -> _ReaderProcess:
        raise ConsoleError("Reader process 0 could not be started.")

    if broken == "not started again":
        monkeypatch.setattr(ReaderPool, "_start", refuse)
    assert singles.take(1, EndpointKind.STANDARD) is None
    singles.close()
    loader.close()


@pytest.mark.usefixtures("ends")
def test_pages_that_cannot_be_locked_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_slots: object) -> None:
        raise ConsoleError("The batch buffers are not page-locked: CUDA error 2.")

    unlocked: list[object] = []
    monkeypatch.setattr("ossconsole.training.loading.loader.lock_pages", refuse)
    monkeypatch.setattr("ossconsole.training.loading.loader.unlock_pages", unlocked.append)
    loader = loader_of(8, batch_size=2, pin=True)
    loader.close()
    assert "CUDA error 2" in str(loader.not_pinned)
    assert not unlocked


@pytest.mark.usefixtures("ends")
def test_the_memory_is_freed_although_cuda_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_slots: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("ossconsole.training.loading.loader.lock_pages", lambda _slots: None)
    monkeypatch.setattr("ossconsole.training.loading.loader.unlock_pages", fail)
    before = memory_files()
    loader = loader_of(8, batch_size=2, pin=True)
    (reader,) = loader._pool._readers
    with pytest.raises(RuntimeError, match="illegal memory access"):
        loader.close()
    assert isinstance(reader.process, Killed)
    assert reader.process.kills == 1
    del loader
    assert memory_files() == before
