"""RunMonitor: the run as this console has seen it; DashboardContext: what the panels are drawn from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.auto import AutoCompare, LabelControl
from ossconsole.telemetry.events import Event, InfoEvent, Switch, Telemetry
from ossconsole.telemetry.view import RunView
from ossconsole.tui.console import RunHandle, Services
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.text import Line, shorten


class RunMonitor:
    """The run of `services`, as far as it was pulled. `clock` gives Unix seconds."""

    def __init__(self, services: Services, clock: Callable[[], float] = time.time) -> None:
        self._services = services
        self._clock = clock
        self._run: RunHandle | None = None
        self.view = RunView()
        self.auto: AutoCompare | None = None
        self.control: LabelControl | None = None
        self._told_at = 0.0

    @property
    def now(self) -> float:
        return self._clock()

    @property
    def run(self) -> RunHandle | None:
        return self._run

    @property
    def busy(self) -> bool:
        """True while a run is alive."""
        return self._run is not None and self._run.alive

    @property
    def endpoint(self) -> EndpointKind | None:
        """The endpoint in use: the one that delivers, or that will."""
        if self.view.endpoint is not None:
            return self.view.delivering or self.view.endpoint
        return EndpointKind.STANDARD if self._services.profile is not None else None

    def pull(self) -> list[Event]:
        """Take in what happened since the last call."""
        run = self._services.run
        if run is not self._run:
            self._run = run
            self.view = RunView()
            self.auto = self.control = None
            self._told_at = 0.0
        events = run.drain() if run is not None else []
        for event in events:
            self.view.apply(event)
            self._control(event)
            if isinstance(event, Switch) and event.reason != _AUTO:
                self._end_auto(event.reason)
            elif isinstance(event, Telemetry):
                self._told_at = event.time
        sample = self._services.sample
        if sample is not None and sample.time - self._told_at > _TOLD_S:
            self.view.apply(sample.event())
        self._compare()
        return events

    def start_control(self) -> None:
        """Begins an A/A on the endpoint in use; auto-A/B ends."""
        run, endpoint = self.view.run, self.view.delivering
        if run is not None and endpoint is not None:
            self.auto = None
            self.control = LabelControl(run, endpoint, seed=int(self.now))

    def _control(self, event: Event) -> None:
        control = self.control
        if control is None or control.done:
            return
        control.apply(event)
        if control.done:
            self.view.apply(InfoEvent(time=self.now, message=control.outcome, step=self.view.step))

    def _compare(self) -> None:
        """Switch the run's endpoint where auto-A/B asks for it."""
        if self.auto is None or self.auto.done or self._run is None:
            return
        if not self._run.alive:
            self._end_auto("the run is over")
            return
        kind = self.auto.decide(self.view)
        if self.auto.done:
            self._tell_outcome(self.auto)
        if kind is not None:
            self._run.switch(kind, _AUTO)

    def _end_auto(self, why: str) -> None:
        if self.auto is not None and not self.auto.done:
            self.auto.end(why, self.view)
            self._tell_outcome(self.auto)

    def _tell_outcome(self, auto: AutoCompare) -> None:
        self.view.apply(InfoEvent(time=self.now, message=auto.outcome, step=self.view.step))


_AUTO = "auto A/B"
# A run of another process tells of the machine itself; its own share there is that process's.
_TOLD_S = 10.0


@dataclass(frozen=True)
class Context:
    """The run, the present (Unix seconds) and how to draw.

    `has_accelerated` tells of the profile, `steered` whether the screen has the keys that change the run.
    """

    view: RunView
    now: float
    glyphs: Glyphs
    has_accelerated: bool = True
    auto_words: str = ""
    steered: bool = True

    @property
    def simulated(self) -> bool:
        return self.view.run is not None and self.view.run.simulated

    def named(self, kind: EndpointKind) -> Line:
        return Line((self.glyphs.named(kind), str(kind)))

    def heading(self, title: str, width: int, *notes: str) -> Line:
        """A panel's first line: a rule that carries its title and, at the right, the first of `notes` that fits."""
        rule = self.glyphs.rule
        line = Line((f"{rule} ", "rule"), (f"{shorten(title, width - 4)} ", "title"))
        note = next((note for note in notes if note and line.width + len(note) + 4 <= width), "")
        if note:
            end = Line((" ", "rule"), (note, "dim"), (f" {rule}", "rule"))
            return line.to(width - end.width, "rule", rule).extend(end)
        return line.to(width, "rule", rule)
