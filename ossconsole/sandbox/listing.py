"""Listings: which keys and common prefixes make one page, and the reply.

`SyntheticListing` serves benchmarks of the browser: a listing of any length without objects.
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

DEFAULT_KEYS = 100
MAX_KEYS = 1000
# With a delimiter most of a scan may lie below one common prefix, which is then skipped by a new seek.
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
            cut = stored.key.find(delimiter, len(prefix)) if delimiter else -1
            if cut < 0:
                skipping = ""
                yield stored
                continue
            skipping = stored.key[: cut + len(delimiter)]
            if skipping != after:
                yield skipping
        if len(found) < batch:
            return
        start, inclusive = (after_all(skipping.encode()), True) if skipping else (found[-1].key.encode(), False)
        if not start:
            return


def max_keys(query: dict[str, str], name: str = "max-keys", default: int = DEFAULT_KEYS) -> int:
    """The page size asked for. Raises InvalidArgument: 1 to 1000."""
    given = query.get(name) or str(default)
    if not given.isdecimal() or not 0 < int(given) <= MAX_KEYS:
        raise invalid_argument(f"{name} must be 1 to {MAX_KEYS}.", name, given)
    return int(given)


def encoder(query: dict[str, str]) -> Callable[[str], str]:
    """How names are written in the reply. Raises InvalidArgument for an unknown encoding-type."""
    kind = query.get("encoding-type", "")
    if kind not in ("", "url"):
        raise invalid_argument("encoding-type must be url.", "encoding-type", kind)
    return xml.url if kind else str


def make_token(last: str) -> str:
    """A continuation token: opaque to clients."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def read_token(token: str) -> str:
    """Raises InvalidArgument for a token that this server did not make."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("The continuation token is not valid.", "continuation-token", token) from error


def reply_v1(bucket: str, query: dict[str, str], source: KeySource, owner: str) -> bytes:
    """ListObjects: `prefix`, `delimiter`, `marker`, `max-keys`, `encoding-type`."""
    encode, limit = encoder(query), max_keys(query)
    prefix, delimiter, marker = (query.get(name, "") for name in ("prefix", "delimiter", "marker"))
    page = list_page(source, prefix=prefix, delimiter=delimiter, after=marker, limit=limit)
    head = [
        xml.element("Name", bucket),
        xml.element("Prefix", encode(prefix)),
        xml.element("Marker", encode(marker)),
        xml.element("MaxKeys", limit),
        xml.element("Delimiter", encode(delimiter)),
        *([xml.element("EncodingType", "url")] if query.get("encoding-type") else []),
        xml.element("IsTruncated", page.next is not None),
        *([xml.element("NextMarker", encode(page.next))] if page.next is not None else []),
    ]
    return xml.document("ListBucketResult", [*head, *_contents(page, encode, owner)])


def reply_v2(bucket: str, query: dict[str, str], source: KeySource, owner: str) -> bytes:
    """ListObjectsV2: as V1, with `start-after`, `continuation-token` and `fetch-owner` in place of `marker`."""
    encode, limit = encoder(query), max_keys(query)
    prefix, delimiter, start_after = (query.get(name, "") for name in ("prefix", "delimiter", "start-after"))
    token = query.get("continuation-token", "")
    after = read_token(token) if token else start_after
    page = list_page(source, prefix=prefix, delimiter=delimiter, after=after, limit=limit)
    next_token = make_token(page.next) if page.next is not None else ""
    head = [
        xml.element("Name", bucket),
        xml.element("Prefix", encode(prefix)),
        *([xml.element("StartAfter", encode(start_after))] if start_after else []),
        xml.element("MaxKeys", limit),
        xml.element("Delimiter", encode(delimiter)),
        *([xml.element("EncodingType", "url")] if query.get("encoding-type") else []),
        *([xml.element("ContinuationToken", encode(token))] if token else []),
        xml.element("IsTruncated", page.next is not None),
        *([xml.element("NextContinuationToken", encode(next_token))] if next_token else []),
        xml.element("KeyCount", len(page.objects) + len(page.prefixes)),
    ]
    shown = owner if query.get("fetch-owner") == "true" else ""
    return xml.document("ListBucketResult", [*head, *_contents(page, encode, shown)])


def _contents(page: Page, encode: Callable[[str], str], owner: str) -> Iterator[str]:
    owned = f"<Owner><ID>{owner}</ID><DisplayName>{owner}</DisplayName></Owner>" if owner else ""
    for found in page.objects:
        yield (
            f"<Contents><Key>{xml.text(encode(found.key))}</Key><LastModified>{iso_time(found.modified)}</LastModified>"
            f"<ETag>&quot;{found.etag}&quot;</ETag><Type>{found.type}</Type><Size>{found.size}</Size>"
            f"<StorageClass>{found.attributes.storage_class}</StorageClass>{owned}</Contents>"
        )
    for prefix in page.prefixes:
        yield f"<CommonPrefixes><Prefix>{xml.text(encode(prefix))}</Prefix></CommonPrefixes>"


PREFIX = "synthetic/"
_FIRST_MODIFIED = 1_700_000_000
# Sizes and times look random and are always the same.
_SIZE_STEP, _SIZE_RANGE = 2_654_435_761, 1_000_000


class SyntheticKeys:
    """`count` keys below `synthetic/`, in order, listed but not readable."""

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
        size = index * _SIZE_STEP % _SIZE_RANGE
        return StoredObject(
            key=self._key(index).decode(),
            blob="",
            size=size,
            etag=f"{index:032X}",
            crc64=index,
            modified=float(_FIRST_MODIFIED + index * 7919 % 10_000_000),
        )
