"""The doctor on credentials: on a PAI-DSW instance, in a pod of ACK, and with each mode of the aliyun CLI."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ossconsole.cli.doctor import bucket_checks
from ossconsole.cli.options import Target
from ossconsole.config.checks import Check, CheckStatus
from ossconsole.config.credential_sources import aliyun_file
from ossconsole.config.metadata import METADATA_VARIABLE
from ossconsole.config.profiles import Profile, Settings, save_settings
from ossconsole.sandbox.imds import ROLE_NAME
from tests.cloud_services import POD_TOKEN, PROVIDER_ARN, ROLE_ARN, CloudServices, cloud_services
from tests.sandboxed import Sandboxed

ROLE = {"ram_role_arn": ROLE_ARN, "ram_session_name": "me", "sts_region": "cn-hangzhou"}
SOON = int(time.time()) + 9000
BY_STATIC_KEY = {"access_key_id": "LTAI-static-key", "access_key_secret": "static-sentinel"}


@pytest.fixture
def services(tmp_path: Path, sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudServices]:
    """They give out keys that open the sandbox, which is the active profile."""
    save_settings(Settings().with_profile(own(sandboxed_bucket), activate=True))
    with cloud_services(tmp_path) as running:
        running.issue = lambda ttl_s: sandboxed_bucket.control.issue_key(ttl_s=ttl_s)
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def own(sandbox: Sandboxed) -> Profile:
    """The sandbox as a bucket of the user's own."""
    return msgspec.structs.replace(sandbox.profile("doctor"), name="mine", simulated=False)


def examined(sandbox: Sandboxed) -> dict[str, Check]:
    return {check.name: check for check in bucket_checks(Target(), own(sandbox), writes=False)}


def use_pod(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "token").write_text(POD_TOKEN)
    monkeypatch.setenv("ALIBABA_CLOUD_ROLE_ARN", ROLE_ARN)
    monkeypatch.setenv("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER_ARN)
    monkeypatch.setenv("ALIBABA_CLOUD_OIDC_TOKEN_FILE", str(folder / "token"))


def write_cli(profile: dict[str, Any]) -> None:
    aliyun_file().parent.mkdir(exist_ok=True)
    aliyun_file().touch(mode=0o600)
    aliyun_file().write_text(json.dumps({"current": "work", "profiles": [{"name": "work", **profile}, BASE]}))


BASE = {"name": "base", "mode": "AK", **BY_STATIC_KEY}


def test_on_a_dsw_instance(
    services: CloudServices, sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIBABA_CLOUD_CREDENTIALS_URI", services.uri)
    found = examined(sandboxed_bucket)
    assert found["credentials"].status is CheckStatus.OK
    assert f"from credentials URI {services.uri} (ALIBABA_CLOUD_CREDENTIALS_URI)" in found["credentials"].detail
    assert "expires in 0 h 59 min, renewed before" in found["credentials"].detail
    assert found["credentials accepted"].status is CheckStatus.OK


def test_in_a_pod(
    services: CloudServices, sandboxed_bucket: Sandboxed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pod(tmp_path, monkeypatch)
    found = examined(sandboxed_bucket)
    assert "from OIDC role trainer (ALIBABA_CLOUD_ROLE_ARN)" in found["credentials"].detail
    assert found["credentials accepted"].status is CheckStatus.OK


MODES: dict[str, dict[str, Any]] = {
    "EcsRamRole": {"ram_role_name": ROLE_NAME},
    "RamRoleArn": {**BY_STATIC_KEY, **ROLE},
    "RamRoleArnWithRoleName": {"ram_role_name": ROLE_NAME, **ROLE},
    "ChainableRamRoleArn": {"source_profile": "base", **ROLE},
    "OIDC": {"oidc_provider_arn": PROVIDER_ARN, "oidc_token_file": "token", **ROLE},
    "CredentialsURI": {"credentials_uri": "uri"},
    "CloudSSO": {
        "cloud_sso_sign_in_url": "https://signin.example.com/start",
        "cloud_sso_account_id": "1",
        "cloud_sso_access_config": "ac-1",
        "access_token": "sso-sentinel",
        "cloud_sso_access_token_expire": SOON,
    },
    "OAuth": {"oauth_access_token": "a", "oauth_refresh_token": "r", "oauth_access_token_expire": SOON},
    "External": {"process_command": "helper"},
    "StsToken": {},
    "AK": {},
}


@pytest.mark.parametrize("mode", MODES)
def test_with_each_mode_of_the_cli(
    mode: str,
    services: CloudServices,
    sandboxed_bucket: Sandboxed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(METADATA_VARIABLE, sandboxed_bucket.process.info.metadata_endpoint or "")
    settings = MODES[mode]
    if mode == "OIDC":
        (tmp_path / "token").write_text(POD_TOKEN)
        settings = {**settings, "oidc_token_file": str(tmp_path / "token")}
    elif mode == "CredentialsURI":
        settings = {"credentials_uri": services.uri}
    elif mode in {"External", "StsToken", "AK"}:
        pair = sandboxed_bucket.control.issue_key(ttl_s=None if mode == "AK" else 3600)
        settings = {"access_key_id": pair.access_key_id, "access_key_secret": pair.access_key_secret.reveal()}
        settings |= {"sts_token": pair.security_token.reveal()} if pair.security_token else {}
    if mode == "External":
        helper = tmp_path / "helper.py"
        helper.write_text(f"print({json.dumps({'mode': 'StsToken', **settings})!r})")
        settings = {"process_command": f"{sys.executable} {helper}"}
    write_cli({"mode": mode, **settings})
    found = examined(sandboxed_bucket)
    assert found["credentials"].status is CheckStatus.OK, found["credentials"]
    assert "from aliyun CLI work (~/.aliyun/config.json)" in found["credentials"].detail
    end = {"AK": "without expiry", "StsToken": "expiry unknown", "External": "expiry unknown"}.get(
        mode, "renewed before"
    )
    assert f", {end}." in found["credentials"].detail
    assert found["credentials accepted"].status is CheckStatus.OK, found["credentials accepted"]
    for secret in (*services.secrets(), "sentinel"):
        assert secret not in " ".join(f"{check.detail} {check.remedy}" for check in found.values())


def test_what_was_passed_over_is_a_warning(
    services: CloudServices, sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cli({"mode": "CloudSSO"})
    monkeypatch.setenv("ALIBABA_CLOUD_CREDENTIALS_URI", services.uri)
    check = examined(sandboxed_bucket)["credentials"]
    assert check.status is CheckStatus.WARN
    assert "from credentials URI" in check.detail
    assert "found, but not usable: aliyun CLI work (~/.aliyun/config.json): CloudSSO access token" in check.detail
    assert "aliyun:NAME" in check.remedy


def test_a_role_that_is_refused_is_a_failure_with_the_reason(
    services: CloudServices, sandboxed_bucket: Sandboxed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pod(tmp_path, monkeypatch)
    services.refusal = 400, '{"Code": "AuthenticationFail.OIDCToken.Expired", "Message": "This OIDC token has expired"}'
    check = examined(sandboxed_bucket)["credentials"]
    assert check.status is CheckStatus.FAIL
    assert "OIDC role trainer" in check.detail
    assert "HTTP 400, AuthenticationFail.OIDCToken.Expired: This OIDC token has expired" in check.detail
