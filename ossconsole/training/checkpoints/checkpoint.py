"""Checkpoints of a run: their content, saving them while the run trains, and resuming at the exact step."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
from collections.abc import Callable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision

from ossconsole import __version__
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import TRAIN
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.telemetry import events
from ossconsole.training.checkpoints.store import (
    LATEST,
    NEXT_TRIED,
    NOT_FOUND,
    CheckpointStore,
    RunProgress,
    find_checkpoint,
    object_of,
)
from ossconsole.training.compute.device import map_tensors
from ossconsole.training.compute.weights_file import (
    MAX_WEIGHTS_BYTES,
    load_untrusted,
    refuse_not_finite,
)
from ossconsole.training.context import RunContext
from ossconsole.training.data import TrainingData
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.settings import DEFAULT_MODEL, NOTHING

log = logging.getLogger(__name__)

FORMAT = "ossconsole-checkpoint"
VERSION = 1
_MAY_DIFFER = {"run", "sample_format"}
_OF_EARLIER_VERSIONS = {"model_name": DEFAULT_MODEL, "freeze": NOTHING}  # what their checkpoints do not say
_TIMEOUT_S = 150.0  # of each of two attempts to write one
_PATIENCE_S = 30.0  # how long training waits for one checkpoint before it skips the next
_EMIT_EVERY_S = 0.25


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint. `wait_for_copy` blocks until the tensors of `trainer_state` are on the host."""

    trainer_state: dict[str, Any]
    progress: RunProgress
    run_config: dict[str, Any]
    wait_for_copy: Callable[[], object]

    def pack(self) -> memoryview:
        """The bytes of the checkpoint."""
        self.wait_for_copy()
        return pack(map_tensors(self.trainer_state, _with_own_storage), self.progress, self.run_config)


def _with_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """A copy when the storage is shared: torch.save writes whole storages, and loading one view would keep them."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def run_config_of(context: RunContext, data: TrainingData, rank_info: RankInfo) -> dict[str, Any]:
    """What a run that resumes from a checkpoint must have in common with the run that wrote it, and that run's id."""
    settings = context.settings
    return {
        "run": context.id,
        "model_name": settings.model,
        "freeze": settings.freeze,
        "seed": settings.seed,
        "batch_size": settings.batch_size * rank_info.world,
        "samples": data.count(TRAIN),
        "classes": list(data.classes),
        "sample_format": str(data.format),
        "image_size": data.image_size(settings.image_size),
    }


def pack(trainer_state: dict[str, Any], progress: RunProgress, run_config: dict[str, Any]) -> memoryview:
    """The bytes of a checkpoint. `run_config` describes run, data and settings in plain values, without secrets.

    Not copied out of the buffer: that would hold up the training thread, as it keeps the GIL. Release it after use.
    """
    buffer = io.BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "version": VERSION,
            "epoch": progress.epoch,
            "step": progress.step,
            "train_sums": progress.train_sums,
            "metrics": progress.metrics,
            "versions": {
                "ossconsole": __version__,
                "torch": str(torch.__version__),
                "torchvision": str(torchvision.__version__),
            },
            **run_config,
            **trainer_state,
        },
        buffer,
    )
    return buffer.getbuffer()


def unpack(data: bytes, where: str) -> dict[str, Any]:
    """The content of a checkpoint, loaded without running code. Raises ConsoleError when it is not one of ours."""
    state = load_untrusted(data, where)
    if state.get("format") != FORMAT:
        raise ConsoleError(
            f"{where} is not a checkpoint of this console.", remedy="To start from its weights use --weights instead."
        )
    if state.get("version") != VERSION:
        raise ConsoleError(
            f"{where} has checkpoint version {state.get('version')!r}; this program reads {VERSION}.",
            remedy="Use the ossconsole that wrote it.",
        )
    return state


class CheckpointSaver:
    """Writes checkpoints in a background thread, one at a time, and emits the outcome; a failure never ends the run.

    `begun_at` is the progress at the start or resumption of the run, which needs no checkpoint. `last_key` is the
    newest checkpoint that this run wrote, "" before the first.
    """

    def __init__(self, context: RunContext, checkpoints: CheckpointStore, *, begun_at: RunProgress) -> None:
        self.last_key = ""
        self._saved = begun_at
        self._best = _top1(begun_at, "best_top1")
        self._context = context
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[events.Checkpoint | None] | None = None

    def ready(self, *, last: bool = False) -> bool:
        """Waits for the checkpoint being written; False, with a warning, when that takes longer than training can wait.

        The `last` one of a run waits without limit.
        """
        if self._finished(None if last else _PATIENCE_S):
            return True
        self._context.warn("Checkpoint skipped: the previous one is still being written.")
        return False

    def needs(self, progress: RunProgress) -> bool:
        """Whether anything was trained since the last checkpoint: skipped steps train nothing. Call when `ready`."""
        return replace(progress, step=self._saved.step) != self._saved

    def clear_leftovers(self) -> None:
        """Aborts the unfinished uploads of killed runs, in the background, before the first checkpoint."""
        self._thread.submit(self._clear_leftovers)

    def save(self, snapshot: Snapshot, *, validated: bool) -> None:
        """Starts writing a checkpoint; call when `ready`. One that was `validated` is the best of those written so far
        where its top-1 is the highest.
        """
        self._saving = self._thread.submit(self._save, snapshot, validated)

    def wait(self) -> None:
        """Waits until the current checkpoint is written or has failed."""
        self._finished(None)

    def close(self) -> None:
        """Waits for the current checkpoint and ends the thread and the writer process."""
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
        except Exception as error:  # noqa: BLE001 - such as a key that may not list; the next run retries
            log.warning("Unfinished uploads of earlier runs remain: %s", error)
            return
        if keys:
            self._context.info(f"Aborted unfinished checkpoint uploads of earlier runs: {', '.join(keys)}.")

    def _save(self, snapshot: Snapshot, validated: bool) -> events.Checkpoint | None:
        progress, shown = snapshot.progress, _SaveProgress(self._context)
        best = validated and _top1(progress, "top1") > self._best
        try:
            # Released here: the error of a failed write keeps its frames, and Python 3.13 reports such buffers.
            with snapshot.pack() as data:
                shown.size = len(data)
                saved = self._checkpoints.save(data, progress, best=best, on_written=shown.update)
        except Exception as error:
            if not isinstance(error, ConsoleError):
                log.exception("A checkpoint was not written")
                error = unexpected_failure(progress, error)
            shown.give_up()
            self._context.emit(
                events.WarningEvent(time=time.time(), message=error.message, remedy=error.remedy, step=progress.step)
            )
            return None
        self._saved = progress
        if saved.best_key:
            self._best = _top1(progress, "top1")
        self._context.emit(saved)
        return saved


def _top1(progress: RunProgress, name: str) -> float:
    value = progress.metrics.get(name)
    return -math.inf if value is None else value


def open_saver(
    resources: contextlib.ExitStack,
    context: RunContext,
    store: ObjectStore,
    connector: ConnectorSettings,
    *,
    restarted: bool,
    begun_at: RunProgress,
) -> CheckpointSaver:
    """The saver of a run, which `resources` closes. A run `restarted` by torchrun takes over its checkpoints."""
    checkpoints = CheckpointStore(
        connector,
        store,
        context.id,
        keep=context.settings.keep_checkpoints,
        timeout_s=_TIMEOUT_S,
        model=context.settings.model,
        on_warning=context.warn,
    )
    if restarted:
        try:
            checkpoints.adopt()
        except StorageError as error:  # the key may lack the permission to list
            context.warn(f"Old checkpoints of this run are kept: {error.message}", error.remedy)
    saver = CheckpointSaver(context, checkpoints, begun_at=begun_at)
    resources.callback(saver.close)
    saver.clear_leftovers()
    return saver


def unexpected_failure(progress: RunProgress, error: Exception) -> ConsoleError:
    """The error of a checkpoint that failed for an unforeseen reason, such as too little memory."""
    return ConsoleError(
        f"The checkpoint of step {progress.step} was not written: {type(error).__name__}: {error}.",
        remedy=f"The log has the traceback. {NEXT_TRIED}",
    )


class _SaveProgress:
    """Emits how much of a checkpoint of `size` bytes is written, at most every _EMIT_EVERY_S."""

    def __init__(self, context: RunContext) -> None:
        self.size = 0
        self._context = context
        self._key = ""
        self._emitted_at = 0.0

    def update(self, key: str, written: int) -> None:
        now = time.monotonic()
        if key != self._key or written == self.size or now - self._emitted_at >= _EMIT_EVERY_S:
            self._key, self._emitted_at = key, now
            self._emit(written)

    def give_up(self) -> None:
        if self._key:
            self._emit(0, over=True)

    def _emit(self, written: int, *, over: bool = False) -> None:
        self._context.emit(events.Saving(time=time.time(), key=self._key, bytes=self.size, written=written, over=over))


def fetch_uri(store: ObjectStore, uri: str) -> bytes:
    """The object of an `oss://bucket/key`.

    Raises ConsoleError when it is in another bucket than the profile's, or larger than MAX_WEIGHTS_BYTES.
    """
    key, size = object_of(store, uri)
    if size > MAX_WEIGHTS_BYTES:  # before it fills the memory
        raise ConsoleError(
            f"{uri} has {size:,} bytes, which is too large for weights.", remedy="Select another object."
        )
    return store.get(key)


def resume(
    context: RunContext,
    store: ObjectStore,
    group: ProcessGroup,
    run_config: dict[str, Any],
    load: Callable[[dict[str, Any]], None],
) -> None:
    """Resumes from the checkpoint of the settings, or after a torchrun restart from the one that this run wrote.

    `load` restores the state of the run from the checkpoint's content; `run_config` must match that of the checkpoint.
    Raises ConsoleError when it does not, or when the object is not a complete checkpoint.
    """
    named = context.settings.resume
    if group.rank_info.attempt:
        own = _own_checkpoint(context, store) if group.rank_info.is_rank_zero else ""
        named = group.all_gather_object(own)[0] or named
    if not named:
        return
    newest = find_checkpoint(store, named, context.settings.model, lambda uri: unpack(fetch_uri(store, uri), uri))
    uri, state = newest.uri, newest.content
    if newest.problem:
        context.warn(newest.problem)
    for name, wanted in run_config.items():
        found = state.get(name, _OF_EARLIER_VERSIONS.get(name))
        if name not in _MAY_DIFFER and found != wanted:
            raise ConsoleError(
                f"{uri} was written with {_difference(name, found, wanted)}.",
                remedy=f"Use the same settings and dataset, or start from its weights: --weights {uri}.",
            )
    for weights in (state.get("model"), state.get("current")):
        if isinstance(weights, dict):
            refuse_not_finite(weights, uri)
    try:
        load(state)
        epoch, context.step = int(state["epoch"]), int(state["step"])
        original_lr = state["schedule"]["asked"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        missing = f" ({error} is missing)" if isinstance(error, KeyError) else ""
        raise ConsoleError(
            f"{uri} is not complete: a run cannot resume from it{missing}.",
            remedy=f"Start from its weights: --weights {uri}.",
        ) from error
    context.info(f"Resumed after step {context.step} of epoch {epoch}, from {uri}.")
    if original_lr != context.settings.learning_rate:
        context.info(f"The peak learning rate is now {context.settings.learning_rate:g}.")


def _difference(name: str, value: object, expected: object) -> str:
    """The text after "written with"."""
    if name == "model_name":
        return f"the model {value}; this run has {expected}"
    if name == "freeze":
        return f"--freeze {value}; this run has {expected}"
    if name == "classes":
        was, has = (len(each) if isinstance(each, Sized) else 0 for each in (value, expected))
        return f"{counted(was, 'class', 'classes')}; this dataset has {'others' if was == has else has}"
    if name == "samples":
        return f"{value} training samples; this run has {expected}, without those held out (--val-split)"
    shown = "a batch size (of all processes)" if name == "batch_size" else f"the {name.replace('_', ' ')}"
    return f"{shown} of {value}; this run has {expected}"


def _own_checkpoint(context: RunContext, store: ObjectStore) -> str:
    """The URI of the newest whole checkpoint if this run wrote it, else ""."""
    try:
        newest = find_checkpoint(store, LATEST, context.settings.model, lambda uri: unpack(fetch_uri(store, uri), uri))
    except StorageError as error:
        if error.status == NOT_FOUND:
            return ""
        raise
    return newest.uri if newest.content.get("run") == context.id else ""
