"""Timing of a script's steps: with the host's clock, and on a GPU between events, without waiting for it."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, NamedTuple


class WatchedTimes(NamedTuple):
    """The parts of one step, seconds; on a CPU the host's work is part of `compute_s`."""

    step_s: float
    wait_s: float
    compute_s: float
    host_s: float = 0.0
    host_late: bool = False


class StepTiming(NamedTuple):
    """The marks of one step. `events` are the ends of the previous step, of the wait and of the step on a GPU.

    `host_wait_s` and `host_step_s` are the wait and the step by the host's clock, seconds.
    """

    host_wait_s: float
    host_step_s: float
    events: tuple[Any, Any, Any] | None = None
    host_late: bool = False

    def ready(self) -> bool:
        """Whether the GPU has completed the step."""
        return self.events is None or bool(self.events[2].query())

    def read(self) -> WatchedTimes:
        """The times; waits for the GPU unless the step is `ready`."""
        if self.events is None:
            return WatchedTimes(self.host_step_s, self.host_wait_s, self.host_step_s - self.host_wait_s)
        previous, arrived, done = self.events
        done.synchronize()
        step_s = previous.elapsed_time(done) / 1000
        idle_s = previous.elapsed_time(arrived) / 1000
        # The GPU may still have been busy with the step before while the host waited: only its idle time counts.
        wait_s = min(self.host_wait_s, idle_s)
        compute_s = arrived.elapsed_time(done) / 1000
        return WatchedTimes(step_s, wait_s, compute_s, max(0.0, step_s - wait_s - compute_s), self.host_late)


class StepTimer:
    """Marks the moments of a step: its batch is requested, it arrives, and the step is finished."""

    def __init__(self) -> None:
        self._requested = self._arrived = self._finished = time.perf_counter()
        self._previous: Any = None
        self._arrival: Any = None

    def restart(self) -> None:
        """Call before the first step of an epoch: what came before is not part of it."""
        self._finished = time.perf_counter()
        self._previous = _recorded()

    def arrive(self, requested: float) -> None:
        """The loader returned the batch that was requested at `requested`, a time of `perf_counter`."""
        self._requested, self._arrived = requested, time.perf_counter()
        self._arrival = _recorded()

    def finish(self) -> StepTiming:
        """The loop requests the next batch, so its work on this one is queued."""
        now = time.perf_counter()
        wait_s, step_s = self._arrived - self._requested, now - self._finished
        previous, self._finished = self._previous, now
        self._previous = done = _recorded()
        if done is None or previous is None or self._arrival is None:
            return StepTiming(wait_s, step_s)
        return StepTiming(wait_s, step_s, (previous, self._arrival, done), bool(self._arrival.query()))


def _recorded() -> Any:
    """An event on the current stream of the current GPU; None while the script does not use one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def to_host(value: Any) -> Any:
    """A number as it is; a tensor as its copy on the host, which a GPU completes later."""
    if hasattr(value, "detach"):
        return value.detach().to("cpu", non_blocking=True)
    return value


def on_host(value: Any) -> float | None:
    """The number of a value of `to_host`, once the step is complete; None for a value that is not finite."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
