"""The batch source: the loader, with what the user wants done when an endpoint or a reader fails."""

from __future__ import annotations

import time
from collections.abc import Callable

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import Manifest, object_key
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.telemetry import events
from ossconsole.training.connector import ConnectorSettings
from ossconsole.training.loader import Batch, BatchLoader, LoaderError
from ossconsole.training.plan import BatchRequest, Plan
from ossconsole.training.run import TrainingRun

FAILURES = 2
"""Failed tries of one batch, each with retries of its own, before the run falls back, pauses or ends."""

_EXPLAIN_TIMEOUT_S = 5.0


class BatchSource:
    """Gives the plan's batches whole, and keeps the endpoint in step with the run's switch.

    A batch that fails is asked for again, so that no sample is lost. After FAILURES tries the run falls back to the
    other endpoint if it answers and the settings allow it; else it pauses where somebody can act, and ends otherwise.
    """

    def __init__(
        self,
        run: TrainingRun,
        connector: ConnectorSettings,
        manifest: Manifest,
        plan: Plan,
        *,
        start: int,
        pin: bool,
        on_pause: Callable[[], None],
    ) -> None:
        self._run = run
        self._manifest = manifest
        self._plan = plan
        self._on_pause = on_pause
        self._loader = BatchLoader(
            connector, manifest, plan, run.settings, start=start, pin=pin, interrupted=self._interrupted
        )
        self.retries = 0

    def next(self) -> Batch | None:
        """The next batch, None at the end of the plan or when the run is stopped. Raises ConsoleError."""
        failures = 0
        while not self._interrupted():
            try:
                batch = self._loader.next()
            except LoaderError as error:
                reason, request = error.message, None
            else:
                if batch is None or not batch.failed:
                    self.retries += batch.retries if batch else 0
                    return batch
                reason, request = batch.failed, batch.request
                self._loader.ask_again(batch)
            failures += 1
            self.retries += 1
            if self._handle(reason, request, last_try=failures >= FAILURES):
                failures = 0
        return None

    def close(self) -> None:
        """Ends the readers."""
        self._loader.close()

    def _interrupted(self) -> bool:
        """Hands the run's endpoint on to the readers; True when the run is to stop."""
        self._loader.switch.endpoint = self._run.controls.endpoint
        return self._run.controls.stopping.is_set()

    def _handle(self, reason: str, request: BatchRequest | None, *, last_try: bool) -> bool:
        """Does what the settings say about a failed batch; True when the count of tries starts anew."""
        run = self._run
        kind = run.controls.endpoint
        error = self._explain(kind, request)
        message = error.message if error else f"A batch could not be read through the {kind} endpoint: {reason}"
        remedy = error.remedy if error else "The connector's log tells more; `ossconsole doctor` checks the endpoint."
        if not last_try:
            self._warn(f"{message} Trying again.", remedy)
            return False
        other = kind.other
        if run.settings.fall_back and run.profile.endpoint(other) and self._explain(other, request) is None:
            self._warn(message, remedy)
            run.switch(other, reason=f"the {kind} endpoint failed")
            return True
        if not run.attended:
            raise ConsoleError(message, remedy=remedy)
        self._pause(message, remedy)
        return True

    def _pause(self, message: str, remedy: str) -> None:
        run = self._run
        run.emit(
            events.ErrorEvent(
                time=time.time(),
                message=f"{message} The run is paused.",
                remedy=f"{remedy} Then resume.",
                step=run.step,
            )
        )
        run.pause()
        self._on_pause()

    def _warn(self, message: str, remedy: str) -> None:
        self._run.emit(events.WarningEvent(time=time.time(), message=message, remedy=remedy, step=self._run.step))

    def _explain(self, kind: EndpointKind, request: BatchRequest | None) -> StorageError | None:
        """The same read through oss2, which tells OSS's code and request id; None when it succeeds."""
        request = request or next(self._plan.requests())
        sample = self._manifest.splits[str(request.split)][int(request.indices[0])]
        store = ObjectStore(self._run.profile, self._run.credentials, kind, timeout_s=_EXPLAIN_TIMEOUT_S, attempts=1)
        try:
            store.get_range(object_key(self._run.profile.dataset_prefix, sample.key), 0, 1)
        except StorageError as error:
            return error
        finally:
            store.close()
        return None
