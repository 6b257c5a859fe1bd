"""The speed of the sandbox's standard endpoint in the demo, for machines that compute more slowly than it reads.

On such a machine, a slow or a busy one, no endpoint could make a difference.
"""

from __future__ import annotations

from ossconsole.sandbox.process import Shaping
from ossconsole.telemetry.view import RunView

_LOOK_AFTER = 6  # steps, without those of the warm-up
_LEAST_RATIO, _WANTED_RATIO = 2.0, 3.0
"""Of what the run computes to what the standard endpoint reads."""


class DemoSpeed:
    """The simulated speed of the standard endpoint during one run of the demo."""

    def __init__(self) -> None:
        self.objects_per_s = Shaping().standard_objects_per_s

    def slow_down(self, view: RunView) -> str:
        """Where the run computes too slowly, lower `objects_per_s`, and say so; else ""."""
        rate = view.compute_rate
        if rate is None or rate >= _LEAST_RATIO * self.objects_per_s:
            return ""
        self.objects_per_s = max(1.0, rate / _WANTED_RATIO)
        return (
            f"This machine computes {rate:.0f} samples/s: the standard endpoint (simulated) is slowed down to "
            f"{self.objects_per_s:.0f} objects/s, so that there is a wait for data to measure."
        )


def enough_steps(view: RunView) -> bool:
    """Whether the run has done enough steps to know its speed."""
    return view.warming is None and view.split is not None and view.split.steps >= _LOOK_AFTER
