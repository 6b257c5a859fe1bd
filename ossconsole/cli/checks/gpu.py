"""Checks of the GPU and of the libraries that use it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from ossconsole.config.checks import Check, fail, ok, warn
from ossconsole.config.credentials import without_credentials
from ossconsole.telemetry.gpu import Driver, GpuReader, read_driver
from ossconsole.telemetry.samples import GpuSnapshot
from ossconsole.training.preflight import TorchReport

SMALL_GPU_BYTES = 2e9  # ResNet-18 at batch 64 and 224 px takes less than this
NCCL_BYTES = 1e9  # as NVIDIA advises for a container (--shm-size=1g)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a mount, not a file
_LIBRARIES = ("torch", "torchvision", "osstorchconnector")
_REINSTALL = "pip install --upgrade --force-reinstall torch torchvision osstorchconnector"

TORCH_NAMES = ("torch", "cuda")
GPU_NAMES = ("nvml", "gpu memory")


def gpu_checks(snapshot: GpuSnapshot | None = None) -> list[Check]:
    """NVML, and the free memory of each GPU."""
    if snapshot is None:
        reader = GpuReader()
        reader.open()
        snapshot = reader.read()
        reader.close()
    if snapshot.problem:
        return [warn("nvml", snapshot.problem), warn("gpu memory", "No GPU: training runs on the CPU.")]
    silent = [gpu for gpu in snapshot.gpus if gpu.memory_total is None]
    nvml = (
        warn("nvml", " ".join(f"GPU {gpu.index}: {gpu.problem}" for gpu in silent), "nvidia-smi -q")
        if silent
        else ok("nvml", ", ".join(f"GPU {gpu.index}: {gpu.name}" for gpu in snapshot.gpus))
    )
    free = [
        (gpu.index, gpu.memory_total - gpu.memory_used)
        for gpu in snapshot.gpus
        if gpu.memory_total is not None and gpu.memory_used is not None
    ]
    text = ", ".join(f"GPU {index}: {amount / 1e9:.1f} GB free" for index, amount in free)
    nccl = [nccl_memory_check()] if len(snapshot.gpus) > 1 else []
    if not free:
        return [nvml, warn("gpu memory", "NVML tells no figures."), *nccl]
    if max(amount for _, amount in free) < SMALL_GPU_BYTES:
        return [nvml, fail("gpu memory", f"{text}: too little to train.", "See who holds it: nvidia-smi"), *nccl]
    return [nvml, ok("gpu memory", text), *nccl]


def nccl_memory_check(folder: Path = _SHARED_MEMORY) -> Check:
    """Whether the GPUs of this machine can exchange gradients through shared memory, which a container limits."""
    name = "shared memory"
    remedy = f"docker run --shm-size=1g, or: sudo mount -o remount,size=1G {folder}"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return warn(name, f"{folder} cannot be looked at: {error.strerror}; NCCL needs it for several GPUs.", remedy)
    text = f"{free / 1e9:.1f} GB free in {folder}; NCCL uses it for several GPUs."
    return ok(name, text) if free >= NCCL_BYTES else warn(name, text, remedy)


def torch_checks(limit_s: float) -> list[Check]:
    """Whether torch, torchvision and the connector load together, and whether torch can use the GPU.

    They are loaded in a process of their own: it takes seconds, and a broken build may end the process.
    """
    missing = [name for name in _LIBRARIES if _version(name) is None]
    installed = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES if name not in missing)
    if missing:
        detail = f"Not installed: {', '.join(missing)}."
        return [fail("torch", detail, f"pip install {' '.join(missing)}"), warn("cuda", "Not known without torch.")]
    command = (sys.executable, "-m", "ossconsole.training.preflight")
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, timeout=limit_s, check=False, env=without_credentials()
        )
    except subprocess.TimeoutExpired:
        detail = f"{installed}: still loading after {limit_s:.0f} s."
        remedy = "Look at this machine's load and disk."
        return [warn("torch", detail, remedy), warn("cuda", "Not known without torch.")]
    try:
        report = msgspec.json.decode(done.stdout, type=TorchReport)
    except msgspec.DecodeError:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        last = words[-1] if words else f"exit code {done.returncode}"
        return [fail("torch", f"{installed}: loading ended with {last}.", _REINSTALL), warn("cuda", "Not known.")]
    return judge_torch(report, read_driver())


def judge_torch(report: TorchReport, driver: Driver | None) -> list[Check]:
    """`torch` and `cuda` from what the child saw and from the driver."""
    versions = f"torch {report.torch}, torchvision {report.torchvision}, osstorchconnector {report.connector}"
    if report.problem:
        return [fail("torch", f"{versions}: {report.problem}", _REINSTALL), _cuda(report, driver)]
    return [ok("torch", f"{versions} load together."), _cuda(report, driver)]


def _cuda(report: TorchReport, driver: Driver | None) -> Check:
    name = "cuda"
    built = f"torch is built for CUDA {report.cuda_built}" if report.cuda_built else "torch is built without CUDA"
    if report.cuda_available:
        return ok(name, f"{built}; it uses {', '.join(report.devices)}.")
    if driver is None:
        return warn(name, f"{built}; there is no NVIDIA driver, so that training runs on the CPU.")
    runs = f"driver {driver.version} runs up to CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    if not report.cuda_built:
        return fail(name, f"{built}, though there is a GPU ({runs}).", _REINSTALL)
    if _numbers(report.cuda_built)[:1] > driver.cuda[:1]:
        index = f"cu{driver.cuda[0]}{driver.cuda[1]}"
        remedy = f"Update the driver, or install a torch built for it (see pytorch.org, build {index})."
        return fail(name, f"{built}, but {runs}: torch cannot use the GPU.", remedy)
    return fail(name, f"{built} and {runs}, but torch finds no usable GPU.", "nvidia-smi; echo $CUDA_VISIBLE_DEVICES")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
