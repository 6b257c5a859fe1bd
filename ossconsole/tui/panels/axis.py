"""The time axis that all charts share: follow, zoom, pan and a crosshair."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ossconsole.telemetry.view import RunView
from ossconsole.tui.text import duration

SPANS_S = (15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 604800)
_DEFAULT = SPANS_S.index(120)


@dataclass(frozen=True)
class TimeWindow:
    """The stretch of time that the charts show, in Unix seconds. `cursor` is the crosshair's time, None when off."""

    start: float
    end: float
    label: str = ""
    cursor: float | None = None

    def column(self, time: float, width: int) -> int:
        """The cell of `time` in `width` cells; outside of 0..width-1 where it is not shown."""
        return int((time - self.start) / (self.end - self.start) * width)

    def on_grid(self, width: int, origin: float) -> TimeWindow:
        """The window moved on so that it begins a whole number of cells after `origin`.

        Curves then stand still until a cell has passed: most updates change nothing but the newest cell.
        """
        cell = (self.end - self.start) / width
        ahead = (origin - self.start) % cell
        return replace(self, start=self.start + ahead, end=self.end + ahead)


class TimeAxis:
    """Follows the newest figures until it is moved; the crosshair moves by the hundredth of the window."""

    def __init__(self) -> None:
        self._level = _DEFAULT
        self._end: float | None = None
        self._cursor: float | None = None
        self._everything = False

    @property
    def following(self) -> bool:
        return self._end is None

    def window(self, view: RunView, now: float) -> TimeWindow:
        """While the run is younger than the window, the curves grow from the left."""
        newest, oldest = self._bounds(view, now)
        span = self._span(newest, oldest)
        end = newest if self._end is None else self._end
        end = max(end, oldest + span)
        cursor = None if self._cursor is None else min(max(self._cursor, end - span), end)
        words = "all" if self._everything else _span_words(span)
        label = words if self.following else f"{words}, {duration(newest - end)} ago"
        return TimeWindow(end - span, end, label, cursor)

    def zoom(self, view: RunView, now: float, direction: int) -> None:
        """A narrower (1) or wider (-1) window around its right edge; the widest holds the whole run."""
        newest, oldest = self._bounds(view, now)
        if direction > 0 and self._everything:
            self._everything = False
            return
        level = self._level - direction
        if direction < 0 and SPANS_S[self._level] >= newest - oldest:
            self._everything = True
            self._end = None
            return
        self._level = max(0, min(level, len(SPANS_S) - 1))

    def move(self, view: RunView, now: float, direction: int) -> None:
        """The crosshair by a hundredth of the window, or, without one, the window by a quarter; right is 1."""
        window = self.window(view, now)
        span = window.end - window.start
        if self._cursor is None or window.cursor is None:
            self._pan(view, now, direction * span / 4)
            return
        wanted = window.cursor + direction * span / 100
        if not window.start <= wanted <= window.end:
            self._pan(view, now, direction * span / 4)
        self._cursor = wanted

    def _pan(self, view: RunView, now: float, by: float) -> None:
        newest, oldest = self._bounds(view, now)
        window = self.window(view, now)
        span = window.end - window.start
        end = max(window.end + by, oldest + span)
        self._end = None if end >= newest else end

    def follow(self) -> None:
        """Back to the newest figures, without a crosshair."""
        self._end = None
        self._cursor = None

    def toggle_cursor(self, view: RunView, now: float) -> None:
        """A crosshair at the newest figure, or none."""
        if self._cursor is not None:
            self._cursor = None
            return
        window = self.window(view, now)
        newest, _ = self._bounds(view, now)
        self._cursor = min(newest, window.end)

    def _bounds(self, view: RunView, now: float) -> tuple[float, float]:
        """The time of the newest and of the oldest figure."""
        over = view.state is not None and view.state.final
        newest = view.last_time if over and view.last_time is not None else now
        return newest, min(view.run.time, newest) if view.run else newest

    def _span(self, newest: float, oldest: float) -> float:
        return max(float(SPANS_S[0]), newest - oldest) if self._everything else float(SPANS_S[self._level])


def _span_words(span: float) -> str:
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if span >= size:
            return f"{span / size:g} {word}"
    return f"{span:g} s"
