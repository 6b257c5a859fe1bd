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
from ossconsole.tui.kit.text import Line, heading
from ossconsole.tui.train.guide import DemoGuide


class RunMonitor:
    """Reduces the events of the newest run into `view`. `clock` returns Unix seconds."""

    def __init__(self, services: Services, clock: Callable[[], float] = time.time) -> None:
        self._services = services
        self._clock = clock
        self._run: RunHandle | None = None
        self.view = RunView()
        self.auto: AutoCompare | None = None
        self.control: LabelControl | None = None
        self.guide: DemoGuide | None = None
        self.request: PendingRequest | None = None
        """The newest request to the run, until it has taken effect."""
        self._telemetry_at = 0.0
        self._refused = 0

    @property
    def now(self) -> float:
        """The time in Unix seconds."""
        return self._clock()

    @property
    def run(self) -> RunHandle | None:
        """The run that `view` shows, also after its end."""
        return self._run

    @property
    def busy(self) -> bool:
        """True while the run is alive."""
        return self._run is not None and self._run.alive

    @property
    def reading(self) -> float | None:
        """How much of the record of the run was read, 0 to 1, while `view` shows its past; else None."""
        return self._run.reading if self._run is not None else None

    @property
    def endpoint(self) -> EndpointKind | None:
        """The endpoint that delivers the batches of the run, or will; None without a usable profile."""
        if self.view.endpoint is not None:
            return self.view.delivering or self.view.endpoint
        return EndpointKind.STANDARD if self._services.profile is not None else None

    def pull(self) -> list[Event]:
        """Apply the events since the last call, and return them."""
        run = self._services.run
        if run is not self._run:
            self.leave("another profile was opened")
            self._run = run
            self.view = RunView()
            self.auto = self.control = self.request = None
            self.guide = DemoGuide() if self._services.is_demo else None
            self._telemetry_at = 0.0
            self._refused = 0
        events = run.drain() if run is not None else []
        for event in events:
            self.view.apply(event)
            self._control(event)
            if isinstance(event, Switch) and event.reason != _AUTO:
                self._end_auto(event.reason)
                self.guide = None
            elif isinstance(event, Telemetry):
                self._telemetry_at = event.time
        sample = self._services.sample
        if sample is not None and sample.time - self._telemetry_at > _TELEMETRY_EXPIRES_S:
            self.view.apply(sample.event())
        self._follow_guide()
        self._compare()
        refused = self._was_refused()
        if self.request is not None and (not self.busy or refused or self.request.done(self.view)):
            self.request = None
        return events

    def _was_refused(self) -> bool:
        """Whether the run refused a request since the last call; the event log says why."""
        before, self._refused = self._refused, self._run.refused if self._run is not None else 0
        return self._refused > before

    def leave(self, why: str) -> None:
        """End auto A/B when this console leaves the run, and switch the run to the endpoint that `stay_on` names."""
        auto, run = self.auto, self._run
        if auto is None or auto.done or run is None or not run.alive:
            return
        kind = auto.stay_on(self.view)
        self._end_auto(why)
        if kind is not None:
            run.switch(kind, _AUTO)

    def start_control(self) -> None:
        """Start the A/A control on the endpoint in use; auto A/B ends."""
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

    def _follow_guide(self) -> None:
        """Do the next step of the demo, with its caption among the events."""
        guide, run = self.guide, self._run
        if guide is None or run is None or not run.alive or self.auto is not None:
            return
        step = guide.advance(self.view)
        if step is None:
            return
        self.view.apply(InfoEvent(time=self.now, message=step.caption, step=self.view.step))
        if step.objects_per_s is not None:
            self._services.slow_down_sandbox(step.objects_per_s)
        if step.compare:
            self.auto = AutoCompare(seed=int(self.now))

    def _compare(self) -> None:
        """Switch the endpoint of the run when auto A/B requires it."""
        if self.auto is None or self.auto.done or self._run is None or self.reading is not None:
            return
        if not self._run.alive:
            self._end_auto("the run is over")
            return
        kind = self.auto.decide(self.view)
        if self.auto.done:
            self._log_outcome(self.auto)
        if kind is not None:
            self._run.switch(kind, _AUTO)

    def _end_auto(self, why: str) -> None:
        if self.auto is not None and not self.auto.done:
            self.auto.end(why, self.view)
            self._log_outcome(self.auto)

    def _log_outcome(self, auto: AutoCompare) -> None:
        self.view.apply(InfoEvent(time=self.now, message=auto.outcome, step=self.view.step))


_AUTO = "auto A/B"
# The telemetry of a run of another process is used instead of our own sampler while it is younger than this: its
# figures for "this process" are those of the run.
_TELEMETRY_EXPIRES_S = 10.0


@dataclass(frozen=True)
class PendingRequest:
    """What the run was asked for, in words, and how to see in its view that it was done."""

    name: str
    words: str
    done: Callable[[RunView], bool]


@dataclass(frozen=True)
class DashboardContext:
    """What the panels are drawn from; `now` in Unix seconds.

    `has_accelerated`: the profile has an accelerated endpoint. `has_controls`: the screen has the keys that change the
    run. `comparison_status`: the state of auto A/B or of the A/A control. `requested`: a request to the run that has
    not taken effect yet, in words. `price_per_hour`: of this machine, in CNY; 0 where that is not known. `reading`: how
    much of the record of a live run was read, 0 to 1, while the view shows its past; else None.
    """

    view: RunView
    now: float
    glyphs: Glyphs
    has_accelerated: bool = True
    comparison_status: str = ""
    has_controls: bool = True
    requested: str = ""
    price_per_hour: float = 0.0
    reading: float | None = None

    @property
    def simulated(self) -> bool:
        """True for a run on the sandbox."""
        return self.view.run is not None and self.view.run.simulated

    @property
    def foreign_loader(self) -> str:
        """The loader of a watched script, "" for a run that reads from the endpoints."""
        run = self.view.run
        return run.loader if run is not None and self.view.endpoint is None else ""

    def named(self, kind: EndpointKind) -> Line:
        """Glyph and name of an endpoint, in its colour."""
        return Line((self.glyphs.named(kind), str(kind)))

    def heading(self, title: str, width: int, *notes: str) -> Line:
        """The first line of a panel: a rule with the title and, at the right, the first of `notes` that fits."""
        return heading(title, width, self.glyphs.rule, *notes)
