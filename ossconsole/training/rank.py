"""One rank of a run, from the description of the dataset to the end of the training.

Torch, numpy and oss2 are imported on the way: the console has this module before its first paint.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.storage.retry import Wait
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.training.context import RunContext
from ossconsole.training.distributed.ranks import RankInfo

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.training.data import TrainingData

_LISTING_EVERY_S = 2.0
"""Period of the messages about a listing."""


class Rank:
    """Trains as one rank. A stop ends also the wait for an endpoint, and the listing of a dataset."""

    def __init__(self, context: RunContext, rank_info: RankInfo) -> None:
        self._context = context
        self._rank_info = rank_info
        self._begun = time.perf_counter()
        self._listing_at = math.inf
        self._reporting = threading.Lock()  # several threads list a dataset

    def train(self) -> events.Summary:
        """Trains to the end of the plan or until stopped. Raises ConsoleError."""
        from ossconsole.storage.client import ObjectStore

        context = self._context
        store = ObjectStore(context.profile, context.credentials)
        try:
            data = self._data(store)
        except ConsoleError:
            if context.controls.stopping.is_set():  # while it waited to read the manifest
                return stop_before_training(context, self._begun)
            ensure_described(context)
            raise
        from ossconsole.training import session

        # The ranks of a torchrun job stop together.
        if context.controls.stopping.is_set() and not self._rank_info.by_torchrun:
            return stop_before_training(context, self._begun)
        return session.train(context, store, data, self._rank_info)

    def _data(self, store: ObjectStore) -> TrainingData:
        from ossconsole.training import data

        context = self._context
        return data.training_data(
            store.pausing(self._wait),
            context.profile.dataset_prefix,
            val_split=context.settings.val_split,
            seed=context.settings.seed,
            labels=context.settings.label_files,
            on_progress=self._show_listing,
        )

    def _wait(self, wait: Wait) -> None:
        """Waits before a request is sent again, and reports it unless another thread does; a stop ends the wait."""
        stopping = self._context.controls.stopping
        is_first = not stopping.is_set() and self._reporting.acquire(blocking=False)
        try:
            if is_first:
                ensure_described(self._context)
                self._context.info(f"Waiting: {wait}.")
            if stopping.wait(wait.seconds):
                raise wait.error
        finally:
            if is_first:
                self._reporting.release()

    def _show_listing(self, listed: int) -> None:
        """Reports a listing that takes long. Raises ConsoleError when the run is to stop."""
        context, now = self._context, time.monotonic()
        if context.controls.stopping.is_set():
            raise ConsoleError("The listing was stopped.")
        self._listing_at = min(self._listing_at, now + _LISTING_EVERY_S)
        if now >= self._listing_at and self._reporting.acquire(blocking=False):
            self._listing_at = now + _LISTING_EVERY_S
            ensure_described(context)
            where = f"oss://{context.profile.bucket}/{context.profile.dataset_prefix}/"
            context.info(f"Listing {where}: {counted(listed, 'object')} so far.")
            self._reporting.release()


def ensure_described(context: RunContext) -> None:
    """Emits the first event unless it was: each record begins with one, also when training never starts."""
    if not context.described:
        context.describe()


def stop_before_training(context: RunContext, begun: float) -> events.Summary:
    """Ends a run that was stopped while torch was loading, without a model. `begun` is by `time.perf_counter`."""
    ensure_described(context)
    context.info("Nothing has been trained yet: no checkpoint is written.")
    seconds = time.perf_counter() - begun
    summary = context.measurement.summary(context.id, RunState.STOPPED, epochs=0, steps=0, seconds=seconds)
    context.enter(RunState.STOPPED)
    context.emit(summary)
    return summary
