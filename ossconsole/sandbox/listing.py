"""Listings: the keys and common prefixes of one page, and the reply.

`SyntheticKeys` serves benchmarks of the browser: a listing of any length without objects.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.records import StoredObject
from ossconsole.sandbox.replies import invalid_argument, iso_time
from ossconsole.sandbox.request import whole_number

OWNER = "sandbox"
DEFAULT_KEYS = 100
MAX_KEYS = 1000
_MAX_NAME_BYTES = 1024
# With a delimiter most of a scan may lie below one common prefix; a new seek then skips it.
_BATCH_WITH_DELIMITER = 64


class KeySource(Protocol):
    """Objects in byte order of their keys."""

    def __call__(self, start: bytes, end: bytes, limit: int, *, inclusive: bool) -> list[StoredObject]: ...


@dataclass(frozen=True)
class Page:
    """One page: objects and common prefixes, each in order; `next` is where the following page starts after."""

    objects: list[StoredObject]
    prefixes: list[str]
    next: str | None


def after_all(prefix: bytes) -> bytes:
    """The first byte string that sorts after everything starting with `prefix`; empty when there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b""


def common_prefix(key: str, prefix: str, delimiter: str) -> str:
    """The key's beginning up to the first `delimiter` after `prefix`; "" without one."""
    cut = key.find(delimiter, len(prefix)) if delimiter and key.startswith(prefix) else -1
    return key[: cut + len(delimiter)] if cut >= 0 else ""


def list_page(source: KeySource, *, prefix: str, delimiter: str, after: str, limit: int) -> Page:
    """At most `limit` entries that start with `prefix` and come after `after`."""
    page = Page([], [], None)
    last = ""
    for entry in _entries(source, prefix, delimiter, after, limit):
        if len(page.objects) + len(page.prefixes) == limit:
            return Page(page.objects, page.prefixes, last)
        if isinstance(entry, str):
            page.prefixes.append(entry)
            last = entry
        else:
            page.objects.append(entry)
            last = entry.key
    return page


def _entries(source: KeySource, prefix: str, delimiter: str, after: str, limit: int) -> Iterator[StoredObject | str]:
    raw_prefix = prefix.encode()
    end = after_all(raw_prefix)
    start, inclusive = (after.encode(), False) if after >= prefix else (raw_prefix, True)
    batch = _BATCH_WITH_DELIMITER if delimiter else limit + 1
    while True:
        found = source(start, end, batch, inclusive=inclusive)
        skipping = ""
        for stored in found:
            if skipping and stored.key.startswith(skipping):
                continue
            skipping = common_prefix(stored.key, prefix, delimiter)
            if not skipping:
                yield stored
            elif skipping != after:
                yield skipping
        if len(found) < batch:
            return
        start, inclusive = (after_all(skipping.encode()), True) if skipping else (found[-1].key.encode(), False)
        if not start:
            return


def max_keys(query: dict[str, str], name: str = "max-keys", default: int = DEFAULT_KEYS) -> int:
    """The page size, 1 to 1000. Raises InvalidArgument."""
    given = query.get(name) or str(default)
    number = whole_number(given)
    if number is None or not 0 < number <= MAX_KEYS:
        raise invalid_argument(f"{name} must be 1 to {MAX_KEYS}.", name, given)
    return number


def name_of(query: dict[str, str], parameter: str) -> str:
    """A key, or the beginning of one, in a parameter; "" without it. Raises InvalidArgument for one too long."""
    given = query.get(parameter, "")
    if len(given.encode()) > _MAX_NAME_BYTES:
        raise invalid_argument(f"{parameter} must be at most {_MAX_NAME_BYTES} bytes.", parameter, given)
    return given


def encoding(query: dict[str, str]) -> tuple[Callable[[str], str], list[str]]:
    """The encoder of names in the reply, and the EncodingType element. Raises InvalidArgument for an unknown one."""
    kind = query.get("encoding-type", "")
    if kind not in ("", "url"):
        raise invalid_argument("encoding-type must be url.", "encoding-type", kind)
    return (xml.url, xml.elements(EncodingType="url")) if kind else (str, [])


def _decode_token(token: str) -> str:
    """The key in a continuation token. Raises InvalidArgument for a token that this server did not make."""
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("The continuation token is not valid.", "continuation-token", token) from error


def reply_v1(bucket: str, query: dict[str, str], source: KeySource, now: float) -> bytes:
    """ListObjects: `prefix`, `delimiter`, `marker`, `max-keys`, `encoding-type`."""
    (encode, encoding_type), limit = encoding(query), max_keys(query)
    prefix, delimiter, marker = (name_of(query, name) for name in ("prefix", "delimiter", "marker"))
    page = list_page(source, prefix=prefix, delimiter=delimiter, after=marker, limit=limit)
    next_marker = encode(page.next) if page.next is not None else None
    head = [
        *xml.elements(Name=bucket, Prefix=encode(prefix), Marker=encode(marker)),
        *xml.elements(MaxKeys=limit, Delimiter=encode(delimiter)),
        *encoding_type,
        *xml.elements(IsTruncated=page.next is not None, NextMarker=next_marker),
    ]
    return xml.document("ListBucketResult", [*head, *_contents(page, encode, OWNER, now)])


def reply_v2(bucket: str, query: dict[str, str], source: KeySource, now: float) -> bytes:
    """ListObjectsV2: as V1, with `start-after`, `continuation-token` and `fetch-owner` in place of `marker`."""
    (encode, encoding_type), limit = encoding(query), max_keys(query)
    prefix, delimiter, start_after = (name_of(query, name) for name in ("prefix", "delimiter", "start-after"))
    token = query.get("continuation-token", "")
    after = _decode_token(token) if token else start_after
    page = list_page(source, prefix=prefix, delimiter=delimiter, after=after, limit=limit)
    next_token = None
    if page.next is not None:
        # Without the padding: ali-oss does not decode what encoding-type=url would make of it.
        next_token = encode(base64.urlsafe_b64encode(page.next.encode()).decode().rstrip("="))
    head = [
        *xml.elements(Name=bucket, Prefix=encode(prefix), StartAfter=encode(start_after) if start_after else None),
        *xml.elements(MaxKeys=limit, Delimiter=encode(delimiter)),
        *encoding_type,
        *xml.elements(ContinuationToken=encode(token) if token else None, IsTruncated=page.next is not None),
        *xml.elements(NextContinuationToken=next_token, KeyCount=len(page.objects) + len(page.prefixes)),
    ]
    owner = OWNER if query.get("fetch-owner") == "true" else ""
    return xml.document("ListBucketResult", [*head, *_contents(page, encode, owner, now)])


def _contents(page: Page, encode: Callable[[str], str], owner: str, now: float) -> Iterator[str]:
    owned = f"<Owner><ID>{owner}</ID><DisplayName>{owner}</DisplayName></Owner>" if owner else ""
    for found in page.objects:
        yield (
            f"<Contents><Key>{xml.text(encode(found.key))}</Key><LastModified>{iso_time(found.modified)}</LastModified>"
            f"<ETag>&quot;{found.etag}&quot;</ETag><Type>{found.type}</Type><Size>{found.size}</Size>"
            f"<StorageClass>{found.attributes.storage_class}</StorageClass>{_restored(found, now)}{owned}</Contents>"
        )
    for prefix in page.prefixes:
        yield f"<CommonPrefixes><Prefix>{xml.text(encode(prefix))}</Prefix></CommonPrefixes>"


def _restored(stored: StoredObject, now: float) -> str:
    status = stored.restore_status(now)
    return f"<RestoreInfo>{xml.text(status)}</RestoreInfo>" if status else ""


PREFIX = "synthetic/"
_FIRST_MODIFIED = 1_700_000_000
# Sizes and times vary like random ones, but are the same in every run.
_SIZE_STEP, _SIZE_RANGE = 2_654_435_761, 1_000_000


class SyntheticKeys:
    """`count` keys below `synthetic/`, in order. They are listed, but cannot be read."""

    def __init__(self, count: int) -> None:
        self._indices = range(count)

    @staticmethod
    def _key(index: int) -> bytes:
        return b"%ssample-%08d.pt" % (PREFIX.encode(), index)

    def scan(self, start: bytes, end: bytes, limit: int, *, inclusive: bool) -> list[StoredObject]:
        """As `Index.scan`."""
        bisect = bisect_left if inclusive else bisect_right
        first = bisect(self._indices, start, key=self._key)
        last = bisect_left(self._indices, end, key=self._key) if end else len(self._indices)
        return [self._object(index) for index in self._indices[first : min(last, first + limit)]]

    def _object(self, index: int) -> StoredObject:
        return StoredObject(
            key=self._key(index).decode(),
            blob="",
            size=index * _SIZE_STEP % _SIZE_RANGE,
            etag=f"{index:032X}",
            crc64=index,
            modified=float(_FIRST_MODIFIED + index * 7919 % 10_000_000),
        )
