"""`ossconsole weights`: the weights of a checkpoint as a file for other programs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ossconsole.cli.options import Target, json_option, profile_options, reads_only
from ossconsole.cli.output import report_and_wait, say, say_json
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import typed_path
from ossconsole.config.text import counted, safe_text
from ossconsole.training.settings import DEFAULT_MODEL, check_model

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.training.checkpoints.export import ExportedWeights
    from ossconsole.training.checkpoints.store import FoundCheckpoint
    from ossconsole.training.compute.weights_file import Weights


@click.command(short_help="Write a checkpoint's weights to a file for other programs.")
@click.argument("checkpoint")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="FILE.pt, .pth, .safetensors or .onnx.",
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Model of `latest` and `best`.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@json_option
@profile_options
@reads_only
def weights(*, checkpoint: str, out: Path, model: str, force: bool, as_json: bool, target: Target) -> None:
    """Write the weights in CHECKPOINT to a file for other programs, such as plain torchvision.

    CHECKPOINT is a file, a key, oss://BUCKET/KEY, latest or best. The averaged weights (--ema-decay) are written where
    there are any. Classes, image size and normalisation are metadata of a .safetensors or .onnx file; beside a .pt they
    are in FILE.json. An .onnx file has the whole model, and needs pip install 'ossconsole[onnx]'.
    """
    from ossconsole.training.checkpoints.export import check_out, export_weights

    check_model(model)
    check_out(out, force=force)
    found = _read(checkpoint, model, target)
    if found.problem:
        say(f"Warning: {found.problem}", err=True)
    exported = export_weights(found.content, found.uri, out, force=force)
    if as_json:
        say_json(
            {
                "event": "summary",
                "checkpoint": found.uri,
                "file": str(exported.path),
                "metadata_file": str(exported.beside or ""),
                "tensors": exported.tensors,
                "bytes": exported.bytes,
                "metadata": exported.metadata,
                "code": exported.code,
            }
        )
    else:
        _print(exported, found.uri)


def _read(checkpoint: str, model: str, target: Target) -> FoundCheckpoint[Weights]:
    """The weights of a file, or of the bucket, which is not opened for a file. Raises ConsoleError."""
    from ossconsole.storage.client import ObjectStore

    if _is_file(checkpoint):
        return read_named(checkpoint, model, None)
    with (
        target.open() as opened,
        contextlib.closing(ObjectStore(opened.profile, opened.credentials, pause=report_and_wait)) as store,
    ):
        return read_named(checkpoint, model, store)


def read_named(checkpoint: str, model: str, store: ObjectStore | None) -> FoundCheckpoint[Weights]:
    """The weights of a file, or of a checkpoint in the bucket of `store`. Raises ConsoleError."""
    from ossconsole.training.checkpoints.checkpoint import fetch_uri
    from ossconsole.training.checkpoints.store import FoundCheckpoint, find_checkpoint
    from ossconsole.training.compute.weights_file import read_weights

    bucket = store
    if bucket is not None and not _is_file(checkpoint):
        return find_checkpoint(bucket, checkpoint, model, lambda uri: read_weights(fetch_uri(bucket, uri), uri))
    path = typed_path(checkpoint)
    try:
        return FoundCheckpoint(str(path), read_weights(path.read_bytes(), str(path)))
    except OSError as error:
        raise ConsoleError(f"{path} cannot be read: {error.strerror}.", remedy="Give a file, or a key.") from error


def _is_file(checkpoint: str) -> bool:
    named = checkpoint in ("latest", "best") or "://" in checkpoint
    return not named and typed_path(checkpoint).exists()


def _print(exported: ExportedWeights, where: str) -> None:
    from ossconsole.training.checkpoints.export import ONNX

    metadata = exported.metadata
    averaged = ", the averaged weights (EMA)" if metadata["averaged"] else ""
    size = f"{counted(exported.tensors, 'tensor')}, {exported.bytes / 1e6:.1f} MB{averaged}"
    say(f"{exported.path}: {size}, of {safe_text(where)}.")
    if exported.note:
        say(exported.note)
    if exported.beside is not None:
        say(f"{exported.beside}: {', '.join(metadata)}.")
    if not exported.code:
        say(
            "The checkpoint does not say its model, classes and image size: load the file into the model that wrote it."
        )
        return
    say("Run it with onnxruntime:" if exported.path.suffix == ONNX else "Load it in plain torchvision:")
    say("")
    for line in exported.code.splitlines():
        say(f"    {line}")
