"""The pipeline of an upload: processes prepare planned samples and threads send them, with a bounded queue between."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

import fastcrc
import msgspec

from ossconsole.dataset.manifest import object_key
from ossconsole.dataset.source.files import PlannedSample
from ossconsole.dataset.upload.job import PrefixTakenError, UploadJob
from ossconsole.dataset.upload.journal import Journal, SentSample
from ossconsole.dataset.upload.progress import COMPARED, Counts, SamplePreview, sample_failed, sample_sent
from ossconsole.dataset.upload.worker import Done, InlineWorker, PrepareProcesses, Task, Worker
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.job import Failure
from ossconsole.storage.jobs.threads import BoundedQueue, Cancelled, QueueClosed, ThreadPool, join_threads
from ossconsole.storage.objects import ObjectInfo
from ossconsole.storage.retry import CircuitBreaker

_TASKS_PER_WORKER = 2  # one being prepared and one queued, so that a process never waits for its next image
_TASKS_AHEAD = 8  # per process
_SAMPLES_AHEAD = 16  # prepared and queued for sending
LAST_ANSWERS_S = 12.0  # a little more than a request's timeout
_MAX_UNANSWERED = 24  # samples in a row without any answer
MAX_DENIED = 24
"""Objects that OSS refuses for want of a permission before any other was accepted: more would be refused as well."""


class UploadItem(msgspec.Struct, frozen=True):
    """A sample to send under `key`; `resent` after a verification.

    `crc64` is that of the object in the bucket; `doubtful` when a HEAD should find it out.
    """

    sample: PlannedSample
    key: str
    crc64: str = ""
    doubtful: bool = False
    resent: bool = False


class _Ready(msgspec.Struct, frozen=True):
    item: UploadItem
    done: Done
    payload: bytes


class Pipeline:
    """Prepares and sends items; `run` may be called more than once."""

    def __init__(self, job: UploadJob, journal: Journal, may_replace: Callable[[str], bool]) -> None:
        """`may_replace` says whether the object of a relative key is of this dataset, should its content differ."""
        self._job = job
        self._may_replace = may_replace
        self._stats = job.stats
        self._gate = job.gate
        self._journal = journal
        self._workers = job.settings.worker_count
        self._breaker = CircuitBreaker(_MAX_UNANSWERED, MAX_DENIED)
        self._processes: PrepareProcesses | None = None
        self._processes_lock = threading.Lock()

    def run(self, items: Iterable[UploadItem]) -> None:
        """Sends every item; the job's stats and the journal record each one's result.

        Raises Cancelled, what `items` raised, and ConsoleError when every other item would fail as well.
        """
        self._tasks = BoundedQueue[UploadItem](self._workers * _TASKS_AHEAD)
        self._feeding_ended = threading.Event()
        self._feeding = self._workers
        self._pool = self._job.sender_pool = ThreadPool(
            self._send_counted,
            self._gate,
            self._job.parallelism,
            limit=_SAMPLES_AHEAD,
            name="upload-send",
            on_abort=self._abort,
        )
        self._job.on_cancel = functools.partial(self._pool.abort, Cancelled())
        feeders = [self._feeder(number) for number in range(self._workers)]
        try:
            for item in items:
                self._gate.check()
                self._tasks.put(item)
            self._tasks.close()
            self._feeding_ended.wait()  # not for the threads, which may read from a disk that hangs
        except BaseException as error:  # noqa: BLE001  raised by `finish` once the threads have ended
            self._pool.abort(error)
        try:
            self._pool.finish(LAST_ANSWERS_S)
        finally:
            self._job.on_cancel = lambda: None
            join_threads(feeders, LAST_ANSWERS_S)
            if self._processes:
                self._processes.close()
                self._processes = None

    def _abort(self) -> None:
        """Ends the waits of every thread but those for OSS's answers."""
        self._tasks.abort()
        self._feeding_ended.set()
        with self._processes_lock:
            if self._processes:
                self._processes.abort()

    # Preparing

    def _feed(self, number: int) -> None:
        """Keeps one process busy; processes start with the first image."""
        self._gate.check()
        first = self._tasks.get()
        worker = self._start_processes().worker()
        waiting: deque[UploadItem] = deque()
        try:
            self._give(worker, first, waiting)
            while self._fill(worker, waiting):
                self._stats.set_preparing(number, waiting[0].key)
                _, done, payload = worker.receive()
                item = waiting.popleft()
                self._stats.add_busy_time(read=done.read_s, prepare=done.prepare_s)
                if done.error:
                    self._fail(item, Failure(item.sample.path, done.error))
                    continue
                self._stats.preview = SamplePreview(item.key, done.height, done.width, payload)
                self._pool.put(_Ready(item, done, payload))
        finally:
            self._stats.set_preparing(number, "")
            worker.close()

    def _start_processes(self) -> PrepareProcesses:
        with self._processes_lock:
            self._gate.check()
            self._processes = self._processes or PrepareProcesses(self._job.settings.preprocessing, self._workers)
            return self._processes

    def _fill(self, worker: Worker | InlineWorker, waiting: deque[UploadItem]) -> bool:
        """Gives the process its next images; False when none is left."""
        self._gate.check()
        while len(waiting) < _TASKS_PER_WORKER:
            try:
                item = self._tasks.poll() if waiting else self._tasks.get()
            except QueueClosed:
                break
            if item is None:
                break
            self._give(worker, item, waiting)
        return bool(waiting)

    @staticmethod
    def _give(worker: Worker | InlineWorker, item: UploadItem, waiting: deque[UploadItem]) -> None:
        worker.send(Task(item.key, item.sample.size, item.sample.location))
        waiting.append(item)

    def _feeder_ended(self) -> None:
        """One of the threads that feed the processes has ended."""
        with self._processes_lock:
            self._feeding -= 1
            if not self._feeding:
                self._feeding_ended.set()

    # Sending

    def _send_counted(self, ready: _Ready) -> None:
        with self._stats.sending():
            self._send(ready)

    def _send(self, ready: _Ready) -> None:
        item, payload = ready.item, ready.payload
        crc64 = fastcrc.crc64.xz(payload)
        if item.crc64 == str(crc64):
            sample, done = item.sample, ready.done
            self._journal.mark_unchanged(sample.path, sample.size, sample.mtime_ns, done.height, done.width)
            self._present(item, COMPARED)
            return
        if item.doubtful:
            try:
                existing = self._find(item.key)
            except StorageError as error:
                self._refused(item, error)
                return
            if existing is not None and (existing.size, existing.crc64) == (len(payload), crc64):
                self._journal.mark_sent(_sent(ready, crc64, existing.etag))
                self._present(item, COMPARED)
                return
            if existing is not None and not self._may_replace(item.key):
                raise _taken(self._job, item.key)
        began = time.monotonic()
        self._job.cap.acquire(len(payload))
        passed = time.monotonic()
        try:
            key = object_key(self._job.prefix, item.key)
            content_type = "" if self._job.settings.format.encoded else "application/octet-stream"
            result = self._job.store.put(key, payload, content_type=content_type)  # "": by the key's ending
        except StorageError as error:
            self._refused(item, error)
            return
        finally:
            self._stats.add_busy_time(capped=passed - began, send=time.monotonic() - passed)
        self._breaker.succeeded()
        self._journal.mark_sent(_sent(ready, crc64, result.etag))
        self._present(item, sample_sent(len(payload), resent=item.resent))

    def _present(self, item: UploadItem, change: Counts) -> None:
        """Counts a sample that is in the bucket; one that is sent again was counted in its class before."""
        self._stats.add(change)
        if not item.resent:
            self._stats.count_class(item.sample.class_name)

    def _find(self, key: str) -> ObjectInfo | None:
        """The object that the bucket has under the sample's key, None for none. Raises StorageError."""
        began = time.monotonic()
        try:
            return self._job.store.head(object_key(self._job.prefix, key))
        except StorageError as error:
            if error.status != 404:
                raise
            return None
        finally:
            self._stats.add_busy_time(send=time.monotonic() - began)

    def _refused(self, item: UploadItem, error: StorageError) -> None:
        """Records a sample that OSS refused. Raises the error when every other sample would be refused too."""
        self._breaker.check(error)
        self._fail(item, Failure(item.sample.path, error.message, error.code, error.request_id))

    def _fail(self, item: UploadItem, failure: Failure) -> None:
        self._journal.fail(failure)
        self._job.record_failure(failure, sample_failed(resent=item.resent))

    # Threads

    def _feeder(self, number: int) -> threading.Thread:
        def main() -> None:
            try:
                self._feed(number)
            except QueueClosed:
                return
            except BaseException as error:  # noqa: BLE001  raised by `run`
                self._pool.abort(error)
            finally:
                self._feeder_ended()

        thread = threading.Thread(target=main, name=f"upload-feed-{number}", daemon=True)
        thread.start()
        return thread


def _taken(job: UploadJob, key: str) -> PrefixTakenError:
    """The error of a sample that would replace what no upload has written, such as original images."""
    return PrefixTakenError(
        f"{job.store.uri(object_key(job.prefix, key))} exists with another content, and no upload of this machine "
        "wrote it. It was not replaced.",
        remedy="Use another prefix for this dataset with --dataset-prefix, or delete the object first.",
    )


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
