"""Checkpoints in the bucket: their keys, the store that writes and verifies them, and its writer process.

No torch here: the writer process imports this module.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Generic, TypeVar

import fastcrc

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.storage.checkpoints.inspect import CheckpointError, inspect_checkpoint
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.multipart import abort_upload, list_uploads
from ossconsole.storage.retry import NO_RETRY, RetryPolicy
from ossconsole.telemetry import events
from ossconsole.telemetry.runs import record_path, summarise
from ossconsole.training.child import become_child, spawn
from ossconsole.training.loading.connector import ConnectorSettings
from ossconsole.training.settings import DEFAULT_MODEL

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 5.0
_PIECE = 4 << 20  # bytes; small enough to show the progress of a slow write
_WRITES = RetryPolicy(attempts=2, first_wait_s=2.0)  # the connector has retried each of its requests by then
_TRIED = 5  # checkpoints, each of which may be read whole, until one can be used
NOT_FOUND = 404
LATEST = "latest"
BEST = "best"
NEXT_TRIED = "The run continues, and the next checkpoint is tried as usual."


T = TypeVar("T")


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run: epochs (from 1) and steps done, the sums of the current epoch (see EpochMeter), metrics."""

    epoch: int
    step: int
    train_sums: list[float]
    metrics: dict[str, float | None]


def checkpoint_key(prefix: str, run: str, progress: RunProgress, model: str = DEFAULT_MODEL) -> str:
    """A key used once: opening the connector's writer deletes the key's object."""
    return f"{prefix}/{model}-{run}-e{progress.epoch:02d}-s{progress.step:06d}.pt"


def stable_key(prefix: str, model: str = DEFAULT_MODEL) -> str:
    """The key of the newest checkpoint of a model."""
    return f"{prefix}/{model}.pt"


def best_key(prefix: str, model: str = DEFAULT_MODEL) -> str:
    """The key of the checkpoint with the highest top-1 accuracy of the last run of a model."""
    return f"{prefix}/{model}-best.pt"


_KEY_END = re.compile(r"[^/]+-e(?P<epoch>\d+)-s(?P<step>\d+)\.pt")


def run_checkpoints(store: ObjectStore, prefix: str, model: str, run: str = "") -> list[str]:
    """The keys of the checkpoints that runs of a model wrote, or one `run`, the newest first. Raises StorageError.

    OSS dates them by the second; those of one second are in the order of their epochs and steps.
    """
    start = f"{prefix}/{model}-{run}-" if run else f"{prefix}/{model}-"
    found = [
        (info.modified, int(match["epoch"]), int(match["step"]), info.key)
        for info in store.list_all(start)
        if (match := _KEY_END.fullmatch(info.key, len(f"{prefix}/")))
    ]
    return [key for *_, key in sorted(found, reverse=True)]


_NO_SUCH_KEY = "NoSuchKey"
_URI = re.compile(r"^oss://(?P<bucket>[^/]+)/(?P<key>.+)$")


def object_of(store: ObjectStore, uri: str) -> tuple[str, int]:
    """Key and size of the object of an `oss://bucket/key`.

    Raises ConsoleError when it is in another bucket than the profile's, and StorageError when it does not exist.
    """
    match = _URI.match(uri)
    if match is None or match["bucket"] != store.profile.bucket:
        raise ConsoleError(
            f"{uri} is not an object of the bucket {store.profile.bucket}.",
            remedy=f"Give oss://{store.profile.bucket}/<key>, or another --profile.",
        )
    try:
        return match["key"], store.head(match["key"]).size
    except StorageError as error:
        if error.code != _NO_SUCH_KEY:
            raise
        raise StorageError(
            f"{uri} does not exist.",
            remedy=f"`ossconsole ls {store.profile.checkpoint_prefix}/` lists the checkpoints; give a key in full, "
            "latest or best.",
            status=error.status,
            code=error.code,
            request_id=error.request_id,
        ) from error


@dataclass(frozen=True)
class FoundCheckpoint(Generic[T]):
    """A checkpoint and what was read of it. `problem` says why a newer one was not used, as sentences."""

    uri: str
    content: T
    problem: str = ""


def find_checkpoint(store: ObjectStore, named: str, model: str, read: Callable[[str], T]) -> FoundCheckpoint[T]:
    """The checkpoint `named` by key, URI, LATEST or BEST of the `model`, with what `read` returns for its URI.

    For LATEST it is the newest that `read` accepts. Raises the error of `read`: CheckpointError for a damaged one.
    """
    prefix = store.profile.checkpoint_prefix
    if named != LATEST:
        uri = store.uri(best_key(prefix, model) if named == BEST else named) if "://" not in named else named
        return FoundCheckpoint(uri, read(uri))
    stable = store.uri(stable_key(prefix, model))
    try:
        return FoundCheckpoint(stable, read(stable))
    except (CheckpointError, StorageError) as error:
        if isinstance(error, StorageError) and error.status != NOT_FOUND:
            raise
        for uri in map(store.uri, run_checkpoints(store, prefix, model)[:_TRIED]):
            with _without_missing(), contextlib.suppress(CheckpointError):
                return FoundCheckpoint(uri, read(uri), f"{error.message} The newest whole checkpoint is {uri}.")
        raise


@contextlib.contextmanager
def _without_missing() -> Iterator[None]:
    """Suppresses the error for an object that does not exist: a run may delete its old checkpoints meanwhile."""
    try:
        yield
    except StorageError as error:
        if error.status != NOT_FOUND:
            raise


def resumed_fields(store: ObjectStore, named: str, model: str) -> FoundCheckpoint[dict[str, Any]]:
    """The plain values of the checkpoint that a run would resume, read by ranges; see `find_checkpoint`.

    Empty for one of another program, which the run refuses.
    """

    def read(uri: str) -> dict[str, Any]:
        key, size = object_of(store, uri)
        found = inspect_checkpoint(store, key, size)
        return found.fields if found.resumable else {}

    return find_checkpoint(store, named, model, read)


_KEY_NAME = re.compile(r"[^-/]+-(?P<run>.+)-e\d+-s\d+\.pt")


def _has_ended(run: str) -> bool:
    """Whether the record of a run is on this machine, and the run ended or its process is gone."""
    try:
        summary = summarise(record_path(run))
    except ConsoleError:  # a run of another machine or user has no record here
        return False
    return summary.alive is False or (summary.alive is True and summary.state.final)


class CheckpointStore:
    """The checkpoints of a run: the connector writes a unique key, oss2 verifies it and copies it to the stable key.

    `on_warning` gets a message and a remedy where a checkpoint was written and what follows it failed.
    """

    def __init__(
        self,
        connector: ConnectorSettings,
        store: ObjectStore,
        run: str,
        *,
        keep: int,
        timeout_s: float,
        model: str = DEFAULT_MODEL,
        on_warning: Callable[[str, str], object] = log.warning,
    ) -> None:
        self._store = store
        self._on_warning = on_warning
        self._prefix = connector.profile.checkpoint_prefix
        self._run = run
        self._model = model
        self._stable = stable_key(self._prefix, model)
        self._keep = keep
        self._timeout_s = timeout_s
        self._connector = connector
        self._writer = CheckpointWriter(connector)
        self._written: list[str] = []
        self._maybe_partial: list[str] = []  # failed writes of which a part may have arrived
        self._best = ""

    def save(
        self,
        data: bytes | memoryview,
        progress: RunProgress,
        *,
        best: bool = False,
        on_written: Callable[[str, int], None] = lambda _key, _bytes: None,
    ) -> events.Checkpoint:
        """Writes a checkpoint. The `best` of the run so far is also copied to the best key, and kept longer.

        `on_written` gets the key and the bytes written so far, every few megabytes. Raises ConsoleError when the write
        failed; the stable key then still holds the previous checkpoint. The copy of the best one and the deletion of
        old ones may fail, with a warning. Its `seconds` include the copies.
        """
        begun = time.perf_counter()
        key = checkpoint_key(self._prefix, self._run, progress, self._model)
        self._write(key, data, functools.partial(on_written, key))
        if key not in self._written:
            self._written.append(key)
        self._store.copy(key, self._stable)
        best_copy = self._copy_best(key) if best else ""
        self._drop_old()
        self._remove_partial()
        return events.Checkpoint(
            time=time.time(),
            key=key,
            bytes=len(data),
            seconds=time.perf_counter() - begun,
            stable_key=self._stable,
            best_key=best_copy,
            epoch=progress.epoch,
            step=progress.step,
            top1=progress.metrics.get("top1"),
        )

    def close(self) -> None:
        """Ends the writer process."""
        self._writer.close()

    def adopt(self) -> None:
        """Takes over the checkpoints that this run wrote before torchrun restarted it. Raises StorageError."""
        self._written = run_checkpoints(self._store, self._prefix, self._model, self._run)[::-1]

    def abort_leftovers(self) -> list[str]:
        """Aborts the unfinished uploads of ended runs of this machine, such as killed ones; returns their keys.

        Raises StorageError.
        """
        aborted = []
        with contextlib.closing(self._short_timeout_store()) as store:
            for upload in list_uploads(store, f"{self._prefix}/"):
                match = _KEY_NAME.fullmatch(upload.key.removeprefix(f"{self._prefix}/"))
                if match is not None and (match["run"] == self._run or _has_ended(match["run"])):
                    abort_upload(store, upload)
                    aborted.append(upload.key)
        return aborted

    def _write(self, key: str, data: bytes | memoryview, on_written: Callable[[int], None]) -> None:
        """Writes through the connector. Retries unless OSS refuses writes for good; its own error is raised then."""

        def attempt() -> None:
            try:
                self._write_once(key, data, on_written)
            except ConsoleError as error:
                raise self._refusal(key) or StorageError(
                    error.message, remedy=error.remedy, retriable=True, action=f"writing {key}"
                ) from error

        try:
            _WRITES.run(attempt, lambda wait: time.sleep(wait.seconds))
        except StorageError as error:
            if error.retriable:
                self._maybe_partial.append(key)
                self._remove_partial()
            raise

    def _write_once(self, key: str, data: bytes | memoryview, on_written: Callable[[int], None]) -> None:
        try:
            self._writer.write(key, data, self._timeout_s, on_written)
        except ConsoleError:
            if not self._arrived(key, data):  # perhaps only the reply was lost
                raise
        else:
            self._verify(self._store, key, data)

    def _arrived(self, key: str, data: bytes | memoryview) -> bool:
        with contextlib.closing(self._short_timeout_store()) as store:
            try:
                self._verify(store, key, data)
            except ConsoleError:
                return False
        return True

    def _remove_partial(self) -> None:
        """Removes what failed writes left, as far as that works now; the next checkpoint retries the rest."""
        with contextlib.suppress(StorageError), contextlib.closing(self._short_timeout_store()) as store:
            for key in self._maybe_partial.copy():
                if key not in self._written:
                    store.delete(key)
                    for upload in list_uploads(store, key):
                        abort_upload(store, upload)
                self._maybe_partial.remove(key)

    def _refusal(self, key: str) -> StorageError | None:
        """The error with which OSS refuses a write now, None when it accepts; the connector does not report it."""
        with contextlib.closing(self._short_timeout_store()) as store:
            try:
                store.check_write(key)
            except StorageError as error:
                return error
        return None

    def _short_timeout_store(self) -> ObjectStore:
        connector = self._connector
        return ObjectStore(connector.profile, connector.credentials, timeout_s=_PROBE_TIMEOUT_S, retry=NO_RETRY)

    def _verify(self, store: ObjectStore, key: str, data: bytes | memoryview) -> None:
        info = store.head(key)
        if info.size != len(data):
            raise ConsoleError(
                f"The checkpoint {self._store.uri(key)} has {info.size:,} of {len(data):,} bytes.", remedy=NEXT_TRIED
            )
        if info.crc64 is not None and info.crc64 != fastcrc.crc64.xz(data):
            raise ConsoleError(
                f"The checkpoint {self._store.uri(key)} differs from what was written (CRC64).", remedy=NEXT_TRIED
            )

    def _copy_best(self, key: str) -> str:
        """The best key, to which `key` was copied; "" where that failed."""
        self._best, target = key, best_key(self._prefix, self._model)
        try:
            self._store.copy(key, target)
        except StorageError as error:
            self._on_warning(f"The best checkpoint, {key}, was not copied to {target}: {error.message}", error.remedy)
            return ""
        return target

    def _drop_old(self) -> None:
        """Keeps the newest `keep` of this run (all with 0), and the best one; the next checkpoint retries the rest."""
        try:
            for key in self._written[: -self._keep] if self._keep else ():
                if key != self._best:
                    self._store.delete(key)
                    self._written.remove(key)
        except StorageError as error:
            self._on_warning(f"An old checkpoint was not deleted: {error.message}", error.remedy)


class CheckpointWriter:
    """Writes bytes to the bucket with the connector, through the standard endpoint, in a process of its own.

    The connector may retry without end or abort its process. The process starts with the first checkpoint, and is
    replaced when it died or had to be killed.
    """

    def __init__(self, connector: ConnectorSettings) -> None:
        self._connector = connector
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def write(self, key: str, data: bytes | memoryview, timeout_s: float, on_written: Callable[[int], None]) -> None:
        """Writes `data` to `key`, whose content is deleted first; `on_written` gets the bytes written so far.

        Raises ConsoleError, after at most `timeout_s`.
        """
        uri = f"oss://{self._connector.profile.bucket}/{key}"
        try:
            pipe = self._started()
        except OSError as error:
            self.close()
            raise ConsoleError(
                f"The process that writes the checkpoint {uri} could not be started: {error.strerror}.",
                remedy=f"Free memory or descriptors (`ulimit -n`). {NEXT_TRIED}",
            ) from error
        try:
            _send(pipe, key, data)
            problem = _answer(pipe, time.monotonic() + timeout_s, on_written)
        except (EOFError, OSError) as error:
            self.close()
            raise ConsoleError(
                f"The process that wrote the checkpoint {uri} ended unexpectedly.",
                remedy=f"The connector's log may have the reason. {NEXT_TRIED}",
            ) from error
        if problem is None:
            self.close()
            raise ConsoleError(
                f"The checkpoint {uri} was not written within {timeout_s:g} s.",
                remedy="Check the standard endpoint with `ossconsole doctor`; the run continues.",
            )
        if problem:
            raise ConsoleError(
                f"The connector did not write the checkpoint {uri}: {problem}.",
                remedy="`ossconsole doctor` shows the key's permissions; the run continues.",
            )

    def close(self) -> None:
        """Kills the process."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.kill()
            self._process.join(_STOP_TIMEOUT_S)
            self._process = None

    def _started(self) -> Connection:
        if self._process is not None and not self._process.is_alive():
            self.close()
        if self._pipe is None:
            self._process, self._pipe = spawn("checkpoint-writer", _serve, self._connector)
        return self._pipe


def _answer(pipe: Connection, deadline: float, on_written: Callable[[int], None]) -> str | None:
    """The final answer: "" for success, or an error; None when the deadline passes first."""
    while pipe.poll(max(0.0, deadline - time.monotonic())):
        answer: int | str = pipe.recv()
        if isinstance(answer, str):
            return answer
        on_written(answer)
    return None


def _send(pipe: Connection, key: str, data: bytes | memoryview) -> None:
    """Passes `data` as a memfd: writing it to the pipe would block while the process does not read."""
    descriptor = os.memfd_create("ossconsole-checkpoint")
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        pipe.send(key)
        send_handle(pipe, descriptor, None)


def _receive(pipe: Connection) -> tuple[str, mmap.mmap]:
    """The key and the bytes of a checkpoint, mapped read-only. Raises EOFError when the pipe is closed."""
    key: str = pipe.recv()
    descriptor = recv_handle(pipe)
    with contextlib.closing(os.fdopen(descriptor, "rb")):
        return key, mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)


def _serve(pipe: Connection, connector: ConnectorSettings) -> None:
    """The writer process: answers each key with byte counts, then "" or an error, until the pipe closes."""
    become_child(connector.native_log)
    opened = None
    while True:
        try:
            key, data = _receive(pipe)
        except (EOFError, OSError):
            return
        try:
            opened = opened or connector.open(EndpointKind.STANDARD)
            # As OssCheckpoint.writer does.
            with opened.open_wo(connector.profile.bucket, key) as writer:
                for start in range(0, len(data), _PIECE):
                    writer.write(data[start : start + _PIECE])
                    pipe.send(min(start + _PIECE, len(data)))
        except RuntimeError as error:  # the connector's only exception
            pipe.send(str(error) or "it gave no reason")
        else:
            pipe.send("")
