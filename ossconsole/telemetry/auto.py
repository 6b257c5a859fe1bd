"""Auto-A/B: alternates the endpoints of a run until the comparison is decided, then stays on the faster one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.compare import TARGET, Comparison

if TYPE_CHECKING:
    from ossconsole.telemetry.view import RunView

MAX_PAIRS = 20
_LONGER = 0.25  # stretches vary in length by up to this share, so that nothing periodic can keep step with them


class AutoCompare:
    """Decides when to switch; the owner asks after every look at the run, and does the switching.

    Each stretch on an endpoint holds two visits: one for the pair of the switch before it, one for that of the next.
    `done` once the interval is precise and decides, or after MAX_PAIRS pairs, or when the owner ends it; `outcome` then
    says what came of it. The lengths of the stretches are drawn by `seed`.
    """

    def __init__(self, seed: int = 0) -> None:
        self.done = False
        self.outcome = ""
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._longer = self._draw()
        self._looks: int | None = None  # those made before the start decide nothing
        self._had: dict[bool, int] = {}  # pairs, by temperature of the cache, at the start
        self._collected = 0
        self._short = ""
        self._asked: EndpointKind | None = None

    def _draw(self) -> float:
        return 1 + _LONGER * self._random.random()

    def decide(self, view: RunView) -> EndpointKind | None:
        """The endpoint to switch to now, or None to stay."""
        if self.done or view.endpoint is None or self._asked not in (None, view.endpoint):
            return None
        self._asked = None
        measured = view.measurement
        pairs, cold = measured.visits.pairs, measured.visits.cold
        if self._looks is None:
            self._looks, self._had = measured.looks, {part: found.count for part, found in pairs.items()}
        self._collected = pairs[cold].count
        if measured.looks > self._looks:
            self._looks = measured.looks
            if _enough(view.comparison):
                return self._end("done", "", view)
        if self._collected - self._had[cold] >= MAX_PAIRS:
            return self._end("gave up", f" after {self._collected} pairs", view)
        if not measured.visits.ripe(self._longer):
            return None
        self._longer = self._draw()
        return self._ask(view.endpoint.other)

    def end(self, why: str, view: RunView) -> None:
        """The run is not to be switched any more."""
        self._conclude("ended", f", {why}", view.comparison)

    def _end(self, how: str, why: str, view: RunView) -> EndpointKind | None:
        """Ends it; the endpoint to stay on, where it is another one."""
        comparison = view.comparison
        self._conclude(how, why, comparison)
        faster = comparison.faster
        return None if faster in (None, view.endpoint) else self._ask(faster)

    def _conclude(self, how: str, why: str, comparison: Comparison) -> None:
        self.done = True
        found = f"the accelerated endpoint {comparison.sentence}" if comparison.decided else comparison.words
        self.outcome = f"auto-A/B {how}{why}: {found}"
        self._short = f"auto-A/B {how}: {comparison.words}"

    def _ask(self, kind: EndpointKind) -> EndpointKind:
        self._asked = kind
        return kind

    @property
    def words(self) -> str:
        """Where it stands, in few words."""
        if self._short:
            return self._short
        return f"auto-A/B: {Comparison(pairs=self._collected).collecting}, goal ± {TARGET * 100:.0f} %"


def _enough(comparison: Comparison) -> bool:
    """Whether the last look is precise enough to end with."""
    return comparison.decided and comparison.estimate is not None and comparison.estimate.precise
