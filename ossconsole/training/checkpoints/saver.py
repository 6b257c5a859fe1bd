"""The saver: writes a run's checkpoints while it trains, one at a time."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry import events
from ossconsole.training.checkpoints.checkpoint import CheckpointStore, Progress, Saved, Snapshot
from ossconsole.training.context import RunContext

log = logging.getLogger(__name__)

_PATIENCE_S = 30.0  # how long training waits for one checkpoint before it leaves out the next

_TELL_EVERY_S = 0.25


class Saver:
    """Writes what it is given in the background and tells how that went; a failure never ends the run.

    `begun_at` is where the run begins or was resumed: that needs no checkpoint. `last_key` is the newest checkpoint
    that this run wrote, "" while there is none.
    """

    def __init__(self, context: RunContext, checkpoints: CheckpointStore, *, begun_at: Progress) -> None:
        self.last_key = ""
        self._saved = begun_at
        self._context = context
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[Saved | None] | None = None

    def ready(self, *, last: bool = False) -> bool:
        """Waits for the checkpoint being written; False, and told, when that takes so long that one is left out.

        The last one of a run is worth any wait.
        """
        if self._finished(None if last else _PATIENCE_S):
            return True
        self._context.warn("A checkpoint is left out: the one before it is still being written.")
        return False

    def needs(self, progress: Progress) -> bool:
        """Whether something was trained or validated since the last checkpoint; ask when `ready`."""
        return progress != self._saved

    def clear_leftovers(self) -> None:
        """Has what killed runs left in the bucket removed, in the background, before the first checkpoint."""
        self._thread.submit(self._clear_leftovers)

    def save(self, snapshot: Snapshot, *, best: bool) -> None:
        """Begins to write a checkpoint; call when `ready`."""
        self._saving = self._thread.submit(self._save, snapshot, best)

    def wait(self) -> None:
        """Waits until the checkpoint begun last is written, or given up."""
        self._finished(None)

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()
        self._checkpoints.close()

    def _finished(self, timeout_s: float | None) -> bool:
        if self._saving is not None:
            try:
                saved = self._saving.result(timeout_s)
            except FutureTimeoutError:
                return False
            self._saving = None
            self.last_key = saved.key if saved else self.last_key
        return True

    def _clear_leftovers(self) -> None:
        try:
            keys = self._checkpoints.abort_leftovers()
        except Exception as error:  # noqa: BLE001 - such as a key that may not list; the next run tries again
            log.warning("Unfinished uploads of earlier runs stay: %s", error)
            return
        if keys:
            self._context.say(f"Aborted unfinished uploads of checkpoints that earlier runs left: {', '.join(keys)}.")

    def _save(self, snapshot: Snapshot, best: bool) -> Saved | None:
        progress, way = snapshot.progress, _Way(self._context)
        try:
            data = snapshot.pack()
            way.size = len(data)
            saved = self._checkpoints.save(data, progress, best=best, on_written=way.tell)
        except ConsoleError as error:
            self._tell_failure(way, progress, error)
            return None
        except Exception as error:
            log.exception("A checkpoint was not written")
            self._tell_failure(way, progress, unexpected_failure(progress, error))
            return None
        self._saved = progress
        self._context.tell(
            events.Checkpoint(
                time=time.time(),
                key=saved.key,
                bytes=saved.bytes,
                seconds=saved.seconds,
                stable_key=saved.stable_key,
                best_key=saved.best_key,
                epoch=progress.epoch,
                step=progress.step,
                top1=progress.metrics.get("top1"),
            )
        )
        return saved

    def _tell_failure(self, way: _Way, progress: Progress, error: ConsoleError) -> None:
        way.give_up()
        self._context.tell(
            events.WarningEvent(time=time.time(), message=error.message, remedy=error.remedy, step=progress.step)
        )


def unexpected_failure(progress: Progress, error: Exception) -> ConsoleError:
    """What to say where a checkpoint could not be made, such as for want of memory."""
    return ConsoleError(
        f"The checkpoint of step {progress.step} was not written: {type(error).__name__}: {error}.",
        remedy="The log has the traceback. The run continues, and the next checkpoint is tried as usual.",
    )


class _Way:
    """Tells how far a checkpoint of `size` bytes is, now and then."""

    def __init__(self, context: RunContext) -> None:
        self.size = 0
        self._context = context
        self._key = ""
        self._told = 0.0

    def tell(self, key: str, written: int) -> None:
        now = time.monotonic()
        if key != self._key or written == self.size or now - self._told >= _TELL_EVERY_S:
            self._key, self._told = key, now
            self._emit(written)

    def give_up(self) -> None:
        if self._key:
            self._emit(0, over=True)

    def _emit(self, written: int, *, over: bool = False) -> None:
        self._context.tell(events.Saving(time=time.time(), key=self._key, bytes=self.size, written=written, over=over))
