"""XML in and out: small documents built by hand, and request bodies read defensively."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ossconsole.sandbox.errors import OssError

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
    return f"{_DECLARATION}{parent(name, children)}".encode()


def url(value: str) -> str:
    """Encoded as the service does for encoding-type=url: slashes kept."""
    return quote(value, safe="/")


def parse(body: bytes, root: str) -> Element:
    """The root element of `body`. Raises MalformedXML, also for entities and DTDs."""
    try:
        found: Element = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise OssError("MalformedXML", str(error)) from error
    if local_name(found) != root:
        raise OssError("MalformedXML", f"Expected {root}, found {local_name(found)}.")
    return found


def local_name(node: Element) -> str:
    return node.tag.rpartition("}")[2]


def children(node: Element, name: str) -> Iterator[Element]:
    """The child elements called `name`, in whatever namespace."""
    return (child for child in node if local_name(child) == name)


def child_text(node: Element, name: str, default: str | None = None) -> str:
    """The text of the first child called `name`. Raises MalformedXML when it is missing and has no default."""
    for child in children(node, name):
        return child.text or ""
    if default is None:
        raise OssError("MalformedXML", f"{local_name(node)} misses {name}.")
    return default
