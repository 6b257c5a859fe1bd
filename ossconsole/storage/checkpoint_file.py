"""What a torch checkpoint holds, by ranged requests for the zip's directory and the pickle: no tensor, no code run."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import safe_text
from ossconsole.storage.pickle_objects import Opaque, Tensor
from ossconsole.storage.pickle_walk import MAX_PICKLE_BYTES, NotAPickleError, walk_pickle
from ossconsole.storage.ranged_file import BudgetError, RangedFile
from ossconsole.storage.weights_refusal import Refusal, refuse_by_head

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

OWN_FORMAT = "ossconsole-checkpoint"
_TAIL_BYTES = 32 << 10  # holds the directory of some 400 tensors
_LOCAL_HEADER_BYTES = 30
_HEAD_BYTES = 256
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_MODEL_KEYS = ("model", "state_dict", "model_state_dict", "net", "module")
_BUFFER_SUFFIXES = ("running_mean", "running_var", "num_batches_tracked")
_MODULE_PARTS = ("_modules", "_parameters", "_buffers")  # of a pickled torch.nn.Module; state dicts name without them
_MAX_PATH = 2000  # letters of a tensor's name; what a hostile file nests deeper is not looked for
_MAX_VALUES = 200_000  # looked at when walking a value; shared parts of a hostile file multiply


class CheckpointError(ConsoleError):
    """The object is no torch checkpoint, or none that can be read as data."""


class TensorRow(msgspec.Struct, frozen=True):
    """One tensor of the table; `bytes` is what its elements take."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    tensor: Tensor


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint without its tensors' elements. Fields that the file does not have are None or empty."""

    name: str
    size: int
    kind: str
    """In words: `ossconsole checkpoint`, `state dict`, `training checkpoint`, `pickled module`."""
    root: str
    """The folder inside the zip."""
    fields: dict[str, Any]
    """The plain values at the top: epoch, step, seed, classes, sample_format, image_size, run, …"""
    metrics: dict[str, float]
    versions: dict[str, str]
    optimizer: dict[str, Any]
    """Its settings of the first parameter group."""
    schedule: dict[str, Any]
    model: list[TensorRow]
    other_tensors: int
    other_bytes: int
    foreign: tuple[str, ...]
    """Names of code that unpickling would import; not empty means: do not load it but with weights_only=True."""
    fetched: int
    requests: int

    @property
    def parameters(self) -> int:
        """Elements of the model without the running statistics of normalisation layers."""
        return sum(row.tensor.elements for row in self.model if not row.name.endswith(_BUFFER_SUFFIXES))

    @property
    def model_bytes(self) -> int:
        return sum(row.bytes for row in self.model)

    @property
    def dtypes(self) -> list[str]:
        return sorted({row.dtype for row in self.model})

    @property
    def resumable(self) -> bool:
        """Whether training here can go on from it."""
        return self.fields.get("format") == OWN_FORMAT and not self.foreign


def inspect_checkpoint(store: ObjectStore, key: str, size: int) -> Checkpoint:
    """Reads the directory and the pickle of a checkpoint in the bucket. Raises CheckpointError, StorageError."""
    file = RangedFile(lambda start, length: store.get_range(key, start, length), size)
    return read_checkpoint(file, key)


def inspect_local_checkpoint(path: Path) -> Checkpoint:
    """The same for a file on the disk."""
    with path.open("rb") as source:
        descriptor = source.fileno()
        file = RangedFile(lambda start, length: os.pread(descriptor, length, start), path.stat().st_size)
        return read_checkpoint(file, path.name)


def read_checkpoint(file: RangedFile, name: str) -> Checkpoint:
    """Reads a checkpoint from a file that fetches what is read. Raises CheckpointError."""
    shown = safe_text(name)
    try:
        file.prefetch(file.size - _TAIL_BYTES, _TAIL_BYTES)
        with zipfile.ZipFile(file) as archive:
            entry = _pickle_entry(archive, shown)
            file.prefetch(entry.header_offset, _LOCAL_HEADER_BYTES + 2 * len(entry.filename) + 128 + entry.file_size)
            walked = walk_pickle(archive.read(entry))
        return _describe(file, name, entry.filename.rpartition("/")[0], walked.value, walked.foreign)
    except zipfile.BadZipFile as error:
        raise _not_a_zip(file, shown) from error
    except (NotAPickleError, BudgetError) as error:
        raise CheckpointError(f"{shown} cannot be read as a checkpoint: {error.message}") from error
    except (zlib.error, NotImplementedError, RuntimeError, RecursionError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{shown} cannot be read as a checkpoint: it is cut short or damaged.", remedy="Copy it again."
        ) from error


def _pickle_entry(archive: zipfile.ZipFile, shown: str) -> zipfile.ZipInfo:
    entries = [entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == "data.pkl"]
    if not entries:
        raise CheckpointError(f"{shown} is a zip without data.pkl, so no torch checkpoint.")
    entry = entries[0]
    if entry.file_size > MAX_PICKLE_BYTES or entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            f"{shown} has a data.pkl that is compressed or larger than {MAX_PICKLE_BYTES >> 20} MiB; torch writes none."
        )
    return entry


def _not_a_zip(file: RangedFile, shown: str) -> CheckpointError:
    head = file._fetch(0, min(file.size, _HEAD_BYTES))  # noqa: SLF001
    if head.startswith(_LEGACY_MAGIC):
        return CheckpointError(
            f"{shown} is in the format of torch before 1.6, which has no directory.",
            remedy="Load it and save it again with a current torch to inspect it here.",
        )
    found = refuse_by_head(head, file.size)
    if found is None and head.startswith(_ZIP_MAGIC):
        found = Refusal("is cut short: the directory at the end of the file is missing", "Copy it again.")
    if found is not None:
        return CheckpointError(f"{shown} {found.what}.", remedy=found.remedy)
    return CheckpointError(f"{shown} is not a file that torch.save wrote.")


def _describe(file: RangedFile, name: str, root: str, value: Any, foreign: tuple[str, ...]) -> Checkpoint:
    top = value if isinstance(value, dict) else {}
    model_key = next((key for key in _MODEL_KEYS if isinstance(top.get(key), (dict, Opaque))), None)
    model_value = top[model_key] if model_key else value
    model = [
        TensorRow(path, tensor.shape, tensor.dtype, tensor.bytes, tensor) for path, tensor in tensors_of(model_value)
    ]
    others = [tensor for key, part in top.items() if model_key and key != model_key for _, tensor in tensors_of(part)]
    return Checkpoint(
        name=name,
        size=file.size,
        kind=_kind(value, top, model_key, model),
        root=root,
        fields={str(key): part for key, part in top.items() if _is_plain(part)},
        metrics=_numbers(top.get("metrics")),
        versions={str(key): str(part) for key, part in _plain_dict(top.get("versions")).items()},
        optimizer=_optimizer(top),
        schedule=_plain_dict(top.get("schedule") or top.get("scheduler") or top.get("lr_scheduler")),
        model=model,
        other_tensors=len(others),
        other_bytes=sum(tensor.bytes for tensor in others),
        foreign=foreign,
        fetched=file.fetched,
        requests=file.requests,
    )


def _kind(value: Any, top: dict[Any, Any], model_key: str | None, model: list[TensorRow]) -> str:
    if top.get("format") == OWN_FORMAT:
        return "ossconsole checkpoint"
    if isinstance(value, Opaque):
        return f"pickled object {value.name}"
    if model_key:
        return "training checkpoint"
    return "state dict" if model else "torch file without tensors"


def tensors_of(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside `value` with its dotted path; each container once, so that no cycle holds it up."""
    waiting: list[tuple[str, Any]] = [("", value)]
    seen: set[int] = set()
    looked_at = 0
    while waiting:
        path, part = waiting.pop()
        looked_at += 1
        if looked_at > _MAX_VALUES:
            raise CheckpointError(f"It holds more than {_MAX_VALUES:,} values.")
        if isinstance(part, Tensor):
            yield path or "(tensor)", part
            continue
        if not isinstance(part, (dict, list, tuple, Opaque)) or id(part) in seen or len(path) > _MAX_PATH:
            continue
        seen.add(id(part))
        inner = [(path, part.arguments), (path, part.state)] if isinstance(part, Opaque) else _items(path, part)
        waiting.extend(reversed(inner))


def _items(path: str, part: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> list[tuple[str, Any]]:
    pairs = part.items() if isinstance(part, dict) else enumerate(part)
    prefix = f"{path}." if path else ""
    return [(path if key in _MODULE_PARTS else f"{prefix}{key}", value) for key, value in pairs]


def _optimizer(top: dict[Any, Any]) -> dict[str, Any]:
    found = top.get("optimizer") or top.get("optimizer_state_dict")
    groups = found.get("param_groups") if isinstance(found, dict) else None
    return _plain_dict(groups[0]) if isinstance(groups, list) and groups else {}


def _plain_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    return {str(key): part for key, part in value.items() if isinstance(part, (str, int, float)) or part is None}


def _numbers(value: Any) -> dict[str, float]:
    plain = _plain_dict(value)
    return {key: float(part) for key, part in plain.items() if isinstance(part, (int, float)) and _is_small(part)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(part, str) or _is_small(part) for part in value)
    return isinstance(value, str) or value is None or _is_small(value)


def _is_small(value: Any) -> bool:
    """A number that can be shown: Python refuses to print integers of some thousand digits."""
    return isinstance(value, (int, float)) and (isinstance(value, float) or abs(value) < 1 << 63) and not _is_nan(value)


def _is_nan(value: float) -> bool:
    return isinstance(value, float) and math.isnan(value)
