"""Made-up runs for the tests of views: steps with exactly known times."""

from __future__ import annotations

from typing import Any

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.view import RunView

START = 1_000.0
STANDARD, ACCELERATED = EndpointKind.STANDARD, EndpointKind.ACCELERATED


class Feed:
    """Applies events to a view, keeping time, step and epoch. `run` has other fields of the Run event."""

    def __init__(
        self,
        *,
        epochs: int = 4,
        steps_per_epoch: int = 100,
        batch: int = 10,
        stored_as: str = "",
        run: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.view = RunView()
        self.time = START
        self.step = 0
        self.epoch = 1
        self.batch = batch
        self.endpoint = STANDARD
        known = {"batch_size": batch, "workers": 2, "endpoint": "standard", **settings}
        fields: dict[str, Any] = {"run": "r", "version": "1", "epochs": epochs, "steps_per_epoch": steps_per_epoch}
        fields |= {"stored_as": stored_as, **(run or {})}
        self.view.apply(events.Run(time=self.time, settings=known, **fields))

    def state(self, state: RunState, after: float = 0.0) -> Feed:
        self.time += after
        self.view.apply(events.State(time=self.time, state=state, step=self.step))
        return self

    def steps(self, count: int, *, seconds: float = 0.5, wait: float = 0.25, **changes: Any) -> Feed:
        for _ in range(count):
            self.step += 1
            self.time += seconds
            known: dict[str, Any] = {
                "time": self.time,
                "step": self.step,
                "epoch": self.epoch,
                "samples": self.batch,
                "loss": 1.0,
                "lr": 0.1,
                "endpoint": self.endpoint,
                "data_wait_s": wait,
                "step_time_s": seconds,
                "fetch_s": wait,
                "single_s": wait,
                "bytes": 1000,
                "samples_per_s": self.batch / seconds,
            }
            self.view.apply(events.Step(**{**known, **changes}))
        return self

    def switch(self, kind: EndpointKind, *, ahead: int = 0, **steps: Any) -> Feed:
        """`ahead` batches of the old endpoint were read before; they have the times given in `steps`."""
        self.view.apply(events.Switch(time=self.time, endpoint=kind, reason="by hand", step=self.step))
        self.steps(ahead, **steps)
        self.endpoint = kind
        return self

    def alternate(self, stretches: int, **by_endpoint: dict[str, float]) -> Feed:
        """So many stretches of 70 steps, by turns; `standard` and `accelerated` are the keywords of their steps."""
        for _ in range(stretches):
            self.steps(70, **by_endpoint[str(self.endpoint)]).switch(self.endpoint.other)
        return self

    def end_epoch(self, *, seconds: float, after: float = 0.0, top1: float | None = None, samples: int = 0) -> Feed:
        """`seconds` is the length of the epoch, `after` that of its validation."""
        self.time += after
        self.view.apply(
            events.Epoch(
                time=self.time,
                epoch=self.epoch,
                train_loss=1.0,
                val_loss=1.0,
                top1=top1,
                top5=None,
                seconds=seconds,
                step=self.step,
                samples=samples,
            )
        )
        self.epoch += 1
        return self
