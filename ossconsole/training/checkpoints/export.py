"""The weights of a checkpoint as a file for other programs, with what they need to use them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ossconsole import __version__
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import write_private
from ossconsole.dataset.formats import IMAGENET_MEAN, IMAGENET_STD
from ossconsole.training.compute.model import model_options
from ossconsole.training.compute.weights_file import Weights, refuse_not_finite
from ossconsole.training.settings import DEFAULT_MODEL, MODELS

SAFETENSORS = ".safetensors"
SUFFIXES = (".pt", ".pth", SAFETENSORS)
_FACTS = ("model_name", "classes", "image_size", "epoch", "step", "run")
_OWN_FORMAT = "ossconsole-checkpoint"
_MODE = 0o644  # they are for other programs, and other users


@dataclass(frozen=True)
class ExportedWeights:
    """What was written. `metadata` is what the file, or the JSON file beside it, says about the weights.

    `bytes` of the elements; `code` loads the file in plain torchvision, "" where the model is not known; `note` says
    which part of the checkpoint the weights are, where that needs saying.
    """

    path: Path
    beside: Path | None
    tensors: int
    bytes: int
    metadata: dict[str, Any]
    code: str
    note: str


def check_out(out: Path, *, force: bool) -> None:
    """Raises SettingsError when `out` has another suffix than SUFFIXES, or is not to be written."""
    if out.suffix not in SUFFIXES:
        raise SettingsError(
            f"{out} has none of the suffixes {', '.join(SUFFIXES)}, which select the format.",
            remedy="Give for example --out weights.safetensors.",
        )
    for path in (out, _beside(out)):
        if path.is_dir():
            raise SettingsError(f"{path} is a folder.", remedy="Give the name of a file.")
        if path.exists() and not force:
            raise SettingsError(f"{path} exists already.", remedy="Add --force to replace it.")


def export_weights(weights: Weights, where: str, out: Path, *, force: bool = False) -> ExportedWeights:
    """Writes the weights, which are from `where`, to `out` in the format of its suffix, one of SUFFIXES.

    With `.pt` and `.pth` the metadata are in a JSON file beside: a bare `state_dict` has no place for them. Raises
    ConsoleError.
    """
    check_out(out, force=force)
    refuse_not_finite(weights.state, where)
    # Copies: tensors that share memory, or are views, would be written with all of it, or are refused.
    state = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in weights.state.items()
        if isinstance(value, torch.Tensor)
    }
    metadata = _metadata(weights.facts, averaged=weights.averaged)
    beside = None if out.suffix == SAFETENSORS else _beside(out)
    try:
        packed = _packed_safetensors(state, metadata) if beside is None else _packed(state)
    except (RuntimeError, ValueError, KeyError) as error:  # such as a sparse or quantized tensor in safetensors
        raise ConsoleError(
            f"The weights {where} cannot be written as {out.suffix}.", remedy="Give --out with another suffix."
        ) from error
    write_private(out, packed, mode=_MODE)
    if beside is not None:
        write_private(beside, json.dumps(metadata, indent=2, ensure_ascii=False).encode() + b"\n", mode=_MODE)
    size = sum(value.nbytes for value in state.values())
    return ExportedWeights(out, beside, len(state), size, metadata, _code(out, metadata), weights.note)


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def _packed(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _packed_safetensors(state: dict[str, torch.Tensor], metadata: dict[str, Any]) -> bytes:
    # "pt" is what transformers and timm expect there.
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    return safetensors.torch.save(state, {"format": "pt", **texts})


def _metadata(facts: dict[str, Any], *, averaged: bool) -> dict[str, Any]:
    """What a program needs to use the weights, in plain values; what is not known is left out."""
    known = {name: facts[name] for name in _FACTS if isinstance(facts.get(name), (str, int, list))}
    metrics = facts.get("metrics")
    top1 = metrics.get("top1") if isinstance(metrics, dict) else facts.get("top1")
    if isinstance(top1, float):
        known["top1"] = top1
    if facts.get("format") == _OWN_FORMAT:
        known.setdefault("model_name", DEFAULT_MODEL)  # what earlier versions trained, and did not say
    if "model_name" in known:
        known |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    return {**known, "averaged": averaged, "written_by": f"ossconsole {__version__}"}


def _code(out: Path, metadata: dict[str, Any]) -> str:
    """The lines of Python that load the file into torchvision's model; "" where the model is not known."""
    name, classes, size = (metadata.get(fact) for fact in ("model_name", "classes", "image_size"))
    if name not in MODELS or not isinstance(classes, list) or not isinstance(size, int):
        return ""
    options = {"num_classes": len(classes), **model_options(name, size)}
    arguments = ", ".join(f"{option}={value!r}" for option, value in options.items())
    if out.suffix == SAFETENSORS:
        imports = "import torchvision, safetensors.torch"
        load = f"safetensors.torch.load_file({str(out)!r})"
    else:
        imports, load = "import torch, torchvision", f"torch.load({str(out)!r}, weights_only=True)"
    mean, std = (", ".join(map(str, metadata[fact])) for fact in ("mean", "std"))
    return "\n".join(
        (
            imports,
            f"model = torchvision.models.{name}({arguments})",
            f"model.load_state_dict({load})",
            "model.eval()",
            f"normalize = torchvision.transforms.Normalize(({mean}), ({std}))  # of images with values from 0 to 1",
        )
    )
