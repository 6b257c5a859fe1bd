"""ResNet-18 and where its first weights come from."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from ossconsole.config.errors import ConsoleError

IMAGENET_CLASSES = 1000
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
            state = {name: value for name, value in state.items() if not name.startswith("fc.")}
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
    path = Path(weights).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConsoleError(
            f"The weights {path} cannot be read: {error.strerror}.",
            remedy="Give --weights none, imagenet, a file, or oss://bucket/key.",
        ) from error
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
        raise ConsoleError(f"{where} has {len(data):,} bytes; that is no ResNet-18.", remedy="Choose another object.")
    _refuse_compressed(data, where)
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common type for what a hostile or cut file raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConsoleError(
            f"{where} is not a checkpoint that can be read safely: {reason}.", remedy="Choose another object."
        ) from error
    if not isinstance(loaded, dict):
        raise ConsoleError(
            f"{where} holds a {type(loaded).__name__}, not a dictionary.", remedy="Choose another object."
        )
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
            f"{where} unpacks to more than it holds; torch writes no such file.", remedy="Choose another object."
        )


def _model_state(loaded: dict[str, Any], where: str) -> dict[str, Any]:
    """The weights in a checkpoint of ours, or in a bare state dictionary."""
    state = loaded.get("model", loaded)
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConsoleError(f"{where} holds no weights.", remedy="Choose another object.")
    return state


def _load_into(model: nn.Module, state: dict[str, Any], where: str) -> None:
    try:
        outcome = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConsoleError(
            f"The weights {where} do not fit ResNet-18: {str(error).splitlines()[-1].strip()}.",
            remedy="Give the weights of a ResNet-18.",
        ) from error
    missing = [name for name in outcome.missing_keys if not name.startswith("fc.")]
    if missing or outcome.unexpected_keys:
        first = (missing or outcome.unexpected_keys)[0]
        raise ConsoleError(f"The weights {where} are not those of a ResNet-18: {first} is amiss.")
