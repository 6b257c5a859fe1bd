"""Progress of an upload: a pure reducer over what happened to each file, and the rates of the last seconds."""

from __future__ import annotations

import enum
from collections import deque
from typing import TypeAlias

import msgspec

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
