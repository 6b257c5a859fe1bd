"""Reads what is in a checkpoint of torch.save, of safetensors or of DCP by ranged requests, without running code."""

from __future__ import annotations

import functools
import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import decode_json
from ossconsole.config.text import safe_text
from ossconsole.storage.checkpoints.dcp_index import FileCutShortError, read_dcp_index, read_values, strides
from ossconsole.storage.checkpoints.pickle_reader import (
    MAX_PICKLE_BYTES,
    NotAPickleError,
    Opaque,
    Storage,
    Tensor,
    walk_pickle,
)
from ossconsole.storage.checkpoints.refusal import Refusal, refuse_by_head
from ossconsole.storage.checkpoints.safetensors_header import NotSafetensorsError, read_header
from ossconsole.storage.errors import StorageError

Fetch = Callable[[int, int], bytes]
"""Reads bytes of a file: from a place, in a length; fewer at the end."""

FilesBeside = Callable[[str], Fetch]
"""Opens a file beside another one by its name."""

_READ_AHEAD = 16 << 10
DEFAULT_BUDGET = 24 << 20


class BudgetError(ConsoleError):
    """The inspection would read more of the object than its budget."""


class RangedFile(io.RawIOBase):
    """A seekable, read-only file over `fetch(start, length)`. Raises BudgetError beyond `budget` bytes.

    `fetched` (bytes) and `requests` count the reads so far.
    """

    def __init__(self, fetch: Fetch, size: int, *, budget: int = DEFAULT_BUDGET) -> None:
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

    def read_at(self, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end. Raises BudgetError."""
        self.seek(start)
        return self.read(length)

    def _cached(self, start: int, length: int) -> bytes | None:
        for first, data in self._spans:
            if first <= start and start + length <= first + len(data):
                return data[start - first : start - first + length]
        return None


SAFETENSORS, SAFETENSORS_SUFFIX = "safetensors file", ".safetensors"
SHARDED, SHARDED_NAME = "DCP checkpoint", ".metadata"  # torch.distributed.checkpoint: the index of a folder
_NOT_THERE = (404, 416)  # HTTP's: no such object; none of these bytes
_PROGRESS = ("run", "epoch", "step", "global_step")  # what a DCP checkpoint may have in a part of its state
_OPTIMIZER = "optim"  # the beginning of the names of an optimizer's tensors there
OWN_FORMAT, _OWN_KIND = "ossconsole-checkpoint", "ossconsole checkpoint"
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
    """`ossconsole checkpoint`, `training checkpoint`, `state dict`, `pickled object …`, `torch file without tensors`,
    SAFETENSORS or SHARDED"""
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
        return self.kind == _OWN_KIND and not self.foreign


class Readable(Protocol):
    """What an object is read from: a bucket, by key, or the disk, by path. Raises ConsoleError."""

    def get(self, key: str) -> bytes:
        """All its bytes."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes from offset `start`."""


class LocalFiles:
    """Files of this machine; their keys are their paths."""

    def get(self, key: str) -> bytes:
        """See `Readable.get`."""
        return self.get_range(key, 0, -1)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Readable.get_range`."""
        try:
            with Path(key).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise ConsoleError(f"{safe_text(key)} cannot be read: {error.strerror}.") from error


def inspect_checkpoint(files: Readable, key: str, size: int) -> CheckpointInfo:
    """Reads the directory and the pickle of a checkpoint. Raises CheckpointError, and what `files` raises.

    Of a DCP checkpoint `key` is its `.metadata`; the epoch and other plain values are read from the files beside it.
    """

    def beside(name: str) -> Fetch:
        return functools.partial(files.get_range, f"{key[: -len(SHARDED_NAME)]}{name}")

    return read_checkpoint(RangedFile(functools.partial(files.get_range, key), size), key, beside)


def read_checkpoint(file: RangedFile, name: str, beside: FilesBeside | None = None) -> CheckpointInfo:
    """Reads a checkpoint through a RangedFile. Raises CheckpointError.

    `beside` opens the other files of a DCP checkpoint; without it, its plain values stay unread.
    """
    shown = safe_text(name)
    try:
        if name.endswith(SAFETENSORS_SUFFIX):
            return _describe_safetensors(file, name)
        if name.rpartition("/")[2] == SHARDED_NAME:
            return _describe_sharded(file, name, beside)
        file.prefetch(file.size - _TAIL_BYTES, _TAIL_BYTES)
        with zipfile.ZipFile(file) as archive:
            entry = _pickle_entry(archive, shown)
            file.prefetch(entry.header_offset, _LOCAL_HEADER_BYTES + 2 * len(entry.filename) + 128 + entry.file_size)
            walked = walk_pickle(archive.read(entry))
        return _describe(file, name, entry.filename.rpartition("/")[0], walked.value, walked.foreign)
    except zipfile.BadZipFile as error:
        raise _not_a_zip(file, shown) from error
    except (NotAPickleError, NotSafetensorsError, FileCutShortError, BudgetError) as error:
        raise CheckpointError(
            f"{shown} cannot be read as a checkpoint: {error.message}", remedy=error.remedy
        ) from error
    except (zlib.error, NotImplementedError, RuntimeError, RecursionError, OSError, EOFError, ValueError) as error:
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
        return _OWN_KIND
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
    return {str(key): part for key, part in value.items() if isinstance(part, str) or part is None or _is_small(part)}


def _numbers(value: Any) -> dict[str, float]:
    plain = _plain_dict(value)
    return {key: float(part) for key, part in plain.items() if isinstance(part, (int, float))}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(part, str) or _is_small(part) for part in value)
    return isinstance(value, str) or value is None or _is_small(value)


def _is_small(value: Any) -> bool:
    """Whether a number can be shown: not NaN, nor an integer of some thousand digits, which Python refuses to print."""
    return not math.isnan(value) if isinstance(value, float) else isinstance(value, int) and abs(value) < 1 << 63


def _describe_safetensors(file: RangedFile, name: str) -> CheckpointInfo:
    """Reads the header alone. Raises NotSafetensorsError."""
    header = read_header(file.read_at, file.size)
    rows = []
    for tensor_name, stored in header.tensors.items():
        elements = math.prod(stored.shape)
        itemsize = (stored.end - stored.begin) // elements if elements else 1
        storage = Storage(stored.dtype, itemsize, str(stored.begin))
        rows.append(_row(tensor_name, Tensor(storage, stored.dtype, stored.shape, strides(stored.shape), 0)))
    fields = {key: _decoded(text) for key, text in header.metadata.items()}
    return _info(file, name, kind=SAFETENSORS, fields=fields, rows=rows)


def _decoded(text: str) -> Any:
    """A value of the metadata, which are texts: JSON where it is a plain value, as ours are."""
    try:
        value: Any = decode_json(text)
    except msgspec.DecodeError:
        return text
    return value if _is_plain(value) else text


def _describe_sharded(file: RangedFile, name: str, beside: FilesBeside | None) -> CheckpointInfo:
    """Reads the index of a folder that torch.distributed.checkpoint wrote, and its plain values where it can.

    Raises CheckpointError, NotAPickleError.
    """
    if file.size > MAX_PICKLE_BYTES:
        raise NotAPickleError(f"The pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB.")
    index = read_dcp_index(file.read_at(0, file.size))
    if index is None:
        raise CheckpointError(f"{safe_text(name)} is not the index of a DCP checkpoint.")
    opened: dict[str, RangedFile] = {}

    def read(part: str, offset: int, length: int) -> bytes:
        assert beside is not None  # noqa: S101
        try:
            if part not in opened:
                opened[part] = RangedFile(beside(part), index.files[part])
            return opened[part].read_at(offset, length)
        except ConsoleError as error:
            in_bucket = isinstance(error, StorageError) and error.status in _NOT_THERE
            if not in_bucket and not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise FileCutShortError(
                f"{safe_text(part)} is missing, or shorter than the index says.", remedy="Copy the folder again."
            ) from error

    values = {} if beside is None else read_values(index, read)
    rows = [_row(each, tensor) for each, tensor in index.tensors.items()]
    fields = {key: value for key, value in values.items() if "." not in key and _is_plain(value)}
    for key, value in values.items():  # such as trainer.epoch
        if (last := key.rpartition(".")[2]) in _PROGRESS and _is_plain(value):
            fields.setdefault(last, value)
    found = _info(
        file, name, kind=SHARDED, fields={**fields, "files": len(index.files)}, rows=rows, foreign=index.foreign
    )
    return msgspec.structs.replace(
        found,
        size=file.size + sum(index.files.values()),
        metrics={**found.metrics, **_numbers(_below("metrics", values))},
        versions={key: str(value) for key, value in _plain_dict(_below("versions", values)).items()},
        optimizer=_plain_dict(next((group for key in values if (group := _group_of(key, values))), {})),
        fetched=file.fetched + sum(each.fetched for each in opened.values()),
        requests=file.requests + sum(each.requests for each in opened.values()),
    )


def _below(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values with names below `prefix`, by the rest of their names."""
    return {key[len(prefix) + 1 :]: value for key, value in values.items() if key.startswith(f"{prefix}.")}


def _group_of(key: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of the first parameter group of an optimizer, where `key` is one of them."""
    return _below(key.rpartition(".")[0], values) if key.startswith(_OPTIMIZER) and ".param_groups.0." in key else {}


def _row(name: str, tensor: Tensor) -> TensorRow:
    return TensorRow(name, tensor.shape, tensor.dtype, tensor.bytes, tensor)


def _info(
    file: RangedFile,
    name: str,
    *,
    kind: str,
    fields: dict[str, Any],
    rows: list[TensorRow],
    foreign: tuple[str, ...] = (),
) -> CheckpointInfo:
    """A checkpoint of a format that has a list of tensors, with an optimizer's tensors among them."""
    model = [row for row in rows if not row.name.startswith(_OPTIMIZER)]
    return CheckpointInfo(
        name=name,
        size=file.size,
        kind=kind,
        root="",
        fields=fields,
        metrics=_numbers({key: fields[key] for key in ("top1",) if key in fields}),
        versions={},
        optimizer={},
        schedule={},
        model=model,
        other_tensors=len(rows) - len(model),
        other_bytes=sum(row.bytes for row in rows) - sum(row.bytes for row in model),
        foreign=foreign,
        fetched=file.fetched,
        requests=file.requests,
    )
