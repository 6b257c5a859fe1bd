"""The bottleneck of a run, in words. Every number is measured, or marked *estimated* or *at most*."""

from __future__ import annotations

import enum

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.text import counted
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import Comparison
from ossconsole.telemetry.events import RunState, percent
from ossconsole.telemetry.format_gain import JPEG, JPEG_BYTES, MAX_WAIT, is_larger
from ossconsole.telemetry.loader_waits import LoaderWaits, loader_words
from ossconsole.telemetry.loader_waits import advice as loader_advice
from ossconsole.telemetry.measure import COMPUTE_BOUND, DECODE_BOUND, IO_BOUND, Measurement
from ossconsole.telemetry.ranks import slowest
from ossconsole.telemetry.view import RunView, StepSplit

_HOST_BOUND = 0.5  # share of the steps in which the GPU finished before the host had queued its next work
_LARGE = 1.5  # times the bytes of a JPEG of 256 px, above which images are larger than training needs
_DIAGNOSED_STEPS = 4  # fewer are too few for a diagnosis


class Bottleneck(str, enum.Enum):
    """What the run waits for."""

    IO = "I/O-bound"
    MIXED = "partly I/O-bound"
    DECODE = "decoding-bound"
    COMPUTE = "compute-bound"
    HOST = "host-bound"
    UNDECIDED = "undecided"
    NONE = ""


class Diagnosis(msgspec.Struct, frozen=True):
    """The bottleneck of a run, and what to do about it.

    `bottleneck` is NONE before the first steps and after the run; `advice` may be empty. `format_advice` is what
    another sample format would give (estimated), `ceiling` the share of what the model can do; "" where unknown.
    """

    bottleneck: Bottleneck
    text: str
    advice: str = ""
    format_advice: str = ""
    ceiling: str = ""


def diagnose(view: RunView, now: float, *, has_accelerated: bool = True) -> Diagnosis:
    """The diagnosis of the run at `now`; `has_accelerated`: whether the profile has an accelerated endpoint."""
    idle = _idle(view, now)
    if idle is not None:
        return idle
    split = view.split
    if split is None:
        return Diagnosis(Bottleneck.NONE, "starting", "waiting for the first batch")
    if split.steps < _DIAGNOSED_STEPS:
        return Diagnosis(
            Bottleneck.UNDECIDED, f"{counted(split.steps, 'step')} so far", f"needs {_DIAGNOSED_STEPS} for a diagnosis"
        )
    found = _diagnose_steps(view, split, has_accelerated=has_accelerated)
    rate = view.last_step.samples_per_s if view.last_step is not None else None
    return msgspec.structs.replace(found, ceiling=view.devices.share_of_ceiling(rate) if view.devices else "")


def _diagnose_steps(view: RunView, split: StepSplit, *, has_accelerated: bool) -> Diagnosis:
    """The diagnosis from the times of the recent steps."""
    wait = split.wait_fraction
    text = f"{_waiter(view)} waits for data {percent(wait)} of each step"
    if view.run is not None and view.run.loader and view.delivering is None:
        return _diagnose_loader(view, view.run, split)
    if wait < COMPUTE_BOUND and split.late >= _HOST_BOUND:
        late = f"the GPU is idle between kernels in {percent(split.late)} of the steps, although data is there"
        return Diagnosis(Bottleneck.HOST, late, _HOST_ADVICE)
    if wait < COMPUTE_BOUND:
        return Diagnosis(Bottleneck.COMPUTE, text, _compute_advice(view))
    uneven = slowest(view.loader_waits.ranks)
    named = f"{uneven}; " if uneven else ""
    if split.decode_share >= DECODE_BOUND:
        decoding = _decoding(view.measurement, split.decode_share)
        return Diagnosis(Bottleneck.DECODE, decoding, f"{named}{_decode_advice(view.measurement)}")
    bound = Bottleneck.IO if wait >= IO_BOUND else Bottleneck.MIXED
    gain = view.measurement.format_gain(view.delivering) if view.delivering and bound is Bottleneck.IO else None
    advice = _gain_advice(view, split, has_accelerated=has_accelerated, format_known=gain is not None)
    return Diagnosis(bound, text, f"{named}{advice}", gain.words if gain is not None else "")


def _diagnose_loader(view: RunView, run: events.Run, split: StepSplit) -> Diagnosis:
    """The diagnosis of a watched loop, whose batches come from a loader of the script."""
    wait = split.wait_fraction
    found = diagnose_loader(run, view.loader_waits, wait, waiter=_waiter(view))
    return found if wait < COMPUTE_BOUND else msgspec.structs.replace(found, format_advice=_from_oss(view, run, wait))


def diagnose_loader(run: events.Run, waits: LoaderWaits, wait: float, *, waiter: str = "training") -> Diagnosis:
    """The diagnosis of a loop around a loader of the script; `wait` is the share of its time spent waiting, 0 to 1."""
    loader = loader_words(run.loader, waits.workers)
    text = f"{waiter} waits {percent(wait)} of each step for batches from {loader}"
    if wait < COMPUTE_BOUND:
        return Diagnosis(Bottleneck.COMPUTE, text, "faster reading would not help")
    bound = Bottleneck.IO if wait >= IO_BOUND else Bottleneck.MIXED
    cause = loader_advice(waits, cores=run.cores)
    gain = f"faster batches would be worth at most {_at_most(wait)} (estimated)"
    return Diagnosis(bound, text, f"{cause}; {gain}")


def _from_oss(view: RunView, run: events.Run, wait: float) -> str:
    """What the endpoints could give to a watched loop, by a saved benchmark of this machine; "" without one."""
    bench, step = run.benchmark, view.last_step
    if bench is None or step is None or not bench.samples_per_s:
        return ""
    kind, rate = max(bench.samples_per_s.items(), key=lambda item: item[1])
    without_wait = step.samples_per_s / (1 - min(wait, MAX_WAIT))
    simulated = ", simulated" if bench.simulated else ""
    return (
        f"OSS could give {min(rate, without_wait):,.0f} samples/s through the {kind} endpoint "
        f"(estimated from the benchmark {bench.name}{simulated})"
    )


def _at_most(wait: float) -> str:
    """The gain when no step waits any more."""
    return f"{1 / (1 - min(wait, MAX_WAIT)):.1f}x"


def final_advice(measured: Measurement) -> str:
    """What would make a run that has ended faster; of the faster of its endpoints, "" where nothing is known."""
    rates = {kind: rate for kind in EndpointKind if (rate := measured.figures(kind).samples_per_s) is not None}
    if not rates:
        return ""
    kind = max(rates, key=lambda each: rates[each])
    if measured.decode_bound(kind):
        decoding = _decoding(measured, measured.decode_share(kind) or 0.0)
        return f"Decoding-bound: {decoding}; {_decode_advice(measured)}"
    gain = measured.format_gain(kind)
    return gain.words if gain is not None else ""


def _idle(view: RunView, now: float) -> Diagnosis | None:
    """The diagnosis where the state alone decides it."""
    if view.state is None:
        return Diagnosis(Bottleneck.NONE, "no run yet")
    if view.state.final:
        return _final(view)
    if view.state in _STATE_ADVICE:
        return Diagnosis(Bottleneck.NONE, str(view.state), _STATE_ADVICE[view.state])
    silent = view.stalled_s(now)
    if silent is not None:
        for_so_long = f"{silent / 60:.0f} min" if silent >= _MINUTES_FROM_S else f"{silent:.0f} s"
        return Diagnosis(Bottleneck.NONE, f"no step for {for_so_long}", _silence(view))
    if view.settling is not None:
        passed, needed = view.settling
        return Diagnosis(
            Bottleneck.NONE,
            f"switching to {view.endpoint}",
            f"prefetched batches are not counted: {passed} of {needed}",
        )
    return None


def _silence(view: RunView) -> str:
    """Why no step may have ended for so long."""
    if view.endpoint is not None:
        return f"the {view.endpoint} endpoint may not answer"
    loader = view.run.loader if view.run is not None else ""
    return f"{loader or 'the loader'} may give no batch, or the script does other work, such as a validation"


_HOST_ADVICE = "a larger batch, --compile or less work for the CPU would help; faster reading would not"

_MINUTES_FROM_S = 120.0

_STATE_ADVICE = {
    RunState.STARTING: "loading the model and the first batch",
    RunState.COMPILING: "torch.compile takes 10 s to minutes, once for each batch size; these are not counted",
    RunState.PAUSED: "the run waits before its next step",
    RunState.STOPPING: "the checkpoint is written first",
}


def _decoding(measured: Measurement, share: float) -> str:
    """How much of their time the readers decode; image-u8 is only cropped."""
    encoded = measured.run is None or measured.run.sample_format == JPEG
    return f"the readers spend {percent(share)} of their time {'decoding' if encoded else 'cropping'}"


def _decode_advice(measured: Measurement) -> str:
    """How to decode faster; a faster endpoint would not help."""
    run, readers, cores = measured.run, measured.readers, measured.run.cores if measured.run else 0
    if readers < cores or not cores:
        on = f" on {counted(cores, 'core')}" if cores else ""
        advice = f"use more --workers: {counted(readers, 'reader')}{on}"
    else:
        advice = f"all {counted(cores, 'core')} are in use: use a machine with more"
    each = measured.bytes / measured.samples if measured.samples else 0.0
    if run is not None and run.sample_format == JPEG and each > _LARGE * JPEG_BYTES:
        return f"{advice}, or store smaller images: ossconsole upload SRC --format {JPEG} --size 256"
    return f"{advice}; a faster endpoint would not help"


def _final(view: RunView) -> Diagnosis:
    if view.state is RunState.FAILED:
        failure = view.summary.error if view.summary and view.summary.error else ""
        return Diagnosis(Bottleneck.NONE, "failed", failure or (view.errors[-1].text if view.errors else ""))
    advice = view.summary.advice if view.summary else ""
    rate = view.summary.samples_per_s if view.summary else None
    ceiling = view.devices.share_of_ceiling(rate) if view.devices else ""
    return Diagnosis(Bottleneck.NONE, str(view.state), _compared(view.comparison), advice, ceiling)


def _compared(comparison: Comparison) -> str:
    """The result of the comparison; "" where one endpoint alone was measured."""
    if comparison.decided:
        return f"the accelerated endpoint {comparison.sentence}"
    return f"A/B {comparison.words}" if comparison.pairs else ""


def _waiter(view: RunView) -> str:
    if view.devices is not None:
        return "the GPU" if view.devices.gpus else "training"
    return "the GPU" if any(gpu.utilization is not None for gpu in view.gpus) else "training"


def _compute_advice(view: RunView) -> str:
    found = view.comparison
    if view.delivering is EndpointKind.ACCELERATED:
        known = _compared(found) or "data is not the bottleneck on accelerated"
        return f"{known}; reading still faster would not help"
    if found.faster is EndpointKind.ACCELERATED:
        return _measured(found)
    undecided = "" if found.decided else _compared(found)
    return f"{undecided}; a faster endpoint would not help" if undecided else "a faster endpoint would not help"


def _measured(comparison: Comparison) -> str:
    return f"{_compared(comparison)}, measured in this run"


def _gain_advice(view: RunView, split: StepSplit, *, has_accelerated: bool, format_known: bool) -> str:
    """The gain of the other endpoint: measured where both were, else bounded by the step without its wait.

    The same bound holds for smaller samples, which are named unless their gain is known.
    """
    smaller = not format_known and view.run is not None and is_larger(view.run.sample_format)
    or_jpeg = f" or {JPEG}" if smaller else ""
    found = view.comparison
    at_most = f"at most {_at_most(split.wait_fraction)} (estimated)"
    if view.delivering is EndpointKind.ACCELERATED:
        ceiling, more = view.measurement.ceiling, f"more workers{or_jpeg}: {at_most}"
        if ceiling is not None and ceiling.near:  # more readers cannot exceed the purchased rate
            parts = [ceiling.short, _compared(found)]
        else:
            # What is still collected comes after what is known: narrow screens show the start, and the A/B panel both.
            parts = [_compared(found), more] if found.decided else [more, _compared(found)]
            parts += [ceiling.short] if ceiling is not None else []
        if (hits := view.measurement.cold_hits) is not None:
            parts.insert(0, f"the cache is cold, hit rate {percent(hits)} (estimated): w (ossconsole warm) fills it")
        return "; ".join(part for part in parts if part)
    if not has_accelerated:
        return f"an accelerator{or_jpeg} would be worth {at_most}"
    if found.decided:
        return _measured(found)
    known = f"; {_compared(found)}" if found.pairs else ""
    return f"the accelerated endpoint{or_jpeg} would be worth {at_most}{known}"
