"""Checkpoints: what is in one, how it is written without risk to the last one, and how it is read."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fastcrc
import torch
import torchvision

from ossconsole import __version__
from ossconsole.config.errors import ConsoleError
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.multipart import abort_upload, list_uploads
from ossconsole.storage.retry import NO_RETRY, RetryPolicy, Wait
from ossconsole.telemetry.runs import record_path, summarise
from ossconsole.training.checkpoints.writer import CheckpointWriter
from ossconsole.training.compute.device import map_tensors
from ossconsole.training.compute.model import MAX_WEIGHTS_BYTES, load_untrusted
from ossconsole.training.loading.connector import ConnectorSettings

FORMAT = "ossconsole-checkpoint"
VERSION = 1
STABLE_NAME = "resnet18.pt"
BEST_NAME = "resnet18-best.pt"
_EXPLAIN_TIMEOUT_S = 5.0
_WRITES = RetryPolicy(attempts=2, first_wait_s=2.0)  # the connector has retried each of its requests by then


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps and epochs done, and the sums of the epoch under way."""

    epoch: int
    step: int
    train_sums: list[float]
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Saved:
    """A checkpoint in the bucket. `seconds` until its last copy; `best_key` is "" when it is not the best."""

    key: str
    stable_key: str
    best_key: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is made of; the tensors of `trainer_state` are there, and stay as they are, after `arrived`."""

    trainer_state: dict[str, Any]
    progress: Progress
    about: dict[str, Any]
    arrived: Callable[[], object]

    def pack(self) -> bytes:
        """The bytes of the checkpoint."""
        self.arrived()
        return pack(map_tensors(self.trainer_state, _with_own_storage), self.progress, self.about)


def _with_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Of tensors that share a storage torch.save writes it whole, and who loads one of them holds them all."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def checkpoint_key(prefix: str, run: str, progress: Progress) -> str:
    """The unique key: opening the connector's writer deletes the key, so none that matters is ever opened."""
    return f"{prefix}/resnet18-{run}-e{progress.epoch:02d}-s{progress.step:06d}.pt"


_KEY_NAME = re.compile(r"resnet18-(?P<run>.+)-e\d+-s\d+\.pt")


def _is_over(run: str) -> bool:
    """Whether the record of a run is on this machine, and says that it ended, or its process is gone."""
    try:
        found = summarise(record_path(run))
    except ConsoleError:  # a run of another machine or user has no record here
        return False
    return found.alive is False or (found.alive is True and found.state.final)


def stable_key(prefix: str) -> str:
    """Where the newest checkpoint always is."""
    return f"{prefix}/{STABLE_NAME}"


def best_key(prefix: str) -> str:
    """Where the checkpoint with the highest top-1 of the last run is."""
    return f"{prefix}/{BEST_NAME}"


def pack(trainer_state: dict[str, Any], progress: Progress, about: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint. `about` describes run, data and settings in plain values; nothing in it is secret."""
    buffer = io.BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "version": VERSION,
            "epoch": progress.epoch,
            "step": progress.step,
            "train_sums": progress.train_sums,
            "metrics": progress.metrics,
            "versions": {
                "ossconsole": __version__,
                "torch": str(torch.__version__),
                "torchvision": str(torchvision.__version__),
            },
            **about,
            **trainer_state,
        },
        buffer,
    )
    return buffer.getvalue()


def unpack(data: bytes, where: str) -> dict[str, Any]:
    """The checkpoint in `data`, no code of it run. Raises ConsoleError when it is not one of ours."""
    state = load_untrusted(data, where)
    if state.get("format") != FORMAT:
        raise ConsoleError(
            f"{where} is not a checkpoint of this console.", remedy="To start from its weights use --weights instead."
        )
    if state.get("version") != VERSION:
        raise ConsoleError(
            f"{where} has checkpoint version {state.get('version')!r}; this program reads {VERSION}.",
            remedy="Use the ossconsole that wrote it.",
        )
    return state


class CheckpointStore:
    """Writes a run's checkpoints: the connector a unique key, which oss2 verifies and copies to the stable one."""

    def __init__(
        self, connector: ConnectorSettings, store: ObjectStore, run: str, *, keep: int, timeout_s: float
    ) -> None:
        self._store = store
        self._prefix = connector.profile.checkpoint_prefix
        self._run = run
        self._keep = keep
        self._timeout_s = timeout_s
        self._connector = connector
        self._writer = CheckpointWriter(connector)
        self._written: list[str] = []
        self._doubtful: list[str] = []  # given up, but something of them may have arrived
        self._best = ""

    def save(
        self,
        data: bytes,
        progress: Progress,
        *,
        best: bool = False,
        on_written: Callable[[str, int], None] = lambda _key, _bytes: None,
    ) -> Saved:
        """`best` tells that it is the best of the run so far: it is copied to the best key too, and kept longer.

        `on_written` gets the key and how many bytes were written, every few megabytes. Raises ConsoleError when it did
        not arrive; the stable key then still holds the checkpoint before.
        """
        begun = time.perf_counter()
        key = checkpoint_key(self._prefix, self._run, progress)
        self._write(key, data, functools.partial(on_written, key))
        if key not in self._written:
            self._written.append(key)
        self._store.copy(key, stable_key(self._prefix))
        if best:
            self._store.copy(key, best_key(self._prefix))
            self._best = key
        self._drop_old()
        self._tidy()
        copied = best_key(self._prefix) if best else ""
        return Saved(key, stable_key(self._prefix), copied, len(data), time.perf_counter() - begun)

    def close(self) -> None:
        self._writer.close()

    def adopt(self) -> None:
        """Counts what this run wrote before torchrun started it anew as its own. Raises StorageError."""
        begin = checkpoint_key(self._prefix, self._run, Progress(0, 0, [], {})).removesuffix("e00-s000000.pt")
        self._written = sorted(found.key for found in self._store.list_all(begin))

    def abort_leftovers(self) -> list[str]:
        """Aborts what runs of this machine that are over, such as killed ones, began to upload; gives the keys.

        Raises StorageError.
        """
        aborted = []
        with contextlib.closing(self._impatient()) as store:
            for upload in list_uploads(store, f"{self._prefix}/resnet18-"):
                match = _KEY_NAME.fullmatch(upload.key.removeprefix(f"{self._prefix}/"))
                if match is not None and (match["run"] == self._run or _is_over(match["run"])):
                    abort_upload(store, upload)
                    aborted.append(upload.key)
        return aborted

    def _write(self, key: str, data: bytes, on_written: Callable[[int], None]) -> None:
        """Through the connector, with retries where OSS takes writes or only throttles; the reason is OSS's own."""

        def attempt() -> None:
            try:
                self._write_once(key, data, on_written)
            except ConsoleError as error:
                own = StorageError(error.message, remedy=error.remedy, retriable=True, action=f"writing {key}")
                raise (self._refusal(key) or own) from error

        try:
            _WRITES.run(attempt, _sleep)
        except StorageError as error:
            if error.retriable:
                self._doubtful.append(key)
                self._tidy()
            raise

    def _write_once(self, key: str, data: bytes, on_written: Callable[[int], None]) -> None:
        try:
            self._writer.write(key, data, self._timeout_s, on_written)
        except ConsoleError:
            # Perhaps it was only the reply that got lost.
            with contextlib.closing(self._impatient()) as store:
                try:
                    self._verify(store, key, data)
                except ConsoleError:
                    written = False
                else:
                    written = True
            if not written:
                raise
        else:
            self._verify(self._store, key, data)

    def _tidy(self) -> None:
        """Removes what is left of those given up, where that works now; it is tried again after the next checkpoint."""
        with contextlib.suppress(StorageError), contextlib.closing(self._impatient()) as store:
            for key in self._doubtful.copy():
                if key not in self._written:
                    store.delete(key)
                    for upload in list_uploads(store, key):
                        abort_upload(store, upload)
                self._doubtful.remove(key)

    def _refusal(self, key: str) -> StorageError | None:
        """Why OSS does not take the object now, in its own words; None when it would. The connector does not tell."""
        with contextlib.closing(self._impatient()) as store:
            try:
                store.check_write(key)
            except StorageError as error:
                return error
        return None

    def _impatient(self) -> ObjectStore:
        """A store that tells soon what is wrong."""
        connector = self._connector
        return ObjectStore(connector.profile, connector.credentials, timeout_s=_EXPLAIN_TIMEOUT_S, retry=NO_RETRY)

    def _verify(self, store: ObjectStore, key: str, data: bytes) -> None:
        info = store.head(key)
        if info.size != len(data):
            raise ConsoleError(
                f"The checkpoint {self._store.uri(key)} has {info.size:,} of {len(data):,} bytes.",
                remedy="The run goes on; the next checkpoint is tried as usual.",
            )
        if info.crc64 is not None and info.crc64 != fastcrc.crc64.xz(data):
            raise ConsoleError(
                f"The checkpoint {self._store.uri(key)} differs from what was written (CRC64).",
                remedy="The run goes on; the next checkpoint is tried as usual.",
            )

    def _drop_old(self) -> None:
        """Keeps the newest `keep` of this run (all with 0), and the best one."""
        if self._keep:
            for key in self._written[: -self._keep]:
                if key != self._best:
                    self._store.delete(key)
                    self._written.remove(key)


def _sleep(wait: Wait) -> None:
    time.sleep(wait.seconds)


_URI = re.compile(r"^oss://(?P<bucket>[^/]+)/(?P<key>.+)$")


def fetch_uri(store: ObjectStore, uri: str) -> bytes:
    """The object of an `oss://bucket/key`. Raises ConsoleError when it is in another bucket than the profile's, or
    larger than weights can be.
    """
    match = _URI.match(uri)
    if match is None or match["bucket"] != store.profile.bucket:
        raise ConsoleError(
            f"{uri} is not an object of the bucket {store.profile.bucket}.",
            remedy=f"Give oss://{store.profile.bucket}/<key>, or another --profile.",
        )
    size = store.head(match["key"]).size
    if size > MAX_WEIGHTS_BYTES:  # before it fills the memory
        raise ConsoleError(f"{uri} has {size:,} bytes; that is no ResNet-18.", remedy="Choose another object.")
    return store.get(match["key"])
