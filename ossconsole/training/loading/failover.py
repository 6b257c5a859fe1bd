"""The loader with failover: what happens when an endpoint or a reader fails."""

from __future__ import annotations

import time
from collections.abc import Callable

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import TRAIN
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.retry import NO_RETRY
from ossconsole.training.context import RunContext
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.loading.loader import Batch, BatchLoader, LoaderError
from ossconsole.training.loading.reader import MISSING
from ossconsole.training.plan import Requests

FAILURES = 2
"""Failed attempts at one batch, each with its own retries, before the run falls back, waits, pauses or ends."""

LOST_READERS = 5
"""Readers in a row that died on one batch while the endpoint answers, before the run pauses or ends."""

_FIRST_PROBE_S, _MAX_PROBE_S = 1.0, 15.0  # time between two probes of a failing endpoint
_PROBE_TIMEOUT_S = 5.0


class FailoverLoader:
    """Delivers the plan's batches, and passes the run's endpoint on to the readers.

    A batch that fails is retried, so that no sample is lost. After FAILURES attempts the run falls back to the other
    endpoint, once, if that answers and the settings allow it. Otherwise it waits for the endpoint for `patience_s`;
    then an interactive run pauses, and any other ends. It does not wait before the first batch, nor for errors that a
    user can correct, nor for one object where the endpoint delivers others. `poll_stop` is called about once a second
    while it waits for a batch, `on_pause` while it waits for an endpoint or the user. `retries` counts all failed
    attempts.
    """

    def __init__(
        self,
        context: RunContext,
        connector: ConnectorSettings,
        data: TrainingData,
        plan: Requests,
        *,
        start: int,
        pin: bool,
        time_singles: bool,
        sharing: int,
        poll_stop: Callable[[], None],
        on_pause: Callable[[], None],
        on_recovery: Callable[[], None],
    ) -> None:
        self._context = context
        self._data = data
        self._poll_stop = poll_stop
        self._on_pause = on_pause
        self._on_recovery = on_recovery
        self._loader = BatchLoader(
            connector,
            data,
            plan,
            context.settings,
            start=start,
            pin=pin,
            time_singles=time_singles,
            sharing=sharing,
            interrupted=self._sync_controls,
        )
        if self._loader.not_pinned is not None:
            context.warn(self._loader.not_pinned.message, self._loader.not_pinned.remedy)
        self.retries = 0
        self._has_read = False
        self._fell_back = False  # since the last batch
        self._failing_since: float | None = None
        self._failed_through: EndpointKind | None = None  # since then; None where only readers were lost
        self._probe_wait_s = _FIRST_PROBE_S

    def next(self) -> Batch | None:
        """The next batch; None at the end of the plan or when the run is stopped. Raises ConsoleError."""
        failures = lost = 0
        while not self._sync_controls():
            try:
                batch = self._loader.next()
            except LoaderError as error:
                self._begin_failing()
                lost += 1
                if self._on_reader_lost(error.message, last_try=lost >= LOST_READERS):
                    failures = lost = 0
                continue
            if batch is None or not (reason := batch.failed or self._verify_missing(batch)):
                self.retries += batch.retries if batch else 0
                self._end_failing()
                return batch
            self._begin_failing()
            self._loader.retry(batch)
            failures += 1
            row = batch.failed_row if batch.failed else int(batch.request.indices[0])
            key = self._data.object_of(str(batch.request.split), row)
            if self._on_batch_failed(reason, key, last_try=failures >= FAILURES):
                failures = 0
        return None

    def _begin_failing(self) -> None:
        self.retries += 1
        if self._failing_since is None:
            self._failing_since, self._probe_wait_s = time.monotonic(), _FIRST_PROBE_S

    def _end_failing(self) -> None:
        self._has_read, self._fell_back = True, False
        if self._failing_since is not None:
            after = f"after {time.monotonic() - self._failing_since:.0f} s"
            failed, now = self._failed_through, self._context.controls.endpoint
            self._failing_since = self._failed_through = None
            if failed is None:
                self._context.info(f"The batch was read {after}.")
            elif failed is now:
                self._context.info(f"Endpoint recovered {after}.")
            else:
                self._context.info(f"Reading continues through the {now} endpoint, {after}.")
            self._on_recovery()

    def close(self) -> None:
        """Kills the readers."""
        self._loader.close()

    def _sync_controls(self) -> bool:
        """Passes the run's endpoint on to the readers; True when the run is to stop."""
        self._poll_stop()
        self._loader.switch.endpoint = self._context.controls.endpoint
        return self._context.controls.stopping.is_set()

    def _on_reader_lost(self, reason: str, *, last_try: bool) -> bool:
        """A reader died or hung: by itself, or over an endpoint that does not answer. True as in `_failed`."""
        if self._probe(self._context.controls.endpoint, self._first_key) is not None:
            return self._on_batch_failed(reason, self._first_key, last_try=True)
        if last_try:
            self._give_up(reason, "The machine may be out of memory, or the connector may crash: see its log.")
            return True
        self._context.warn(reason, "The batch is retried.")
        return False

    def _on_batch_failed(self, reason: str, key: str, *, last_try: bool) -> bool:
        """Falls back, waits, pauses or raises, as set; True when the count of attempts restarts.

        `key` is that of the object that could not be read.
        """
        context = self._context
        self._failed_through = kind = context.controls.endpoint
        error = self._probe(kind, key)
        message = error.message if error else f"A batch could not be read through the {kind} endpoint: {reason}"
        remedy = error.remedy if error else "Run `ossconsole doctor`; the connector's log may have the reason."
        if not last_try:
            self._context.warn(f"{message} Retrying.", remedy)
            return False
        other = kind.other
        may_fall_back = context.settings.fall_back and not self._fell_back and context.profile.endpoint(other)
        if may_fall_back and self._probe(other, key) is None:
            self._fell_back = True
            self._context.warn(message, remedy)
            context.switch(other, reason=f"the {kind} endpoint failed")
            return True
        lasting = error is not None and not error.retriable
        if lasting and key != self._first_key and self._probe(kind, self._first_key) is None:
            self._give_up(f"{message} The endpoint delivers other objects.", remedy)
            return True
        correctable = context.interactive and lasting
        if self._has_read and not correctable and self._wait_for_endpoint(kind, message, remedy):
            return True
        self._give_up(message, remedy)
        return True

    def _wait_for_endpoint(self, kind: EndpointKind, message: str, remedy: str) -> bool:
        """Waits until the endpoint answers or was switched; False when that takes longer than `patience_s`."""
        context = self._context
        assert self._failing_since is not None  # noqa: S101 - a batch has failed
        until = self._failing_since + context.settings.patience_s
        if time.monotonic() >= until:
            return False
        self._context.warn(f"{message} Waiting at most {until - time.monotonic():.0f} s for it.", remedy)
        while not context.controls.stopping.wait(min(self._probe_wait_s, max(0.0, until - time.monotonic()))):
            self._probe_wait_s = min(_MAX_PROBE_S, self._probe_wait_s * 1.5)
            self._on_pause()
            if context.controls.endpoint is not kind or self._probe(kind, self._first_key) is None:
                return True
            if time.monotonic() >= until:
                return False
        return True

    def _give_up(self, message: str, remedy: str) -> None:
        """Pauses an interactive run. Raises ConsoleError in any other."""
        if not self._context.interactive:
            raise ConsoleError(message, remedy=remedy)
        self._pause(message, remedy)

    def _pause(self, message: str, remedy: str) -> None:
        context = self._context
        context.error(f"{message} The run is paused.", f"{remedy} Then resume.")
        context.pause_for_failure(self._on_pause)
        self._failing_since = None

    def _verify_missing(self, batch: Batch) -> str:
        """Why a sample reported as missing may exist, "" when all are missing.

        The connector also reports ENOENT when the endpoint's name cannot be resolved (seen with 1.2.3).
        """
        for sample in batch.bad:
            if sample.reason == MISSING:
                error = self._probe_object(batch.endpoint, self._data.object_of(str(batch.request.split), sample.row))
                if error is None or error.code != "NoSuchKey":
                    return error.message if error else f"{sample.key} was not found, but it exists"
        return ""

    @property
    def _first_key(self) -> str:
        """The object that is read to find out whether an endpoint answers."""
        return self._data.object_of(TRAIN, 0)

    def _probe(self, kind: EndpointKind, key: str) -> StorageError | None:
        """The error of the same read through oss2, with OSS's code and request id; None when the endpoint answers.

        It also answers where the object was deleted since the list was read.
        """
        error = self._probe_object(kind, key)
        return None if error is not None and error.code == "NoSuchKey" else error

    def _probe_object(self, kind: EndpointKind, key: str) -> StorageError | None:
        store = ObjectStore(
            self._context.profile, self._context.credentials, kind, timeout_s=_PROBE_TIMEOUT_S, retry=NO_RETRY
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
