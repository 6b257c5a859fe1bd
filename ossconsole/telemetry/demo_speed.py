"""The speed of the sandbox's standard endpoint in the demo, for machines that compute more slowly than it reads.

On such a machine, a slow or a busy one, no endpoint could make a difference.
"""

from __future__ import annotations

from typing import NamedTuple

from ossconsole.sandbox.process import Shaping
from ossconsole.telemetry.view import RunView

_MIN_RATIO, _WANTED_RATIO = 2.0, 2.5
"""Of what the run computes to what the standard endpoint reads."""


class SlowedStandard(NamedTuple):
    """A slower standard endpoint in objects/s, and the caption that says so."""

    objects_per_s: float
    caption: str


def slowed_standard(view: RunView) -> SlowedStandard | None:
    """The standard endpoint for a run that computes too slowly to wait for it; None where it is slow enough."""
    rate = view.compute_rate
    if rate is None or rate >= _MIN_RATIO * Shaping().standard_objects_per_s:
        return None
    slow = max(1.0, rate / _WANTED_RATIO)
    return SlowedStandard(
        slow,
        f"This machine computes {rate:.0f} samples/s: the standard endpoint (simulated) is slowed down to {slow:.0f} "
        "objects/s, so that there is a wait for data to measure.",
    )
