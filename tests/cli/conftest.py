"""A state folder with the sandbox's dataset for the tests of the real command, and its output as JSON."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.cli.consoles import cleared, fill_sandbox


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder whose sandbox has a dataset. Tests change only copies of it."""
    folder = tmp_path_factory.mktemp("filled")
    fill_sandbox(folder)
    return folder


@pytest.fixture
def state(filled: Path, home: Path) -> Iterator[Path]:
    """The state folder of the test, a copy of `filled`; its processes have ended after the test."""
    folder = home / "state"
    shutil.copytree(filled, folder, dirs_exist_ok=True)
    with cleared(folder):
        yield folder


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """The JSON objects that were printed, one per line."""
    return [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
