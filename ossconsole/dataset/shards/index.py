"""The index of a dataset's shards: which tars exist, where each sample lies, and the tar index files.

A tar index lies beside its tar, for osstorchconnector's `from_tar`. Its format is undocumented and was read off files
that osstorchconnector 1.2.3 wrote: a header of 512 bytes, then the zlib-compressed little-endian uint32 distances
between the members, in blocks of 512 bytes, beginning with 0. Both checksums are CRC-32C with neither start value nor
final inversion. A test compares with the connector itself.
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import fastcrc
import msgspec

from ossconsole.config.files import decode_json
from ossconsole.dataset.formats import SampleFormat, sample_bytes
from ossconsole.dataset.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_OBJECT_BYTES,
    SHARDS_NAME,
    SPLITS,
    ManifestError,
    ManifestMissingError,
    key_problem,
    object_key,
    sample_problem,
)
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError

SHARDS_VERSION = 1
_UPLOAD_AGAIN = "Upload the dataset again with `ossconsole upload --shards`."


class ShardSample(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member of a tar, from `offset` on. `bytes` is its size, 0 where format, height and width determine it.

    `key` is the member's name, the same as the sample's key as a single object; `label` is an index into the list's
    classes. `crc64` is that of its bytes, as OSS computes it; 0 where it is unknown.
    """

    key: str
    label: int
    height: int
    width: int
    offset: int
    bytes: int = 0
    crc64: int = 0

    def size(self, fmt: SampleFormat) -> int:
        """Bytes of the member."""
        return self.bytes or sample_bytes(fmt, self.height, self.width)


class _ShardFields(msgspec.Struct, frozen=True, kw_only=True):
    """Keys are relative to the dataset prefix. `digest` identifies the files and the config of the tar.

    The CRC64s are decimal, "" in lists of earlier releases and where OSS reported none.
    """

    split: str
    tar: str
    index: str
    bytes: int
    digest: str
    etag: str = ""
    crc64: str = ""
    index_etag: str = ""
    index_crc64: str = ""


class Shard(_ShardFields, frozen=True, kw_only=True):
    """One tar in the bucket, and its members in their order: number i is item i of the connector's tar dataset."""

    samples: tuple[ShardSample, ...]


class PackedShard(_ShardFields, frozen=True, kw_only=True):
    """A shard whose samples stay encoded: a million of them take little memory."""

    samples: msgspec.Raw

    def unpack(self) -> list[ShardSample]:
        """The decoded samples. Raises msgspec.DecodeError."""
        found: list[ShardSample] = decode_json(bytes(self.samples), list[ShardSample])
        return found


class PackedShardList(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `shards.json`, for code that does not need single samples. `classes[label]` is a class's name.

    `size` as in a manifest; `recipe` is the digest of the PreprocessConfig, `preparation` its description.
    """

    version: int = SHARDS_VERSION
    format: SampleFormat
    size: int
    recipe: str
    preparation: dict[str, Any] = {}
    classes: tuple[str, ...]
    shards: tuple[PackedShard, ...]


def read_shards(store: ObjectStore, prefix: str) -> tuple[PackedShardList, Iterator[Shard]]:
    """The list below `prefix`, and its shards, which are decoded and checked one by one to save memory.

    Raises ManifestMissingError, ManifestError or StorageError, and ManifestError at a shard that is not valid.
    """
    uri = store.uri(object_key(prefix, SHARDS_NAME))
    try:
        found: PackedShardList = decode_json(_read(store, prefix), PackedShardList)
    except msgspec.DecodeError as error:
        raise ManifestError(f"{uri} is not a list of shards: {error}.", remedy=_UPLOAD_AGAIN) from error
    _check(_problem(found), uri)
    return found, _shards(found, uri)


def _shards(listed: PackedShardList, uri: str) -> Iterator[Shard]:
    for packed in listed.shards:
        fields = {name: getattr(packed, name) for name in _ShardFields.__struct_fields__}
        try:
            shard = Shard(**fields, samples=tuple(packed.unpack()))
        except msgspec.DecodeError as error:
            raise ManifestError(f"{uri} is not a list of shards: {error}.", remedy=_UPLOAD_AGAIN) from error
        _check(_shard_problem(shard, listed), uri)
        yield shard


def _check(problem: str, uri: str) -> None:
    if problem:
        raise ManifestError(f"The list of shards {uri} is not valid: {problem}.", remedy=_UPLOAD_AGAIN)


def read_packed_list(store: ObjectStore, prefix: str) -> PackedShardList | None:
    """The list below `prefix`; None when it does not exist or cannot be used. Raises StorageError."""
    try:
        return decode_json(_read(store, prefix), PackedShardList)
    except (ManifestError, msgspec.DecodeError):
        return None


def _read(store: ObjectStore, prefix: str) -> bytes:
    key = object_key(prefix, SHARDS_NAME)
    try:
        if store.head(key).size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{store.uri(key)} has more than {MAX_MANIFEST_BYTES} bytes.", remedy=_UPLOAD_AGAIN)
        return store.get(key)
    except StorageError as error:
        if not error.no_such_object:
            raise
        raise ManifestMissingError(f"{store.uri(key)} does not exist.", remedy=_UPLOAD_AGAIN, empty=False) from error


def _problem(listed: PackedShardList) -> str:
    if listed.version != SHARDS_VERSION:
        return f"it has version {listed.version}, this program reads version {SHARDS_VERSION}"
    if not listed.shards or not 1 <= len(set(listed.classes)) == len(listed.classes):
        return "it has no shards or no classes, or a class is listed twice"
    for shard in listed.shards:
        if shard.split not in SPLITS or key_problem(shard.tar) or key_problem(shard.index):
            return f"{shard.tar!r} is not a valid key of a shard"
    return ""


def _shard_problem(shard: Shard, listed: PackedShardList) -> str:
    end = 0
    for sample in shard.samples:
        if problem := sample_problem(sample, len(listed.classes), listed.format):
            return f"{shard.tar}: {problem}"
        if sample.offset <= end:
            return f"{shard.tar}: {sample.key} begins within the sample before it"
        end = sample.offset + sample.size(listed.format)
    return (
        ""
        if 0 < end <= min(shard.bytes, MAX_OBJECT_BYTES)
        else f"{shard.tar}: it has no samples, or they are longer than the tar"
    )


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
    """The bytes that fill the last block after `size` bytes."""
    return bytes(-size % BLOCK)


def encode_index(blocks: Sequence[int]) -> bytes:
    """The index of a tar; `blocks` has the number of blocks of each member, headers included."""
    body = zlib.compress(struct.pack(f"<{len(blocks) + 1}I", 0, *blocks), _LEVEL)
    fields = _HEADER.pack(_MAGIC, _VERSION, _ZLIB, _LEVEL, len(body), len(blocks) + 1, _crc32c(body))
    header = bytearray(fields.ljust(BLOCK, b"\0"))
    header[_CHECKSUM_AT:] = struct.pack("<I", _crc32c(bytes(header)))
    return bytes(header) + body


def _crc32c(data: bytes) -> int:
    return int(fastcrc.crc32.iscsi(data, _ALL_ONES)) ^ _ALL_ONES
