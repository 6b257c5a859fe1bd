"""`ossconsole.OssCheckpoints`: any `state_dict` in the bucket, verified after each write."""

from __future__ import annotations

import contextlib
import io
import math
import operator
import pickle
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ossconsole.api.arguments import ArgumentError
from ossconsole.api.profile import open_profile
from ossconsole.config.errors import ConsoleError
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.telemetry.events import Checkpoint
from ossconsole.telemetry.runs import new_run_id
from ossconsole.training.checkpoints.store import BEST, LATEST, CheckpointStore, RunProgress, best_key, stable_key
from ossconsole.training.compute.device import map_tensors
from ossconsole.training.compute.weights_file import load_untrusted
from ossconsole.training.loading.connector import ConnectorSettings

_TIMEOUT_S = 150.0  # of each of two attempts


class OssCheckpoints:
    """Saves and loads `state_dict`s below the profile's checkpoint prefix, or below `prefix`.

    Each one gets a key of its own, `NAME-RUN-eEPOCH-sSTEP.pt`, is verified by its size and CRC64, and is copied to
    `NAME.pt`; the best so far also to `NAME-best.pt`. The newest `keep` of this run are kept, all with 0, and the best
    one. The console browses them as its own. `profile`, `bucket` and `region` are those of OssImages.

    Raises ConsoleError: for example without a profile or without credentials.
    """

    def __init__(
        self, name: str, *, keep: int = 3, profile: str = "", bucket: str = "", region: str = "", prefix: str = ""
    ) -> None:
        _check_name(name, keep)
        self._name = name
        self._closed = False
        with contextlib.ExitStack() as resources:
            flags = {"profile": profile, "bucket": bucket, "region": region, "checkpoint_prefix": prefix}
            opened = open_profile(resources, flags)
            connector = ConnectorSettings.of(opened.profile, opened.credentials)
            self._store = resources.enter_context(contextlib.closing(ObjectStore(opened.profile, opened.credentials)))
            self._prefix = opened.profile.checkpoint_prefix
            self._checkpoints = CheckpointStore(
                connector, self._store, new_run_id(), keep=keep, timeout_s=_TIMEOUT_S, model=name
            )
            resources.callback(self._checkpoints.close)
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            resources.callback(self._writer.shutdown)
            self._resources = resources.pop_all()
        self._best = -math.inf
        self._writing: Future[str] | None = None

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        epoch: int = 0,
        top1: float | None = None,
        background: bool = False,
    ) -> Future[str]:
        """Writes `state` (plain values and tensors, as for torch.save) and returns a future of its key.

        The tensors are copied first, so that training may continue; without `background` the write is complete when
        this returns. `top1` (a fraction of 1) decides which one is the best. One is written at a time: this waits for
        the one before. Raises ConsoleError when a write failed, of the one before too; earlier checkpoints are kept.
        Raises ArgumentError for a `state` that `load` would refuse, because code runs when it is loaded.
        """
        self._check_open()
        self.wait()
        top1 = None if top1 is None else float(top1)
        is_best = top1 is not None and top1 > self._best
        data = _serialized(state)
        step, epoch = _whole("step", step), _whole("epoch", epoch)
        progress = RunProgress(epoch=epoch, step=step, train_sums=[], metrics={"top1": top1})
        self._writing = self._writer.submit(self._save, data, progress, is_best)
        written = self._writing
        if not background:
            self.wait()
        return written

    def _save(self, data: bytes, progress: RunProgress, is_best: bool) -> str:
        saved: Checkpoint = self._checkpoints.save(data, progress, best=is_best)
        if saved.best_key and saved.top1 is not None:
            self._best = saved.top1
        return saved.key

    def _check_open(self) -> None:
        if self._closed:
            raise ConsoleError("These OssCheckpoints were closed.", remedy="Make new ones, or close them later.")

    def wait(self) -> None:
        """Waits until the last `save` is complete. Raises ConsoleError when it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load(self, which: str = LATEST) -> dict[str, Any]:
        """The state that was saved last ("latest"), the "best" one, or that of a key; tensors are on the CPU.

        It is loaded without running code. Raises ConsoleError where there is none, or where it is not a dictionary.
        """
        self._check_open()
        keys = {LATEST: stable_key(self._prefix, self._name), BEST: best_key(self._prefix, self._name)}
        key = keys.get(which, which)
        try:
            data = self._store.get(key)
        except StorageError as error:
            if error.code != "NoSuchKey":
                raise
            raise ConsoleError(
                f"There is no checkpoint {self._store.uri(key)}.",
                remedy="Save one first, or check the name and the prefix.",
            ) from error
        return load_untrusted(data, self._store.uri(key))

    def close(self) -> None:
        """Waits for the write under way, and ends the writer. Raises ConsoleError when that write failed."""
        self._closed = True
        try:
            self.wait()
        finally:
            self._resources.close()

    def __enter__(self) -> OssCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _check_name(name: object, keep: object) -> None:
    """Raises ArgumentError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArgumentError(
            f"ossconsole.OssCheckpoints got the name {name!r}.",
            remedy="Give one of letters, digits, dots, hyphens and underscores; the folder is the prefix.",
        )
    _whole("keep", keep)


def _whole(argument: str, value: Any) -> int:
    """The integer, also of NumPy or of a tensor with one element. Raises ArgumentError."""
    try:
        found = operator.index(value)
    except TypeError:
        found = -1
    if found < 0:
        raise ArgumentError(
            f"ossconsole.OssCheckpoints got {argument}={value!r}.", remedy="Give a whole number of 0 or more."
        )
    return found


def _serialized(state: Mapping[str, Any]) -> bytes:
    """The file of torch.save with copies of the tensors. Raises ArgumentError where `load` would refuse it."""
    if not isinstance(state, Mapping):
        raise ArgumentError(
            f"The state is a {type(state).__name__}, not a dictionary.",
            remedy='Save model.state_dict(), or several in a dictionary: {"model": model.state_dict(), "step": step}.',
        )
    buffer = io.BytesIO()
    try:
        torch.save(map_tensors(dict(state), lambda tensor: tensor.detach().to("cpu", copy=True)), buffer)
    except (AttributeError, TypeError, pickle.PicklingError) as error:  # of a lambda, a file, a lock
        raise ArgumentError(f"The state cannot be saved: {error}.", remedy=_PLAIN) from error
    buffer.seek(0)
    find = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)  # torch 2.5 lacks it
    foreign: Sequence[str] = find(buffer) if find is not None else ()
    if foreign:
        names = ", ".join(sorted(foreign)[:_NAMES_SHOWN])
        raise ArgumentError(f"The state needs {names} to be loaded, which is code: load() refuses it.", remedy=_PLAIN)
    return buffer.getvalue()


_NAMES_SHOWN = 3
_PLAIN = "Save tensors and plain values, such as model.state_dict(), vars(args), float(x) and str(path)."
