"""ShardPlan: which sample goes into which tar, and which tars are in the bucket already."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ossconsole.config.files import decode_json, read_private
from ossconsole.dataset.manifest import SPLITS, object_key
from ossconsole.dataset.shards.index import PackedShard, read_packed_list
from ossconsole.dataset.source.layout import PlannedSample
from ossconsole.dataset.source.origin import Origin
from ossconsole.dataset.upload.journal import Verdict
from ossconsole.dataset.upload.prepare import Recipe
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.objects import ObjectSummary

_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})/shard-\d+\.(tar|idx)")


class Row(msgspec.Struct, frozen=True, array_like=True):
    """A picture that becomes the member `key` of a tar."""

    path: str
    key: str
    class_name: str
    size: int
    mtime_ns: int
    origin: Origin


class Chunk(msgspec.Struct, frozen=True):
    """The pictures of one tar, in their order. `digest` changes with any of them and with the recipe."""

    split: str
    tar: str
    digest: str
    rows: list[Row]

    @property
    def index(self) -> str:
        return self.tar.removesuffix(".tar") + ".idx"


class ShardPlan:
    """The samples on the disk, in an order that the seed and their names fix. Raises sqlite3.Error."""

    def __init__(self, path: Path, recipe: Recipe, per_shard: int) -> None:
        path.unlink(missing_ok=True)
        self._recipe = recipe
        self._per_shard = per_shard
        self._decode = msgspec.msgpack.Decoder(Row).decode
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")  # it is made anew for each upload
        self._db.execute("CREATE TABLE plan (key TEXT PRIMARY KEY, place BLOB, row BLOB) WITHOUT ROWID")
        self._db.execute("CREATE INDEX by_place ON plan (place)")

    def add(self, sample: PlannedSample, suffix: str) -> Verdict:
        """SEND, or why it has no place: other files have its keys, or its name was there before."""
        for key in (sample.key, sample.spare_key):
            if self._take(sample, key + suffix):
                return Verdict.SEND
            (row,) = self._db.execute("SELECT row FROM plan WHERE key = ?", (key + suffix,)).fetchone()
            if self._decode(row).path == sample.path:
                return Verdict.REPEATED
        return Verdict.CLASH

    def _take(self, sample: PlannedSample, key: str) -> bool:
        row = Row(sample.path, key, sample.class_name, sample.size, sample.mtime_ns, sample.origin)
        place = hashlib.sha256(f"{self._recipe.seed}/{key}".encode()).digest()[:12]
        values = (key, place, msgspec.msgpack.encode(row))
        return self._db.execute("INSERT OR IGNORE INTO plan VALUES (?, ?, ?)", values).rowcount == 1

    def chunks(self) -> Iterator[Chunk]:
        """The tars, one after the other."""
        for split in SPLITS:
            found = self._db.execute("SELECT row FROM plan WHERE key GLOB ? ORDER BY place", (f"{split}/*",))
            number = 0
            while rows := [self._decode(row) for (row,) in found.fetchmany(self._per_shard)]:
                yield Chunk(split, f"{split}/shard-{number:05}.tar", self._digest(rows), rows)
                number += 1

    def _digest(self, rows: list[Row]) -> str:
        made_from = [(row.key, row.size, row.mtime_ns) for row in rows]
        return hashlib.sha256(msgspec.json.encode((self._recipe.digest, made_from))).hexdigest()[:32]

    def close(self) -> None:
        self._db.close()


class KnownShards:
    """What is below a dataset prefix, and which of it earlier uploads of shards have put there."""

    def __init__(self, store: ObjectStore, prefix: str, recipe: Recipe, diary: Path) -> None:
        """`diary` has a line for each shard that was sent since the list was written. Raises StorageError, OSError."""
        self.objects = list_objects(store, prefix)
        self.list = read_packed_list(store, prefix)
        usable = self.list is not None and self.list.recipe == recipe.digest
        self._shards = {shard.tar: shard for shard in (self.list.shards if self.list and usable else ())}
        self._shards |= {shard.tar: shard for shard in _read_diary(diary)}

    def find(self, chunk: Chunk) -> PackedShard | None:
        """The shard of `chunk`, when the bucket has it whole."""
        shard = self._shards.get(chunk.tar)
        return shard if shard is not None and shard.digest == chunk.digest and is_whole(shard, self.objects) else None


def list_objects(store: ObjectStore, prefix: str) -> dict[str, ObjectSummary]:
    """The objects below the prefix by relative key; of shards there are few. Raises StorageError."""
    below = object_key(prefix, "")
    return {summary.key[len(below) :]: summary for summary in store.list_all(below)}


def is_shard_name(key: str) -> bool:
    return _SHARD_NAME.fullmatch(key) is not None


def is_whole(shard: PackedShard, objects: dict[str, ObjectSummary]) -> bool:
    """Whether tar and index are among the objects, as they were sent."""
    tar, index = objects.get(shard.tar), objects.get(shard.index)
    if tar is None or index is None:
        return False
    etags = tuple(found.etag.strip('"') for found in (tar, index))
    return tar.size == shard.bytes and etags == (shard.etag.strip('"'), shard.index_etag.strip('"'))


def _read_diary(path: Path) -> list[PackedShard]:
    lines = (read_private(path) or b"").split(b"\n")
    return [shard for line in lines if (shard := _read_line(line)) is not None]


def _read_line(line: bytes) -> PackedShard | None:
    """None for one that was cut off by a kill; that tar is sent again."""
    try:
        return decode_json(line, PackedShard)
    except msgspec.DecodeError:
        return None
