"""`ossconsole demo` without a terminal: the whole main job, its lines and its last object, and how it ends early."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ossconsole.cli import demo
from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.sample_data import make_sample_images
from ossconsole.sandbox.process import INFO_NAME, SandboxInfo
from ossconsole.telemetry.events import Event, InfoEvent, RunState
from tests.cli.consoles import cleared, processes_of, wait_until
from tests.telemetry.runs import START, Feed

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


def test_it_ends_with_ten_lines_that_name_simulated_numbers(state: Path) -> None:
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
    assert lines[5].endswith("too short: 0 of 6 pairs (simulated)")
    assert "verified" in lines[7]
    wait_until(lambda: not processes_of(state))


class SteeredRun:
    """In place of a TrainingRun: the driver of the demo takes the feed's events, and switches the feed."""

    def __init__(self, feed: Feed, driver: demo._Driver) -> None:
        assert feed.view.run is not None
        driver(feed.view.run)
        driver.run = self  # type: ignore[assignment]
        feed.view.apply = driver  # type: ignore[method-assign]
        self._feed = feed
        self.stopped = False

    def switch(self, kind: EndpointKind, _why: str) -> None:
        self._feed.switch(kind)

    def stop(self) -> None:
        self.stopped = True


def test_it_ends_as_soon_as_the_comparison_is_decided() -> None:
    feed, driver, rng = Feed(epochs=1000, steps_per_epoch=20), demo._Driver(lambda _event: None), random.Random(3)
    run = SteeredRun(feed, driver)
    feed.state(RunState.RUNNING).steps(20, seconds=0.1).end_epoch(seconds=2.0)
    while not run.stopped:
        usual = 0.1 if feed.endpoint is EndpointKind.ACCELERATED else 0.3
        feed.steps(1, seconds=usual * rng.lognormvariate(0, 0.4))
    found = driver.view.comparison
    assert found.faster is EndpointKind.ACCELERATED
    assert found.estimate is not None
    assert not found.estimate.precise
    assert feed.time - START < demo._MEASURE_S


@pytest.mark.parametrize(("seconds", "slowed"), [(0.5, True), (0.02, False)])
def test_a_busy_machine_gets_a_slower_standard_endpoint(seconds: float, *, slowed: bool) -> None:
    shown: list[Event] = []
    feed, driver, speeds = Feed(epochs=1000, steps_per_epoch=50), demo._Driver(shown.append), list[float]()
    driver.slow_down = speeds.append
    SteeredRun(feed, driver)
    feed.state(RunState.RUNNING).steps(50, seconds=seconds, wait=0.0)
    assert speeds == []  # slow, the cache would fill slowly
    feed.end_epoch(seconds=2.0).steps(1, seconds=seconds, wait=0.0)
    assert speeds == ([pytest.approx(feed.batch / seconds / 2.5)] if slowed else [])
    assert (
        any("(simulated) is slowed down to" in event.message for event in shown if isinstance(event, InfoEvent))
        == slowed
    )


@pytest.mark.slow
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
    assert any("is running again" in event.get("message", "") for event in after)
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
