"""Progress of an upload: the scoreboard that its threads write, and the snapshot that a screen reads."""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from ossconsole.dataset.upload.journal import Failure
from ossconsole.storage.retry import WaitNotes

RATE_WINDOW_S = 10.0
_MARK_EVERY_S = 0.25


class Counted(msgspec.Struct, frozen=True, gc=False):
    """So many more files were found by counting ahead."""

    files: int


class Planned(msgspec.Struct, frozen=True, gc=False):
    """The planner has handed out or settled one more file."""


class PlanEnded(msgspec.Struct, frozen=True, gc=False):
    """The planner has seen the last file: the total is what it saw, whatever was counted."""


class Sent(msgspec.Struct, frozen=True, gc=False):
    """A sample is in the bucket. `again` when an earlier Reopened of it is settled by this."""

    bytes: int
    again: bool = False


class Unchanged(msgspec.Struct, frozen=True, gc=False):
    """A file whose sample is in the bucket already."""


class Ignored(msgspec.Struct, frozen=True, gc=False):
    """A file that is no picture."""


class Failed(msgspec.Struct, frozen=True, gc=False):
    """A file that did not become a sample in the bucket."""

    again: bool = False


class Reopened(msgspec.Struct, frozen=True, gc=False):
    """The verification did not find a sample that was sent (or, `unchanged`, sent by an earlier run)."""

    unchanged: bool


Event: TypeAlias = Counted | Planned | PlanEnded | Sent | Unchanged | Ignored | Failed | Reopened


class Tally(msgspec.Struct, frozen=True, gc=False):
    """Counts of files. `done` never falls and never exceeds `total`, whatever happens in between."""

    counted: int = 0
    planned: int = 0
    plan_ended: bool = False
    uploaded: int = 0
    unchanged: int = 0
    ignored: int = 0
    failed: int = 0
    reopened: int = 0
    bytes: int = 0

    @property
    def done(self) -> int:
        """Files that need nothing more, as far as is known; a reopened one stays among them."""
        return self.uploaded + self.unchanged + self.ignored + self.failed + self.reopened

    @property
    def total(self) -> int:
        """Files known so far."""
        return self.planned if self.plan_ended else max(self.counted, self.planned)


def reduce(tally: Tally, event: Event) -> Tally:
    """The tally after `event`."""
    gained: dict[str, int]
    match event:
        case Counted(files):
            gained = {"counted": files}
        case Planned():
            gained = {"planned": 1}
        case PlanEnded():
            return msgspec.structs.replace(tally, plan_ended=True)
        case Sent(size, again):
            gained = {"uploaded": 1, "reopened": -again, "bytes": size}
        case Unchanged():
            gained = {"unchanged": 1}
        case Ignored():
            gained = {"ignored": 1}
        case Failed(again):
            gained = {"failed": 1, "reopened": -again}
        case Reopened(unchanged):
            gained = {"unchanged" if unchanged else "uploaded": -1, "reopened": 1}
    return msgspec.structs.replace(tally, **{name: getattr(tally, name) + change for name, change in gained.items()})


class Stage(str, enum.Enum):
    """What holds the pipeline back."""

    PLAN = "plan"
    READ = "read"
    PREPARE = "prepare"
    SEND = "send"
    CAP = "bandwidth cap"

    def __str__(self) -> str:
        return self.value


class Busy(msgspec.Struct, frozen=True, gc=False):
    """Seconds that the stages' threads have worked, added up since the start; `capped` waiting for the cap."""

    read: float = 0.0
    prepare: float = 0.0
    send: float = 0.0
    capped: float = 0.0


class _Mark(msgspec.Struct, frozen=True, gc=False):
    time: float
    uploaded: int
    bytes: int
    busy: Busy


class Rates(msgspec.Struct, frozen=True):
    """Over the last 10 s."""

    samples_per_s: float
    bytes_per_s: float
    bottleneck: Stage | None


class RateWindow:
    """Rates over the last seconds, from marks that are set as the work goes on."""

    def __init__(self, now: float) -> None:
        self._marks: deque[_Mark] = deque([_Mark(now, 0, 0, Busy())])

    def wants_mark(self, now: float) -> bool:
        """Whether `mark` would remember anything."""
        return now - self._marks[-1].time >= _MARK_EVERY_S

    def mark(self, now: float, tally: Tally, busy: Busy) -> None:
        """Remembers where the work stands now; called as often as one likes."""
        if self.wants_mark(now):
            self._marks.append(_Mark(now, tally.uploaded, tally.bytes, busy))
            while len(self._marks) > 2 and now - self._marks[1].time > RATE_WINDOW_S:
                self._marks.popleft()

    def rates(self, now: float, tally: Tally, busy: Busy, *, workers: int, senders: int) -> Rates:
        """The rates now, with `workers` preparation processes and `senders` threads at work."""
        then = self._marks[0]
        elapsed = now - then.time
        if elapsed <= 0:
            return Rates(0.0, 0.0, None)
        # A reopened sample lowers the count of those sent, which is no negative rate.
        samples = max(0, tally.uploaded - then.uploaded) / elapsed
        return Rates(
            samples, (tally.bytes - then.bytes) / elapsed, _bottleneck(then.busy, busy, elapsed, workers, senders)
        )


def _bottleneck(before: Busy, now: Busy, elapsed: float, workers: int, senders: int) -> Stage | None:
    """The stage whose threads were busiest; the planner when none had much to do."""
    reading, preparing = now.read - before.read, now.prepare - before.prepare
    shares = {
        Stage.READ if reading > preparing else Stage.PREPARE: (reading + preparing) / workers / elapsed,
        Stage.SEND: (now.send - before.send) / senders / elapsed,
        Stage.CAP: (now.capped - before.capped) / senders / elapsed,
    }
    stage, share = max(shares.items(), key=lambda item: item[1])
    if share < 0.05:
        return None
    return stage if share > 0.4 else Stage.PLAN


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
