"""DemoGuide: the demo shows its point by itself: standard, then accelerated, then the two measured by turns."""

from __future__ import annotations

from dataclasses import dataclass

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.demo_speed import DemoSpeed, enough_steps
from ossconsole.telemetry.view import RunView
from ossconsole.tui.kit.text import percent

_WARM = 0.99  # of the samples have been read through the accelerated endpoint


@dataclass(frozen=True)
class GuideStep:
    """What to do now: the caption for the event log, the endpoint to switch to, and whether auto A/B starts.

    `objects_per_s` is the new speed of the sandbox's standard endpoint.
    """

    caption: str
    switch_to: EndpointKind | None = None
    objects_per_s: float | None = None
    compare: bool = False


class DemoGuide:
    """Asked after each look at the run; `done` once auto A/B has taken over. Any switch by hand ends it."""

    def __init__(self) -> None:
        self.done = False
        self.words = "demo: one epoch on standard"
        self._speed = DemoSpeed()
        self._looked = False
        self._switched = False

    def advance(self, view: RunView) -> GuideStep | None:
        """The next step, once its time has come."""
        if self.done or view.last_step is None:
            return None
        if not self._looked and enough_steps(view):
            self._looked = True
            if caption := self._speed.slow_down(view):
                return GuideStep(caption, objects_per_s=self._speed.objects_per_s)
        if not self._switched:
            return self._switch(view)
        self.words = f"demo: cache filling, {percent(view.cache_coverage)}"
        if view.cache_coverage < _WARM:
            return None
        if caption := self._speed.slow_down(view):  # the machine is busier than before
            return GuideStep(caption, objects_per_s=self._speed.objects_per_s)
        self.done = True
        return GuideStep(
            "The accelerator's cache is warm. Auto A/B alternates the endpoints until the ratio is known; a ends it.",
            compare=True,
        )

    def _switch(self, view: RunView) -> GuideStep | None:
        if view.last_epoch is None:
            return None
        self._switched = True
        if view.endpoint is EndpointKind.ACCELERATED:
            return None
        return GuideStep(
            "The demo switches to the accelerated endpoint. Its cache fills while each sample is read once more.",
            switch_to=EndpointKind.ACCELERATED,
        )
