"""A rank of a run is killed, at ten moments and more: this process lives, says why, and resumes the run exactly.

`pytest -m slow tests/training/test_rank_faults.py` runs them; test_local_ranks.py has the same without torch.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from _pytest.mark.structures import ParameterSet

from ossconsole.sandbox.process import SandboxProcess
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import read_events
from ossconsole.training.checkpoints.checkpoint import unpack
from ossconsole.training.run import TrainingRun
from tests.training.conftest import Bucket, StartRun, bucket_in, finished, steps
from tests.training.faulty_rank import MOMENTS, VARIABLE, setting

DEADLINE_S = 280.0  # of a run: each of its processes loads torch, which takes a loaded machine a minute
pytestmark = pytest.mark.timeout(3 * DEADLINE_S)

STEPS = 6  # two epochs of 96 samples, in batches of 32 over all ranks
SAVED = 2  # a checkpoint of this step is complete when step 4 begins: one is written at a time
STOP_AT = 4

TIMES = {
    "forward": 5,
    "backward": 5,
    "update": 5,
    "checkpoint": 3,
    "packing": 3,
    "writing": 3,
    "validation": 2,
    "epoch end": 2,
}
"""The how-manieth time of each moment is hit; the first where none is given."""
ZERO_ONLY = {"packing", "writing"}


def cells() -> list[ParameterSet]:
    found = []
    for world in (2, 4):
        for number in (0, 1) if world == 2 else (0, 3):
            for moment in MOMENTS:
                if number and moment in ZERO_ONLY:
                    continue
                cell = (world, number, moment)
                found.append(pytest.param(cell, id=f"rank {number} of {world}-{moment}"))
    return found


@dataclass
class Reference:
    """Runs that nobody disturbs, for what a resumed one must repeat; and what was resumed already.

    `resumed` are the worlds that ran from the start after a failure, and the digests of checkpoints: cells whose
    checkpoints are equal need one resumed run.
    """

    bucket: Bucket
    losses: dict[int, list[float | None]] = field(default_factory=dict)
    resumed: set[tuple[int, str]] = field(default_factory=set)


def settings(world: int) -> dict[str, object]:
    return {
        "processes": world,
        "batch_size": 32 // world,
        "epochs": 2,
        "workers": 1,
        "image_size": 24,
        "checkpoint_every": 2,
        "keep_checkpoints": 0,
    }


@pytest.fixture(scope="module")
def reference(sandbox: SandboxProcess) -> Reference:
    return Reference(bucket_in(sandbox, "rank-faults"))


@pytest.fixture
def bucket(reference: Reference) -> Bucket:
    return reference.bucket


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Ranks read the variable that a test sets."""
    with monkeypatch.context() as patched:
        patched.setattr(
            "ossconsole.training.distributed.launch.RANK_COMMAND",
            (sys.executable, "-m", "tests.training.faulty_rank"),
        )
        patched.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield patched


def undisturbed(reference: Reference, start_run: StartRun, world: int) -> list[float | None]:
    if world not in reference.losses:
        reference.losses[world] = [step.loss for step in steps(finished(start_run(**settings(world)), DEADLINE_S))]
    return reference.losses[world]


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if "rank" in " ".join(each.cmdline())]


def digest(bucket: Bucket, key: str) -> str:
    """Of the whole content of a checkpoint but the id of its run."""
    state = unpack(bucket.store().get(key), key)
    del state["run"]
    found = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for name, each in value.items():
                add(name)
                add(each)
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)
        else:
            found.update(f"{value!r};".encode())

    add(state)
    return found.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("cell", cells())
def test_a_killed_rank_is_reported_and_the_run_resumes_exactly(
    cell: tuple[int, int, str],
    reference: Reference,
    start_run: StartRun,
    faulty: pytest.MonkeyPatch,
) -> None:
    world, number, moment = cell
    expected = undisturbed(reference, start_run, world)
    runs: list[TrainingRun] = []

    def watch(event: events.Event) -> None:
        if moment == "stop" and isinstance(event, events.Step) and event.step == STOP_AT:
            runs[0].stop()

    faulty.setenv(VARIABLE, setting(number, moment, TIMES.get(moment, 1)))
    runs.append(start_run(**settings(world), on_event=watch))
    assert runs[0].wait(DEADLINE_S), "the run did not end"
    found = runs[0].drain()
    saved = [event for event in found if isinstance(event, events.Checkpoint)]
    faulty.undo()
    assert not children()
    if number and moment == "stop" and runs[0].error is None:  # rank 0 had no more work for it
        assert runs[0].state in {RunState.STOPPED, RunState.FINISHED}
        assert saved[-1].step == steps(found)[-1].step
        return
    assert runs[0].state is RunState.FAILED
    assert runs[0].error is not None
    assert f"Rank {number} of {world} was killed by SIGKILL" in runs[0].error.message
    recorded = [event.message for event in read_events(runs[0].record_path) if isinstance(event, events.ErrorEvent)]
    assert recorded == [runs[0].error.message]
    if not saved:
        assert moment in {"start", "rendezvous", "first batch"}
        if (world, "") not in reference.resumed:
            rerun = finished(start_run(**settings(world)), DEADLINE_S)
            assert [step.loss for step in steps(rerun)] == expected
            reference.resumed.add((world, ""))
        return
    assert saved[-1].step >= SAVED
    assert saved[-1].key in runs[0].error.remedy
    content = digest(reference.bucket, saved[-1].key)
    if (world, content) in reference.resumed:
        return
    again = steps(finished(start_run(**settings(world), resume=saved[-1].key), DEADLINE_S))
    assert [step.step for step in again] == list(range(saved[-1].step + 1, STEPS + 1))
    assert [step.loss for step in again] == expected[saved[-1].step :]
    reference.resumed.add((world, content))
