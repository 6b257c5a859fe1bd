"""Whole runs through the real connector and sandbox: events, checkpoints, controls, exact resumption."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import torchvision

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import object_key
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.faults import Error, FaultPlan, Rule
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.runs import read_events
from ossconsole.training.checkpoints.checkpoint import CheckpointSaver, Snapshot, fetch_uri, unpack
from ossconsole.training.checkpoints.store import (
    LATEST,
    CheckpointStore,
    RunProgress,
    checkpoint_key,
    find_checkpoint,
    resumed_fields,
    stable_key,
)
from ossconsole.training.compute.profile import SETTLED_STEPS, StepProfiler, traces_dir
from ossconsole.training.context import RunContext
from ossconsole.training.data import TrainingData
from ossconsole.training.parts import EpochState, TrainingParts
from ossconsole.training.plan import Plan, Split
from ossconsole.training.run import TrainingRun
from ossconsole.training.settings import TrainSettings
from tests.training.conftest import (
    CLASSES,
    DEADLINE_S,
    SIDE,
    TRAIN_SAMPLES,
    VAL_SAMPLES,
    Bucket,
    StartRun,
    finished,
    only,
    steps,
)


def test_a_run_trains_validates_and_leaves_verified_checkpoints(bucket: Bucket, start_run: StartRun) -> None:
    samplers: set[int] = set()

    def count(_: events.Event) -> None:
        samplers.add(sum(thread.name == "ossconsole-sampler" for thread in threading.enumerate()))

    run = start_run(epochs=3, switch_every=5, learning_rate=0.02, warmup_steps=2, on_event=count)
    found = finished(run)
    assert samplers == {1}, "a run looks at the machine through the sampler that the process has"
    recorded = list(read_events(run.record_path))
    looks = [event for event in recorded if isinstance(event, events.Telemetry)]
    assert found == [event for event in recorded if event not in looks]
    assert (recorded[0], recorded[-1]) == (found[0], found[-1])
    assert all(look.host is not None and look.host.own_processes > 1 for look in looks[1:])
    assert looks
    assert isinstance(found[0], events.Run)
    assert (found[0].steps_per_epoch, found[0].cores > 0) == (TRAIN_SAMPLES // 16, True)
    assert all(0 < step.decode_s <= step.fetch_s for step in steps(found))
    assert [step.step for step in steps(found)] == list(range(1, 19))
    assert {step.endpoint for step in steps(found)} == set(EndpointKind)
    epochs = [event for event in found if isinstance(event, events.Epoch)]
    assert [(e.epoch, e.samples, e.val_samples) for e in epochs] == [
        (number, TRAIN_SAMPLES, VAL_SAMPLES) for number in (1, 2, 3)
    ]
    losses = [epoch.train_loss for epoch in epochs]
    assert None not in losses
    assert losses[-1] < losses[0]  # type: ignore[operator]
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.state, summary.samples) == (RunState.FINISHED, 3 * TRAIN_SAMPLES)
    # The checkpoints: unique keys, the last one also under the stable key, written by the connector.
    checkpoints = [event for event in found if isinstance(event, events.Checkpoint)]
    assert len({event.key for event in checkpoints}) == 3
    ways = [event for event in found if isinstance(event, events.Saving)]
    assert {event.key for event in ways if event.written == event.bytes} == {event.key for event in checkpoints}
    store = bucket.store()
    stable = store.get(checkpoints[-1].stable_key)
    assert stable == store.get(checkpoints[-1].key)
    state = unpack(stable, "stable")
    assert (state["epoch"], state["step"], tuple(state["classes"])) == (3, 18, CLASSES)
    log = [msgspec.json.decode(line) for line in bucket.sandbox.log_path.read_text().splitlines()]
    written = [line for line in log if line["key"] == checkpoints[-1].key]
    agents = {line["operation"]: line["user_agent"] for line in written}
    assert "OSSConnector" in agents["UploadPart"]
    assert "aliyun-sdk-python" in agents["HeadObject"]


def test_a_resumed_run_continues_exactly(bucket: Bucket, start_run: StartRun) -> None:
    def stop_at_validation(event: events.Event) -> None:
        if isinstance(event, events.State) and event.state is RunState.VALIDATING:
            stopped[0].stop()

    stopped: list[TrainingRun] = []
    # Each picture is cropped and flipped anew; step 5 is the first of the two that the epoch's last update has.
    settings = {"epochs": 2, "image_size": 24, "accumulate": 4, "ema_decay": 0.9, "warmup_steps": 6, "seed": 3}
    first = finished(start_run(**settings, checkpoint_every=5, keep_checkpoints=0))
    keys = [event.key for event in first if isinstance(event, events.Checkpoint)]
    middle = next(key for key in keys if key.endswith("s000005.pt"))
    stopped.append(start_run(**settings, resume=middle, on_event=stop_at_validation))
    second = finished(stopped[0])
    summary = second[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.steps, summary.epochs, figures(second)) == (6, 0, [])
    third = finished(start_run(**settings, resume="latest"))
    last = third[-1]
    assert isinstance(last, events.Summary)
    assert (last.steps, last.epochs) == (12, 2)
    from_uri = f"from oss://{bucket.profile.bucket}/{bucket.profile.checkpoint_prefix}/resnet18.pt."
    assert next(event.message for event in third if isinstance(event, events.InfoEvent)).endswith(from_uri)
    resumed = steps(second) + steps(third)
    assert [(each.step, each.loss, each.lr) for each in resumed] == [
        (each.step, each.loss, each.lr) for each in steps(first)[5:]
    ]
    assert figures(third) == figures(first)


@pytest.mark.slow
def test_latest_is_the_newest_whole_checkpoint(bucket: Bucket, start_run: StartRun) -> None:
    written = only(finished(start_run(epochs=2, checkpoint_every=2, keep_checkpoints=0)), events.Checkpoint)
    store, stable = bucket.store(), written[-1].stable_key
    keys = list(dict.fromkeys(event.key for event in written))
    for key in (stable, keys[-1]):
        store.put(key, store.get(key)[:-1000])
    found = finished(start_run(epochs=2, resume="latest"))
    (warning,) = only(found, events.WarningEvent)
    whole = store.uri(keys[-2])
    assert warning.message == (
        f"{store.uri(stable)} is cut short or damaged: the end of the file does not fit its beginning. "
        f"The newest whole checkpoint is {whole}."
    )
    assert any(event.message.endswith(f"from {whole}.") for event in only(found, events.InfoEvent))
    store.put(stable, b"damaged")
    other = start_run(epochs=2, resume=stable)
    assert other.wait(DEADLINE_S)
    assert other.error is not None
    assert "not a file that torch.save wrote" in other.error.message


def test_a_checkpoint_that_is_deleted_meanwhile_is_not_the_newest(bucket: Bucket) -> None:
    store, prefix = bucket.store(), bucket.profile.checkpoint_prefix
    for step in (1, 2):
        store.put(checkpoint_key(prefix, "run", RunProgress(1, step, [], {})), b"")

    def read(uri: str) -> str:
        if uri.endswith("s000002.pt") or uri == store.uri(stable_key(prefix)):
            raise StorageError("It does not exist.", status=404)
        return uri

    found = find_checkpoint(store, LATEST, "resnet18", read)
    assert found.content.endswith("s000001.pt")


GOOD = b"the checkpoint of another run"


def keep_good(bucket: Bucket) -> str:
    """Puts something that must stay at the stable key, which it gives."""
    key = stable_key(bucket.profile.checkpoint_prefix)
    bucket.store().put(key, GOOD)
    return key


def message_text(found: list[events.Event]) -> str:
    return "\n".join(event.message for event in found if isinstance(event, events.InfoEvent | events.WarningEvent))


@pytest.mark.parametrize("at", ["first line", "waiting for the first batch"])
def test_a_run_stopped_before_its_first_step_writes_no_checkpoint(bucket: Bucket, start_run: StartRun, at: str) -> None:
    def stop(event: events.Event) -> None:
        gate.wait(DEADLINE_S)
        begun = isinstance(event, events.State) and event.state is RunState.RUNNING
        if begun if at == "waiting for the first batch" else isinstance(event, events.Run):
            runs[0].stop()

    stable = keep_good(bucket)
    runs: list[TrainingRun] = []
    gate = threading.Event()
    runs.append(start_run(on_event=stop))
    gate.set()
    found = finished(runs[0])
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.state, summary.steps, summary.checkpoint) == (RunState.STOPPED, 0, "")
    assert "Nothing has been trained yet: no checkpoint is written." in message_text(found)
    assert objects_below(bucket) == {stable: GOOD}


def objects_below(bucket: Bucket) -> dict[str, bytes]:
    store = bucket.store()
    return {found.key: store.get(found.key) for found in store.list_all(f"{bucket.profile.checkpoint_prefix}/")}


def test_a_run_stopped_while_torch_loads_ends_without_a_model(
    bucket: Bucket, start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_and_return() -> TrainingData:
        gate.wait(DEADLINE_S)
        runs[0].stop()
        return bucket.data

    monkeypatch.setattr("ossconsole.training.session.train", None)
    stable = keep_good(bucket)
    gate = threading.Event()
    runs: list[TrainingRun] = []
    monkeypatch.setattr("ossconsole.training.data.training_data", lambda *_, **__: stop_and_return())
    runs.append(start_run())
    gate.set()
    found = finished(runs[0])
    assert [type(event) for event in found] == [events.Run, events.InfoEvent, events.State, events.Summary]
    assert objects_below(bucket) == {stable: GOOD}


def test_a_run_stopped_while_it_loads_is_abandoned(
    bucket: Bucket, start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = threading.Event()
    monkeypatch.setattr(
        "ossconsole.training.data.training_data", lambda *_, **__: loaded.wait(DEADLINE_S) and bucket.data
    )
    run = start_run()
    run.stop()
    run.wait_for_stop()
    try:
        assert run.alive
        assert run.summary is not None
        assert (run.summary.state, run.summary.steps) == (RunState.STOPPED, 0)
    finally:
        loaded.set()
    found = finished(run)
    assert [type(event) for event in found] == [events.Run, events.InfoEvent, events.State, events.Summary]


@pytest.mark.slow
def test_a_checkpoint_requested_before_the_first_step_is_not_written(bucket: Bucket, start_run: StartRun) -> None:
    asked = threading.Event()

    def watch(event: events.Event) -> None:
        if isinstance(event, events.InfoEvent) and "no checkpoint is written" in event.message:
            asked.set()

    stable = keep_good(bucket)
    profile = msgspec.structs.replace(bucket.profile, accelerated_endpoint="http://0.0.2:9")
    run = start_run(profile, endpoint=EndpointKind.ACCELERATED, fall_back=False, interactive=True, on_event=watch)
    run.checkpoint()
    assert asked.wait(DEADLINE_S)
    run.stop()
    finished(run)
    assert objects_below(bucket) == {stable: GOOD}


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_step_rescues_nothing(bucket: Bucket, start_run: StartRun) -> None:
    stable = keep_good(bucket)
    profile = msgspec.structs.replace(bucket.profile, accelerated_endpoint="http://0.0.2:9")
    run = start_run(profile, endpoint=EndpointKind.ACCELERATED, fall_back=False)
    assert run.wait(DEADLINE_S)
    assert run.state is RunState.FAILED
    assert objects_below(bucket) == {stable: GOOD}


@pytest.mark.slow
def test_a_checkpoint_beyond_the_end_of_a_run_is_a_warning(bucket: Bucket) -> None:
    """Else the run is finished in a second, and nothing says why."""
    told: list[events.Event] = []
    context = RunContext("r", bucket.profile, bucket.credentials, TrainSettings(learning_rate=0.1), told.append)
    unused: Any = None
    trainer: Any = SimpleNamespace(peak_lr=0.1)
    parts = TrainingParts(unused, unused, unused, unused, trainer, EpochState(()))
    parts.epochs.epoch, context.step = 5, 159
    parts.report_resumed(context, 160)
    assert told == []
    context.step = 160
    parts.report_resumed(context, 32)
    (warning,) = only(told, events.WarningEvent)
    assert "step 160 of epoch 5, and this run ends at step 32: nothing is left to train" in warning.message
    assert "--epochs" in warning.remedy


@pytest.mark.parametrize("named", ["best", "latest", "nowhere.pt"])
def test_a_checkpoint_that_does_not_exist_is_named_with_the_way_to_find_one(bucket: Bucket, named: str) -> None:
    with pytest.raises(StorageError) as refused:
        resumed_fields(bucket.store(), named, "resnet18")
    prefix = bucket.profile.checkpoint_prefix
    name = {"best": f"{prefix}/resnet18-best.pt", "latest": f"{prefix}/resnet18.pt"}.get(named, named)
    assert refused.value.message == f"oss://{bucket.profile.bucket}/{name} does not exist."
    assert f"`ossconsole ls {prefix}/` lists the checkpoints" in refused.value.remedy
    assert refused.value.status == 404


def test_a_run_resumed_and_stopped_immediately_does_not_rewrite_the_checkpoint(
    bucket: Bucket, start_run: StartRun
) -> None:
    def stop(event: events.Event) -> None:
        if isinstance(event, events.State) and event.state is RunState.RUNNING:
            gate.wait(DEADLINE_S)
            runs[0].stop()

    finished(start_run(epochs=2, max_steps=4, checkpoint_every=2))
    before = objects_below(bucket)
    gate = threading.Event()
    runs: list[TrainingRun] = [start_run(epochs=2, max_steps=8, resume="latest", on_event=stop)]
    gate.set()
    found = finished(runs[0])
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.steps, steps(found)) == (4, [])
    assert "Nothing was trained since step 4" in message_text(found)
    assert objects_below(bucket) == before


def test_a_checkpoint_that_cannot_be_made_does_not_end_the_run(
    bucket: Bucket, start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_snapshot: Snapshot) -> bytes:
        monkeypatch.undo()
        raise MemoryError("no room for 90 MB")

    monkeypatch.setattr(Snapshot, "pack", fail)
    found = finished(start_run(epochs=2))
    assert "The checkpoint of step 6 was not written: MemoryError: no room for 90 MB." in message_text(found)
    (saved,) = only(found, events.Checkpoint)
    assert isinstance(saved, events.Checkpoint)
    assert saved.step == 12


class Writes(CheckpointStore):
    """Notes which checkpoints are the best so far, and their bytes; the second write fails."""

    def __init__(self) -> None:
        self.best: list[bool] = []
        self.data: list[memoryview] = []

    def save(
        self, data: bytes | memoryview, progress: RunProgress, *, best: bool = False, **_: object
    ) -> events.Checkpoint:
        assert isinstance(data, memoryview)
        self.data.append(data)
        self.best.append(best)
        if len(self.best) == 2:
            raise ConsoleError("There is no space.")
        key = "best" if best else ""
        return events.Checkpoint(
            time=0, key="k", bytes=1, seconds=1, stable_key="s", epoch=1, step=progress.step, best_key=key
        )

    def close(self) -> None:
        pass


def test_the_best_checkpoint_is_the_best_of_those_that_were_written(bucket: Bucket) -> None:
    context = RunContext("run", bucket.profile, bucket.credentials, TrainSettings(), lambda _: None)
    writes = Writes()
    saver = CheckpointSaver(context, writes, begun_at=RunProgress(1, 0, [], {"best_top1": 0.25}))
    for step, top1 in enumerate((0.5, 0.75, 0.625, None, 0.6), 1):
        assert saver.ready()
        progress = RunProgress(step, step, [], {"top1": top1})
        saver.save(Snapshot({}, progress, {}, lambda: None), validated=True)
    assert saver.ready()
    saver.save(Snapshot({}, RunProgress(6, 6, [], {"top1": 0.99}), {}, lambda: None), validated=False)
    saver.close()
    assert writes.best == [True, True, True, False, False, False]
    for data in writes.data:
        with pytest.raises(ValueError, match="released"):
            data.tobytes()


def test_a_failed_run_frees_its_tensors(start_run: StartRun, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[weakref.ref[torch.Tensor]] = []

    def fail(_loss: torch.nn.Module, outs: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        outputs.append(weakref.ref(outs))
        raise RuntimeError("a device assert")

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", fail)
    run = start_run(interactive=True)
    assert run.wait(DEADLINE_S)
    assert run.error is not None
    assert outputs[0]() is None


def figures(found: list[events.Event]) -> list[tuple[int, float | None, float | None, float | None]]:
    """What each epoch came to."""
    epochs = [event for event in found if isinstance(event, events.Epoch)]
    return [(event.epoch, event.train_loss, event.val_loss, event.top5) for event in epochs]


def test_pause_resume_checkpoint_and_stop_are_obeyed(start_run: StartRun) -> None:
    states: dict[RunState, threading.Event] = {state: threading.Event() for state in RunState}
    saved: queue.SimpleQueue[int] = queue.SimpleQueue()
    first_step = threading.Event()

    def watch(event: events.Event) -> None:
        if isinstance(event, events.State):
            states[event.state].set()
        elif isinstance(event, events.Checkpoint):
            saved.put(event.step)
        elif isinstance(event, events.Step):
            first_step.set()

    run = start_run(epochs=500, on_event=watch, keep_checkpoints=1)
    assert first_step.wait(DEADLINE_S)
    run.pause()
    assert states[RunState.PAUSED].wait(DEADLINE_S)
    at = run.step
    run.set_lr(0.5)
    run.checkpoint()
    while saved.get(timeout=DEADLINE_S) != at:
        pass
    assert (run.state, run.step) == (RunState.PAUSED, at)
    run.resume()
    run.stop()
    found = finished(run)
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert summary.state is RunState.STOPPED
    assert summary.epochs == len(only(found, events.Epoch)), "only completed ones count"
    assert summary.checkpoint
    assert run.state is RunState.STOPPED
    assert [event.peak for event in only(found, events.LearningRate)] == [0.5]
    resumed = finished(start_run(epochs=500, resume="latest", max_steps=summary.steps + 1))
    assert [event.peak for event in only(resumed, events.LearningRate)] == [0.5], "that of the checkpoint"


def test_a_failing_endpoint_is_left_for_the_other_one_with_the_reason(bucket: Bucket, start_run: StartRun) -> None:
    profile = msgspec.structs.replace(bucket.profile, accelerated_endpoint="http://0.0.2:9")
    found = finished(start_run(profile, endpoint=EndpointKind.ACCELERATED))
    warnings = [event for event in found if isinstance(event, events.WarningEvent)]
    assert any("0.0.2:9" in event.message and "refused" in event.message for event in warnings)
    switch = only(found, events.Switch)[0]
    assert isinstance(switch, events.Switch)
    assert switch.endpoint is EndpointKind.STANDARD
    assert sum(step.samples for step in steps(found)) == TRAIN_SAMPLES


@pytest.mark.slow
def test_a_failing_endpoint_ends_a_run_that_may_not_fall_back(bucket: Bucket, start_run: StartRun) -> None:
    profile = msgspec.structs.replace(bucket.profile, accelerated_endpoint="http://0.0.2:9")
    run = start_run(profile, endpoint=EndpointKind.ACCELERATED, fall_back=False)
    assert run.wait(DEADLINE_S)
    assert run.state is RunState.FAILED
    assert run.error is not None
    assert "refused" in run.error.message


@pytest.mark.slow
def test_a_failing_endpoint_pauses_a_run_that_somebody_watches(bucket: Bucket, start_run: StartRun) -> None:
    paused = threading.Event()

    def watch(event: events.Event) -> None:
        if isinstance(event, events.State) and event.state is RunState.PAUSED:
            paused.set()

    profile = msgspec.structs.replace(bucket.profile, accelerated_endpoint="http://0.0.2:9")
    run = start_run(profile, endpoint=EndpointKind.ACCELERATED, fall_back=False, interactive=True, on_event=watch)
    assert paused.wait(DEADLINE_S)
    run.switch(EndpointKind.STANDARD)
    run.resume()
    found = finished(run)
    assert sum(step.samples for step in steps(found)) == TRAIN_SAMPLES


def test_samples_that_are_missing_are_counted_and_left_out(bucket: Bucket, start_run: StartRun) -> None:
    bucket.store().delete(object_key(bucket.profile.dataset_prefix, "train/blue/000.u8"))
    found = finished(start_run())
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.skipped_samples, summary.samples) == (1, TRAIN_SAMPLES - 1)
    assert any("train/blue/000.u8" in event.message for event in found if isinstance(event, events.WarningEvent))


@pytest.mark.slow
def test_a_batch_that_cannot_be_used_is_skipped_and_a_whole_dataset_is_not(bucket: Bucket, start_run: StartRun) -> None:
    """Such as the single sample of an epoch's last batch."""
    settings = TrainSettings(batch_size=TRAIN_SAMPLES - 1, epochs=1)
    planned = Plan(settings, TRAIN_SAMPLES, VAL_SAMPLES).requests()
    last = next(each.indices for each in planned if each.split is Split.TRAIN and each.last)
    keys = [object_key(bucket.profile.dataset_prefix, sample.key) for sample in bucket.manifest.splits["train"]]
    store = bucket.store()
    store.delete(keys[last.item()])
    found = finished(start_run(batch_size=TRAIN_SAMPLES - 1, epochs=1))
    summary = found[-1]
    assert isinstance(summary, events.Summary)
    assert (summary.steps, summary.samples, summary.skipped_samples) == (2, TRAIN_SAMPLES - 1, 1)
    assert [event.step for event in steps(found)] == [1]
    assert only(found, events.Checkpoint)[-1].step == 2
    for key in keys:
        store.delete(key)
    run = start_run(batch_size=4)
    assert run.wait(DEADLINE_S)
    assert run.error is not None
    assert "16 samples in a row cannot be used. The last one is " in run.error.message
    assert not only(run.drain(), events.Checkpoint), "nothing was trained"


def test_a_loss_that_is_not_finite_ends_the_run_with_the_cause(
    start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(self: torch.nn.Module, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return outputs.sum() * torch.tensor(float("nan"))

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", diverged)
    run = start_run()
    assert run.wait(DEADLINE_S)
    assert run.error is not None
    assert "diverged" in run.error.message
    assert "--learning-rate" in run.error.remedy


def test_a_failed_checkpoint_keeps_the_stable_one_and_the_run_continues(bucket: Bucket, start_run: StartRun) -> None:
    profile = msgspec.structs.replace(bucket.profile, checkpoint_prefix="x" * 1100)  # longer than OSS allows a key
    found = finished(start_run(profile))
    assert not only(found, events.Checkpoint)
    assert any("InvalidObjectName" in event.message for event in found if isinstance(event, events.WarningEvent))
    assert isinstance(found[-1], events.Summary)


def test_an_empty_prefix_is_reported_with_a_remedy(bucket: Bucket, start_run: StartRun) -> None:
    run = start_run(msgspec.structs.replace(bucket.profile, dataset_prefix="nothing/here"))
    assert run.wait(DEADLINE_S)
    assert run.error is not None
    assert "nothing/here/ is empty" in run.error.message
    assert "ossconsole upload" in run.error.remedy
    assert [type(event) for event in run.drain()] == [events.Run, events.ErrorEvent, events.State]


def test_a_checkpoint_of_another_dataset_is_refused(bucket: Bucket, start_run: StartRun) -> None:
    run = start_run()
    key = next(event.key for event in finished(run) if isinstance(event, events.Checkpoint))
    uri = f"oss://{bucket.profile.bucket}/{key}"
    assert unpack(fetch_uri(bucket.store(), uri), uri)["seed"] == 0
    other = start_run(resume=uri, batch_size=8)
    assert other.wait(DEADLINE_S)
    assert other.error is not None
    assert "a batch size (of all processes) of 16; this run has 8" in other.error.message


@pytest.mark.slow
def test_another_model_has_checkpoints_of_its_own_and_its_figures_are_recorded(
    bucket: Bucket, start_run: StartRun
) -> None:
    settings: dict[str, Any] = {"model": "mobilenet_v3_small", "weights": "none", "ema_decay": 0.5, "clip_norm": 1.0}
    found = finished(start_run(**settings, epochs=3, profile_steps=2))
    begun = only(found, events.Run)[0].settings
    assert (begun["model"], begun["batch_size"], begun["learning_rate"]) == ("mobilenet_v3_small", 16, 0.1 * 16 / 256)
    norms = [step.grad_norm for step in steps(found)]
    assert all(norm is not None and norm > 0 for norm in norms)
    epoch = next(event for event in found if isinstance(event, events.Epoch))
    assert set(epoch.class_top1) == set(CLASSES)
    assert epoch.top1 == pytest.approx(sum(epoch.class_top1.values()) / 3, abs=1e-3)  # as many samples of each class
    (profiled,) = (event for event in only(found, events.InfoEvent) if event.message.startswith("Profiled 2 steps: "))
    (trace,) = traces_dir().iterdir()
    assert str(trace) in profiled.message
    with gzip.open(trace) as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    assert {"ProfilerStep#1", "ProfilerStep#2"} <= names
    saved = only(found, events.Checkpoint)[-1]
    assert saved.stable_key.endswith("/mobilenet_v3_small.pt")
    state = unpack(bucket.store().get(saved.stable_key), "stable")
    assert (state["model_name"], state["freeze"]) == ("mobilenet_v3_small", "none")
    plain = torchvision.models.get_model(state["model_name"], num_classes=len(state["classes"]))
    plain.load_state_dict(state["model"])
    # The averaged weights, to which its top-1 belongs, are those of a new run.
    frozen = {**settings, "weights": f"oss://{bucket.profile.bucket}/{saved.stable_key}", "freeze": "backbone"}
    head_only = only(finished(start_run(**frozen)), events.Checkpoint)[-1].key
    kept = unpack(bucket.store().get(head_only), head_only)["model"]
    for name, value in state["model"].items():
        assert torch.equal(kept[name], value) == (not name.startswith("classifier.3")), name
    for other, problem in (
        ({"model": "resnet18"}, "the model mobilenet_v3_small; this run has resnet18"),
        ({"freeze": "backbone"}, "--freeze none; this run has backbone"),
    ):
        refused = start_run(**{**settings, **other}, resume=saved.key)
        assert refused.wait(DEADLINE_S)
        assert refused.error is not None
        assert problem in refused.error.message


def test_a_user_can_profile_a_run(start_run: StartRun) -> None:
    def ask(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == 2:
            run.profile()

    run = start_run(epochs=3, on_event=ask)
    messages = [event.message for event in only(finished(run), events.InfoEvent)]
    assert any(message.startswith("Profiled 10 steps: ") for message in messages)


@pytest.mark.slow
def test_a_profile_that_the_end_of_the_run_cuts_is_reported_before_the_summary(start_run: StartRun) -> None:
    found = finished(start_run(profile_steps=3, epochs=5, max_steps=11))
    assert [event.message for event in only(found, events.WarningEvent)] == [
        "No step was profiled: the run ended before."
    ]
    assert isinstance(found[-1], events.Summary)


def test_a_run_that_is_too_short_for_its_profile_says_so() -> None:
    warnings: list[tuple[str, str]] = []
    profiler = StepProfiler("run", planned=3, cuda=False, report=print, warn=lambda *text: warnings.append(text))
    for number in range(1, SETTLED_STEPS):
        assert not profiler.step(number)
    profiler.close()
    profiler.close()
    assert warnings == [("No step was profiled: the run ended before.", "--profile-steps begins after 10 steps.")]


@pytest.mark.parametrize("interactive", [True, False], ids=["console", "headless"])
def test_a_step_on_the_cpu_has_lower_priority_than_a_screen(start_run: StartRun, interactive: bool) -> None:
    priorities = []

    def note(event: events.Event) -> None:
        if isinstance(event, events.Step):
            priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    finished(start_run(interactive=interactive, on_event=note, max_steps=2))
    screen = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert [priority > screen for priority in priorities] == [interactive] * 2


def test_unused_objects_of_a_dataset_are_reported(bucket: Bucket, start_run: StartRun) -> None:
    profile = msgspec.structs.replace(bucket.profile, dataset_prefix=f"{bucket.profile.dataset_prefix}/flat")
    store = bucket.store()
    for name in ("train/ants/0", "train/bees/1", "val/V0", "val/V1"):
        store.put(object_key(profile.dataset_prefix, f"{name}.pt"), bytes(3 * 4 * SIDE * SIDE))
    found = finished(start_run(profile, batch_size=2))
    assert isinstance(found[0], events.Run)  # a record begins with its run
    warnings = [event for event in found if isinstance(event, events.WarningEvent)]
    assert "Not used: 2 objects (not in a class folder, " in warnings[0].message
    assert "val/V0.pt, val/V1.pt" in warnings[0].message
    assert f"ILSVRC2012_val_labels.json --plain --to {profile.dataset_prefix}" in warnings[0].remedy
    assert any("no validation samples" in event.message for event in found if isinstance(event, events.InfoEvent))


def test_a_listing_is_reported_and_a_stop_ends_it(
    bucket: Bucket, start_run: StartRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = msgspec.structs.replace(bucket.profile, dataset_prefix=f"{bucket.profile.dataset_prefix}/long")
    bucket.store().put(object_key(profile.dataset_prefix, "train/ants/1.jpg"), b"an image")
    counts: list[int] = []

    def endless(_store: object, _prefix: str, on_progress: Callable[[int], None], _labels: object) -> None:
        while True:
            counts.append(1000 * len(counts))
            on_progress(counts[-1])

    def stop(event: events.Event) -> None:
        if isinstance(event, events.InfoEvent) and "Listing" in event.message and counts[-1] >= 2000:
            runs[0].stop()

    monkeypatch.setattr("ossconsole.training.data.manifest_from_listing", endless)
    monkeypatch.setattr("ossconsole.training.rank._LISTING_EVERY_S", 0.0)
    runs: list[TrainingRun] = []
    stable = keep_good(bucket)
    gate = threading.Event()
    exists = ObjectStore.exists
    monkeypatch.setattr(ObjectStore, "exists", lambda *args: gate.wait(DEADLINE_S) and exists(*args))
    runs.append(start_run(profile, on_event=stop))
    gate.set()
    found = finished(runs[0])
    messages = [event.message for event in found if isinstance(event, events.InfoEvent)]
    where = f"oss://{profile.bucket}/{profile.dataset_prefix}/"
    assert messages[:3] == [f"Listing {where}: {count} objects so far." for count in ("0", "1,000", "2,000")]
    assert "Nothing has been trained yet" in messages[3]
    assert [type(event) for event in found[-2:]] == [events.State, events.Summary]
    assert isinstance(found[0], events.Run)
    assert found[-1].state is RunState.STOPPED  # type: ignore[union-attr]
    assert objects_below(bucket)[stable] == GOOD


@contextlib.contextmanager
def throttled(
    bucket: Bucket, operation: str, *, skip: int = 0
) -> Iterator[tuple[Callable[[events.Event], None], threading.Event]]:
    """OSS throttles the operation after `skip` requests: a listener of the run, and what it sets when the run waits."""
    waiting = threading.Event()

    def listen(event: events.Event) -> None:
        if isinstance(event, events.InfoEvent) and "OSS is throttling" in event.message:
            waiting.set()

    action = Error(code="QpsLimitExceeded", status=429, qos_delay_ms=170_000)
    control = SandboxControl(bucket.sandbox.info)
    control.set_faults(FaultPlan(rules=[Rule(action=action, operation=operation, skip=skip)]))
    try:
        yield listen, waiting
    finally:
        control.clear_faults()


def test_a_throttled_listing_is_reported_once(bucket: Bucket, start_run: StartRun) -> None:
    """Its 16 threads wait at the same time."""
    profile = msgspec.structs.replace(bucket.profile, dataset_prefix=f"{bucket.profile.dataset_prefix}/throttled")
    for name in range(20):
        bucket.store().put(object_key(profile.dataset_prefix, f"train/{name}/1.jpg"), b"an image")
    with throttled(bucket, "ListObjects", skip=3) as (listen, waiting):
        run = start_run(profile, on_event=listen)
        assert waiting.wait(DEADLINE_S)
        run.stop()
        found = finished(run)
    messages = [event.message for event in found if isinstance(event, events.InfoEvent)]
    assert sum("OSS is throttling" in message for message in messages) == 1


def test_a_throttled_manifest_is_waited_for_and_a_stop_ends_the_wait(bucket: Bucket, start_run: StartRun) -> None:
    with throttled(bucket, "HeadObject") as (listen, waiting):
        run = start_run(on_event=listen)
        assert waiting.wait(DEADLINE_S)
        run.stop()
        assert run.wait(DEADLINE_S)
    assert isinstance(next(iter(read_events(run.record_path))), events.Run)
