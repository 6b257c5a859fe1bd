"""Traces of training steps, by torch.profiler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import profiler

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import make_folder, reason, state_dir
from ossconsole.config.text import counted
from ossconsole.training.compute.weights import OnMessage

log = logging.getLogger(__name__)

SETTLED_STEPS = 10
"""Steps of a run before `--profile-steps` begins: cuDNN selects its algorithms, and a CUDA graph is recorded."""

_TOO_SHORT = "No step was profiled: the run ended before."
_SKIPPED = 1  # the first step of a profile includes the start of the profiler


def traces_dir() -> Path:
    """The folder of the traces; it may not exist."""
    return state_dir() / "traces"


PROFILED_STEPS = 10
"""Steps in a profile that a user requests during the run."""


class StepProfiler:
    """Records steps into Chrome traces, one file for each request. A failure never ends the run.

    `planned` steps are recorded after SETTLED_STEPS, without a request. `report` gets the path of a trace, `warn` a
    message and a remedy where it cannot be recorded.
    """

    def __init__(
        self, run: str, *, planned: int = 0, cuda: bool, report: OnMessage, warn: Callable[[str, str], object]
    ) -> None:
        self._run = run
        self._planned = planned
        self._seen = 0
        self._cuda = cuda
        self._report = report
        self._warn = warn
        self._profile: Any = None
        self._steps = 0  # that are to be recorded
        self._first = 0  # of them
        self._last = 0

    def _start(self, steps: int, *, after: int) -> None:
        activities = [profiler.ProfilerActivity.CPU, *([profiler.ProfilerActivity.CUDA] if self._cuda else [])]
        self._steps, self._first, self._last = steps, after + _SKIPPED + 1, after
        try:
            self._profile = profiler.profile(
                activities=activities, schedule=profiler.schedule(wait=0, warmup=_SKIPPED, active=steps, repeat=1)
            )
            self._profile.start()
        except RuntimeError as error:  # such as another profiler of this process
            self._profile = None
            self._warn(f"The steps are not profiled: {error}.", "")

    def step(self, number: int, *, requested: bool = False) -> bool:
        """Call after each step, with its number. `requested` begins a profile, unless there is one already.

        True when a trace was written, which takes seconds.
        """
        self._seen += 1
        if self._profile is None:
            planned = self._planned if self._seen >= SETTLED_STEPS else 0
            if planned or requested:
                self._planned -= planned
                self._start(planned or PROFILED_STEPS, after=number)
            return False
        self._last = number
        if number < self._first + self._steps - 1:
            self._profile.step()
            return False
        self._write()
        return True

    def close(self) -> None:
        """Ends the recording, and writes the steps recorded so far; call at the end of the run, perhaps again."""
        if self._planned:
            self._planned = 0
            self._warn(_TOO_SHORT, f"--profile-steps begins after {SETTLED_STEPS} steps.")
        self._write()

    def _write(self) -> None:
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        path = traces_dir() / f"{self._run}-s{self._first:06d}.json.gz"
        try:
            if self._cuda:
                torch.cuda.synchronize()  # otherwise the kernels of the last step would be missing
            profile.stop()
            recorded = self._last - self._first + 1
            if recorded <= 0:
                self._warn(_TOO_SHORT, "")
                return
            make_folder(path.parent)
            profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError, ConsoleError) as error:
            log.exception("A profile was not written")
            why = reason(error) if isinstance(error, OSError) else str(error)
            self._warn(f"The profile {path} was not written: {why}.", "Free disk space, or set OSSCONSOLE_STATE_DIR.")
            return
        self._report(f"Profiled {counted(recorded, 'step')}: {path}. Open it on https://ui.perfetto.dev.")
