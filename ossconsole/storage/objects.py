"""What the storage layer tells of buckets and objects."""

from __future__ import annotations

import msgspec

ARCHIVED = frozenset({"Archive", "ColdArchive", "DeepColdArchive"})
"""The storage classes whose objects must be restored before they can be read."""


class ObjectSummary(msgspec.Struct, frozen=True, gc=False):
    """One row of a listing. `size` in bytes, `modified` in seconds since the epoch (UTC)."""

    key: str
    size: int
    modified: int
    storage_class: str = "Standard"
    etag: str = ""


class ListPage(msgspec.Struct, frozen=True):
    """One page of a listing: objects, common prefixes, and the token of the next page ("" at the end)."""

    objects: list[ObjectSummary]
    prefixes: list[str]
    next_token: str


class ObjectInfo(msgspec.Struct, frozen=True):
    """What a HEAD tells. `crc64` is None where the server gives none; `headers` are as received, lower-case names."""

    key: str
    size: int
    modified: int
    etag: str
    crc64: int | None
    storage_class: str
    content_type: str
    object_type: str
    metadata: dict[str, str]
    headers: dict[str, str]


class BucketSummary(msgspec.Struct, frozen=True):
    """One bucket of the account. `created` in seconds since the epoch (UTC)."""

    name: str
    region: str
    storage_class: str
    created: int


class PutResult(msgspec.Struct, frozen=True):
    """What OSS answered to a write. `crc64` was compared with the bytes sent."""

    etag: str
    crc64: int | None
    request_id: str
