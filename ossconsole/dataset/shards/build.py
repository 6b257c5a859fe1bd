"""Tar shards: which sample goes into which tar, which tars the bucket has, and building a tar on the disk."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import fastcrc
import msgspec

from ossconsole.config.files import decode_json, read_private
from ossconsole.dataset.manifest import SPLITS, object_key
from ossconsole.dataset.shards.index import (
    BLOCK,
    PackedShard,
    ShardSample,
    encode_index,
    member_header,
    padding,
    read_packed_list,
)
from ossconsole.dataset.source.files import FileLocation, PlannedSample
from ossconsole.dataset.upload.job import UploadJob
from ossconsole.dataset.upload.journal import PlanAction
from ossconsole.dataset.upload.prepare import PreprocessConfig
from ossconsole.dataset.upload.progress import Counts, SamplePreview
from ossconsole.dataset.upload.worker import Done, InlineWorker, PrepareProcesses, Task, Worker
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import Failure
from ossconsole.storage.multipart import ResumableUpload
from ossconsole.storage.objects import ObjectSummary

_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})/shard-\d+\.(tar|idx)")


class PlannedMember(msgspec.Struct, frozen=True, array_like=True):
    """An image that becomes the member `key` of a tar."""

    path: str
    key: str
    class_name: str
    size: int
    mtime_ns: int
    location: FileLocation


class ShardPlan(msgspec.Struct, frozen=True):
    """The images of one tar, in their order. `digest` changes with any of them and with the config."""

    split: str
    tar: str
    digest: str
    rows: list[PlannedMember]

    @property
    def index(self) -> str:
        """The key of the tar's index."""
        return self.tar.removesuffix(".tar") + ".idx"


class ShardPlanner:
    """The samples on the disk, in an order that the seed and their names fix. Raises sqlite3.Error."""

    def __init__(self, path: Path, config: PreprocessConfig, per_shard: int) -> None:
        path.unlink(missing_ok=True)
        self._config = config
        self._per_shard = per_shard
        self._decode = msgspec.msgpack.Decoder(PlannedMember).decode
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")  # every upload creates it again
        self._db.execute("CREATE TABLE plan (key TEXT PRIMARY KEY, place BLOB, row BLOB) WITHOUT ROWID")
        self._db.execute("CREATE INDEX by_place ON plan (place)")

    def add(self, sample: PlannedSample, suffix: str) -> PlanAction:
        """SEND, CONFLICT where other files have its keys, or REPEATED where its name occurred before."""
        for key in sample.keys(suffix):
            if self._take(sample, key):
                return PlanAction.SEND
            (row,) = self._db.execute("SELECT row FROM plan WHERE key = ?", (key,)).fetchone()
            if self._decode(row).path == sample.path:
                return PlanAction.REPEATED
        return PlanAction.CONFLICT

    def _take(self, sample: PlannedSample, key: str) -> bool:
        row = PlannedMember(sample.path, key, sample.class_name, sample.size, sample.mtime_ns, sample.location)
        place = hashlib.sha256(f"{self._config.seed}/{key}".encode()).digest()[:12]
        values = (key, place, msgspec.msgpack.encode(row))
        return self._db.execute("INSERT OR IGNORE INTO plan VALUES (?, ?, ?)", values).rowcount == 1

    def plans(self) -> Iterator[ShardPlan]:
        """The plan of each tar."""
        for split in SPLITS:
            found = self._db.execute("SELECT row FROM plan WHERE key GLOB ? ORDER BY place", (f"{split}/*",))
            number = 0
            while rows := [self._decode(row) for (row,) in found.fetchmany(self._per_shard)]:
                yield ShardPlan(split, f"{split}/shard-{number:05}.tar", self._digest(rows), rows)
                number += 1

    def _digest(self, rows: list[PlannedMember]) -> str:
        made_from = [(row.key, row.size, row.mtime_ns) for row in rows]
        return hashlib.sha256(msgspec.json.encode((self._config.digest, made_from))).hexdigest()[:32]

    def close(self) -> None:
        """Closes the database."""
        self._db.close()


class ExistingShards:
    """The objects below a dataset prefix, and the shards that earlier uploads have sent."""

    def __init__(self, store: ObjectStore, prefix: str, config: PreprocessConfig, resume_log: Path) -> None:
        """`resume_log` has a line for each shard sent since the list was written. Raises StorageError, OSError."""
        self._store, self._prefix = store, prefix
        self.objects = list_objects(store, prefix)
        self.list = read_packed_list(store, prefix)
        usable = self.list is not None and self.list.recipe == config.digest
        self._shards = {shard.tar: shard for shard in (self.list.shards if self.list and usable else ())}
        self._shards |= {shard.tar: shard for shard in read_resume_log(resume_log)}

    def find(self, shard_plan: ShardPlan) -> PackedShard | None:
        """The shard of `shard_plan` where the bucket has it whole, else None. Raises StorageError."""
        shard = self._shards.get(shard_plan.tar)
        return (
            shard
            if shard is not None and shard.digest == shard_plan.digest and is_whole(shard, self.objects, self._crc64)
            else None
        )

    def _crc64(self, key: str) -> int | None:
        return self._store.head(object_key(self._prefix, key)).crc64


def list_objects(store: ObjectStore, prefix: str) -> dict[str, ObjectSummary]:
    """The objects below the prefix by relative key; a dataset has few shards. Raises StorageError."""
    below = object_key(prefix, "")
    return {summary.key[len(below) :]: summary for summary in store.list_all(below)}


def is_shard_name(key: str) -> bool:
    """Whether a relative key is that of a tar or its index."""
    return _SHARD_NAME.fullmatch(key) is not None


def is_whole(shard: PackedShard, objects: dict[str, ObjectSummary], read_crc64: Callable[[str], int | None]) -> bool:
    """Whether tar and index are among the objects, as they were sent.

    Where an ETag is another one, as after a copy of the bucket, `read_crc64` of a relative key decides.
    """
    tar, index = objects.get(shard.tar), objects.get(shard.index)
    if tar is None or index is None or tar.size != shard.bytes:
        return False
    return all(
        found.etag.strip('"') == etag.strip('"') or (crc64 and str(read_crc64(key)) == crc64)
        for key, found, etag, crc64 in (
            (shard.tar, tar, shard.etag, shard.crc64),
            (shard.index, index, shard.index_etag, shard.index_crc64),
        )
    )


def append_resume_log(path: Path, shard: PackedShard) -> None:
    """Adds a line for a shard that was sent; a line before it that a kill has cut does not join it. Raises OSError."""
    with path.open("ab") as resume_log:
        resume_log.write(b"\n" + msgspec.json.encode(shard) + b"\n")


def read_resume_log(path: Path) -> list[PackedShard]:
    """The shards of the lines that are whole. Raises SettingsError."""
    lines = (read_private(path) or b"").split(b"\n")
    return [shard for line in lines if (shard := _read_line(line)) is not None]


def _read_line(line: bytes) -> PackedShard | None:
    """None for a line that a kill has cut; that tar is sent again."""
    try:
        return decode_json(line, PackedShard)
    except msgspec.DecodeError:
        return None


_END = bytes(2 * BLOCK)  # of a tar
_TASKS_PER_WORKER = 2


class Built(msgspec.Struct, frozen=True):
    """A tar on the disk, and its index. The members' labels are not set yet."""

    path: Path
    size: int
    crc64: int
    members: list[ShardSample]
    index: bytes


class ShardUploadState:
    """The upload of one tar; `upload` is None for one that is not sent. `send` may be called from many threads."""

    def __init__(self, shard_plan: ShardPlan, built: Built, upload: ResumableUpload | None) -> None:
        self.shard_plan = shard_plan
        self.built = built
        self.numbers = upload.numbers if upload else range(0)
        """The parts to send."""
        self.has_failed = False
        self._upload = upload
        self._lock = threading.Lock()
        self._parts = self._uploaded = 0

    @property
    def part_bytes(self) -> int:
        """The average bytes of a part."""
        return -(-self.built.size // max(1, len(self.numbers)))

    def send(self, number: int) -> int:
        """Sends a part; returns its bytes. Raises OSError, StorageError."""
        return self._upload.send(number) if self._upload else 0

    def part_sent(self, size: int) -> Counts:
        """The change after a part of `size` bytes: its share of the samples, none of a tar that has failed."""
        with self._lock:
            if self.has_failed:
                return Counts(bytes=size)
            self._parts += 1
            before, self._uploaded = self._uploaded, len(self.built.members) * self._parts // len(self.numbers)
            return Counts(uploaded=self._uploaded - before, bytes=size)

    def claim(self) -> bool:
        """True for one caller, once every part is in the bucket."""
        return self._upload is not None and self._upload.claim()

    def complete(self) -> None:
        """Completes the object. Raises ConsoleError."""
        if self._upload:
            self._upload.complete()

    def fail(self) -> Counts | None:
        """The change when OSS refuses the tar; None the second time."""
        with self._lock:
            if self.has_failed:
                return None
            self.has_failed = True
            return Counts(uploaded=-self._uploaded, failed=len(self.built.members))

    def close(self) -> None:
        """Closes the file of the tar."""
        upload, self._upload = self._upload, None
        if upload:
            upload.close()


class ShardBuilder:
    """Builds tars with preparation processes, which start with the first image and end with the `with` block."""

    def __init__(self, folder: Path, job: UploadJob) -> None:
        self._folder = folder
        self._job = job
        self._stats = job.stats
        self._count = job.settings.worker_count
        self._processes: PrepareProcesses | None = None
        self._workers: list[Worker | InlineWorker] = []

    def __enter__(self) -> ShardBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._job.on_cancel = lambda: None
        for worker in self._workers:
            worker.close()
        if self._processes:
            self._processes.close()

    def build(self, shard_plan: ShardPlan) -> Built:
        """Writes the tar of the images that can be prepared; the others count as failed. Raises OSError, Cancelled."""
        path = self._folder / shard_plan.tar.replace("/", "-")
        encoded = self._job.settings.format.encoded
        members: list[ShardSample] = []
        blocks: list[int] = []
        size = crc64 = 0
        with path.open("wb") as file:
            for row, done, payload in self.prepare(shard_plan.rows):
                if done.error:
                    self._job.record_failure(Failure(row.path, done.error))
                    continue
                self._stats.preview = SamplePreview(row.key, done.height, done.width, payload)
                self._stats.count_class(row.class_name)
                header = member_header(row.key, len(payload))
                data = b"".join((header, payload, padding(len(payload))))
                checksum, listed = fastcrc.crc64.xz(payload), len(payload) if encoded else 0
                offset = size + len(header)
                members.append(ShardSample(row.key, 0, done.height, done.width, offset, listed, checksum))
                blocks.append(len(data) // BLOCK)
                file.write(data)
                size, crc64 = size + len(data), fastcrc.crc64.xz(data, crc64)
            file.write(_END)
        # The same samples give the same bytes: with the same time ResumableUpload recognises the file.
        os.utime(path, (0, int(shard_plan.digest[:8], 16)))
        return Built(path, size + len(_END), fastcrc.crc64.xz(_END, crc64), members, encode_index(blocks))

    def prepare(self, rows: Iterable[PlannedMember]) -> Iterator[tuple[PlannedMember, Done, bytes]]:
        """The result of each row, in the rows' order, prepared by all workers. Raises Cancelled."""
        source = iter(rows)
        turns = itertools.cycle(range(self._count))
        waiting: deque[tuple[PlannedMember, int]] = deque()
        while True:
            ahead = self._count * _TASKS_PER_WORKER - len(waiting)
            for row in itertools.islice(source, ahead):
                number = next(turns)
                self._worker(number).send(Task(row.key, row.size, row.location))
                waiting.append((row, number))
            if not waiting:
                return
            self._job.gate.check()
            row, number = waiting.popleft()
            self._stats.set_preparing(number, row.key)
            _, done, payload = self._worker(number).receive()
            self._stats.set_preparing(number, "")
            self._stats.add_busy_time(read=done.read_s, prepare=done.prepare_s)
            yield row, done, payload

    def _worker(self, number: int) -> Worker | InlineWorker:
        if not self._processes:
            self._processes = PrepareProcesses(self._job.settings.preprocessing, self._count)
            self._job.on_cancel = self._processes.abort
            self._job.check_cancelled()
            self._workers = [self._processes.worker() for _ in range(self._count)]
        return self._workers[number]
