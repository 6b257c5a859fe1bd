"""Two checkpoints side by side: tensors that came, went or changed shape, and, with both files here, by how much."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.checkpoint_file import Checkpoint, TensorRow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_NUMPY_DTYPES = {
    **{name: name for name in ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")},
    "bfloat16": "uint16",
}
_SLICE = 1 << 20  # elements turned into float64 at a time


class TensorPair(msgspec.Struct, frozen=True):
    """One name in two checkpoints; a side is None where the tensor is not there."""

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
        return self.left is not None and self.right is not None and self.left.shape == self.right.shape


class TensorDistance(msgspec.Struct, frozen=True):
    """How far a tensor moved: the norm of the difference (Euclidean), of the left tensor, and the largest change."""

    name: str
    difference: float
    norm: float
    largest: float

    @property
    def relative(self) -> float | None:
        return self.difference / self.norm if self.norm else None


def pair_tensors(left: Checkpoint, right: Checkpoint) -> list[TensorPair]:
    """The tensors of both models, in the left one's order, then what only the right one has."""
    lefts = {row.name: row for row in left.model}
    rights = {row.name: row for row in right.model}
    names = [*lefts, *(name for name in rights if name not in lefts)]
    return [TensorPair(name, lefts.get(name), rights.get(name)) for name in names]


def tensor_distances(
    left: Checkpoint, left_file: Path, right: Checkpoint, right_file: Path
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
            remedy="Download both again.",
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
