"""Style and types of package and tests are part of the tests; so is that pictures show something."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# mypy reads the package as Python 3.10 does. The types of the numpy for Python 3.12 and newer must be read as those do.
MINOR = 10 if sys.version_info < (3, 12) else sys.version_info.minor


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy", f"--python-version=3.{MINOR}"]],
    ids=["lint", "format", "types"],
)
def test_the_code_passes(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_snapshot_shows_something() -> None:
    """A screen that fails to paint gives a snapshot too: an empty one."""
    snapshots = sorted((ROOT / "tests" / "tui" / "__snapshots__").rglob("*.svg"))
    assert snapshots
    for path in snapshots:
        texts = re.findall(r'<text class="[^"]*-r\d+"[^>]*>([^<]*)</text>', path.read_text())
        assert any(text.replace("&#160;", "").strip() for text in texts), path
