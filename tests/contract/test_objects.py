"""Bytes, conditions, copies and tags of objects, as the pages of the API reference state them.

Pages: https://help.aliyun.com/en/oss/developer-reference/ with the name in the tests' docstrings.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import zlib
from typing import Any

import oss2
import pytest

from ossconsole.storage.client import ObjectStore

FORBID = {"x-oss-forbid-overwrite": "true"}


def fails(action: Any, *arguments: Any, **options: Any) -> tuple[int, str]:
    """HTTP status and OSS's code of the refusal."""
    with pytest.raises(oss2.exceptions.OssError) as caught:
        action(*arguments, **options)
    assert caught.value.request_id
    return caught.value.status, caught.value.code


@pytest.fixture
def sdk(contract_store: ObjectStore) -> Any:
    return contract_store.sdk


CONTENT = b"twelve bytes" * 1000


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(CONTENT)),
        ("deflate", zlib.compress(CONTENT)),
        ("br", b"stored as it is sent, not checked"),
        ("zstd", b"stored as it is sent, not checked"),
        ("gzip", b"not gzip at all"),
    ],
    ids=["gzip", "deflate", "br", "zstd", "not what it says"],
)
def test_content_encoding_is_metadata(
    contract_store: ObjectStore, sdk: Any, contract_prefix: str, coding: str, body: bytes
) -> None:
    """putobject: Content-Encoding is stored with the object; its bytes are those that were sent."""
    key = f"{contract_prefix}encoded"
    result = sdk.put_object(key, body, headers={"Content-Encoding": coding})
    assert result.etag == hashlib.md5(body).hexdigest().upper()
    found = contract_store.head(key)
    assert (found.size, found.headers["content-encoding"]) == (len(body), coding)
    assert contract_store.get(key) == body
    assert contract_store.get_range(key, 3, 4) == body[3:7]


def test_ranges(contract_store: ObjectStore, sdk: Any, contract_prefix: str) -> None:
    """getobject: `x-oss-range-behavior: standard` clips the end; a start beyond the object is InvalidRange."""
    key, standard = f"{contract_prefix}x", {"x-oss-range-behavior": "standard"}
    sdk.put_object(key, b"0123456789")
    clipped = sdk.get_object(key, headers={"Range": "bytes=4-20", **standard})
    assert (clipped.status, clipped.headers["Content-Range"], clipped.read()) == (206, "bytes 4-9/10", b"456789")
    assert sdk.get_object(key, headers={"Range": "bytes=4-20"}).read() == b"0123456789"
    assert fails(sdk.get_object, key, headers={"Range": "bytes=10-", **standard}) == (416, "InvalidRange")
    assert contract_store.get_range(key, 10, 5) == b""


def test_forbid_overwrite(sdk: Any, contract_store: ObjectStore, contract_prefix: str) -> None:
    """putobject, copyobject: without versioning the header refuses to overwrite."""
    if sdk.get_bucket_versioning().status:
        pytest.skip("the header has no effect on a versioned bucket")
    key = f"{contract_prefix}a"
    sdk.put_object(key, b"one")
    assert fails(sdk.put_object, key, b"two", headers=FORBID) == (409, "FileAlreadyExists")
    sdk.put_object(f"{contract_prefix}b", b"two")
    copy = (sdk.bucket_name, f"{contract_prefix}b", key)
    assert fails(sdk.copy_object, *copy, headers=FORBID) == (409, "FileAlreadyExists")
    assert contract_store.get(key) == b"one"


def test_content_md5_is_checked(sdk: Any, contract_store: ObjectStore, contract_prefix: str) -> None:
    """putobject: InvalidDigest where Content-MD5 is not that of the body."""
    key, good = f"{contract_prefix}a", base64.b64encode(hashlib.md5(b"data").digest()).decode()
    sdk.put_object(key, b"data", headers={"Content-MD5": good})
    assert fails(sdk.put_object, key, b"other", headers={"Content-MD5": good}) == (400, "InvalidDigest")
    assert fails(sdk.put_object, key, b"x", headers={"Content-MD5": "zz"}) == (400, "InvalidDigest")
    assert contract_store.get(key) == b"data"


def test_a_batch_delete_requires_content_md5(sdk: Any, contract_store: ObjectStore, contract_prefix: str) -> None:
    """deletemultipleobjects, 0016-00000606: Content-MD5 is required."""
    contract_store.put(f"{contract_prefix}a", b"one")
    body = f"<Delete><Object><Key>{contract_prefix}a</Key></Object></Delete>"
    refused = fails(sdk._do, "POST", sdk.bucket_name, "", params={"delete": ""}, data=body)
    assert refused == (400, "MissingArgument")
    assert contract_store.exists(f"{contract_prefix}a")


def test_a_batch_deletes_a_key_that_xml_cannot_have(
    sdk: Any, contract_store: ObjectStore, contract_prefix: str
) -> None:
    """By oss2's own test the service reads a form feed from the body."""
    key = f"{contract_prefix}form\x0cfeed"
    sdk.put_object(key, b"one")
    assert sdk.batch_delete_objects([key]).deleted_keys == [key]
    assert not contract_store.exists(key)


def test_conditions(sdk: Any, contract_prefix: str) -> None:
    """getobject: the four conditions, and those of copyobject."""
    key = f"{contract_prefix}a"
    etag = sdk.put_object(key, b"data").etag
    past, future = "Mon, 01 Jan 2001 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
    for headers in (
        {"If-Match": f'"{etag}"'},
        {"If-None-Match": '"0"'},
        {"If-Modified-Since": past},
        {"If-Unmodified-Since": future},
    ):
        assert sdk.get_object(key, headers=headers).read() == b"data", headers
    assert fails(sdk.get_object, key, headers={"If-Match": '"0"'}) == (412, "PreconditionFailed")
    assert fails(sdk.get_object, key, headers={"If-Unmodified-Since": past}) == (412, "PreconditionFailed")
    assert fails(sdk.get_object, key, headers={"If-None-Match": etag})[0] == 304
    copy = (sdk.bucket_name, key, f"{contract_prefix}b")
    assert fails(sdk.copy_object, *copy, headers={"x-oss-copy-source-if-match": '"0"'})[0] == 412


def test_copy_keeps_or_replaces_metadata(sdk: Any, contract_store: ObjectStore, contract_prefix: str) -> None:
    """copyobject: metadata and tags are the source's, or with REPLACE the request's."""
    source, target = f"{contract_prefix}ü 1+%", f"{contract_prefix}b"
    headers = {"x-oss-meta-a": "1", "Cache-Control": "no-store", "x-oss-tagging": "k=v"}
    sdk.put_object(source, b"data", headers=headers)
    sdk.copy_object(sdk.bucket_name, source, target)
    found = contract_store.head(target)
    assert (found.metadata, found.headers["cache-control"]) == ({"a": "1"}, "no-store")
    assert sdk.get_object_tagging(target).tag_set.tagging_rule == {"k": "v"}
    replace = {"x-oss-metadata-directive": "REPLACE", "x-oss-meta-c": "2"}
    sdk.copy_object(sdk.bucket_name, source, target, headers=replace)
    assert contract_store.head(target).metadata == {"c": "2"}
    assert fails(sdk.copy_object, sdk.bucket_name, f"{contract_prefix}no", target) == (404, "NoSuchKey")


def test_copy_onto_itself_takes_the_metadata_of_the_request(
    sdk: Any, contract_store: ObjectStore, contract_prefix: str
) -> None:
    """copyobject: the directive is ignored where source and target are the same (without versioning)."""
    if sdk.get_bucket_versioning().status:
        pytest.skip("a versioned bucket makes a new version")
    key = f"{contract_prefix}a"
    sdk.put_object(key, b"data", headers={"x-oss-meta-a": "1"})
    sdk.copy_object(sdk.bucket_name, key, key, headers={"x-oss-meta-b": "2"})
    assert contract_store.head(key).metadata == {"b": "2"}


def test_appendable_objects(sdk: Any, contract_store: ObjectStore, contract_prefix: str) -> None:
    """appendobject: positions; copyobject: "objects created by AppendObject cannot be copied" (code UNVERIFIED)."""
    key = f"{contract_prefix}log"
    assert sdk.append_object(key, 0, b"one,").next_position == 4
    assert sdk.append_object(key, 4, b"two").next_position == 7
    assert contract_store.get(key) == b"one,two"
    assert contract_store.head(key).object_type == "Appendable"
    assert fails(sdk.append_object, key, 4, b"x") == (409, "PositionNotEqualToLength")
    sdk.put_object(f"{contract_prefix}plain", b"")
    assert fails(sdk.append_object, f"{contract_prefix}plain", 0, b"x") == (409, "ObjectNotAppendable")
    assert fails(sdk.copy_object, sdk.bucket_name, key, f"{contract_prefix}copy")[0] == 400


def test_tags(sdk: Any, contract_prefix: str) -> None:
    """putobjecttagging: at most 10 tags, of letters, digits, blanks and + - = . _ : /, each named once."""
    key = f"{contract_prefix}a"
    sdk.put_object(key, b"")
    assert fails(sdk.put_object, key, b"", headers={"x-oss-tagging": "a=1&a=1"})[0] == 400
    for tags in ({"a%@b": "1"}, {"a": "x&y"}, {str(number): "" for number in range(11)}):
        rule = oss2.models.TaggingRule()
        for name, value in tags.items():
            rule.add(name, value)
        assert fails(sdk.put_object_tagging, key, oss2.models.Tagging(rule))[0] == 400, tags
    rule = oss2.models.TaggingRule()
    rule.add("a b+-=._:/1", "+-=._:/ 2")
    sdk.put_object_tagging(key, oss2.models.Tagging(rule))
    assert sdk.get_object_tagging(key).tag_set.tagging_rule == {"a b+-=._:/1": "+-=._:/ 2"}


def test_names_in_listings_have_a_limit(sdk: Any) -> None:
    """listobjectsv2: prefix and start-after of at most 1,024 bytes."""
    assert fails(sdk.list_objects_v2, prefix="x" * 1025) == (400, "InvalidArgument")
    assert fails(sdk.list_objects, marker="x" * 1025) == (400, "InvalidArgument")


def test_continuation_tokens_survive_a_url(sdk: Any, contract_prefix: str) -> None:
    """listobjectsv2: the next token is encoded with encoding-type=url; it has no characters that this changes."""
    for name in "abcd":
        sdk.put_object(contract_prefix + name, b"")
    page = sdk.list_objects_v2(prefix=contract_prefix, max_keys=1)
    assert page.next_continuation_token.replace("-", "").replace("_", "").isalnum()
    rest = sdk.list_objects_v2(prefix=contract_prefix, continuation_token=page.next_continuation_token)
    assert [found.key for found in rest.object_list] == [contract_prefix + name for name in "bcd"]
