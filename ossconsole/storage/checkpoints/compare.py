"""Compares two checkpoints: their tensors by name, and the distances of the elements."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.checkpoints.inspect import SAFETENSORS, SHARDED, CheckpointInfo, TensorRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_NUMPY_DTYPES = {
    **{name: name for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "bool")},
    **{name: name for name in ("uint64", "uint32", "uint16", "uint8")},
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
        """Whether both sides exist, have the same shape, and dtypes that are read here: not complex or float8."""
        sides = [side for side in (self.left, self.right) if side is not None and side.dtype in _NUMPY_DTYPES]
        return len(sides) == 2 and sides[0].shape == sides[1].shape


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
    """The distance of every comparable pair, from the downloaded files. Raises ConsoleError."""
    for info in (left, right):
        if info.kind == SHARDED:
            raise ConsoleError(
                f"The elements of {info.name} are in other files of its folder.",
                remedy="Compare a .pt or .safetensors file instead.",
            )
    try:
        with ExitStack() as opened:
            read_left, read_right = _reader(opened, left, left_file), _reader(opened, right, right_file)
            for pair in pair_tensors(left, right):
                if pair.left is None or pair.right is None or not pair.comparable:
                    continue
                elements = _elements(pair.left, read_left), _elements(pair.right, read_right)
                yield _distance(pair.name, *elements)
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError, EOFError, RuntimeError, ValueError) as error:
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


def _reader(opened: ExitStack, info: CheckpointInfo, path: Path) -> Callable[[TensorRow], bytes]:
    """What reads the bytes in which the elements of a tensor are."""
    if info.kind == SAFETENSORS:
        file = opened.enter_context(path.open("rb"))

        def read(row: TensorRow) -> bytes:
            file.seek(int(row.tensor.storage.key))
            return file.read(row.bytes)

        return read
    archive = opened.enter_context(zipfile.ZipFile(path))
    folder = f"{info.root}/data" if info.root else "data"
    return lambda row: archive.read(f"{folder}/{row.tensor.storage.key}")


def _elements(row: TensorRow, read: Callable[[TensorRow], bytes]) -> npt.NDArray[np.float64]:
    """The tensor's elements in its own order, as float64."""
    import numpy as np

    tensor = row.tensor
    stored = np.frombuffer(read(row), np.dtype(_NUMPY_DTYPES[row.dtype]).newbyteorder("<"))
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
