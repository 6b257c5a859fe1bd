"""A checkpoint whose confirmation is lost counts as written, and one that is given up leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ossconsole.config.errors import ConsoleError
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import Error, FaultPlan, LostReply, Rule
from ossconsole.storage.multipart import list_uploads
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import RunRecord, record_path
from ossconsole.training.checkpoints.store import (
    CheckpointStore,
    CheckpointWriter,
    RunProgress,
    checkpoint_key,
    stable_key,
)
from tests.faults.operations import World

pytestmark = pytest.mark.timeout(120)
DATA = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def checkpoints(world: World) -> Iterator[CheckpointStore]:
    made = CheckpointStore(world.connector, world.store(), "run", keep=1, timeout_s=4 * world.timeout_s)
    yield made
    made.close()


def progress(step: int) -> RunProgress:
    return RunProgress(epoch=1, step=step, train_sums=[], metrics={})


def left(world: World) -> set[str]:
    prefix = f"{world.profile.checkpoint_prefix}/"
    assert not list(list_uploads(world.clean, prefix))
    return {found.key for found in world.clean.list_all(prefix)}


def test_a_lost_confirmation(world: World, checkpoints: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []

    def write(_writer: CheckpointWriter, key: str, data: bytes, *_: object) -> None:
        writes.append(key)
        world.clean.put(key, data)
        raise ConsoleError("The process that wrote it ended unexpectedly.")

    monkeypatch.setattr(CheckpointWriter, "write", write)
    saved = checkpoints.save(DATA, progress(1))
    assert writes == [saved.key]
    assert world.clean.get(saved.stable_key) == DATA


def test_confirmations_lost_one_after_the_other(
    world: World, control: SandboxControl, checkpoints: CheckpointStore
) -> None:
    operations = ("CompleteMultipartUpload", "CopyObject")
    control.set_faults(FaultPlan(rules=[Rule(action=LostReply(), operation=name) for name in operations]))
    with pytest.raises(ConsoleError, match="copying"):
        checkpoints.save(DATA, progress(1))
    control.clear_faults()
    saved = checkpoints.save(DATA, progress(2))
    assert left(world) == {saved.key, saved.stable_key}


def test_a_write_that_is_given_up(world: World, control: SandboxControl, checkpoints: CheckpointStore) -> None:
    broken = Error(code="InternalError")
    operations = ("CompleteMultipartUpload", "DeleteObject", "AbortMultipartUpload", "PutObject")
    control.set_faults(FaultPlan(rules=[Rule(action=broken, operation=operation) for operation in operations]))
    with pytest.raises(ConsoleError):
        checkpoints.save(DATA, progress(1))
    control.clear_faults()
    saved = checkpoints.save(DATA, progress(2))
    assert left(world) == {saved.key, saved.stable_key}


def test_a_checkpoint_that_cannot_be_copied_is_removed_after_the_next(
    world: World, control: SandboxControl, checkpoints: CheckpointStore
) -> None:
    control.set_faults(FaultPlan(rules=[Rule(action=Error(code="AccessDenied"), operation="CopyObject")]))
    with pytest.raises(ConsoleError, match="AccessDenied"):
        checkpoints.save(DATA, progress(1))
    control.clear_faults()
    saved = checkpoints.save(DATA, progress(2))
    assert left(world) == {saved.key, saved.stable_key}


def record(run: str, state: RunState, *, pid: int, host: str = "") -> None:
    written = RunRecord(record_path(run))
    written.append(
        events.Run(
            time=time.time(),
            run=run,
            version="0",
            profile="p",
            bucket="b",
            sample_format="image-u8",
            settings={},
            pid=pid,
            host=host or socket.gethostname(),
            simulated=True,
            epochs=1,
            steps_per_epoch=1,
        )
    )
    written.append(events.State(time=time.time(), state=state, step=0))
    written.close()


def test_uploads_that_killed_runs_left_are_aborted_and_no_others(
    world: World, checkpoints: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSSCONSOLE_STATE_DIR", str(tmp_path / "state"))
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    record("killed", RunState.RUNNING, pid=gone.pid)
    record("ended", RunState.STOPPED, pid=os.getpid())
    record("living", RunState.RUNNING, pid=os.getpid())
    record("elsewhere", RunState.RUNNING, pid=gone.pid, host="another")
    prefix = world.profile.checkpoint_prefix
    names = [f"resnet18-{run}-e01-s000005.pt" for run in ("killed", "ended", "run", "living", "elsewhere", "unknown")]
    for name in (*names, "resnet18-killed.txt", "notes.pt"):
        world.clean.sdk.init_multipart_upload(f"{prefix}/{name}")
    assert sorted(checkpoints.abort_leftovers()) == sorted(f"{prefix}/{name}" for name in names[:3])
    stay = {upload.key for upload in list_uploads(world.clean, f"{prefix}/")}
    assert stay == {f"{prefix}/{name}" for name in (*names[3:], "resnet18-killed.txt", "notes.pt")}


def test_a_restarted_run_deletes_its_old_checkpoints(world: World, checkpoints: CheckpointStore) -> None:
    prefix = world.profile.checkpoint_prefix
    for key in (checkpoint_key(prefix, "run", progress(1)), checkpoint_key(prefix, "other", progress(1))):
        world.clean.put(key, b"")
    checkpoints.adopt()
    saved = checkpoints.save(DATA, progress(2))
    assert left(world) == {saved.key, stable_key(prefix), checkpoint_key(prefix, "other", progress(1))}


def test_a_restarted_run_deletes_the_oldest_of_them(world: World, checkpoints: CheckpointStore) -> None:
    prefix = world.profile.checkpoint_prefix
    adopted = [RunProgress(epoch=epoch, step=epoch, train_sums=[], metrics={}) for epoch in (99, 100)]
    keys = [checkpoint_key(prefix, "run", each) for each in adopted]
    for key in (*keys, f"{prefix}/resnet18-run-e01-notes.txt"):
        world.clean.put(key, b"")
    checkpoints.adopt()
    checkpoints._keep = 2
    saved = checkpoints.save(DATA, RunProgress(epoch=101, step=101, train_sums=[], metrics={}))
    assert left(world) == {keys[1], saved.key, stable_key(prefix), f"{prefix}/resnet18-run-e01-notes.txt"}


def test_a_checkpoint_is_written_although_an_old_one_cannot_be_deleted(world: World, control: SandboxControl) -> None:
    warnings: list[str] = []
    checkpoints = CheckpointStore(
        world.connector,
        world.store(),
        "run",
        keep=1,
        timeout_s=4 * world.timeout_s,
        on_warning=lambda message, _: warnings.append(message),
    )
    first = checkpoints.save(DATA, progress(1))
    for operation, what in (("DeleteObject", "not deleted"), ("CopyObject", "not copied")):
        rule = Rule(
            action=Error(code="AccessDenied"),
            operation=operation,
            key="*-best.pt" if "C" in operation else "*-s000001.pt",
        )
        control.set_faults(FaultPlan(rules=[rule]))
        saved = checkpoints.save(DATA, progress(2), best=True)
        (warning,) = warnings
        assert what in warning
        assert "AccessDenied" in warning
        warnings.clear()
    control.clear_faults()
    checkpoints.save(DATA, progress(3))
    checkpoints.close()
    assert first.key not in left(world)
    assert saved.key in left(world), "it is the best one"
    assert saved.best_key == ""
