"""Keys with fewer rights, temporary keys, and the metadata service that hands them out."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oss2
import pytest

from ossconsole.config.credentials import Credentials
from ossconsole.config.errors import ConsoleError
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.keys import KeyRing, Role
from ossconsole.sandbox.process import SandboxInfo, SandboxProcess
from tests.sandbox.conftest import make_bucket
from tests.sandbox.test_objects import fails
from tests.sandbox.wire import Signer, call, send


def bucket_for(info: SandboxInfo, credentials: Credentials, version: str = "v4") -> Any:
    secret = credentials.access_key_secret.reveal()
    if credentials.security_token is None:
        auth = oss2.make_auth(credentials.access_key_id, secret, version)
    else:
        auth = oss2.StsAuth(credentials.access_key_id, secret, credentials.security_token.reveal(), version)
    return make_bucket(info, auth=auth)


@pytest.fixture
def control(info: SandboxInfo) -> SandboxControl:
    return SandboxControl(info)


DENIED = (403, "AccessDenied")


def test_read_only_key(info: SandboxInfo, control: SandboxControl, bucket: Any, prefix: str) -> None:
    key = f"{prefix}x"
    bucket.put_object(key, b"data")
    reader = bucket_for(info, control.issue_key(Role.READ_ONLY))
    assert reader.get_object(key).read() == b"data"
    assert [entry.key for entry in oss2.ObjectIteratorV2(reader, prefix=prefix)] == [key]
    assert fails(reader.put_object, key, b"") == DENIED
    assert fails(reader.delete_object, key) == DENIED
    assert fails(reader.batch_delete_objects, [key]) == DENIED
    assert fails(reader.init_multipart_upload, key) == DENIED
    assert fails(reader.copy_object, "127", key, f"{key}2") == DENIED


def test_key_without_delete(info: SandboxInfo, control: SandboxControl, bucket: Any, prefix: str) -> None:
    """The connector's checkpoint writer begins with a DELETE: this is the key that it fails with."""
    writer = bucket_for(info, control.issue_key(Role.NO_DELETE))
    writer.put_object(f"{prefix}x", b"data")
    assert fails(writer.delete_object, f"{prefix}x") == DENIED
    assert bucket.get_object(f"{prefix}x").read() == b"data"


def test_key_that_cannot_list_buckets(info: SandboxInfo, control: SandboxControl) -> None:
    limited = bucket_for(info, control.issue_key(Role.NO_LIST_BUCKETS))
    service = oss2.Service(limited.auth, info.path_style_endpoint, region=info.region)
    assert fails(service.list_buckets) == DENIED
    assert limited.get_bucket_info().name == "127"


def test_key_for_a_prefix(info: SandboxInfo, control: SandboxControl, bucket: Any, prefix: str) -> None:
    bucket.put_object(f"{prefix}other", b"data")
    limited = bucket_for(info, control.issue_key(prefix=f"{prefix}mine/"))
    limited.put_object(f"{prefix}mine/x", b"")
    assert fails(limited.get_object, f"{prefix}other") == DENIED
    assert fails(limited.copy_object, "127", f"{prefix}other", f"{prefix}mine/y") == DENIED
    assert fails(limited.list_objects_v2, prefix) == DENIED
    assert limited.list_objects_v2(f"{prefix}mine/").object_list[0].key == f"{prefix}mine/x"


def test_revoked_key(info: SandboxInfo, control: SandboxControl) -> None:
    credentials = control.issue_key()
    rotated = bucket_for(info, credentials)
    rotated.get_bucket_info()
    control.revoke_key(credentials.access_key_id)
    assert fails(rotated.get_bucket_info) == (403, "InvalidAccessKeyId")
    with pytest.raises(ConsoleError):
        control.revoke_key(credentials.access_key_id)
    with pytest.raises(ConsoleError):
        control.revoke_key(info.access_key_id)


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_temporary_key(info: SandboxInfo, control: SandboxControl, prefix: str, version: str) -> None:
    credentials = control.issue_key(ttl_s=600)
    assert credentials.security_token is not None
    assert credentials.expiration is not None
    assert abs(credentials.expiration.timestamp() - time.time() - 600) < 60
    temporary = bucket_for(info, credentials, version)
    temporary.put_object(f"{prefix}x", b"data")
    assert temporary.get_object_with_url(temporary.sign_url("GET", f"{prefix}x", 60)).read() == b"data"
    expired = bucket_for(info, control.issue_key(ttl_s=-1), version)
    assert fails(expired.get_object, f"{prefix}x") == (403, "SecurityTokenExpired")


def test_token_must_be_the_keys_own(info: SandboxInfo, control: SandboxControl) -> None:
    credentials = control.issue_key(ttl_s=600)
    secret = credentials.access_key_secret.reveal()
    for token, code in (("", "InvalidAccessKeyId"), ("other", "InvalidSecurityToken")):
        signer = Signer(credentials.access_key_id, secret, info.region, token=token)
        assert call(info, "GET", signer=signer).code == code


def test_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ring = KeyRing.load(path)
    ring.issue(Role.READ_ONLY, prefix="a/")
    ended = ring.issue(Role.OWNER, expires_at=time.time() - 60)
    long_ago = ring.issue(Role.OWNER, expires_at=1000.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = KeyRing.load(path)
    assert again.owner == ring.owner
    assert again.get(ended.id) == ended
    assert again.get(long_ago.id) is None


@pytest.fixture(scope="module", params=["v1", "v2"])
def instance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, SandboxInfo]]:
    arguments = ["--metadata", request.param, "--metadata-credential-ttl-s", "600"]
    directory = tmp_path_factory.mktemp("instance")
    with SandboxProcess.start(directory, unshaped=True, arguments=arguments) as running:
        yield request.param, running.info


def test_metadata(instance: tuple[str, SandboxInfo]) -> None:
    version, info = instance
    url = info.metadata_endpoint or ""
    token = send(url, "PUT", "/latest/api/token", headers={"X-aliyun-ecs-metadata-token-ttl-seconds": "60"}, body=b"")
    headers = {"X-aliyun-ecs-metadata-token": token.body.decode()}
    base = "/latest/meta-data/"
    assert send(url, "GET", f"{base}region-id", headers=headers).body == b"cn-sandbox"
    assert send(url, "GET", f"{base}zone-id", headers=headers).body == b"cn-sandbox-a"
    assert send(url, "GET", f"{base}instance/instance-type", headers=headers).status == 200
    assert send(url, "GET", f"{base}nothing", headers=headers).status == 404
    assert send(url, "GET", f"{base}region-id").status == (200 if version == "v1" else 403)
    assert send(url, "GET", f"{base}region-id", headers={"X-aliyun-ecs-metadata-token": "x"}).status == 403
    assert send(url, "GET", f"{base}region-id", headers={**headers, "Host": "evil.example"}).status == 403
    bad = send(url, "PUT", "/latest/api/token", headers={"X-aliyun-ecs-metadata-token-ttl-seconds": "0"}, body=b"")
    assert bad.status == 400
    role = send(url, "GET", f"{base}ram/security-credentials/", headers=headers).body.decode()
    found = json.loads(send(url, "GET", f"{base}ram/security-credentials/{role}", headers=headers).body)
    assert found["Code"] == "Success"
    signer = Signer(found["AccessKeyId"], found["AccessKeySecret"], info.region, token=found["SecurityToken"])
    assert call(info, "GET", signer=signer).status == 200
    again = json.loads(send(url, "GET", f"{base}ram/security-credentials/{role}", headers=headers).body)
    assert again["AccessKeyId"] == found["AccessKeyId"]


@pytest.mark.parametrize("instance", ["v1"], indirect=True)
def test_the_sdks_role_provider_works(instance: tuple[str, SandboxInfo]) -> None:
    """It knows the first version only."""
    _, info = instance
    from oss2.credentials import EcsRamRoleCredentialsProvider

    url = f"{info.metadata_endpoint}/latest/meta-data/ram/security-credentials/sandbox-role"
    provider = EcsRamRoleCredentialsProvider(url)
    bucket = make_bucket(info, auth=oss2.ProviderAuthV4(provider))
    assert bucket.get_bucket_info().name == "127"
