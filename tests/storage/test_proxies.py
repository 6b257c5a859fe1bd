"""Proxies of the environment: used for OSS hosts outside the VPC, never for those inside and for this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import Profile, checked
from ossconsole.config.proxies import mask_proxy, proxies_for, proxy_note, proxy_of
from ossconsole.storage.client import ObjectStore, tls_context
from ossconsole.storage.errors import StorageError
from ossconsole.storage.probe.probe import probe
from ossconsole.storage.probe.report import endpoint_checks
from ossconsole.storage.retry import NO_RETRY
from tests.cloud_services import CloudServices, cloud_services
from tests.sandboxed import Sandboxed

PROXY = "http://user:proxy-sentinel@proxy.example.com:3128"
PUBLIC = "https://oss-cn-hangzhou.aliyuncs.com"
KEY = FixedSource(Credentials("LTAI-office-key", Secret("s")))


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudServices]:
    with cloud_services(tmp_path) as running:
        running.refusal = (403, "")
        monkeypatch.setenv("HTTPS_PROXY", running.url.replace("//", "//user:proxy-sentinel@"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(running.bundle))
        yield running


def office(endpoint: str = PUBLIC) -> Profile:
    return checked(Profile(name="a", region="cn-hangzhou", bucket="abc", standard_endpoint=endpoint))


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("https://abc.oss-cn-hangzhou.aliyuncs.com", True),
        ("https://abc.oss-accelerate.aliyuncs.com", True),
        ("https://data.example.com", True),
        ("https://sts.aliyuncs.com", True),
        ("https://abc.inside.example.com", False),  # NO_PROXY
        ("https://abc.oss-cn-hangzhou-internal.aliyuncs.com", False),
        ("https://oss-cn-hangzhou-internal.aliyuncs.com", False),
        ("https://abc.cn-hangzhou-j-internal.oss-data-acc.aliyuncs.com", False),
        ("https://abc.oss-cache-cn-hangzhou-j.aliyuncs.com", False),
        ("https://sts-vpc.cn-hangzhou.aliyuncs.com", False),
        ("http://127.0.0.1:7002", False),
        ("http://localhost:7002", False),
        ("http://127.0.0.1", False),
        ("http://100.100.100.200", False),
    ],
)
def test_what_takes_the_proxy(url: str, proxied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", "inside.example.com")
    assert proxy_of(url) == (PROXY if proxied else "")
    assert bool(proxies_for(url)) is proxied
    note = proxy_note(url)
    assert note.startswith("through" if proxied else "directly")
    assert "proxy.example.com:3128" in note
    assert "sentinel" not in note


@pytest.mark.parametrize("text", [PROXY, "user:proxy-sentinel@proxy.example.com:3128", "http://proxy.example.com:3128"])
def test_a_proxys_password_is_masked(text: str) -> None:
    assert mask_proxy(text).removeprefix("http://") == "proxy.example.com:3128"


def test_reading_and_writing_take_the_proxy(proxy: CloudServices) -> None:
    store = ObjectStore(office(), KEY, retry=NO_RETRY)
    for request in (lambda: store.get("a"), lambda: store.put("b", b"data"), lambda: store.list_page("")):
        with pytest.raises(StorageError):
            request()
    store.close()
    assert {(call.host, call.method) for call in proxy.calls} == {
        ("abc.oss-cn-hangzhou.aliyuncs.com:443", "GET"),
        ("abc.oss-cn-hangzhou.aliyuncs.com:443", "PUT"),
    }


def test_the_sandbox_is_reached_without_a_proxy(
    sandboxed_bucket: Sandboxed, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    store = sandboxed_bucket.store()
    store.put(request.node.name, b"x")
    assert store.get(request.node.name) == b"x"


def test_the_probe_names_the_proxy_of_each_endpoint(proxy: CloudServices) -> None:
    profile = office()
    (check,) = endpoint_checks(profile, probe(profile, None))
    assert f"through the proxy {proxy.url}" in check.detail
    assert "TLS" in check.detail
    assert "sentinel" not in f"{check.detail} {check.remedy}"
    assert proxy.tunnels == ["abc.oss-cn-hangzhou.aliyuncs.com:443"]


@pytest.mark.parametrize(
    ("refusal", "words"),
    [((403, ""), "Another server than OSS answered HTTP 403"), ((200, "<html>blocked</html>"), "cannot be read")],
)
def test_an_answer_of_the_proxy_itself_is_named_as_such(
    proxy: CloudServices, refusal: tuple[int, str], words: str
) -> None:
    proxy.refusal = refusal
    profile = office()
    (check,) = endpoint_checks(profile, probe(profile, KEY))
    assert words in check.detail
    assert check.detail.count(f"through the proxy {proxy.url}") == 1
    assert "proxy" in check.remedy
    assert "sentinel" not in f"{check.detail} {check.remedy}"
    with pytest.raises(StorageError, match=re.escape(f"through the proxy {proxy.url}")):
        ObjectStore(profile, KEY, retry=NO_RETRY).list_page("")


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:proxy-sentinel@127.0.0.1:9")
    profile = office()
    (check,) = endpoint_checks(profile, probe(profile, None))
    assert check.detail.lower().count("through the proxy http://127.0.0.1:9") == 1
    assert "NO_PROXY" in check.remedy
    with pytest.raises(StorageError, match=r"through the proxy http://127\.0\.0\.1:9") as caught:
        ObjectStore(profile, KEY, retry=NO_RETRY).list_page("")
    assert "NO_PROXY" in caught.value.remedy
    assert "sentinel" not in str(caught.value)
    assert "sentinel" not in f"{check.detail} {check.remedy}"


def test_a_bundle_of_certificates_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    profile = Profile(name="p", region="cn-hangzhou", bucket="127", standard_endpoint="http://0.0.1:9")
    ObjectStore(profile, KEY).close()  # needs none
    with pytest.raises(SettingsError, match="REQUESTS_CA_BUNDLE"):
        ObjectStore(msgspec.structs.replace(profile, standard_endpoint=PUBLIC), KEY)
    with pytest.raises(SettingsError, match=r"missing\.pem does not exist \(REQUESTS_CA_BUNDLE\)"):
        tls_context()
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "empty.pem"))
    with pytest.raises(SettingsError, match=r"empty\.pem has no certificates"):
        tls_context()
