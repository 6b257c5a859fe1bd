"""Alibaba Cloud's own chain through its real library, against services on loopback."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ossconsole.config.alibaba_credentials import CliProfileSource, UnusableCredentialsError
from ossconsole.config.credential_sources import (
    aliyun_file,
    describe_credentials,
    find_credentials,
    list_sources,
)
from ossconsole.config.credentials import Credentials
from ossconsole.config.errors import ConsoleError
from ossconsole.config.metadata import METADATA_VARIABLE
from ossconsole.sandbox.imds import ROLE_NAME
from tests.cloud_services import POD_TOKEN, PROVIDER_ARN, ROLE_ARN, CloudServices, cloud_services
from tests.profiles import loopback_profile
from tests.sandboxed import Sandboxed

STS = "sts.cn-hangzhou.aliyuncs.com:443"
STATIC = {"access_key_id": "LTAI-static-key", "access_key_secret": "static-secret-sentinel"}
ROLE = {"ram_role_arn": ROLE_ARN, "ram_session_name": "me", "expired_seconds": 900, "sts_region": "cn-hangzhou"}


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudServices]:
    with cloud_services(tmp_path) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def found(credentials: str = "auto") -> Credentials:
    return find_credentials(loopback_profile(credentials))()


def write_cli(*profiles: dict[str, Any], current: str = "work") -> None:
    aliyun_file().parent.mkdir(exist_ok=True)
    aliyun_file().write_text(json.dumps({"current": current, "profiles": list(profiles)}))


def pod(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "token").write_text(POD_TOKEN)
    monkeypatch.setenv("ALIBABA_CLOUD_ROLE_ARN", ROLE_ARN)
    monkeypatch.setenv("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER_ARN)
    monkeypatch.setenv("ALIBABA_CLOUD_OIDC_TOKEN_FILE", str(folder / "token"))


def helper(folder: Path, text: str, *, status: int = 0) -> str:
    script = folder / "helper.py"
    script.write_text(f"import sys\nprint({text!r})\nprint('helper-sentinel', file=sys.stderr)\nsys.exit({status})\n")
    return f"{sys.executable} {script}"


def test_the_common_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "common")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "s")
    monkeypatch.setenv("ALIBABA_CLOUD_SECURITY_TOKEN", "t")
    pair = found()
    assert (pair.access_key_id, pair.source) == ("common", "environment ALIBABA_CLOUD_ACCESS_KEY_ID")
    assert pair.security_token is not None
    assert pair.security_token.reveal() == "t"


def test_the_credentials_uri_of_a_dsw_instance(services: CloudServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIBABA_CLOUD_CREDENTIALS_URI", services.uri)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # the library alone would send it there
    pair = found()
    assert pair == services.issued[0].__class__(
        services.issued[0].access_key_id,
        services.issued[0].access_key_secret,
        services.issued[0].security_token,
        pair.expiration,
        f"credentials URI {services.uri} (ALIBABA_CLOUD_CREDENTIALS_URI)",
    )
    assert pair.expiration is not None
    assert pair.expiration > datetime.now(timezone.utc) + timedelta(minutes=59)


def test_the_role_of_a_pod(services: CloudServices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pod(monkeypatch, tmp_path)
    pair = found()
    assert pair.access_key_id == services.issued[0].access_key_id
    assert pair.source == "OIDC role trainer (ALIBABA_CLOUD_ROLE_ARN)"
    (call,) = services.calls
    assert call.host == "sts.aliyuncs.com:443"
    assert call.parameters["Action"] == "AssumeRoleWithOIDC"
    assert call.parameters["OIDCToken"] == POD_TOKEN


@pytest.mark.parametrize(
    ("settings", "host", "parameters"),
    [
        ({"mode": "RamRoleArn", **STATIC, **ROLE}, STS, {"AccessKeyId": "LTAI-static-key"}),
        (
            {"mode": "ChainableRamRoleArn", "source_profile": "base", **ROLE},
            STS,
            {"AccessKeyId": "LTAI-static-key"},
        ),
        (
            {"mode": "OIDC", "oidc_provider_arn": PROVIDER_ARN, "oidc_token_file": "token", **ROLE},
            STS,
            {"RoleSessionName": "me"},
        ),
        ({"mode": "RamRoleArnWithEcs", "ram_role_name": ROLE_NAME, **ROLE}, STS, {}),
        ({"mode": "RamRoleArnWithRoleName", "ram_role_name": ROLE_NAME, **ROLE}, STS, {}),
        (
            {
                "mode": "CloudSSO",
                "cloud_sso_sign_in_url": "https://signin.example.com/start",
                "cloud_sso_account_id": "1",
                "cloud_sso_access_config": "ac-1",
                "access_token": "sso",
                "cloud_sso_access_token_expire": int(time.time()) + 900,
            },
            "signin.example.com:443",
            {},
        ),
        (
            {
                "mode": "OAuth",
                "oauth_access_token": "a",
                "oauth_refresh_token": "r",
                "oauth_access_token_expire": int(time.time()) + 9000,
            },
            "oauth.aliyun.com:443",
            {},
        ),
        ({"mode": "CredentialsURI"}, "", {}),
    ],
    ids=lambda value: value.get("mode") if isinstance(value, dict) else "",
)
def test_the_modes_of_the_cli(  # noqa: PLR0917
    settings: dict[str, Any],
    host: str,
    parameters: dict[str, str],
    services: CloudServices,
    sandboxed_bucket: Sandboxed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "token").write_text(POD_TOKEN)
    assert sandboxed_bucket.process.info.metadata_endpoint
    monkeypatch.setenv(METADATA_VARIABLE, sandboxed_bucket.process.info.metadata_endpoint)
    if "oidc_token_file" in settings:
        settings = {**settings, "oidc_token_file": str(tmp_path / "token")}
    if settings["mode"] == "CredentialsURI":
        settings = {**settings, "credentials_uri": services.uri}
    write_cli({"name": "work", **settings}, {"name": "base", "mode": "AK", **STATIC})
    pair = found()
    assert pair.access_key_id == services.issued[-1].access_key_id
    assert pair.security_token == services.issued[-1].security_token
    assert pair.source == "aliyun CLI work (~/.aliyun/config.json)"
    assert services.calls[-1].host.endswith(host)
    assert parameters.items() <= services.calls[-1].parameters.items()


def test_the_cli_mode_of_an_instance_role_needs_no_library(
    sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sandboxed_bucket.process.info.metadata_endpoint
    monkeypatch.setenv(METADATA_VARIABLE, sandboxed_bucket.process.info.metadata_endpoint)
    write_cli({"name": "work", "mode": "EcsRamRole", "ram_role_name": ROLE_NAME})
    pair = found("aliyun")
    assert pair.access_key_id.startswith("STS.")
    assert pair.expiration is not None


def test_a_helper_program_is_run_once_although_its_key_is_written_back(tmp_path: Path) -> None:
    keys = {"mode": "StsToken", "access_key_id": "from-helper", "access_key_secret": "s", "sts_token": "t"}
    end = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    command = helper(tmp_path, json.dumps({**keys, "expiration": end}))
    write_cli({"name": "work", "mode": "External", "process_command": command})
    source = find_credentials(loopback_profile("aliyun"))
    assert source().access_key_id == "from-helper"
    assert json.loads(aliyun_file().read_text())["profiles"][0]["access_key_id"] == "from-helper"
    first = source()
    assert source() is first
    write_cli({"name": "work", "mode": "AK", **STATIC})
    assert source().access_key_id == "LTAI-static-key"


def test_the_new_refresh_token_of_oauth_is_kept(services: CloudServices) -> None:
    write_cli(
        {
            "name": "work",
            "mode": "OAuth",
            "oauth_access_token": "old",
            "oauth_refresh_token": "old",
            "oauth_access_token_expire": int(time.time()) + 60,
            "access_key_id": "STS.stored",
            "access_key_secret": "s",
            "sts_token": "t",
            "sts_expiration": int(time.time()) + 60,  # valid, but not for long
        }
    )
    assert found("aliyun").access_key_id == services.issued[0].access_key_id
    kept = json.loads(aliyun_file().read_text())["profiles"][0]
    assert kept["oauth_refresh_token"].startswith("refresh-")
    assert [call.path for call in services.calls] == ["/v1/token", "/v1/exchange"]
    assert found("aliyun").access_key_id == services.issued[0].access_key_id  # another process takes the stored one
    assert len(services.calls) == 2


def write_sdk_file(*lines: str) -> None:
    path = Path.home() / ".alibabacloud" / "credentials.ini"
    path.parent.mkdir()
    path.write_text("\n".join(["[default]", *lines, ""]))


def test_the_sdk_file(services: CloudServices) -> None:
    key = ("access_key_id = LTAI-static-key", "access_key_secret = s")
    write_sdk_file("type = ram_role_arn", *key, f"role_arn = {ROLE_ARN}", "role_session_name = me")
    pair = found()
    assert pair.access_key_id == services.issued[0].access_key_id
    assert pair.source == "SDK file default (~/.alibabacloud/credentials.ini)"
    issued = services.issued[0].expiration
    assert issued is not None
    assert pair.expiration == issued.replace(microsecond=0)  # the library's own reader forgets it


def test_an_instance_role_in_the_sdk_file(sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(METADATA_VARIABLE, sandboxed_bucket.process.info.metadata_endpoint or "")
    write_sdk_file("type = ecs_ram_role", f"role_name = {ROLE_NAME}")
    pair = found("sdk")
    assert pair.access_key_id.startswith("STS.")
    assert pair.expiration is not None


def test_an_rsa_key_pair_in_the_sdk_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("private")
    write_sdk_file("type = rsa_key_pair", "public_key_id = p", f"private_key_file = {tmp_path / 'key.pem'}")
    with pytest.raises(UnusableCredentialsError, match="type rsa_key_pair: RSA key pairs are not supported"):
        found("sdk")


STS_REFUSAL = json.dumps({"Code": "NoPermission", "Message": "You are not authorized", "AccessKeySecret": "leaked-1"})


@pytest.mark.parametrize(
    ("settings", "refusal", "reason"),
    [
        (
            {"mode": "RamRoleArn", **STATIC, **ROLE},
            (403, STS_REFUSAL),
            "HTTP 403, NoPermission: You are not authorized",
        ),
        (
            {"mode": "RamRoleArn", **STATIC, **ROLE},
            (200, '{"AccessKeySecret": "leaked-1"}'),
            "the reply has no key pair",
        ),
        ({"mode": "RamRoleArn", **STATIC, **ROLE}, (200, "leaked-1"), "the reply is not JSON"),
        ({"mode": "RamRoleArn", **STATIC, **ROLE, "expired_seconds": 60}, None, "session duration"),
        ({"mode": "CloudSSO"}, None, "please re-login with cli"),
        ({"mode": "BearerToken", "bearer_token": "leaked-1"}, None, "OSS accepts no bearer tokens"),
        ({"mode": "Unheard"}, None, "unsupported profile mode 'Unheard'"),
        ({"mode": "AK", "access_key_id": "a", "access_key_secret": ""}, None, "access"),
        ({"mode": "External", "process_command": "leaked"}, None, "failed to execute external command: exit status 3"),
        ({"mode": "External", "process_command": "/no/such/helper"}, None, "No such file or directory"),
        (
            {"mode": "OIDC", "oidc_provider_arn": "x", "oidc_token_file": "/no/token", **ROLE},
            None,
            "/no/token: No such",
        ),
        ({"mode": "EcsRamRole"}, None, "metadata service"),
    ],
)
def test_why_a_cli_profile_cannot_be_used(  # noqa: PLR0917
    settings: dict[str, Any],
    refusal: tuple[int, str] | None,
    reason: str,
    services: CloudServices,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    services.refusal = refusal
    if settings.get("process_command") == "leaked":
        settings = {**settings, "process_command": helper(tmp_path, "leaked-1", status=3)}
    write_cli({"name": "work", **settings})
    with caplog.at_level(logging.DEBUG), pytest.raises(UnusableCredentialsError, match=reason) as caught:
        find_credentials(loopback_profile("aliyun"))
    assert "aliyun CLI work" in caught.value.message
    assert caught.value.remedy
    assert caught.value.__cause__ is None
    shown = f"{caught.value} {caplog.text} {''.join(capfd.readouterr())}"
    for secret in ("leaked-1", "sentinel", POD_TOKEN):
        assert secret not in shown
    assert not shown.count("\n\n")


def test_a_connection_error_does_not_show_the_token_in_its_url(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pod(monkeypatch, tmp_path)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(
        UnusableCredentialsError, match=r"sts\.aliyuncs\.com port 443: the proxy does not connect"
    ) as caught:
        find_credentials(loopback_profile())
    assert POD_TOKEN not in f"{caught.value} {capfd.readouterr()}"


def test_a_pod_without_its_token_file_is_named_and_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIBABA_CLOUD_ROLE_ARN", ROLE_ARN)
    monkeypatch.setenv("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER_ARN)
    write_cli({"name": "work", "mode": "AK", **STATIC})
    shown = describe_credentials(loopback_profile())
    assert shown.startswith("LTAI…-key from aliyun CLI work")
    assert "OIDC role trainer (ALIBABA_CLOUD_ROLE_ARN): ALIBABA_CLOUD_OIDC_TOKEN_FILE not set" in shown


def test_sources_are_listed_without_running_their_programs(tmp_path: Path) -> None:
    write_cli(
        {"name": "work", "mode": "External", "process_command": f"touch {tmp_path / 'ran'}"},
        {"name": "other", "mode": "AK", **STATIC},
    )
    states = {str(state.source): state for state in list_sources()}
    assert states["aliyun work ~/.aliyun/config.json"].problem == "mode External, its command runs only when it is used"
    other = states["aliyun other ~/.aliyun/config.json"].credentials
    assert other is not None
    assert other.access_key_id == "LTAI-static-key"
    assert not (tmp_path / "ran").exists()


def test_a_source_travels_without_what_it_has_read(services: CloudServices) -> None:
    write_cli({"name": "work", "mode": "RamRoleArn", **STATIC, **ROLE})
    source = find_credentials(loopback_profile())
    source()
    travelled = pickle.dumps(source)
    for secret in (*services.secrets(), STATIC["access_key_secret"]):
        assert secret.encode() not in travelled
    again = pickle.loads(travelled)
    assert isinstance(again, CliProfileSource)
    assert again().access_key_id == services.issued[-1].access_key_id


def test_a_service_that_refuses_leaves_the_key_that_is_still_valid(
    services: CloudServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIBABA_CLOUD_CREDENTIALS_URI", services.uri)
    source = find_credentials(loopback_profile())
    first = source()
    assert first.expiration is not None
    services.refusal = (500, "")
    now = first.expiration - timedelta(minutes=5)
    source._now = lambda: now  # type: ignore[union-attr]
    assert source() is first
    asked = len(services.calls)
    assert source() is first
    assert len(services.calls) == asked  # not for every request
    now = first.expiration
    with pytest.raises(ConsoleError, match="HTTP 500"):
        source()
    services.refusal = None
    assert source() is not first
