"""The session: what a run's thread does, from the manifest to the last checkpoint."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

import torch

from ossconsole.config.connector import connector_config_path
from ossconsole.config.errors import ConsoleError
from ossconsole.config.paths import state_dir
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.training.checkpoint import CheckpointStore, Progress, Saved, fetch_uri, pack, unpack
from ossconsole.training.compute import Compute, PendingTimes, StepClock, choose_device
from ossconsole.training.connector import ConnectorSettings
from ossconsole.training.loader import Batch
from ossconsole.training.model import build_model
from ossconsole.training.pictures import Pictures, training_manifest
from ossconsole.training.plan import BatchRequest, Plan, Split
from ossconsole.training.run import TrainingRun
from ossconsole.training.source import BatchSource
from ossconsole.training.totals import Totals
from ossconsole.training.trainer import EpochMeter, Trainer, finite

_CHECKPOINT_TIMEOUT_S = 150.0  # of each of two tries
_SAVING_PATIENCE_S = 30.0  # how long training waits for one checkpoint before it leaves out the next
_MODEL_SEED = 2  # tells this use of the run's seed apart from others


@dataclass(frozen=True)
class _PendingStep:
    """A step whose figures the GPU may not have finished yet."""

    batch: Batch
    step: int
    lr: float
    loss: torch.Tensor
    times: PendingTimes


class DivergedError(ConsoleError):
    """The weights are worthless: they must not become a checkpoint."""


class Session:
    """One run's work. Built and used in the run's thread."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._settings = run.settings
        self._store = ObjectStore(run.profile, run.credentials)
        self._begun = time.perf_counter()
        try:
            self._manifest = training_manifest(self._store, run.profile.dataset_prefix)
        except ConsoleError:
            run.emit(run.describe())  # a record begins with its run, also when there is nothing to train on
            raise
        samples = {split: len(self._manifest.splits.get(str(split), ())) for split in Split}
        self._plan = Plan(self._settings, samples[Split.TRAIN], samples[Split.VAL])
        run.emit(run.describe(epochs=self._plan.epochs, steps_per_epoch=self._plan.steps_per_epoch))
        self._samples = samples
        self._totals = Totals()
        self._meters = {split: EpochMeter() for split in Split}
        self._metrics: dict[str, float | None] = {}
        self._pending: _PendingStep | None = None
        self._epoch = 1
        self._epoch_begun = time.perf_counter()
        self._last_key = ""
        self._saved_step = 0

    def train(self) -> events.Summary:
        """Trains to the end of the plan or until stopped. Raises ConsoleError."""
        resumed = self._resumed()
        torch.manual_seed(self._settings.seed * 10 + _MODEL_SEED)
        self._compute = Compute(self._settings, self._manifest.format, device=choose_device())
        model = build_model(self._manifest.classes, self._settings.weights, lambda uri: fetch_uri(self._store, uri))
        self._trainer = Trainer(model, self._compute, self._settings, total_steps=self._plan.total_steps)
        self._clock = StepClock(self._compute)
        self._pictures = Pictures(self._manifest, self._compute, seed=self._settings.seed)
        if resumed:
            self._go_on_from(resumed)
        connector = ConnectorSettings(
            self._run.profile,
            self._run.credentials,
            connector_config_path(),
            native_log=state_dir() / "logs" / "connector-native.log",
        )
        self._checkpoints = CheckpointStore(
            connector, self._store, self._run.id, keep=self._settings.keep_checkpoints, timeout_s=_CHECKPOINT_TIMEOUT_S
        )
        self._source = BatchSource(
            self._run,
            connector,
            self._manifest,
            self._plan,
            start=self._plan.number_of_step(self._run.step),
            pin=self._compute.cuda,
            on_pause=self._obey,
            on_recovery=self._clock.restart,
        )
        with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as self._saver:
            self._saving: Future[Saved | None] | None = None
            try:
                self._loop()
                return self._finish()
            except DivergedError:
                raise
            except ConsoleError:
                self._rescue()
                raise
            finally:
                self._source.close()
                self._await_saving()
                self._checkpoints.close()
                self._store.close()

    # The loop

    def _loop(self) -> None:
        run = self._run
        self._say(f"Computing on {self._compute.device} in {self._compute.precision}.")
        run.enter(RunState.RUNNING)
        while not run.controls.stopping.is_set():
            self._obey()
            self._compute.free_slots()
            batch = self._source.next()
            if batch is None:
                return
            self._report_bad(batch)
            if batch.request.split is Split.TRAIN:
                self._train(batch)
            else:
                self._validate(batch)
            if self._ends_epoch(batch.request):
                self._end_epoch()

    def _obey(self) -> None:
        """Does what was asked of the run since the last step."""
        run = self._run
        if run.controls.take_checkpoint():
            self._save()
        if (lr := run.controls.take_lr()) is not None:
            self._trainer.set_peak_lr(lr)
            self._say(f"The peak learning rate is now {lr:g}.")
        if run.controls.paused:
            self._report_pending()
            state = run.state
            run.enter(RunState.PAUSED)
            run.controls.wait_while_paused()
            if not run.controls.stopping.is_set():
                run.enter(state)
            self._clock.restart()

    def _train(self, batch: Batch) -> None:
        run = self._run
        run.enter(RunState.RUNNING)
        self._epoch = batch.request.epoch
        self._clock.mark()
        images = self._pictures.images(batch)
        labels = self._pictures.labels(Split.TRAIN, batch.rows)
        self._clock.mark()
        lr = self._trainer.lr
        loss = self._trainer.step(images, labels, self._meters[Split.TRAIN], update=self._updates(batch.request))
        self._clock.mark()
        run.step += 1
        finished = _PendingStep(batch, run.step, lr, loss, self._clock.finish(batch.wait_s))
        self._report_pending()
        self._pending = finished
        if not self._compute.cuda:
            self._report_pending()
        every = self._settings.switch_every
        if every and run.step % every == 0 and run.profile.endpoint(run.controls.endpoint.other):
            run.switch(run.controls.endpoint.other, reason=f"every {every} steps")
        if self._settings.checkpoint_every and run.step % self._settings.checkpoint_every == 0:
            self._save()

    def _updates(self, request: BatchRequest) -> bool:
        """Whether the optimizer takes a step after this batch."""
        return (request.index + 1) % self._settings.accumulate == 0 or request.last

    def _report_pending(self) -> None:
        """Emits the last step's figures. Raises ConsoleError when its loss is not finite."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        batch, times = pending.batch, pending.times.read()
        loss = finite(float(pending.loss))
        self._totals.add(batch.endpoint, len(batch.rows), batch.bytes, times)
        self._run.emit(
            events.Step(
                time=time.time(),
                step=pending.step,
                epoch=batch.request.epoch,
                samples=len(batch.rows),
                loss=loss,
                lr=pending.lr,
                endpoint=batch.endpoint,
                data_wait_s=times.wait_s,
                step_time_s=times.step_s,
                fetch_s=batch.fetch_s,
                bytes=batch.bytes,
                samples_per_s=self._totals.rate,
                copy_s=times.copy_s,
                compute_s=times.compute_s,
            )
        )
        if loss is None:
            last = f"Go on from {self._store.uri(self._last_key)}" if self._last_key else "Start again"
            raise DivergedError(
                f"The loss of step {pending.step} is not a finite number; the run has diverged.",
                remedy=f"{last} with a lower --learning-rate than {pending.lr:g}.",
            )

    def _validate(self, batch: Batch) -> None:
        self._report_pending()
        self._run.enter(RunState.VALIDATING)
        images = self._pictures.images(batch)
        labels = self._pictures.labels(Split.VAL, batch.rows)
        self._trainer.validate(images, labels, self._meters[Split.VAL])
        self._clock.restart()

    def _report_bad(self, batch: Batch) -> None:
        """Says which samples are left out. Raises ConsoleError when none of the batch is left."""
        for sample, reason in batch.bad:
            self._totals.skipped += 1
            self._run.emit(
                events.WarningEvent(
                    time=time.time(),
                    message=f"Left out {sample.key}: {reason}.",
                    remedy="Upload the dataset again to mend it.",
                    step=self._run.step,
                )
            )
        if batch.bad and not len(batch.rows):
            raise ConsoleError(
                f"No sample of a batch of {len(batch.bad)} is in the bucket as the manifest has it; "
                f"the first is {batch.bad[0][0].key}: {batch.bad[0][1]}.",
                remedy="Upload the dataset again with `ossconsole upload`.",
            )

    def _ends_epoch(self, request: BatchRequest) -> bool:
        return request.last and (request.split is Split.VAL or not self._samples[Split.VAL])

    def _end_epoch(self) -> None:
        self._report_pending()
        train, val = self._meters[Split.TRAIN], self._meters[Split.VAL]
        self._metrics = {"train_loss": train.loss, "val_loss": val.loss, "top1": val.top1, "top5": val.top5}
        now = time.perf_counter()
        self._run.emit(
            events.Epoch(
                time=time.time(),
                epoch=self._epoch,
                **self._metrics,
                seconds=now - self._epoch_begun,
                step=self._run.step,
                samples=train.samples,
                val_samples=val.samples,
            )
        )
        self._epoch_begun = now
        self._meters = {split: EpochMeter() for split in Split}
        self._save()
        self._clock.restart()

    # Checkpoints

    def _save(self, *, last: bool = False) -> None:
        """Takes a snapshot and writes it in the background, once an earlier one is written."""
        self._report_pending()
        if not self._await_saving(None if last else _SAVING_PATIENCE_S):
            self._warn("A checkpoint is left out: the one before it is still being written.")
            return
        progress = Progress(
            epoch=self._epoch,
            step=self._run.step,
            train_sums=self._meters[Split.TRAIN].sums.tolist(),
            metrics=self._metrics,
        )
        data = pack(self._trainer.state(), progress, self._about())
        self._saving = self._saver.submit(self._save_now, data, progress)

    def _save_now(self, data: bytes, progress: Progress) -> Saved | None:
        try:
            saved = self._checkpoints.save(data, progress)
        except ConsoleError as error:
            self._run.emit(
                events.WarningEvent(time=time.time(), message=error.message, remedy=error.remedy, step=progress.step)
            )
            return None
        self._saved_step = progress.step
        self._run.emit(
            events.Checkpoint(
                time=time.time(),
                key=saved.key,
                bytes=saved.bytes,
                seconds=saved.seconds,
                stable_key=saved.stable_key,
                epoch=progress.epoch,
                step=progress.step,
                top1=progress.metrics.get("top1"),
            )
        )
        return saved

    def _await_saving(self, timeout_s: float | None = None) -> bool:
        """Waits for the checkpoint being written; False when that takes longer."""
        if self._saving is not None:
            try:
                saved = self._saving.result(timeout_s)
            except FutureTimeoutError:
                return False
            self._saving = None
            self._last_key = saved.key if saved else self._last_key
        return True

    def _rescue(self) -> None:
        """What was trained since the last checkpoint is kept, although the run ends over an error."""
        if self._run.step > self._saved_step:
            self._say("Writing a checkpoint before the run ends.")
            self._save(last=True)

    def _about(self) -> dict[str, Any]:
        return {
            "run": self._run.id,
            "seed": self._settings.seed,
            "batch_size": self._settings.batch_size,
            "samples": self._samples[Split.TRAIN],
            "classes": list(self._manifest.classes),
            "sample_format": str(self._manifest.format),
            "image_size": self._settings.image_size or self._manifest.size,
        }

    def _resumed(self) -> dict[str, Any] | None:
        """The checkpoint to go on from. Raises ConsoleError when it belongs to another dataset or other settings."""
        uri = self._settings.resume
        if not uri:
            return None
        state = unpack(fetch_uri(self._store, uri), uri)
        for name, wanted in self._about().items():
            if name not in {"run", "sample_format"} and state.get(name) != wanted:
                raise ConsoleError(
                    f"{uri} was written with another {name.replace('_', ' ')} than this run has.",
                    remedy=f"Use the same settings and dataset, or start from its weights: --weights {uri}.",
                )
        return state

    def _go_on_from(self, state: dict[str, Any]) -> None:
        try:
            self._trainer.load(state)
            self._run.step = self._saved_step = int(state["step"])
            self._epoch = int(state["epoch"])
            self._metrics = dict(state["metrics"])
            self._meters[Split.TRAIN].sums = torch.tensor(state["train_sums"], dtype=torch.float64)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ConsoleError(
                f"{self._settings.resume} does not hold what a run needs to go on: {error}.",
                remedy=f"Start from its weights: --weights {self._settings.resume}.",
            ) from error
        self._say(f"Going on after step {self._run.step} of epoch {self._epoch}.")

    # The end

    def _finish(self) -> events.Summary:
        run = self._run
        self._report_pending()
        stopped = run.controls.stopping.is_set()
        if stopped:
            run.enter(RunState.STOPPING)
            self._save(last=True)
        self._await_saving()
        self._totals.retries = self._source.retries
        state = RunState.STOPPED if stopped else RunState.FINISHED
        summary = events.Summary(
            time=time.time(),
            run=run.id,
            state=state,
            epochs=self._epoch,
            steps=run.step,
            samples=self._totals.samples,
            bytes=self._totals.bytes,
            seconds=time.perf_counter() - self._begun,
            samples_per_s=self._totals.median_rate,
            wait_fraction=self._totals.wait_fraction,
            train_loss=self._metrics.get("train_loss"),
            val_loss=self._metrics.get("val_loss"),
            top1=self._metrics.get("top1"),
            top5=self._metrics.get("top5"),
            checkpoint=self._last_key,
            endpoints={str(kind): part.summary() for kind, part in self._totals.endpoints.items()},
            skipped_samples=self._totals.skipped,
            retries=self._totals.retries,
        )
        run.enter(state)
        run.emit(summary)
        return summary

    def _warn(self, message: str, remedy: str = "") -> None:
        self._run.emit(events.WarningEvent(time=time.time(), message=message, remedy=remedy, step=self._run.step))

    def _say(self, message: str) -> None:
        self._run.emit(events.InfoEvent(time=time.time(), message=message, step=self._run.step))
