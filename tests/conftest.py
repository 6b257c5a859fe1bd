"""Every test has its own home, configuration and state, and never meets the developer's or the machine's."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ossconsole.config import credentials
from ossconsole.config.files import CONFIG_DIR_VARIABLE, STATE_DIR_VARIABLE
from ossconsole.config.metadata import METADATA_VARIABLE
from ossconsole.storage.client import ObjectStore
from tests.sandboxed import Sandboxed, sandboxed

_FOREIGN = ("OSS_", "OSSCONSOLE_", "ALIBABA_CLOUD_", "ALIBABACLOUD_", "ALICLOUD_")
_NETWORK = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"),
)
CLOSED_PORT_URL = "http://127.0.0.1:9"

# A shell starts background jobs with SIGINT ignored, nohup with SIGHUP ignored; children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Hundreds of child processes import the package: they compile its modules once for all of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A busy machine takes long for any example: a deadline would be a timed assertion.
settings.register_profile("ossconsole", deadline=None)
settings.load_profile("ossconsole")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test's own home folder, with `config` and `state` in it; the metadata service is a closed loopback port.

    Removed after the test: some hold checkpoints, and thousands of tests follow.
    """
    folder = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        monkeypatch.delenv(name)
    for size in ("COLUMNS", "LINES"):  # of the developer's terminal
        monkeypatch.delenv(size, raising=False)
    for name in _NETWORK:  # of the developer's network
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(folder))
    for variable, name in ((CONFIG_DIR_VARIABLE, "config"), (STATE_DIR_VARIABLE, "state")):
        (folder / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(folder / name))
    monkeypatch.setenv(METADATA_VARIABLE, CLOSED_PORT_URL)
    monkeypatch.setattr(credentials, "_texts", {})  # no secret of another test is masked
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # a test may have left a process that still writes


@pytest.fixture(scope="session")
def sandboxed_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandboxed]:
    """One unshaped sandbox for all tests of a session; each test keeps to keys of its own."""
    with sandboxed(tmp_path_factory.mktemp("sandboxed")) as running:
        yield running


@pytest.fixture
def store(sandboxed_bucket: Sandboxed) -> Iterator[ObjectStore]:
    """The store of the shared sandbox's bucket, through its standard endpoint."""
    opened = sandboxed_bucket.store()
    yield opened
    opened.close()


@pytest.fixture
def refused_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A link in a folder of its own, into a folder that this user may not enter."""
    link, stat = tmp_path / "folder" / "link", os.stat
    link.parent.mkdir()
    link.symlink_to("elsewhere")

    def refusing(path: str | Path, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        if str(path) == str(link) and follow_symlinks:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "stat", refusing)
    monkeypatch.setattr(Path, "stat", refusing)
    return link
