"""A running sandbox and oss2 clients for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import oss2
import pytest

from ossconsole.sandbox.process import SandboxInfo, SandboxProcess


def make_bucket(info: SandboxInfo, *, name: str = "", auth: Any = None, accelerated: bool = False) -> Any:
    """oss2's Bucket, as the console makes it; `auth` replaces V4 with the owner's key."""
    endpoint = info.path_style_endpoint
    if accelerated:
        endpoint = endpoint.replace("127.0.0.1", "127.0.0.2")
    auth = auth or oss2.AuthV4(info.access_key_id, info.access_key_secret.reveal())
    return oss2.Bucket(auth, endpoint, name or info.bucket, region=info.region, connect_timeout=20)


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    """One unshaped sandbox for all tests that only need a bucket; keep to keys under `prefix`."""
    with SandboxProcess.start(tmp_path_factory.mktemp("sandbox"), unshaped=True) as running:
        yield running


@pytest.fixture
def info(sandbox: SandboxProcess) -> SandboxInfo:
    return sandbox.info


@pytest.fixture
def bucket(info: SandboxInfo) -> Any:
    return make_bucket(info)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix of the test's own, with a slash at its end."""
    return quote(f"{request.module.__name__}.{request.node.name}", safe="") + "/"
