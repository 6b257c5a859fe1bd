"""The sandbox's sample dataset: every command that needs it makes it, once, however many begin at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ossconsole.cli.application import Application
from ossconsole.cli.options import Target
from ossconsole.dataset import sample_data
from ossconsole.dataset.sample_data import TRAIN_IMAGES, make_sample_images
from ossconsole.sandbox.process import DATASET_PREFIX
from ossconsole.tui.console import StageState
from tests.cli.consoles import cleared, processes_of, wait_until

pytestmark = pytest.mark.timeout(300)
DEADLINE_S = 120
TRAIN, VAL = 40, 20


@pytest.fixture
def state(home: Path) -> Iterator[Path]:
    """A state folder whose sandbox is still to be made; its pictures are drawn, and few."""
    folder = home / "state"
    folder.mkdir(exist_ok=True)
    make_sample_images(folder / "sample-pictures", train=TRAIN, val=VAL)
    with cleared(folder):
        yield folder


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ossconsole", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def written(state: Path) -> list[str]:
    """The keys of all samples that the sandbox was sent, as often as they were sent."""
    lines = (state / "sandbox" / "sandbox.log").read_text().splitlines()
    requests = [json.loads(line) for line in lines if line.startswith("{")]
    puts = [request["key"] for request in requests if request["operation"] == "PutObject"]
    return [key for key in puts if key.startswith(f"{DATASET_PREFIX}/train/")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--max-steps=1", "--batch-size=8", "--workers=1"),
        pytest.param(
            (
                "bench",
                "--mode=loader",
                "--endpoint=standard",
                "--seconds=0.2",
                "--rounds=1",
                "--workers=1",
                "--no-limits",
            ),
            marks=pytest.mark.slow,
        ),
        ("ls", "-r", DATASET_PREFIX),
        ("ls",),
        pytest.param(("doctor",), marks=pytest.mark.slow),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_command_on_a_fresh_machine_makes_it(state: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = ended(start(*arguments, "--json"))
    assert f"upload: {TRAIN + VAL} samples" in err
    found = [json.loads(line) for line in out.splitlines()]
    if arguments[0] == "doctor":
        (dataset,) = [check for check in found[0]["checks"] if check["name"] == "dataset"]
        assert dataset["status"] == "ok", dataset
        assert f"{TRAIN} train" in dataset["detail"]
        return
    assert code == 0, err
    if arguments[0] == "ls":
        assert any(entry["key"].startswith("dataset/") for entry in found[:-1])
    else:
        assert found[-1]["event"] == "summary"


@pytest.mark.parametrize("arguments", [("ls", "checkpoints/"), ("train", "--dataset-prefix=mine")], ids=str)
def test_a_command_that_does_not_need_it_makes_none(state: Path, arguments: tuple[str, ...]) -> None:
    _, _, err = ended(start(*arguments))
    assert "sample dataset" not in err
    assert not written(state)


def make_ready(target: Target) -> None:
    """What a console does behind its first screen."""
    application = Application(target)
    application.open()
    application._prepare()
    application.close(lambda _text: None)


def test_the_console_shows_how_far_each_part_is(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state / "sample-pictures").rename(state / "elsewhere")
    monkeypatch.setattr(sample_data, "make_sample_images", partial(make_sample_images, train=TRAIN, val=VAL))
    shown: list[tuple[str, StageState, str]] = []
    show = Application._stage

    def record(self: Application, label: str, stage: StageState, detail: str = "", share: float | None = None) -> None:
        shown.append((label, stage, detail))
        show(self, label, stage, detail, share)

    monkeypatch.setattr(Application, "_stage", record)
    make_ready(Target())
    count = TRAIN + VAL
    drawing = [detail for label, stage, detail in shown if label == "sample images" and stage is StageState.ACTIVE]
    assert drawing == ["looking for a dataset"] + [f"{number} of {count} drawn" for number in range(1, count + 1)]
    assert ("upload", StageState.ACTIVE, f"0 of {count} sent") in shown
    label, stage, detail = shown[-1]
    assert (label, stage) == ("upload", StageState.DONE)
    assert detail.startswith(f"{count} samples in ")


def test_a_console_on_another_dataset_makes_none_and_is_ready(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, StageState] = {}
    monkeypatch.setattr(Application, "_stage", lambda _, label, stage, *_more: shown.update({label: stage}))
    make_ready(Target({"dataset_prefix": "mine"}))
    assert set(shown.values()) == {StageState.DONE}
    assert not written(state)


def test_two_processes_create_it_once(home: Path) -> None:
    state = home / "state"
    with cleared(state):
        both = [start("ls", "-r", "--json", f"{DATASET_PREFIX}/train") for _ in range(2)]
        for process in both:
            code, out, err = ended(process)
            assert code == 0, err
            assert json.loads(out.splitlines()[-1])["objects"] == TRAIN_IMAGES
        assert len(written(state)) == TRAIN_IMAGES
        assert len(set(written(state))) == TRAIN_IMAGES
        assert not list(state.glob("*.part"))


def test_what_an_interrupted_or_a_killed_one_left_is_completed(home: Path) -> None:
    state = home / "state"
    with cleared(state):
        for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
            process = start("ls", "dataset/")
            assert process.stderr is not None
            until = "upload:" if number is signal.SIGKILL else "drawn"
            while until not in (line := process.stderr.readline()):
                assert line
            os.kill(process.pid, number)
            assert ended(process)[0] == code
            wait_until(lambda: not processes_of(state))
        code, out, err = ended(start("ls", "-r", "--json", f"{DATASET_PREFIX}/train"))
        assert code == 0, err
        assert json.loads(out.splitlines()[-1])["objects"] == TRAIN_IMAGES
        assert not list(state.glob("*.part"))
