"""The weights of a checkpoint as a file for other programs, with what they need to use them.

torch is loaded by the functions that write: the console checks the name of the file first.
"""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossconsole import __version__
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import write_private
from ossconsole.config.text import safe_text
from ossconsole.dataset.formats import CHANNELS, IMAGENET_MEAN, IMAGENET_STD
from ossconsole.training.settings import DEFAULT_MODEL, MODELS

if TYPE_CHECKING:
    import torch

    from ossconsole.training.compute.weights_file import Weights

SAFETENSORS, ONNX = ".safetensors", ".onnx"
SUFFIXES = (".pt", ".pth", SAFETENSORS, ONNX)
ONNX_INPUT, ONNX_OUTPUT = "images", "logits"
"""The names in an .onnx file: of (batch, 3, size, size) float32, normalised, and of (batch, classes) float32."""

_ONNX_PACKAGES = ("onnx", "onnxscript")  # torch.onnx.export imports both
_FACTS = ("model_name", "classes", "image_size", "epoch", "step", "run")
_OWN_FORMAT = "ossconsole-checkpoint"
_MODE = 0o644  # they are for other programs, and other users


@dataclass(frozen=True)
class ExportedWeights:
    """A file of weights that was written, with its `metadata`, which are in it or in the JSON file beside it.

    `bytes` of the elements; `code` loads the file in plain torchvision, or with onnxruntime, "" where the model is not
    known; `note` says which part of the checkpoint the weights are, where that needs saying.
    """

    path: Path
    beside: Path | None
    tensors: int
    bytes: int
    metadata: dict[str, Any]
    code: str
    note: str


def check_out(out: Path, *, force: bool) -> None:
    """Raises SettingsError when `out` has another suffix than SUFFIXES, or is not to be written.

    Raises ConsoleError for .onnx where a package for it is not installed.
    """
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
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None] if out.suffix == ONNX else []
    if missing:
        raise ConsoleError(
            f"Writing {out.name} needs {' and '.join(missing)}, which this Python does not have.",
            remedy="Install it: pip install 'ossconsole[onnx]'",
        )


def export_weights(weights: Weights, where: str, out: Path, *, force: bool = False) -> ExportedWeights:
    """Writes the weights, which are from `where`, to `out` in the format of its suffix, one of SUFFIXES.

    With `.pt` and `.pth` the metadata are in a JSON file beside: a bare `state_dict` has no place for them. `.onnx` is
    the whole model, so the checkpoint must say which one it is of. Raises ConsoleError.
    """
    import torch

    from ossconsole.training.compute.weights_file import refuse_not_finite

    check_out(out, force=force)
    refuse_not_finite(weights.state, where)
    # Copies: tensors that share memory, or are views, would be written with all of it, or are refused.
    state = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in weights.state.items()
        if isinstance(value, torch.Tensor)
    }
    metadata = _metadata(weights.facts, averaged=weights.averaged)
    beside = None if out.suffix in {SAFETENSORS, ONNX} else _beside(out)
    try:
        if out.suffix == ONNX:
            packed = _packed_onnx(state, metadata, where)
        else:
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
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _packed_safetensors(state: dict[str, torch.Tensor], metadata: dict[str, Any]) -> bytes:
    import safetensors.torch

    # "pt" is what transformers and timm expect there.
    return safetensors.torch.save(state, {"format": "pt", **_texts(metadata)})


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    """The metadata for a format that has texts only: what is not one, as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


def _packed_onnx(state: dict[str, torch.Tensor], metadata: dict[str, Any], where: str) -> bytes:
    """The model with its weights, for batches of any length. Raises ConsoleError."""
    import torch

    from ossconsole.training.compute.model import new_model

    known = _known_model(metadata)
    if known is None:
        raise ConsoleError(
            f"The weights {where} cannot be written as {ONNX}: they do not say their model, classes and image size.",
            remedy=f"Give --out with the suffix {SAFETENSORS}.",
        )
    name, classes, size = known
    model = new_model(name, len(classes), size).eval()
    try:
        model.load_state_dict(state)
        program = torch.onnx.export(
            model,
            (torch.zeros(2, CHANNELS, size, size),),  # a batch of one would become a constant
            dynamo=True,
            input_names=[ONNX_INPUT],
            output_names=[ONNX_OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        proto = program.model_proto
        for key, text in _texts(metadata).items():
            entry = proto.metadata_props.add()
            entry.key, entry.value = key, text
        packed: bytes = proto.SerializeToString()
    except Exception as error:  # the exporter's errors share no class; protobuf refuses 2 GiB and more
        raise ConsoleError(
            f"The weights {where} cannot be written as {ONNX}: {safe_text(str(error).strip().partition(chr(10))[0])}",
            remedy=f"Give --out with the suffix {SAFETENSORS}.",
        ) from error
    return packed


def _known_model(metadata: dict[str, Any]) -> tuple[str, list[str], int] | None:
    """The model, its classes and its image size in pixels; None where the checkpoint does not say one of them."""
    name, classes, size = (metadata.get(fact) for fact in ("model_name", "classes", "image_size"))
    if name not in MODELS or not isinstance(classes, list) or not isinstance(size, int):
        return None
    return str(name), classes, size


def _metadata(facts: dict[str, Any], *, averaged: bool) -> dict[str, Any]:
    """The plain values that a program needs to use the weights; unknown ones are left out."""
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
    """The lines of Python that load the file; "" where the model is not known."""
    from ossconsole.training.compute.model import model_options

    known = _known_model(metadata)
    if known is None:
        return ""
    name, classes, size = known
    if out.suffix == ONNX:
        return "\n".join(
            (
                "import onnxruntime",
                f"session = onnxruntime.InferenceSession({str(out)!r})",
                f"# {ONNX_INPUT}: float32 (n, {CHANNELS}, {size}, {size}), values from 0 to 1,",
                f"# normalised with the mean {metadata['mean']} and the deviation {metadata['std']}",
                f"({ONNX_OUTPUT},) = session.run(None, {{{ONNX_INPUT!r}: images}})",
            )
        )
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
