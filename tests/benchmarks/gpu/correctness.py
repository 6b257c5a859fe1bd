"""Parts of the GPU script that check results: each gives its findings, and `ok` False where one is wrong."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
from collections import deque
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._C._distributed_c10d import HashStore
from torchvision.models import resnet18

from ossconsole.dataset.formats import SampleFormat
from ossconsole.telemetry import events
from ossconsole.training.checkpoints.checkpoint import fetch_uri
from ossconsole.training.compute.device import DeviceContext
from ossconsole.training.compute.selection import gpu_uuid, select_device
from ossconsole.training.compute.trainer import EpochMeter, Trainer
from ossconsole.training.distributed.process_group import ProcessGroup, end_group
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.loading.loader import lock_pages, unlock_pages
from ossconsole.training.loading.shared_memory import SharedBuffer
from ossconsole.training.settings import TrainSettings
from tests.benchmarks.gpu.setup import Part, Setup, held_by_others, run_to_end, used_memory

_CLASSES = 10


def gpu_tests(setup: Setup) -> Part:
    """The tests marked `gpu`."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/training/test_gpu.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=setup.limit_s, check=False)
    lines = done.stdout.strip().splitlines()
    figures = {"pytest": lines[-1] if lines else ""}
    if done.returncode != 0:
        figures["output"] = "\n".join(lines[-40:])
    return Part(ok=done.returncode == 0, figures=figures)


def fp16_overflow(setup: Setup) -> Part:
    """The first fp16 steps overflow and are skipped: the momentum must not be what the memory held before."""
    settings = TrainSettings(batch_size=setup.batch, precision="fp16" if setup.cuda else "fp32", warmup_steps=0)
    trainer, compute = _trainer(settings)
    if setup.cuda:
        compute.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    junk = [torch.full((1 << 20,), 1e30, device=compute.device) for _ in range(64)]
    del junk
    images, labels = _pictures(compute, setup.batch, setup.side)
    losses = [float(trainer.step(images, labels, EpochMeter(), samples=setup.batch)) for _ in range(setup.many(40))]
    momenta = [float(state["momentum_buffer"].abs().max()) for state in trainer.optimizer.state.values()]
    largest = max(momenta)
    return Part(
        ok=bool(np.isfinite(losses[-1]) and largest < 1e4),
        figures={"largest momentum": largest, "first loss": losses[0], "last loss": losses[-1]},
    )


def slot_reuse(setup: Setup) -> Part:
    """A slot of the batch buffer is overwritten as soon as it is free: no batch may hold what came after it."""
    settings = TrainSettings(batch_size=setup.batch, image_size=setup.side, augment=False)
    compute = DeviceContext(settings, _rows(settings.image_size), device=select_device())
    slots = torch.zeros(4, setup.batch, 3 * setup.side**2, dtype=torch.uint8)
    if setup.cuda:
        slots = slots.pin_memory()
    free, used = deque(range(4)), deque[int]()
    sums: list[tuple[int, torch.Tensor]] = []
    for number in range(setup.many(500)):
        compute.free_slots()
        while len(used) >= 2:
            slot = used.popleft()
            slots[slot].fill_(255)
            free.append(slot)
        slot = free.popleft()
        value = number % 200
        slots[slot].fill_(value)
        used.append(slot)
        images = compute.images(slots[slot])
        sums.append((value, images[:, 0].mean()))
    compute.free_all_slots()
    mean, std = 0.485 * 255, 0.229 * 255
    wrong = sum(abs(float(found) - (value - mean) / std) > 1e-2 for value, found in sums)
    return Part(ok=wrong == 0, figures={"batches": len(sums), "wrong": wrong})


def snapshot(setup: Setup) -> Part:
    """A copy of the state taken between steps equals one taken with the device idle, and training resumes from it."""
    settings = TrainSettings(batch_size=setup.batch, ema_decay=0.9, warmup_steps=0)
    trainer, compute = _trainer(settings)
    images, labels = _pictures(compute, setup.batch, setup.side)
    for _ in range(5):
        trainer.step(images, labels, EpochMeter(), samples=setup.batch)
    copied, done = compute.host_copy(trainer.state()), compute.milestone()
    if setup.cuda:
        torch.cuda.synchronize()
    exact = _clone(trainer.state())
    later = [float(trainer.step(images, labels, EpochMeter(), samples=setup.batch)) for _ in range(3)]
    done()
    differing = sum(not torch.equal(a.cpu(), b.cpu()) for a, b in zip(_tensors(copied), _tensors(exact), strict=True))
    buffer = io.BytesIO()
    torch.save(copied, buffer)
    buffer.seek(0)
    again, _ = _trainer(settings)
    again.load(torch.load(buffer, weights_only=True, map_location="cpu"))
    resumed = [float(again.step(images, labels, EpochMeter(), samples=setup.batch)) for _ in range(3)]
    error = max(abs(a - b) / abs(a) for a, b in zip(later, resumed, strict=True))
    return Part(
        ok=differing == 0 and error < 0.02, figures={"tensors differing": differing, "resumed loss, error": error}
    )


def out_of_memory(setup: Setup) -> Part:
    """A batch too large for the device ends its run with words, and the next run in this process works."""
    if not setup.cuda:
        return _pretended_out_of_memory(setup)
    before = used_memory()
    common: dict[str, Any] = {
        "dataset": setup.dataset(SampleFormat.IMAGE_U8, 32, 4096),
        "workers": 1,
        "prefetch_mb": 10_000,
    }
    failed, _ = run_to_end(setup, **common, batch_size=2048, image_size=512, precision="fp32", max_steps=2)
    message = str(failed.error) if failed.error else "no error"
    after = used_memory()
    works, _ = run_to_end(setup, **common, batch_size=64, max_steps=2)
    with held_by_others(share=0.97):
        crowded, _ = run_to_end(setup, **common, batch_size=512, image_size=224, max_steps=2)
    words = str(crowded.error) if crowded.error else "no error"
    kept = after - before
    return Part(
        ok="memory" in message and works.error is None and "memory" in words and kept < 1 << 30,
        figures={
            "too large": message,
            "memory kept, MB": kept >> 20,
            "next run": str(works.error or "works"),
            "held by others": words,
        },
    )


def _pretended_out_of_memory(setup: Setup) -> Part:
    """The same on a CPU, which would swap: the copy of a batch raises torch's error."""
    dataset = setup.dataset(SampleFormat.IMAGE_U8, 32, 256)
    common: dict[str, Any] = {"dataset": dataset, "workers": 1, "batch_size": 8, "max_steps": 2}
    full = torch.OutOfMemoryError("CUDA out of memory")
    with mock.patch.object(DeviceContext, "images", side_effect=full):
        failed, _ = run_to_end(setup, **common)
    works, _ = run_to_end(setup, **common)
    message = str(failed.error or "no error")
    figures = {"too large": message, "next run": str(works.error or "works")}
    return Part(ok="memory" in message and works.error is None, figures=figures)


def gpu_selection(setup: Setup) -> Part:
    """The GPU that a run used, by the record: as `--gpu` names it, and in a rank that is a process of its own."""
    dataset = setup.dataset(SampleFormat.IMAGE_U8, 32, 256)
    uuid = gpu_uuid(0) if setup.cuda else ""
    figures, ok = {}, True
    cases: dict[str, dict[str, Any]] = {"auto": {}, "a process per GPU": {"processes": 0}, "CPU": {"device": "cpu"}}
    if setup.cuda:
        cases |= {"index": {"gpu": "0"}, "UUID": {"gpu": uuid}}
    for name, settings in cases.items():
        run, found = run_to_end(setup, dataset=dataset, workers=1, batch_size=8, max_steps=2, **settings)
        used = next((event for event in found if isinstance(event, events.Devices)), None)
        figures[name] = str(run.error) if used is None else ", ".join(used.gpus) or used.device
        on_gpu = setup.cuda and name != "CPU"
        ok = ok and run.error is None and used is not None and (uuid in used.gpus if on_gpu else used.gpus == ())
    return Part(ok=ok, figures=figures)


def group_end(setup: Setup) -> Part:
    """A process group of one rank ends with collectives pending, aborted and in order, before its buffer is unlocked.

    More ranks than one need a GPU each; what one shows is that the calls in this order neither hang nor fail.
    """
    device = torch.device("cuda", 0) if setup.cuda else torch.device("cpu")
    figures = {}
    for abort in (True, False):
        store = HashStore()
        torch.distributed.init_process_group("nccl" if setup.cuda else "gloo", store=store, rank=0, world_size=1)
        buffer = SharedBuffer(setup.many(64) << 20)
        rows = torch.frombuffer(buffer.memory, dtype=torch.uint8)
        if setup.cuda:
            lock_pages(rows)
        values = rows.to(device, non_blocking=True).float()
        for _ in range(20):
            torch.distributed.all_reduce(values)
        begun = time.perf_counter()
        end_group(device, abort=abort)
        if setup.cuda:
            unlock_pages(rows)
        figures["aborted, s" if abort else "in order, s"] = time.perf_counter() - begun
        buffer.close()
    return Part(ok=not torch.distributed.is_initialized(), figures=figures)


def learning(setup: Setup) -> Part:
    """A real run learns to tell ten colours apart; its checkpoint loads into plain torchvision."""
    side, figures, ok = (64, {}, True) if setup.cuda else (32, {}, True)
    dataset = setup.dataset(SampleFormat.IMAGE_U8, side, setup.many(2000), val_samples=setup.many(400))
    for precision in ("fp16", "bf16") if setup.cuda else ("fp32",):
        run, _ = run_to_end(
            setup,
            dataset=dataset,
            epochs=3,
            batch_size=min(64, setup.batch * 2),
            workers=setup.workers[0],
            precision=precision,
            learning_rate=0.05,
            augment=False,
        )
        summary = run.summary
        figures[f"{precision} top-1"] = summary.top1 if summary else str(run.error)
        # The small form has too few steps to learn anything.
        ok = ok and bool(summary and summary.checkpoint and (summary.top1 or 0.0) > (0.9 if setup.cuda else -1.0))
        if summary and summary.checkpoint:
            figures[f"{precision} checkpoint"] = _loads(setup, summary.checkpoint)
    return Part(ok=ok, figures=figures)


def _loads(setup: Setup, key: str) -> str:
    with contextlib.closing(setup.store()) as store:
        body = fetch_uri(store, f"oss://{setup.profile.bucket}/{key}")
    checkpoint = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    resnet18(num_classes=len(checkpoint["classes"])).load_state_dict(checkpoint["model"])
    return "loads into torchvision"


def _rows(side: int) -> SampleTransform:
    return SampleTransform(SampleFormat.IMAGE_U8, side or 224, side or 224, augment=False, seed=0)


def _trainer(settings: TrainSettings) -> tuple[Trainer, DeviceContext]:
    torch.manual_seed(0)
    compute = DeviceContext(settings, _rows(settings.image_size), device=select_device())
    model = resnet18(num_classes=_CLASSES)
    return Trainer(model, compute, settings, ProcessGroup(RankInfo(), compute.device), total_steps=1 << 40), compute


def _pictures(compute: DeviceContext, batch: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, side, side, generator=random).to(compute.device)
    labels = torch.randint(0, _CLASSES, (batch,), generator=random).to(compute.device)
    return images.contiguous(memory_format=torch.channels_last), labels


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = list(state.values()) if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for value in values for tensor in _tensors(value)]


def _clone(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: _clone(value) for key, value in state.items()}
    return [_clone(value) for value in state] if isinstance(state, list) else state
