"""ShardUpload: a dataset as tar files of many samples, each with the index that the connector's `from_tar` reads."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import make_folder
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import SHARDS_NAME, object_key
from ossconsole.dataset.shards.build import (
    Chunk,
    Flight,
    KnownShards,
    Row,
    ShardBuilder,
    ShardPlan,
    is_shard_name,
    is_whole,
    list_objects,
)
from ossconsole.dataset.shards.index import PackedShard, PackedShardList, ShardSample
from ossconsole.dataset.source.layout import Layout, SkippedFile
from ossconsole.dataset.upload.context import Refusals, UploadContext
from ossconsole.dataset.upload.flow import Senders, Stopped
from ossconsole.dataset.upload.journal import Failure, JournalError, Lock, Verdict, journal_path
from ossconsole.dataset.upload.pipeline import LAST_ANSWERS_S, join
from ossconsole.dataset.upload.progress import Failed, Phase, PlanEnded, Planned, Reopened, Unchanged
from ossconsole.dataset.upload.settings import UploadSettings
from ossconsole.dataset.upload.verify import PrefixTakenError, check_prefix
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.multipart import PartedUpload
from ossconsole.storage.objects import ObjectSummary

MAX_PARTS_AT_ONCE = 8  # of 8 MiB each
_GIVE_UP_AFTER = 8  # parts in a row that got no answer at all
_DIARY = "sent.jsonl"


def shards_folder(store: ObjectStore, prefix: str) -> Path:
    """Where tars are built. Always the same: one that was partly sent is built again in its place, and goes on."""
    return journal_path(store.profile, prefix).with_suffix(".shards")


def known_shards(store: ObjectStore, prefix: str, settings: UploadSettings) -> KnownShards:
    """What is below the prefix. Raises PrefixTakenError when it is another kind of dataset, StorageError, OSError."""
    if check_prefix(store, prefix, settings, shards=True).has_manifest:
        raise PrefixTakenError(
            f"{store.uri(prefix)} holds a dataset of single samples.",
            remedy="Give the shards another place with --dataset-prefix.",
        )
    known = KnownShards(store, prefix, settings.recipe, shards_folder(store, prefix) / _DIARY)
    listed = known.list
    if listed is not None and (listed.format, listed.size) != (settings.format, settings.size):
        raise PrefixTakenError(
            f"{store.uri(prefix)} holds shards of {listed.format} at {listed.size} px.",
            remedy="Give these another place with --dataset-prefix.",
        )
    return known


class ShardUpload:
    """Plans the tars, builds and sends them, verifies and lists them; whole ones in the bucket are not sent again."""

    def __init__(self, context: UploadContext) -> None:
        settings = context.settings
        self.parallelism = min(settings.parallelism, MAX_PARTS_AT_ONCE)
        self._context = context
        self._settings = settings
        self._board = context.board
        self._gate = context.gate
        self._prefix = context.prefix
        self._folder = Path()
        self._labels: dict[str, int] = {}
        self._done: list[PackedShard] = []
        self._kept: set[str] = set()
        self._objects: dict[str, ObjectSummary] = {}
        self._flights: list[Flight] = []
        self._diary_lock = threading.Lock()
        self._error: BaseException | None = None
        self._refusals = Refusals(_GIVE_UP_AFTER)
        self._senders: Senders[tuple[Flight, int]] | None = None

    def set_parallelism(self, number: int) -> None:
        """How many parts are sent at once (1 to 8), from now on."""
        self.parallelism = max(1, min(number, MAX_PARTS_AT_ONCE))
        if self._senders:
            self._senders.set_number(self.parallelism)

    def work(self) -> None:
        """Raises Stopped, ConsoleError."""
        layout = Layout(self._settings.source)
        if not layout.countable:
            raise ConsoleError(
                "Shards need a source that can be read in any order.", remedy="Unpack the archive first."
            )
        self._folder = shards_folder(self._context.store, self._prefix)
        try:
            make_folder(self._folder)
            with contextlib.closing(Lock(journal_path(self._context.profile, self._prefix))):
                self._upload(layout)
        except (sqlite3.Error, OSError) as error:
            raise JournalError(
                f"The shards cannot be built in {self._folder}: {error}.",
                remedy="Free space on its disk (or set OSSCONSOLE_STATE_DIR to another) and run the upload again.",
            ) from error

    def _upload(self, layout: Layout) -> None:
        settings = self._settings
        known = known_shards(self._context.store, self._prefix, settings)
        plan = ShardPlan(self._folder / "plan.sqlite", settings.recipe, settings.per_shard)
        with contextlib.closing(plan):
            classes = self._read(layout, plan)
            self._labels = {name: label for label, name in enumerate(classes)}
            self._board.phase = Phase.UPLOADING
            with ShardBuilder(self._folder, settings, self._board, self._gate) as builder:
                self._send_all(plan, builder, known)
        self._verify()
        self._finish(classes, layout)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, layout: Layout, plan: ShardPlan) -> tuple[str, ...]:
        """Plans every file, and gives the classes in label order."""
        suffix = self._settings.format.suffix
        classes: set[str] = set()
        for item in layout.items():
            self._gate.check()
            self._board.happened(Planned())
            if isinstance(item, SkippedFile):
                self._context.skip(item)
            elif (verdict := plan.add(item, suffix)) is Verdict.SEND:
                classes.add(item.class_name)
            else:
                self._board.lost(item.path, verdict.reason)
        self._context.settle(layout)
        self._board.happened(PlanEnded())
        return layout.label_order(classes)

    # Sending

    def _send_all(self, plan: ShardPlan, builder: ShardBuilder, known: KnownShards) -> None:
        """Builds one tar after the other while threads send the parts of those before."""
        self._senders = senders = Senders(
            self._serve, self._gate, self.parallelism, limit=self.parallelism, on_error=self._break_off
        )
        try:
            for chunk in plan.chunks():
                self._gate.check()
                for task in self._tasks(chunk, builder, known):
                    senders.put(task)
            senders.close()
            join(senders.threads)
        except BaseException as error:  # noqa: BLE001  raised again once the threads have ended
            self._break_off(error)
        join(senders.threads, LAST_ANSWERS_S)
        for flight in self._flights:
            flight.close()
        if self._error is not None:
            raise self._error

    def _tasks(self, chunk: Chunk, builder: ShardBuilder, known: KnownShards) -> Iterator[tuple[Flight, int]]:
        """What is to be sent for a chunk; nothing when the bucket has it."""
        earlier = known.find(chunk)
        if earlier is not None and self._keep(chunk, earlier, builder):
            return
        built = builder.build(chunk)
        if not built.members:
            built.path.unlink()
            return
        there = known.objects.get(chunk.tar)
        if there is not None and there.size == built.size and self._crc64(chunk.tar) == built.crc64:
            # Sent whole by a run that was killed before it could write that down.
            flight = Flight(chunk, built, None)
            self._kept.add(chunk.tar)
            self._land(flight)
            return
        try:
            upload = PartedUpload(self._context.store, built.path, object_key(self._prefix, chunk.tar))
        except StorageError as error:
            self._refused(Flight(chunk, built, None), error)
            return
        flight = Flight(chunk, built, upload)
        self._flights.append(flight)
        for number in flight.numbers:
            yield flight, number

    def _keep(self, chunk: Chunk, earlier: PackedShard, builder: ShardBuilder) -> bool:
        """Books a shard that is in the bucket; False when a picture that it lacks can be prepared by now."""
        samples = earlier.unpack()
        there = {sample.key for sample in samples}
        lacking = [row for row in chunk.rows if row.key not in there]
        errors = [(row, done.error) for row, done, _ in builder.prepare(lacking)]
        if not all(error for _, error in errors):
            return False
        for row, error in errors:
            self._board.lost(row.path, error)
        for _ in samples:
            self._board.happened(Unchanged())
        self._kept.add(earlier.tar)
        self._done.append(msgspec.structs.replace(earlier, samples=self._labelled(chunk.rows, samples)))
        return True

    def _labelled(self, rows: list[Row], samples: list[ShardSample]) -> msgspec.Raw:
        """The samples with the labels that their classes have now."""
        labels = {row.key: self._labels[row.class_name] for row in rows}
        now = [msgspec.structs.replace(sample, label=labels[sample.key]) for sample in samples]
        return msgspec.Raw(msgspec.json.encode(now))

    def _serve(self, task: tuple[Flight, int]) -> None:
        flight, number = task
        if flight.lost:
            return
        self._board.sends(1)
        began = time.monotonic()
        try:
            self._context.cap.pass_through(flight.part_bytes)
            passed = time.monotonic()
            size = flight.send(number)
            self._board.worked(capped=passed - began, send=time.monotonic() - passed)
            for event in flight.arrived(size):
                self._board.happened(event)
            if flight.claim():
                flight.complete()
                self._land(flight)
        except StorageError as error:
            self._refused(flight, error)
        finally:
            self._board.sends(-1)

    def _land(self, flight: Flight) -> None:
        """The tar is in the bucket: sends its index and writes both down. Raises StorageError, OSError."""
        chunk, built = flight.chunk, flight.built
        self._context.store.put(object_key(self._prefix, chunk.index), built.index)
        shard = PackedShard(
            split=chunk.split,
            tar=chunk.tar,
            index=chunk.index,
            bytes=built.size,
            digest=chunk.digest,
            etag=self._etag(chunk.tar),
            index_etag=self._etag(chunk.index),
            samples=self._labelled(chunk.rows, built.members),
        )
        with self._diary_lock, (self._folder / _DIARY).open("ab") as diary:
            diary.write(msgspec.json.encode(shard) + b"\n")
        for event in flight.settle():
            self._board.happened(event)
        flight.close()
        built.path.unlink(missing_ok=True)
        self._done.append(shard)
        self._refusals.accepted()

    def _refused(self, flight: Flight, error: StorageError) -> None:
        """Books the samples of a tar that OSS did not take. Raises the error when it would take no other either."""
        self._refusals.weigh(error)
        events = flight.lose()
        if events:
            what = f"{flight.chunk.tar} ({counted(len(flight.built.members), 'sample')})"
            self._board.failed(Failure(what, error.message, error.code, error.request_id), events[0])
        for event in events[1:]:
            self._board.happened(event)

    def _etag(self, key: str) -> str:
        return self._context.store.head(object_key(self._prefix, key)).etag

    def _crc64(self, key: str) -> int | None:
        return self._context.store.head(object_key(self._prefix, key)).crc64

    def _break_off(self, error: BaseException) -> None:
        """Unwinds all threads; the first error that is not just that unwinding is the one to tell."""
        with self._gate.condition:
            if self._error is None or isinstance(self._error, Stopped):
                self._error = error
        self._gate.break_off()
        if self._senders:
            self._senders.break_off()

    # Afterwards

    def _verify(self) -> None:
        """Compares the bucket with what was sent; a tar that is not there is left out of the list, and told."""
        self._board.phase = Phase.VERIFYING
        self._objects = list_objects(self._context.store, self._prefix)
        for shard in list(self._done):
            if not is_whole(shard, self._objects):
                self._done.remove(shard)
                count = len(shard.unpack())
                for _ in range(count):
                    self._board.happened(Reopened(unchanged=shard.tar in self._kept))
                failure = Failure(
                    f"{shard.tar} ({counted(count, 'sample')})", "sent, and yet the bucket does not have it"
                )
                self._board.failed(failure, Failed(again=True))
                for _ in range(count - 1):
                    self._board.happened(Failed(again=True))

    def _finish(self, classes: tuple[str, ...], layout: Layout) -> None:
        """Writes the list of all shards that are in the bucket."""
        self._board.phase = Phase.FINISHING
        context, recipe = self._context, self._settings.recipe
        if not self._done:
            raise ConsoleError(
                context.no_samples(),
                remedy=layout.advice,
            )
        listed = PackedShardList(
            format=recipe.format,
            size=recipe.size,
            recipe=recipe.digest,
            preparation=recipe.describe(),
            classes=classes,
            shards=tuple(sorted(self._done, key=lambda shard: shard.tar)),
        )
        key = object_key(self._prefix, SHARDS_NAME)
        context.store.put(key, msgspec.json.encode(listed), content_type="application/json")
        context.manifest = context.store.uri(key)
        ours = {SHARDS_NAME, *(key for shard in self._done for key in (shard.tar, shard.index))}
        others = [key for key in self._objects if key not in ours]
        context.removed = [key for key in others if is_shard_name(key)]
        context.unknown = len(others) - len(context.removed)
        if self._settings.prune:
            context.store.delete_many(object_key(self._prefix, key) for key in context.removed)
            context.pruned = True
