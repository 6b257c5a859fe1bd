"""What a run reports: one JSON object per line, the same in `train --json`, the run record, replay and export.

Units: `time` is Unix seconds, every `*_s` and `seconds` is wall-clock seconds, `bytes` are bytes read from or written
to the bucket, `top1`/`top5` are fractions of 1. A float that may diverge is `float | None`: JSON has no NaN, so a
non-finite value is written as null and read back as None (a gap in a chart).

`narrate` puts each event in words for the event log.
"""

from __future__ import annotations

import enum
import functools
from typing import Any, Literal, TypeAlias

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted, safe_text
from ossconsole.telemetry.compare import ComparisonReport
from ossconsole.telemetry.host import GpuSample, HostSample


class RunState(str, enum.Enum):
    """Where a run stands; the last three are final."""

    STARTING = "starting"
    RUNNING = "running"
    VALIDATING = "validating"
    PAUSED = "paused"
    STOPPING = "stopping"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        return self in {RunState.FINISHED, RunState.STOPPED, RunState.FAILED}

    def __str__(self) -> str:
        return self.value


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float


class Run(_Event, frozen=True, kw_only=True, tag="run"):
    """The first line of every record: which run, by which program, with which settings (never a secret).

    `epochs` and `steps_per_epoch` are 0 where not known at the start; `pid` and `host` (`socket.gethostname()`)
    tell whether it still lives. `world` is how many processes train together; with a restart comes another of these.
    `stored_as` is "objects" (one for each sample) or "shards"; `versions` are those of the libraries that read.
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


class Step(_Event, frozen=True, kw_only=True, tag="step"):
    """One training step.

    `step` counts from 1 over the whole run, `epoch` from 1. `samples` and `bytes` are this batch's, of all processes
    that train together, and so is the loss; `endpoint` is the one this batch was read from. `step_time_s` is end to
    end, from the moment the previous step ended: the wait (`data_wait_s`), the copy to the device (`copy_s`), the
    compute (`compute_s`) and the rest that a GPU was idle for (`host_s`) add up to it. `host_late` tells that the GPU
    had done its work before the next was all handed to it. `fetch_s` is how long the reader process took for this
    batch. `samples_per_s` is the rate the run reports (smoothed by the engine). `queued` is how many
    batches after this one were there already; `readers_idle` tells that no more may be read ahead, and a reader process
    had nothing to do: the endpoint keeps up.
    """

    step: int
    epoch: int
    samples: int
    loss: float | None
    lr: float
    endpoint: EndpointKind
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

    @property
    def wait_fraction(self) -> float:
        """Share of the step spent waiting for data, 0 to 1."""
        if self.step_time_s <= 0:
            return 0.0
        return min(1.0, max(0.0, self.data_wait_s / self.step_time_s))


class Epoch(_Event, frozen=True, kw_only=True, tag="epoch"):
    """An epoch ended and was validated; the validation figures are None where there is no validation set."""

    epoch: int
    train_loss: float | None
    val_loss: float | None
    top1: float | None
    top5: float | None
    seconds: float
    step: int = 0
    samples: int = 0
    val_samples: int = 0


class Switch(_Event, frozen=True, kw_only=True, tag="switch"):
    """Batches asked for from now on come from `endpoint`; `step` is the last one done when it was asked."""

    endpoint: EndpointKind
    reason: str
    step: int = 0


class Saving(_Event, frozen=True, kw_only=True, tag="saving"):
    """A checkpoint on its way: `written` of `bytes` were handed to OSS. `over` where it ended without a checkpoint."""

    key: str
    bytes: int
    written: int
    over: bool = False


class Checkpoint(_Event, frozen=True, kw_only=True, tag="checkpoint"):
    """A checkpoint was written under its unique `key`, verified, and copied to `stable_key`.

    `best_key` is where it was copied to as well for having the run's highest top-1 so far, "" when it has not.
    """

    key: str
    bytes: int
    seconds: float
    stable_key: str
    best_key: str = ""
    epoch: int = 0
    step: int = 0
    top1: float | None = None


class InfoEvent(_Event, frozen=True, kw_only=True, tag="info"):
    """Something worth a line in the event log, such as a changed learning rate."""

    message: str
    step: int = 0


class WarningEvent(_Event, frozen=True, kw_only=True, tag="warning"):
    """The run goes on: a retry, a skipped sample, a slow endpoint."""

    message: str
    remedy: str = ""
    step: int = 0


class ErrorEvent(_Event, frozen=True, kw_only=True, tag="error"):
    """Something failed; a State event says whether the run ended over it."""

    message: str
    remedy: str = ""
    step: int = 0


class AcceleratorSize(_Event, frozen=True, kw_only=True, tag="accelerator"):
    """The size that was bought of the bucket's accelerator, and what that gives at most by its documentation."""

    quota_gb: int
    peak_bytes_per_s: float


class State(_Event, frozen=True, kw_only=True, tag="state"):
    """The run entered `state`."""

    state: RunState
    step: int = 0


class Telemetry(_Event, frozen=True, kw_only=True, tag="telemetry"):
    """GPUs and host as the sampler saw them, so that a replay shows them too."""

    gpus: tuple[GpuSample, ...] = ()
    host: HostSample | None = None
    problem: str = ""


class EndpointSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one endpoint delivered over the run.

    `steps`, `samples` and `bytes` are all that came through it. The rate and the wait are those of its settled steps;
    where these were too few they are null, and `reason` says so.
    """

    steps: int
    samples: int
    bytes: int
    samples_per_s: float | None = None
    wait_fraction: float | None = None
    reason: str = ""


class Compared(_Event, frozen=True, kw_only=True, tag="comparison"):
    """The endpoints were compared: another look at the pairs of visits."""

    comparison: ComparisonReport
    step: int = 0


class Summary(_Event, frozen=True, kw_only=True, tag="summary"):
    """The last line of every record of a run that ended in an orderly way.

    `samples_per_s` is the mean over the steps after the warm-up, `wait_fraction` their share of waiting; where they
    were too few both are null, and `reason` says so. `comparison` is null where the run used one endpoint only.
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
    | InfoEvent
    | WarningEvent
    | ErrorEvent
    | AcceleratorSize
    | State
    | Telemetry
    | Compared
    | Summary
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """The event as one JSON object without the line end."""
    return _encoder.encode(event)


def decode(line: bytes | str) -> Event:
    """The event of one line. Raises msgspec.DecodeError (also ValidationError) where it is none."""
    return _decoder.decode(line)


Level = Literal["info", "good", "switch", "warning", "error"]


class LogLine(msgspec.Struct, frozen=True):
    """One line of the event log. `time` is Unix seconds; `endpoint` is set where the line is about one."""

    time: float
    level: Level
    text: str
    endpoint: EndpointKind | None = None


_STATE_WORDS = {
    RunState.PAUSED: "paused",
    RunState.STOPPING: "stopping: a checkpoint is written first",
}


def narrate(event: Event) -> LogLine | None:
    """The line for an event; None for those that come too often or say nothing new.

    The record that it may come from is a file of anybody's: the text is made safe for a terminal.
    """
    line = _narrate(event)
    return line and msgspec.structs.replace(line, text=safe_text(line.text))


@functools.singledispatch
def _narrate(event: Event) -> LogLine | None:  # noqa: ARG001 - the events not named below come too often for a line
    return None


@_narrate.register
def _(event: Run) -> LogLine:
    return LogLine(event.time, "info", f"run {event.run} starts")


@_narrate.register
def _(event: State) -> LogLine | None:
    words = _STATE_WORDS.get(event.state)
    return LogLine(event.time, "info", words) if words else None


@_narrate.register
def _(event: Switch) -> LogLine:
    reason = f" ({event.reason})" if event.reason else ""
    return LogLine(event.time, "switch", f"switched to {event.endpoint}{reason}", event.endpoint)


@_narrate.register
def _(event: Epoch) -> LogLine:
    return LogLine(event.time, "good", _epoch_words(event))


@_narrate.register
def _(event: Checkpoint) -> LogLine:
    return LogLine(event.time, "good", f"checkpoint {event.key}: {megabytes(event.bytes)} in {event.seconds:.1f} s")


@_narrate.register
def _(event: InfoEvent) -> LogLine:
    return LogLine(event.time, "info", event.message)


@_narrate.register
def _(event: WarningEvent) -> LogLine:
    return LogLine(event.time, "warning", f"{event.message} {event.remedy}".strip())


@_narrate.register
def _(event: ErrorEvent) -> LogLine:
    return LogLine(event.time, "error", f"{event.message} {event.remedy}".strip())


@_narrate.register
def _(event: Compared) -> LogLine:
    return LogLine(event.time, "good", f"A/B after {counted(event.comparison.pairs, 'pair')}: {event.comparison.words}")


@_narrate.register
def _(event: Summary) -> LogLine:
    return LogLine(event.time, "good", _summary_words(event))


def _epoch_words(event: Epoch) -> str:
    parts = [f"train loss {number(event.train_loss)}"]
    if event.val_loss is not None:
        parts.append(f"val loss {number(event.val_loss)}")
    if event.top1 is not None:
        parts.append(f"top-1 {percent(event.top1)}")
    if event.top5 is not None:
        parts.append(f"top-5 {percent(event.top5)}")
    return f"epoch {event.epoch} in {event.seconds:.1f} s: {', '.join(parts)}"


def _summary_words(event: Summary) -> str:
    words = f"{event.state}: {counted(event.epochs, 'epoch')}, {counted(event.steps, 'step')} in {event.seconds:.0f} s"
    if event.samples_per_s is None or event.wait_fraction is None:
        return f"{words}, {event.reason} for a rate" if event.reason else words
    rate = counted(f"{event.samples_per_s:.0f}", "sample/s", "samples/s")
    words += f", {rate}, data wait {percent(event.wait_fraction)}"
    return f"{words}, A/B {event.comparison.words}" if event.comparison is not None else words


def number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def percent(fraction: float) -> str:
    return f"{fraction * 100:.0f} %" if fraction >= 0.0995 or fraction == 0 else f"{fraction * 100:.1f} %"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
