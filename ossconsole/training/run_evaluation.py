"""EvaluationJob: evaluates a checkpoint of a run in the background, and saves the result beside the run's record.

No torch here: the job's thread imports it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.dataset.labels import LabelFiles
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import Job
from ossconsole.telemetry import events
from ossconsole.telemetry.predictions import save_predictions
from ossconsole.telemetry.runs import RecordError, read_events
from ossconsole.training.settings import TrainSettings

WORST = 24
"""Misclassified images that are kept with their thumbnails."""


def _run_of(record: Path) -> tuple[events.Run, list[str]]:
    """The run of a record, and the keys of its checkpoints to evaluate: the best one, then the newest."""
    run: events.Run | None = None
    best = newest = ""
    for event in read_events(record):
        if isinstance(event, events.Run):
            run = run or event
        elif isinstance(event, events.Checkpoint):
            newest, best = event.key, event.key if event.best_key else best
    if run is None:
        raise RecordError("The record has no start of a run.", remedy="`ossconsole status` names the newest run.")
    return run, list(dict.fromkeys(key for key in (best, newest) if key))


class EvaluationJob(Job):
    """Evaluates the best checkpoint of a run, else its newest; its items are the validation images.

    Raises ConsoleError where the run cannot be evaluated with the profile.
    """

    def __init__(self, record: Path, profile: Profile, credentials: CredentialSource) -> None:
        run, keys = _run_of(record)
        super().__init__(f"Evaluate {run.run}", threads=1)
        used, given = (f"oss://{each.bucket} ({each.region})" for each in (run, profile))
        if used != given:
            raise ConsoleError(
                f"The run used {used}, and the profile has {given}.",
                remedy=f"Use the profile {run.profile}." if run.profile else "Use the profile of the run.",
            )
        if not keys:
            raise ConsoleError("The run wrote no checkpoint that could be evaluated.")
        self.record = record
        self._run_id = run.run
        self._run_settings = run.settings
        self._keys = keys
        prefix = run.dataset_prefix or profile.dataset_prefix
        self._profile = msgspec.structs.replace(profile, dataset_prefix=prefix)
        self._credentials = credentials
        self._done = 0

    def refuse_others(self, what: str) -> None:
        """Raises ConsoleError while this evaluation is alive: `what`, such as "a run", would share its GPU."""
        if self.alive:
            raise ConsoleError(
                f"The run {self._run_id} is being evaluated, and {what} would share the processor and the GPU with it.",
                remedy="Wait for its end, or cancel it: press 2 for Browse, then J.",
            )

    def work(self) -> None:
        """Reads the checkpoint, evaluates it, and saves the result. Raises Cancelled or ConsoleError."""
        self.note = "reading the checkpoint"
        from ossconsole.training import data, evaluation
        from ossconsole.training.compute.weights_file import read_weights

        given = self._run_settings
        settings = TrainSettings(workers=2, device=str(given.get("device", "auto")))
        with contextlib.closing(ObjectStore(self._profile, self._credentials, pause=self.wait_to_retry)) as store:
            uri, content = self._first_present(store)
            ready = evaluation.settings_for(read_weights(content, uri), uri, settings)
            self.check_cancelled()
            self.note = "reading the list of the dataset"
            dataset = data.training_data(
                store,
                self._profile.dataset_prefix,
                val_split=float(given.get("val_split", 0.1)),
                seed=ready.settings.seed,
                labels=LabelFiles(
                    val_labels=str(given.get("val_labels", "")), class_index=str(given.get("class_index", ""))
                ),
                on_progress=lambda _listed: self.check_cancelled(),
            )
        self.note = ""
        result = evaluation.evaluate(
            ready, dataset, self._profile, self._credentials, worst=WORST, on_progress=self._report_progress
        )
        save_predictions(self.record, result)

    def _first_present(self, store: ObjectStore) -> tuple[str, bytes]:
        """URI and bytes of the first of the keys that is in the bucket. Raises ConsoleError where none is."""
        from ossconsole.training.checkpoints.checkpoint import fetch_uri

        uri = next((store.uri(key) for key in self._keys if store.exists(key)), "")
        if uri:
            return uri, fetch_uri(store, uri)
        raise ConsoleError(
            f"The bucket has no checkpoint of the run any more: {store.uri(self._keys[0])} was deleted.",
            remedy="`ossconsole evaluate CHECKPOINT` evaluates another one.",
        )

    def _report_progress(self, done: int, total: int) -> None:
        """Counts images as done in the job's progress. Raises Cancelled."""
        self.check_cancelled()
        if not self._done:
            self.tracker.add_total(total, 0)
            self.tracker.totals_known()
        for number in range(self._done, done):
            self.tracker.complete(number, 0)
        self._done = done
