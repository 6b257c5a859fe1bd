"""The index of a tar that osstorchconnector's `from_tar` wants beside it.

The format is undocumented and was read off files that osstorchconnector 1.2.3 wrote: a header of 512 bytes, then the
zlib-compressed little-endian uint32 distances between the members, in blocks of 512 bytes, beginning with 0. Both
checksums are CRC-32C with neither start value nor final inversion. A test compares with the connector itself.
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Sequence

import fastcrc

BLOCK = tarfile.BLOCKSIZE
_HEADER = struct.Struct("<8sHBB8xQQI")
_MAGIC = b"TarIdx\0\0"
_VERSION = 1
_ZLIB, _LEVEL = 1, 6
_CHECKSUM_AT = 508
_ALL_ONES = 0xFFFFFFFF


def member_header(name: str, size: int) -> bytes:
    """The tar header of a member; one block or, for a long name, more."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """What fills the last block of `size` bytes."""
    return bytes(-size % BLOCK)


def encode_index(blocks: Sequence[int]) -> bytes:
    """The index of a tar whose members, headers included, take so many blocks each."""
    body = zlib.compress(struct.pack(f"<{len(blocks) + 1}I", 0, *blocks), _LEVEL)
    fields = _HEADER.pack(_MAGIC, _VERSION, _ZLIB, _LEVEL, len(body), len(blocks) + 1, _crc32c(body))
    header = bytearray(fields.ljust(BLOCK, b"\0"))
    header[_CHECKSUM_AT:] = struct.pack("<I", _crc32c(bytes(header)))
    return bytes(header) + body


def _crc32c(data: bytes) -> int:
    return int(fastcrc.crc32.iscsi(data, _ALL_ONES)) ^ _ALL_ONES
