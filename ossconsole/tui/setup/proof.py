"""Proof: the state of one test of the bucket, written by the probe's threads; and a screen with its full report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from ossconsole.config.endpoints import EndpointKind
from ossconsole.storage.probe.report import ProbeReport, ProbeStage, ProbeStep, StepStatus
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.text import milliseconds, safe


class Proof:
    """The newest step of each stage. `on_step` may be called from any thread; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._steps: dict[tuple[EndpointKind | None, ProbeStage], ProbeStep] = {}
        self._began = clock()
        self._seconds: float | None = None
        self.problem = ""

    def on_step(self, step: ProbeStep) -> None:
        with self._lock:
            self._steps[step.kind, step.stage] = step

    def finish(self, report: ProbeReport | None = None, problem: str = "") -> None:
        """The proving is over; `report` replaces what the steps told, `problem` says why there is none."""
        with self._lock:
            for step in report.permissions if report else ():
                self._steps[None, step.stage] = step
            self._seconds = self._clock() - self._began
            self.problem = problem

    @property
    def running(self) -> bool:
        return self._seconds is None

    @property
    def seconds(self) -> float:
        return self._clock() - self._began if self._seconds is None else self._seconds

    def step(self, kind: EndpointKind | None, stage: ProbeStage) -> ProbeStep | None:
        with self._lock:
            return self._steps.get((kind, stage))

    @property
    def steps(self) -> list[ProbeStep]:
        """Every stage's newest step, in the order in which the stages began."""
        with self._lock:
            return list(self._steps.values())

    @property
    def problems(self) -> list[ProbeStep]:
        """What failed, then what is worth a warning."""
        with self._lock:
            steps = list(self._steps.values())
        return [step for status in (StepStatus.FAIL, StepStatus.WARN) for step in steps if step.status is status]

    def refused_with(self, code: str) -> bool:
        """Whether OSS refused a step with this code."""
        with self._lock:
            return any(step.code == code for step in self._steps.values())


class ReportScreen(ConsoleModal):
    """Scrolls; `y` copies all of it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,d,q", "dismiss", "Back", show=False),
        Binding("y", "copy", "Copy", show=False),
    ]

    def __init__(self, proof: Proof) -> None:
        super().__init__()
        self._text = "\n".join(_words(step) for step in proof.steps) or safe(proof.problem)

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog -full") as dialog:
            dialog.border_title = "What the proving found"
            dialog.border_subtitle = "y copy · esc back"
            yield Static(self._text, markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._text)
        self.notify("Copied.", timeout=2)


def _words(step: ProbeStep) -> str:
    where = f"{step.kind or 'permission':<12} {step.stage:<12} {step.status:<8}{milliseconds(step.seconds):>6} ms"
    ids = ", ".join(part for part in (step.code, step.ec, step.request_id) if part)
    lines = [f"{where}  {safe(step.detail)}"]
    lines += [f"{'':13}{label}: {safe(text)}" for label, text in (("OSS", ids), ("remedy", step.remedy)) if text]
    return "\n".join(lines)
