"""Replay: a run's record as a source for the dashboard, played at any speed or followed while it grows."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry.events import Event
from ossconsole.telemetry.runs import RecordReader, RunSummary
from ossconsole.telemetry.view import RunView
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.text import Line, clock, percent, safe
from ossconsole.tui.train.dashboard import Dashboard, RunSource

SPEEDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 1000.0)
# About 50 ms of work: keys must not wait for a long record.
MAX_EVENTS_PER_PULL = 1000


class Replay:
    """Plays a record; with `follow`, applies all of it and then what is appended. Raises RecordError.

    `clock` returns real seconds; `now` is the time of the replay in Unix seconds.
    """

    def __init__(self, path: Path, *, follow: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.follow = follow
        self.playing = True
        self.view = RunView()
        self._clock = clock
        self._reader = RecordReader(path)
        self._waiting: deque[Event] = deque()
        self._speed = SPEEDS.index(10.0)
        self._time: float | None = None
        self._pulled_at = clock()
        self._ended = False
        self._closed = False
        self.has_backlog = False
        """True where the last pull left events that are due."""

    @property
    def now(self) -> float:
        """The time of the replay in Unix seconds; while following, the real time."""
        if self.follow:
            return time.time()
        if self._time is None or self._time == math.inf:
            return self.view.last_time or 0.0
        return self._time

    @property
    def speed(self) -> float:
        """Record seconds per real second."""
        return SPEEDS[self._speed]

    @property
    def skipping(self) -> bool:
        """True while the rest is played as fast as it can be read."""
        return self._time == math.inf and not self.at_end

    @property
    def read_share(self) -> float:
        """How much of the record was read, 0 to 1."""
        return self._reader.read_share

    @property
    def at_end(self) -> bool:
        """True once the whole record was applied."""
        return self._ended and not self._waiting

    def faster(self, direction: int) -> None:
        """The next higher (1) or lower (-1) speed."""
        self._speed = max(0, min(len(SPEEDS) - 1, self._speed + direction))

    def restart(self) -> None:
        """Plays from the beginning. Raises RecordError where the record is missing."""
        reader = RecordReader(self.path)
        self._reader.close()
        self._reader, self._closed = reader, False
        self._waiting.clear()
        self.view = RunView()
        self._time = None
        self._ended = False
        self.playing = True

    def skip(self) -> None:
        """Plays the rest as fast as it can be read."""
        self._time = math.inf
        self.playing = True

    def pull(self) -> None:
        """Applies the events that are due; none once it is closed. Raises RecordError."""
        self.has_backlog = False
        if self._closed:
            return
        now = self._clock()
        passed, self._pulled_at = now - self._pulled_at, now
        if not self._waiting:
            self._read()
        if not self.playing or not self._waiting:
            return
        if self._time is None:
            self._time = self._waiting[0].time
        self._time += passed * self.speed
        for _ in range(MAX_EVENTS_PER_PULL):
            if not self._waiting and not self._read():
                break
            if not self.follow and self._waiting[0].time > self._time:
                return
            self.view.apply(self._waiting.popleft())
        else:
            self.has_backlog = True
        if self.follow and self.view.state is not None and self.view.state.final and not self._waiting:
            self.follow, self.playing = False, False  # the run has ended: from now on it is a record
            self._time = self.view.last_time
        if self.at_end and self._time is not None and self.view.last_time is not None:
            self._time = min(self._time, self.view.last_time)

    def _read(self) -> bool:
        """Reads more events; False at the end of the record."""
        found = self._reader.poll()
        if not found and not self.follow:
            found = self._reader.finish()
        self._ended = not found
        self._waiting.extend(found)
        return bool(found)

    def close(self) -> None:
        """Closes the record; later pulls do nothing."""
        self._closed, self.follow, self.playing = True, False, False
        self._reader.close()


_YIELD_S = 0.01


class ReplayScreen(Dashboard):
    """A recorded run, played or followed; `replay` is closed with the screen."""

    SCOPE = "replay"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("replay")]

    def __init__(self, run: RunSummary, replay: Replay) -> None:
        super().__init__()
        self._run = run
        self._replay = replay

    @property
    def source(self) -> RunSource:
        """The replay."""
        return self._replay

    @property
    def record(self) -> Path:
        """The record that is played."""
        return self._replay.path

    @property
    def reading(self) -> float | None:
        """Of a live run that began long before."""
        replay = self._replay
        return replay.read_share if replay.follow and replay.has_backlog else None

    def body(self) -> ComposeResult:
        yield Panel(self._banner, id="replay")
        yield from super().body()

    def tick(self) -> None:
        if not self._replay.has_backlog:
            self._catch_up()
        super().tick()

    def _catch_up(self) -> None:
        """Apply the events that are due, in portions, so that keys are handled in between."""
        try:
            self._replay.pull()
        except ConsoleError as error:  # such as a stale file of a file server
            self._replay.close()
            self.show_error(error)
        if self._replay.has_backlog:
            self.set_timer(_YIELD_S, self._catch_up)

    def on_unmount(self) -> None:
        """Close the record."""
        self._replay.close()

    def _banner(self, width: int, _height: int) -> Sequence[Line]:
        replay, glyphs = self._replay, self.glyphs
        line = Line((" LIVE " if replay.follow else " REPLAY ", "chip-on"), (f" {safe(self._run.run)}", "strong"))
        if replay.follow:
            status = f"running as process {self._run.pid}"
        elif replay.at_end:
            status = f"{glyphs.done} end"
        elif replay.skipping:
            status = f"{glyphs.running} to the end: {percent(replay.read_share)}"
        else:
            mark = glyphs.running if replay.playing else glyphs.paused
            status = f"{mark} {replay.speed:g}x"
        line.add(f"  {status}", "text")
        return [line.right(Line((f"{clock(replay.now)} ", "dim")), width)]

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide the controls of the player while following a live run; a run is evaluated after its end."""
        if action == "predictions":
            return True if self._run.checkpoint and not self._replay.follow else None
        if action in {"play", "speed", "restart", "skip"} and self._replay.follow:
            return False
        return super().check_action(action, parameters)

    def label_now(self, action: str) -> str:
        """The key that plays also pauses."""
        return "Pause" if action == "play" and self._replay.playing and not self._replay.at_end else ""

    def action_play(self) -> None:
        """Play or pause; at the end, play from the beginning."""
        if self._replay.at_end:
            self.action_restart()
        else:
            self._replay.playing = not self._replay.playing
        self.draw()

    def action_speed(self, direction: int) -> None:
        """Play faster (1) or slower (-1)."""
        self._replay.faster(direction)
        self.draw()

    def action_restart(self) -> None:
        """Play from the beginning."""
        try:
            self._replay.restart()
        except ConsoleError as error:
            self.show_error(error)
        self._axis.follow()
        self.draw()

    def action_skip(self) -> None:
        """Skip to the end."""
        self._replay.skip()
        self.tick()
        self.draw()
