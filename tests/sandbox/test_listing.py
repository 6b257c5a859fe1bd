"""Listing: pages against a plain model, the replies through oss2, and the cases that clients trip over."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import oss2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossconsole.sandbox.listing import after_all, list_page
from ossconsole.sandbox.process import SandboxInfo
from ossconsole.sandbox.records import StoredObject
from tests.sandbox.wire import call

_KEYS = st.lists(st.text("ab/é", min_size=1, max_size=5), max_size=30, unique=True)


def source_of(keys: list[str]) -> Any:
    ordered = sorted(key.encode() for key in keys)

    def scan(start: bytes, end: bytes, limit: int, *, inclusive: bool) -> list[StoredObject]:
        found = [key for key in ordered if (key >= start if inclusive else key > start) and (not end or key < end)]
        return [
            StoredObject(key=key.decode(), blob="", size=0, etag="", crc64=0, modified=0.0) for key in found[:limit]
        ]

    return scan


def model(keys: list[str], prefix: str, delimiter: str) -> list[str]:
    """All entries of a listing, in order."""
    entries: list[str] = []
    for key in sorted(key for key in keys if key.startswith(prefix)):
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        entry = key if cut < 0 else key[: cut + len(delimiter)]
        if not entries or entries[-1] != entry:
            entries.append(entry)
    return entries


@settings(deadline=None)
@given(
    keys=_KEYS,
    prefix=st.text("ab/", max_size=2),
    delimiter=st.sampled_from(["", "/", "b", "é"]),
    limit=st.integers(1, 5),
)
def test_pages_make_up_the_whole(keys: list[str], prefix: str, delimiter: str, limit: int) -> None:
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = list_page(source_of(keys), prefix=prefix, delimiter=delimiter, after=after, limit=limit)
        names = sorted([stored.key for stored in page.objects] + page.prefixes)
        assert len(names) <= limit
        assert page.next is None or (len(names) == limit and page.next == names[-1])
        found += names
        after = page.next
    assert found == model(keys, prefix, delimiter)


@given(st.binary(max_size=6), st.binary(max_size=3))
def test_after_all_is_the_bound(prefix: bytes, tail: bytes) -> None:
    bound = after_all(prefix)
    assert not bound or prefix + tail < bound
    assert not bound or not bound.startswith(prefix) or prefix == b""


@pytest.fixture
def names(bucket: Any, prefix: str) -> list[str]:
    names = ["a", "a b+c", "b/1", "b/2", "b/c/3", "é", "tab\there", "x&y<z>"]
    for name in names:
        bucket.put_object(prefix + name, b"data")
    return sorted(prefix + name for name in names)


def test_both_versions_through_oss2(bucket: Any, prefix: str, names: list[str]) -> None:
    for iterator in (oss2.ObjectIterator, oss2.ObjectIteratorV2):
        for size in (1, 3, 100):
            assert [entry.key for entry in iterator(bucket, prefix=prefix, max_keys=size)] == names
            shallow = [entry.key for entry in iterator(bucket, prefix=prefix, delimiter="/", max_keys=size)]
            assert shallow == model(names, prefix, "/")
    entry = next(iter(oss2.ObjectIteratorV2(bucket, prefix=prefix, fetch_owner=True)))
    assert (entry.size, entry.type, entry.storage_class) == (4, "Normal", "Standard")
    assert entry.owner.id == "sandbox"
    after = oss2.ObjectIteratorV2(bucket, prefix=prefix, start_after=f"{prefix}b/2")
    assert [entry.key for entry in after] == [name for name in names if name > f"{prefix}b/2"]


def keys_in(document: bytes) -> list[str]:
    return [node.text or "" for node in ET.fromstring(document).findall("Contents/Key")]


def test_names_are_encoded_only_on_request(info: SandboxInfo, prefix: str, names: list[str]) -> None:
    plain = call(info, "GET", query={"list-type": "2", "prefix": prefix})
    assert keys_in(plain.body) == names
    assert ET.fromstring(plain.body).find("EncodingType") is None
    encoded = call(info, "GET", query={"list-type": "2", "prefix": prefix, "encoding-type": "url"})
    assert ET.fromstring(encoded.body).findtext("EncodingType") == "url"
    assert f"{prefix.replace('%', '%25')}a%20b%2Bc" in keys_in(encoded.body)


def test_a_key_that_xml_cannot_carry_leaves_the_reply_well_formed(bucket: Any, info: SandboxInfo, prefix: str) -> None:
    """The connector does not ask for encoding-type=url, and aborts its process on a malformed reply."""
    bucket.put_object(f"{prefix}\x01\ufffe\r", b"")
    plain = call(info, "GET", query={"list-type": "2", "prefix": prefix})
    assert keys_in(plain.body) == [f"{prefix}\ufffd\ufffd\r"]
    assert [entry.key for entry in oss2.ObjectIterator(bucket, prefix=prefix)] == [f"{prefix}\x01\ufffe\r"]


def test_page_facts(info: SandboxInfo, prefix: str, names: list[str]) -> None:
    first = ET.fromstring(call(info, "GET", query={"list-type": "2", "prefix": prefix, "max-keys": "3"}).body)
    assert first.findtext("KeyCount") == "3"
    assert first.findtext("MaxKeys") == "3"
    assert first.findtext("IsTruncated") == "true"
    token = first.findtext("NextContinuationToken") or ""
    query = {"list-type": "2", "prefix": prefix, "continuation-token": token}
    rest = ET.fromstring(call(info, "GET", query=query).body)
    assert rest.findtext("ContinuationToken") == token
    assert rest.findtext("IsTruncated") == "false"
    assert rest.findtext("KeyCount") == str(len(names) - 3)
    assert first.findtext("Contents/LastModified", "").endswith(".000Z")
    assert first.findtext("Contents/ETag") == '"8D777F385D3DFEC8815D20F7496026DC"'


@pytest.mark.parametrize(
    "query",
    [
        {"max-keys": "0"},
        {"max-keys": "1001"},
        {"max-keys": "x"},
        {"encoding-type": "base64"},
        {"list-type": "2", "continuation-token": "%%%"},
    ],
)
def test_bad_parameters(info: SandboxInfo, query: dict[str, str]) -> None:
    answer = call(info, "GET", query=query)
    assert (answer.status, answer.code) == (400, "InvalidArgument")
