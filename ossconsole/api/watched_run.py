"""WatchedRun: the run of a script as consoles see it: its record, its figures, and the requests to it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossconsole import __version__
from ossconsole.cli.unattended import CommandWork
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import state_dir
from ossconsole.config.profiles import Profile
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import installed_versions
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.host import usable_cores
from ossconsole.telemetry.measure import Measurement
from ossconsole.telemetry.runs import RunRecord, new_run_id, record_path
from ossconsole.telemetry.sampler import Sampler, TelemetrySample
from ossconsole.training.context import Controls, RunContext
from ossconsole.training.remote.control import ControlServer

log = logging.getLogger(__name__)

_SAMPLE_EVERY_S = 4.0  # each reading makes the script's loop wait for some changes of threads
_FIRST_SAMPLE_S = 2.0  # the first reading loads NVML, which would slow down the first steps
_PAUSED_POLL_S = 0.5


@dataclass(frozen=True)
class WatchedLoop:
    """What a console shows of a script's loop.

    `loader` is the class of its loader, `workers` the number of the loader's processes, None where it does not state
    it. `batch_size`, `epochs` and `steps_per_epoch` are 0 where unknown; `world` is the number of ranks.
    """

    loader: str
    workers: int | None = None
    batch_size: int = 0
    epochs: int = 0
    steps_per_epoch: int = 0
    world: int = 1
    sample_format: str = ""
    stored_as: str = ""


class WatchedRun:
    """The record and the control socket of a script's run; other processes use it as they use a run of the console.

    `context` is that of an OssImages loader, None for any other one. `on_checkpoint` writes a checkpoint where the
    script offers that. Raises ConsoleError where the record cannot be written.
    """

    def __init__(
        self, loop: WatchedLoop, *, context: RunContext | None, on_checkpoint: Callable[[], object] | None
    ) -> None:
        self.id = new_run_id()
        self._profile: Profile | None = context.profile if context is not None else None
        self.step = 0
        self.epoch = 0
        self._loop = loop
        self._context = context
        self._on_checkpoint = on_checkpoint
        self._controls = Controls(EndpointKind.STANDARD if context is None else context.controls.endpoint)
        self._measurement = Measurement()
        self._state = RunState.STARTING
        self._record = RunRecord(record_path(self.id))
        self._emitting = threading.RLock()
        self._begun = time.perf_counter()
        self._over = False
        self._record_problem_shown = False
        self.has_requests = True  # the state RUNNING is to be entered; a plain attribute, because each step reads it
        self._stopping = threading.Event()
        if context is not None:  # the loader may have been watched before: each watch is a run of its own
            self._unwatched = context.sink
            context.id, context.sink = self.id, self._record.append
            context.controls, context.measurement = self._controls, self._measurement
        self._sampler = Sampler(interval_s=_SAMPLE_EVERY_S)
        self._describe()
        self._server = ControlServer(CommandWork(self._profile, own_run=self))
        self._sampler.listen(self._record_sample)
        self._sampler.start()
        self._sampler.wait(timeout_s=_FIRST_SAMPLE_S)

    # What other processes see and request: `ossconsole.training.remote.control`

    @property
    def alive(self) -> bool:
        """False once the run was closed."""
        return not self._over

    @property
    def record_path(self) -> Path:
        """The JSONL file with the run's events."""
        return self._record.path

    def pause(self) -> None:
        """Requests a pause before the next batch."""
        self._controls.pause()
        self.has_requests = True

    def resume(self) -> None:
        """Ends a pause."""
        self._controls.resume()

    def stop(self) -> None:
        """Requests the end of the loop after the step under way."""
        self._stopping.set()
        self.has_requests = True
        self._controls.resume()
        if self._loop.world == 1:  # else the ranks end at the same step
            self._controls.stop()

    def checkpoint(self) -> None:
        """Requests a checkpoint. Raises ConsoleError where the script does not offer that."""
        if self._on_checkpoint is None:
            raise ConsoleError(
                "This script does not write checkpoints on request.",
                remedy="Pass on_checkpoint=SAVE to ossconsole.watch in the script.",
            )
        self._controls.request_checkpoint()
        self.has_requests = True

    def profile(self) -> None:
        """Raises ConsoleError: the console profiles its own loop only."""
        raise ConsoleError("The steps of a script cannot be profiled from here.", remedy="Use torch.profiler there.")

    def set_lr(self, lr: float) -> None:
        """Raises ConsoleError: the script has its own schedule."""
        raise ConsoleError(f"The learning rate of a script cannot be set to {lr:g} from here.", remedy="Edit it there.")

    def switch(self, kind: EndpointKind, reason: str = "requested") -> None:
        """Reads future batches through `kind`. Raises ConsoleError where the script has a loader of its own."""
        if self._context is None:
            raise ConsoleError(
                f"Batches come from {self._loop.loader}, which has no endpoint to switch.",
                remedy="Read them with ossconsole.OssImages in the script.",
            )
        self._context.switch(kind, reason)

    # What the watched loop reports and asks

    @property
    def stopping(self) -> bool:
        """Whether the loop is to end."""
        return self._stopping.is_set()

    def apply_requests(self) -> None:
        """Writes a requested checkpoint; blocks while the run is paused."""
        self.has_requests = False  # before they are read: one that comes meanwhile is seen before the next step
        self._write_requested_checkpoint()
        while self._controls.paused and not self.stopping:
            self.enter(RunState.PAUSED)
            self._controls.wait_while_paused(_PAUSED_POLL_S)
            self._write_requested_checkpoint()
        self.enter(RunState.RUNNING)

    def _write_requested_checkpoint(self) -> None:
        if self._on_checkpoint is not None and self._controls.pop_checkpoint_request():
            self._on_checkpoint()
            self.info("The script was requested to write a checkpoint.")

    def enter(self, state: RunState) -> None:
        """Records a new state."""
        if state is not self._state:
            self._state = state
            self.emit(events.State(time=time.time(), state=state, step=self.step))

    def info(self, message: str) -> None:
        """Records a message."""
        self.emit(events.InfoEvent(time=time.time(), message=message, step=self.step))

    def emit(self, *new: Event) -> None:
        """Measures and records events; any thread may call it."""
        with self._emitting:
            if self._over or not new:
                return
            if self._context is not None:
                for event in new:
                    self._context.emit(event)
            else:
                for event in new:
                    self._measurement.apply(event)
                self._record.append(*new)
            if self._record.problem and not self._record_problem_shown:  # the script's output is all that is left
                self._record_problem_shown = True
                log.warning("%s The script continues.", self._record.problem)

    def close(self, error: str = "") -> None:
        """Writes the summary; `error` is the reason of a failure. A second call does nothing."""
        self._sampler.unlisten(self._record_sample)  # the summary is the last line
        with self._emitting:
            if self._over:
                return
            state = RunState.FAILED if error else RunState.STOPPED if self.stopping else RunState.FINISHED
            if error:
                self.emit(events.ErrorEvent(time=time.time(), message=error, step=self.step))
            self.enter(state)
            self.emit(self._summary(state, error))
            self._over = True
            if self._context is not None:  # the loader can be iterated further
                self._context.sink, self._context.controls = self._unwatched, Controls(self._controls.endpoint)
        self._sampler.stop()
        self._server.close()
        self._record.close()

    def _describe(self) -> None:
        loop, profile = self._loop, self._profile
        settings: dict[str, Any] = {"batch_size": loop.batch_size}
        if loop.workers is not None:
            settings["workers"] = loop.workers
        if self._context is not None:
            settings["endpoint"] = str(self._context.controls.endpoint)
        self.emit(
            events.Run(
                time=time.time(),
                run=self.id,
                version=__version__,
                settings=settings,
                pid=os.getpid(),
                host=socket.gethostname(),
                profile=profile.name if profile else "",
                bucket=profile.bucket if profile else "",
                region=profile.region if profile else "",
                simulated=profile.simulated if profile else False,
                sample_format=loop.sample_format,
                stored_as=loop.stored_as,
                epochs=loop.epochs,
                steps_per_epoch=loop.steps_per_epoch,
                world=loop.world,
                versions=installed_versions(),
                cores=usable_cores(),
                loader=loop.loader,
                benchmark=_benchmarked() if self._context is None else None,
            )
        )

    def _summary(self, state: RunState, error: str) -> events.Summary:
        seconds = time.perf_counter() - self._begun
        return self._measurement.summary(
            self.id, state, epochs=self.epoch, steps=self.step, seconds=seconds, error=error
        )

    def _record_sample(self, sample: TelemetrySample) -> None:
        self._record.append(sample.event())


def _benchmarked() -> events.Benchmarked | None:
    """The newest saved benchmark that read through the endpoints; None without one."""
    if not any((state_dir() / "benches").glob("*.json")):
        return None  # before modules are loaded that only benchmarks need
    from ossconsole.training.bench.saved import saved_benches

    for bench in saved_benches():
        if rates := bench.delivered():
            return events.Benchmarked(
                name=bench.name,
                samples_per_s=rates,
                sample_format=bench.readings[0].cell.format,
                simulated=bench.provenance.simulated,
            )
    return None
