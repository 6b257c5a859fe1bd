"""Initial weights of a model: downloaded, from a file or from the bucket, and adapted to its head."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import typed_path
from ossconsole.config.text import counted
from ossconsole.dataset.labels import imagenet_classes
from ossconsole.telemetry.events import megabytes
from ossconsole.training.compute.weights_file import Weights, dtype_name, read_weights, refuse_not_finite
from ossconsole.training.settings import WEIGHTS_REMEDY, check_weights

IMAGENET_CLASSES = 1000
_POSITIONS = "encoder.pos_embedding"  # of a vision transformer; their number depends on the image size
_AUXILIARY = {"AuxLogits", "aux1", "aux2"}  # classifiers of Inception and GoogLeNet that our models leave out

_TIMEOUT_S = 20.0  # of connecting, and of each read
_BLOCK_BYTES = 1 << 20
_POLL_S = 0.2

OnMessage: TypeAlias = Callable[[str], object]


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights of a `model` are from: `place` is `none`, `imagenet`, a file, or an `oss://bucket/key`."""

    place: str
    model: str

    def __str__(self) -> str:
        return f"ImageNet weights of {self.model}" if self.place == "imagenet" else f"weights {self.place}"


def load_weights(
    source: WeightsSource,
    fetch: Callable[[str], bytes],
    *,
    report: OnMessage,
    stopped: Callable[[], bool],
) -> Weights | None:
    """The weights of the source; None for `none`, and when a download is `stopped`. Raises ConsoleError."""
    place = source.place
    if place == "none":
        return None
    if place == "imagenet":
        return _imagenet(source, report, stopped)
    if place.startswith("oss://"):
        return read_weights(fetch(place), place)
    check_weights(place)
    path = typed_path(place)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConsoleError(f"The weights {path} cannot be read: {error.strerror}.", remedy=WEIGHTS_REMEDY) from error
    return read_weights(data, str(path))


def _imagenet(source: WeightsSource, report: OnMessage, stopped: Callable[[], bool]) -> Weights | None:
    """torchvision's weights; None when the download is stopped."""
    enum = models.get_model_weights(source.model).DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        if not _in_cache(enum.url, folder, report, stopped):
            return None
        # Through torchvision's model: some weights have parameters that are renamed or left out when they are loaded.
        loaded = models.get_model(source.model, weights=enum, progress=False)
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # a damaged file is a RuntimeError
        raise ConsoleError(
            f"The ImageNet weights {enum.url} cannot be loaded: {str(error).splitlines()[0].rstrip('.:')}.",
            remedy=f"Download that file on another machine and put it into {folder}, or pass it with --weights FILE, "
            "or train from scratch with --weights none.",
        ) from error
    return Weights(loaded.state_dict(), imagenet_classes())


def _in_cache(url: str, folder: Path, report: OnMessage, stopped: Callable[[], bool]) -> bool:
    """Downloads the file unless it is there; False when `stopped`. Other processes wait for the one that downloads.

    torch.hub waits without limit for a server that does not respond. Raises OSError.
    """
    path = folder / url.rpartition("/")[2]
    if path.exists():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, stopped) as locked:
        return path.exists() or (locked and _download(url, path, report, stopped))


@contextlib.contextmanager
def _locked(folder: Path, stopped: Callable[[], bool]) -> Iterator[bool]:
    """Waits until no other process has the lock of the folder; False when stopped."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        while not stopped():
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield True
                return
            time.sleep(_POLL_S)
        yield False
    finally:
        os.close(descriptor)


def _download(url: str, path: Path, report: OnMessage, stopped: Callable[[], bool]) -> bool:
    """Downloads to `path` and checks the hash in its name; False when stopped. Raises OSError."""
    part = path.with_name(f"{path.name}.part")
    digest, begun = hashlib.sha256(), time.monotonic()
    report(f"Downloading {url} to {path.parent}.")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, part.open("wb") as file:  # noqa: S310 - https
            while block := answer.read(_BLOCK_BYTES):
                if stopped():
                    return False
                digest.update(block)
                file.write(block)
        expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
        if expected and not digest.hexdigest().startswith(expected[1]):
            raise OSError("the file that arrived does not have the SHA-256 in its name")
        report(f"Downloaded {megabytes(part.stat().st_size)} in {time.monotonic() - begun:.0f} s.")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return True


def adapted(
    weights: Weights, own: Mapping[str, torch.Tensor], classes: tuple[str, ...], head: frozenset[str]
) -> tuple[dict[str, Any], bool]:
    """The weights for a model that has the parameters `own` and a `head` for `classes`, and whether they have its head.

    Where the classes of the weights include them, the head has their rows. A thousand classes that are not known are
    ImageNet's. Positions of a vision transformer are interpolated to another image size.
    """
    state = {name: value for name, value in weights.state.items() if name.split(".")[0] not in _AUXILIARY}
    positions, wanted = state.get(_POSITIONS), own.get(_POSITIONS)
    if isinstance(positions, torch.Tensor) and wanted is not None and positions.shape != wanted.shape:
        _resize_positions(state, wanted)
    rows = _head_rows(weights, classes, head)
    if rows is None:
        return {name: value for name, value in state.items() if name not in head}, False
    return {name: value[rows] if name in head else value for name, value in state.items()}, True


def describe_new_head(weights: Weights, classes: tuple[str, ...], head: frozenset[str]) -> str:
    """Why the head of the weights is not used for `classes`, as a sentence."""
    count = _head_size(weights, head)
    if count is None:
        return "The head is new: the weights have none."
    if count == len(classes):
        return f"The head is new: the weights are for {count} other classes."
    return f"The head is new: {count} → {counted(len(classes), 'class', 'classes')}."


def _head_size(weights: Weights, head: frozenset[str]) -> int | None:
    """The number of classes of the head of the weights; None where they have no such parameters."""
    given = [weights.state.get(name) for name in head]
    counts = {len(value) if isinstance(value, torch.Tensor) and value.ndim else 0 for value in given}
    return next(iter(counts)) or None if len(counts) == 1 else None


def _head_rows(weights: Weights, classes: tuple[str, ...], head: frozenset[str]) -> list[int] | None:
    """The rows of the head of the weights for `classes`; None where it does not have them all."""
    count = _head_size(weights, head)
    if count is None:
        return None
    known = weights.classes or (imagenet_classes() if count == IMAGENET_CLASSES else None)
    if known is None:
        return list(range(count)) if count == len(classes) else None
    places = {name: row for row, name in enumerate(known)}
    if len(known) != count or not places.keys() >= set(classes):
        return None
    return [places[name] for name in classes]


def _resize_positions(state: dict[str, Any], wanted: torch.Tensor) -> None:
    """Interpolates the positions in `state`; leaves them where their numbers are not those of square images."""
    patches, width = wanted.shape[1] - 1, wanted.shape[2]
    side = round(patches**0.5)
    old = state[_POSITIONS]
    if side * side == patches and old.ndim == 3 and old.shape[2] == width:
        with contextlib.suppress(ValueError):
            state.update(interpolate_embeddings(image_size=side, patch_size=1, model_state=dict(state)))


def load_into(model: nn.Module, state: dict[str, Any], source: WeightsSource, head: frozenset[str]) -> None:
    """Loads the weights, which may lack the `head`.

    Raises ConsoleError when the weights belong to another model, or are not finite.
    """
    problem = _mismatch(model.state_dict(), state, head)
    if problem:
        raise ConsoleError(
            f"The {source} do not fit {source.model}: {problem}.",
            remedy=f"Give weights of torchvision's {source.model}, another --model, or --weights none.",
        )
    refuse_not_finite(state, source.place)
    model.load_state_dict(state, strict=False)


def describe_conversion(model: nn.Module, state: dict[str, Any]) -> str:
    """From which dtypes `load_into` converts the weights, as a sentence; "" where it converts none."""
    own = model.state_dict()
    found = {dtype_name(value) for name, value in state.items() if name in own and value.dtype != own[name].dtype}
    return f"The weights are converted from {' and '.join(sorted(found))} to float32." if found else ""


def _mismatch(own: dict[str, Any], state: dict[str, Any], head: frozenset[str]) -> str:
    """The first difference of `state` from the model's names and shapes; "" when all but the head match."""
    missing = [name for name in own if name not in state and name not in head]
    extra = [name for name in state if name not in own]
    if missing:
        return f"{missing[0]} is missing" + (f", and {extra[0]} is unexpected" if extra else "")
    if extra:
        return f"the key {extra[0]} is unexpected"
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            return f"{name} is not a tensor"
        if value.shape != own[name].shape:
            return f"{name} has the shape {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        if value.is_quantized or value.is_floating_point() != own[name].is_floating_point():
            return f"{name} has the dtype {dtype_name(value)} instead of {dtype_name(own[name])}"
    return ""
