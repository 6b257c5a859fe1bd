"""Origin: where the bytes of one picture file are, told to the process that prepares it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    import zipfile


class FileOrigin(msgspec.Struct, frozen=True, array_like=True, tag="file"):
    """A file of its own."""

    path: str


class SpanOrigin(msgspec.Struct, frozen=True, array_like=True, tag="span"):
    """A member of an uncompressed tar: `size` bytes at `offset`."""

    path: str
    offset: int
    size: int


class ZipOrigin(msgspec.Struct, frozen=True, array_like=True, tag="zip"):
    """A member of a zip."""

    path: str
    member: str


class BytesOrigin(msgspec.Struct, frozen=True, array_like=True, tag="bytes"):
    """A member of a compressed tar, which can only be read in passing."""

    data: bytes


Origin: TypeAlias = FileOrigin | SpanOrigin | ZipOrigin | BytesOrigin


def read_origin(origin: Origin) -> bytes:
    """The file's bytes. Raises OSError, or what zipfile raises for a member it cannot read."""
    if isinstance(origin, BytesOrigin):
        return origin.data
    if isinstance(origin, ZipOrigin):
        return _open_zip(origin.path).read(origin.member)
    with open(origin.path, "rb") as file:  # noqa: PTH123  a Path for each of a million files costs more than the open
        if isinstance(origin, SpanOrigin):
            file.seek(origin.offset)
            return file.read(origin.size)
        return file.read()


@functools.lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
    import zipfile  # not for every preparation process

    return zipfile.ZipFile(path)
