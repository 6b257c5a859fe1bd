"""Plan: what an upload would do, found by the same rules and without sending anything."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import sample_bytes
from ossconsole.dataset.manifest import Unused, UnusedCounter
from ossconsole.dataset.shards.build import ExistingShards, ShardPlanner
from ossconsole.dataset.shards.index import BLOCK, padding
from ossconsole.dataset.shards.upload import ShardUpload, known_shards
from ossconsole.dataset.source.layout import Layout, PlannedSample, SkippedFile
from ossconsole.dataset.upload.job import UploadJob, UploadSettings, check_prefix
from ossconsole.dataset.upload.journal import Journal, PlanAction, journal_path
from ossconsole.dataset.upload.samples import SampleUpload
from ossconsole.dataset.upload.worker import Task, handle
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import Failure
from ossconsole.storage.jobs.threads import Cancelled
from ossconsole.storage.retry import Wait

STORAGE_USD_PER_GB_MONTH = 0.0173
"""Standard LRS, the example of https://www.alibabacloud.com/help/en/oss/product-overview/storage-fees (2024-12-20)."""

_KEPT_NOTES = 200
_TRIED_PICTURES = 8
_TRIED_S = 0.5
_USUAL_RATIO = 4 / 3
_REPORT_EVERY = 500


class UploadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an upload would do. `files` = `to_send + unchanged + ignored + lost`.

    `ignored` are not used, see `unused`; `lost` should be samples but cannot, `conflicts` of them because other files
    have their keys or names. `bytes_to_send` is exact, an estimate where the ratio is kept or shards are built.
    `prepare_s` is an estimate from the processor time of a few of the pictures, sending not counted; None when there is
    nothing to prepare. `notes` are the first lost files, and why. `problem` says why the upload would fail, and what to
    do.
    """

    files: int = 0
    to_send: int = 0
    unchanged: int = 0
    ignored: int = 0
    lost: int = 0
    conflicts: int = 0
    samples: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    source_bytes: int = 0
    bytes_to_send: int = 0
    stored_bytes: int = 0
    prepare_s: float | None = None
    usd_per_month: float = 0.0
    notes: tuple[Failure, ...] = ()
    unused: tuple[Unused, ...] = ()
    problem: str = ""


def create_upload(profile: Profile, credentials: CredentialSource, settings: UploadSettings) -> UploadJob:
    """The job that uploads with these settings, not started yet. Raises SettingsError when they make no sense."""
    return (ShardUpload if settings.per_shard else SampleUpload)(profile, credentials, settings)


def plan_upload(
    profile: Profile,
    credentials: CredentialSource,
    settings: UploadSettings,
    *,
    stop: threading.Event | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> UploadPlan:
    """Goes through the whole source; `on_progress` hears the number of files seen, `stop` raises Cancelled.

    Raises ConsoleError when the source, the settings or the dataset prefix are no good.
    """
    settings.preprocessing.check()
    profile = settings.with_prefix(profile)
    layout = Layout(settings.source)
    stop = stop or threading.Event()

    def pause(wait: Wait) -> None:
        if stop.wait(wait.seconds):
            raise Cancelled

    store, prefix = ObjectStore(profile, credentials, pause=pause), profile.dataset_prefix
    with tempfile.TemporaryDirectory(prefix="ossconsole-plan-") as folder, contextlib.closing(store):
        scratch = Path(folder) / "journal.sqlite"
        rules: _Rules
        if settings.per_shard:
            rules = _ShardRules(scratch, settings, known_shards(store, prefix, settings))
        else:
            check_prefix(store, prefix, settings)
            _copy_journal(journal_path(profile, prefix), scratch)
            rules = _SampleRules(scratch, settings)
        with contextlib.closing(rules):
            return _Planner(layout, settings, rules).plan(stop, on_progress)


def _copy_journal(source: Path, target: Path) -> None:
    """A copy that planning may write to; none when there is no journal or it cannot be read."""
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as original,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            original.backup(copy)
    except sqlite3.Error:  # the first of them where there is no journal
        target.unlink(missing_ok=True)


class _Rules(Protocol):
    """What an upload would do with each sample."""

    def rule(self, item: PlannedSample) -> PlanAction: ...

    def unchanged(self) -> int:
        """How many of those to be sent are in the bucket after all; told once all of them are known."""

    def close(self) -> None: ...


class _SampleRules:
    def __init__(self, path: Path, settings: UploadSettings) -> None:
        self._suffix = settings.format.suffix
        self._journal = Journal(path, source=str(settings.source), recipe=settings.preprocessing.digest)

    def rule(self, item: PlannedSample) -> PlanAction:
        return self._journal.plan(item, self._suffix).action

    def unchanged(self) -> int:
        return 0

    def close(self) -> None:
        self._journal.close()


class _ShardRules:
    def __init__(self, path: Path, settings: UploadSettings, known: ExistingShards) -> None:
        self._suffix = settings.format.suffix
        self._known = known
        self._planner = ShardPlanner(path, settings.preprocessing, settings.per_shard)

    def rule(self, item: PlannedSample) -> PlanAction:
        return self._planner.add(item, self._suffix)

    def unchanged(self) -> int:
        found = (self._known.find(shard_plan) for shard_plan in self._planner.plans())
        return sum(len(shard.unpack()) for shard in found if shard is not None)

    def close(self) -> None:
        self._planner.close()


class _Planner:
    def __init__(self, layout: Layout, settings: UploadSettings, rules: _Rules) -> None:
        self._layout = layout
        self._settings = settings
        self._rules = rules
        self._counts: Counter[str] = Counter()
        self._samples: Counter[str] = Counter()
        self._classes: set[str] = set()
        self._unused = UnusedCounter()
        self._notes: list[Failure] = []
        self._tried: list[PlannedSample] = []

    def plan(self, stop: threading.Event, on_progress: Callable[[int], None] | None) -> UploadPlan:
        for item in self._layout.items():
            self._counts["files"] += 1
            if self._counts["files"] % _REPORT_EVERY == 0:
                if stop.is_set():
                    raise Cancelled
                if on_progress:
                    on_progress(self._counts["files"])
            if not isinstance(item, SkippedFile):
                self._sample(item)
            elif item.lost:
                self._lose(item.path, item.reason)
            else:
                self._unused.add(item.path, item.reason)
        unchanged = self._rules.unchanged()
        self._counts["unchanged"] += unchanged
        self._counts["to_send"] -= unchanged
        return self._result()

    def _sample(self, item: PlannedSample) -> None:
        action = self._rules.rule(item)
        if action in {PlanAction.CONFLICT, PlanAction.REPEATED}:
            self._counts["conflicts"] += 1
            self._lose(item.path, action.reason)
            return
        self._samples[item.split] += 1
        self._classes.add(item.class_name)
        self._counts["source_bytes"] += item.size
        if action is PlanAction.UNCHANGED:
            self._counts["unchanged"] += 1
            return
        self._counts["to_send"] += 1
        if len(self._tried) < _TRIED_PICTURES:
            self._tried.append(item)

    def _lose(self, path: str, reason: str) -> None:
        self._counts["lost"] += 1
        if len(self._notes) < _KEPT_NOTES:
            self._notes.append(Failure(path, reason))

    def _result(self) -> UploadPlan:
        settings, counts = self._settings, self._counts
        width = round(settings.size * _USUAL_RATIO) if settings.keep_ratio else settings.size
        each = sample_bytes(settings.format, settings.size, width)
        if settings.per_shard:
            each += BLOCK + len(padding(each))
        stored = each * sum(self._samples.values())
        return UploadPlan(
            files=counts["files"],
            to_send=counts["to_send"],
            unchanged=counts["unchanged"],
            ignored=self._unused.count,
            lost=counts["lost"],
            conflicts=counts["conflicts"],
            samples=dict(self._samples),
            classes=self._layout.label_order(self._classes),
            source_bytes=counts["source_bytes"],
            bytes_to_send=each * counts["to_send"],
            stored_bytes=stored,
            prepare_s=self._estimate(),
            usd_per_month=stored / 1e9 * STORAGE_USD_PER_GB_MONTH,
            notes=tuple(self._notes),
            unused=(*self._unused.groups(), *self._layout.unused),
            problem="" if self._samples else f"No picture becomes a sample. {self._layout.advice}",
        )

    def _estimate(self) -> float | None:
        """Seconds to prepare everything, from the processor time of a few pictures: other work here comes and goes."""
        if not self._tried or not self._counts["to_send"]:
            return None
        self._prepare(self._tried[0])  # the first one pays for the imports
        began, seconds = time.perf_counter(), list[float]()
        for item in self._tried:
            seconds.append(self._prepare(item))
            if time.perf_counter() - began > _TRIED_S:
                break
        return statistics.median(seconds) * self._counts["to_send"] / self._settings.worker_count

    def _prepare(self, item: PlannedSample) -> float:
        """Prepares a picture, and gives the seconds of processor time that it took."""
        began = time.thread_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            handle(Task(item.key, item.size, item.location), self._settings.preprocessing)
        return time.thread_time() - began
