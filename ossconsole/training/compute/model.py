"""ResNet-18 and where its first weights come from."""

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
from ossconsole.training.preflight import WEIGHTS_REMEDY, check_weights

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
"""ResNet-18 with an optimizer's state is 90 MB; anything beyond this is not one."""


def build_model(classes: tuple[str, ...], weights: str, fetch: Callable[[str], bytes]) -> nn.Module:
    """A ResNet-18 for `classes`.

    `weights` is `none` (random), `imagenet` (torchvision's), a file, or an `oss://bucket/key`, for which `fetch` gives
    the bytes. A head of another number of classes is replaced by a new one. Raises ConsoleError when they can't be had.
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
    """Whether the labels are ImageNet's 1,000: WordNet ids in sorted order, which is the order of its label numbers."""
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
            remedy=f"Fetch that file elsewhere and put it into {cache}, or pass it with --weights FILE, "
            "or train from scratch with --weights none.",
        ) from error
    return state


def load_untrusted(data: bytes, where: str) -> dict[str, Any]:
    """A dictionary saved with torch.save, read without running any code in it. Raises ConsoleError when it is none."""
    if len(data) > MAX_WEIGHTS_BYTES:
        raise ConsoleError(f"{where} has {len(data):,} bytes; that is no ResNet-18.", remedy="Choose another file.")
    _refuse_compressed(data, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols, with advice for torch's developers
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common type for what a hostile or cut file raises
        # Its text is not shown: it advises to load the file with all the code that is in it.
        found = refuse(data)
        raise ConsoleError(f"{where} {found.what}.", remedy=found.remedy) from error
    if not isinstance(loaded, dict):
        raise ConsoleError(f"{where} holds a {type(loaded).__name__}, not a dictionary of weights.", remedy=_SAVE_STATE)
    return loaded


def _refuse_compressed(data: bytes, where: str) -> None:
    """Raises ConsoleError where the archive would unpack to more than it holds: torch writes every member as it is."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except Exception:  # noqa: BLE001 - what is wrong with it, or whether it is an older format, torch finds out
        return
    if sum(member.file_size for member in members) > len(data):
        raise ConsoleError(
            f"{where} unpacks to more than it holds; torch writes no such file.", remedy="Choose another file."
        )


def _model_state(loaded: dict[str, Any], where: str) -> dict[str, Any]:
    """The weights in a checkpoint of ours, or in a bare state dictionary. Raises ConsoleError for other layouts."""
    state = loaded.get("model", loaded)
    if _has_tensors(state):
        _refuse_prefix(state, where)
        return dict(state)
    for key, value in loaded.items():
        if _has_tensors(value):
            raise ConsoleError(
                f"{where} keeps its weights under {key!r}, which is not read here.",
                remedy=f'Save that part alone: torch.save(torch.load(FILE, weights_only=True)[{key!r}], "weights.pt").',
            )
    keys = ", ".join(map(repr, itertools.islice(loaded, _KEYS_SHOWN))) or "nothing"
    raise ConsoleError(f"{where} holds no weights, only {keys}.", remedy=_SAVE_STATE)


def _has_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(part, torch.Tensor) for part in value.values())


def _refuse_prefix(state: dict[str, Any], where: str) -> None:
    """Raises ConsoleError where every name begins with what wraps a model."""
    for prefix, (maker, attribute) in _WRAPPERS.items():
        if all(str(name).startswith(prefix) for name in state):
            raise ConsoleError(
                f"{where} was saved through {maker}: each name begins with {prefix!r}.",
                remedy=f"Save the model inside: torch.save(model.{attribute}.state_dict(), FILE).",
            )


def _load_into(model: nn.Module, state: dict[str, Any], where: str) -> None:
    """Raises ConsoleError where the weights are another model's, or no finite numbers."""
    problem = _mismatch(model.state_dict(), state)
    if problem:
        raise ConsoleError(
            f"The weights {where} are not those of a ResNet-18: {problem}.",
            remedy="Give weights of torchvision's resnet18, or train from scratch with --weights none.",
        )
    refuse_not_finite(state, where)
    model.load_state_dict(state, strict=False)


def _mismatch(own: dict[str, Any], state: dict[str, Any]) -> str:
    """The first way in which `state` differs from the model's own names and shapes; "" where it fits but for a head."""
    missing = [name for name in own if name not in state and not name.startswith(_HEAD)]
    extra = [name for name in state if name not in own]
    if missing:
        return f"{missing[0]} is missing" + (f", and {extra[0]} is not part of one" if extra else "")
    if extra:
        return f"{extra[0]} is not part of one"
    for name, value in state.items():
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else None
        if shape != tuple(own[name].shape):
            return f"{name} has the shape {shape or 'of no tensor'} instead of {tuple(own[name].shape)}"
    return ""


def refuse_not_finite(state: dict[str, Any], where: str) -> None:
    """Raises ConsoleError where a weight is NaN or infinite."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise ConsoleError(
                f"The weights {where} hold NaN or infinite values, in {name} for one: that training diverged.",
                remedy="Use an earlier checkpoint, or other weights.",
            )
