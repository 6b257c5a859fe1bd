"""Requests that the server refuses rather than misunderstands, and none that ends without an answer of OSS's form."""

from __future__ import annotations

import http.client
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import oss2
import pytest
from aiohttp.test_utils import make_mocked_request

from ossconsole.sandbox.api.writes import copy_limit
from ossconsole.sandbox.process import SandboxInfo, SandboxProcess
from ossconsole.sandbox.records import Attributes, Retention
from ossconsole.sandbox.request import resolve_range, whole_number
from ossconsole.sandbox.server import RequestHandler
from ossconsole.sandbox.store import SandboxStore
from tests.sandbox.test_objects import fails
from tests.sandbox.wire import Signer, call, digest, send
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ({}, {"x-oss-callback": "e30="}),
        ({}, {"x-oss-traffic-limit": "819200"}),
        ({}, {"x-oss-object-worm-mode": "COMPLIANCE"}),
        ({"callback": "e30="}, {}),
        ({"x-oss-traffic-limit": "819200"}, {}),
        ({"x-oss-process": "image/resize,w_100"}, {}),
        ({"append": "", "position": "0", "sequential": ""}, {}),
    ],
)
def test_what_would_change_the_meaning_is_not_implemented(
    info: SandboxInfo, prefix: str, query: dict[str, str], headers: dict[str, str]
) -> None:
    method = "POST" if "append" in query else "PUT"
    answer = call(info, method, f"{prefix}x", query=query, headers=headers, body=b"")
    assert (answer.status, answer.code) == (501, "NotImplemented")
    assert call(info, "GET", f"{prefix}x").code == "NoSuchKey"


@pytest.mark.parametrize("parameter", ["overwriteConfig", "legalHold", "retention", "seal", "newerThanThisList"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_an_unknown_sub_resource_is_not_the_plain_request(
    info: SandboxInfo, bucket: Any, prefix: str, method: str, parameter: str
) -> None:
    bucket.put_object(f"{prefix}x", b"kept")
    for key in (f"{prefix}x", ""):
        answer = call(info, method, key, query={parameter: ""}, body=b"" if method == "PUT" else None)
        assert (answer.status, answer.code) == (501, "NotImplemented")
    assert bucket.get_object(f"{prefix}x").read() == b"kept"


@pytest.mark.parametrize("parameter", ["cors", "style", "inventory", "metaQuery", "regionList"])
def test_old_signatures_cover_what_the_sdk_signs(info: SandboxInfo, parameter: str) -> None:
    auth = oss2.Auth(info.access_key_id, info.access_key_secret.reveal())
    bucket = oss2.Bucket(auth, info.path_style_endpoint, info.bucket)
    with pytest.raises(oss2.exceptions.OssError) as caught:
        bucket._do("GET", bucket.bucket_name, "", params={parameter: ""})
    assert caught.value.code == "NotImplemented"


def test_a_batch_delete_needs_its_digest_and_versions_that_are_named(info: SandboxInfo, prefix: str) -> None:
    """0016-00000606 and 0016-00000612."""
    body = f"<Delete><Object><Key>{prefix}x</Key></Object></Delete>".encode()
    missing = call(info, "POST", query={"delete": ""}, body=body)
    assert (missing.status, missing.code, missing.headers["x-oss-ec"]) == (400, "MissingArgument", "0016-00000606")
    empty = body.replace(b"</Key>", b"</Key><VersionId/>")
    answer = call(info, "POST", query={"delete": ""}, headers=digest(empty), body=empty)
    assert (answer.status, answer.code, answer.headers["x-oss-ec"]) == (400, "InvalidArgument", "0016-00000612")
    assert call(info, "DELETE", f"{prefix}x", query={"versionId": ""}).code == "InvalidArgument"


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"])
def test_a_put_has_no_conditions(info: SandboxInfo, prefix: str, header: str) -> None:
    """0017-00000245. They were ignored: the object was overwritten."""
    answer = call(info, "PUT", f"{prefix}x", headers={header: "*"}, body=b"data")
    assert (answer.status, answer.code, answer.headers["x-oss-ec"]) == (400, "NotImplemented", "0017-00000245")
    assert call(info, "HEAD", f"{prefix}x").status == 404


@pytest.mark.parametrize(("parameter", "ec"), [("unknown=xxx", "0016-00000304"), ("versionId=", "0016-00000305")])
def test_a_copy_source_has_a_version_at_most(info: SandboxInfo, prefix: str, parameter: str, ec: str) -> None:
    source = {"x-oss-copy-source": f"/127/{prefix}x?{parameter}".replace("%", "%25")}
    assert call(info, "PUT", f"{prefix}x", body=b"data").status == 200
    answer = call(info, "PUT", f"{prefix}copy", headers=source)
    assert (answer.status, answer.code, answer.headers["x-oss-ec"]) == (400, "InvalidArgument", ec)


def test_all_parts_and_a_list_of_parts(bucket: Any, info: SandboxInfo, prefix: str) -> None:
    """0042-00000216: with x-oss-complete-all there must be no body."""
    key = f"{prefix}x"
    upload = bucket.init_multipart_upload(key).upload_id
    bucket.upload_part(key, upload, 1, b"part")
    everything, query = {"x-oss-complete-all": "yes"}, {"uploadId": upload}
    answer = call(info, "POST", key, query=query, headers=everything, body=b"<CompleteMultipartUpload/>")
    assert (answer.status, answer.headers["x-oss-ec"]) == (400, "0042-00000216")
    assert call(info, "POST", key, query=query, headers=everything).status == 200


def test_an_anonymous_copy_of_a_private_object(info: SandboxInfo, prefix: str) -> None:
    """CopyObject: "you must have read permission on the source object". Anyone could copy it into a public bucket."""
    key, name = f"{prefix}secret", "anonymous-copy"
    assert call(info, "PUT", key, body=b"data").status == 200
    assert call(info, "PUT", bucket=name, headers={"x-oss-acl": "public-read-write"}).status == 200
    source = {"x-oss-copy-source": f"/127/{key}".replace("%", "%25")}
    answer = send(info.path_style_endpoint, "PUT", f"/{name}/copy", headers=source, body=b"")
    assert (answer.status, answer.code) == (403, "AccessDenied")
    assert call(info, "DELETE", bucket=name).status == 204


def test_a_bucket_that_exists(info: SandboxInfo) -> None:
    """409 "Cannot modify existing bucket's storage class" (doc-detail/185809), and the pages of PutBucketAcl."""
    name, acl = "exists", {"x-oss-acl": "public-read"}
    assert call(info, "PUT", bucket=name, query={"acl": ""}, headers=acl).status == 200  # it creates the bucket
    body = "<CreateBucketConfiguration><StorageClass>{}</StorageClass></CreateBucketConfiguration>"
    answer = call(info, "PUT", bucket=name, body=body.format("IA").encode())
    assert (answer.status, answer.code) == (409, "BucketAlreadyExists")
    assert call(info, "PUT", bucket=name, body=body.format("Standard").encode()).status == 200
    assert call(info, "PUT", bucket=name, query={"acl": ""}).status == 200
    assert b"<Grant>public-read</Grant>" in call(info, "GET", bucket=name, query={"acl": ""}).body
    assert call(info, "DELETE", bucket=name).status == 204


def test_the_largest_copy() -> None:
    """copyobject, uploadpartcopy: without a limit where nothing changes in a bucket, 5 GB, or 1 GB with a change."""
    plain, encrypted = Attributes(), Attributes(encryption={"x-oss-server-side-encryption": "AES256"})
    assert copy_limit(plain, plain, same_bucket=True) is None
    assert copy_limit(plain, plain, same_bucket=False) == 5 << 30
    assert copy_limit(plain, Attributes(storage_class="IA"), same_bucket=True) == 1 << 30
    assert copy_limit(plain, encrypted, same_bucket=True) == 1 << 30


def test_a_policy_that_was_not_locked_in_a_day_expires(tmp_path: Path) -> None:
    now = 0.0
    store = SandboxStore(tmp_path, clock=lambda: now)
    store.create_bucket("bucket")
    store.index.set_rule("bucket", "worm", msgspec.json.encode(Retention("W", 1, now)))
    assert store.retention("bucket")
    now = 86_400.0
    assert store.retention("bucket") is None
    store.index.set_rule("bucket", "worm", msgspec.json.encode(Retention("W", 1, 0.0, locked=True)))
    assert store.retention("bucket")


def test_a_body_of_an_unknown_encoding_is_malformed(info: SandboxInfo) -> None:
    body = b'<?xml version="1.0" encoding="nope"?><Delete/>'
    answer = call(info, "POST", query={"delete": ""}, headers=digest(body), body=body)
    assert (answer.status, answer.code) == (400, "MalformedXML")
    assert answer.headers["x-oss-request-id"]


def test_numbers_of_thousands_of_digits(bucket: Any, info: SandboxInfo, prefix: str) -> None:
    digits, key = "9" * 5000, f"{prefix}x"
    upload = bucket.init_multipart_upload(key).upload_id
    part = f"<Part><PartNumber>{digits}</PartNumber><ETag>0</ETag></Part>"
    body = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>".encode()
    assert call(info, "POST", key, query={"uploadId": upload}, body=body).code == "MalformedXML"
    markers = [{"uploadId": upload, "part-number-marker": number} for number in (digits, "9" * 19)]
    for query in ({"max-keys": digits}, *markers):
        answer = call(info, "GET", key if "uploadId" in query else "", query=query)
        assert (answer.status, answer.code) == (400, "InvalidArgument"), list(query)
    assert call(info, "POST", key, query={"append": "", "position": digits}, body=b"").code == "InvalidArgument"
    assert not resolve_range(f"bytes=0-{digits}", 10, standard=True).partial
    bucket.abort_multipart_upload(key, upload)


@pytest.mark.parametrize("text", ["٣", "²", "", "-1", "1.0", " 1", "9" * 20])
def test_numbers_are_ascii_digits(text: str) -> None:
    assert whole_number(text) is None
    assert not resolve_range(f"bytes={text}-", 10, standard=True).partial


def test_the_largest_number() -> None:
    assert (whole_number(str(2**63 - 1)), whole_number(str(2**63))) == (2**63 - 1, None)


def test_bytes_that_are_not_utf8_in_a_header(info: SandboxInfo, prefix: str) -> None:
    """http.client sends Latin-1. A request with such a user agent was carried out, and answered with an error."""
    key = f"{prefix}x"
    assert call(info, "PUT", key, headers={"User-Agent": "caf\xe9"}, body=b"data").status == 200
    name = "not-utf8"
    assert call(info, "PUT", bucket=name, headers={"x-oss-acl": "public-read-write"}).status == 200
    for query, header, value in (
        ("?symlink", "x-oss-symlink-target", "caf\xe9"),
        ("", "x-oss-meta-a", "caf\xe9"),
        ("", "x-oss-copy-source", "/127/caf\xe9"),
    ):
        headers = {header: value}
        answer = send(info.path_style_endpoint, "PUT", f"/{name}/a{query}", headers=headers, body=b"")
        assert (answer.status, answer.code) == (400, "InvalidArgument"), header
    assert call(info, "DELETE", bucket=name).status == 204


@pytest.mark.parametrize("value", ["a\r\nx-b: c", "a\0b"])
def test_what_no_header_can_have_is_refused_where_a_reply_would_have_it(
    info: SandboxInfo, prefix: str, value: str
) -> None:
    key = f"{prefix}x"
    assert call(info, "PUT", key, body=b"data").status == 200
    assert call(info, "GET", key, query={"response-content-type": value}).code == "InvalidArgument"


def test_the_key_of_a_bucket_s_encryption_is_sent_as_a_header(info: SandboxInfo) -> None:
    name = "encryption-key"
    assert call(info, "PUT", bucket=name).status == 200
    body = (
        "<ServerSideEncryptionRule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>KMS</SSEAlgorithm>"
        "<KMSMasterKeyID>{}</KMSMasterKeyID></ApplyServerSideEncryptionByDefault></ServerSideEncryptionRule>"
    )
    for key, status in (("a\nb", 400), ("\n  a-b\n", 200)):
        answer = call(info, "PUT", bucket=name, query={"encryption": ""}, body=body.format(key).encode())
        assert answer.status == status
    assert call(info, "PUT", "x", bucket=name, body=b"").headers["x-oss-server-side-encryption-key-id"] == "a-b"
    assert call(info, "DELETE", "x", bucket=name).status == call(info, "DELETE", bucket=name).status == 204


def test_a_date_with_a_year_of_twenty_digits_is_none(info: SandboxInfo, prefix: str) -> None:
    key, date = f"{prefix}x", f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"
    assert call(info, "PUT", key, body=b"data").status == 200
    assert call(info, "GET", key, headers={"If-Modified-Since": date}).body == b"data"
    headers = {"Authorization": f"OSS {info.access_key_id}:x", "Date": date}
    assert send(info.path_style_endpoint, "GET", "/127/", headers=headers).code == "AccessDenied"


def test_a_coded_transfer_is_not_implemented(info: SandboxInfo, prefix: str) -> None:
    key = f"{prefix}x"
    signed = Signer.of(info).headers("PUT", f"/127/{key}", {}, {})
    headers = {**signed, "Transfer-Encoding": "gzip, chunked"}
    path = f"/127/{key.replace('%', '%25')}"
    assert send(info.path_style_endpoint, "PUT", path, headers=headers, body=b"0\r\n\r\n").status in {400, 501}


def test_the_host_may_be_in_capitals(info: SandboxInfo) -> None:
    host = f"LOCALHOST:{info.port}"
    signed = Signer.of(info).headers("GET", "/127/", {}, {})
    answer = send(info.path_style_endpoint, "GET", "/127/", headers={**signed, "Host": host})
    assert answer.status == 200


def test_a_full_disk_is_an_error_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQLite raises then leaves no transaction open: the next write succeeds."""
    store = SandboxStore(tmp_path)
    store.create_bucket("b")
    pages = store.index._db.execute("PRAGMA page_count").fetchone()[0]
    store.index._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.OperationalError, match="full") as caught:
        store.index.set_rule("b", "worm", b"x" * 1_000_000)
    error = RequestHandler._as_oss_error(make_mocked_request("DELETE", "/b/k"), caught.value)
    assert (error.status, error.code) == (500, "InternalError")
    assert "disk" in error.message
    store.index._db.execute("PRAGMA max_page_count=1000000")
    store.delete("b", ["k"])
    store.close()


def test_a_client_that_goes_away_leaves_no_traceback(sandbox: SandboxProcess, info: SandboxInfo, prefix: str) -> None:
    """In the middle of its body, and in the middle of the reply."""
    key = f"{prefix}gone"
    assert call(info, "PUT", key, body=b"x" * 5_000_000).status == 200
    for method, headers in (("PUT", {"Content-Length": "1000000"}), ("GET", {})):
        connection = http.client.HTTPConnection(info.path_style_endpoint.removeprefix("http://"), timeout=20)
        connection.putrequest(method, f"/127/{key.replace('%', '%25')}")
        signed = Signer.of(info).headers(method, f"/127/{key}", {}, {})
        for name, value in {**signed, **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(b"x" * 1000 if method == "PUT" else None)
        if method == "GET":
            connection.getresponse().read(10)
        connection.close()
    wait_until(lambda: sandbox.log_path.read_text().count(key) >= 3)
    assert fails(oss2.Bucket(oss2.AnonymousAuth(), info.path_style_endpoint, "127").get_object, key)[0] == 403
    assert "Traceback" not in sandbox.log_path.read_text()
