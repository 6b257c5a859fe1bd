"""Auto-A/B: alternates the endpoints of a run until the ratio is known well enough, then stays on the faster one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted
from ossconsole.telemetry.compare import MIN_SEGMENTS, Comparison
from ossconsole.telemetry.verdict import ratio_words

if TYPE_CHECKING:
    from ossconsole.telemetry.view import RunView

TARGET_SPREAD = 0.05
MAX_VISITS = 40
MIN_STEPS = 12


class AutoCompare:
    """Decides when to switch; the owner asks after every look at the run, and does the switching.

    A visit ends after `every` settled steps. `done` once the spread is within `target` with each endpoint visited
    twice, or after MAX_VISITS visits, or when the owner ends it; `outcome` then says what came of it.
    """

    def __init__(self, every: int = MIN_STEPS, target: float = TARGET_SPREAD) -> None:
        self.every = every
        self.target = target
        self.visits = 0
        self.done = False
        self.outcome = ""
        self._short = ""
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
        if comparison is not None and comparison.spread <= self.target and self.visits >= 2 * MIN_SEGMENTS:
            self._end("done", "", comparison)
        elif self.visits >= MAX_VISITS:
            self._end("gave up", f" after {counted(self.visits, 'visit')}", comparison)
        else:
            return self._ask(view.endpoint.other)
        return self._choose(view, comparison)

    def end(self, why: str, view: RunView) -> None:
        """The run is not to be switched any more."""
        self._end("ended", f", {why}", view.comparison)

    def _end(self, how: str, why: str, comparison: Comparison | None) -> None:
        self.done = True
        long, short = ("too few readings",) * 2
        if comparison is not None:
            long, short = f"accelerated gives {ratio_words(comparison)}", comparison.words
        self.outcome = f"auto-A/B {how}{why}: {long}"
        self._short = f"auto-A/B {how}: {short}"

    def _choose(self, view: RunView, comparison: Comparison | None) -> EndpointKind | None:
        if comparison is None:
            return None
        faster = EndpointKind.ACCELERATED if comparison.ratio >= 1 else EndpointKind.STANDARD
        return None if faster is view.endpoint else self._ask(faster)

    def _ask(self, kind: EndpointKind) -> EndpointKind:
        self._asked = kind
        return kind

    @property
    def words(self) -> str:
        """Where it stands, in few words."""
        return self._short or f"auto-A/B: visit {self.visits + 1}, goal ± {self.target * 100:.0f} %"
