"""The small form of the GPU script, on whatever device there is: `python -m tests.benchmarks.gpu --small`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.gpu.__main__ import in_process, run_part

# Left out here: what needs a GPU, and what only repeats a part below for longer.
ON_ANY_DEVICE = ["slot reuse", "loader alone", "out of memory", "group end"]
TAKE_TIME = [
    "fp16 overflow",
    "snapshot",
    "whole loop",
    "checkpoint stall",
    "gpu selection",
    "same endpoint",
    "learning",
    "decode",
    "compiled",
]


@pytest.mark.parametrize("name", [*ON_ANY_DEVICE, *(pytest.param(name, marks=pytest.mark.slow) for name in TAKE_TIME)])
def test_a_part_in_its_small_form(name: str) -> None:
    part = run_part(name, small=True, seconds=0.2)
    assert part.ok, part.figures
    assert part.figures


def test_every_part_is_in_the_table_and_in_the_file(tmp_path: Path) -> None:
    options = ["--small", "--seconds", "0.1", "--out", str(tmp_path), "--part", "host time", "--part", "transform"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu", *options],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert {name: part["ok"] for name, part in result["parts"].items()} == {"host time": True, "transform": True}
    assert "ok   transform" in done.stdout


def test_a_part_that_fails_or_dies_is_named() -> None:
    def fails() -> dict[str, Any]:
        raise ValueError("no such kernel")

    def dies() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    assert "no such kernel" in in_process(fails, 60)["figures"]["error"]
    assert "exit code -9" in in_process(dies, 60)["figures"]["error"]
    assert not in_process(dies, 60)["ok"]
