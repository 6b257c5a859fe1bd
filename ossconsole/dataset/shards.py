"""ShardUpload: a dataset as tar files of many samples, each with the index that the connector's `from_tar` reads."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.paths import state_dir
from ossconsole.dataset.layout import Layout, SkippedFile
from ossconsole.dataset.manifest import SHARDS_NAME, SPLITS, object_key
from ossconsole.dataset.origin import Origin
from ossconsole.dataset.prefix import PrefixTakenError, check_prefix
from ossconsole.dataset.settings import UploadSettings
from ossconsole.dataset.tar_index import BLOCK, encode_index, member_header, padding
from ossconsole.dataset.worker import Task
from ossconsole.dataset.workers import Crew, Worker
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.job import Job
from ossconsole.storage.multipart import PartedUpload
from ossconsole.storage.names import safe_text

_END = bytes(2 * BLOCK)  # of a tar
_TASKS_PER_WORKER = 2
_SENDERS = 8


class Shard(msgspec.Struct, frozen=True):
    """One tar in the bucket. Keys are relative to the dataset prefix; `digest` tells what it was made from."""

    split: str
    tar: str
    index: str
    samples: int
    bytes: int
    digest: str
    etag: str
    index_etag: str


class ShardList(msgspec.Struct, frozen=True, kw_only=True):
    """What `shards.json` says. Members of the tars are named `<split>/<class>/….u8`, in a mixed order."""

    version: int = 1
    format: str
    size: int
    recipe: str
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]


class _Planned(msgspec.Struct, frozen=True, array_like=True):
    path: str
    key: str
    size: int
    mtime_ns: int
    origin: Origin


class ShardUpload(Job):
    """Prepares a source and uploads it in tars of `per_shard` samples.

    Which sample goes into which tar follows from the seed and the names alone. A tar whose samples are unchanged is
    not sent again. What becomes of single files is in `failures` and `ignored`.
    """

    def __init__(self, store: ObjectStore, settings: UploadSettings, per_shard: int) -> None:
        """Raises SettingsError."""
        settings.recipe.check()
        super().__init__(f"Shards of {safe_text(str(settings.source))}", threads=_SENDERS)
        self.samples = self.unchanged = self.ignored = 0
        self._store = store
        self._prefix = store.profile.dataset_prefix
        self._settings = settings
        self._per_shard = per_shard
        self._done: list[Shard] = []
        self._classes: set[str] = set()

    def work(self) -> None:
        settings = self._settings
        if check_prefix(self._store, self._prefix, settings, shards=True).has_manifest:
            raise PrefixTakenError(
                f"{self._store.uri(self._prefix)} holds a dataset of single samples.",
                remedy="Give the shards another place with --dataset-prefix.",
            )
        known = {shard.tar: shard for shard in self._known()}
        layout = Layout(settings.source)
        if not layout.countable:
            raise ConsoleError(
                "Shards need a source that can be read in any order.", remedy="Unpack the archive first."
            )
        name = hashlib.sha256(f"{self._store.profile.bucket}/{self._prefix}".encode()).hexdigest()[:20]
        # Always the same folder: a tar that was partly sent is built again in its place, and goes on.
        folder = state_dir() / "uploads" / f"{name}.shards"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.closing(_Plan(folder / "plan.sqlite", settings.seed)) as plan, _crew(settings) as workers:
            self._read(layout, plan)
            builder = _Builder(self._feed(workers), folder)
            self.pool(self._tasks(plan, builder, known), lambda task: task())
        self._finish(layout)
        shutil.rmtree(folder, ignore_errors=True)

    # Before

    def _known(self) -> Sequence[Shard]:
        """The shards of an earlier run, when they were made by the same recipe. Raises PrefixTakenError."""
        try:
            found = msgspec.json.decode(self._store.get(object_key(self._prefix, SHARDS_NAME)), type=ShardList)
        except StorageError as error:
            if error.status == 404:
                return ()
            raise
        except msgspec.DecodeError:
            return ()
        recipe = self._settings.recipe
        if (found.format, found.size) != (str(recipe.format), recipe.size):
            raise PrefixTakenError(
                f"{self._store.uri(self._prefix)} holds shards of {found.format} at {found.size} px.",
                remedy="Give these another place with --dataset-prefix.",
            )
        return found.shards if found.recipe == recipe.digest else ()

    def _read(self, layout: Layout, plan: _Plan) -> None:
        suffix = self._settings.format.suffix
        for item in layout.items():
            self.check_cancelled()
            if not isinstance(item, SkippedFile):
                self._classes.add(item.class_name)
                row = _Planned(item.path, item.key + suffix, item.size, item.mtime_ns, item.origin)
                if not plan.add(row) and not plan.add(msgspec.structs.replace(row, key=item.spare_key + suffix)):
                    self.fail(item.path, ConsoleError("its key belongs to another file"))
            elif item.lost:
                self.fail(item.path, ConsoleError(item.reason))
            else:
                self.ignored += 1

    # Shards

    def _tasks(self, plan: _Plan, builder: _Builder, known: dict[str, Shard]) -> Iterator[Callable[[], None]]:
        """Builds one tar after the other while the pool sends the parts of those before."""
        for split in SPLITS:
            for number, rows in enumerate(plan.chunks(split, self._per_shard)):
                self.check_cancelled()
                tar = f"{split}/shard-{number:05}.tar"
                digest = self._digest(rows)
                earlier = known.get(tar)
                if earlier is not None and earlier.digest == digest and self._is_there(earlier):
                    self._keep(earlier, len(rows))
                    continue
                yield from self._send(builder.build(rows, tar, digest), split, tar, digest)
        self.ledger.totals_known()

    def _digest(self, rows: Sequence[_Planned]) -> str:
        made_from = [(row.key, row.size, row.mtime_ns) for row in rows]
        return hashlib.sha256(msgspec.json.encode((self._settings.recipe.digest, made_from))).hexdigest()[:32]

    def _is_there(self, shard: Shard) -> bool:
        pairs = ((shard.tar, shard.etag), (shard.index, shard.index_etag))
        return all(self._etag(key) == etag for key, etag in pairs)

    def _etag(self, key: str) -> str:
        """ "" when there is no such object."""
        try:
            return self._store.head(object_key(self._prefix, key)).etag
        except StorageError as error:
            if error.status == 404:
                return ""
            raise

    def _keep(self, shard: Shard, files: int) -> None:
        self.unchanged += files
        self._done.append(shard)
        self.ledger.expect(1, shard.bytes)
        self.ledger.finish(shard.tar, shard.bytes, skipped=True)

    def _feed(self, workers: Sequence[Worker]) -> Callable[[Iterable[_Planned]], Iterator[tuple[_Planned, bytes]]]:
        """Gives a function that prepares rows on all workers and yields the samples in the rows' order."""

        def prepare(rows: Iterable[_Planned]) -> Iterator[tuple[_Planned, bytes]]:
            source, turns = iter(rows), itertools.cycle(workers)
            waiting: deque[tuple[_Planned, Worker]] = deque()
            while True:
                for row in itertools.islice(source, len(workers) * _TASKS_PER_WORKER - len(waiting)):
                    worker = next(turns)
                    worker.send(Task(row.key, row.size, row.origin))
                    waiting.append((row, worker))
                if not waiting:
                    return
                self.check_cancelled()
                row, worker = waiting.popleft()
                _, done, payload = worker.receive()
                if done.error:
                    self.fail(row.path, ConsoleError(done.error))
                else:
                    yield row, payload

        return prepare

    def _send(self, built: _Built, split: str, tar: str, digest: str) -> Iterator[Callable[[], None]]:
        if not built.blocks:
            built.path.unlink()
            return
        index = encode_index(built.blocks)
        size = built.path.stat().st_size
        self.ledger.expect(1, size + len(index))
        upload = PartedUpload(self._store, built.path, object_key(self._prefix, tar))

        def send(number: int) -> None:
            self.ledger.reach((tar, number), upload.send(number))
            if upload.claim():
                upload.complete()
                upload.close()
                built.path.unlink()
                name = tar.removesuffix(".tar") + ".idx"
                self._sent(Shard(split, tar, name, len(built.blocks), size, digest, "", ""), index)

        for number in upload.numbers:
            yield lambda number=number: send(number)  # type: ignore[misc]

    def _sent(self, shard: Shard, index: bytes) -> None:
        self._store.put(object_key(self._prefix, shard.index), index)
        self._done.append(
            msgspec.structs.replace(shard, etag=self._etag(shard.tar), index_etag=self._etag(shard.index))
        )
        self.samples += shard.samples
        self.ledger.finish(shard.tar, len(index))

    def _finish(self, layout: Layout) -> None:
        if not self._done:
            raise ConsoleError(f"No picture in {self._settings.source} became a sample ({len(self.failures)} failed).")
        recipe = self._settings.recipe
        listed = ShardList(
            format=str(recipe.format),
            size=recipe.size,
            recipe=recipe.digest,
            classes=layout.label_order(self._classes),
            shards=tuple(sorted(self._done, key=lambda shard: shard.tar)),
        )
        self._store.put(
            object_key(self._prefix, SHARDS_NAME), msgspec.json.encode(listed), content_type="application/json"
        )


@contextlib.contextmanager
def _crew(settings: UploadSettings) -> Iterator[list[Worker]]:
    crew = Crew(settings.recipe, settings.worker_count)
    workers = [crew.worker() for _ in range(settings.worker_count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()
        crew.close()


class _Built(msgspec.Struct, frozen=True):
    """A tar on the disk; `blocks` of each member."""

    path: Path
    blocks: list[int]


class _Builder:
    """Writes tars from samples as they are prepared."""

    def __init__(self, prepare: Callable[[Iterable[_Planned]], Iterator[tuple[_Planned, bytes]]], folder: Path) -> None:
        self._prepare = prepare
        self._folder = folder

    def build(self, rows: Iterable[_Planned], name: str, digest: str) -> _Built:
        """Raises OSError."""
        path = self._folder / name.replace("/", "-")
        blocks = []
        with path.open("wb") as file:
            for row, payload in self._prepare(rows):
                header = member_header(row.key, len(payload))
                fill = padding(len(payload))
                file.writelines((header, payload, fill))
                blocks.append((len(header) + len(payload) + len(fill)) // BLOCK)
            file.write(_END)
        # The same samples give the same bytes: with the same time an upload of parts recognises the file again.
        os.utime(path, (0, int(digest[:8], 16)))
        return _Built(path, blocks)


class _Plan:
    """The samples on the disk, in an order that the seed and their names fix."""

    def __init__(self, path: Path, seed: int) -> None:
        path.unlink(missing_ok=True)
        self._seed = seed
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE plan (key TEXT PRIMARY KEY, place BLOB, row BLOB) WITHOUT ROWID")
        self._db.execute("CREATE INDEX by_place ON plan (place)")

    def add(self, row: _Planned) -> bool:
        """False when another file has the key."""
        place = hashlib.sha256(f"{self._seed}/{row.key}".encode()).digest()[:12]
        packed = msgspec.msgpack.encode(row)
        return self._db.execute("INSERT OR IGNORE INTO plan VALUES (?, ?, ?)", (row.key, place, packed)).rowcount == 1

    def chunks(self, split: str, count: int) -> Iterator[list[_Planned]]:
        """The rows of a split, so many at a time."""
        found = self._db.execute("SELECT row FROM plan WHERE key LIKE ? ORDER BY place", (f"{split}/%",))
        decode = msgspec.msgpack.Decoder(_Planned).decode
        while rows := found.fetchmany(count):
            yield [decode(row) for (row,) in rows]

    def close(self) -> None:
        self._db.close()
