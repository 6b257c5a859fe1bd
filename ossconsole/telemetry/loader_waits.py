"""What a watched script waits for: the usual causes of late batches from a loader with worker processes."""

from __future__ import annotations

import enum

from ossconsole.config.text import counted
from ossconsole.telemetry.events import LoaderWorkers, RankWork, Run
from ossconsole.telemetry.ranks import RankFigures
from ossconsole.telemetry.samples import WorkerUsage

_EPOCH_START = 0.6  # share of all waiting that falls on the first batches of epochs, from which that is the cause
_EPOCHS = 2  # the first epoch also pays for imports and caches
_BUSY = 0.6  # share of its time, above which a worker computes rather than waits for data
_WORKING = 0.2  # share of its time that a worker is idle, below which it limits the rate
_IDLE = 0.5  # share of its time, above which it does not
_SLOW_RANK = 2.0  # times the mean wait of the other ranks
_MIN_WAIT = 0.05  # share of the steps; less waiting of a rank is noise


class LoaderCause(enum.Enum):
    """Why batches come late."""

    SLOW_RANK = enum.auto()
    IN_PROCESS = enum.auto()
    EPOCH_START = enum.auto()
    SLOW_WORKER = enum.auto()
    DECODING = enum.auto()
    READING = enum.auto()
    TRANSFER = enum.auto()
    UNKNOWN = enum.auto()


class LoaderWaits:
    """The waits of a watched loop by position in the epoch, and the use of the loader's worker processes.

    `stated` is the number of worker processes by the loader itself: 0 where batches are made in the training process,
    None where it does not say, as a generator around a DataLoader.
    """

    def __init__(self, stated: int | None) -> None:
        self.stated = stated
        self.usage: tuple[WorkerUsage, ...] = ()
        self.ranks: tuple[RankFigures, ...] = ()
        """The newest figures of the ranks; empty before the first."""
        self._epoch = 0
        self._index = 0
        self._epochs = 0
        self._wait_s = 0.0
        self._first_wait_s = 0.0

    @classmethod
    def of(cls, run: Run) -> LoaderWaits:
        """Those of a run, before its first step."""
        workers = run.settings.get("workers")
        return cls(workers if isinstance(workers, int) else None)

    def apply(self, event: LoaderWorkers | RankWork) -> None:
        """Takes the newest figures of the workers or of the ranks."""
        if isinstance(event, LoaderWorkers):
            self.usage = event.workers
            return
        self.ranks = event.ranks

    def add(self, epoch: int, wait_s: float) -> None:
        """Adds the wait of one step, seconds."""
        if epoch != self._epoch:
            self._epoch, self._index = epoch, 0
            self._epochs += 1
        self._index += 1
        if self._epochs > 1:
            self._wait_s += wait_s
            self._first_wait_s += wait_s if self._index <= max(1, self.workers) else 0.0

    @property
    def workers(self) -> int:
        """The number of worker processes; of a loader that does not say, the children of the training process."""
        return len(self.usage) if self.stated is None else self.stated

    @property
    def slowest_rank(self) -> int | None:
        """The rank that waits much longer than the others; None without one."""
        waits = [rank.wait_fraction for rank in self.ranks]
        if len(waits) < 2:
            return None
        slowest = max(range(len(waits)), key=waits.__getitem__)
        others = (sum(waits) - waits[slowest]) / (len(waits) - 1)
        return slowest if waits[slowest] >= max(_MIN_WAIT, _SLOW_RANK * others) else None

    @property
    def slow_worker(self) -> int | None:
        """The position of the one worker that is never idle while all others mostly are; None without one."""
        idle = [worker.idle for worker in self.usage]
        busy = [at for at, share in enumerate(idle) if share is not None and share < _WORKING]
        others = [share for at, share in enumerate(idle) if at not in busy]
        if len(busy) != 1 or not others or not all(share is not None and share > _IDLE for share in others):
            return None
        return busy[0]

    @property
    def cause(self) -> LoaderCause:
        """The cause that fits best."""
        starts = self._epochs > _EPOCHS and self._first_wait_s >= _EPOCH_START * self._wait_s > 0
        idle = [worker.idle for worker in self.usage if worker.idle is not None]
        runnable = [worker.runnable for worker in self.usage]
        causes = {
            LoaderCause.SLOW_RANK: self.slowest_rank is not None,
            LoaderCause.IN_PROCESS: not self.workers,
            LoaderCause.EPOCH_START: starts,
            LoaderCause.SLOW_WORKER: self.slow_worker is not None,
            LoaderCause.UNKNOWN: not self.usage,
            LoaderCause.TRANSFER: sum(idle) > _IDLE * len(idle),
            LoaderCause.DECODING: sum(runnable) >= _BUSY * len(runnable),
        }
        return next((cause for cause, fits in causes.items() if fits), LoaderCause.READING)


def advice(waits: LoaderWaits, *, cores: int) -> str:
    """The cause in words, and what would help; `cores` are those of the machine, 0 where unknown."""
    on = f" on {counted(cores, 'core')}" if cores else ""
    workers = counted(waits.workers, "worker")
    texts = {
        LoaderCause.IN_PROCESS: f"batches are made in the training process: {_workers_advice(waits)}{on}",
        LoaderCause.SLOW_RANK: f"rank {waits.slowest_rank} waits much longer than the others: compare its host",
        LoaderCause.EPOCH_START: "most waiting is for the first batches of an epoch: try persistent_workers=True",
        LoaderCause.SLOW_WORKER: (
            f"worker {waits.slow_worker} is always busy while the others are idle: look for slow samples"
        ),
        LoaderCause.DECODING: _decoding_advice(waits, cores, workers, on),
        LoaderCause.READING: (
            f"the {workers} wait for storage or network: more workers, a cache, or smaller samples would help"
        ),
        LoaderCause.TRANSFER: (
            f"the {workers} are mostly idle: the training process is slow to receive batches, try pin_memory and "
            "larger batches"
        ),
        LoaderCause.UNKNOWN: "the cause is not known yet",
    }
    return texts[waits.cause]


def _workers_advice(waits: LoaderWaits) -> str:
    return "use a DataLoader with num_workers" if waits.stated is None else "give the loader num_workers"


def _decoding_advice(waits: LoaderWaits, cores: int, workers: str, on: str) -> str:
    if cores and waits.workers >= cores:
        return f"the {workers} use all {counted(cores, 'core')}: cheaper decoding or smaller images would help"
    return f"the {workers} are busy computing{on}: more workers would help"


def loader_words(loader: str, workers: int) -> str:
    """The name of a loader with its workers: "DataLoader (8 workers)"."""
    return f"{loader} ({counted(workers, 'worker')})" if workers else loader
