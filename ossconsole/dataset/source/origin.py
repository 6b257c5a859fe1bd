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
    """The member of a zip whose header is at `offset`: a name may be in it more than once."""

    path: str
    offset: int


class BytesOrigin(msgspec.Struct, frozen=True, array_like=True, tag="bytes"):
    """A member of a compressed tar, which can only be read in passing."""

    data: bytes


Origin: TypeAlias = FileOrigin | SpanOrigin | ZipOrigin | BytesOrigin


def read_origin(origin: Origin) -> bytes:
    """The file's bytes. Raises OSError, or what zipfile raises for a member it cannot read."""
    if isinstance(origin, BytesOrigin):
        return origin.data
    if isinstance(origin, ZipOrigin):
        archive, members = _open_zip(origin.path)
        return archive.read(members[origin.offset])
    with open(origin.path, "rb") as file:  # noqa: PTH123  a Path for each of a million files costs more than the open
        if isinstance(origin, SpanOrigin):
            file.seek(origin.offset)
            return file.read(origin.size)
        return file.read()


@functools.lru_cache(maxsize=1)
def _open_zip(path: str) -> tuple[zipfile.ZipFile, dict[int, zipfile.ZipInfo]]:
    """The archive, and its members by the offset of their headers."""
    import zipfile  # not for every preparation process

    archive = zipfile.ZipFile(path)
    return archive, {member.header_offset: member for member in archive.infolist()}
