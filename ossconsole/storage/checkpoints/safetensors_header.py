"""The header of a safetensors file: names, shapes, dtypes and metadata, without the tensors' elements.

The format: 8 bytes with the header's length, the header in JSON, then the elements
(https://huggingface.co/docs/safetensors). No torch here, and only the header is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from ossconsole.config.errors import ConsoleError

MAX_HEADER_BYTES = 16 << 20
"""The largest models have some thousand tensors, of about 100 bytes each in the header."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_DTYPES = {
    f"{letter}{bits}": f"{kind}{bits}"
    for letter, kind, sizes in (
        ("F", "float", (64, 32, 16)),
        ("I", "int", (64, 32, 16, 8)),
        ("U", "uint", (64, 32, 16, 8)),
    )
    for bits in sizes
} | {"BF16": "bfloat16", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64"}


class NotSafetensorsError(ConsoleError):
    """The header is damaged, or does not fit the size of the file."""


class StoredTensor(msgspec.Struct, frozen=True):
    """One tensor: its dtype in torch's words, and the first byte and the end of its elements in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(msgspec.Struct, frozen=True):
    """The tensors by their names, in the order of the file, and the metadata."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes begins as one of safetensors; of `head`, nine bytes are enough."""
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    return len(head) > _LENGTH_BYTES and 2 <= length < 1 << 40 and size > _LENGTH_BYTES and head[8:9] == b"{"


def read_header(fetch: Callable[[int, int], bytes], size: int) -> Header:
    """The header, by `fetch(start, length)`. Raises NotSafetensorsError."""
    length = int.from_bytes(fetch(0, min(_LENGTH_BYTES, size)), "little")
    if length > MAX_HEADER_BYTES:
        raise NotSafetensorsError(f"Its safetensors header is larger than {MAX_HEADER_BYTES >> 20} MiB.")
    begin = _LENGTH_BYTES + length
    if begin > size:
        raise _damaged("the header is longer than the file")
    try:
        parts = msgspec.json.decode(fetch(_LENGTH_BYTES, length), type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(parts.pop(_METADATA, msgspec.Raw(b"{}")), type=dict[str, str])
        entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in parts.items()}
    except (msgspec.DecodeError, RecursionError) as error:
        raise _damaged("the header is not what the format says") from error
    tensors = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        first, end = (begin + offset for offset in entry.data_offsets)
        if not begin <= first <= end <= size or any(side < 0 for side in entry.shape):
            raise _damaged(f"the elements of {name[:100]!r} are not all in the file")
        tensors[name] = StoredTensor(_DTYPES.get(entry.dtype, entry.dtype), tuple(entry.shape), first, end)
    return Header(tensors, metadata)


def element_bytes(tensor: StoredTensor) -> int:
    """The bytes of one element, 1 for a tensor without any."""
    elements = math.prod(tensor.shape)
    return max(1, (tensor.end - tensor.begin) // elements) if elements else 1


def _damaged(why: str) -> NotSafetensorsError:
    return NotSafetensorsError(
        f"It is a safetensors file that is cut short or damaged: {why}.", remedy="Copy it again and compare the sizes."
    )
