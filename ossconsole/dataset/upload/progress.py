"""Progress of an upload: the statistics that its threads update, and the snapshot that a screen reads."""

from __future__ import annotations

import contextlib
import enum
import itertools
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from ossconsole.storage.jobs.job import Failure, RateWindow


class Counts(msgspec.Struct, frozen=True, gc=False):
    """Counts of files, or a change of them. Totals of `done` never fall and never exceed `total`."""

    counted: int = 0
    """Found by counting ahead of the planner."""
    planned: int = 0
    plan_ended: int = 0
    """1 once the last file has been planned: the number planned is the total."""
    uploaded: int = 0
    unchanged: int = 0
    ignored: int = 0
    failed: int = 0
    missing: int = 0
    """Not found by the verification, and not sent again yet."""
    bytes: int = 0
    by_plan: int = 0
    """Finished by the plan alone: unused, rejected, or known to be unchanged."""

    @property
    def worked(self) -> int:
        """Files that were finished by work: sent, found to be unchanged once prepared, or failed."""
        return self.done - self.by_plan

    @property
    def done(self) -> int:
        """Files that are finished, including missing ones."""
        return self.uploaded + self.unchanged + self.ignored + self.failed + self.missing

    @property
    def total(self) -> int:
        """Files known so far."""
        return self.planned if self.plan_ended else max(self.counted, self.planned)

    def __add__(self, change: Counts) -> Counts:
        return Counts(*map(operator.add, msgspec.structs.astuple(self), msgspec.structs.astuple(change)))


PLANNED, PLAN_ENDED = Counts(planned=1), Counts(plan_ended=1)
UNCHANGED, IGNORED, REJECTED = Counts(unchanged=1, by_plan=1), Counts(ignored=1, by_plan=1), Counts(failed=1, by_plan=1)
"""The changes by the plan of a file."""

COMPARED = Counts(unchanged=1)
"""The change when a sample that was prepared is in the bucket already."""


def sample_sent(size: int, *, resent: bool = False) -> Counts:
    """The change when a sample of `size` bytes is in the bucket; `resent` after `sample_missing`."""
    return Counts(uploaded=1, bytes=size, missing=-resent)


def sample_failed(*, resent: bool = False) -> Counts:
    """The change when a file did not become a sample; `resent` after `sample_missing`."""
    return Counts(failed=1, missing=-resent)


def sample_missing(*, unchanged: bool) -> Counts:
    """The change when the verification does not find a sample that was sent (or, `unchanged`, by an earlier run)."""
    return Counts(unchanged=-1, missing=1) if unchanged else Counts(uploaded=-1, missing=1)


class PipelineStage(str, enum.Enum):
    """The stages that can limit the pipeline."""

    PLAN = "plan"
    READ = "read"
    PREPARE = "prepare"
    SEND = "send"
    CAP = "bandwidth cap"

    def __str__(self) -> str:
        return self.value


class Busy(msgspec.Struct, frozen=True, gc=False):
    """Seconds that the stages' threads have worked, summed since the start; `capped` waiting for the cap."""

    read: float = 0.0
    prepare: float = 0.0
    send: float = 0.0
    capped: float = 0.0


class Rates(msgspec.Struct, frozen=True):
    """Rates over the last 10 s; `files_per_s` of all files that were finished by work."""

    samples_per_s: float
    files_per_s: float
    bytes_per_s: float
    bottleneck: PipelineStage | None


class UploadRates:
    """Rates over the last seconds, from marks set while the work continues."""

    def __init__(self, now: float) -> None:
        self._window = RateWindow(now, 0, 0, 0, 0, 0, 0, 0)

    def mark(self, now: float, counts: Counts, busy: Busy) -> None:
        """Remembers the state of the work; may be called at any rate."""
        self._window.mark(now, counts.uploaded, counts.worked, counts.bytes, *msgspec.structs.astuple(busy))

    def rates(self, now: float, counts: Counts, busy: Busy, *, workers: int, senders: int) -> Rates:
        """The rates now, with `workers` preparation processes and `senders` threads at work."""
        elapsed, (samples, files, size, *seconds) = self._window.changes(
            now, counts.uploaded, counts.worked, counts.bytes, *msgspec.structs.astuple(busy)
        )
        if elapsed <= 0:
            return Rates(0.0, 0.0, 0.0, None)
        stage = _bottleneck(Busy(*seconds), elapsed, workers, senders)
        # A missing sample lowers the count of those sent, which is not a negative rate.
        return Rates(max(0, samples) / elapsed, max(0, files) / elapsed, size / elapsed, stage)


def _bottleneck(busy: Busy, elapsed: float, workers: int, senders: int) -> PipelineStage | None:
    """The stage whose threads were busiest in `elapsed` seconds; the planner when none had much to do."""
    shares = {
        PipelineStage.READ if busy.read > busy.prepare else PipelineStage.PREPARE: (busy.read + busy.prepare) / workers,
        PipelineStage.SEND: busy.send / senders,
        PipelineStage.CAP: busy.capped / senders,
    }
    stage, share = max(shares.items(), key=lambda item: item[1])
    share /= elapsed
    if share < 0.05:
        return None
    return stage if share > 0.4 else PipelineStage.PLAN


_RECENT = 8
_CLASSES = 24
_MANY_CHECKS = 1.2


class Phase(str, enum.Enum):
    """The phase of an upload; the last three are final."""

    STARTING = "starting"
    UPLOADING = "uploading"
    VERIFYING = "verifying"
    FINISHING = "finishing"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether the upload has ended."""
        return self in {Phase.DONE, Phase.CANCELLED, Phase.FAILED}

    def __str__(self) -> str:
        return self.value


class UploadProgress(msgspec.Struct, frozen=True, kw_only=True):
    """An upload at one moment. Counts are of files; `done` of `total`, which still grows until `total_known`.

    `skipped` are unchanged samples and files that are not images. Rates are over the last 10 s (over the whole upload
    once it has ended): `samples_per_s` of samples sent, `files_per_s` also of those that were prepared and found to be
    unchanged or damaged. `eta_s` follows from the latter; it is None while it is unknown. `workers` has the key that
    each process prepares.
    `waiting` says which request waits to be sent again, and why; "" while none does. `classes` has the samples that
    are in the bucket by class, of the _CLASSES that were uploaded last, by name; `class_count` is the number of all.
    """

    phase: Phase
    paused: bool
    total: int
    total_known: bool
    done: int
    uploaded: int
    unchanged: int
    skipped: int
    failed: int
    retries: int
    bytes: int
    seconds: float
    samples_per_s: float
    bytes_per_s: float
    eta_s: float | None
    bottleneck: PipelineStage | None
    workers: tuple[str, ...]
    sending: int
    parallelism: int
    bandwidth: float | None
    recent_failures: tuple[Failure, ...]
    error: str
    waiting: str = ""
    classes: tuple[tuple[str, int], ...] = ()
    class_count: int = 0
    files_per_s: float = 0.0

    @property
    def checks(self) -> bool:
        """Whether much of the work finds out that nothing is to be sent."""
        return self.files_per_s > _MANY_CHECKS * self.samples_per_s


class SamplePreview(msgspec.Struct, frozen=True):
    """The newest prepared sample, to be shown; `payload` as it is sent."""

    key: str
    height: int
    width: int
    payload: bytes


class UploadStats:
    """Counts, times and the newest failures; safe from any thread. Reading it is cheap."""

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.phase = Phase.STARTING
        self.preview: SamplePreview | None = None
        self.retries = 0
        self.counts = Counts()
        self._sending = 0
        self._lock = threading.Lock()
        self._total_known = False
        self._busy = Busy()
        self._recent: deque[Failure] = deque(maxlen=_RECENT)
        self._workers = [""] * workers
        self._classes: dict[str, int] = {}  # the one counted last at the end
        self._began = clock()
        self._ended: float | None = None
        self._rates = UploadRates(self._began)

    def add(self, change: Counts) -> None:
        """Changes the counts."""
        with self._lock:
            self.counts += change
            self._rates.mark(self._clock(), self.counts, self._busy)

    def count_class(self, name: str) -> None:
        """One more sample of the class is in the bucket."""
        with self._lock:
            self._classes[name] = self._classes.pop(name, 0) + 1

    def add_failure(self, failure: Failure, change: Counts) -> None:
        """Changes the counts and keeps the failure among the newest."""
        self._recent.append(failure)
        self.add(change)

    def add_retry(self) -> None:
        """Counts a request that is sent again."""
        with self._lock:
            self.retries += 1

    def add_busy_time(self, **seconds: float) -> None:
        """Adds to the busy times; names are those of `Busy`."""
        with self._lock:
            changed = {name: getattr(self._busy, name) + value for name, value in seconds.items()}
            self._busy = msgspec.structs.replace(self._busy, **changed)

    def set_preparing(self, worker: int, key: str) -> None:
        """Worker number `worker` prepares `key`; "" for nothing."""
        self._workers[worker] = key

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Counts one more sender at work until the block ends."""
        with self._lock:
            self._sending += 1
        try:
            yield
        finally:
            with self._lock:
                self._sending -= 1

    def totals_known(self) -> None:
        """Every file of the source has been counted."""
        self._total_known = True

    def end(self, phase: Phase) -> None:
        """Stops the clock."""
        with self._lock:
            self.phase = phase
            self._ended = self._clock()

    @property
    def seconds(self) -> float:
        """Since the start, until the end."""
        return (self._ended or self._clock()) - self._began

    def snapshot(
        self, *, paused: bool, parallelism: int, bandwidth: float | None, error: str, waiting: str
    ) -> UploadProgress:
        """The figures of this moment."""
        with self._lock:
            now = self._ended or self._clock()
            counts, seconds = self.counts, now - self._began
            rates = self._rates.rates(now, counts, self._busy, workers=len(self._workers), senders=parallelism)
            per_s, files_per_s, bytes_per_s = rates.samples_per_s, rates.files_per_s, rates.bytes_per_s
            if self._ended is not None and seconds > 0:
                per_s, files_per_s, bytes_per_s = (n / seconds for n in (counts.uploaded, counts.worked, counts.bytes))
            # Requests that wait add nothing to the busy times before they end.
            bottleneck = PipelineStage.SEND if waiting else rates.bottleneck
            known = self._total_known or bool(counts.plan_ended)
            left = counts.total - counts.done
            return UploadProgress(
                phase=self.phase,
                paused=paused,
                total=counts.total,
                total_known=known,
                done=counts.done,
                uploaded=counts.uploaded,
                unchanged=counts.unchanged,
                skipped=counts.unchanged + counts.ignored,
                failed=counts.failed,
                retries=self.retries,
                bytes=counts.bytes,
                seconds=seconds,
                samples_per_s=per_s,
                bytes_per_s=bytes_per_s,
                eta_s=left / files_per_s if known and files_per_s > 0 and self._ended is None and not paused else None,
                bottleneck=None if paused or self._ended is not None else bottleneck,
                workers=tuple(self._workers),
                sending=self._sending,
                parallelism=parallelism,
                bandwidth=bandwidth,
                recent_failures=tuple(self._recent),
                error=error,
                waiting=waiting,
                classes=tuple(sorted(itertools.islice(reversed(self._classes.items()), _CLASSES))),
                class_count=len(self._classes),
                files_per_s=files_per_s,
            )
