"""The metadata service's token mode, and the role's credentials as they are renewed."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ossconsole.config.credential_sources import EcsRoleSource, find_credentials
from ossconsole.config.metadata import METADATA_VARIABLE, MetadataError, MetadataService
from ossconsole.config.profiles import Profile
from ossconsole.config.renewal import REFRESH_BEFORE
from ossconsole.sandbox.imds import ROLE_NAME
from tests.sandboxed import Sandboxed, sandboxed


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxed]:
    with sandboxed(tmp_path_factory.mktemp("instance")) as running:
        yield running


@pytest.fixture
def url(instance: Sandboxed) -> str:
    found = instance.process.info.metadata_endpoint
    assert found is not None
    return found


def test_the_instance_is_reported(instance: Sandboxed, url: str) -> None:
    found = MetadataService(url).instance()
    assert found.region == instance.process.info.region
    assert found.zone.startswith(found.region)
    assert found.instance_type


def test_the_first_version_is_off_so_that_the_token_is_what_lets_in(url: str) -> None:
    import http.client
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    connection.request("GET", "/latest/meta-data/region-id")
    assert connection.getresponse().status == 403
    connection.close()
    assert MetadataService(url).get("region-id")


def test_the_roles_credentials_open_the_bucket(instance: Sandboxed, url: str) -> None:
    found = MetadataService(url).credentials()
    assert ROLE_NAME in found.source
    assert found.security_token
    assert found.expiration is not None
    assert found.expiration > datetime.now(timezone.utc)


def test_the_address_is_a_setting(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(METADATA_VARIABLE, url)
    profile = Profile(name="a", region="r", bucket="abc", standard_endpoint="http://127.0.0.1", credentials="ecs")
    source = find_credentials(profile)
    assert isinstance(source, EcsRoleSource)
    assert source().source == f"ECS RAM role {ROLE_NAME}"


def test_an_unknown_role_or_item_is_an_error(url: str) -> None:
    with pytest.raises(MetadataError, match="404") as caught:
        MetadataService(url).credentials("nobody")
    assert "RAM role" in caught.value.remedy
    with pytest.raises(MetadataError, match="404"):
        MetadataService(url).get("no-such-item")


def test_a_service_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MetadataError, match="No answer"):
            MetadataService(silent_url, timeout_s=0.1).instance()


class _Clock:
    def __init__(self) -> None:
        self.now = datetime.now(timezone.utc)

    def __call__(self) -> datetime:
        return self.now


def test_credentials_are_cached_and_refreshed_before_they_expire(url: str) -> None:
    clock = _Clock()
    source = EcsRoleSource(url=url, now=clock)
    first = source()
    assert source() is first
    assert first.expiration is not None
    clock.now = first.expiration - REFRESH_BEFORE - timedelta(seconds=1)
    assert source() is first
    clock.now = first.expiration - REFRESH_BEFORE
    assert source() is not first


def test_they_are_kept_while_the_service_is_unavailable_until_they_expire(tmp_path: Path) -> None:
    clock = _Clock()
    with sandboxed(tmp_path / "instance") as running:
        source = EcsRoleSource(url=running.process.info.metadata_endpoint, now=clock)
        first = source()
    assert first.expiration is not None
    clock.now = first.expiration - timedelta(minutes=1)
    assert source() is first
    clock.now = first.expiration
    with pytest.raises(MetadataError):
        source()


def test_the_source_travels_without_its_pair(url: str) -> None:
    source = EcsRoleSource(url=url)
    secret = source().access_key_secret.reveal()
    travelled = pickle.dumps(source)
    assert secret.encode() not in travelled
    assert pickle.loads(travelled)().source == source().source


class _Odd(BaseHTTPRequestHandler):
    """Hands out `token`, and `body` as any role's credentials."""

    body = b""
    token = b"token"

    def do_PUT(self) -> None:
        self._answer(self.token)

    def do_GET(self) -> None:
        self._answer(self.body)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


_REFUSED = (
    b'{"Code": "Failed", "AccessKeyId": "a", "AccessKeySecret": "sentinel-body", "SecurityToken": "", '
    b'"Expiration": "2030-01-01T00:00:00Z"}'
)


@pytest.fixture
def odd_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("body", "token", "role"),
    [
        (b"sentinel-body", b"token", "role"),
        (b'{"AccessKeyId": "sentinel-body"}', b"token", "role"),
        (_REFUSED, b"token", "role"),
        (b"", b"token", ""),
        (b"", b"<html>\nthe sentinel-body of a login page</html>", ""),
        (b"", "sentinel-body \u4f60".encode(), ""),
    ],
)
def test_a_reply_without_credentials_is_an_error_and_not_quoted(
    odd_url: str, body: bytes, token: bytes, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Odd, "body", body)
    monkeypatch.setattr(_Odd, "token", token)
    with pytest.raises(MetadataError) as caught:
        MetadataService(odd_url).credentials(role)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "sentinel-body" not in str(chain)
        chain = chain.__cause__
