"""Parts of the GPU script that measure rates: model alone, transform, copies, loader alone, the whole loop."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torchvision.models import resnet18

from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import object_key
from ossconsole.training.bench.limits import ConnectorReader, rate
from ossconsole.training.checkpoints.checkpoint import Snapshot
from ossconsole.training.checkpoints.store import RunProgress
from ossconsole.training.compute.device import DeviceContext
from ossconsole.training.compute.selection import select_device
from ossconsole.training.compute.trainer import EpochMeter, Trainer
from ossconsole.training.data import TrainingData
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.loading.loader import BatchLoader, lock_pages, unlock_pages
from ossconsole.training.loading.shared_memory import SharedBuffer
from ossconsole.training.plan import Plan
from ossconsole.training.settings import TrainSettings
from tests.benchmarks.gpu.server import MadeUpDataset
from tests.benchmarks.gpu.setup import Part, Setup, run_to_end, steady_steps

_CLASSES = 1000
U8, F32 = SampleFormat.IMAGE_U8, SampleFormat.TENSOR_F32


class SyntheticLoop:
    """The steps of a run on one batch in page-locked memory: copy, transform, forward, backward, SGD."""

    def __init__(self, fmt: SampleFormat, batch: int, side: int, **settings: Any) -> None:
        self.settings = TrainSettings(batch_size=batch, **settings)
        rows = SampleTransform(fmt, side, side, augment=True, seed=0)
        self.compute = DeviceContext(self.settings, rows, device=select_device())
        ranks = ProcessGroup(RankInfo(), self.compute.device)
        self.trainer = Trainer(resnet18(num_classes=_CLASSES), self.compute, self.settings, ranks, total_steps=1 << 40)
        self._batch, self._meter = batch, EpochMeter()
        values = torch.randint(0, 256, (batch, 3 * side * side), dtype=torch.uint8)
        data = values if fmt is U8 else ((values.float() - 128) / 64).view(torch.uint8)
        self._data = data.pin_memory() if self.compute.cuda else data
        self._labels = torch.randint(0, _CLASSES, (batch,))

    def step(self) -> None:
        self.compute.free_slots()
        images = self.compute.images(self._data, self.compute.input_dtype)
        self.trainer.step(images, self.compute.labels(self._labels), self._meter, samples=self._batch)

    def rate(self, seconds: float) -> dict[str, float]:
        """Samples/s, and the share of the time in which the host was ahead of the device, 0 to 1."""
        for _ in range(5):
            self.step()
        _synchronize()
        begun, steps, issued = time.perf_counter(), 0, 0.0
        while (now := time.perf_counter()) - begun < seconds:
            self.step()
            issued += time.perf_counter() - now
            steps += 1
        _synchronize()
        passed = time.perf_counter() - begun
        return {"samples/s": self._batch * steps / passed, "host ms/step": issued / steps * 1000}


def synthetic(setup: Setup) -> Part:
    """ResNet-18 on data that is there already, by precision and batch size: the ceiling of the whole loop."""
    figures = {}
    precisions = ("bf16", "fp16") if setup.cuda else ("fp32",)
    for precision, batch in itertools.product(precisions, setup.batches):
        found = SyntheticLoop(U8, batch, setup.side, precision=precision).rate(setup.seconds)
        figures[f"{precision} batch {batch}"] = found
    return Part(ok=True, figures=figures)


def host_time(setup: Setup) -> Part:
    """How long the host takes to queue one step on a device that is idle, against how long the device takes for it."""
    if not setup.cuda:
        return Part(ok=True, figures={"skipped": "needs a GPU"})
    figures = {}
    for batch in setup.batches[:2]:
        loop = SyntheticLoop(U8, batch, setup.side)
        for _ in range(5):
            loop.step()
        host, whole = [], []
        for _ in range(30):
            _synchronize()
            begun = time.perf_counter()
            loop.step()
            host.append(time.perf_counter() - begun)
            _synchronize()
            whole.append(time.perf_counter() - begun)
        figures[f"batch {batch}"] = {
            "queue ms": statistics.median(host) * 1000,
            "queue and compute ms": statistics.median(whole) * 1000,
        }
    return Part(ok=True, figures=figures)


def compiled(setup: Setup) -> Part:
    """The same with --compile."""
    figures = {}
    for batch in setup.batches[:2]:
        figures[f"batch {batch}"] = SyntheticLoop(U8, batch, setup.side, compile=True).rate(setup.seconds)
    return Part(ok=True, figures=figures)


def transform(setup: Setup) -> Part:
    """From rows of bytes to normalised images on the device, ms per batch."""
    figures = {}
    for batch in setup.batches[:2]:
        rows = SampleTransform(U8, setup.side, setup.side, augment=True, seed=0)
        compute = DeviceContext(TrainSettings(batch_size=batch), rows, device=select_device())
        data = torch.randint(0, 256, (batch, rows.row_bytes), dtype=torch.uint8)
        data = data.pin_memory() if compute.cuda else data

        def once(compute: DeviceContext = compute, data: torch.Tensor = data) -> None:
            compute.free_slots()
            compute.images(data, compute.input_dtype)

        figures[f"normalise, batch {batch}, ms"] = _ms(once, setup.many(50))
    return Part(ok=True, figures=figures)


def checkpoint_stall(setup: Setup) -> Part:
    """How long a copy of the state holds up the training thread, and what packing it does to the steps meanwhile."""
    loop = SyntheticLoop(U8, min(256, setup.batches[-1]), setup.side, ema_decay=0.99)
    figures: dict[str, Any] = {"step alone, ms": _ms(loop.step, setup.many(40))}
    with ThreadPoolExecutor(1) as thread:
        for number in range(3):
            begun = time.perf_counter()
            state = loop.compute.host_copy(loop.trainer.state())
            figures[f"copy {number + 1}, ms"] = (time.perf_counter() - begun) * 1000
            progress = RunProgress(epoch=1, step=number, train_sums=[0.0] * 4, metrics={})
            packing = thread.submit(Snapshot(state, progress, {}, loop.compute.milestone()).pack)
            longest = 0.0
            while not packing.done():
                begun = time.perf_counter()
                loop.step()
                longest = max(longest, time.perf_counter() - begun)
            figures[f"longest step while packing {number + 1}, ms"] = longest * 1000
            figures["bytes"] = len(packing.result())
    return Part(ok=True, figures=figures)


def copies(setup: Setup) -> Part:
    """GB/s from the shared batch buffer to the device, with its pages locked, and how long locking takes."""
    if not setup.cuda:
        return Part(ok=True, figures={"skipped": "needs a GPU"})
    figures: dict[str, float] = {}
    for size_mb in (512, 2048):
        buffer = SharedBuffer(size_mb << 20)
        data = torch.frombuffer(buffer.memory, dtype=torch.uint8)
        begun = time.perf_counter()
        lock_pages(data)
        figures[f"lock {size_mb} MB, s"] = time.perf_counter() - begun
        part = data[: 128 << 20]
        ms = _ms(lambda part=part: part.to("cuda", non_blocking=True), 20)  # type: ignore[misc]
        figures[f"copy from {size_mb} MB, GB/s"] = part.nbytes / ms / 1e6
        unlock_pages(data)
        buffer.close()
    return Part(ok=True, figures=figures)


def loader_alone(setup: Setup) -> Part:
    """Batches in the shared buffer and nothing else, beside the connector with nothing done to what it delivers."""
    figures: dict[str, Any] = {}
    for fmt in (U8, F32):
        dataset = setup.dataset(fmt, setup.side, setup.many(20_000))
        with setup.serve(dataset) as profile:
            connector = setup.connector(profile)
            for workers in setup.workers:
                batch = min(256, setup.batches[-1])
                found = _loader_rate(setup, dataset, connector, batch, workers)
                figures[f"{fmt}, {workers} workers"] = found
            objects = [
                (object_key(dataset.prefix, sample.key), dataset.manifest.sample_bytes(sample))
                for sample in dataset.manifest.splits["train"]
            ]
            opener = ConnectorReader(connector, EndpointKind.ACCELERATED, objects, 64, setup.workers[-1])
            alone = rate(opener, processes=setup.workers[-1], seconds=setup.seconds, native_log=connector.native_log)
            figures[f"{fmt}, connector alone, {setup.workers[-1]} processes"] = {"samples/s": alone}
    return Part(ok=True, figures=figures)


def _loader_rate(setup: Setup, dataset: MadeUpDataset, connector: Any, batch: int, workers: int) -> dict[str, float]:
    settings = TrainSettings(batch_size=batch, workers=workers, epochs=10**6, endpoint=EndpointKind.ACCELERATED)
    plan = Plan(settings, len(dataset.manifest.splits["train"]), 0)
    data = TrainingData(dataset.manifest, dataset.prefix)
    with contextlib.closing(BatchLoader(connector, data, plan, settings)) as loader:
        for _ in range(2 * workers):
            assert loader.next() is not None
        begun, samples, busy = time.perf_counter(), 0, 0.0
        batches = 0
        while (passed := time.perf_counter() - begun) < setup.seconds:
            found = loader.next()
            assert found is not None
            assert not found.failed, found.failed
            samples += len(found.rows)
            batches += 1
            busy += found.wait_s
        return {"samples/s": samples / passed, "waiting": busy / passed}


def whole_loop(setup: Setup) -> Part:
    """Runs from local servers beside the same steps on synthetic data: their ratio, and the share of data wait."""
    figures: dict[str, Any] = {}
    cases = [(U8, setup.batches[0], setup.workers[-1])]
    cases += [(fmt, min(256, setup.batches[-1]), workers) for fmt in (U8, F32) for workers in setup.workers[-2:]]
    for fmt, batch, workers in cases:
        steps = 8 if setup.small else max(60, round(10_000 * setup.seconds / batch))
        # One epoch is longer than the run, so that no validation and no checkpoint falls into it.
        dataset = setup.dataset(fmt, setup.side, (steps + 2) * batch)
        found = _run_rate(setup, dataset, max_steps=steps, batch_size=batch, workers=workers)
        ceiling = SyntheticLoop(fmt, batch, setup.side).rate(setup.seconds)["samples/s"]
        figures[f"{fmt}, batch {batch}, {workers} workers"] = {
            "synthetic": ceiling,
            "ratio": found["samples/s"] / ceiling,
            **found,
        }
    return Part(ok=True, figures=figures)


def _run_rate(setup: Setup, dataset: MadeUpDataset, **settings: Any) -> dict[str, float]:
    """A run through the engine that the console uses."""
    run, found = run_to_end(setup, dataset=dataset, epochs=1, **settings)
    if run.error is not None:
        raise run.error
    steady = steady_steps(found)
    total = sum(step.step_time_s for step in steady)
    return {
        "samples/s": sum(step.samples for step in steady) / total,
        "data wait": sum(step.data_wait_s for step in steady) / total,
        "copy": sum(step.copy_s for step in steady) / total,
        "step ms p50": statistics.median(step.step_time_s for step in steady) * 1000,
        "step ms p99": float(np.quantile([step.step_time_s for step in steady], 0.99)) * 1000,
    }


def profile(setup: Setup) -> Part:
    """What ten steps ask of CUDA: synchronisations and kernels per step."""
    if not setup.cuda:
        return Part(ok=True, figures={"skipped": "needs a GPU"})
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    figures: dict[str, Any] = {}
    ok = True
    for batch in setup.batches[:2]:
        loop = SyntheticLoop(U8, batch, setup.side, ema_decay=0.99)
        for _ in range(5):
            loop.step()
        _synchronize()
        with profiled(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for _ in range(10):
                loop.step()
        counts: dict[str, int] = {}
        for event in seen.key_averages():
            if event.key in {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaLaunchKernel", "cuLaunchKernel"}:
                counts[event.key] = event.count
        waits = counts.get("cudaStreamSynchronize", 0)
        ok = ok and waits == 0
        figures[f"batch {batch}"] = {
            "stream synchronisations/step": waits / 10,
            "kernels/step": (counts.get("cudaLaunchKernel", 0) + counts.get("cuLaunchKernel", 0)) / 10,
        }
    return Part(ok=ok, figures=figures)


def same_endpoint(setup: Setup) -> Part:
    """A run that alternates between two addresses of the same servers: neither may be found faster."""
    batch = min(256, setup.batches[-1])
    # Visits of more than 3 s. fp32, as a slower step needs fewer samples for them; checkpoints fail here, so one epoch.
    every, steps = (5, 40) if setup.small else (90, 1180)
    dataset = setup.dataset(U8, setup.side, (steps + 2) * batch)
    run, _ = run_to_end(
        setup,
        dataset=dataset,
        kinds=tuple(EndpointKind),
        max_steps=steps,
        epochs=1,
        batch_size=batch,
        workers=setup.workers[-1],
        precision="fp32",
        switch_every=every,
    )
    if run.error is not None:
        raise run.error
    found = run.summary.comparison if run.summary is not None else None
    if found is None:
        return Part(ok=setup.small, figures={"comparison": "too short"})
    inside = found.low is not None and found.high is not None and found.low <= 1 <= found.high
    return Part(ok=setup.small or inside, figures={"comparison": found.words, "low": found.low, "high": found.high})


def decode(setup: Setup) -> Part:
    """JPEG of 256 px, quality 90: decoding and random resized crops in processes, images/s in all."""
    figures = {}
    for processes in (1, 2) if setup.small else (1, 8, 14):
        command = [sys.executable, "-c", _DECODE, str(setup.seconds)]
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        figures[f"{processes} processes"] = sum(json.loads(child.communicate()[0]) for child in children)
    return Part(ok=True, figures=figures)


_DECODE = """
import sys, time, json, random
import cv2, numpy as np, simplejpeg
cv2.setNumThreads(1)
seconds = float(sys.argv[1])
noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
picture = cv2.resize(noise, (341, 256), interpolation=cv2.INTER_CUBIC)
body = simplejpeg.encode_jpeg(picture, quality=90)
begun, count = time.perf_counter(), 0
while time.perf_counter() - begun < seconds:
    decoded = simplejpeg.decode_jpeg(body, fastdct=True)
    side = random.randint(80, 256)
    top, left = random.randint(0, 256 - side), random.randint(0, 341 - side)
    crop = decoded[top : top + side, left : left + side]
    cv2.resize(crop, (224, 224), interpolation=cv2.INTER_AREA if side > 224 else cv2.INTER_LINEAR)
    count += 1
print(json.dumps(count / (time.perf_counter() - begun)))
"""


def _ms(action: Callable[[], object], times: int) -> float:
    """The mean time of an action in ms, the device's work included."""
    for _ in range(3):
        action()
    _synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        action()
    _synchronize()
    return (time.perf_counter() - begun) / times * 1000


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
