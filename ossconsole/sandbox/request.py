"""A request as the service reads it: path, parameters, headers, XML body, preconditions and ranges."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import parse_qsl, quote, unquote_to_bytes
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ossconsole.sandbox.records import StoredObject, check_key
from ossconsole.sandbox.replies import OssError, invalid_argument


@dataclass(frozen=True)
class Resource:
    """The resource of a request: the service (no bucket), a bucket (no key), or an object."""

    bucket: str = ""
    key: str = ""

    @property
    def canonical(self) -> str:
        """The path that is signed: `/bucket/key`, `/bucket/`, or `/` for the service."""
        return f"/{self.bucket}/{self.key}" if self.bucket else "/"


class IncomingRequest:
    """A request: method, path and parameters decoded, header names in lower case. Raises InvalidObjectName."""

    __slots__ = ("headers", "host", "method", "path", "query")

    def __init__(self, method: str, raw_path: str, raw_headers: Iterable[tuple[bytes, bytes]]) -> None:
        path, _, query = raw_path.partition("?")
        self.method = method
        try:
            self.path = unquote_to_bytes(path).decode() if "%" in path else path
            # Clients encode a space differently (`+`, `%20`); the signature is over the decoded value.
            self.query = dict(parse_qsl(query, keep_blank_values=True, errors="strict")) if query else {}
        except UnicodeDecodeError as error:
            raise OssError("InvalidObjectName", "The name is not UTF-8.") from error
        self.headers = {
            name.decode("latin-1").lower(): value.decode("utf-8", "surrogateescape") for name, value in raw_headers
        }
        self.host = self.headers.get("host", "")

    def candidates(self, buckets: Iterable[str]) -> list[Resource]:
        """The resources that the request may address, the likelier first.

        On an IPv4 address the two styles cannot be told apart: path style has the bucket first in the path,
        virtual-hosted style (as the connector composes `<bucket>.<endpoint>`) has it in the host. The signature
        decides, because it covers `/bucket/key` in both styles.
        """
        first, _, rest = self.path[1:].partition("/")
        by_path = Resource(first, rest)
        bucket = _bucket_of_host(self.host)
        if bucket is None:
            return [by_path]
        by_host = Resource(bucket, self.path[1:])
        return [by_path, by_host] if first in buckets else [by_host, by_path]


@lru_cache(maxsize=16)
def _bucket_of_host(host: str) -> str | None:
    name = host.partition(":")[0]
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return None
    return name.partition(".")[0]


def parse_copy_source(header: str) -> tuple[Resource, str]:
    """The object named by `x-oss-copy-source`, and its version id or "".

    Raises InvalidObjectName, and InvalidArgument for an empty version id (0016-00000305) or another parameter
    (0016-00000304).
    """
    path, _, query = header.partition("?")
    text = unquote_to_bytes(path).decode("utf-8", "replace")
    bucket, _, key = text.removeprefix("/").partition("/")
    check_key(key)
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    version_id = parameters.get("versionId", "")
    if "versionId" in parameters and not version_id:
        raise invalid_argument("The version id is empty.", "x-oss-copy-source", header, ec="0016-00000305")
    if parameters.keys() - {"versionId"}:
        raise invalid_argument("Only versionId is allowed.", "x-oss-copy-source", header, ec="0016-00000304")
    return Resource(bucket, key), version_id


_MAX_NUMBER = 2**63 - 1  # also the largest that SQLite knows
_MAX_DIGITS = len(str(_MAX_NUMBER))


def whole_number(text: str) -> int | None:
    """The number that `text` writes in ASCII digits, None for any other text and for more than 63 bits."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else None
    return number if number is not None and number <= _MAX_NUMBER else None


_NO_HEADER = re.compile("[\x00-\x08\x0a-\x1f\x7f]")


def header_value(name: str, value: str) -> str:
    """`value`, which will be sent as a header. Raises InvalidArgument where it has a character that none can have."""
    if _NO_HEADER.search(value):
        raise invalid_argument("It is not the value of a header.", name, value)
    return value


def encode_path(path: str) -> str:
    """Percent-encoded for the V4 signature, slashes kept."""
    return quote(path, safe="/")


def encode_query(query: dict[str, str]) -> str:
    """The V4 canonical query: encoded, sorted, a parameter without value as its bare name."""
    pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in query.items())
    return "&".join(f"{name}={value}" if value else name for name, value in pairs)


def parse_xml(body: bytes, root: str) -> Element:
    """The root element of `body`. Raises MalformedXML, also for entities and DTDs."""
    try:
        found: Element = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise OssError("MalformedXML", str(error)) from error
    if local_name(found) != root:
        raise OssError("MalformedXML", f"Expected {root}, found {local_name(found)}.")
    return found


# What XML 1.0 cannot have is parsed as this character and the code in six digits, and so is the character itself.
_ESCAPE = "\U0010fffd"
_NO_XML = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff{_ESCAPE}]")
_ESCAPED = re.compile(f"{_ESCAPE}([0-9a-f]{{6}})")


def escape_for_xml(body: bytes) -> bytes:
    """`body` with the characters that XML 1.0 cannot have in a form that it can; `unescape` has the inverse.

    The service reads such keys from the body of DeleteMultipleObjects (by oss2's own tests).
    """
    text = body.decode("utf-8", "surrogateescape")
    return _NO_XML.sub(lambda found: f"{_ESCAPE}{ord(found[0]):06x}", text).encode("utf-8", "surrogateescape")


def unescape(text: str) -> str:
    """The text of an element with the characters that it was sent with."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def local_name(node: Element) -> str:
    """The element's name without its namespace."""
    return node.tag.rpartition("}")[2]


def children(node: Element, name: str) -> Iterator[Element]:
    """The child elements called `name`, in any namespace."""
    return (child for child in node if local_name(child) == name)


def child_text(node: Element, name: str, default: str | None = None) -> str:
    """The text of the first child called `name`. Raises MalformedXML when it is missing and has no default."""
    for child in children(node, name):
        return child.text or ""
    if default is None:
        raise OssError("MalformedXML", f"{local_name(node)} has no {name}.")
    return default


COPY_PREFIX = "x-oss-copy-source-"
CONDITIONS = frozenset({"if-match", "if-none-match", "if-modified-since", "if-unmodified-since"})


def check_preconditions(headers: dict[str, str], stored: StoredObject, *, prefix: str = "") -> bool:
    """Checks If-Match and its siblings, each name with `prefix`: False when the reply is 304 Not Modified.

    Raises PreconditionFailed.
    """
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
    """Unix seconds; None also for an invalid date, which is ignored (RFC 9110, 13.1.3)."""
    if header is None:
        return None
    try:
        return parse_time(header)
    except ValueError:
        return None


def parse_time(header: str) -> float:
    """Unix seconds of a date in a header. Raises ValueError for what is no date."""
    try:
        return parsedate_to_datetime(header).timestamp()
    except OverflowError as error:  # a year of twenty digits
        raise ValueError(header) from error


_RANGE = re.compile(rf"bytes=(\d{{0,{_MAX_DIGITS}}})-(\d{{0,{_MAX_DIGITS}}})", re.ASCII)


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` to `start + length` of an object; `partial` when a Range header selected them."""

    start: int
    length: int
    partial: bool


def resolve_range(header: str | None, size: int, *, standard: bool) -> ByteRange:
    """The byte range of a Range header for an object of `size` bytes.

    By default a range that is malformed or exceeds the object is ignored: the whole object, status 200. With
    `x-oss-range-behavior: standard` the end is clipped, and a start beyond the end raises InvalidRange (416).
    """
    whole = ByteRange(0, size, partial=False)
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(0) == "bytes=-":
        return whole
    first, last = match.groups()
    if first:
        start, end = int(first), int(last) if last else size - 1
        if last and end < start:
            return whole
        outside, exceeds = start >= size, end >= size
    else:  # the last bytes of the object
        start, end = max(0, size - int(last)), size - 1
        outside, exceeds = int(last) == 0 or size == 0, int(last) > size
    if standard and outside:
        fields = {"ActualObjectSize": str(size), "RangeRequested": header or ""}
        raise OssError("InvalidRange", fields=fields, headers={"Content-Range": f"bytes */{size}"})
    if outside or (exceeds and not standard):
        return whole
    return ByteRange(start, min(end, size - 1) - start + 1, partial=True)
