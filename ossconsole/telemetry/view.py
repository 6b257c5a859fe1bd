"""RunView: everything a dashboard shows of a run, reduced from its events in constant memory.

The same reducer serves a live run, a replayed record and a run of another process. It reads no clock: methods that
depend on the present take `now`, in the Unix seconds of the events.
"""

from __future__ import annotations

from collections import deque

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import Comparison
from ossconsole.telemetry.events import Event, LogLine, RunState, to_log_line
from ossconsole.telemetry.loader_waits import LoaderWaits
from ossconsole.telemetry.measure import Measurement, RecordedSettings
from ossconsole.telemetry.samples import GpuSample
from ossconsole.telemetry.series import Ema, Series
from ossconsole.telemetry.visits import EndpointFigures, decode_share

# The window of the tiles: long enough for a steady value, short enough to follow a switch within seconds.
RECENT_STEPS = 32
RECENT_S = 20.0
STALLED_AFTER_S = 20.0
_LOG_LINES = 500
_SPANS = 256
_LOSS_SMOOTHING = 0.9


class Span(msgspec.Struct, frozen=True):
    """From `time` on, batches were read from `endpoint`."""

    time: float
    endpoint: EndpointKind


class StepSplit(msgspec.Struct, frozen=True):
    """The mean times of `steps` recent steps, seconds; `total` is the sum of wait, copy, compute and host.

    `samples` is the mean number of samples of a step; the last batch of an epoch may have fewer than the others.
    `late` is the share of the steps in which the GPU finished before the host had queued all of its next work.
    `decode_share` is the share of the readers' time in which they decoded.
    """

    total: float
    wait: float
    copy: float
    compute: float
    steps: int = 1
    samples: float = 0.0
    late: float = 0.0
    decode_share: float = 0.0

    @property
    def host(self) -> float:
        """The time that no other part accounts for, seconds."""
        return max(0.0, self.total - self.wait - self.copy - self.compute)

    @property
    def wait_fraction(self) -> float:
        """The share of the step spent waiting for data, 0 to 1."""
        return min(1.0, max(0.0, self.wait / self.total)) if self.total > 0 else 0.0


class RunView:
    """The state of one run after the events applied so far."""

    def __init__(self) -> None:
        self.run: events.Run | None = None
        self.measurement = Measurement()
        self.state: RunState | None = None
        self.state_since: float | None = None
        self.endpoint: EndpointKind | None = None
        self.last_step: events.Step | None = None
        self._entered_at = 0
        self.peak_lr: float | None = None
        """The peak of the schedule; None where that is not known."""
        self.last_epoch: events.Epoch | None = None
        self.best_top1: float | None = None
        self.last_checkpoint: events.Checkpoint | None = None
        self.saving: events.Saving | None = None
        self.summary: events.Summary | None = None
        self.telemetry: events.Telemetry | None = None
        self.devices: events.Devices | None = None
        self.last_time: float | None = None
        self.samples = 0
        self.loader_waits = LoaderWaits(None)
        self.log: deque[LogLine] = deque(maxlen=_LOG_LINES)
        self.errors: list[LogLine] = []
        self.spans: deque[Span] = deque(maxlen=_SPANS)
        self.switches: deque[Span] = deque(maxlen=_SPANS)
        self.series: dict[str, Series] = {}
        self._smooth = Ema(_LOSS_SMOOTHING)
        self._recent: deque[events.Step] = deque(maxlen=RECENT_STEPS)
        self._overhead_s = 0.0
        self._epoch_step_s = 0.0
        self._paused_s = 0.0  # since the last step
        self._interrupted = False

    def apply(self, event: Event) -> None:
        """Applies one event, in the order of the record."""
        if isinstance(event, events.Telemetry):
            self._apply_telemetry(event)
            return
        if not isinstance(event, events.LoaderWorkers):  # these come while no step ends, too
            self.last_time = max(event.time, self.last_time or event.time)
        self.measurement.apply(event)
        match event:
            case events.Step():
                self._apply_step(event)
            case events.Run():
                self._apply_run(event)
            case events.State():
                self._apply_state(event.state, event.time)
                self._entered_at = event.step
            case events.Switch():
                self.endpoint = event.endpoint
                self.switches.append(Span(event.time, event.endpoint))
            case events.Epoch():
                self._apply_epoch(event)
            case events.Saving() | events.Checkpoint():
                self._apply_checkpoint(event)
            case events.LoaderWorkers() | events.RankWork():
                self.loader_waits.apply(event)
            case events.Devices() | events.LearningRate():
                self._apply_fact(event)
            case events.Summary():
                self.summary = event
                self._apply_state(event.state, event.time)
        self._log(event)

    def _log(self, event: Event) -> None:
        line = to_log_line(event)
        if line is not None:
            self.log.append(line)
            if line.level == "error":
                self.errors.append(line)
                del self.errors[:-_LOG_LINES]

    def _apply_run(self, event: events.Run) -> None:
        self.run = event
        self.devices = None
        self.loader_waits = LoaderWaits.of(event)
        self.endpoint = self.settings.endpoint
        peak = event.settings.get("learning_rate")
        self.peak_lr = peak if isinstance(peak, float) and peak > 0 else None
        self.state = RunState.STARTING
        self.state_since = event.time

    def _apply_state(self, state: RunState, time: float) -> None:
        if state is not self.state:
            if self.state is RunState.PAUSED and state is RunState.RUNNING:
                self.log.append(LogLine(time, "info", "resumed"))
            if self.state is RunState.PAUSED and self.state_since is not None:
                self._paused_s += max(0.0, time - self.state_since)
            self.state, self.state_since = state, time
        if state is not RunState.RUNNING:
            self._interrupted = True
        if state.final:
            self.saving = None

    def _apply_fact(self, event: events.Devices | events.LearningRate) -> None:
        if isinstance(event, events.Devices):
            self.devices = event
        else:
            self.peak_lr = event.peak

    def _apply_checkpoint(self, event: events.Saving | events.Checkpoint) -> None:
        if isinstance(event, events.Checkpoint):
            self.last_checkpoint, self.saving = event, None
        else:
            self.saving = None if event.over else event

    def _apply_epoch(self, event: events.Epoch) -> None:
        self.last_epoch = event
        self._overhead_s = self._end_of_epoch_s(event)
        self._epoch_step_s = 0.0
        if event.top1 is not None:
            self.best_top1 = max(event.top1, self.best_top1 or 0.0)
            self._plot("top1", event.time, event.top1 * 100)

    def _end_of_epoch_s(self, event: events.Epoch) -> float:
        """How long the end of an epoch takes, with its validation.

        An epoch also lasts longer than its steps where the run was paused or waited for an endpoint. Neither recurs in
        each epoch.
        """
        lasted = event.seconds - self._epoch_step_s
        if self.last_step is not None:
            lasted = min(lasted, event.time - self.last_step.time - self._paused_s)
        return max(0.0, lasted)

    def _apply_telemetry(self, event: events.Telemetry) -> None:
        if self.telemetry is not None and event.time == self.telemetry.time:
            return  # seen before; an earlier time is that of a clock that was set back
        self.telemetry = event
        for gpu in event.gpus:
            name = f"gpu{gpu.index}" if gpu.mig is None else f"gpu{gpu.index}.{gpu.mig}"
            self._plot(f"{name}.utilization", event.time, gpu.utilization)
            self._plot(f"{name}.power", event.time, gpu.power)
        whole = [gpu for gpu in self.gpus if gpu.mig is None]
        if len(whole) > 1:
            uses = [gpu.utilization for gpu in whole if gpu.utilization is not None]
            powers = [gpu.power for gpu in whole if gpu.power is not None]
            self._plot("gpus.utilization", event.time, sum(uses) / len(uses) if uses else None)
            self._plot("gpus.power", event.time, sum(powers) if powers else None)
        if event.host is not None:
            self._plot("host.cpu", event.time, event.host.cpu)
            self._plot("host.memory", event.time, event.host.memory_used / 2**30)

    def _apply_step(self, step: events.Step) -> None:
        if step.endpoint is not None and (self.last_step is None or step.endpoint is not self.last_step.endpoint):
            self.spans.append(Span(step.time, step.endpoint))
        if self.endpoint is None:
            self.endpoint = step.endpoint
        if not self._interrupted:
            # A step after a pause or a validation includes that time.
            self._recent.append(step)
        self.last_step = step
        self.samples += step.samples
        self.loader_waits.add(step.epoch, step.data_wait_s)
        self._epoch_step_s += step.step_time_s
        self._paused_s = 0.0
        self._interrupted = False
        self._plot("samples_per_s", step.time, step.samples_per_s)
        self._plot("wait", step.time, step.wait_fraction * 100)
        self._plot("step_ms", step.time, step.step_time_s * 1000)
        self._plot("fetch_ms", step.time, step.fetch_s * 1000)
        self._plot("read", step.time, step.bytes / step.step_time_s / 1e6 if step.step_time_s > 0 else None)
        self._plot("lr", step.time, step.lr)
        if step.grad_norm is not None:
            self._plot("grad_norm", step.time, step.grad_norm)
        self._plot("loss", step.time, step.loss)
        self._plot("loss_smooth", step.time, None if step.loss is None else self._smooth.add(step.loss))
        for name, value in step.logged.items():
            self._plot(f"logged.{name}", step.time, value)

    def _plot(self, name: str, time: float, value: float | None) -> None:
        series = self.series.get(name)
        if series is None:
            series = self.series[name] = Series()
        series.append(time, value)

    @property
    def gpus(self) -> tuple[GpuSample, ...]:
        """The GPUs of this run in the newest sample; all of them where the run or NVML does not say which they are."""
        every = self.telemetry.gpus if self.telemetry else ()
        if self.devices is None:
            return every
        own = tuple(gpu for gpu in every if gpu.uuid in self.devices.gpus)
        return own if own or not self.devices.gpus else every

    @property
    def steps_per_epoch(self) -> int:
        """0 where unknown."""
        return self.run.steps_per_epoch if self.run else 0

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run; 0 where unknown."""
        planned = self.run.epochs * self.run.steps_per_epoch if self.run else 0
        limit = self.settings.max_steps
        return min(planned, limit) if planned and limit else planned or limit

    @property
    def step(self) -> int:
        """The newest step; before the first of a resumed run, the one it resumes from; else 0."""
        return self.last_step.step if self.last_step else self._entered_at

    @property
    def completed_epochs(self) -> int:
        """The number of epochs that have ended, with their validation; also those before a run was resumed."""
        if self.last_epoch is not None:
            return self.last_epoch.epoch
        return self.summary.epochs if self.summary is not None else 0

    @property
    def delivering(self) -> EndpointKind | None:
        """The endpoint that the last batch was read from; None where another loader read it."""
        return self.last_step.endpoint if self.last_step else None

    @property
    def settings(self) -> RecordedSettings:
        """The settings of the run, as far as this program knows them."""
        return self.measurement.settings

    @property
    def warming(self) -> tuple[int, int] | None:
        """Completed and total warm-up steps of a run, which are not counted; None after them."""
        known = self.state is not None and not self.state.final
        return self.measurement.warming if known else None

    @property
    def settling(self) -> tuple[int, int] | None:
        """Completed and total batches after a switch that are not counted; None after them.

        Batches prefetched from the other endpoint come before the first of them.
        """
        if self.state is None or self.state.final or not self.switches:
            return None
        return self.measurement.visits.settling

    @property
    def comparison(self) -> Comparison:
        """The newest result of the comparison of the endpoints."""
        return self.measurement.comparison

    def figures(self, kind: EndpointKind) -> EndpointFigures:
        """The metrics of one endpoint, over its settled steps."""
        return self.measurement.figures(kind)

    @property
    def compute_rate(self) -> float | None:
        """Samples per second that the recent steps would have reached without a wait for data; None before them."""
        split = self.split
        working = split.total - split.wait if split is not None else 0.0
        return split.samples / working if split is not None and working > 0 else None

    @property
    def split(self) -> StepSplit | None:
        """The mean of the recent steps of the endpoint in use; None before the first."""
        kind = self.delivering
        newest = self._recent[-1].time if self._recent else 0.0
        steps = [step for step in self._recent if step.endpoint is kind and step.time > newest - RECENT_S]
        if not steps:
            return None
        count = len(steps)
        total = sum(step.step_time_s for step in steps)
        decode_s = sum(step.decode_s for step in steps)
        return StepSplit(
            total=total / count,
            wait=sum(step.data_wait_s for step in steps) / count,
            copy=sum(step.copy_s for step in steps) / count,
            compute=sum(step.compute_s for step in steps) / count,
            steps=count,
            samples=sum(step.samples for step in steps) / count,
            late=sum(step.host_late for step in steps) / count,
            decode_share=decode_share(decode_s, total, self.settings.workers) or 0.0,
        )

    @property
    def bytes_per_s(self) -> float | None:
        """The read rate of the recent steps; None before the first."""
        seconds = sum(step.step_time_s for step in self._recent)
        return sum(step.bytes for step in self._recent) / seconds if seconds > 0 else None

    @property
    def cache_coverage(self) -> float:
        """The share of the samples that this run has read through the accelerated endpoint, 0 to 1."""
        return self.measurement.cache_coverage

    def eta_s(self) -> float | None:
        """Seconds to the end of the run at the recent pace, validations included; None where unknown."""
        split = self.split
        if split is None or not self.total_steps or self.state not in (RunState.RUNNING, RunState.VALIDATING):
            return None
        left = max(0, self.total_steps - self.step)
        epochs_left = left / self.steps_per_epoch if self.steps_per_epoch else 0.0
        return left * split.total + epochs_left * self._overhead_s

    def stalled_s(self, now: float) -> float | None:
        """Seconds since the last event of a running run, where they exceed STALLED_AFTER_S; else None."""
        if self.state is not RunState.RUNNING or self.last_time is None:
            return None
        silent = now - self.last_time
        return silent if silent > STALLED_AFTER_S else None

    def elapsed_s(self, now: float) -> float | None:
        """Seconds from the start until `now`, or the end of a run that has ended; None without a run."""
        if self.run is None:
            return None
        over = self.state is not None and self.state.final
        end = self.state_since if over and self.state_since is not None else now
        return max(0.0, end - self.run.time)

    def dismiss_errors(self) -> None:
        """Clears the list of errors."""
        self.errors.clear()
