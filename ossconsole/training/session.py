"""The session of one rank: its parts, built by `build_session`, and the training loop over them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import TRAIN, VAL
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.training.bench.ceiling import saved_ceiling
from ossconsole.training.checkpoints.checkpoint import (
    CheckpointSaver,
    fetch_uri,
    open_saver,
    resume,
    run_config_of,
)
from ossconsole.training.compute.device import (
    BatchTransform,
    DeviceContext,
    StepClock,
    device_errors,
    lower_priority,
)
from ossconsole.training.compute.model import build_model, check_batch_sizes, without_auto
from ossconsole.training.compute.profile import StepProfiler
from ossconsole.training.compute.selection import select_device
from ossconsole.training.compute.trainer import Trainer
from ossconsole.training.context import BrokenDeviceError, RunContext
from ossconsole.training.data import TrainingData
from ossconsole.training.distributed.process_group import ProcessGroup, RankEventRelay
from ossconsole.training.distributed.ranks import (
    BATCH,
    END,
    FAILED,
    RankInfo,
    RankLostError,
    RankStatus,
    StepDecision,
    decide,
    endpoint_index,
)
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.failover import FailoverLoader
from ossconsole.training.loading.loader import Batch, sample_transform
from ossconsole.training.parts import (
    Checkpointer,
    DivergedError,
    DoneStep,
    EpochState,
    StepReports,
    TrainingParts,
    UnusableSamples,
    Upcoming,
    UserRequests,
    describe_devices,
    describe_run,
    summary_of,
)
from ossconsole.training.plan import BatchRequest, Plan, Split

_MODEL_SEED = 2  # separates this use of the run's seed from others


def train(context: RunContext, store: ObjectStore, data: TrainingData, rank_info: RankInfo) -> events.Summary:
    """Trains as one rank to the end of the plan or until stopped, in the calling thread. Raises ConsoleError.

    Every rank trains; rank 0 also records the steps of all, and writes the checkpoints.
    """
    with contextlib.ExitStack() as resources:
        try:
            return build_session(resources, context, store, data, rank_info).run()
        except Exception as error:
            context.on_failure(error)
            raise


def build_session(
    resources: contextlib.ExitStack,
    context: RunContext,
    store: ObjectStore,
    data: TrainingData,
    rank_info: RankInfo,
) -> Session:
    """All parts of a session. Waits for the other ranks, resumes, starts the readers and, on rank 0, the saver.

    `resources` closes readers, saver, process group and store, each although another one raises. Raises ConsoleError.
    """
    begun = time.perf_counter()
    with device_errors(torch.device("cuda", rank_info.local_rank), context.settings.batch_size):
        device = select_device(context.settings, rank_info)  # once: other processes may change which is the emptiest
    plan = _plan(context, data, rank_info, device)
    relay = RankEventRelay(context, rank_info)
    describe_run(context, data, plan, rank_info)
    compute = _compute(context, data, rank_info, device)
    parts = _training_parts(resources, context, store, data, rank_info, compute=compute, total_steps=plan.total_steps)
    run_config = run_config_of(context, data, rank_info)
    resume(context, store, parts.group, run_config, parts.load)
    context.controls.on_stop = parts.group.signal_stop
    connector = ConnectorSettings.of(context.profile, context.credentials)
    saver = None
    if rank_info.is_rank_zero:
        begun_at, restarted = parts.epochs.progress(context.step), rank_info.attempt > 0
        saver = open_saver(resources, context, store, connector, restarted=restarted, begun_at=begun_at)
    reports = StepReports(
        context,
        late=parts.compute.cuda,
        last_checkpoint=lambda: store.uri(saver.last_key) if saver is not None and saver.last_key else "",
    )
    checkpointer = Checkpointer(context, parts, reports, saver, run_config)
    requests = UserRequests(context, parts, reports, checkpointer)
    source = _source(context, connector, data, plan, parts, on_pause=requests.apply)
    resources.callback(source.close)
    resources.callback(parts.compute.free_all_slots)
    steps = context.settings.profile_steps if rank_info.is_rank_zero else 0
    profiler = StepProfiler(context.id, planned=steps, cuda=parts.compute.cuda, report=context.info, warn=context.warn)
    resources.callback(profiler.close)
    resources.push(parts.group.__exit__)  # first of all: the GPU may wait for a lost rank, and the others for the GPU
    return Session(
        context=context,
        plan=plan,
        relay=relay,
        parts=parts,
        saver=saver,
        reports=reports,
        checkpointer=checkpointer,
        requests=requests,
        source=source,
        unusable=UnusableSamples(data.count(TRAIN)),
        profiler=profiler,
        begun=begun,
        endpoint=context.settings.endpoint,
    )


def _training_parts(
    resources: contextlib.ExitStack,
    context: RunContext,
    store: ObjectStore,
    data: TrainingData,
    rank_info: RankInfo,
    *,
    compute: DeviceContext,
    total_steps: int,
) -> TrainingParts:
    settings = context.settings
    size = data.image_size(settings.image_size)
    model = build_model(
        settings,
        data.classes,
        size,
        lambda uri: fetch_uri(store, uri),
        report=context.info,
        stopped=context.controls.stopping.is_set,
    )
    transform = BatchTransform(data, compute)
    clock = StepClock(compute)
    group = ProcessGroup(rank_info, compute.device, patience_s=settings.patience_s)
    resources.callback(store.close)
    resources.enter_context(group)
    describe_devices(context, compute, group, saved_ceiling(settings, compute, size, rank_info))
    check_batch_sizes([int(size) for (size,) in group.all_gather([settings.batch_size])])
    with compute.device_errors():
        trainer = Trainer(model, compute, settings, group, total_steps=total_steps, on_warning=context.warn)
    return TrainingParts(group, compute, transform, clock, trainer, EpochState(data.classes))


def _source(
    context: RunContext,
    connector: ConnectorSettings,
    data: TrainingData,
    plan: Plan,
    parts: TrainingParts,
    *,
    on_pause: Callable[[], None],
) -> FailoverLoader:
    group = parts.group

    def poll_stop() -> None:
        """While this rank waits for its batch: rank 0 may have been stopped."""
        if not group.rank_info.is_rank_zero and group.stop_signalled():
            context.controls.stop()

    return FailoverLoader(
        context,
        connector,
        data,
        plan,
        start=plan.number_after(context.step, ended=not parts.epochs.meters[Split.TRAIN].samples),
        pin=parts.compute.cuda,
        time_singles=group.rank_info.is_rank_zero and context.profile.endpoint(EndpointKind.ACCELERATED) is not None,
        sharing=group.rank_info.local_world,
        poll_stop=poll_stop,
        on_pause=on_pause if group.world == 1 else poll_stop,
        on_recovery=parts.clock.restart,
    )


def _compute(context: RunContext, data: TrainingData, rank_info: RankInfo, device: torch.device) -> DeviceContext:
    settings = context.settings
    torch.manual_seed(settings.seed * 10 + _MODEL_SEED)
    with device_errors(device, settings.batch_size):
        transform = sample_transform(settings, data)
        compute = DeviceContext(settings, transform, device=device, sharing=rank_info.local_world)
    if context.interactive and not compute.cuda:
        lower_priority()
    return compute


def _plan(context: RunContext, data: TrainingData, rank_info: RankInfo, device: torch.device) -> Plan:
    """The order of the samples; first determines the automatic settings, which become those of the run."""
    settings = context.settings
    size = data.image_size(settings.image_size)
    context.settings = without_auto(settings, len(data.classes), size, device, world=rank_info.world)
    return Plan(
        context.settings,
        data.count(TRAIN),
        data.count(VAL),
        rank=rank_info.rank,
        world=rank_info.world,
        tar_bytes=data.tar_bytes,
    )


@dataclass(kw_only=True, eq=False)
class Session:
    """The training loop of one rank; see `build_session` for its parts.

    `begun` is on the clock of `time.perf_counter`. `endpoint` is the one that all ranks agreed on, `own_skipped` counts
    the samples skipped by this rank, `skipped` and `retries` those of all ranks. `upcoming` is a batch
    that was fetched before the report of the step before it.
    """

    context: RunContext
    plan: Plan
    relay: RankEventRelay
    parts: TrainingParts
    saver: CheckpointSaver | None
    reports: StepReports
    checkpointer: Checkpointer
    requests: UserRequests
    source: FailoverLoader
    unusable: UnusableSamples
    profiler: StepProfiler
    begun: float
    endpoint: EndpointKind
    upcoming: Upcoming | None = None
    status_at: float | None = None
    own_skipped: int = 0
    skipped: int = 0
    retries: int = 0

    def run(self) -> events.Summary:
        """Trains to the end of the plan or until stopped. Raises ConsoleError, after a last checkpoint if possible."""
        try:
            with self.parts.compute.device_errors():
                self._loop()
                return self._finish()
        except (DivergedError, RankLostError, BrokenDeviceError):
            raise
        except ConsoleError:
            self.checkpointer.rescue()
            raise

    def _loop(self) -> None:
        context, world = self.context, self.parts.group.world
        processes = f" in {counted(world, 'process', 'processes')}" if world > 1 else ""
        context.info(
            f"Computing {context.settings.model} on {self.parts.compute.device} in "
            f"{self.parts.compute.precision}{processes}, batch size {context.settings.batch_size}."
        )
        self.parts.report_resumed(context, self.plan.total_steps)
        context.enter(RunState.RUNNING)
        while True:
            upcoming, self.upcoming = self.upcoming or self._upcoming(), None
            batch, decision = upcoming.batch, self._decide(upcoming)
            if decision.over or decision.stop or batch is None:
                return
            self.unusable.check(decision, batch)
            if batch.request.split is Split.VAL:
                self._validate(batch)
            elif decision.samples:
                self._train(batch, decision)
            else:
                self._skip(batch.request)
            if self._ends_epoch(batch.request):
                self._end_epoch()

    def _upcoming(self) -> Upcoming:
        """Fetches the next batch, and starts to gather the status of all ranks."""
        self.parts.compute.free_slots()
        batch, problem = self._fetch()
        return Upcoming(batch, problem, self.parts.group.start_all_gather(self._status(batch, problem)))

    def _fetch(self) -> tuple[Batch | None, ConsoleError | None]:
        """The next batch, None at the end; or the error that prevents it."""
        try:
            batch = self.source.next()
        except ConsoleError as error:
            return None, error
        for sample in batch.bad if batch is not None else ():
            self.own_skipped += 1
            self.context.warn(
                f"Skipped {sample.key}: {sample.reason}.", "Replace or delete the object, or upload the dataset again."
            )
        return batch, None

    def _decide(self, upcoming: Upcoming) -> StepDecision:
        """What all ranks do next, after any pause. Raises ConsoleError when a rank failed."""
        batch, problem, gathered = upcoming
        while True:
            decision = decide(gathered(), self.endpoint)
            if decision.events:
                self.relay.exchange(self.parts.group)
            if decision.failed or decision.stop or decision.checkpoint:  # a checkpoint follows
                self.parts.trainer.reduce_pending_gradients()
            if decision.failed:
                self._fail(problem)
            self._apply(decision)
            if decision.stop or not decision.pause:
                break
            self.requests.wait_while_paused()
            self.status_at = None
            gathered = self.parts.group.start_all_gather(self._status(batch, problem))
        return decision

    def _status(self, batch: Batch | None, problem: ConsoleError | None) -> RankStatus:
        controls, now = self.context.controls, time.perf_counter()
        step_s = now - self.status_at if self.status_at is not None else 0.0
        self.status_at = now if batch is not None and batch.request.split is Split.TRAIN else None
        return RankStatus(
            ready=FAILED if problem else BATCH if batch else END,
            events=len(self.relay),
            stop=controls.stopping.is_set(),
            pause=controls.paused,
            checkpoint=controls.pop_checkpoint_request(),
            lr=controls.pop_lr() or 0.0,
            endpoint=endpoint_index(controls.endpoint),
            samples=len(batch.rows) if batch else 0,
            bytes=batch.bytes if batch else 0,
            wait_s=batch.wait_s if batch else 0.0,
            fetch_s=batch.fetch_s if batch else 0.0,
            decode_s=batch.decode_s if batch else 0.0,
            retries=self.source.retries,
            skipped=self.own_skipped,
            reader=batch.reader if batch else 0,
            step_s=step_s,
        )

    def _fail(self, own: ConsoleError | None) -> None:
        """Raises ConsoleError in every rank, because one failed."""
        problems = self.parts.group.all_gather_object(None if own is None else (own.message, own.remedy))
        self.parts.group.agree_on_failure()
        if own is not None:
            raise own
        rank, problem = next((rank, problem) for rank, problem in enumerate(problems) if problem is not None)
        raise ConsoleError(f"Rank {rank}: {problem[0]}", remedy=problem[1])

    def _apply(self, decision: StepDecision) -> None:
        """Carries out a decision, besides the step itself."""
        context = self.context
        self.retries, self.skipped = decision.retries, decision.skipped
        if decision.failed_over_rank is not None:
            self.endpoint = decision.endpoint
            if not self.parts.group.rank_info.is_rank_zero:
                context.controls.endpoint = decision.endpoint
            elif decision.failed_over_rank > 0:
                context.switch(decision.endpoint, reason=f"the other one failed on rank {decision.failed_over_rank}")
        if decision.lr is not None:
            self.parts.set_peak_lr(context, decision.lr)
        if decision.checkpoint:
            self.checkpointer.save_on_request()

    def _train(self, batch: Batch, decision: StepDecision) -> None:
        context = self.context
        compiles = self.parts.trainer.compiles(len(batch.rows))
        context.enter(RunState.COMPILING if compiles else RunState.RUNNING)
        self.parts.epochs.epoch = batch.request.epoch
        self.parts.clock.mark()
        with self.parts.compute.device_errors():
            images = self.parts.transform.images(batch)
            labels = self.parts.transform.labels(Split.TRAIN, batch.rows)
        self.parts.clock.mark()
        lr = self.parts.trainer.lr
        loss = self.parts.trainer.step(
            images,
            labels,
            self.parts.epochs.meters[Split.TRAIN],
            samples=decision.samples,
            share=batch.request.share,
            update=batch.request.update,
        )
        context.enter(RunState.RUNNING)
        grad_norm = self.parts.trainer.grad_norm if batch.request.update else None
        loss, grad_norm = self.parts.compute.host_copy([loss, grad_norm])
        self.parts.clock.mark()
        context.step += 1
        times = self.parts.clock.finish()
        self._switch_periodically()  # before the next request to a reader
        if self.parts.group.world > 1 and batch.queued:
            # The ranks exchange their status while the GPU computes, not between two steps.
            self.upcoming = self._upcoming()
        self.reports.add(
            DoneStep(
                step=context.step,
                epoch=self.parts.epochs.epoch,
                lr=lr,
                loss=loss,
                grad_norm=grad_norm,
                batch=batch,
                decision=decision,
                times=times,
                compiled=compiles,
            )
        )
        self._save_periodically()
        if self.profiler.step(context.step, requested=context.controls.pop_profile_request()):
            self.parts.clock.restart()

    def _skip(self, request: BatchRequest) -> None:
        """A training batch without samples that can be used: a step that trains and reports nothing."""
        self.parts.epochs.epoch = request.epoch
        self.parts.trainer.skip(update=request.update)
        self.context.step += 1
        self._switch_periodically()
        self._save_periodically()
        self.parts.clock.restart()

    def _switch_periodically(self) -> None:
        """Switches the endpoint every `switch_every` steps."""
        context, every = self.context, self.context.settings.switch_every
        if self.parts.group.rank_info.is_rank_zero and every and context.step % every == 0:
            other = context.controls.endpoint.other
            if context.profile.endpoint(other):
                context.switch(other, reason=f"every {counted(every, 'step')}")

    def _save_periodically(self) -> None:
        """Writes a checkpoint every `checkpoint_every` steps."""
        context, settings = self.context, self.context.settings
        if settings.checkpoint_every and context.step % settings.checkpoint_every == 0:
            self.parts.trainer.reduce_pending_gradients()
            self.checkpointer.save()

    def _validate(self, batch: Batch) -> None:
        self.reports.flush()
        self.context.enter(RunState.VALIDATING)
        if batch.request.index == 0:
            self.parts.trainer.broadcast_buffers()
        with self.parts.compute.device_errors():
            images = self.parts.transform.images(batch)
            labels = self.parts.transform.labels(Split.VAL, batch.rows)
        self.parts.trainer.validate(images, labels, self.parts.epochs.meters[Split.VAL])
        self.parts.clock.restart()

    def _ends_epoch(self, request: BatchRequest) -> bool:
        return request.last and (request.split is Split.VAL or self.plan.batches_per_epoch == self.plan.steps_per_epoch)

    def _end_epoch(self) -> None:
        self.reports.flush()
        self.parts.epochs.end_epoch(self.context)
        self.checkpointer.save(validated=True)
        self.parts.clock.restart()

    def _finish(self) -> events.Summary:
        context = self.context
        self.reports.flush()
        self.reports.report_ranks()
        stopped = context.controls.stopping.is_set()
        if stopped:
            context.enter(RunState.STOPPING)
            self.checkpointer.save_on_request(last=True)
        if self.saver:
            self.saver.wait()
        self.profiler.close()  # the summary is the last event
        state = RunState.STOPPED if stopped else RunState.FINISHED
        context.enter(state)
        summary = summary_of(
            context,
            self.parts.epochs,
            state=state,
            seconds=time.perf_counter() - self.begun,
            checkpoint=self.saver.last_key if self.saver else "",
            skipped_samples=self.skipped,
            retries=self.retries,
        )
        context.emit(summary)
        return summary
