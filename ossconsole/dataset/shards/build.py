"""Building tars on the disk, in the rows' order on all cores, and following each one on its way to the bucket."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import fastcrc
import msgspec

from ossconsole.dataset.shards.index import BLOCK, ShardSample, encode_index, member_header, padding
from ossconsole.dataset.shards.plan import Chunk, Row
from ossconsole.dataset.upload.flow import Gate
from ossconsole.dataset.upload.progress import Event, Failed, Picture, Reopened, Scoreboard, Sent, Unchanged
from ossconsole.dataset.upload.settings import UploadSettings
from ossconsole.dataset.upload.worker import Done, Task
from ossconsole.dataset.upload.workers import Crew, Worker
from ossconsole.storage.multipart import PartedUpload

_END = bytes(2 * BLOCK)  # of a tar
_TASKS_PER_WORKER = 2


class Built(msgspec.Struct, frozen=True):
    """A tar on the disk, and its index. The members' labels are not known here."""

    path: Path
    size: int
    crc64: int
    members: list[ShardSample]
    index: bytes


class Flight:
    """A tar on its way; without `upload` it is in the bucket already. `send` may be called from many threads."""

    def __init__(self, chunk: Chunk, built: Built, upload: PartedUpload | None) -> None:
        self.chunk = chunk
        self.built = built
        self.lost = False
        self._upload = upload
        self._lock = threading.Lock()
        self._parts = self._told = self._untold_bytes = 0

    @property
    def numbers(self) -> range:
        return self._upload.numbers if self._upload else range(0)

    @property
    def part_bytes(self) -> int:
        """About how long each part is."""
        return -(-self.built.size // max(1, len(self.numbers)))

    def send(self, number: int) -> int:
        """Gives the part's length. Raises OSError, StorageError."""
        return self._upload.send(number) if self._upload else 0

    def arrived(self, size: int) -> list[Event]:
        """What to book after a part of `size` bytes: its share of the samples."""
        with self._lock:
            self._parts += 1
            self._untold_bytes += size
            told = len(self.built.members) * self._parts // len(self.numbers)
            new = told - self._told
            if not new:
                return []
            self._told, sent = told, self._untold_bytes
            self._untold_bytes = 0
            return [Sent(sent), *([Sent(0)] * (new - 1))]

    def claim(self) -> bool:
        """True for one caller, once every part is in the bucket."""
        return self._upload is not None and self._upload.claim()

    def complete(self) -> None:
        """Makes the object out of the parts. Raises ConsoleError."""
        if self._upload:
            self._upload.complete()

    def settle(self) -> list[Event]:
        """What to book once tar and index are in the bucket, after what `arrived` has told."""
        return [] if self._upload else [Unchanged()] * len(self.built.members)

    def lose(self) -> list[Event]:
        """What to book when OSS does not take it; nothing the second time."""
        with self._lock:
            if self.lost:
                return []
            self.lost = True
            told, count = self._told, len(self.built.members)
        again: list[Event] = [Reopened(unchanged=False), Failed(again=True)]
        return again * told + [Failed()] * (count - told)

    def close(self) -> None:
        upload, self._upload = self._upload, None
        if upload:
            upload.close()


class ShardBuilder:
    """Prepares rows by processes, which it starts when there is a first one and ends with the `with` block."""

    def __init__(self, folder: Path, settings: UploadSettings, board: Scoreboard, gate: Gate) -> None:
        self._folder = folder
        self._settings = settings
        self._board = board
        self._gate = gate
        self._crew: Crew | None = None
        self._workers: list[Worker] = []

    def __enter__(self) -> ShardBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()
        if self._crew:
            self._crew.close()

    def build(self, chunk: Chunk) -> Built:
        """Writes the tar of what can be prepared; what cannot is booked as failed. Raises OSError, Stopped."""
        path = self._folder / chunk.tar.replace("/", "-")
        members: list[ShardSample] = []
        blocks: list[int] = []
        size = crc64 = 0
        with path.open("wb") as file:
            for row, done, payload in self.prepare(chunk.rows):
                if done.error:
                    self._board.lost(row.path, done.error)
                    continue
                self._board.picture = Picture(row.key, done.height, done.width, payload)
                header = member_header(row.key, len(payload))
                data = b"".join((header, payload, padding(len(payload))))
                members.append(ShardSample(row.key, 0, done.height, done.width, size + len(header)))
                blocks.append(len(data) // BLOCK)
                file.write(data)
                size, crc64 = size + len(data), fastcrc.crc64.xz(data, crc64)
            file.write(_END)
        # The same samples give the same bytes: with the same time an upload of parts recognises the file again.
        os.utime(path, (0, int(chunk.digest[:8], 16)))
        return Built(path, size + len(_END), fastcrc.crc64.xz(_END, crc64), members, encode_index(blocks))

    def prepare(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Done, bytes]]:
        """What becomes of each row, in the rows' order, prepared on all workers. Raises Stopped."""
        source = iter(rows)
        turns = itertools.cycle(range(self._settings.worker_count))
        waiting: deque[tuple[Row, int]] = deque()
        while True:
            ahead = self._settings.worker_count * _TASKS_PER_WORKER - len(waiting)
            for row in itertools.islice(source, ahead):
                number = next(turns)
                self._worker(number).send(Task(row.key, row.size, row.origin))
                waiting.append((row, number))
            if not waiting:
                return
            self._gate.check()
            row, number = waiting.popleft()
            self._board.preparing(number, row.key)
            _, done, payload = self._worker(number).receive()
            self._board.preparing(number, "")
            self._board.worked(read=done.read_s, prepare=done.prepare_s)
            yield row, done, payload

    def _worker(self, number: int) -> Worker:
        if not self._crew:
            count = self._settings.worker_count
            self._crew = Crew(self._settings.recipe, count)
            self._workers = [self._crew.worker() for _ in range(count)]
        return self._workers[number]
