"""The layers hold: statically by import contracts, and at run time by what is loaded when."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "osstorchconnector",
    "oss2",
    "alibabacloud_credentials",
    "textual",
    "pynvml",
    "aiohttp",
    "numpy",
    "PIL",
)


def loaded_after(statement: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_import_contracts_hold() -> None:
    # In a process of its own: import-linter configures logging, which would silence the loggers of later tests.
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], ["status", "--help"]])
def test_version_and_help_load_nothing_heavy(arguments: list[str]) -> None:
    statement = (
        "from ossconsole.cli.app import ossconsole\n"
        f"try: ossconsole.main({arguments!r}, prog_name='ossconsole')\n"
        "except SystemExit: pass\n"
    )
    assert loaded_after(statement) == set()


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("ossconsole.config.profiles", set()),
        ("ossconsole.telemetry.sampler", set()),
        ("ossconsole.dataset.upload.worker", {"numpy", "PIL"}),
        ("ossconsole.training.run", set()),
        ("ossconsole.training.checkpoints.store", {"numpy", "oss2"}),
        ("ossconsole.training.loading.pool", {"numpy", "oss2", "PIL"}),
        ("ossconsole.terminal.tty", set()),
        ("ossconsole.cli.application", set()),
        ("ossconsole.tui.app", {"textual"}),
    ],
)
def test_a_module_loads_only_its_own_heavy_library(module: str, allowed: set[str]) -> None:
    assert loaded_after(f"import {module}") <= allowed
