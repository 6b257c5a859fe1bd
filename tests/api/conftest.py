"""A fresh state folder for each test, with a sandbox whose sample dataset all share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ossconsole.cli.options import OpenTarget, Target
from ossconsole.cli.sandbox import fill_sandbox
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.telemetry import events
from ossconsole.telemetry.events import Event
from ossconsole.telemetry.runs import read_events, record_path

Folders = dict[str, str]


@pytest.fixture(scope="session")
def shared_folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The environment of all scripts of a session: they share one sandbox."""
    folder = tmp_path_factory.mktemp("console")
    names = {"OSSCONSOLE_STATE_DIR": folder / "state", "OSSCONSOLE_CONFIG_DIR": folder / "config", "HOME": folder}
    return {name: str(path) for name, path in names.items()}


@pytest.fixture(autouse=True)
def folders(shared_folders: Folders, home: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Replaces the folders of the test's own."""
    for name, value in shared_folders.items():
        monkeypatch.setenv(name, value)
    return shared_folders


@pytest.fixture(scope="session")
def running_sandbox(shared_folders: Folders) -> Iterator[OpenTarget]:
    """The embedded sandbox with its sample dataset; scripts without a profile use it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shared_folders.items():
            patch.setenv(name, value)
        folder = Path(shared_folders["OSSCONSOLE_STATE_DIR"], "sandbox")
        with (
            SandboxProcess.start(folder, unshaped=True),  # the one that the embedded sandbox would start is slow
            Target({"profile": "sandbox"}).open(say=lambda _text: None) as opened,
        ):
            fill_sandbox(opened)
            patch.undo()
            yield opened


@pytest.fixture
def sandbox(running_sandbox: OpenTarget, folders: Folders) -> OpenTarget:
    """The running sandbox, in the environment of this test."""
    return running_sandbox


def events_of(run: str) -> list[Event]:
    return list(read_events(record_path(run)))


def steps_of(run: str) -> list[events.Step]:
    return [event for event in events_of(run) if isinstance(event, events.Step)]


def newest_run(folders: Folders) -> str:
    return max(Path(folders["OSSCONSOLE_STATE_DIR"], "runs").glob("*.jsonl")).stem
