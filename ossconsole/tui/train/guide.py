"""DemoGuide: the demo shows its point by itself: the cache fills, then the two endpoints are measured by turns."""

from __future__ import annotations

from dataclasses import dataclass

from ossconsole.telemetry.demo_speed import slowed_standard
from ossconsole.telemetry.view import RunView
from ossconsole.tui.kit.text import percent


@dataclass(frozen=True)
class GuideStep:
    """What to do now: the caption for the event log, and whether auto A/B starts.

    `objects_per_s` is the new speed of the sandbox's standard endpoint.
    """

    caption: str
    objects_per_s: float | None = None
    compare: bool = False


class DemoGuide:
    """Asked after each look at the run; `done` once auto A/B has taken over. A switch by hand ends it."""

    def __init__(self) -> None:
        self.done = False
        self.words = "demo: the first epoch fills the cache"
        self._looked = False

    def advance(self, view: RunView) -> GuideStep | None:
        """The next step, once its time has come: after the first epoch, which goes through the accelerated endpoint."""
        if self.done or view.last_step is None:
            return None
        if view.last_epoch is None:
            self.words = f"demo: cache filling, {percent(view.cache_coverage)}"
            return None
        if not self._looked:
            self._looked = True
            if slowed := slowed_standard(view):
                return GuideStep(slowed.caption, objects_per_s=slowed.objects_per_s)
        self.done = True
        return GuideStep(
            "The first epoch has filled the accelerator's cache. Auto A/B now alternates the endpoints until the ratio "
            "is known; a ends it.",
            compare=True,
        )
