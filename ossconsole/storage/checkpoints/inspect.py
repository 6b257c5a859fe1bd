"""Reads a torch checkpoint's contents by ranged requests, without running code, and compares two checkpoints."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import safe_text
from ossconsole.storage.checkpoints.pickle_reader import MAX_PICKLE_BYTES, NotAPickleError, Opaque, Tensor, walk_pickle
from ossconsole.storage.checkpoints.refusal import Refusal, refuse_by_head

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ossconsole.storage.client import ObjectStore

_READ_AHEAD = 16 << 10
DEFAULT_BUDGET = 24 << 20


class BudgetError(ConsoleError):
    """The inspection would read more of the object than its budget."""


class RangedFile(io.RawIOBase):
    """A seekable, read-only file over `fetch(start, length)`. Raises BudgetError beyond `budget` bytes.

    `fetched` (bytes) and `requests` count the reads so far.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, *, budget: int = DEFAULT_BUDGET) -> None:
        super().__init__()
        self.size = size
        self.fetched = 0
        self.requests = 0
        self._fetch = fetch
        self._budget = budget
        self._position = 0
        self._spans: list[tuple[int, bytes]] = []

    def prefetch(self, start: int, length: int) -> None:
        """Reads a span into the cache with one request. Raises BudgetError."""
        start = max(0, start)
        length = min(length, self.size - start)
        if length <= 0 or self._cached(start, length) is not None:
            return
        if self.fetched + length > self._budget:
            raise BudgetError(f"Inspecting it would read more than {self._budget >> 20} MiB.")
        data = self._fetch(start, length)
        self.requests += 1
        self.fetched += len(data)
        self._spans.append((start, data))

    def readable(self) -> bool:
        """True, for io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """True, for io.RawIOBase."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position, which may lie beyond the end. Raises OSError before the beginning."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("negative seek position")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """`size` bytes, the rest for -1; fewer at the end. Raises BudgetError."""
        left = max(0, self.size - self._position)
        wanted = left if size < 0 else min(size, left)
        if wanted == 0:
            return b""
        found = self._cached(self._position, wanted)
        if found is None:
            self.prefetch(self._position, max(wanted, _READ_AHEAD))
            found = self._cached(self._position, wanted) or b""
        self._position += len(found)
        return found

    def _cached(self, start: int, length: int) -> bytes | None:
        for first, data in self._spans:
            if first <= start and start + length <= first + len(data):
                return data[start - first : start - first + length]
        return None


OWN_FORMAT = "ossconsole-checkpoint"
_TAIL_BYTES = 32 << 10  # the directory of some 400 tensors
_LOCAL_HEADER_BYTES = 30
_HEAD_BYTES = 256
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
MODEL_KEYS = ("model", "state_dict", "model_state_dict", "net", "module")
"""Where training programs store a model's `state_dict` in their checkpoints."""
_BUFFER_SUFFIXES = ("running_mean", "running_var", "num_batches_tracked")
_MODULE_PARTS = ("_modules", "_parameters", "_buffers")  # of a pickled torch.nn.Module; state dicts name without them
_MAX_PATH = 2000  # letters of a tensor's name; values that a hostile file nests deeper are skipped
_MAX_VALUES = 200_000  # visited in one walk; shared parts of a hostile file multiply


class CheckpointError(ConsoleError):
    """The object is not a torch checkpoint, or not one that can be read as data."""


class TensorRow(msgspec.Struct, frozen=True):
    """One tensor of the table; `bytes` of its elements."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    tensor: Tensor


class CheckpointInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint without its tensors' elements. Fields that the file does not have are None or empty."""

    name: str
    size: int
    kind: str
    """`ossconsole checkpoint`, `training checkpoint`, `state dict`, `pickled object …`, `torch file without tensors`"""
    root: str
    """The folder inside the zip."""
    fields: dict[str, Any]
    """The plain top-level values: epoch, step, seed, classes, sample_format, image_size, run, …"""
    metrics: dict[str, float]
    versions: dict[str, str]
    optimizer: dict[str, Any]
    """The settings of its first parameter group."""
    schedule: dict[str, Any]
    model: list[TensorRow]
    other_tensors: int
    other_bytes: int
    foreign: tuple[str, ...]
    """Names of code that unpickling would import; if there are any, load it only with weights_only=True."""
    fetched: int
    requests: int

    @property
    def parameters(self) -> int:
        """Elements of the model without the running statistics of normalisation layers."""
        return sum(row.tensor.elements for row in self.model if not row.name.endswith(_BUFFER_SUFFIXES))

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's tensors."""
        return sum(row.bytes for row in self.model)

    @property
    def dtypes(self) -> list[str]:
        """The dtypes of the model's tensors, sorted."""
        return sorted({row.dtype for row in self.model})

    @property
    def resumable(self) -> bool:
        """Whether `ossconsole train --resume` can continue from it."""
        return self.fields.get("format") == OWN_FORMAT and not self.foreign


def inspect_checkpoint(store: ObjectStore, key: str, size: int) -> CheckpointInfo:
    """Reads the directory and the pickle of a checkpoint in the bucket. Raises CheckpointError, StorageError."""
    file = RangedFile(lambda start, length: store.get_range(key, start, length), size)
    return read_checkpoint(file, key)


def inspect_local_checkpoint(path: Path) -> CheckpointInfo:
    """The same for a file on the disk."""
    with path.open("rb") as source:
        descriptor = source.fileno()
        file = RangedFile(lambda start, length: os.pread(descriptor, length, start), path.stat().st_size)
        return read_checkpoint(file, path.name)


def read_checkpoint(file: RangedFile, name: str) -> CheckpointInfo:
    """Reads a checkpoint through a RangedFile. Raises CheckpointError."""
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
        raise CheckpointError(f"{shown} is not a torch checkpoint: it is a zip without data.pkl.")
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


def _describe(file: RangedFile, name: str, root: str, value: Any, foreign: tuple[str, ...]) -> CheckpointInfo:
    top = value if isinstance(value, dict) else {}
    model_key = next((key for key in MODEL_KEYS if isinstance(top.get(key), (dict, Opaque))), None)
    model_value = top[model_key] if model_key else value
    model = [
        TensorRow(path, tensor.shape, tensor.dtype, tensor.bytes, tensor) for path, tensor in tensors_of(model_value)
    ]
    others = [tensor for key, part in top.items() if model_key and key != model_key for _, tensor in tensors_of(part)]
    return CheckpointInfo(
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
    """Every tensor inside `value` with its dotted path; visits each container once, so cycles end."""
    waiting: list[tuple[str, Any]] = [("", value)]
    seen: set[int] = set()
    visited = 0
    while waiting:
        path, part = waiting.pop()
        visited += 1
        if visited > _MAX_VALUES:
            raise CheckpointError(f"It has more than {_MAX_VALUES:,} values.")
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


_NUMPY_DTYPES = {
    **{name: name for name in ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")},
    "bfloat16": "uint16",
}
_SLICE = 1 << 20  # elements turned into float64 at a time


class TensorPair(msgspec.Struct, frozen=True):
    """One name in two checkpoints; a side is None where the tensor does not exist."""

    name: str
    left: TensorRow | None
    right: TensorRow | None

    @property
    def change(self) -> str:
        """`same shape`, `added`, `removed`, or what changed."""
        if self.left is None:
            return "added"
        if self.right is None:
            return "removed"
        if self.left.shape != self.right.shape:
            return "other shape"
        return "same shape" if self.left.dtype == self.right.dtype else "other dtype"

    @property
    def comparable(self) -> bool:
        """Whether both sides exist and have the same shape."""
        return self.left is not None and self.right is not None and self.left.shape == self.right.shape


class TensorDistance(msgspec.Struct, frozen=True):
    """The Euclidean norms of the difference and of the left tensor, and the largest absolute change."""

    name: str
    difference: float
    norm: float
    largest: float

    @property
    def relative(self) -> float | None:
        """The difference relative to the left tensor's norm; None where that is 0."""
        return self.difference / self.norm if self.norm else None


def pair_tensors(left: CheckpointInfo, right: CheckpointInfo) -> list[TensorPair]:
    """The tensors of both models, in the left one's order, then those that only the right one has."""
    lefts = {row.name: row for row in left.model}
    rights = {row.name: row for row in right.model}
    names = [*lefts, *(name for name in rights if name not in lefts)]
    return [TensorPair(name, lefts.get(name), rights.get(name)) for name in names]


def tensor_distances(
    left: CheckpointInfo, left_file: Path, right: CheckpointInfo, right_file: Path
) -> Iterator[TensorDistance]:
    """The distance of every pair of the same shape, from the downloaded files. Raises ConsoleError."""
    try:
        with zipfile.ZipFile(left_file) as left_zip, zipfile.ZipFile(right_file) as right_zip:
            for pair in pair_tensors(left, right):
                if pair.left is None or pair.right is None or not pair.comparable:
                    continue
                yield _distance(
                    pair.name, _elements(left_zip, left.root, pair.left), _elements(right_zip, right.root, pair.right)
                )
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, NotImplementedError) as error:
        raise ConsoleError(
            f"{left.name} and {right.name} cannot be compared: one of the downloaded files is cut short or damaged.",
            remedy="Download both files again.",
        ) from error


def _distance(name: str, left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> TensorDistance:
    import numpy as np

    squares = norm = largest = 0.0
    for start in range(0, left.size, _SLICE):
        a, b = left[start : start + _SLICE], right[start : start + _SLICE]
        delta = b - a
        squares += float(delta @ delta)
        norm += float(a @ a)
        largest = max(largest, float(np.abs(delta).max()))
    return TensorDistance(name, squares**0.5, norm**0.5, largest)


def _elements(archive: zipfile.ZipFile, root: str, row: TensorRow) -> npt.NDArray[np.float64]:
    """The tensor's elements in its own order, as float64."""
    import numpy as np

    tensor = row.tensor
    if row.dtype not in _NUMPY_DTYPES:
        raise ValueError(f"{row.dtype} has no norm here")
    raw = archive.read(f"{root}/data/{tensor.storage.key}" if root else f"data/{tensor.storage.key}")
    stored = np.frombuffer(raw, np.dtype(_NUMPY_DTYPES[row.dtype]).newbyteorder("<"))
    reach = (
        tensor.offset + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride, strict=True)) + 1
    )
    if tensor.elements == 0:
        return np.empty(0)
    if reach > stored.size:
        raise ValueError(f"{row.name} reaches beyond its storage")
    strides = tuple(step * stored.itemsize for step in tensor.stride)
    view = np.lib.stride_tricks.as_strided(stored[tensor.offset :], tensor.shape, strides, writeable=False)
    flat = view.reshape(-1)
    if row.dtype == "bfloat16":  # the upper half of a float32
        return (flat.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return flat.astype(np.float64)
