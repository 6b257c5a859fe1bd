"""Proof: the state of one proving of the bucket, written by the probe's threads and read by the screen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ossconsole.config.endpoints import EndpointKind
from ossconsole.storage.report import ProbeReport
from ossconsole.storage.steps import Stage, Step, StepStatus


class Proof:
    """The newest step of each stage. `on_step` may be called from any thread; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._steps: dict[tuple[EndpointKind | None, Stage], Step] = {}
        self._began = clock()
        self._seconds: float | None = None
        self.problem = ""

    def on_step(self, step: Step) -> None:
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

    def step(self, kind: EndpointKind | None, stage: Stage) -> Step | None:
        with self._lock:
            return self._steps.get((kind, stage))

    @property
    def steps(self) -> list[Step]:
        """Every stage's newest step, in the order in which the stages began."""
        with self._lock:
            return list(self._steps.values())

    @property
    def problems(self) -> list[Step]:
        """What failed, then what is worth a warning."""
        with self._lock:
            steps = list(self._steps.values())
        return [step for status in (StepStatus.FAIL, StepStatus.WARN) for step in steps if step.status is status]

    def refused_with(self, code: str) -> bool:
        """Whether OSS refused a step with this code."""
        with self._lock:
            return any(step.code == code for step in self._steps.values())
