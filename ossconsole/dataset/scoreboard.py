"""Scoreboard: where the threads of an upload book what they do, and the screen reads how far it is."""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from ossconsole.dataset.journal import Failure
from ossconsole.dataset.progress import Busy, Event, Failed, RateWindow, Stage, Tally, reduce
from ossconsole.storage.retry import WaitNotes

KEPT_FAILURES = 1000
_RECENT = 8


class Phase(str, enum.Enum):
    """What an upload does; the last three are final."""

    STARTING = "starting"
    UPLOADING = "uploading"
    VERIFYING = "verifying"
    FINISHING = "finishing"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        return self in {Phase.DONE, Phase.CANCELLED, Phase.FAILED}

    def __str__(self) -> str:
        return self.value


class UploadProgress(msgspec.Struct, frozen=True, kw_only=True):
    """An upload at one moment. Counts are of files; `done` of `total`, which still grows until `total_known`.

    `skipped` are unchanged samples and files that are no pictures. Rates are over the last 10 s (over the whole upload
    once it has ended); `eta_s` is None while it cannot be told. `workers` names what each process prepares.
    `waiting` says which request waits to be sent again, and why; "" while none does.
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
    bottleneck: Stage | None
    workers: tuple[str, ...]
    sending: int
    parallelism: int
    bandwidth: float | None
    recent_failures: tuple[Failure, ...]
    error: str
    waiting: str = ""


class Picture(msgspec.Struct, frozen=True):
    """The newest prepared sample, for a look at it; `payload` as it is sent."""

    key: str
    height: int
    width: int
    payload: bytes


class Scoreboard:
    """Counts, times and the newest failures; safe from any thread. Reading it is cheap."""

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.phase = Phase.STARTING
        self.picture: Picture | None = None
        self.failures: list[Failure] = []
        """The first thousand; all of them are in the journal."""
        self.retries = 0
        self.waits = WaitNotes()
        self.sending = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._tally = Tally()
        self._total_known = False
        self._busy = {"read": 0.0, "prepare": 0.0, "send": 0.0, "capped": 0.0}
        self._recent: deque[Failure] = deque(maxlen=_RECENT)
        self._workers = [""] * workers
        self._began = clock()
        self._ended: float | None = None
        self._window = RateWindow(self._began)

    @property
    def tally(self) -> Tally:
        return self._tally

    def happened(self, event: Event) -> None:
        with self._lock:
            self._tally = reduce(self._tally, event)
            now = self._clock()
            if self._window.wants_mark(now):
                self._window.mark(now, self._tally, Busy(**self._busy))

    def failed(self, failure: Failure, event: Event) -> None:
        with self._lock:
            self._recent.append(failure)
            if len(self.failures) < KEPT_FAILURES:
                self.failures.append(failure)
        self.happened(event)

    def lost(self, path: str, reason: str) -> None:
        """A file that cannot become a sample."""
        self.failed(Failure(path, reason), Failed())

    def retried(self) -> None:
        with self._lock:
            self.retries += 1

    def worked(self, **seconds: float) -> None:
        """Adds to the busy times; names are those of `Busy`."""
        with self._lock:
            for name, value in seconds.items():
                self._busy[name] += value

    def preparing(self, worker: int, key: str) -> None:
        self._workers[worker] = key

    def sends(self, change: int) -> None:
        with self._lock:
            self.sending += change

    def totals_known(self) -> None:
        self._total_known = True

    def end(self, phase: Phase) -> None:
        """Stops the clock."""
        with self._lock:
            self.phase = phase
            self._ended = self._clock()

    @property
    def seconds(self) -> float:
        return (self._ended or self._clock()) - self._began

    def snapshot(self, *, paused: bool, parallelism: int, bandwidth: float | None, error: str) -> UploadProgress:
        with self._lock:
            now = self._ended or self._clock()
            tally = self._tally
            rates = self._window.rates(now, tally, Busy(**self._busy), workers=len(self._workers), senders=parallelism)
            seconds = now - self._began
            per_s, bytes_per_s = rates.samples_per_s, rates.bytes_per_s
            if self._ended is not None and seconds > 0:
                per_s, bytes_per_s = tally.uploaded / seconds, tally.bytes / seconds
            known = self._total_known or tally.plan_ended
            left = tally.total - tally.done
            return UploadProgress(
                phase=self.phase,
                paused=paused,
                total=tally.total,
                total_known=known,
                done=tally.done,
                uploaded=tally.uploaded,
                unchanged=tally.unchanged,
                skipped=tally.unchanged + tally.ignored,
                failed=tally.failed,
                retries=self.retries,
                bytes=tally.bytes,
                seconds=seconds,
                samples_per_s=per_s,
                bytes_per_s=bytes_per_s,
                eta_s=left / per_s if known and per_s > 0 and self._ended is None and not paused else None,
                bottleneck=None if paused or self._ended is not None else rates.bottleneck,
                workers=tuple(self._workers),
                sending=self.sending,
                parallelism=parallelism,
                bandwidth=bandwidth,
                recent_failures=tuple(self._recent),
                error=error,
                waiting=self.waits.text,
            )
