"""Emulated accelerators: one process each, with its own loader and readers; they step together. No torch here."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ossconsole.config.errors import ConsoleError
from ossconsole.training.bench.requests import AcceleratorRequests, next_batch
from ossconsole.training.bench.workloads import Steps
from ossconsole.training.child import become_child, spawn
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.settings import TrainSettings

if TYPE_CHECKING:
    from ossconsole.training.loading.loader import Batch, BatchLoader

_START_TIMEOUT_S = 120.0  # each process imports torch
_STEP_TIMEOUT_S = 180.0  # beyond the step's compute time: the loader itself replaces readers that hang


class AcceleratorTask(NamedTuple):
    """What the accelerators do together: `steps` of `step_s` seconds of compute each.

    `connector` reads the batches, from number `first` of an epoch on; None is the calibration, with a buffer that is
    always full. With `step_s` 0 each reads as fast as it can, without a barrier: a warm-up.
    """

    connector: ConnectorSettings | None
    settings: TrainSettings
    world: int
    steps: int
    step_s: float
    first: int = 0


class AcceleratorGroup:
    """Accelerators of one dataset; they are started as tasks need them, and end with `close`."""

    def __init__(self, data: TrainingData, native_log: Path) -> None:
        """`native_log` is the file for the output of the processes."""
        self._data = data
        self._log = native_log
        self._children: list[tuple[SpawnProcess, Connection]] = []

    def run(self, task: AcceleratorTask) -> list[Steps]:
        """The steps of each accelerator. Raises ConsoleError when one fails."""
        while len(self._children) < task.world:
            number = len(self._children)
            self._children.append(spawn(f"accelerator-{number}", _serve, self._log, self._data, has_children=True))
        pipes = [pipe for _, pipe in self._children[: task.world]]
        for rank, pipe in enumerate(pipes):
            pipe.send((rank, task))
        self._gather(pipes, _START_TIMEOUT_S)
        _release(pipes)
        for _ in range(task.steps if task.step_s else 0):
            self._gather(pipes, task.step_s + _STEP_TIMEOUT_S)
            _release(pipes)
        timeout = _STEP_TIMEOUT_S * (1 if task.step_s else task.steps)
        return [answer for answer in self._gather(pipes, timeout) if isinstance(answer, Steps)]

    def close(self) -> None:
        """Kills all accelerators; their readers end with them."""
        for process, pipe in self._children:
            pipe.close()
            process.kill()
            process.join()
        self._children = []

    def _gather(self, pipes: Sequence[Connection], timeout_s: float) -> list[Steps | None]:
        """One answer of each. Raises ConsoleError, and ends all: those that wait at the barrier cannot continue."""
        answers: list[Steps | None] = []
        for rank, pipe in enumerate(pipes):
            try:
                answer = pipe.recv() if pipe.poll(timeout_s) else f"it did not answer within {timeout_s:.0f} s"
            except (EOFError, OSError):
                answer = "its process ended"
            if isinstance(answer, str):
                self.close()
                raise ConsoleError(
                    f"Emulated accelerator {rank} failed: {answer.rstrip('.')}.",
                    remedy="`ossconsole doctor` checks the endpoints; fewer --accelerators need less memory.",
                )
            answers.append(answer)
        return answers


def _release(pipes: Sequence[Connection]) -> None:
    for pipe in pipes:
        pipe.send(None)


def _serve(pipe: Connection, native_log: Path, data: TrainingData) -> None:
    """The process of one accelerator: carries out tasks until its pipe closes."""
    become_child(native_log)
    with contextlib.suppress(EOFError):
        while True:
            rank, task = pipe.recv()
            pipe.send(_answer(pipe, data, rank, task))


def _answer(pipe: Connection, data: TrainingData, rank: int, task: AcceleratorTask) -> Steps | str:
    """The steps, or why they failed."""
    try:
        return _carry_out(pipe, data, rank, task)
    except ConsoleError as error:
        return f"{error.message} {error.remedy}".strip()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"


def _carry_out(pipe: Connection, data: TrainingData, rank: int, task: AcceleratorTask) -> Steps:
    if task.connector is None:
        pipe.send(None)
        pipe.recv()
        return _step(pipe, _FullBuffer(), task)
    from ossconsole.training.loading.loader import BatchLoader  # imports torch, in this process only

    batch_size = task.settings.batch_size
    requests = AcceleratorRequests(data, batch_size, rank=rank, world=task.world)
    loader = BatchLoader(task.connector, data, requests, task.settings, start=task.first, sharing=task.world)
    try:
        source = _Loaded(loader)
        source.prepare()
        pipe.send(None)
        pipe.recv()
        return _step(pipe, source, task) if task.step_s else _read(source, task)
    finally:
        loader.close()


class _FullBuffer:
    """A source of batches that never waits."""

    samples = bytes = grown = 0

    def take(self) -> tuple[float, float]:
        """The seconds of the wait and of the fetch."""
        return 0.0, 0.0


@dataclass
class _Loaded:
    """The batches of a loader; `grown` is by how many batches the read-ahead grew since the second one was taken.

    While an accelerator waits for the others to begin, its read-ahead fills.
    """

    loader: BatchLoader
    samples: int = 0
    bytes: int = 0
    _prepared: Batch | None = None
    _second: Batch | None = None
    _last: Batch | None = None

    def prepare(self) -> None:
        """Reads the first batch, which `take` returns then. Raises ConsoleError."""
        self._prepared = next_batch(self.loader)

    def take(self) -> tuple[float, float]:
        """The seconds that the next batch was waited for, and that a reader took for it. Raises ConsoleError."""
        batch, self._prepared = self._prepared, None
        if batch is None:
            batch = next_batch(self.loader)
            self._second = self._second or batch
        self._last = batch
        self.samples += len(batch.rows)
        self.bytes += batch.bytes
        return batch.wait_s, batch.fetch_s

    @property
    def grown(self) -> int:
        """By how many batches the read-ahead grew, see the class; 0 between two that were full."""
        second, last = self._second, self._last
        if second is None or last is None or (second.readers_idle and last.readers_idle):
            return 0
        return last.queued - second.queued


def _step(pipe: Connection, source: _FullBuffer | _Loaded, task: AcceleratorTask) -> Steps:
    """The steps: the next batch in host memory, a sleep of the compute time, and the barrier of all accelerators."""
    ended: list[float] = []
    waits: list[float] = []
    computes: list[float] = []
    fetches: list[float] = []
    readers = _ReaderTime()
    begun = time.perf_counter()
    for _ in range(task.steps):
        wait_s, fetch_s = source.take()
        computing = time.perf_counter()
        time.sleep(task.step_s)
        computes.append(time.perf_counter() - computing)
        pipe.send(None)
        pipe.recv()
        ended.append(time.perf_counter())
        waits.append(wait_s)
        fetches.append(fetch_s)
    return Steps(begun, ended, waits, computes, fetches, source.bytes, source.samples, source.grown, readers.share())


def _read(source: _Loaded, task: AcceleratorTask) -> Steps:
    """The same batches as fast as they arrive."""
    begun = time.perf_counter()
    ended = []
    for _ in range(task.steps):
        source.take()
        ended.append(time.perf_counter())
    return Steps(begun, ended, [], [], [], source.bytes, source.samples, 0)


class _ReaderTime:
    """How long the readers of this process ran, or waited for a processor, from its creation on, by the kernel."""

    def __init__(self) -> None:
        self._readers = [each.pid for each in multiprocessing.active_children() if each.pid is not None]
        self._begun = time.perf_counter()
        self._before = self._seconds()

    def share(self) -> float:
        """The mean of the readers, as a share of the time; the threads of a reader count together."""
        elapsed = time.perf_counter() - self._begun
        return max(0.0, self._seconds() - self._before) / (elapsed * max(1, len(self._readers)))

    def _seconds(self) -> float:
        """Of all threads that exist now; 0 where the kernel does not count it (sched_info)."""
        total = 0
        for pid in self._readers:
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError, IndexError, ValueError):  # the thread has ended
                    total += sum(map(int, path.read_text().split()[:2]))
        return total / 1e9
