"""XML of requests, read defensively."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ossconsole.sandbox.errors import OssError


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
