"""The speed of the sandbox's standard endpoint with which the demo waits for data, also on a slow or busy machine.

Such a machine computes fewer samples per second than the simulated endpoint reads: no endpoint could make a difference.
"""

from __future__ import annotations

from ossconsole.telemetry.view import RunView

_LOOK_AFTER = 6  # steps, without those of the warm-up
_WAITING = 0.5  # of a step: less does not show what an endpoint is worth
_COMPUTE_TO_READ = 3.0


def enough_steps(view: RunView) -> bool:
    """Whether the run has done the steps that the speed is derived from."""
    return view.warming is None and view.split is not None and view.split.steps >= _LOOK_AFTER


def standard_speed(view: RunView) -> float | None:
    """The objects per second of the standard endpoint with which the run waits; None where it waits already."""
    split, rate = view.split, view.compute_rate
    if split is None or rate is None or split.wait_fraction >= _WAITING:
        return None
    return max(1.0, rate / _COMPUTE_TO_READ)


def speed_caption(view: RunView, speed: float) -> str:
    """Why the endpoint is slowed down to `speed` objects per second."""
    return (
        f"This machine computes {view.compute_rate or 0.0:.0f} samples/s at present. The standard endpoint (simulated) "
        f"is slowed down to {speed:.0f} objects/s, so that there is a wait for data to measure."
    )
