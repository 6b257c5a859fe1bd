"""Which bucket names and object keys the service takes."""

from __future__ import annotations

import re

from ossconsole.sandbox.errors import OssError

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
