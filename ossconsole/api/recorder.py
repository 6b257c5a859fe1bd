"""The recorder of a watched loop: times its steps, and writes them as events in a thread of its own.

Steps are timed with the host's clock, and on a GPU between events, without waiting for it.
"""

from __future__ import annotations

import collections
import math
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ossconsole.api.ranks import RankTimes
from ossconsole.api.watched_run import WatchedRun
from ossconsole.telemetry import events
from ossconsole.telemetry.events import number
from ossconsole.telemetry.ranks import RankFigures
from ossconsole.telemetry.workers import WorkerReader, worker_pids

if TYPE_CHECKING:
    from ossconsole.api.images import OssImages
    from ossconsole.training.loading.loader import Batch

_FLUSH_S = 0.5  # steps are recorded this often
_WORKERS_EVERY_S = 2.0
_RANKS_EVERY_S = 2.0
_RATE_STEPS = 10  # steps over which samples/s is averaged


class WatchedTimes(NamedTuple):
    """The parts of one step, seconds; on a CPU the host's work is part of `compute_s`."""

    step_s: float
    wait_s: float
    compute_s: float
    host_s: float = 0.0
    host_late: bool = False


class StepTiming(NamedTuple):
    """The marks of one step. `events` are the ends of the previous step, of the wait and of the step on a GPU.

    `host_wait_s` and `host_step_s` are the wait and the step by the host's clock, seconds.
    """

    host_wait_s: float
    host_step_s: float
    events: tuple[Any, Any, Any] | None = None
    host_late: bool = False

    def ready(self) -> bool:
        """Whether the GPU has completed the step."""
        return self.events is None or bool(self.events[2].query())

    def read(self) -> WatchedTimes:
        """The times; waits for the GPU unless the step is `ready`."""
        if self.events is None:
            return WatchedTimes(self.host_step_s, self.host_wait_s, self.host_step_s - self.host_wait_s)
        previous, arrived, done = self.events
        done.synchronize()
        step_s = previous.elapsed_time(done) / 1000
        idle_s = previous.elapsed_time(arrived) / 1000
        # The GPU may still have been busy with the step before while the host waited: only its idle time counts.
        wait_s = min(self.host_wait_s, idle_s)
        compute_s = arrived.elapsed_time(done) / 1000
        return WatchedTimes(step_s, wait_s, compute_s, max(0.0, step_s - wait_s - compute_s), self.host_late)


class StepTimer:
    """Marks the moments of a step: its batch is requested, it arrives, and the step is finished."""

    def __init__(self) -> None:
        self._requested = self._arrived = self._finished = time.perf_counter()
        self._previous: Any = None
        self._arrival: Any = None

    def restart(self) -> None:
        """Call before the first step of an epoch: what came before is not part of it."""
        self._finished = time.perf_counter()
        self._previous = _recorded()

    def arrive(self, requested: float) -> None:
        """The loader returned the batch that was requested at `requested`, a time of `perf_counter`."""
        self._requested, self._arrived = requested, time.perf_counter()
        self._arrival = _recorded()

    def finish(self) -> StepTiming:
        """The loop requests the next batch, so its work on this one is queued."""
        now = time.perf_counter()
        wait_s, step_s = self._arrived - self._requested, now - self._finished
        previous, self._finished = self._previous, now
        self._previous = done = _recorded()
        if done is None or previous is None or self._arrival is None:
            return StepTiming(wait_s, step_s)
        return StepTiming(wait_s, step_s, (previous, self._arrival, done), bool(self._arrival.query()))


def _recorded() -> Any:
    """An event on the current stream of the current GPU; None while the script does not use one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def to_host(value: Any, *, later: bool) -> Any:
    """A number; with `later`, of a tensor on a GPU a copy on the host, which the GPU completes with the step.

    The script may change its own value. None stays None. Raises TypeError, ValueError or RuntimeError for any other.
    """
    if hasattr(value, "detach"):
        value = value.detach()
        if later and value.device.type != "cpu" and value.numel() == 1:
            return value.to("cpu", non_blocking=True)
    return None if value is None else float(value)


def on_host(value: Any) -> float | None:
    """The number of a value of `to_host`, once the step is complete; None for a value that is not finite."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


class _DoneStep(NamedTuple):
    """A step whose figures may still be on their way from the device; `batch` is that of an OssImages loader."""

    step: int
    epoch: int
    samples: int
    time: float
    timing: StepTiming
    logged: Mapping[str, Any]
    batch: Batch | None


class StepRecorder:
    """Times the steps of a watched loop, and records them in a thread of its own."""

    def __init__(self, run: WatchedRun, images: OssImages | None) -> None:
        self.run = run
        self.timer = StepTimer()
        self._images = images
        self._ranks: list[Sequence[RankTimes]] = []
        self._ranks_at = time.monotonic()
        self._done: queue.SimpleQueue[_DoneStep] = queue.SimpleQueue()
        self._waiting: list[_DoneStep] = []
        self._totals = collections.deque([(0, 0.0)], maxlen=_RATE_STEPS + 1)  # samples and seconds up to a step
        self._epoch_figures: dict[str, Any] = {}
        self._losses: list[float] = []
        self._epoch_samples = 0
        self._epoch_begun = 0.0
        self._lr = 0.0
        self._last_loss: float | None = None
        self._step = 0
        self._epoch = 0
        self._recording = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    def begin_epoch(self) -> None:
        """Starts the clock of an epoch; figures logged since the last one belong to that."""
        self._finish_epoch()
        self._epoch += 1
        self._epoch_begun = time.perf_counter()

    def add(self, timing: StepTiming, samples: int, logged: Mapping[str, Any]) -> None:
        """The step under way is done, as far as the host is concerned; `logged` are its figures."""
        self._step += 1
        batch = self._images.last_batch if self._images is not None else None
        self._done.put(_DoneStep(self._step, self._epoch, samples, time.time(), timing, logged, batch))

    def add_ranks(self, figures: Sequence[RankTimes]) -> None:
        """The figures of all ranks for the last step; their means are recorded every few seconds."""
        self._ranks.append(figures)
        if time.monotonic() < self._ranks_at + _RANKS_EVERY_S:
            return
        ranks = list(zip(*self._ranks, strict=True))
        self._ranks, self._ranks_at = [], time.monotonic()
        self.run.emit(
            events.RankWork(
                time=time.time(),
                ranks=tuple(_figures(rank, steps) for rank, steps in enumerate(ranks)),
                step=self._step,
            )
        )

    def end_epoch(self) -> None:
        """The loader has no more batches, or the loop ended early."""
        if not self.run.stopping:
            self.run.epoch = self._epoch
            self._epoch_figures.setdefault("seconds", time.perf_counter() - self._epoch_begun)

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """Figures of the last epoch; of one that was stopped they are a message only."""
        self._epoch_figures.update(figures)

    def close(self, error: str) -> None:
        """Records the remaining steps, and ends the run."""
        self._ended.set()
        self._thread.join()
        try:
            self._record_steps(wait=True)
            self._finish_epoch()
        finally:
            self.run.close(error)

    def _finish_epoch(self) -> None:
        figures, self._epoch_figures = self._epoch_figures, {}
        if "seconds" not in figures:
            self._report(figures)
            return
        self._record_steps(wait=True)
        losses, self._losses = self._losses, []
        samples, self._epoch_samples = self._epoch_samples, 0
        val_loss, top1, top5 = (on_host(figures.pop(name, None)) for name in ("val_loss", "top1", "top5"))
        seconds = figures.pop("seconds")
        self._report(figures)
        self.run.emit(
            events.Epoch(
                time=time.time(),
                epoch=self._epoch,
                train_loss=sum(losses) / len(losses) if losses else None,
                seconds=seconds,
                step=self._step,
                samples=samples,
                val_loss=val_loss,
                top1=top1,
                top5=top5,
            )
        )

    def _report(self, figures: Mapping[str, Any]) -> None:
        if figures:
            words = ", ".join(f"{name} {number(on_host(value))}" for name, value in figures.items())
            self.run.info(f"epoch {self._epoch}: {words}")

    def _work(self) -> None:
        workers, next_read = WorkerReader(), 0.0
        while not self._ended.wait(_FLUSH_S):
            self._record_steps(wait=False)
            if self._images is not None:
                continue
            pids = worker_pids()
            workers.sample(pids)
            if time.monotonic() >= next_read:
                next_read = time.monotonic() + _WORKERS_EVERY_S
                usage = workers.read(pids)
                if usage:
                    self.run.emit(events.LoaderWorkers(time=time.time(), workers=usage))

    def _record_steps(self, *, wait: bool) -> None:
        """Records the steps that the device has completed; with `wait` all of them."""
        with self._recording:
            while not self._done.empty():
                self._waiting.append(self._done.get())
            recorded: list[events.Step] = []
            try:
                while self._waiting and (wait or self._waiting[0].timing.ready()):
                    recorded.append(self._event_of(self._waiting.pop(0)))
            finally:  # also where reading the GPU's times fails
                self.run.emit(*recorded)

    def _event_of(self, done: _DoneStep) -> events.Step:
        """Takes a step into the figures of its epoch, and returns its event."""
        times = done.timing.read()
        logged = {name: on_host(value) for name, value in done.logged.items()}
        loss = logged.pop("loss", self._last_loss)
        self._last_loss = loss
        if loss is not None:
            self._losses.append(loss)
        lr = logged.pop("lr", None)
        self._lr = self._lr if lr is None else lr  # 0 is a rate too: the end of a schedule
        self._epoch_samples += done.samples
        samples, seconds = self._totals[-1]
        self._totals.append((samples + done.samples, seconds + times.step_s))
        (first, begun), (last, ended) = self._totals[0], self._totals[-1]
        batch = done.batch
        self.run.step = done.step
        return events.Step(
            time=done.time,
            step=done.step,
            epoch=done.epoch,
            samples=done.samples,
            loss=loss,
            lr=self._lr,
            endpoint=batch.endpoint if batch is not None else None,
            data_wait_s=times.wait_s,
            step_time_s=times.step_s,
            fetch_s=batch.fetch_s if batch is not None else 0.0,
            bytes=batch.bytes if batch is not None else 0,
            samples_per_s=(last - first) / (ended - begun) if ended > begun else 0.0,
            compute_s=times.compute_s,
            host_s=times.host_s,
            host_late=times.host_late,
            queued=batch.queued if batch is not None else 0,
            readers_idle=batch.readers_idle if batch is not None else False,
            single_s=batch.single_s if batch is not None else None,
            decode_s=batch.decode_s if batch is not None else 0.0,
            logged=logged,
        )


def _figures(rank: int, steps: Sequence[RankTimes]) -> RankFigures:
    """The figures of a rank over some steps; the bytes that another loader read are not known."""
    seconds = sum(step.step_s for step in steps)
    return RankFigures(
        rank=rank,
        steps=len(steps),
        wait_fraction=min(1.0, sum(step.wait_s for step in steps) / seconds) if seconds else 0.0,
        bytes_per_s=0.0,
        step_s=seconds / len(steps),
    )
