"""The events of a run: one JSON object per line, the same in `train --json`, the run record, replay and export.

Units: `time` is Unix seconds, every `*_s` and `seconds` is wall-clock seconds, `bytes` are bytes read from or written
to the bucket, `top1`/`top5` are fractions of 1. A float that may diverge is `float | None`: JSON has no NaN, so a
non-finite value is written as null and read back as None (a gap in a chart).

`to_log_line` gives the text of each event for the event log.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.files import encode_json
from ossconsole.config.text import StrEnum, counted, safe_text
from ossconsole.telemetry.compare import ComparisonReport
from ossconsole.telemetry.format_gain import FormatGain
from ossconsole.telemetry.ranks import RankFigures
from ossconsole.telemetry.samples import GpuSample, HostSample, WorkerUsage


class RunState(StrEnum):
    """The state of a run; the last three are final."""

    STARTING = "starting"
    COMPILING = "compiling"
    RUNNING = "running"
    VALIDATING = "validating"
    PAUSED = "paused"
    STOPPING = "stopping"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether the run has ended."""
        return self in {RunState.FINISHED, RunState.STOPPED, RunState.FAILED}


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float


SHARD_LANES = 8
"""Batches of a run on shards until each of the windows that are read side by side was used once."""


class Benchmarked(msgspec.Struct, frozen=True, kw_only=True):
    """A saved benchmark of this machine: samples/s by endpoint, with the format of its samples."""

    name: str
    samples_per_s: dict[str, float]
    sample_format: str = ""
    simulated: bool = False


class ModelCeiling(msgspec.Struct, frozen=True, kw_only=True):
    """What the model of a run can do on its devices: samples/s on synthetic data, of all its processes.

    `bench` is the saved benchmark that measured it, for one process.
    """

    bench: str
    samples_per_s: float


class Run(_Event, frozen=True, kw_only=True, tag="run"):
    """The first line of every record: which run, by which program, with which settings (never a secret).

    `epochs` and `steps_per_epoch` are 0 where unknown at the start; `pid` and `host` (`socket.gethostname()`) identify
    its process. `world` is the number of processes that train together; a restart writes this event again.
    `stored_as` is "objects" (one for each sample) or "shards"; `versions` are those of the libraries that read.
    `cores` may be used by the process and its readers; 0 where unknown. `loader` is the class of the loader that a
    script is watched with (see `ossconsole.watch`), "" for a run of the console. `benchmark` says what the endpoints
    gave on its machine; null where that is not known. `dataset_prefix` is "" in records of earlier versions.
    """

    run: str
    version: str
    settings: dict[str, Any] = {}
    pid: int = 0
    host: str = ""
    profile: str = ""
    bucket: str = ""
    sample_format: str = ""
    simulated: bool = False
    epochs: int = 0
    steps_per_epoch: int = 0
    world: int = 1
    region: str = ""
    stored_as: str = ""
    versions: dict[str, str] = {}
    cores: int = 0
    loader: str = ""
    benchmark: Benchmarked | None = None
    dataset_prefix: str = ""


class Step(_Event, frozen=True, kw_only=True, tag="step"):
    """One training step.

    `step` counts from 1 over the whole run, `epoch` from 1. `samples` and `bytes` are this batch's, of all processes
    that train together, and so is the loss; `endpoint` is the one this batch was read from, null where another
    loader read it. `step_time_s` runs from the
    end of the previous step; it is the sum of the wait (`data_wait_s`), the copy to the device (`copy_s`), the compute
    (`compute_s`) and the remaining time in which a GPU was idle (`host_s`). `host_late` is True where the GPU finished
    before the host had queued all of its next work. `fetch_s` is how long the reader process took for this batch,
    `decode_s` the part of it for decoding and cropping (0 in records of earlier versions). `single_s` is the time of
    one sample that was read alone from the same endpoint, about when this batch was requested; null for most batches.
    `samples_per_s` is the rate that the run reports (smoothed by the engine). `queued` batches after this one were
    prefetched already; `readers_idle` is True where the prefetch limit was reached and a reader process was idle: the
    endpoint keeps up. `grad_norm` is the norm of the gradients before clipping; null in steps without an update of the
    weights, and where it is not finite. `logged` are other figures that a script logged for this step, by name.
    """

    step: int
    epoch: int
    samples: int
    loss: float | None
    lr: float
    endpoint: EndpointKind | None
    data_wait_s: float
    step_time_s: float
    fetch_s: float
    bytes: int
    samples_per_s: float
    copy_s: float = 0.0
    compute_s: float = 0.0
    host_s: float = 0.0
    host_late: bool = False
    queued: int = 0
    readers_idle: bool = False
    single_s: float | None = None
    decode_s: float = 0.0
    grad_norm: float | None = None
    logged: dict[str, float | None] = {}

    @property
    def wait_fraction(self) -> float:
        """Share of the step spent waiting for data, 0 to 1."""
        if self.step_time_s <= 0:
            return 0.0
        return min(1.0, max(0.0, self.data_wait_s / self.step_time_s))


class Epoch(_Event, frozen=True, kw_only=True, tag="epoch"):
    """An epoch ended and was validated; the validation metrics are None without a validation set.

    `class_top1` is the top-1 accuracy by class, for the classes with validation samples.
    """

    epoch: int
    train_loss: float | None
    val_loss: float | None
    top1: float | None
    top5: float | None
    seconds: float
    step: int = 0
    samples: int = 0
    val_samples: int = 0
    class_top1: dict[str, float] = {}


class Switch(_Event, frozen=True, kw_only=True, tag="switch"):
    """Batches requested from now on are read from `endpoint`; `step` is the last one completed before the request."""

    endpoint: EndpointKind
    reason: str
    step: int = 0


class Saving(_Event, frozen=True, kw_only=True, tag="saving"):
    """A checkpoint upload in progress: `written` of `bytes` were sent. `over` where it ended without a checkpoint."""

    key: str
    bytes: int
    written: int
    over: bool = False


class Checkpoint(_Event, frozen=True, kw_only=True, tag="checkpoint"):
    """A checkpoint was written under its unique `key`, verified, and copied to `stable_key`.

    `best_key` is its second copy where it has the run's highest top-1 so far, else "".
    """

    key: str
    bytes: int
    seconds: float
    stable_key: str
    best_key: str = ""
    epoch: int = 0
    step: int = 0
    top1: float | None = None


class LearningRate(_Event, frozen=True, kw_only=True, tag="learning_rate"):
    """The peak learning rate is another one than the settings say: it was changed, or comes from a checkpoint."""

    peak: float
    step: int = 0

    @property
    def message(self) -> str:
        """The change in words."""
        return f"The peak learning rate is now {self.peak:g}."


class InfoEvent(_Event, frozen=True, kw_only=True, tag="info"):
    """Something worth a line in the event log, such as what the run computes on."""

    message: str
    step: int = 0


class WarningEvent(_Event, frozen=True, kw_only=True, tag="warning"):
    """A problem that does not end the run: a retry, a skipped sample, a slow endpoint."""

    message: str
    remedy: str = ""
    step: int = 0


class ErrorEvent(_Event, frozen=True, kw_only=True, tag="error"):
    """Something failed; a State event follows where it ended the run."""

    message: str
    remedy: str = ""
    step: int = 0


class AcceleratorSize(_Event, frozen=True, kw_only=True, tag="accelerator"):
    """The quota of the bucket's accelerator, and the peak rate that its documentation gives for it."""

    quota_gb: int
    peak_bytes_per_s: float


class Devices(_Event, frozen=True, kw_only=True, tag="devices"):
    """The devices of the run: `device` is cpu or cuda, `gpus` the UUIDs of its GPUs in the order of its processes.

    `ceiling` is null where no saved benchmark measured the same model with the same settings on the same device.
    """

    device: str
    gpus: tuple[str, ...] = ()
    ceiling: ModelCeiling | None = None

    def share_of_ceiling(self, samples_per_s: float | None) -> str:
        """How much of what its model can do a run does, in words; "" where no saved benchmark measured that."""
        if self.ceiling is None or not self.ceiling.samples_per_s or samples_per_s is None:
            return ""
        share, gpus = percent(samples_per_s / self.ceiling.samples_per_s), len(self.gpus)
        where = f"these {counted(gpus, 'GPU')}" if gpus > 1 else "this GPU" if gpus else "this CPU"
        return f"{share} of what the model can do on {where} (benchmark {self.ceiling.bench})"


class RankWork(_Event, frozen=True, kw_only=True, tag="rank_work"):
    """What each rank of a run, and each of its reader processes, did since the last event of this kind."""

    ranks: tuple[RankFigures, ...]
    step: int = 0


class State(_Event, frozen=True, kw_only=True, tag="state"):
    """The run entered `state`."""

    state: RunState
    step: int = 0


class Telemetry(_Event, frozen=True, kw_only=True, tag="telemetry"):
    """A sample of GPUs and host, so that a replay shows them too."""

    gpus: tuple[GpuSample, ...] = ()
    host: HostSample | None = None
    problem: str = ""


class LoaderWorkers(_Event, frozen=True, kw_only=True, tag="workers"):
    """What the worker processes of a watched loader did since the last event of this kind, in the loader's order."""

    workers: tuple[WorkerUsage, ...]


class EndpointSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The totals and figures of one endpoint over the run.

    `steps`, `samples` and `bytes` are totals. The rate and the wait are those of its settled steps; where these were
    too few they are null, and `reason` says so. `decode_share` is the share of the readers' time in which they decoded.
    `format_gain` is what another sample format would give, null unless the bytes per second limit the run.
    """

    steps: int
    samples: int
    bytes: int
    samples_per_s: float | None = None
    wait_fraction: float | None = None
    reason: str = ""
    decode_share: float | None = None
    format_gain: FormatGain | None = None


class Compared(_Event, frozen=True, kw_only=True, tag="comparison"):
    """A new result of the comparison of the endpoints."""

    comparison: ComparisonReport
    step: int = 0


class Summary(_Event, frozen=True, kw_only=True, tag="summary"):
    """The last line of every record of a run that ended in an orderly way.

    `epochs` are those completed, with their validation; `steps` also count in the one under way at the end. Both
    include what a resumed run had done before.
    `samples_per_s` is the mean over the steps after the warm-up, `wait_fraction` the share of their time spent waiting
    for data; where they were too few both are null, and `reason` says so. `comparison` is null where the run used one
    endpoint only. `advice` says what would make the run faster, with estimates.
    """

    run: str
    state: RunState
    epochs: int
    steps: int
    samples: int
    bytes: int
    seconds: float
    samples_per_s: float | None
    wait_fraction: float | None
    reason: str = ""
    comparison: ComparisonReport | None = None
    advice: str = ""
    train_loss: float | None = None
    val_loss: float | None = None
    top1: float | None = None
    top5: float | None = None
    checkpoint: str = ""
    endpoints: dict[str, EndpointSummary] = {}
    skipped_samples: int = 0
    retries: int = 0
    error: str = ""


Event: TypeAlias = (
    Run
    | Step
    | Epoch
    | Switch
    | Saving
    | Checkpoint
    | LearningRate
    | InfoEvent
    | WarningEvent
    | ErrorEvent
    | AcceleratorSize
    | Devices
    | RankWork
    | State
    | Telemetry
    | LoaderWorkers
    | Compared
    | Summary
)

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """The event as one JSON object without the line end."""
    return encode_json(event)


def decode(line: bytes | str) -> Event:
    """The event of one line. Raises msgspec.DecodeError (also ValidationError) for a line that is not an event."""
    return _decoder.decode(line)


Level = Literal["info", "good", "switch", "warning", "error"]


class LogLine(msgspec.Struct, frozen=True):
    """One line of the event log. `time` is Unix seconds; `endpoint` is set for a line about one."""

    time: float
    level: Level
    text: str
    endpoint: EndpointKind | None = None


def to_log_line(event: Event) -> LogLine | None:
    """The line for an event; None for those that come too often or say nothing new.

    The text is safe for a terminal: a record may have been written by another program.
    """
    endpoint: EndpointKind | None = None
    level: Level = "info"
    match event:
        case Run():
            text = f"run {event.run} starts"
        case State(state=RunState.PAUSED):
            text = "paused"
        case State(state=RunState.STOPPING):
            text = "stopping: saving a checkpoint"
        case Switch():
            level, endpoint = "switch", event.endpoint
            text = f"switched to {event.endpoint}{f' ({event.reason})' if event.reason else ''}"
        case Epoch():
            level, text = "good", _epoch_text(event)
        case Checkpoint():
            level, text = "good", f"checkpoint {event.key}: {megabytes(event.bytes)} in {event.seconds:.1f} s"
        case LearningRate() | InfoEvent():
            text = event.message
        case WarningEvent():
            level, text = "warning", f"{event.message} {event.remedy}".strip()
        case ErrorEvent():
            level, text = "error", f"{event.message} {event.remedy}".strip()
        case Compared():
            level = "good"
            text = f"A/B after {counted(event.comparison.pairs, 'pair')}: {event.comparison.words}"
        case Summary():
            level, text = "good", _summary_text(event)
        case _:
            return None
    return LogLine(event.time, level, safe_text(text), endpoint)


def _epoch_text(event: Epoch) -> str:
    parts = [f"train loss {number(event.train_loss)}"]
    if event.val_loss is not None:
        parts.append(f"val loss {number(event.val_loss)}")
    if event.top1 is not None:
        parts.append(f"top-1 {percent(event.top1)}")
    if event.top5 is not None:
        parts.append(f"top-5 {percent(event.top5)}")
    worst = worst_classes(event.class_top1)
    if worst:
        parts.append(f"lowest top-1 {worst}")
    return f"epoch {event.epoch} in {event.seconds:.1f} s: {', '.join(parts)}"


_FEW_CLASSES = 3


def worst_classes(class_top1: dict[str, float]) -> str:
    """The classes with the lowest top-1 as text; "" for two classes or fewer, of which the mean says enough."""
    if len(class_top1) < _FEW_CLASSES:
        return ""
    worst = sorted(class_top1.items(), key=lambda item: item[1])[:_FEW_CLASSES]
    return ", ".join(f"{name} {percent(top1)}" for name, top1 in worst)


def _summary_text(event: Summary) -> str:
    return f"{_results(event)}. {event.advice}" if event.advice else _results(event)


def _results(event: Summary) -> str:
    words = f"{event.state}: {counted(event.epochs, 'epoch')}, {counted(event.steps, 'step')} in {event.seconds:.0f} s"
    if event.samples_per_s is None or event.wait_fraction is None:
        return f"{words}, {event.reason} for a rate" if event.reason else words
    rate = counted(f"{event.samples_per_s:.0f}", "sample/s", "samples/s")
    words += f", {rate}, data wait {percent(event.wait_fraction)}"
    return f"{words}, A/B {event.comparison.words}" if event.comparison is not None else words


def number(value: float | None) -> str:
    """A loss with three decimals, a tiny or huge one with three digits; "n/a" where it is unknown or diverged."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1e6 or not value else f"{value:.3g}"


def percent(fraction: float) -> str:
    """A fraction of 1 in percent, with one decimal below 10 %."""
    return f"{fraction * 100:.0f} %" if fraction >= 0.0995 or fraction == 0 else f"{fraction * 100:.1f} %"


def megabytes(count: int) -> str:
    """A number of bytes in MB (10**6)."""
    return f"{count / 1e6:.1f} MB"
