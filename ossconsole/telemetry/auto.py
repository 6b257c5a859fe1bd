"""Auto-A/B: alternates the endpoints of a run until the ratio is known well enough, then stays on the faster one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.compare import MIN_SEGMENTS, Comparison

if TYPE_CHECKING:
    from ossconsole.telemetry.view import RunView

TARGET_SPREAD = 0.05
MAX_VISITS = 40
MIN_STEPS = 12


class AutoCompare:
    """Decides when to switch; the owner asks after every look at the run, and does the switching.

    A visit ends after `every` settled steps. `done` once the spread is within `target` with each endpoint visited
    twice, or after MAX_VISITS visits.
    """

    def __init__(self, every: int = MIN_STEPS, target: float = TARGET_SPREAD) -> None:
        self.every = every
        self.target = target
        self.visits = 0
        self.done = False
        self._asked: EndpointKind | None = None

    def decide(self, view: RunView) -> EndpointKind | None:
        """The endpoint to switch to now, or None to stay."""
        if self.done or view.endpoint is None or self._asked not in (None, view.endpoint):
            return None
        self._asked = None
        if view.settled_steps < self.every:
            return None
        self.visits += 1
        comparison = view.comparison
        known = comparison is not None and comparison.spread <= self.target and self.visits >= 2 * MIN_SEGMENTS
        if known or self.visits >= MAX_VISITS:
            self.done = True
            return self._choose(view, comparison)
        return self._ask(view.endpoint.other)

    def _choose(self, view: RunView, comparison: Comparison | None) -> EndpointKind | None:
        if comparison is None:
            return None
        faster = EndpointKind.ACCELERATED if comparison.ratio >= 1 else EndpointKind.STANDARD
        return None if faster is view.endpoint else self._ask(faster)

    def _ask(self, kind: EndpointKind) -> EndpointKind:
        self._asked = kind
        return kind

    def words(self, comparison: Comparison | None) -> str:
        """Where it stands, for the A/B panel and the event log."""
        if not self.done:
            return f"auto-A/B: visit {self.visits + 1}, goal ± {self.target * 100:.0f} %"
        if comparison is None:
            return "auto-A/B ended: too few readings"
        result = f"{comparison.ratio:.2f}x ± {comparison.spread * 100:.0f} %"
        if comparison.spread > self.target:
            return f"auto-A/B gave up after {self.visits} visits: {result}"
        return f"auto-A/B done: accelerated gives {result}"
