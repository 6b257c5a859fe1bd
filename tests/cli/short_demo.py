"""`ossconsole` whose demo without a terminal switches the endpoints every few steps, and ends after a few visits."""

from __future__ import annotations

from ossconsole.cli import demo, main
from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.view import RunView

STEPS, VISITS = 4, 4


class FewVisits:
    """In place of `AutoCompare`, whose visits last seconds."""

    def __init__(self) -> None:
        self.done = False
        self._steps = 0

    def decide(self, view: RunView) -> EndpointKind | None:
        self._steps += 1
        self.done = self._steps >= STEPS * VISITS
        return view.endpoint.other if view.endpoint and self._steps % STEPS == 0 else None


if __name__ == "__main__":
    demo.AutoCompare = FewVisits  # type: ignore[attr-defined, assignment]
    main()
