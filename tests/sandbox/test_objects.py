"""Every operation on objects and buckets, through oss2 over HTTP where oss2 has it."""

from __future__ import annotations

import hashlib
import http.client
import time
from pathlib import Path
from typing import Any

import oss2
import pytest

from ossconsole.sandbox.process import SandboxInfo, SandboxProcess
from tests.sandbox.conftest import make_bucket
from tests.sandbox.wire import TIMEOUT_S, Signer, call, digest, send
from tests.waiting import wait_until


def crc64(data: bytes) -> int:
    """CRC64-ECMA by the SDK's own implementation."""
    crc = oss2.utils.Crc64()
    crc(data)
    return int(crc.crc)


def fails(action: Any, *arguments: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(oss2.exceptions.OssError) as caught:
        action(*arguments, **options)
    assert caught.value.request_id
    return caught.value.status, caught.value.code


def test_put_and_head(bucket: Any, prefix: str) -> None:
    data = b"hello" * 1000
    headers = {"x-oss-meta-class": "ant", "Content-Type": "text/x-test", "Cache-Control": "no-store"}
    result = bucket.put_object(f"{prefix}a", data, headers=headers)
    assert result.etag == hashlib.md5(data).hexdigest().upper()
    assert result.crc == crc64(data)
    found = bucket.head_object(f"{prefix}a")
    assert (found.content_length, found.etag, found.server_crc) == (len(data), result.etag, result.crc)
    assert found.content_type == "text/x-test"
    assert found.object_type == "Normal"
    assert found.headers["x-oss-meta-class"] == "ant"
    assert found.headers["Cache-Control"] == "no-store"
    assert found.headers["x-oss-storage-class"] == "Standard"
    assert abs(found.last_modified - time.time()) < 60
    assert bucket.get_object_meta(f"{prefix}a").content_length == len(data)
    assert bucket.get_object(f"{prefix}a").read() == data


def test_empty_object(bucket: Any, prefix: str) -> None:
    bucket.put_object(f"{prefix}folder/", b"")
    assert bucket.get_object(f"{prefix}folder/").read() == b""
    assert bucket.head_object(f"{prefix}folder/").content_length == 0


def test_larger_than_one_chunk(bucket: Any, prefix: str) -> None:
    data = bytes(range(256)) * 20_000
    bucket.put_object(f"{prefix}large", data)
    assert bucket.get_object(f"{prefix}large").read() == data
    assert bucket.get_object(f"{prefix}large", byte_range=(1_048_570, 3_145_740)).read() == data[1_048_570:3_145_741]


def test_missing_things(bucket: Any, info: SandboxInfo, prefix: str) -> None:
    assert fails(bucket.get_object, f"{prefix}no") == (404, "NoSuchKey")
    assert fails(bucket.head_object, f"{prefix}no") == (404, "NoSuchKey")
    assert fails(bucket.get_object_meta, f"{prefix}no") == (404, "NoSuchKey")
    assert fails(make_bucket(info, name="nowhere").get_object, "x") == (404, "NoSuchBucket")
    assert fails(make_bucket(info, name="nowhere").put_object, "x", b"") == (404, "NoSuchBucket")
    assert bucket.delete_object(f"{prefix}no").status == 204


def test_batch_delete(bucket: Any, prefix: str) -> None:
    keys = [f"{prefix}{name}" for name in ("a", "b & <c>", "é+ ", "never there")]
    for key in keys[:-1]:
        bucket.put_object(key, b"x")
    assert bucket.batch_delete_objects(keys).deleted_keys == keys
    assert list(oss2.ObjectIterator(bucket, prefix=prefix)) == []


def test_a_batch_deletes_keys_of_any_character(bucket: Any, prefix: str) -> None:
    """But a carriage return, which is a line feed to any parser of XML."""
    every = "".join(map(chr, (*range(1, 13), *range(14, 0x20), 0x7F, 0xFFFE, 0xFFFF, 0x10FFFD))) + "00000c"
    keys = [f"{prefix}{every}", f"{prefix}plain"]
    for key in keys[:1]:
        bucket.put_object(key, b"x")
    assert len(bucket.batch_delete_objects(keys).deleted_keys) == 2
    assert list(oss2.ObjectIterator(bucket, prefix=prefix)) == []


def test_malformed_delete_is_refused(info: SandboxInfo) -> None:
    for body in (b"", b"<Delete>", b"<Other/>", b"<Delete/>", b'<!DOCTYPE x [<!ENTITY a "b">]><Delete/>'):
        answer = call(info, "POST", query={"delete": ""}, headers=digest(body), body=body)
        assert (answer.status, answer.code) == (400, "MalformedXML"), body


def test_acl_tagging_and_anonymous_reading(bucket: Any, info: SandboxInfo, prefix: str) -> None:
    key = f"{prefix}public"
    bucket.put_object(key, b"seen by all", headers={"x-oss-tagging": "a=1&b=%C3%A9"})
    assert bucket.get_object_acl(key).acl == "default"
    path = f"/127/{key.replace('%', '%25')}"
    assert send(info.path_style_endpoint, "GET", path).status == 403
    bucket.put_object_acl(key, oss2.OBJECT_ACL_PUBLIC_READ)
    assert bucket.get_object_acl(key).acl == "public-read"
    assert send(info.path_style_endpoint, "GET", path).body == b"seen by all"
    assert send(info.path_style_endpoint, "PUT", path, body=b"").status == 403
    assert bucket.get_object_tagging(key).tag_set.tagging_rule == {"a": "1", "b": "é"}
    rule = oss2.models.TaggingRule()
    rule.add("c", "3")
    bucket.put_object_tagging(key, oss2.models.Tagging(rule))
    assert bucket.get_object_tagging(key).tag_set.tagging_rule == {"c": "3"}
    bucket.delete_object_tagging(key)
    assert bucket.get_object_tagging(key).tag_set.tagging_rule == {}


def test_buckets(bucket: Any, info: SandboxInfo) -> None:
    other = make_bucket(info, name="my-bucket-2")
    other.create_bucket(oss2.BUCKET_ACL_PRIVATE)
    service = oss2.Service(bucket.auth, info.path_style_endpoint, region=info.region)
    listed = [entry.name for entry in oss2.BucketIterator(service, max_keys=1)]
    assert listed == sorted(listed)
    assert {"127", "my-bucket-2"} <= set(listed)  # other tests may have made others
    other.put_object("x", b"12345")
    assert other.get_bucket_stat().storage_size_in_bytes == 5
    about = other.get_bucket_info()
    assert (about.name, about.location, about.acl.grant) == ("my-bucket-2", "oss-cn-sandbox", "private")
    assert other.get_bucket_location().location == "oss-cn-sandbox"
    other.put_bucket_acl(oss2.BUCKET_ACL_PUBLIC_READ)
    assert other.get_bucket_acl().acl == "public-read"
    assert send(info.path_style_endpoint, "GET", "/my-bucket-2/x").body == b"12345"
    assert fails(other.delete_bucket) == (409, "BucketNotEmpty")
    other.delete_object("x")
    other.delete_bucket()
    assert fails(other.get_bucket_info) == (404, "NoSuchBucket")
    assert fails(other.delete_bucket) == (404, "NoSuchBucket")
    assert call(info, "PUT", bucket="Bad_Name").code == "InvalidBucketName"


def test_unimplemented_operations_are_refused(info: SandboxInfo, bucket: Any) -> None:
    assert call(info, "GET", query={"policy": ""}).status == 501
    assert call(info, "PUT", query={"lifecycle": ""}, body=b"").code == "NotImplemented"
    assert call(info, "POST", "x").code == "MethodNotAllowed"
    assert bucket.get_bucket_versioning().status is None


@pytest.mark.parametrize("key", ["/leading", "\\leading", "x" * 1024])
def test_refused_names(info: SandboxInfo, key: str) -> None:
    assert call(info, "PUT", key, body=b"").code == "InvalidObjectName"


def test_expect_continue_and_chunked_bodies(info: SandboxInfo, bucket: Any, prefix: str) -> None:
    bucket.put_object(f"{prefix}chunked", iter([b"abc", b"def"]))
    assert bucket.get_object(f"{prefix}chunked").read() == b"abcdef"
    answer = call(info, "PUT", f"{prefix}expected", headers={"Expect": "100-continue"}, body=b"data")
    assert answer.status == 200


def test_response_overrides(bucket: Any, prefix: str) -> None:
    bucket.put_object(f"{prefix}a", b"x")
    params = {"response-content-type": "text/csv", "response-content-disposition": "attachment"}
    found = bucket.get_object(f"{prefix}a", params=params)
    assert found.headers["Content-Type"] == "text/csv"
    assert found.headers["Content-Disposition"] == "attachment"


def test_half_a_put_leaves_nothing(sandbox: SandboxProcess, info: SandboxInfo, prefix: str) -> None:
    """A client that goes away in mid-body: no object, no file, and the server goes on."""
    key = f"{prefix}half"
    before = blob_files(sandbox)
    connection = http.client.HTTPConnection(info.path_style_endpoint.removeprefix("http://"), timeout=TIMEOUT_S)
    connection.putrequest("PUT", f"/127/{key.replace('%', '%25')}")
    signed = Signer.of(info).headers("PUT", f"/127/{key}", {}, {})
    for name, value in {**signed, "Content-Length": "1000000"}.items():
        connection.putheader(name, value)
    connection.endheaders(b"x" * 500_000)
    wait_until(lambda: len(blob_files(sandbox)) > len(before))
    connection.close()
    wait_until(lambda: blob_files(sandbox) == before)
    assert call(info, "GET", key).code == "NoSuchKey"


def blob_files(sandbox: SandboxProcess) -> set[Path]:
    return {path for path in (sandbox.directory / "blobs").rglob("*") if path.is_file()}
