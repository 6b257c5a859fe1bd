"""Runs of two processes on this machine, by gloo: what they read, what they decide on, and when one is lost."""

from __future__ import annotations

import collections
import os
import signal
import threading

import msgspec
import psutil
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry import events
from ossconsole.telemetry.events import RunState
from ossconsole.training.distributed.ranks import BATCH, END, FAILED, RankInfo, RankStatus, decide, torchrun_rank_info
from tests.training.conftest import DEADLINE_S, TRAIN_SAMPLES, VAL_SAMPLES, Bucket, StartRun, finished, steps

STATUS = RankStatus(BATCH, 0, 0, 0, 0, 0, 0, 8, 100, 0.5, 1.0, 0.75, 0, 0)


def test_each_sample_is_read_once_and_one_process_resumes_a_run_of_two(bucket: Bucket, start_run: StartRun) -> None:
    # 96 samples in batches of 2 x 10: the last one is short, and its ranks have 8 each.
    settings = {"learning_rate": 0.02, "switch_every": 2, "keep_checkpoints": 0}
    found = finished(start_run(processes=2, batch_size=10, **settings))
    done = steps(found)
    assert [step.samples for step in done] == [20, 20, 20, 20, 16]
    assert {step.endpoint for step in done} == set(EndpointKind)
    epoch = next(event for event in found if isinstance(event, events.Epoch))
    assert (epoch.samples, epoch.val_samples) == (TRAIN_SAMPLES, VAL_SAMPLES)
    assert isinstance(found[0], events.Run)
    assert found[0].world == 2
    log = [msgspec.json.decode(line) for line in bucket.sandbox.log_path.read_text().splitlines()]
    prefix = f"{bucket.profile.dataset_prefix}/train/"
    reads = collections.Counter(line["key"] for line in log if line["operation"] == "GetObject")
    assert [count for key, count in reads.items() if key.startswith(prefix)] == [1] * TRAIN_SAMPLES

    saved = next(event for event in reversed(found) if isinstance(event, events.Checkpoint))
    assert saved.best_key.endswith("resnet18-best.pt")
    uri = f"oss://{bucket.profile.bucket}/{saved.key}"
    alone = steps(finished(start_run(batch_size=20, epochs=2, resume=uri, **settings)))
    assert [step.step for step in alone] == list(range(6, 11))


@pytest.mark.slow
def test_two_processes_resume_exactly(bucket: Bucket, start_run: StartRun) -> None:
    # Batch norm of each process has seen other pictures; step 3 lies between two updates.
    settings = {"processes": 2, "batch_size": 10, "epochs": 2, "accumulate": 2, "ema_decay": 0.9, "image_size": 24}
    saving = {"checkpoint_every": 3, "keep_checkpoints": 0}
    first = finished(start_run(**settings, **saving))
    saved = next(event for event in first if isinstance(event, events.Checkpoint) and event.step == 3)
    second = finished(start_run(**settings, **saving, resume=f"oss://{bucket.profile.bucket}/{saved.key}"))
    assert [step.loss for step in steps(second)] == [step.loss for step in steps(first)[3:]]
    epochs = [[(e.train_loss, e.val_loss) for e in run if isinstance(e, events.Epoch)] for run in (first, second)]
    assert epochs[0] == epochs[1]


def test_ranks_pause_and_change_together_and_a_dead_rank_is_reported(start_run: StartRun) -> None:
    seen: dict[object, threading.Event] = collections.defaultdict(threading.Event)

    def watch(event: events.Event) -> None:
        seen[event.state if isinstance(event, events.State) else type(event)].set()
        if isinstance(event, events.Step):
            seen[event.lr].set()

    run = start_run(processes=2, epochs=1000, warmup_steps=0, on_event=watch)
    assert seen[events.Step].wait(DEADLINE_S)
    run.pause()
    assert seen[RunState.PAUSED].wait(DEADLINE_S)
    run.set_lr(1e-9)
    run.checkpoint()
    run.resume()
    assert seen[events.Checkpoint].wait(DEADLINE_S)
    others = [
        child
        for child in psutil.Process().children()
        if any("training.rank_process" in part for part in child.cmdline())
    ]
    assert len(others) == 2  # rank 0 too: CUDA or NCCL must never take this process along
    os.kill(max(others, key=lambda child: child.pid).pid, signal.SIGKILL)
    assert run.wait(DEADLINE_S)
    assert steps(run.drain())[-1].lr <= 1e-9
    assert run.error is not None
    assert "was killed by SIGKILL" in run.error.message
    assert "Resume with --resume checkpoints/" in run.error.remedy
    assert run.state is RunState.FAILED


def test_all_ranks_follow_the_requests_of_one() -> None:
    asked = STATUS._replace(pause=1, checkpoint=1, lr=0.5)
    decision = decide([asked, STATUS._replace(samples=4, wait_s=2.0, decode_s=0.8)], EndpointKind.STANDARD)
    assert (decision.pause, decision.checkpoint, decision.lr, decision.stop, decision.over) == (
        True,
        True,
        0.5,
        False,
        False,
    )
    assert (decision.samples, decision.bytes, decision.wait_s, decision.decode_s) == (12, 200, 2.0, 0.8)
    assert decide([STATUS, STATUS._replace(stop=1)], EndpointKind.STANDARD).stop
    assert decide([STATUS, STATUS._replace(ready=FAILED)], EndpointKind.STANDARD).failed
    assert decide([STATUS, STATUS._replace(ready=END)], EndpointKind.STANDARD).over


def test_a_rank_that_fails_over_takes_the_others_along() -> None:
    other = tuple(EndpointKind).index(EndpointKind.ACCELERATED)
    decision = decide([STATUS, STATUS._replace(endpoint=other)], EndpointKind.STANDARD)
    assert (decision.endpoint, decision.failed_over_rank) == (EndpointKind.ACCELERATED, 1)
    assert decide([STATUS, STATUS], EndpointKind.STANDARD).failed_over_rank is None


def test_torchrun_says_where_a_process_stands() -> None:
    assert torchrun_rank_info({}) == RankInfo()
    found = torchrun_rank_info({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    assert (found.rank, found.world, found.local_rank, found.local_world, found.is_rank_zero) == (3, 4, 1, 2, False)
    with pytest.raises(Exception, match="LOCAL_RANK"):
        torchrun_rank_info({"RANK": "3", "WORLD_SIZE": "4"})
