"""The XML of replies: small documents built by hand, and the two spellings of a time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from urllib.parse import quote
from xml.sax.saxutils import escape

_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
# What XML 1.0 cannot carry in any spelling. A client that has such keys must ask for encoding-type=url; one that does
# not (the connector) must still get a well-formed reply, because it aborts its process on any other.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def text(value: str) -> str:
    """Escaped for element content; a carriage return survives the parser's line end rules."""
    return escape(_FORBIDDEN.sub("\ufffd", value), {"\r": "&#13;"})


def element(name: str, value: str | float | bool) -> str:
    """`<name>value</name>`, escaped; truth values in lower case."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    return f"<{name}>{text(str(value))}</{name}>"


def parent(name: str, children: Iterable[str]) -> str:
    """An element of elements."""
    return f"<{name}>{''.join(children)}</{name}>"


def document(name: str, children: Iterable[str]) -> bytes:
    """A whole document, as bytes."""
    return f"{_DECLARATION}{parent(name, children)}".encode("utf-8", "replace")


def url(value: str) -> str:
    """Encoded as the service does for encoding-type=url: slashes kept."""
    return quote(value, safe="/")


def iso_time(timestamp: float) -> str:
    """`2024-01-01T00:00:00.000Z`, as in listings and errors; oss2 reads no other fraction."""
    return _iso_time(int(timestamp))


def http_time(timestamp: float) -> str:
    """`Mon, 01 Jan 2024 00:00:00 GMT`, as in headers."""
    return _http_time(int(timestamp))


# Objects written together share their second, and listings and headers ask for the same ones again and again.
@lru_cache(maxsize=4096)
def _iso_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


@lru_cache(maxsize=4096)
def _http_time(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
