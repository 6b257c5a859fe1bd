"""The soak in its short form: `python -m tests.benchmarks.soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.soak import parsed, soak

pytestmark = pytest.mark.timeout(300)
OPENING = ("kill", "switch", "one wrong byte", "switch", "500 now and then", "checkpoint")


def test_some_seconds_of_faults_lose_nothing(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET"):
        monkeypatch.setenv(name, "set by the soak, and given back after it")
    arguments = [
        "--tiny",
        "--minutes",
        "0.12",
        "--samples",
        "512",
        "--every",
        "0.2",
        "--longest",
        "0.8",
        "--no-console",
    ]
    done = soak(parsed([*arguments, "--opening", *OPENING]), tmp_path)
    assert done.problems == []
    assert done.result["strikes"]["SIGKILL to a process"] >= 1
    assert done.result["epochs"] >= 1
    assert done.result["checkpoints"] >= 1
