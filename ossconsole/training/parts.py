"""The parts of a session: model and device, step reports, the state of the epoch, checkpoints, user requests."""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.telemetry import events
from ossconsole.telemetry.diagnosis import final_advice
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.ranks import RankSums
from ossconsole.training.checkpoints.checkpoint import CheckpointSaver, Snapshot, unexpected_failure
from ossconsole.training.checkpoints.store import RunProgress
from ossconsole.training.compute.device import BatchTransform, DeviceContext, PendingTimes, StepClock
from ossconsole.training.compute.selection import gpu_uuid, refuse_shared_gpus
from ossconsole.training.compute.trainer import EpochMeter, Trainer, finite
from ossconsole.training.context import RunContext
from ossconsole.training.data import TrainingData
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.distributed.ranks import RankInfo, StepDecision
from ossconsole.training.loading.loader import Batch
from ossconsole.training.plan import Plan, Split

log = logging.getLogger(__name__)

_PAUSED_POLL_S = 0.5  # how often the ranks of a paused run synchronise, and requests are carried out
_RANKS_EVERY_S = 10.0
_UNUSABLE = 16  # samples in a row that are skipped; the last batch of an epoch may be a single one
_RATE_STEPS = 10  # steps over which the samples/s of a step are averaged


class DivergedError(ConsoleError):
    """The loss is not finite: the weights must not become a checkpoint."""


class Upcoming(NamedTuple):
    """A batch, None at the end, or the error that prevents it; `gathered` waits for the status of all ranks."""

    batch: Batch | None
    problem: ConsoleError | None
    gathered: Callable[[], list[Sequence[float]]]


@dataclass(frozen=True)
class DoneStep:
    """A step whose figures may still be on their way from the device; `compiled` means that compiling is part of it."""

    step: int
    epoch: int
    lr: float
    loss: torch.Tensor
    grad_norm: torch.Tensor | None
    batch: Batch
    decision: StepDecision
    times: PendingTimes
    compiled: bool = False


class StepReports:
    """Emits the steps of a run, with `late` one step later, so that the host never waits for the GPU.

    `last_checkpoint` returns the URI to resume from, "" for none.
    """

    def __init__(self, context: RunContext, *, late: bool, last_checkpoint: Callable[[], str]) -> None:
        self._context = context
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RATE_STEPS)  # samples and seconds of a step
        self._late = late
        self._last_checkpoint = last_checkpoint
        self._pending: DoneStep | None = None
        self._compiled = False  # the step before
        self._ranks = RankSums()
        self._ranks_at = time.monotonic()

    def add(self, done: DoneStep) -> None:
        """Takes a step, and emits it, or with `late` the one before. Raises DivergedError as `flush` does."""
        self.flush()
        self._pending = done
        if not self._late:
            self.flush()

    def report_ranks(self) -> None:
        """Emits what each rank did since the last call."""
        self._ranks_at = time.monotonic()
        ranks = self._ranks.take()
        if ranks:
            self._context.emit(events.RankWork(time=time.time(), ranks=ranks, step=self._context.step))

    def flush(self) -> None:
        """Waits for the last step and emits it. Raises DivergedError when its loss is not finite."""
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        decision = done.decision
        times = done.times.read(slowest_wait_s=decision.wait_s)
        loss = finite(float(done.loss))
        if self._compiled:
            self._recent.clear()  # the step before took minutes
        self._compiled = done.compiled
        self._recent.append((decision.samples, times.step_s))
        seconds = sum(step_s for _, step_s in self._recent)
        self._context.emit(
            events.Step(
                time=time.time(),
                step=done.step,
                epoch=done.epoch,
                samples=decision.samples,
                loss=loss,
                lr=done.lr,
                endpoint=done.batch.endpoint,
                data_wait_s=times.wait_s,
                step_time_s=times.step_s,
                fetch_s=decision.fetch_s,
                bytes=decision.bytes,
                samples_per_s=sum(samples for samples, _ in self._recent) / seconds if seconds else 0.0,
                copy_s=times.copy_s,
                compute_s=times.compute_s,
                host_s=times.host_s,
                host_late=times.host_late,
                queued=done.batch.queued,
                readers_idle=done.batch.readers_idle,
                single_s=done.batch.single_s,
                decode_s=decision.decode_s,
                grad_norm=None if done.grad_norm is None else finite(float(done.grad_norm)),
            )
        )
        self._ranks.add(decision.ranks)
        if time.monotonic() - self._ranks_at >= _RANKS_EVERY_S:
            self.report_ranks()
        if loss is None:
            uri = self._last_checkpoint()
            again = f"Resume from {uri}" if uri else "Restart"
            raise DivergedError(
                f"The loss of step {done.step} is not a finite number; the run has diverged.",
                remedy=f"{again} with a lower --learning-rate than {done.lr:g}.",
            )


class UnusableSamples:
    """Counts samples in a row that cannot be used, in the same way on all ranks, in a training set of `samples`."""

    def __init__(self, samples: int) -> None:
        self._most = min(_UNUSABLE, samples)
        self._before = 0

    def check(self, decision: StepDecision, batch: Batch) -> None:
        """Raises ConsoleError where the dataset itself seems unusable; `batch` is this rank's."""
        if decision.samples:
            self._before = decision.skipped
            return
        count = decision.skipped - self._before
        if count >= self._most:
            last = f" The last one is {batch.bad[-1].key}: {batch.bad[-1].reason}." if batch.bad else ""
            raise ConsoleError(
                f"{counted(count, 'sample')} in a row cannot be used.{last}",
                remedy="Upload the dataset again with `ossconsole upload`.",
            )


class EpochState:
    """The current epoch (from 1), its sums by split, and the metrics of the last complete epoch; `classes` have names.

    `metrics` are train_loss, val_loss, top1, top5, and best_top1 of all epochs so far. `epoch` is the one under way,
    `completed` the number of those that have ended, with their validation.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self.epoch = 1
        self.completed = 0
        self.metrics: dict[str, float | None] = {}
        self.meters = {split: EpochMeter() for split in Split}
        self._epoch_begun = time.perf_counter()

    def end_epoch(self, context: RunContext) -> None:
        """Emits the epoch's figures and resets the sums."""
        train, val = self.meters[Split.TRAIN], self.meters[Split.VAL]
        shown = {"train_loss": train.loss, "val_loss": val.loss, "top1": val.top1, "top5": val.top5}
        known = [each for each in (val.top1, self.metrics.get("best_top1")) if each is not None]
        self.metrics = {**shown, "best_top1": max(known, default=None)}
        now = time.perf_counter()
        context.emit(
            events.Epoch(
                time=time.time(),
                epoch=self.epoch,
                **shown,
                seconds=now - self._epoch_begun,
                step=context.step,
                samples=train.samples,
                val_samples=val.samples,
                class_top1=val.class_top1(self._classes),
            )
        )
        self.completed = self.epoch
        self._epoch_begun = now
        self.meters = {split: EpochMeter() for split in Split}

    def progress(self, step: int) -> RunProgress:
        """The progress after `step`, for a checkpoint."""
        return RunProgress(
            epoch=self.epoch, step=step, train_sums=self.meters[Split.TRAIN].sums.tolist(), metrics=self.metrics
        )

    def load(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's content. Raises KeyError, TypeError, ValueError when it is incomplete."""
        self.epoch = int(state["epoch"])
        self.metrics = dict(state["metrics"])
        train = self.meters[Split.TRAIN]
        train.sums = torch.tensor(state["train_sums"], dtype=torch.float64)
        self.completed = self.epoch - 1 if train.samples else self.epoch  # the end of an epoch resets the sums


def describe_run(context: RunContext, data: TrainingData, plan: Plan, rank_info: RankInfo) -> None:
    """Emits the first event of the run and the remarks about its dataset."""
    if rank_info.world > 1:
        context.interactive = False  # a single rank cannot be paused: the run ends instead
    context.describe(
        epochs=plan.epochs,
        steps_per_epoch=plan.steps_per_epoch,
        world=rank_info.world,
        sample_format=str(data.format),
        stored_as="shards" if data.sharded else "objects",
    )
    if rank_info.is_rank_zero:
        context.report_accelerator()
    for note in data.notes:
        context.info(note)
    for remark in data.remarks:
        context.warn(remark.message, remark.remedy)
    if data.missing:
        context.info(data.missing)


def describe_devices(
    context: RunContext, compute: DeviceContext, group: ProcessGroup, ceiling: events.ModelCeiling | None = None
) -> None:
    """Emits the devices of all ranks, with what the model can do on them.

    Raises ConsoleError where two of them have the same GPU.
    """
    gpu = gpu_uuid(compute.device.index) if compute.cuda else ""
    gpus = group.all_gather_object((socket.gethostname(), gpu))
    if compute.cuda:
        refuse_shared_gpus(gpus)
    context.emit(
        events.Devices(
            time=time.time(),
            device=compute.device.type,
            gpus=tuple(uuid for _, uuid in gpus if uuid),
            ceiling=ceiling,
        )
    )


def summary_of(
    context: RunContext,
    epochs: EpochState,
    *,
    state: RunState,
    seconds: float,
    checkpoint: str,
    skipped_samples: int,
    retries: int,
) -> events.Summary:
    """The summary of a run that has ended in `state`."""
    return context.measurement.summary(
        context.id,
        state,
        epochs=epochs.completed,
        steps=context.step,
        seconds=seconds,
        advice=final_advice(context.measurement),
        train_loss=epochs.metrics.get("train_loss"),
        val_loss=epochs.metrics.get("val_loss"),
        top1=epochs.metrics.get("top1"),
        top5=epochs.metrics.get("top5"),
        checkpoint=checkpoint,
        skipped_samples=skipped_samples,
        retries=retries,
    )


@dataclass(frozen=True)
class TrainingParts:
    """The model of one rank, its device, its training state, and the group of all ranks."""

    group: ProcessGroup
    compute: DeviceContext
    transform: BatchTransform
    clock: StepClock
    trainer: Trainer
    epochs: EpochState

    def load(self, state: dict[str, Any]) -> None:
        """Restores trainer and epoch from a checkpoint's content. Raises as `Trainer.load` and `EpochState.load` do."""
        self.trainer.load(state)
        self.epochs.load(state)

    def set_peak_lr(self, context: RunContext, lr: float) -> None:
        """Changes the peak learning rate, and says so."""
        self.trainer.set_peak_lr(lr)
        self._report_peak_lr(context)

    def report_resumed(self, context: RunContext, total_steps: int) -> None:
        """Says which peak learning rate the run has where a checkpoint has another one than its settings.

        And that nothing is left to train, of `total_steps`, where the checkpoint is from the end of them or later.
        """
        if context.step >= total_steps:
            context.warn(
                f"The checkpoint is from step {context.step} of epoch {self.epochs.epoch}, and this run ends at step "
                f"{total_steps}: nothing is left to train.",
                "--epochs and --max-steps count from the first step of the run that wrote it: give more.",
            )
        if self.trainer.peak_lr != context.settings.learning_rate:
            self._report_peak_lr(context)

    def _report_peak_lr(self, context: RunContext) -> None:
        context.emit(events.LearningRate(time=time.time(), peak=self.trainer.peak_lr, step=context.step))


@dataclass(frozen=True, eq=False)
class Checkpointer:
    """Takes snapshots of the run for the saver; on ranks other than 0, which have no `saver`, it writes nothing."""

    context: RunContext
    parts: TrainingParts
    reports: StepReports
    saver: CheckpointSaver | None
    run_config: dict[str, Any]

    def save(self, *, validated: bool = False, last: bool = False) -> bool:
        """Takes a snapshot and starts writing it. False when the last checkpoint already has this progress."""
        self.reports.flush()
        if self.saver is None or not self.saver.ready(last=last):
            return True
        progress = self.parts.epochs.progress(self.context.step)
        if not self.saver.needs(progress):
            return False
        try:
            state = self.parts.compute.host_copy(self.parts.trainer.state())
            snapshot = Snapshot(state, progress, self.run_config, self.parts.compute.milestone())
        except (MemoryError, RuntimeError) as error:  # training needs less memory, and may continue
            log.exception("A snapshot for a checkpoint failed")
            failure = unexpected_failure(progress, error)
            self.context.warn(failure.message, failure.remedy)
        else:
            self.saver.save(snapshot, validated=validated)
        return True

    def save_on_request(self, *, last: bool = False) -> None:
        """Saves, and says when there is nothing to save: an untrained model must never replace a trained one."""
        if not self.save(last=last):
            step = self.context.step
            done = f"Nothing was trained since step {step}" if step else "Nothing has been trained yet"
            self.context.info(f"{done}: no checkpoint is written.")

    def rescue(self) -> None:
        """Saves what was trained since the last checkpoint, before the run ends with an error."""
        saver = self.saver
        if saver and saver.ready(last=True) and saver.needs(self.parts.epochs.progress(self.context.step)):
            self.context.info("Writing a checkpoint before the run ends.")
            self.save(last=True)


@dataclass(frozen=True, eq=False)
class UserRequests:
    """Carries out what the user requests of a run between its steps: pauses, checkpoints, learning rates."""

    context: RunContext
    parts: TrainingParts
    reports: StepReports
    checkpointer: Checkpointer

    def apply(self) -> None:
        """Carries out the requests while the only rank of a run cannot get a batch, until the end of any pause."""
        controls = self.context.controls
        while True:
            if (lr := controls.pop_lr()) is not None:
                self.parts.set_peak_lr(self.context, lr)
            if controls.pop_checkpoint_request():
                self.checkpointer.save_on_request()
            if not controls.paused:
                return
            self.wait_while_paused()

    def wait_while_paused(self) -> None:
        """Blocks until the run is resumed or stopped, but only briefly: other requests come during a pause too."""
        context = self.context
        self.reports.flush()
        state = context.state
        context.enter(RunState.PAUSED)
        context.controls.wait_while_paused(_PAUSED_POLL_S)
        if not context.controls.stopping.is_set() and not context.controls.paused:
            context.enter(RunState.RUNNING if state is RunState.PAUSED else state)
        self.parts.clock.restart()
