"""Creates the job of an upload, or plans it: what it would do, by the same rules, without sending anything."""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
import statistics
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import sample_bytes
from ossconsole.dataset.manifest import Unused, UnusedCounter
from ossconsole.dataset.shards.build import ShardPlanner
from ossconsole.dataset.shards.index import BLOCK
from ossconsole.dataset.shards.upload import ShardUpload, known_shards
from ossconsole.dataset.source.files import PlannedSample, SkippedFile
from ossconsole.dataset.source.layout import Layout
from ossconsole.dataset.upload.job import UploadJob, UploadSettings, check_prefix
from ossconsole.dataset.upload.journal import Journal, PlanAction, journal_path
from ossconsole.dataset.upload.samples import SampleUpload
from ossconsole.dataset.upload.worker import Task, handle
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import Failure
from ossconsole.storage.jobs.threads import Cancelled
from ossconsole.storage.retry import Wait

STORAGE_CNY_PER_GB_MONTH = 0.12
"""List price of Standard LRS in the regions of mainland China (https://www.aliyun.com/price/product#/oss/detail); in
CNY as that of the accelerator. Other regions differ, hence *estimated*."""

_STRANGE = "it has objects that no upload of this machine wrote; none of them is replaced"
_KEPT_NOTES = 200
_TIMED_IMAGES = 32
_TIMED_S = 0.5
_USUAL_RATIO = 4 / 3
_REPORT_EVERY = 500


class UploadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an upload would do. `files` = `to_send + unchanged + ignored + lost`.

    `used_classes` of the `classes` have samples. `ignored` are not used, see `unused`; `lost` should be samples but
    cannot, `conflicts` of them because other files have their keys or names. `removed` samples are in the dataset and
    not in the source. `bytes_to_send` and `stored_bytes` are
    exact, or (`bytes_estimated`) an estimate: for image-jpeg from a few images, or where the ratio is kept or shards
    are built. `prepare_s` is an estimate from the processor time of a few images, without sending; None when nothing
    needs preparing. `notes` are the first lost files with reasons. `layout` says how the source is understood,
    `cautions` which names may be a mistake. `problem` says why the upload would fail, and the remedy.
    """

    files: int = 0
    to_send: int = 0
    unchanged: int = 0
    ignored: int = 0
    lost: int = 0
    conflicts: int = 0
    removed: int = 0
    samples: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    used_classes: int = 0
    source_bytes: int = 0
    bytes_to_send: int = 0
    stored_bytes: int = 0
    bytes_estimated: bool = False
    prepare_s: float | None = None
    cny_per_month: float = 0.0
    notes: tuple[Failure, ...] = ()
    unused: tuple[Unused, ...] = ()
    layout: str = ""
    cautions: tuple[Unused, ...] = ()
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
    """Plans the whole source. `on_progress` is called with the number of files so far; setting `stop` raises Cancelled.

    Raises ConsoleError when the source, the settings or the dataset prefix cannot be used.
    """
    settings.preprocessing.check()
    profile = settings.with_prefix(profile)
    layout = settings.layout()
    stop = stop or threading.Event()

    def pause(wait: Wait) -> None:
        if stop.wait(wait.seconds):
            raise Cancelled

    store, prefix = ObjectStore(profile, credentials, pause=pause), profile.dataset_prefix
    with tempfile.TemporaryDirectory(prefix="ossconsole-plan-") as folder, contextlib.closing(store):
        scratch, suffix = Path(folder) / "journal.sqlite", settings.preprocessing.suffix
        planner = _Planner(layout, settings)
        if settings.per_shard:
            existing = known_shards(store, prefix, settings)
            with contextlib.closing(ShardPlanner(scratch, settings.preprocessing, settings.per_shard)) as shards:
                planner.run(lambda item: shards.add(item, suffix), stop, on_progress)
                found = (existing.find(shard_plan) for shard_plan in shards.plans())
                return planner.result(unchanged=sum(len(shard.unpack()) for shard in found if shard is not None))
        state = check_prefix(store, prefix, settings)
        _copy_journal(journal_path(profile, prefix), scratch)
        config = settings.preprocessing.digest
        with contextlib.closing(Journal(scratch, source=str(settings.source), recipe=config)) as journal:
            strange = not state.empty and not state.has_manifest and (journal.is_empty or journal.beside_others)
            planner.run(lambda item: journal.plan(item, suffix).action, stop, on_progress, journal.keep_lost)
            cautions = Unused.of("prefix", _STRANGE, [store.uri(prefix)] if strange else ())
            plan = planner.result()
            return msgspec.structs.replace(
                plan,
                removed=0 if state.empty else sum(1 for _ in journal.removed()),
                cautions=(*cautions, *plan.cautions),
            )


def _copy_journal(source: Path, target: Path) -> None:
    """Makes a copy that planning may write to, unless the journal does not exist or cannot be read."""
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as original,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            original.backup(copy)
    except sqlite3.Error:  # also where the journal does not exist
        target.unlink(missing_ok=True)


class _Planner:
    def __init__(self, layout: Layout, settings: UploadSettings) -> None:
        self._layout = layout
        self._settings = settings
        self._counts: Counter[str] = Counter()
        self._samples: Counter[str] = Counter()
        self._classes: set[str] = set()
        self._unused = UnusedCounter()
        self._notes: list[Failure] = []
        self._chance = random.Random(0)  # noqa: S311  no secret
        self._new: list[PlannedSample] = []
        self._known: list[PlannedSample] = []

    def run(
        self,
        decide: Callable[[PlannedSample], PlanAction],
        stop: threading.Event,
        on_progress: Callable[[int], None] | None,
        on_lost: Callable[[SkippedFile], None] = lambda _: None,
    ) -> None:
        """Counts every file of the source; `on_lost` gets those that are lost. Raises Cancelled, ConsoleError."""
        for item in self._layout.items():
            self._counts["files"] += 1
            if self._counts["files"] % _REPORT_EVERY == 0:
                if stop.is_set():
                    raise Cancelled
                if on_progress:
                    on_progress(self._counts["files"])
            if not isinstance(item, SkippedFile):
                self._add(item, decide(item))
            elif item.lost:
                self._lose(item.path, item.reason)
                on_lost(item)
            else:
                self._unused.add(item.path, item.reason)

    def _add(self, item: PlannedSample, action: PlanAction) -> None:
        if action in {PlanAction.CONFLICT, PlanAction.REPEATED}:
            self._counts["conflicts"] += 1
            self._lose(item.path, action.reason)
            return
        self._samples[item.split] += 1
        self._classes.add(item.class_name)
        self._counts["source_bytes"] += item.size
        if action is PlanAction.UNCHANGED:
            self._counts["unchanged"] += 1
            self._keep(self._known, item, self._counts["unchanged"])
            return
        self._counts["to_send"] += 1
        self._counts["bytes_to_send"] += item.size
        self._keep(self._new, item, self._counts["to_send"])

    def _keep(self, kept: list[PlannedSample], item: PlannedSample, count: int) -> None:
        """Keeps a random sample of the `count` images so far."""
        if len(kept) < _TIMED_IMAGES:
            kept.append(item)
        elif (place := self._chance.randrange(count)) < _TIMED_IMAGES:
            kept[place] = item

    def _lose(self, path: str, reason: str) -> None:
        self._counts["lost"] += 1
        if len(self._notes) < _KEPT_NOTES:
            self._notes.append(Failure(path, reason))

    def result(self, unchanged: int = 0) -> UploadPlan:
        """The plan; `unchanged` of the samples to send are in the bucket after all."""
        settings, counts = self._settings, self._counts
        counts["unchanged"] += unchanged
        counts["to_send"] -= unchanged
        prepare_s, mean_bytes = self._prepare_some()
        samples = sum(self._samples.values())
        to_send, stored = mean_bytes * counts["to_send"], mean_bytes * samples
        if settings.originals:
            to_send, stored = counts["bytes_to_send"], counts["source_bytes"]
        if settings.per_shard and samples:
            stored = samples * _in_tar(stored / samples)
            to_send = stored * counts["to_send"] / samples
        prepared = settings.format.encoded and not settings.originals
        classes = self._layout.label_order(self._classes)
        return UploadPlan(
            files=counts["files"],
            to_send=counts["to_send"],
            unchanged=counts["unchanged"],
            ignored=self._unused.count,
            lost=counts["lost"],
            conflicts=counts["conflicts"],
            samples=dict(self._samples),
            classes=classes,
            used_classes=len(self._classes),
            source_bytes=counts["source_bytes"],
            bytes_to_send=round(to_send),
            stored_bytes=round(stored),
            bytes_estimated=prepared or settings.keep_ratio or bool(settings.per_shard),
            prepare_s=prepare_s,
            cny_per_month=stored / 1e9 * STORAGE_CNY_PER_GB_MONTH,
            notes=tuple(self._notes),
            unused=(*self._unused.groups(), *self._layout.unused),
            layout=self._layout.describe(),
            cautions=self._layout.cautions,
            problem="" if self._samples else f"No image becomes a sample. {self._layout.advice}",
        )

    def _prepare_some(self) -> tuple[float | None, float]:
        """Seconds to prepare everything, and the mean bytes of a sample, both from a few images.

        The time is that of the processor: the machine's other load varies. It is None when nothing needs preparing.
        """
        settings = self._settings
        fixed = 0 if settings.format.encoded else sample_bytes(settings.format, settings.size, self._usual_width)
        to_send = self._counts["to_send"]
        images = self._new or self._known
        if not images or not (to_send or settings.format.encoded):
            return None, fixed
        _prepare(images[0], settings)  # the first one pays for the imports
        began, seconds, sizes = time.perf_counter(), list[float](), list[int]()
        for item in images:
            spent, size = _prepare(item, settings)
            seconds.append(spent)
            sizes += [size] if size else []
            if time.perf_counter() - began > _TIMED_S:
                break
        mean_bytes = fixed or (statistics.mean(sizes) if sizes else 0)
        return statistics.median(seconds) * to_send / settings.worker_count if to_send else None, mean_bytes

    @property
    def _usual_width(self) -> int:
        settings = self._settings
        return round(settings.size * _USUAL_RATIO) if settings.keep_ratio else settings.size


def _in_tar(size: float) -> int:
    """The bytes of a sample of `size` bytes as a member of a tar."""
    return BLOCK + math.ceil(size / BLOCK) * BLOCK


def _prepare(item: PlannedSample, settings: UploadSettings) -> tuple[float, int]:
    """Prepares an image; returns the seconds of processor time, and the sample's bytes: 0 for an unreadable one."""
    began = time.thread_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, payload = handle(Task(item.key, item.size, item.location), settings.preprocessing)
    return time.thread_time() - began, len(payload)
