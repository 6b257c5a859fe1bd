"""A sandbox of its own for the faults, steered and checked through the endpoint that stays up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.upload import job as upload_job
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.retry import DEFAULT_RETRY, RetryPolicy
from ossconsole.training import session
from ossconsole.training.checkpoints import store
from ossconsole.training.loading.connector import ConnectorSettings
from tests.dataset.conftest import make_pictures
from tests.faults.operations import World, tiny_model

TIMEOUT_S = 1.0
"""Seconds without a byte before a request of oss2 is given up; the program's own default is 10."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with SandboxProcess.start(tmp_path_factory.mktemp("faulty"), unshaped=True) as process:
        yield process


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    make_pictures(folder, 6)
    return folder


@pytest.fixture
def control(server: SandboxProcess) -> Iterator[SandboxControl]:
    """Steers through the accelerated endpoint, which no plan here takes down; no fault outlives its test."""
    info = server.info
    address = info.path_style_endpoint.replace("127.0.0.1", "127.0.0.2")
    steering = SandboxControl(msgspec.structs.replace(info, path_style_endpoint=address))
    yield steering
    steering.clear_faults()


def impatient(policy: RetryPolicy) -> RetryPolicy:
    """Throttling is waited out for ten seconds, in waits of one second."""
    return msgspec.structs.replace(policy, patience_s=10.0, longest_wait_s=1.0)


@pytest.fixture
def quick_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = ObjectStore.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout_s", TIMEOUT_S)
    monkeypatch.setitem(defaults, "retry", impatient(DEFAULT_RETRY))
    monkeypatch.setattr(upload_job, "RETRIES", impatient(upload_job.RETRIES))
    monkeypatch.setattr(store, "_WRITES", impatient(store._WRITES))


@pytest.fixture
def world(  # noqa: PLR0917 - fixtures
    server: SandboxProcess,
    control: SandboxControl,
    quick_timeouts: None,
    pictures: Path,
    tmp_path: Path,
    home: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    monkeypatch.setattr(session, "build_model", tiny_model)
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())
    profile = msgspec.structs.replace(
        server.profile(), dataset_prefix=f"data/{name}", checkpoint_prefix=f"checkpoints/{name}"
    )
    credentials = FixedSource(server.credentials())
    config = tmp_path / "connector.json"
    config.write_bytes(msgspec.json.encode({"logLevel": 1, "logPath": str(tmp_path / "connector.log")}))
    return World(
        profile=profile,
        credentials=credentials,
        clean=ObjectStore(profile, credentials, EndpointKind.ACCELERATED),
        folder=tmp_path,
        pictures=pictures,
        connector=ConnectorSettings(profile, credentials, config, tmp_path / "native.log"),
        timeout_s=TIMEOUT_S,
        calm=control.clear_faults,
    )
