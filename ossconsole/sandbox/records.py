"""The records of the store: buckets, objects, uploads and parts, and the rules for their names."""

from __future__ import annotations

import re

import msgspec

from ossconsole.sandbox.replies import OssError, http_time


class Bucket(msgspec.Struct, frozen=True):
    """A bucket. `created` is Unix seconds, `accelerator` its encoded accelerators (None: none)."""

    name: str
    created: float
    acl: str = "private"
    storage_class: str = "Standard"
    accelerator: bytes | None = None


class Retention(msgspec.Struct, frozen=True):
    """A retention policy (WORM): objects cannot be changed or deleted for `days`. `created` is Unix seconds."""

    id: str
    days: int
    created: float
    locked: bool = False


class Blob(msgspec.Struct, frozen=True):
    """The immutable bytes of an object or part. `md5` is upper-case hex, `crc64` CRC64-ECMA."""

    id: str
    size: int
    md5: str
    crc64: int


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes that a writer gives an object besides its bytes. Header names are in lower case.

    `symlink` is the target's key of a symbolic link. `encryption` are the headers of the encryption at rest, which is
    simulated. `restoring_until` (Unix seconds) is when the restore of an archived object ends.
    """

    headers: dict[str, str] = {}
    storage_class: str = "Standard"
    acl: str = "default"
    tags: dict[str, str] = {}
    symlink: str = ""
    encryption: dict[str, str] = {}
    restoring_until: float = 0.0


class StoredObject(msgspec.Struct, frozen=True):
    """One object. `modified` and `restored_until` are Unix seconds; `etag` is without quotes."""

    key: str
    blob: str
    size: int
    etag: str
    crc64: int
    modified: float
    type: str = "Normal"
    attributes: Attributes = Attributes()
    restored_until: float | None = None

    def restore_status(self, now: float) -> str:
        """The value of `x-oss-restore` and RestoreInfo at Unix time `now`; "" without a restore."""
        if self.restored_until is None or self.restored_until <= now:
            return ""
        if self.attributes.restoring_until > now:
            return 'ongoing-request="true"'
        return f'ongoing-request="false", expiry-date="{http_time(self.restored_until)}"'


class Upload(msgspec.Struct, frozen=True):
    """An unfinished multipart upload. `started` is Unix seconds."""

    id: str
    key: str
    started: float
    attributes: Attributes


class Part(msgspec.Struct, frozen=True):
    """One part of an upload; its ETag is its MD5."""

    number: int
    blob: Blob
    modified: float


MAX_KEY_BYTES = 1023
_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


def check_bucket(name: str) -> None:
    """Raises InvalidBucketName: 3 to 63 of lower case, digits and hyphens, no hyphen at an edge."""
    if not _BUCKET.fullmatch(name):
        raise OssError("InvalidBucketName", fields={"BucketName": name})


def check_key(key: str) -> None:
    """Raises InvalidObjectName: 1 to 1023 bytes of UTF-8, not starting with a slash or a backslash."""
    if not key or key[0] in "/\\" or len(key.encode()) > MAX_KEY_BYTES:
        raise OssError("InvalidObjectName", fields={"ObjectName": key})
