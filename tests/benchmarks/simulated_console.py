"""The console over a run that only pretends to train: six steps a second, an endpoint switch every twenty seconds."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ossconsole.telemetry.events import Event, RunState
from ossconsole.tui.app import ConsoleApp
from tests.tui.fakes import FakeRun, FakeServices, Script, gpu, sample

SWITCH_STEPS = 120


class LiveRun(FakeRun):
    """Gives the steps that are due."""

    def __init__(self) -> None:
        super().__init__()
        self._script = Script(epochs=100).state(RunState.RUNNING).steps(60)
        self._shift = time.time() - self._script.time

    def drain(self) -> list[Event]:
        script = self._script
        while script.time + self._shift < time.time():
            script.steps(1, wait=0.02 if script.endpoint.value == "accelerated" else 0.11, compute=0.06)
            if script.step % SWITCH_STEPS == 0:
                script.switch(script.endpoint.other, ahead=0)
        found, script.events = script.events, []
        return [_moved(event, self._shift) for event in found]


def _moved(event: Event, by: float) -> Event:
    return msgspec.structs.replace(event, time=event.time + by)


class LiveServices(FakeServices):
    """With a GPU whose figures change every second."""

    def __getattribute__(self, name: str) -> Any:
        if name == "sample":
            second = int(time.time())
            return sample([gpu(utilization=30.0 + second % 17, power=40.0 + second % 5)], at=float(second))
        return super().__getattribute__(name)


if __name__ == "__main__":
    ConsoleApp(LiveServices(run=LiveRun()), "train").run()  # type: ignore[arg-type]
