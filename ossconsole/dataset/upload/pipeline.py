"""The pipeline of an upload: planned samples are prepared by processes and sent by threads, each stage held back by
the next one's full queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

import fastcrc
import msgspec

from ossconsole.dataset.manifest import object_key
from ossconsole.dataset.source.layout import PlannedSample
from ossconsole.dataset.upload.context import Refusals
from ossconsole.dataset.upload.flow import BandwidthCap, BoundedQueue, Closed, Gate, Senders, Stopped
from ossconsole.dataset.upload.journal import Failure, Journal, SentSample
from ossconsole.dataset.upload.prepare import Recipe
from ossconsole.dataset.upload.progress import Failed, Picture, Scoreboard, Sent, Unchanged
from ossconsole.dataset.upload.worker import Crew, Done, Task, Worker
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.objects import ObjectInfo

MAX_PARALLELISM = 64
_TASKS_PER_WORKER = 2  # one being prepared, one already there, so that a process never waits for its next picture
_TASKS_AHEAD = 4  # per process
_SAMPLES_AHEAD = 16  # prepared and waiting for a sender
LAST_ANSWERS_S = 12.0  # a little more than a request's timeout
_GIVE_UP_AFTER = 24  # samples in a row that got no answer at all


class Item(msgspec.Struct, frozen=True):
    """A sample to be sent under `key`, `again` after a verification.

    `crc64` is of what the bucket has there; `doubtful` when that is unknown and worth a look.
    """

    sample: PlannedSample
    key: str
    crc64: str = ""
    doubtful: bool = False
    again: bool = False


class _Ready(msgspec.Struct, frozen=True):
    item: Item
    done: Done
    payload: bytes


class Pipeline:
    """Prepares and sends items. `run` may be called more than once; `set_parallelism` at any time."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        prefix: str,
        recipe: Recipe,
        journal: Journal,
        board: Scoreboard,
        gate: Gate,
        cap: BandwidthCap,
        workers: int,
        parallelism: int,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._recipe = recipe
        self._journal = journal
        self._board = board
        self._gate = gate
        self._cap = cap
        self._workers = workers
        self.parallelism = parallelism
        self._error: BaseException | None = None
        self._refusals = Refusals(_GIVE_UP_AFTER)
        self._crew: Crew | None = None
        self._crew_lock = threading.Lock()
        self._senders: Senders[_Ready] | None = None

    def set_parallelism(self, number: int) -> None:
        """How many samples are sent at once, from now on."""
        self.parallelism = max(1, min(number, MAX_PARALLELISM))
        if self._senders:
            self._senders.set_number(self.parallelism)

    def run(self, items: Iterable[Item]) -> None:
        """Sends every item; what becomes of each is on the scoreboard and in the journal.

        Raises Stopped, what `items` raised, and ConsoleError when going on makes no sense.
        """
        self._tasks = BoundedQueue[Item](self._workers * _TASKS_AHEAD)
        self._senders = senders = Senders(
            self._serve, self._gate, self.parallelism, limit=_SAMPLES_AHEAD, on_error=self._break_off
        )
        feeders = [self._feeder(number, senders) for number in range(self._workers)]
        try:
            for item in items:
                self._gate.check()
                self._tasks.put(item)
            self._tasks.close()
            join(feeders)
            senders.close()
            join(senders.threads)
        except BaseException as error:  # noqa: BLE001  raised again once the threads have ended
            self._break_off(error)
        join([*feeders, *senders.threads], LAST_ANSWERS_S)
        if self._crew:
            self._crew.close()
            self._crew = None
        if self._error is not None:
            raise self._error

    # Preparing

    def _feed(self, number: int, senders: Senders[_Ready]) -> None:
        """Keeps one process busy; there are none until there is a picture."""
        self._gate.check()
        first = self._tasks.get()
        if first is None:
            return
        worker = self._get_crew().worker()
        waiting: deque[Item] = deque()
        try:
            self._give(worker, first, waiting)
            while self._fill(worker, waiting):
                self._board.preparing(number, waiting[0].key)
                _, done, payload = worker.receive()
                item = waiting.popleft()
                self._board.worked(read=done.read_s, prepare=done.prepare_s)
                if done.error:
                    self._lost(item, Failure(item.sample.path, done.error))
                    continue
                self._board.picture = Picture(item.key, done.height, done.width, payload)
                senders.put(_Ready(item, done, payload))
        finally:
            self._board.preparing(number, "")
            worker.close()

    def _get_crew(self) -> Crew:
        with self._crew_lock:
            self._crew = self._crew or Crew(self._recipe, self._workers)
            return self._crew

    def _fill(self, worker: Worker, waiting: deque[Item]) -> bool:
        """Gives the process its next pictures; False when none is left."""
        self._gate.check()
        while len(waiting) < _TASKS_PER_WORKER:
            try:
                item = self._tasks.get(wait=not waiting)
            except Closed:
                break
            if item is None:
                break
            self._give(worker, item, waiting)
        return bool(waiting)

    @staticmethod
    def _give(worker: Worker, item: Item, waiting: deque[Item]) -> None:
        worker.send(Task(item.key, item.sample.size, item.sample.origin))
        waiting.append(item)

    # Sending

    def _serve(self, ready: _Ready) -> None:
        self._board.sends(1)
        try:
            self._send(ready)
        finally:
            self._board.sends(-1)

    def _send(self, ready: _Ready) -> None:
        item, payload = ready.item, ready.payload
        crc64 = fastcrc.crc64.xz(payload)
        if item.crc64 == str(crc64):
            sample, done = item.sample, ready.done
            self._journal.keep(sample.path, sample.size, sample.mtime_ns, done.height, done.width)
            self._board.happened(Unchanged())
            return
        if item.doubtful and (there := self._look(item.key, len(payload), crc64)):
            self._journal.book(_sent(ready, crc64, there.etag))
            self._board.happened(Unchanged())
            return
        began = time.monotonic()
        self._cap.pass_through(len(payload))
        passed = time.monotonic()
        try:
            key = object_key(self._prefix, item.key)
            result = self._store.put(key, payload, content_type="application/octet-stream")
        except StorageError as error:
            self._refused(item, error)
            return
        finally:
            self._board.worked(capped=passed - began, send=time.monotonic() - passed)
        self._refusals.accepted()
        self._journal.book(_sent(ready, crc64, result.etag))
        self._board.happened(Sent(len(payload), item.again))

    def _look(self, key: str, size: int, crc64: int) -> ObjectInfo | None:
        """The object, when the bucket has exactly this sample already."""
        try:
            info = self._store.head(object_key(self._prefix, key))
        except StorageError:
            return None  # the PUT that follows meets the same trouble, and deals with it
        return info if (info.size, info.crc64) == (size, crc64) else None

    def _refused(self, item: Item, error: StorageError) -> None:
        """Books a sample that OSS did not take. Raises the error when it would take no other either."""
        self._refusals.weigh(error)
        self._lost(item, Failure(item.sample.path, error.message, error.code, error.request_id))

    def _lost(self, item: Item, failure: Failure) -> None:
        self._journal.fail(failure)
        self._board.failed(failure, Failed(item.again))

    # Threads

    def _feeder(self, number: int, senders: Senders[_Ready]) -> threading.Thread:
        def main() -> None:
            try:
                self._feed(number, senders)
            except Closed:
                return
            except BaseException as error:  # noqa: BLE001  raised again by `run`
                self._break_off(error)

        thread = threading.Thread(target=main, name=f"upload-feed-{number}", daemon=True)
        thread.start()
        return thread

    def _break_off(self, error: BaseException) -> None:
        """Unwinds every stage; the first error that is not just that unwinding is the one to tell."""
        with self._gate.condition:
            if self._error is None or isinstance(self._error, Stopped):
                self._error = error
        self._gate.break_off()
        self._tasks.break_off()
        if self._senders:
            self._senders.break_off()


def _sent(ready: _Ready, crc64: int, etag: str) -> SentSample:
    sample = ready.item.sample
    return SentSample(
        path=sample.path,
        size=sample.size,
        mtime_ns=sample.mtime_ns,
        height=ready.done.height,
        width=ready.done.width,
        bytes=len(ready.payload),
        crc64=str(crc64),
        etag=etag,
    )


def join(threads: Sequence[threading.Thread], timeout_s: float | None = None) -> None:
    """Waits for the threads to end; they are daemons, so one that hangs in a request is left behind in the end."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for thread in threads:
        thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
