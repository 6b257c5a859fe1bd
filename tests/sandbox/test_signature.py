"""Signatures: a vector from the service's own SDK, and every way in which the service refuses one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import oss2
import pytest

from ossconsole.config.credentials import Secret
from ossconsole.sandbox.keys import AccessKey, KeyRing
from ossconsole.sandbox.process import SandboxInfo
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import IncomingRequest, Resource
from ossconsole.sandbox.signature import Verifier
from tests.sandbox.conftest import make_bucket
from tests.sandbox.wire import Signer, call, send

# The V4 example that the service's SDKs test themselves with: key pair ak/sk, 2023-12-16T16:20:57Z.
_VECTOR_QUERY = "param1=value1&%2Bparam1=value3&%7Cparam1=value4&%2Bparam2=&%7Cparam2=&param2="
_VECTOR_TIME = 1702743657
_VECTOR_SIGNATURE = "e21d18daa82167720f9b1047ae7e7f1ce7cb77a31e8203a7d5f4624fa0284afe"


def vector(signature: str) -> IncomingRequest:
    headers = {
        "x-oss-head1": "value",
        "abc": "value",
        "ZAbc": "value",
        "XYZ": "value",
        "content-type": "text/plain",
        "x-oss-content-sha256": "UNSIGNED-PAYLOAD",
        "x-oss-date": "20231216T162057Z",
        "host": "127.0.0.1:80",
        "authorization": "OSS4-HMAC-SHA256 Credential=ak/20231216/cn-hangzhou/oss/aliyun_v4_request,"
        f"Signature={signature}",
    }
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return IncomingRequest("PUT", f"/1234%2B-/123/1.txt?{_VECTOR_QUERY}", raw)


def verifier(tmp_path: Path) -> Verifier:
    return Verifier(KeyRing(tmp_path / "keys", {"ak": AccessKey(id="ak", secret=Secret("sk"))}), "cn-hangzhou")


def test_published_vector_verifies(tmp_path: Path) -> None:
    request = vector(_VECTOR_SIGNATURE)
    candidates = [Resource("other", "1234+-/123/1.txt"), Resource("bucket", "1234+-/123/1.txt")]
    caller = verifier(tmp_path).check(request, candidates, _VECTOR_TIME)
    assert caller.target == candidates[1]
    assert caller.key is not None
    assert caller.key.id == "ak"


def test_altered_signature_is_refused(tmp_path: Path) -> None:
    request = vector(_VECTOR_SIGNATURE.replace("e", "f", 1))
    with pytest.raises(OssError) as caught:
        verifier(tmp_path).check(request, [Resource("bucket", "1234+-/123/1.txt")], _VECTOR_TIME)
    assert caught.value.code == "SignatureDoesNotMatch"
    assert caught.value.fields["OSSAccessKeyId"] == "ak"
    assert caught.value.fields["StringToSign"].startswith("OSS4-HMAC-SHA256\n20231216T162057Z\n")


@pytest.mark.parametrize("skew_s", [-901, 901])
def test_a_quarter_of_an_hour_off_is_too_skewed(tmp_path: Path, skew_s: int) -> None:
    with pytest.raises(OssError) as caught:
        verifier(tmp_path).check(vector(_VECTOR_SIGNATURE), [Resource("bucket")], _VECTOR_TIME + skew_s)
    assert (caught.value.code, caught.value.ec) == ("RequestTimeTooSkewed", "0002-00000504")


def test_both_signature_versions_of_oss2(info: SandboxInfo, prefix: str) -> None:
    key = f"{prefix}a b+~!'()*é/ü%2F?x"
    for auth_class in (oss2.Auth, oss2.AuthV4):
        auth = auth_class(info.access_key_id, info.access_key_secret.reveal())
        bucket = make_bucket(info, auth=auth)
        bucket.put_object(key, b"text", headers={"x-oss-meta": "1", "x-oss-meta-b": "2"})
        assert bucket.get_object(key, byte_range=(1, 2)).read() == b"ex"
        assert [entry.key for entry in oss2.ObjectIteratorV2(bucket, prefix=prefix, max_keys=1)] == [key]
        for slash_safe in (True, False):
            url = bucket.sign_url("GET", key, 60, slash_safe=slash_safe)
            assert bucket.get_object_with_url(url).read() == b"text"


def test_the_payload_is_never_signed(tmp_path: Path) -> None:
    """0002-00000214: the only value of x-oss-content-sha256. A client that signs its payload failed on OSS alone."""
    request = vector(_VECTOR_SIGNATURE)
    request.headers["x-oss-content-sha256"] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(OssError) as caught:
        verifier(tmp_path).check(request, [Resource("bucket", "1234+-/123/1.txt")], _VECTOR_TIME)
    assert (caught.value.code, caught.value.ec) == ("InvalidArgument", "0002-00000214")


def test_additional_headers_in_both_spellings(info: SandboxInfo, prefix: str) -> None:
    host = info.path_style_endpoint.removeprefix("http://")
    resource = f"/{info.bucket}/{prefix}x"
    signed = Signer.of(info).headers("PUT", resource, {}, {"host": host}, additional="host")
    spaced = signed["Authorization"]
    for spelling in (spaced, spaced.replace(", ", ",")):
        headers = {**signed, "Authorization": spelling}
        assert send(info.path_style_endpoint, "PUT", quote(resource), headers=headers, body=b"").status == 200


def test_the_signature_decides_the_addressing_style(info: SandboxInfo) -> None:
    """A key that begins with the bucket's name reads differently in the two styles, and both must work."""
    hosted = Signer.of(info).headers("PUT", "/127/127/both", {}, {})
    assert send(info.path_style_endpoint, "PUT", "/127/both", headers=hosted, body=b"hosted").status == 200
    by_path = Signer.of(info).headers("PUT", "/127/both", {}, {})
    assert send(info.path_style_endpoint, "PUT", "/127/both", headers=by_path, body=b"path").status == 200
    assert call(info, "GET", "127/both").body == b"hosted"
    assert call(info, "GET", "both").body == b"path"


def refused(info: SandboxInfo, signer: Signer) -> tuple[int, str, str]:
    answer = call(info, "GET", "x", signer=signer)
    return answer.status, answer.code, answer.headers.get("x-oss-ec", "")


def test_wrong_credentials_have_distinct_errors(info: SandboxInfo) -> None:
    key_id, secret, region = info.access_key_id, info.access_key_secret.reveal(), info.region
    assert refused(info, Signer(key_id, "wrong", region))[:2] == (403, "SignatureDoesNotMatch")
    assert refused(info, Signer("SBXnobody", secret, region))[:2] == (403, "InvalidAccessKeyId")
    assert refused(info, Signer(key_id, secret, "cn-other")) == (400, "InvalidArgument", "0002-00000226")
    assert refused(info, Signer(key_id, secret, region, skew_s=1000))[1] == "RequestTimeTooSkewed"
    assert refused(info, Signer(key_id, secret, region, token="made-up"))[1] == "InvalidAccessKeyId"


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        ("OSS4-HMAC-SHA256 Credential=a", 400, "InvalidArgument"),
        ("OSS4-HMAC-SHA256 Credential=a/b,Signature=c", 400, "InvalidArgument"),
        ("OSS4-HMAC-SHA256 Credential=a/x/cn-sandbox/oss/aliyun_v4_request,Signature=c", 400, "InvalidArgument"),
        ("OSS a:b", 403, "AccessDenied"),
        ("Bearer x", 400, "InvalidArgument"),
    ],
)
def test_malformed_authorization(info: SandboxInfo, authorization: str, status: int, code: str) -> None:
    answer = send(info.path_style_endpoint, "GET", "/127/x", headers={"Authorization": authorization})
    assert (answer.status, answer.code) == (status, code)


def test_presigned_urls_end(info: SandboxInfo, bucket: Any, prefix: str) -> None:
    key = f"{prefix}x"
    bucket.put_object(key, b"text")
    path, resource = f"/127/{quote(key)}", f"/127/{key}"
    signer = Signer.of(info)
    late = Signer(signer.access_key_id, signer.secret, signer.region, skew_s=-120)
    assert send(info.path_style_endpoint, "GET", f"{path}?{signer.presigned('GET', resource, 60)}").body == b"text"
    expired = send(info.path_style_endpoint, "GET", f"{path}?{late.presigned('GET', resource, 60)}")
    assert (expired.status, expired.code) == (403, "AccessDenied")
    assert b"expired" in expired.body
    other_method = send(info.path_style_endpoint, "DELETE", f"{path}?{signer.presigned('GET', resource, 60)}")
    assert other_method.code == "SignatureDoesNotMatch"
    too_long = send(info.path_style_endpoint, "GET", f"{path}?{signer.presigned('GET', resource, 604_801)}")
    assert too_long.code == "InvalidArgument"


def test_unsigned_requests_are_refused(info: SandboxInfo) -> None:
    for method, path in (("GET", "/"), ("GET", "/127/"), ("GET", "/127/x"), ("PUT", "/127/x"), ("DELETE", "/127/x")):
        answer = send(info.path_style_endpoint, method, path, body=b"" if method == "PUT" else None)
        assert (answer.status, answer.code) == (403, "AccessDenied"), (method, path)


def test_foreign_host_header_is_refused(info: SandboxInfo) -> None:
    """DNS rebinding: a web page whose name now points at 127.0.0.1 sends its own name."""
    port = info.path_style_endpoint.rpartition(":")[2]
    signed = Signer.of(info).headers("GET", "/127/", {}, {})
    for host in (f"evil.example:{port}", "127.0.0.1", f"127.0.0.9:{port}", f"169.254.1.1:{port}"):
        answer = send(info.path_style_endpoint, "GET", "/127/", headers={**signed, "Host": host})
        assert (answer.status, answer.code) == (403, "AccessDenied"), host
