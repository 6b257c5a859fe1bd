"""One event of each kind, and records made of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.compare import Comparison, Estimate
from ossconsole.telemetry.events import Event, RunState
from ossconsole.telemetry.ranks import RankFigures
from ossconsole.telemetry.runs import RunRecord
from ossconsole.telemetry.samples import GpuSample, WorkerUsage

START = 1_700_000_000.0


def run_event(run: str = "one", **changes: Any) -> events.Run:
    fields: dict[str, Any] = {"time": START, "run": run, "version": "0.1.0", "settings": {"batch_size": 8}}
    return events.Run(**(fields | changes))


def step_event(step: int, **changes: Any) -> events.Step:
    fields: dict[str, Any] = {
        "time": START + step,
        "step": step,
        "epoch": 1,
        "samples": 8,
        "loss": 2.0 / step,
        "lr": 0.1,
        "endpoint": EndpointKind.STANDARD,
        "data_wait_s": 0.3,
        "step_time_s": 0.4,
        "fetch_s": 0.2,
        "bytes": 4096,
        "samples_per_s": 20.0,
    }
    return events.Step(**(fields | changes))


def epoch_event(epoch: int, step: int) -> events.Epoch:
    return events.Epoch(
        time=START + step, epoch=epoch, train_loss=1.5, val_loss=1.25, top1=0.5, top5=0.9, seconds=3.0, step=step
    )


def checkpoint_event(step: int) -> events.Checkpoint:
    return events.Checkpoint(
        time=START + step, key=f"checkpoints/one-{step}.pt", bytes=9, seconds=1.0, stable_key="checkpoints/resnet18.pt"
    )


def summary_event(state: RunState = RunState.FINISHED) -> events.Summary:
    return events.Summary(
        time=START + 100,
        run="one",
        state=state,
        epochs=1,
        steps=3,
        samples=24,
        bytes=12288,
        seconds=3.0,
        samples_per_s=8.0,
        wait_fraction=0.75,
        endpoints={
            "standard": events.EndpointSummary(steps=3, samples=24, bytes=1, samples_per_s=8.0, wait_fraction=0.5)
        },
    )


_GPU = GpuSample(index=0, uuid="GPU-0", utilization=40.0, power=300.5, throttle=("power cap",))


def one_of_each() -> list[Event]:
    return [
        run_event(pid=os.getpid(), host=socket.gethostname()),
        events.State(time=START, state=RunState.RUNNING),
        events.AcceleratorSize(time=START, quota_gb=50, peak_bytes_per_s=3e8),
        events.Devices(
            time=START,
            device="cuda",
            gpus=("GPU-0",),
            ceiling=events.ModelCeiling(bench="t4", samples_per_s=32.0),
        ),
        step_event(1),
        events.Switch(time=START + 1, endpoint=EndpointKind.ACCELERATED, reason="asked", step=1),
        step_event(2, endpoint=EndpointKind.ACCELERATED, loss=None),
        events.LearningRate(time=START + 2, peak=0.05, step=2),
        events.InfoEvent(time=START + 2, message="computing on cuda"),
        events.WarningEvent(time=START + 2, message="retried", remedy="nothing to do"),
        events.ErrorEvent(time=START + 2, message="lost a reader"),
        events.Telemetry(time=START + 2, gpus=(_GPU,)),
        step_event(3),
        events.RankWork(
            time=START + 3, ranks=(RankFigures(rank=0, steps=3, wait_fraction=0.75, bytes_per_s=1e4, step_s=0.4),)
        ),
        events.LoaderWorkers(time=START + 3, workers=(WorkerUsage(pid=1, cpu=0.5),)),
        epoch_event(1, 3),
        events.Saving(time=START + 9, key="checkpoints/one-9.pt", bytes=9, written=4),
        checkpoint_event(3),
        events.Compared(time=START + 9, comparison=Comparison(pairs=6, estimate=Estimate(1.4, 1.3, 1.5, 6)).report()),
        summary_event(),
    ]


def write_record(path: Path, contents: list[Event]) -> Path:
    with RunRecord(path) as record:
        for event in contents:
            record.append(event)
    assert record.problem == ""
    return path
