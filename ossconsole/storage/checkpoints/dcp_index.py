"""The index of a folder that torch.distributed.checkpoint (DCP) wrote: its tensors, and where its plain values are.

The index is the pickled `Metadata` in the object `.metadata`
(https://github.com/pytorch/pytorch/blob/main/torch/distributed/checkpoint/metadata.py). Tensors and values are in files
beside it; a value there is what `torch.save` wrote of it.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import safe_text
from ossconsole.storage.checkpoints.pickle_reader import (
    DTYPE_BYTES,
    GlobalName,
    NotAPickleError,
    Opaque,
    Storage,
    Tensor,
    walk_pickle,
)

_OWN_NAMES = ("torch.distributed.checkpoint.", "pathlib.")  # which the index is made of
_MAX_VALUE_BYTES = 64 << 10  # a list of 1,000 classes takes 20 KiB
_MAX_VALUES = 64  # which together stay below an inspection's budget
_Length = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_WANTED = re.compile(
    r"[^.]+"  # what is at the top
    r"|(?:metrics|versions)\.[^.]+"
    r"|(?!model\.|optim)[^.]+(?:\.[^.]+)*\.(?:run|epoch|step|global_step)"
    r"|optim[^.]*\.param_groups\.0\.[^.]+"
)


class FileCutShortError(ConsoleError):
    """A file beside the index has fewer bytes than the index says."""


class StoredValue(msgspec.Struct, frozen=True):
    """Where a plain value is: `length` bytes from `offset` in a file beside the index. The names are those there."""

    name: str = msgspec.field(name="fqn")
    file: Annotated[str, msgspec.Meta(min_length=1)] = msgspec.field(name="relative_path")
    offset: _Length
    length: _Length


class DcpIndex(msgspec.Struct, frozen=True):
    """What the index says. `files` are the names of the files beside it, with the bytes that it places in each."""

    tensors: dict[str, Tensor]
    values: list[StoredValue]
    files: dict[str, int]
    foreign: tuple[str, ...]


def read_dcp_index(data: bytes) -> DcpIndex | None:
    """The index in the bytes of `.metadata`; None where they are another pickle. Raises NotAPickleError."""
    walked = walk_pickle(data)
    index = walked.value.state if isinstance(walked.value, Opaque) else None
    entries = index.get("state_dict_metadata") if isinstance(index, dict) else None
    if not isinstance(index, dict) or not isinstance(entries, dict):
        return None
    tensors = {str(key): found for key, entry in entries.items() if (found := _tensor(entry)) is not None}
    places = list(_places(index.get("storage_data")))
    files: dict[str, int] = {}
    for place in places:
        files[place.file] = max(files.get(place.file, 0), place.offset + place.length)
    values = [place for place in places if place.name in entries and place.name not in tensors]
    foreign = tuple(each for each in walked.foreign if not each.startswith(_OWN_NAMES))
    return DcpIndex(tensors, values, files, foreign)


def read_values(index: DcpIndex, read: Callable[[str, int, int], bytes]) -> dict[str, Any]:
    """The values that a console shows, by their dotted names. Values that are not plain data are left out.

    `read` returns bytes of one of the files, by its name, the offset and the length. Raises FileCutShortError.
    """
    wanted = [each for each in index.values if _WANTED.fullmatch(each.name) and each.length <= _MAX_VALUE_BYTES]
    wanted = sorted(wanted, key=lambda each: each.name.count("."))[:_MAX_VALUES]
    found = {}
    for value in sorted(wanted, key=lambda each: (each.file, each.offset)):  # neighbours come with one request
        data = read(value.file, value.offset, value.length)
        if len(data) < value.length:
            raise FileCutShortError(
                f"{safe_text(value.file)} is shorter than the index says.", remedy="Copy the folder again."
            )
        with contextlib.suppress(NotAPickleError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
            found[value.name] = _saved_value(data)
    return found


def _saved_value(data: bytes) -> Any:
    """What `torch.save` packed. Raises NotAPickleError, ValueError, and what zipfile raises for other bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = next((each for each in archive.infolist() if each.filename.rpartition("/")[2] == "data.pkl"), None)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.file_size > _MAX_VALUE_BYTES:
            raise NotAPickleError("torch did not write it.")
        return walk_pickle(archive.read(entry)).value


def _tensor(entry: Any) -> Tensor | None:
    """The tensor of an entry of the index; None for other values."""
    state = entry.state if isinstance(entry, Opaque) else None
    shape, properties = (state.get("size"), state.get("properties")) if isinstance(state, dict) else (None, None)
    values = properties.state if isinstance(properties, Opaque) else None
    if not isinstance(shape, tuple) or not isinstance(values, tuple) or not all(_is_length(side) for side in shape):
        return None
    dtype = values[0].name if values and isinstance(values[0], GlobalName) else "unknown"
    return Tensor(Storage(dtype, DTYPE_BYTES.get(dtype, 1), ""), dtype, shape, strides(shape), 0)


def _places(stored: Any) -> Iterator[StoredValue]:
    """Where the index places each part of a tensor and each value."""
    for key, value in stored.items() if isinstance(stored, dict) else ():
        index, info = (part.state if isinstance(part, Opaque) else None for part in (key, value))
        if not isinstance(index, dict) or not isinstance(info, dict):
            continue
        try:
            place = msgspec.convert({**index, **info}, StoredValue)  # both have an `offset`
        except msgspec.ValidationError:
            continue
        if "/" not in place.file and place.file not in {".", ".."}:
            yield place


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a contiguous tensor."""
    return tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
