"""`ossconsole demo` without a terminal: the whole main job, its lines and its last object, and how it ends early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.sample_data import make_sample_images
from ossconsole.sandbox.process import INFO_NAME, SandboxInfo
from tests.cli.consoles import cleared, processes_of, wait_until

pytestmark = pytest.mark.timeout(300)
DEADLINE_S = 240
TRAIN, VAL = 200, 50


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "sample-pictures"
    make_sample_images(folder, train=TRAIN, val=VAL)
    return folder


@pytest.fixture
def state(home: Path, pictures: Path) -> Iterator[Path]:
    """A fresh state folder but for the drawn pictures, which are fewer than usual."""
    folder = home / "state"
    folder.mkdir(exist_ok=True)
    (folder / "sample-pictures").symlink_to(pictures)
    with cleared(folder):
        yield folder


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cli.short_demo", "demo", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The objects on stdout up to the first one that is wanted."""
    assert process.stdout is not None
    found: list[dict[str, Any]] = []
    for line in process.stdout:
        found.append(json.loads(line))
        if wanted(found[-1]):
            return found
    raise AssertionError(f"{found[-3:]} {process.communicate()[1]}")


def test_it_ends_in_ten_lines_that_say_what_is_simulated(state: Path) -> None:
    process = start()
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    assert "needs a terminal" in err
    assert f"upload: {TRAIN + VAL} samples" in err
    lines = out.splitlines()[-10:]
    assert "simulated" in lines[0]
    labels = ["Dataset", "Run", "Standard", "Accelerated", "Comparison", "Accuracy", "Checkpoint", "Listed", "Next"]
    assert [line.split()[0] for line in lines[1:]] == labels
    assert f"{TRAIN + VAL} samples in 10 classes" in lines[1]
    assert "simulated" in lines[5]
    assert "verified" in lines[7]
    wait_until(lambda: not processes_of(state))


def test_a_killed_sandbox_is_named_and_the_demo_is_completed(state: Path) -> None:
    process = start("--json")
    before = until(process, lambda event: event["event"] == "step" and event["step"] == 2)
    assert before[0]["event"] == "run"
    info = SandboxInfo.decode((state / "sandbox" / INFO_NAME).read_bytes())
    os.kill(info.pid, signal.SIGKILL)
    named = until(process, lambda event: event["event"] == "warning")
    assert f"The embedded sandbox (pid {info.pid}) ended: killed by SIGKILL." in named[-1]["message"]
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    after = [*named, *map(json.loads, out.splitlines())]
    assert any("runs again" in event.get("message", "") for event in after)
    steps = [event for event in [*before, *after] if event["event"] == "step"]
    assert {step["endpoint"] for step in steps} == {str(kind) for kind in EndpointKind}
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    (summary,) = [event for event in after if event["event"] == "summary"]
    assert summary == after[-1]
    assert summary["steps"] == len(steps)
    assert summary["simulated"] is True
    assert "simulated" in summary["result"]
    assert summary["verified"].removeprefix("oss://127/") in summary["checkpoints"]
    assert set(summary["endpoints"]) == {str(kind) for kind in EndpointKind}


def test_ctrl_c_ends_it_and_the_sandbox(state: Path) -> None:
    process = start("--json")
    until(process, lambda event: event["event"] == "step")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1])["state"] == "stopped"
    wait_until(lambda: not processes_of(state))
