"""The session: what a process of a run does, from the manifest to the last checkpoint."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from ossconsole.config.connector import checked_connector_config
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.measure import TOO_SHORT
from ossconsole.training.checkpoints.checkpoint import CheckpointStore, Snapshot, fetch_uri
from ossconsole.training.checkpoints.resume import resume
from ossconsole.training.checkpoints.saver import Saver, unexpected_failure
from ossconsole.training.compute.device import Compute, Pictures, StepClock, choose_device, device_errors, give_way
from ossconsole.training.compute.model import build_model
from ossconsole.training.compute.trainer import Trainer
from ossconsole.training.context import RunContext
from ossconsole.training.data import TrainingData
from ossconsole.training.distributed.process_group import News, RankLostError, Ranks
from ossconsole.training.distributed.rank import BATCH, END, FAILED, Agreement, Place, Standing, agree, endpoint_number
from ossconsole.training.loading.connector import ConnectorSettings, connector_native_log
from ossconsole.training.loading.failover import BatchSource
from ossconsole.training.loading.loader import Batch
from ossconsole.training.plan import BatchRequest, Plan, Split
from ossconsole.training.settings import TrainSettings
from ossconsole.training.steps import Course, DivergedError, DoneStep, StepReports

log = logging.getLogger(__name__)

_CHECKPOINT_TIMEOUT_S = 150.0  # of each of two tries
_MODEL_SEED = 2  # tells this use of the run's seed apart from others
_PAUSED_LOOK_S = 0.5  # how often the processes tell each other that the run is still paused


class Session:
    """One process's part of a run. Built and used in the run's thread.

    Every process trains; the one that leads also tells the record what all of them did, and writes the checkpoints.
    `before_meeting` is called when this process has loaded what it needs and is about to wait for the others.
    """

    def __init__(
        self,
        context: RunContext,
        store: ObjectStore,
        data: TrainingData,
        place: Place,
        *,
        before_meeting: Callable[[], None] = lambda: None,
    ) -> None:
        self._context = context
        self._settings = context.settings
        self._store = store
        self._data = data
        self._place = place
        self._before_meeting = before_meeting
        self._begun = time.perf_counter()
        self._samples = {split: data.count(str(split)) for split in Split}
        self._plan = Plan(
            self._settings,
            self._samples[Split.TRAIN],
            self._samples[Split.VAL],
            rank=place.rank,
            world=place.world,
            stored_order=data.sharded,
        )
        self._news = News(context, place)
        if place.world > 1:
            context.attended = False  # a single process can't be paused: when it can't go on, the run ends
        context.describe(
            epochs=self._plan.epochs,
            steps_per_epoch=self._plan.steps_per_epoch,
            world=place.world,
            sample_format=str(data.manifest.format),
            stored_as="shards" if data.sharded else "objects",
        )
        if place.leads:
            context.look_at_accelerator()
        for remark in data.remarks:
            context.warn(remark.message, remark.remedy)
        if data.lacking:
            context.say(data.lacking)
        self._left_out = 0  # samples, by this process
        self._course = Course()
        self._endpoint = context.controls.endpoint
        self._retries = self._skipped = 0

    def train(self) -> events.Summary:
        """Trains to the end of the plan or until stopped. Raises ConsoleError."""
        settings, place = self._settings, self._place
        torch.manual_seed(settings.seed * 10 + _MODEL_SEED)
        device = choose_device(place.local_rank)
        with device_errors(device, settings.batch_size):
            self._compute = Compute(settings, self._data.manifest.format, device=device, sharing=place.local_world)
        if self._context.attended and not self._compute.cuda:
            give_way()
        model = build_model(self._data.manifest.classes, settings.weights, lambda uri: fetch_uri(self._store, uri))
        self._clock = StepClock(self._compute)
        self._pictures = Pictures(self._data.manifest, self._compute, seed=settings.seed, rank=place.rank)
        self._before_meeting()
        ranks = Ranks(place, self._compute.device, patience_s=settings.patience_s)
        with contextlib.closing(self._store), ranks as self._ranks:
            return self._train_together(model)

    def _train_together(self, model: torch.nn.Module) -> events.Summary:
        settings = self._settings
        with self._compute.device_errors():
            self._trainer = Trainer(model, self._compute, settings, self._ranks, total_steps=self._plan.total_steps)
        resume(
            self._context,
            self._store,
            self._ranks,
            trainer=self._trainer,
            course=self._course,
            about=self._about(),
        )
        self._context.controls.on_stop = self._ranks.tell_to_stop
        with contextlib.ExitStack() as resources:
            self._begin_reading_and_writing(resources)
            try:
                self._loop()
                return self._finish()
            except (DivergedError, RankLostError):
                raise
            except ConsoleError:
                self._rescue()
                raise

    def _begin_reading_and_writing(self, resources: contextlib.ExitStack) -> None:
        """Starts the readers and, on rank 0, the saver; `resources` ends them, each although another one raises."""
        context, settings = self._context, self._settings
        connector = ConnectorSettings(
            context.profile,
            context.credentials,
            checked_connector_config(),
            native_log=connector_native_log(),
        )
        self._saver: Saver | None = None
        if self._place.leads:
            checkpoints = CheckpointStore(
                connector, self._store, context.id, keep=settings.keep_checkpoints, timeout_s=_CHECKPOINT_TIMEOUT_S
            )
            if self._place.attempt:
                try:
                    checkpoints.adopt()
                except StorageError as error:  # a key may have no right to list
                    context.warn(f"Old checkpoints of this run stay: {error.message}", error.remedy)
            self._saver = Saver(context, checkpoints, begun_at=self._course.progress(context.step))
            resources.callback(self._saver.close)
            self._saver.clear_leftovers()
        self._reports = StepReports(context, late=self._compute.cuda, last_checkpoint=self._last_checkpoint)
        alone = self._place.world == 1
        self._source = BatchSource(
            context,
            connector,
            self._data,
            self._plan,
            start=self._plan.number_after(context.step, ended=not self._course.meters[Split.TRAIN].samples),
            pin=self._compute.cuda,
            time_singles=self._place.leads and context.profile.endpoint(EndpointKind.ACCELERATED) is not None,
            heed=self._heed,
            on_pause=self._obey_alone if alone else self._heed,
            on_recovery=self._clock.restart,
        )
        resources.callback(self._source.close)
        resources.callback(self._compute.free_all_slots)

    # The loop

    def _loop(self) -> None:
        context = self._context
        together = f" in {counted(self._place.world, 'process', 'processes')}" if self._place.world > 1 else ""
        context.say(f"Computing on {self._compute.device} in {self._compute.precision}{together}.")
        context.enter(RunState.RUNNING)
        while True:
            self._compute.free_slots()
            batch, problem = self._fetch()
            agreed = self._agree(batch, problem)
            if agreed.over or agreed.stop or batch is None:
                return
            if batch.request.split is Split.TRAIN:
                self._train(batch, agreed)
            else:
                self._validate(batch)
            if self._ends_epoch(batch.request):
                self._end_epoch()

    def _fetch(self) -> tuple[Batch | None, ConsoleError | None]:
        """The next batch, None at the end, or why there is none."""
        try:
            batch = self._source.next()
        except ConsoleError as error:
            return None, error
        if batch is not None:
            self._report_bad(batch)
        return batch, None

    def _heed(self) -> None:
        """While this process waits for its batch: the leader may have been told to stop."""
        if not self._place.leads and self._ranks.told_to_stop():
            self._context.controls.stop()

    def _agree(self, batch: Batch | None, problem: ConsoleError | None) -> Agreement:
        """What all processes do next; pauses last as long as this does. Raises ConsoleError when one cannot go on."""
        while True:
            rows = self._ranks.gather(self._standing(batch, problem))
            agreed = agree(rows, self._endpoint)
            if agreed.news:
                self._news.exchange(self._ranks)
            if agreed.failed or agreed.stop or agreed.checkpoint:  # a checkpoint follows
                self._trainer.settle()
            if agreed.failed:
                self._fail(self._ranks.share(None if problem is None else (problem.message, problem.remedy)), problem)
            self._follow(agreed)
            if agreed.stop or not agreed.pause:
                break
            self._wait_paused()
        if batch is not None and not agreed.samples:
            which = f" The first is {batch.bad[0][0].key}: {batch.bad[0][1]}." if batch.bad else ""
            raise ConsoleError(
                f"No sample of a batch is in the bucket as the manifest has it.{which}",
                remedy="Upload the dataset again with `ossconsole upload`.",
            )
        return agreed

    def _standing(self, batch: Batch | None, problem: ConsoleError | None) -> Standing:
        controls = self._context.controls
        return Standing(
            ready=FAILED if problem else BATCH if batch else END,
            news=len(self._news),
            stop=controls.stopping.is_set(),
            pause=controls.paused,
            checkpoint=controls.take_checkpoint(),
            lr=controls.take_lr() or 0.0,
            endpoint=endpoint_number(controls.endpoint),
            samples=len(batch.rows) if batch else 0,
            bytes=batch.bytes if batch else 0,
            wait_s=batch.wait_s if batch else 0.0,
            fetch_s=batch.fetch_s if batch else 0.0,
            retries=self._source.retries,
            skipped=self._left_out,
        )

    def _follow(self, agreed: Agreement) -> None:
        """Does what was agreed on besides the step itself."""
        context = self._context
        self._retries, self._skipped = agreed.retries, agreed.skipped
        if agreed.left is not None:
            self._endpoint = agreed.endpoint
            if not self._place.leads:
                context.controls.endpoint = agreed.endpoint
            elif agreed.left > 0:
                context.switch(agreed.endpoint, reason=f"the other one failed on rank {agreed.left}")
        if agreed.checkpoint:
            self._save_if_asked()
        if agreed.lr is not None:
            self._trainer.set_peak_lr(agreed.lr)
            context.say(f"The peak learning rate is now {agreed.lr:g}.")

    def _wait_paused(self) -> None:
        """Waits until somebody resumes the run; with others for a moment only, as they wait for this process."""
        context = self._context
        self._reports.flush()
        state = context.state
        context.enter(RunState.PAUSED)
        context.controls.wait_while_paused(None if self._place.world == 1 else _PAUSED_LOOK_S)
        if not context.controls.stopping.is_set() and not context.controls.paused:
            context.enter(RunState.RUNNING if state is RunState.PAUSED else state)
        self._clock.restart()

    def _obey_alone(self) -> None:
        """Does what was asked of the run while its only process cannot get a batch."""
        controls = self._context.controls
        if controls.take_checkpoint():
            self._save_if_asked()
        if (lr := controls.take_lr()) is not None:
            self._trainer.set_peak_lr(lr)
        if controls.paused:
            self._wait_paused()

    def _fail(self, problems: list[tuple[str, str] | None], own: ConsoleError | None) -> None:
        """Raises ConsoleError in every process, once one cannot go on."""
        if own is not None:
            raise own
        rank, problem = next((rank, problem) for rank, problem in enumerate(problems) if problem is not None)
        raise ConsoleError(f"Rank {rank}: {problem[0]}", remedy=problem[1])

    # Steps

    def _train(self, batch: Batch, agreed: Agreement) -> None:
        context = self._context
        context.enter(RunState.RUNNING)
        self._course.epoch = batch.request.epoch
        self._clock.mark()
        with self._compute.device_errors():
            images = self._pictures.images(batch)
            labels = self._pictures.labels(Split.TRAIN, batch.rows)
        self._clock.mark()
        lr = self._trainer.lr
        loss = self._trainer.step(
            images,
            labels,
            self._course.meters[Split.TRAIN],
            samples=agreed.samples,
            share=batch.request.share,
            update=batch.request.update,
        )
        loss = self._compute.host_copy(loss)
        self._clock.mark()
        context.step += 1
        self._reports.add(
            DoneStep(
                step=context.step,
                epoch=self._course.epoch,
                lr=lr,
                loss=loss,
                endpoint=batch.endpoint,
                queued=batch.queued,
                readers_idle=batch.readers_idle,
                single_s=batch.single_s,
                agreed=agreed,
                times=self._clock.finish(),
            )
        )
        every = self._settings.switch_every
        if self._place.leads and every and context.step % every == 0:
            other = context.controls.endpoint.other
            if context.profile.endpoint(other):
                context.switch(other, reason=f"every {counted(every, 'step')}")
        if self._settings.checkpoint_every and context.step % self._settings.checkpoint_every == 0:
            self._trainer.settle()
            self._save()

    def _validate(self, batch: Batch) -> None:
        self._reports.flush()
        self._context.enter(RunState.VALIDATING)
        if batch.request.index == 0:
            self._trainer.level()
        with self._compute.device_errors():
            images = self._pictures.images(batch)
            labels = self._pictures.labels(Split.VAL, batch.rows)
        self._trainer.validate(images, labels, self._course.meters[Split.VAL])
        self._clock.restart()

    def _report_bad(self, batch: Batch) -> None:
        """Says which samples are left out."""
        for sample, reason in batch.bad:
            self._left_out += 1
            self._context.warn(f"Left out {sample.key}: {reason}.", "Upload the dataset again to mend it.")

    def _ends_epoch(self, request: BatchRequest) -> bool:
        return request.last and (request.split is Split.VAL or not self._samples[Split.VAL])

    def _end_epoch(self) -> None:
        self._reports.flush()
        self._save(best=self._course.end_epoch(self._context))
        self._clock.restart()

    # Checkpoints

    def _save(self, *, best: bool = False, last: bool = False) -> bool:
        """Takes a snapshot and has it written, once an earlier one is. False where nothing is new since that one."""
        self._reports.flush()
        if self._saver is None or not self._saver.ready(last=last):
            return True
        progress = self._course.progress(self._context.step)
        if not self._saver.needs(progress):
            return False
        try:
            state = self._compute.host_copy(self._trainer.state())
            snapshot = Snapshot(state, progress, self._about(), self._compute.milestone())
        except (MemoryError, RuntimeError) as error:  # what the step needs is told by the step
            log.exception("A checkpoint could not be taken")
            failure = unexpected_failure(progress, error)
            self._context.warn(failure.message, failure.remedy)
        else:
            self._saver.save(snapshot, best=best)
        return True

    def _save_if_asked(self, *, last: bool = False) -> None:
        """Saves, and says so where there is nothing to save: an untrained model must never replace a trained one."""
        if not self._save(last=last):
            step = self._context.step
            self._context.say(
                f"Nothing was trained since step {step}: no checkpoint is written."
                if step
                else "Nothing has been trained yet: no checkpoint is written."
            )

    def _rescue(self) -> None:
        """What was trained since the last checkpoint is kept, although the run ends over an error."""
        saver = self._saver
        if saver and saver.ready(last=True) and saver.needs(self._course.progress(self._context.step)):
            self._context.say("Writing a checkpoint before the run ends.")
            self._save(last=True)

    def _last_checkpoint(self) -> str:
        return self._store.uri(self._saver.last_key) if self._saver and self._saver.last_key else ""

    def _about(self) -> dict[str, Any]:
        """What a run that goes on from this one must have in common with it, and whose it is."""
        return {
            "run": self._context.id,
            "seed": self._settings.seed,
            "batch_size": self._settings.batch_size * self._place.world,
            "samples": self._samples[Split.TRAIN],
            "classes": list(self._data.manifest.classes),
            "sample_format": str(self._data.manifest.format),
            "image_size": self._settings.image_size or self._data.manifest.size,
        }

    # The end

    def _finish(self) -> events.Summary:
        context = self._context
        self._reports.flush()
        stopped = context.controls.stopping.is_set()
        if stopped:
            context.enter(RunState.STOPPING)
            self._save_if_asked(last=True)
        if self._saver:
            self._saver.wait()
        state = RunState.STOPPED if stopped else RunState.FINISHED
        context.enter(state)
        measured = context.measurement
        comparison = measured.comparison
        summary = events.Summary(
            time=time.time(),
            run=context.id,
            state=state,
            epochs=self._course.epoch,
            steps=context.step,
            samples=measured.samples,
            bytes=measured.bytes,
            seconds=time.perf_counter() - self._begun,
            samples_per_s=measured.samples_per_s,
            wait_fraction=measured.wait_fraction,
            reason=TOO_SHORT if measured.samples_per_s is None else "",
            comparison=comparison.report() if comparison.pairs else None,
            train_loss=self._course.metrics.get("train_loss"),
            val_loss=self._course.metrics.get("val_loss"),
            top1=self._course.metrics.get("top1"),
            top5=self._course.metrics.get("top5"),
            checkpoint=self._saver.last_key if self._saver else "",
            endpoints=measured.endpoints(),
            skipped_samples=self._skipped,
            retries=self._retries,
        )
        context.tell(summary)
        return summary


def processes_wanted(settings: TrainSettings) -> int:
    """How many processes train on this machine: as set, or one for each GPU."""
    return settings.processes or max(1, torch.cuda.device_count())
