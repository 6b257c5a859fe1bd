"""ShardUpload: a dataset as tar files of many samples, each with the index that the connector's `from_tar` reads."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import make_folder
from ossconsole.config.profiles import Profile
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import SHARDS_NAME, object_key
from ossconsole.dataset.shards.build import (
    ExistingShards,
    PlannedMember,
    ShardBuilder,
    ShardPlan,
    ShardPlanner,
    ShardUploadState,
    append_resume_log,
    is_shard_name,
    is_whole,
    list_objects,
)
from ossconsole.dataset.shards.index import PackedShard, PackedShardList, ShardSample
from ossconsole.dataset.source.layout import Layout
from ossconsole.dataset.upload.job import PrefixTakenError, UploadJob, UploadSettings, check_prefix
from ossconsole.dataset.upload.journal import JournalError, JournalLock, PlanAction, journal_path
from ossconsole.dataset.upload.pipeline import LAST_ANSWERS_S, MAX_DENIED
from ossconsole.dataset.upload.progress import REJECTED, Counts, Phase
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.job import Failure
from ossconsole.storage.jobs.threads import ThreadPool
from ossconsole.storage.multipart import ResumableUpload
from ossconsole.storage.objects import ObjectSummary
from ossconsole.storage.retry import CircuitBreaker

MAX_PARALLEL_PARTS = 8  # of 8 MiB each
_RESUME_LOG = "sent.jsonl"


def shards_folder(store: ObjectStore, prefix: str) -> Path:
    """Where tars are built. It never changes, so that the upload of a tar that was partly sent resumes."""
    return journal_path(store.profile, prefix).with_suffix(".shards")


def known_shards(store: ObjectStore, prefix: str, settings: UploadSettings) -> ExistingShards:
    """The shards below the prefix. Raises PrefixTakenError for another kind of dataset, StorageError, OSError."""
    if check_prefix(store, prefix, settings, shards=True).has_manifest:
        raise PrefixTakenError(
            f"{store.uri(prefix)} holds a dataset of single samples.",
            remedy="Use another prefix for the shards with --dataset-prefix.",
        )
    known = ExistingShards(store, prefix, settings.preprocessing, shards_folder(store, prefix) / _RESUME_LOG)
    listed = known.list
    if listed is not None and (listed.format, listed.size) != (settings.format, settings.size):
        raise PrefixTakenError(
            f"{store.uri(prefix)} holds shards of {listed.format.at_size(listed.size)}.",
            remedy="Use another prefix for these with --dataset-prefix.",
        )
    return known


class ShardUpload(UploadJob):
    """Plans, builds, sends, verifies and lists tars; complete ones in the bucket are not sent again."""

    max_parallelism = MAX_PARALLEL_PARTS

    def __init__(self, profile: Profile, credentials: CredentialSource, settings: UploadSettings) -> None:
        super().__init__(profile, credentials, settings)
        self._folder = Path()
        self._labels: dict[str, int] = {}
        self._done: list[PackedShard] = []
        self._kept: set[str] = set()
        self._objects: dict[str, ObjectSummary] = {}
        self._states: set[ShardUploadState] = set()  # only those under way: each has all rows of its tar
        self._log_lock = threading.Lock()
        self._breaker = CircuitBreaker(max_denied=MAX_DENIED)

    def work(self) -> None:
        """Uploads all shards and their list. Raises Cancelled, ConsoleError."""
        layout = self.open_source()
        if not layout.countable:
            raise ConsoleError(
                "Shards need a source that can be read in any order.", remedy="Unpack the archive first."
            )
        self._folder = shards_folder(self.store, self.prefix)
        try:
            make_folder(self._folder)
            with contextlib.closing(JournalLock(journal_path(self.profile, self.prefix))):
                self._upload(layout)
        except (sqlite3.Error, OSError) as error:
            raise JournalError(
                f"The shards cannot be built in {self._folder}: {error}.",
                remedy="Free space on its disk (or set OSSCONSOLE_STATE_DIR to another) and run the upload again.",
            ) from error

    def _upload(self, layout: Layout) -> None:
        settings = self.settings
        known = known_shards(self.store, self.prefix, settings)
        planner = ShardPlanner(self._folder / "plan.sqlite", settings.preprocessing, settings.per_shard)
        with contextlib.closing(planner):
            classes = self._read(layout, planner)
            self._labels = {name: label for label, name in enumerate(classes)}
            self.stats.phase = Phase.UPLOADING
            with ShardBuilder(self._folder, self) as builder:
                self._send_all(planner, builder, known)
        self._verify()
        self._finish(classes, layout)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, layout: Layout, planner: ShardPlanner) -> tuple[str, ...]:
        """Plans every file; returns the classes in label order."""
        suffix = self.settings.preprocessing.suffix
        classes: set[str] = set()
        for item in self.samples_of(layout):
            if (action := planner.add(item, suffix)) is PlanAction.SEND:
                classes.add(item.class_name)
            else:
                self.record_failure(Failure(item.path, action.reason), REJECTED)
        return layout.label_order(classes)

    # Sending

    def _send_all(self, planner: ShardPlanner, builder: ShardBuilder, known: ExistingShards) -> None:
        """Builds one tar after the other while threads send the parts of earlier ones."""
        self.sender_pool = ThreadPool(
            self._send_part, self.gate, self.parallelism, limit=self.parallelism, name="upload-send"
        )
        tasks = itertools.chain.from_iterable(self._tasks(shard_plan, builder, known) for shard_plan in planner.plans())
        try:
            self.sender_pool.run(tasks, LAST_ANSWERS_S)
        finally:
            for state in self._states.copy():
                state.close()

    def _tasks(
        self, shard_plan: ShardPlan, builder: ShardBuilder, known: ExistingShards
    ) -> Iterator[tuple[ShardUploadState, int]]:
        """The parts to send of one tar; none when the bucket has it."""
        self.gate.check()
        earlier = known.find(shard_plan)
        if earlier is not None and self._keep(shard_plan, earlier, builder):
            return
        built = builder.build(shard_plan)
        if not built.members:
            built.path.unlink()
            return
        there = known.objects.get(shard_plan.tar)
        if there is not None and there.size == built.size and self._crc64(shard_plan.tar) == built.crc64:
            # Sent completely by a run that was killed before it could record it.
            state = ShardUploadState(shard_plan, built, None)
            self._kept.add(shard_plan.tar)
            self._finish_shard(state)
            self.stats.add(Counts(unchanged=len(built.members)))
            return
        try:
            upload = ResumableUpload(self.store, built.path, object_key(self.prefix, shard_plan.tar))
        except StorageError as error:
            self._refused(ShardUploadState(shard_plan, built, None), error)
            return
        state = ShardUploadState(shard_plan, built, upload)
        self._states.add(state)
        for number in state.numbers:
            yield state, number

    def _keep(self, shard_plan: ShardPlan, earlier: PackedShard, builder: ShardBuilder) -> bool:
        """Counts a shard that is in the bucket; False when an image that it lacks can be prepared now."""
        samples = earlier.unpack()
        there = {sample.key for sample in samples}
        lacking = [row for row in shard_plan.rows if row.key not in there]
        errors = [(row, done.error) for row, done, _ in builder.prepare(lacking)]
        if not all(error for _, error in errors):
            return False
        for row, error in errors:
            self.record_failure(Failure(row.path, error))
        self.stats.add(Counts(unchanged=len(samples), by_plan=len(samples)))
        for row in shard_plan.rows:
            if row.key in there:
                self.stats.count_class(row.class_name)
        self._kept.add(earlier.tar)
        self._done.append(msgspec.structs.replace(earlier, samples=self._labelled(shard_plan.rows, samples)))
        return True

    def _labelled(self, rows: list[PlannedMember], samples: list[ShardSample]) -> msgspec.Raw:
        """The samples with the current labels of their classes."""
        labels = {row.key: self._labels[row.class_name] for row in rows}
        now = [msgspec.structs.replace(sample, label=labels[sample.key]) for sample in samples]
        return msgspec.Raw(msgspec.json.encode(now))

    def _send_part(self, task: tuple[ShardUploadState, int]) -> None:
        state, number = task
        if state.has_failed:
            return
        began = time.monotonic()
        try:
            with self.stats.sending():
                self.cap.acquire(state.part_bytes)
                passed = time.monotonic()
                size = state.send(number)
                self.stats.add_busy_time(capped=passed - began, send=time.monotonic() - passed)
                self.stats.add(state.part_sent(size))
                if state.claim():
                    state.complete()
                    self._finish_shard(state)
        except StorageError as error:
            self._refused(state, error)

    def _finish_shard(self, state: ShardUploadState) -> None:
        """The tar is in the bucket: sends its index and records both. Raises StorageError, OSError."""
        shard_plan, built = state.shard_plan, state.built
        self.store.put(object_key(self.prefix, shard_plan.index), built.index)
        tar, index = (self.store.head(object_key(self.prefix, key)) for key in (shard_plan.tar, shard_plan.index))
        shard = PackedShard(
            split=shard_plan.split,
            tar=shard_plan.tar,
            index=shard_plan.index,
            bytes=built.size,
            digest=shard_plan.digest,
            etag=tar.etag,
            crc64=str(tar.crc64 or ""),
            index_etag=index.etag,
            index_crc64=str(index.crc64 or ""),
            samples=self._labelled(shard_plan.rows, built.members),
        )
        with self._log_lock:
            append_resume_log(self._folder / _RESUME_LOG, shard)
        state.close()
        self._states.discard(state)
        built.path.unlink(missing_ok=True)
        self._done.append(shard)
        self._breaker.succeeded()

    def _refused(self, state: ShardUploadState, error: StorageError) -> None:
        """Records the samples of a tar that OSS refused. Raises the error when every other tar would be refused too."""
        self._breaker.check(error)
        if (change := state.fail()) is not None:
            what = f"{state.shard_plan.tar} ({counted(len(state.built.members), 'sample')})"
            self.record_failure(Failure(what, error.message, error.code, error.request_id), change)

    def _crc64(self, key: str) -> int | None:
        return self.store.head(object_key(self.prefix, key)).crc64

    # Afterwards

    def _verify(self) -> None:
        """Compares the bucket with what was sent; a missing tar is not listed, and its samples have failed."""
        self.stats.phase = Phase.VERIFYING
        self._objects = list_objects(self.store, self.prefix)
        for shard in list(self._done):
            if not is_whole(shard, self._objects, self._crc64):
                self._done.remove(shard)
                count = len(shard.unpack())
                failure = Failure(
                    f"{shard.tar} ({counted(count, 'sample')})", "uploaded, but missing from the bucket listing"
                )
                field = "unchanged" if shard.tar in self._kept else "uploaded"
                self.record_failure(failure, Counts(failed=count, **{field: -count}))

    def _finish(self, classes: tuple[str, ...], layout: Layout) -> None:
        """Writes the list of all shards that are in the bucket."""
        self.stats.phase = Phase.FINISHING
        config = self.settings.preprocessing
        if not self._done:
            raise self.no_samples(layout)
        listed = PackedShardList(
            format=config.format,
            size=config.size,
            recipe=config.digest,
            preparation=config.describe(),
            classes=classes,
            shards=tuple(sorted(self._done, key=lambda shard: shard.tar)),
        )
        key = object_key(self.prefix, SHARDS_NAME)
        self.store.put(key, msgspec.json.encode(listed), content_type="application/json")
        self.manifest = self.store.uri(key)
        ours = {SHARDS_NAME, *(key for shard in self._done for key in (shard.tar, shard.index))}
        others = [key for key in self._objects if key not in ours]
        self.removed = [key for key in others if is_shard_name(key)]
        self.unknown = len(others) - len(self.removed)
        self.prune()
