"""ResNet-18 and its initial weights."""

from __future__ import annotations

import io
import itertools
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.checkpoints.refusal import refuse
from ossconsole.training.settings import WEIGHTS_REMEDY, check_weights

IMAGENET_CLASSES = 1000
_HEAD = "fc."
_KEYS_SHOWN = 6
_SAVE_STATE = "In the program that made it: torch.save(model.state_dict(), FILE)."
_WRAPPERS = {
    "module.": ("DataParallel or DistributedDataParallel", "module"),
    "_orig_mod.": ("torch.compile", "_orig_mod"),
}
_WORDNET_ID = re.compile(r"^n\d{8}$")

MAX_WEIGHTS_BYTES = 4 << 30
"""Larger files are refused: ResNet-18 with an optimizer's state has 90 MB."""


def build_model(classes: tuple[str, ...], weights: str, fetch: Callable[[str], bytes]) -> nn.Module:
    """A ResNet-18 for `classes`.

    `weights` is `none` (random), `imagenet` (torchvision's), a file, or an `oss://bucket/key`, for which `fetch`
    returns the bytes. A head with another number of classes is replaced by a new one. Raises ConsoleError when the
    weights cannot be loaded.
    """
    state = _load_weights(weights, fetch)
    keep_head = state is not None and _head_fits(state, classes)
    model: nn.Module = resnet18(num_classes=len(classes))
    if state is not None:
        if not keep_head:
            state = {name: value for name, value in state.items() if not name.startswith(_HEAD)}
        _load_into(model, state, weights)
    return model


def is_imagenet(classes: tuple[str, ...]) -> bool:
    """Whether the classes are ImageNet's 1,000: WordNet ids, sorted, which is the order of its label numbers."""
    return (
        len(classes) == IMAGENET_CLASSES
        and all(_WORDNET_ID.match(name) for name in classes)
        and list(classes) == sorted(classes)
    )


def _head_fits(state: dict[str, Any], classes: tuple[str, ...]) -> bool:
    head = state.get("fc.weight")
    rows = head.shape[0] if isinstance(head, torch.Tensor) else 0
    return rows == len(classes) and (rows != IMAGENET_CLASSES or is_imagenet(classes))


def _load_weights(weights: str, fetch: Callable[[str], bytes]) -> dict[str, Any] | None:
    if weights == "none":
        return None
    if weights == "imagenet":
        return _download()
    if weights.startswith("oss://"):
        return _model_state(load_untrusted(fetch(weights), weights), weights)
    check_weights(weights)
    path = Path(weights).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConsoleError(f"The weights {path} cannot be read: {error.strerror}.", remedy=WEIGHTS_REMEDY) from error
    return _model_state(load_untrusted(data, str(path)), str(path))


def _download() -> dict[str, Any]:
    source = ResNet18_Weights.IMAGENET1K_V1
    try:
        state: dict[str, Any] = source.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConsoleError(
            f"The ImageNet weights {source.url} cannot be downloaded: {error}.",
            remedy=f"Download that file on another machine and put it into {cache}, or pass it with --weights FILE, "
            "or train from scratch with --weights none.",
        ) from error
    return state


def load_untrusted(data: bytes, where: str) -> dict[str, Any]:
    """A dictionary saved with torch.save, loaded without running code. Raises ConsoleError for anything else."""
    if len(data) > MAX_WEIGHTS_BYTES:
        raise ConsoleError(
            f"{where} has {len(data):,} bytes, too large for a ResNet-18.", remedy="Select another file."
        )
    _refuse_compressed(data, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickle protocols, with advice for torch's developers
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents no common type for hostile or truncated files
        # Its text is not shown: it advises to load the file with the code in it.
        refusal = refuse(data)
        raise ConsoleError(f"{where} {refusal.what}.", remedy=refusal.remedy) from error
    if not isinstance(loaded, dict):
        raise ConsoleError(f"{where} contains a {type(loaded).__name__}, no dictionary of weights.", remedy=_SAVE_STATE)
    return loaded


def _refuse_compressed(data: bytes, where: str) -> None:
    """Raises ConsoleError when the archive is compressed: torch stores every member uncompressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except Exception:  # noqa: BLE001 - torch reports what is wrong, or reads an older format
        return
    if sum(member.file_size for member in members) > len(data):
        raise ConsoleError(
            f"{where} is a compressed archive; torch does not write such files.", remedy="Select another file."
        )


def _model_state(loaded: dict[str, Any], where: str) -> dict[str, Any]:
    """The weights in a checkpoint of ours, or a bare state dictionary. Raises ConsoleError for other layouts."""
    state = loaded.get("model", loaded)
    if _has_tensors(state):
        _refuse_prefix(state, where)
        return dict(state)
    for key, value in loaded.items():
        if _has_tensors(value):
            raise ConsoleError(
                f"{where} stores its weights under {key!r}, which is not supported.",
                remedy=f'Save that part alone: torch.save(torch.load(FILE, weights_only=True)[{key!r}], "weights.pt").',
            )
    keys = ", ".join(map(repr, itertools.islice(loaded, _KEYS_SHOWN))) or "nothing"
    raise ConsoleError(f"{where} contains no weights, only {keys}.", remedy=_SAVE_STATE)


def _has_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(part, torch.Tensor) for part in value.values())


def _refuse_prefix(state: dict[str, Any], where: str) -> None:
    """Raises ConsoleError when every name begins with the prefix of a wrapper around the model."""
    for prefix, (maker, attribute) in _WRAPPERS.items():
        if all(str(name).startswith(prefix) for name in state):
            raise ConsoleError(
                f"{where} was saved through {maker}: each name begins with {prefix!r}.",
                remedy=f"Save the model inside: torch.save(model.{attribute}.state_dict(), FILE).",
            )


def _load_into(model: nn.Module, state: dict[str, Any], where: str) -> None:
    """Raises ConsoleError when the weights belong to another model, or are not finite."""
    problem = _mismatch(model.state_dict(), state)
    if problem:
        raise ConsoleError(
            f"The weights {where} do not fit a ResNet-18: {problem}.",
            remedy="Give weights of torchvision's resnet18, or train from scratch with --weights none.",
        )
    refuse_not_finite(state, where)
    model.load_state_dict(state, strict=False)


def _mismatch(own: dict[str, Any], state: dict[str, Any]) -> str:
    """The first difference of `state` from the model's names and shapes; "" when all but the head match."""
    missing = [name for name in own if name not in state and not name.startswith(_HEAD)]
    extra = [name for name in state if name not in own]
    if missing:
        return f"{missing[0]} is missing" + (f", and {extra[0]} is unexpected" if extra else "")
    if extra:
        return f"the key {extra[0]} is unexpected"
    for name, value in state.items():
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
        if shape != tuple(own[name].shape):
            return f"{name} has the shape {shape or 'of no tensor'} instead of {tuple(own[name].shape)}"
    return ""


def refuse_not_finite(state: dict[str, Any], where: str) -> None:
    """Raises ConsoleError when a weight is NaN or infinite."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise ConsoleError(
                f"The weights {where} contain NaN or infinite values, for example in {name}: that training diverged.",
                remedy="Use an earlier checkpoint, or other weights.",
            )
