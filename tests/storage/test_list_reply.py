"""The reading of listings: the same as oss2's, however the reply is cut into pieces, and refusals of what is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from xml.parsers.expat import ExpatError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oss2 import xml_utils

from ossconsole.sandbox.listing import reply_v2
from ossconsole.sandbox.records import Attributes, StoredObject
from ossconsole.storage.objects import ListPage, ObjectSummary, read_page

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@dataclass
class TheirResult:
    """What oss2 fills."""

    is_truncated: bool = False
    next_continuation_token: str = ""
    object_list: list[Any] = field(default_factory=list)
    prefix_list: list[str] = field(default_factory=list)


def theirs(body: bytes) -> ListPage:
    found = TheirResult()
    xml_utils.parse_list_objects_v2(found, body)
    objects = [
        ObjectSummary(
            o.key, o.size, o.last_modified, o.storage_class, o.etag, o.type, "false" in (o.restore_info or "")
        )
        for o in found.object_list
    ]
    return ListPage(objects, found.prefix_list, found.next_continuation_token)


def reply(keys: list[str], **query: str) -> bytes:
    stored = [
        StoredObject(
            key=key,
            blob="",
            size=at,
            etag=f"{at:032X}",
            crc64=0,
            modified=1_700_000_000.0 + at * 86_399,
            type="Multipart" if at % 3 else "Normal",
            attributes=Attributes(storage_class="Archive" if at % 2 else "Standard"),
            restored_until=1_800_000_000.0 if at % 4 == 1 else None,
        )
        for at, key in enumerate(sorted(keys, key=str.encode))
    ]

    def source(start: bytes, end: bytes, limit: int, *, inclusive: bool) -> list[StoredObject]:
        found = [each for each in stored if each.key.encode() > start or (inclusive and each.key.encode() == start)]
        return [each for each in found if not end or each.key.encode() < end][:limit]

    return reply_v2("bucket", {"encoding-type": "url", **query}, source, now=0.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(NAMES, max_size=12, unique=True), st.integers(1, 64), st.sampled_from(["", "/"]), st.booleans())
def test_any_page_reads_as_oss2_reads_it(keys: list[str], piece: int, delimiter: str, owner: bool) -> None:
    query = {"delimiter": delimiter, "max-keys": "5", "fetch-owner": str(owner).lower()}
    body = reply(keys, **query)
    assert read_page(body[at : at + piece] for at in range(0, len(body), piece)) == theirs(body)


def test_blanks_and_missing_fields() -> None:
    body = reply(["a b"]).replace(b"><", b">\n  <").replace(b"<StorageClass>Standard</StorageClass>", b"")
    assert read_page([body]) == ListPage([ObjectSummary("a b", 0, 1_700_000_000, "Standard", "0" * 32)], [], "")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>Sign in</body></html>",
        reply(["a"])[:-20],
        reply(["a"]).replace(b"<Size>0</Size>", b""),
        reply(["a"]).replace(b"2023-11-14", b"yesterday!"),
        b'<!DOCTYPE x [<!ENTITY e "1">]><ListBucketResult><Prefix>&e;</Prefix></ListBucketResult>',
    ],
    ids=["nothing", "a page for people", "broken off", "no size", "no time", "document type"],
)
def test_a_reply_that_is_not_a_listing_is_refused(body: bytes) -> None:
    with pytest.raises((ExpatError, ValueError)):
        read_page([body])
