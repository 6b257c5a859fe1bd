"""The batch source: the loader, with what the user wants done when an endpoint or a reader fails."""

from __future__ import annotations

import time
from collections.abc import Callable

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.retry import NO_RETRY
from ossconsole.training.context import RunContext
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.loader import Batch, BatchLoader, LoaderError
from ossconsole.training.loading.reader import MISSING
from ossconsole.training.plan import BatchRequest, Plan

FAILURES = 2
"""Failed tries of one batch, each with retries of its own, before the run falls back, waits, pauses or ends."""

LOST_READERS = 5
"""Readers in a row that died over one batch although the endpoint answers, before the run pauses or ends."""

_FIRST_LOOK_S, _LAST_LOOK_S = 1.0, 15.0  # between two looks whether an endpoint answers again
_EXPLAIN_TIMEOUT_S = 5.0


class BatchSource:
    """Gives the plan's batches whole, and keeps the endpoint in step with the run's switch.

    A batch that fails is asked for again, so that no sample is lost. After FAILURES tries the run falls back to the
    other endpoint if it answers and the settings allow it. Else it waits for the endpoint, for `settings.patience_s`;
    then it pauses where somebody can act, and ends otherwise. It does not wait when no batch was ever read, nor for
    what only somebody who watches can mend. `heed` is called now and then while it waits for a batch, `on_pause` while
    it waits for an endpoint or for somebody.
    """

    def __init__(
        self,
        context: RunContext,
        connector: ConnectorSettings,
        data: TrainingData,
        plan: Plan,
        *,
        start: int,
        pin: bool,
        heed: Callable[[], None],
        on_pause: Callable[[], None],
        on_recovery: Callable[[], None],
    ) -> None:
        self._context = context
        self._data = data
        self._plan = plan
        self._heed = heed
        self._on_pause = on_pause
        self._on_recovery = on_recovery
        self._loader = BatchLoader(
            connector, data, plan, context.settings, start=start, pin=pin, interrupted=self._interrupted
        )
        if self._loader.not_pinned is not None:
            context.warn(self._loader.not_pinned.message, self._loader.not_pinned.remedy)
        self.retries = 0
        self._has_read = False
        self._failing_since: float | None = None
        self._look_s = _FIRST_LOOK_S

    def next(self) -> Batch | None:
        """The next batch, None at the end of the plan or when the run is stopped. Raises ConsoleError."""
        failures = lost = 0
        while not self._interrupted():
            try:
                batch = self._loader.next()
            except LoaderError as error:
                self._begin_failing()
                lost += 1
                if self._lost(error.message, last_try=lost >= LOST_READERS):
                    failures = lost = 0
                continue
            if batch is None or not (reason := batch.failed or self._doubt(batch)):
                self.retries += batch.retries if batch else 0
                self._end_failing()
                return batch
            self._begin_failing()
            self._loader.ask_again(batch)
            failures += 1
            if self._failed(reason, batch.request, last_try=failures >= FAILURES):
                failures = 0
        return None

    def _begin_failing(self) -> None:
        self.retries += 1
        if self._failing_since is None:
            self._failing_since, self._look_s = time.monotonic(), _FIRST_LOOK_S

    def _end_failing(self) -> None:
        self._has_read = True
        if self._failing_since is not None:
            waited = time.monotonic() - self._failing_since
            self._failing_since = None
            self._context.say(f"Samples arrive again, after {waited:.0f} s.")
            self._on_recovery()

    def close(self) -> None:
        """Ends the readers."""
        self._loader.close()

    def _interrupted(self) -> bool:
        """Hands the run's endpoint on to the readers; True when the run is to stop."""
        self._heed()
        self._loader.switch.endpoint = self._context.controls.endpoint
        return self._context.controls.stopping.is_set()

    def _lost(self, reason: str, *, last_try: bool) -> bool:
        """A reader died or hung: by itself, or over an endpoint that does not answer. True as in `_failed`."""
        if self._explain(self._context.controls.endpoint, None) is not None:
            return self._failed(reason, None, last_try=True)
        if last_try:
            self._give_up(reason, "Memory may be short, or the connector may crash: its log tells more.")
            return True
        self._context.warn(reason, "The batch is read again.")
        return False

    def _failed(self, reason: str, request: BatchRequest | None, *, last_try: bool) -> bool:
        """Does what the settings say about a failed batch; True when the count of tries starts anew."""
        context = self._context
        kind = context.controls.endpoint
        error = self._explain(kind, request)
        message = error.message if error else f"A batch could not be read through the {kind} endpoint: {reason}"
        remedy = error.remedy if error else "The connector's log tells more; `ossconsole doctor` checks the endpoint."
        if not last_try:
            self._context.warn(f"{message} Trying again.", remedy)
            return False
        other = kind.other
        if context.settings.fall_back and context.profile.endpoint(other) and self._explain(other, request) is None:
            self._context.warn(message, remedy)
            context.switch(other, reason=f"the {kind} endpoint failed")
            return True
        mendable = context.attended and error is not None and not error.retriable
        if self._has_read and not mendable and self._outlast(kind, message, remedy):
            return True
        self._give_up(message, remedy)
        return True

    def _outlast(self, kind: EndpointKind, message: str, remedy: str) -> bool:
        """Waits until it is worth another try: the endpoint answers, or was switched. False when out of patience."""
        context = self._context
        assert self._failing_since is not None  # noqa: S101 - a batch has failed
        until = self._failing_since + context.settings.patience_s
        if time.monotonic() >= until:
            return False
        self._context.warn(f"{message} Waiting for it, {until - time.monotonic():.0f} s at most.", remedy)
        while not context.controls.stopping.wait(min(self._look_s, max(0.0, until - time.monotonic()))):
            self._look_s = min(_LAST_LOOK_S, self._look_s * 1.5)
            self._on_pause()  # does what was asked of the run meanwhile
            if context.controls.endpoint is not kind or self._explain(kind, None) is None:
                return True
            if time.monotonic() >= until:
                return False
        return True

    def _give_up(self, message: str, remedy: str) -> None:
        """Pauses where somebody can act. Raises ConsoleError otherwise."""
        if not self._context.attended:
            raise ConsoleError(message, remedy=remedy)
        self._pause(message, remedy)

    def _pause(self, message: str, remedy: str) -> None:
        context = self._context
        context.complain(f"{message} The run is paused.", f"{remedy} Then resume.")
        context.controls.pause()
        self._on_pause()
        self._failing_since = None

    def _doubt(self, batch: Batch) -> str:
        """Why a sample left out may be in the bucket after all, "" where none may.

        Where the endpoint's name cannot be resolved the connector says that the object is not there (seen with 1.2.3).
        """
        for sample, why in batch.bad:
            if why == MISSING:
                error = self._look(batch.endpoint, self._data.keys([sample])[0])
                if error is None or error.code != "NoSuchKey":
                    return error.message if error else f"{sample.key} was not found, and yet it is there"
        return ""

    def _explain(self, kind: EndpointKind, request: BatchRequest | None) -> StorageError | None:
        """The same read through oss2, which tells OSS's code and request id; None when it succeeds."""
        request = request or next(self._plan.requests())
        return self._look(kind, self._data.object_of(str(request.split), int(request.indices[0])))

    def _look(self, kind: EndpointKind, key: str) -> StorageError | None:
        store = ObjectStore(
            self._context.profile, self._context.credentials, kind, timeout_s=_EXPLAIN_TIMEOUT_S, retry=NO_RETRY
        )
        try:
            if self._data.sharded:
                store.get_range(key, 0, 1)
            else:
                store.get(key)
        except StorageError as error:
            return error
        finally:
            store.close()
        return None
