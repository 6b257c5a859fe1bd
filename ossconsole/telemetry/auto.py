"""Auto-A/B: alternates the endpoints of a run until the comparison is decided, then stays on the faster one.

Without a decision it goes back to the endpoint of the start.

A/A is its control: the same with one endpoint under both names, where the ratio is known to be 1.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import TARGET, Comparison
from ossconsole.telemetry.measure import Measurement
from ossconsole.telemetry.visits import Visits

if TYPE_CHECKING:
    from ossconsole.telemetry.view import RunView

MAX_PAIRS = 20
_LONGER = 0.25  # stretches vary in length by up to this share
_BLOCK = 2  # pairs


class _Order:
    """When to switch: the order of the visits, drawn by `seed`.

    Pairs come in blocks of two, each ABBA or BAAB by chance: a steady drift cancels within a block, and nothing
    periodic can keep step with the blocks. Visits of one endpoint that follow each other are one stretch, and its
    length varies by chance too. A switch between two blocks makes no pair.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._left = _BLOCK  # switches of the block that are still to come
        self._longer = self._draw()

    def _draw(self) -> float:
        return 1 + _LONGER * self._random.random()

    def due(self, visits: Visits) -> bool:
        """Whether to switch now; the caller does so where it is True."""
        if not self._left:
            if not visits.complete:
                return False
            self._left = _BLOCK
            if self._random.random() < 0.5:
                return True
        if not visits.ripe(self._longer):
            return False
        self._left -= 1
        self._longer = self._draw()
        return True


class AutoCompare:
    """Decides when to switch; the owner calls `decide` after every reading of the run, and switches the endpoint.

    `done` once the interval decides and is precise, or after MAX_PAIRS pairs (twice as many where the cache is cold for
    some and warm for others), or when the owner ends it; `outcome` then describes the result. The comparison has its
    decision as soon as there is one. The order of the visits is drawn by `seed`.
    """

    def __init__(self, seed: int = 0) -> None:
        self.done = False
        self.outcome = ""
        self._order = _Order(seed)
        self._looks: int | None = None  # those made before the start decide nothing
        self._had: dict[bool, int] = {}  # pairs, by temperature of the cache, at the start
        self._collected = 0
        self._short = ""
        self._asked: EndpointKind | None = None
        self._first: EndpointKind | None = None  # the endpoint at the start

    def decide(self, view: RunView) -> EndpointKind | None:
        """The endpoint to switch to now, or None to stay."""
        if self.done or view.endpoint is None or self._asked not in (None, view.endpoint):
            return None
        self._asked = None
        measured = view.measurement
        pairs, cold = measured.visits.pairs, measured.visits.cold
        if self._looks is None:
            self._first = view.endpoint
            self._looks, self._had = measured.looks, {part: found.count for part, found in pairs.items()}
        self._collected = pairs[cold].count
        new = {part: found.count - self._had[part] for part, found in pairs.items()}
        if measured.looks > self._looks:
            self._looks = measured.looks
            if _enough(view.comparison):
                return self._end("done", "", view)
        if new[cold] >= MAX_PAIRS or sum(new.values()) >= 2 * MAX_PAIRS:
            how = "done" if view.comparison.decided else "gave up"
            return self._end(how, f" after {self._collected} pairs", view)
        return self._ask(view.endpoint.other) if self._order.due(measured.visits) else None

    def end(self, why: str, view: RunView) -> None:
        """Ends the comparison: the run must not be switched any more."""
        self._conclude("ended", f", {why}", view.comparison)

    def stay_on(self, view: RunView) -> EndpointKind | None:
        """The endpoint to stay on where it ends now; None where the run is on it, or switches to it."""
        wanted = view.comparison.faster or self._first
        return None if wanted is (self._asked or view.endpoint) else wanted

    def _end(self, how: str, why: str, view: RunView) -> EndpointKind | None:
        """Ends it; the endpoint to stay on, where it is another one."""
        self._conclude(how, why, view.comparison)
        wanted = self.stay_on(view)
        return None if wanted is None else self._ask(wanted)

    def _conclude(self, how: str, why: str, comparison: Comparison) -> None:
        self.done = True
        comparison = msgspec.structs.replace(comparison, over=True)
        found = f"the accelerated endpoint {comparison.sentence}" if comparison.decided else comparison.words
        self.outcome = f"auto A/B {how}{why}: {found}"
        self._short = f"auto A/B {how}: {comparison.words}"

    def _ask(self, kind: EndpointKind) -> EndpointKind:
        self._asked = kind
        return kind

    @property
    def words(self) -> str:
        """Where it stands, in few words."""
        if self._short:
            return self._short
        found = Comparison(pairs=self._collected)
        return f"auto A/B: {found.pairs}/{found.needed} pairs, until ± {TARGET * 100:.0f} %"


def _enough(comparison: Comparison) -> bool:
    """Whether the last look is precise enough to end with."""
    return comparison.decided and comparison.estimate is not None and comparison.estimate.precise


class LabelControl:
    """A/A without switches: the steps are labelled with both endpoints by turns, and the run does not change. It tests
    the estimator with this run's noise, drift and stalls: 1.00 must be inside the interval. As after a real switch,
    batches that were read ahead keep the name they had. `done` once the interval is precise, or after MAX_PAIRS pairs,
    or when the run changes the endpoint or ends; `outcome` then describes the result.
    """

    def __init__(self, run: events.Run, endpoint: EndpointKind, seed: int = 0) -> None:
        self.endpoint = endpoint
        self.done = False
        self.outcome = ""
        self.measurement = Measurement()
        self.measurement.apply(msgspec.structs.replace(run, settings={**run.settings, "endpoint": str(endpoint)}))
        self._order = _Order(seed)
        self._name = endpoint
        self._ahead = 0  # batches that keep the other name

    def apply(self, event: events.Event) -> None:
        """Take an event of the run, in its order."""
        if self.done:
            return
        if isinstance(event, events.Switch):
            self.end(f"the run changed to {event.endpoint}")
        elif isinstance(event, events.State) and event.state.final:
            self.end("the run is over")
        elif isinstance(event, events.Step):
            self._step(event)
        elif isinstance(event, events.State | events.Epoch):
            self.measurement.apply(event)

    def _step(self, step: events.Step) -> None:
        if step.endpoint is not self.endpoint:
            return  # read ahead before the run came to this endpoint
        kept = self._ahead > 0
        self._ahead -= kept
        name = self._name.other if kept else self._name
        # Single samples of one endpoint under both names cannot separate hits from misses.
        self.measurement.apply(msgspec.structs.replace(step, endpoint=name, single_s=None))
        found = self.measurement.comparison
        if found.pairs >= MAX_PAIRS or (found.estimate is not None and found.estimate.precise):
            self._conclude("")
        elif self._order.due(self.measurement.visits):
            self._name, self._ahead = self._name.other, step.queued
            self.measurement.apply(events.Switch(time=step.time, endpoint=self._name, reason="A/A", step=step.step))

    def end(self, why: str) -> None:
        """Ends the control, with or without a result."""
        self._conclude(f" ended, {why}")

    @property
    def passed(self) -> bool | None:
        """Whether 1.00 is inside the interval; None where there is none yet."""
        found = self.measurement.comparison.estimate
        return None if found is None else found.low <= 1 <= found.high

    def _conclude(self, how: str) -> None:
        self.done = True
        found = self.measurement.comparison
        what = f"A/A control on {self.endpoint} alone{how}"
        if self.passed is None:
            self.outcome = f"{what}: {msgspec.structs.replace(found, over=True).words}"
            return
        says = (
            "1.00 is inside, as it must be"
            if self.passed
            else "1.00 is outside, as in 1 of 20 controls by chance: repeat it before you trust this run's A/B"
        )
        self.outcome = f"{what}: {found.interval} over {found.pairs} pairs; {says}"

    @property
    def words(self) -> str:
        """Where it stands, in few words."""
        found = self.measurement.comparison
        if self.passed is None:
            return f"A/A control{' ended' if self.done else f': {found.collecting}'}"
        return f"A/A: {found.interval}, 1.00 {'inside' if self.passed else 'outside'}"
