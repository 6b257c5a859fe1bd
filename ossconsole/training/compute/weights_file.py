"""Weights files of torch.save and of safetensors, as other programs lay them out, read without running code in them."""

from __future__ import annotations

import io
import itertools
import json
import warnings
import zipfile
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import safetensors.torch
import torch

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.checkpoints.inspect import MODEL_KEYS, CheckpointError
from ossconsole.storage.checkpoints.refusal import COPY_AGAIN, refuse
from ossconsole.storage.checkpoints.safetensors_header import NotSafetensorsError, is_safetensors, read_header

MAX_WEIGHTS_BYTES = 8 << 30
"""Larger files are refused: the largest model, regnet_y_128gf, has 2.6 GB, thrice that with an optimizer's state."""

_KEYS_SHOWN = 6
_SAVE_STATE = "In the program that made it: torch.save(model.state_dict(), FILE)."
# Averaged weights: ours of earlier versions, those of torchvision's scripts, of timm and of others.
_AVERAGED_KEYS = ("average", "model_ema", "state_dict_ema", "ema_state_dict", "ema")
_AVERAGED_PATHS = {(key,) for key in _AVERAGED_KEYS}
CURRENT_KEY = "current"
"""In our checkpoints, the weights that training resumes from, where `model` has the averaged ones."""

_STATE_KEYS = (*_AVERAGED_KEYS, *MODEL_KEYS)
_COUNTER = "n_averaged"  # of torch's AveragedModel
_COMPILED = "_orig_mod."  # torch.compile, also in the middle of a name
_PREFIXES = ("module.", "model.", "net.")  # DistributedDataParallel and DataParallel; Lightning
_MAX_DEPTH = 3


@dataclass(frozen=True)
class Weights:
    """A `state_dict`, and the classes of its head in their order; None where they are not known.

    `facts` are the values beside the weights (`model_name`, `image_size`, …). `averaged` ones are an EMA. `note` says
    which part of the file they are, where that needs saying.
    """

    state: dict[str, Any]
    classes: tuple[str, ...] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    averaged: bool = False
    note: str = ""


def read_weights(data: bytes, where: str) -> Weights:
    """The weights in a checkpoint of ours, or in a file of another program. Raises ConsoleError for anything else.

    Averaged weights (EMA) are preferred: validation evaluates them.
    """
    if is_safetensors(data[:16], len(data)):
        return _of_safetensors(data, where)
    return _of_dictionary(load_untrusted(data, where), where)


def load_untrusted(data: bytes, where: str) -> dict[str, Any]:
    """A dictionary saved with torch.save, loaded without running code. Raises ConsoleError for anything else."""
    refuse_too_large(len(data), where)
    _refuse_compressed(data, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickle protocols, with advice for torch's developers
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents no common type for hostile or truncated files
        # Its text is not shown: it advises to load the file with the code in it.
        refusal = refuse(data)
        raise CheckpointError(f"{where} {refusal.what}.", remedy=refusal.remedy) from error
    if not isinstance(loaded, dict):
        raise ConsoleError(
            f"{where} contains a {type(loaded).__name__}, not a dictionary of weights.", remedy=_SAVE_STATE
        )
    return loaded


def refuse_too_large(size: int, where: str) -> None:
    """Raises ConsoleError for a file of more than MAX_WEIGHTS_BYTES, before it is read."""
    if size > MAX_WEIGHTS_BYTES:
        raise ConsoleError(f"{where} has {size:,} bytes, too large for weights.", remedy="Select another file.")


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


def _of_safetensors(data: bytes, where: str) -> Weights:
    refuse_too_large(len(data), where)
    try:
        metadata = read_header(lambda start, length: data[start : start + length], len(data)).metadata
        state = safetensors.torch.load(data)
    except NotSafetensorsError as error:
        raise CheckpointError(f"{where} cannot be read: {error.message}", remedy=error.remedy) from error
    except Exception as error:  # SafetensorError, and KeyError for a dtype that this version does not know
        what = f"{where} is a safetensors file that is cut short, damaged, or has a dtype unknown here."
        raise CheckpointError(what, remedy=COPY_AGAIN) from error
    facts = {name: _decoded(text) for name, text in metadata.items()}
    state, removed = _without_prefixes(state)
    return Weights(state, _classes(facts), facts, facts.get("averaged") is True, _note((), removed))


def _decoded(text: str) -> Any:
    """The value of a text of the metadata: JSON where it is, as ours are."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _of_dictionary(loaded: dict[str, Any], where: str) -> Weights:
    found = _find_state(loaded)
    if found is not None:
        path, state = found
        state, removed = _without_prefixes(state)
        facts = {str(name): value for name, value in loaded.items() if not _has_tensors(value)} if path else {}
        averaged = path[:1] in _AVERAGED_PATHS or _has_tensors(loaded.get(CURRENT_KEY))
        return Weights(state, _classes(facts), facts, averaged, _note(path, removed))
    for key, value in loaded.items():
        if _has_tensors(value):
            raise ConsoleError(
                f"{where} stores its weights under {key!r}, which is not supported.",
                remedy=f'Save that part alone: torch.save(torch.load(FILE, weights_only=True)[{key!r}], "weights.pt").',
            )
    keys = ", ".join(map(repr, itertools.islice(loaded, _KEYS_SHOWN))) or "nothing"
    raise ConsoleError(f"{where} contains no weights, only {keys}.", remedy=_SAVE_STATE)


def _find_state(value: dict[str, Any], depth: int = 0) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """The keys on the way to the weights, and these; None where there are none."""
    for key in _STATE_KEYS if depth < _MAX_DEPTH else ():
        inner = value.get(key)
        found = _find_state(inner, depth + 1) if isinstance(inner, dict) else None
        if found is not None:
            return (key, *found[0]), found[1]
    return ((), value) if _has_tensors(value) else None


def _without_prefixes(state: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The weights under the names of the model itself, and the prefixes of wrappers that were removed."""
    removed = [_COMPILED] if any(_COMPILED in str(name) for name in state) else []
    state = {str(name).replace(_COMPILED, ""): value for name, value in state.items() if name != _COUNTER}
    while prefix := next((each for each in _PREFIXES if state and all(name.startswith(each) for name in state)), ""):
        removed.append(prefix)
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state, removed


def without_wrapper(average: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The `state_dict` of a model from that of torch's AveragedModel, which the first versions saved."""
    return _without_prefixes(average)[0]


def _note(path: tuple[str, ...], removed: list[str]) -> str:
    """Which part of the file was read, as a sentence; "" for the layout of our checkpoints and a bare `state_dict`."""
    parts = []
    if path and path != ("model",):
        averaged = "the averaged weights " if path[:1] in _AVERAGED_PATHS else ""
        parts.append(f"{averaged}under {'.'.join(path)}")
    if removed:
        parts.append(f"without the prefix {''.join(removed)} of the names")
    return f"Read from the weights file: {', '.join(parts)}." if parts else ""


def _classes(facts: dict[str, Any]) -> tuple[str, ...] | None:
    given = facts.get("classes")
    return tuple(given) if isinstance(given, list) and all(isinstance(each, str) for each in given) else None


def _has_tensors(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and any(isinstance(part, torch.Tensor) for part in value.values())


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype without the name of the library, such as `float16`."""
    return str(tensor.dtype).removeprefix("torch.")


def refuse_not_finite(state: dict[str, Any], where: str) -> None:
    """Raises ConsoleError when a weight is NaN or infinite."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise ConsoleError(
                f"The weights {where} contain NaN or infinite values, for example in {name}: that training diverged.",
                remedy="Use an earlier checkpoint, or other weights.",
            )
