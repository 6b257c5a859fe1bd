"""Conditional requests: If-Match and its kin, on an object or on the source of a copy."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from ossconsole.sandbox.errors import OssError
from ossconsole.sandbox.records import StoredObject

COPY_PREFIX = "x-oss-copy-source-"


def check(headers: dict[str, str], stored: StoredObject, *, prefix: str = "") -> bool:
    """False when the reply is 304 Not Modified. Raises PreconditionFailed."""
    match, unmodified = headers.get(f"{prefix}if-match"), _time(headers.get(f"{prefix}if-unmodified-since"))
    if match is not None and not _matches(match, stored.etag):
        raise OssError("PreconditionFailed", fields={"Condition": "If-Match"})
    if unmodified is not None and int(stored.modified) > unmodified:
        raise OssError("PreconditionFailed", fields={"Condition": "If-Unmodified-Since"})
    none_match, since = headers.get(f"{prefix}if-none-match"), _time(headers.get(f"{prefix}if-modified-since"))
    if none_match is not None:
        return not _matches(none_match, stored.etag)
    return since is None or int(stored.modified) > since


def _matches(header: str, etag: str) -> bool:
    given = [item.strip().strip('"').upper() for item in header.split(",")]
    return "*" in given or etag.upper() in given


def _time(header: str | None) -> float | None:
    """A date that cannot be read is as good as none (RFC 9110, 13.1.3)."""
    if header is None:
        return None
    try:
        return parsedate_to_datetime(header).timestamp()
    except ValueError:
        return None
