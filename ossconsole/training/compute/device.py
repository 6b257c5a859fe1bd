"""The device of a run: precision, copies on a side stream, images from rows of bytes, CPU threads."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional as transforms

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.dataset.crop import centre_box
from ossconsole.dataset.formats import CHANNELS, IMAGENET_MEAN, IMAGENET_STD
from ossconsole.telemetry.gpu import GpuProcess, memory_of_others
from ossconsole.telemetry.host import usable_cores
from ossconsole.training.compute.selection import gpu_uuid
from ossconsole.training.context import BrokenDeviceError
from ossconsole.training.data import TrainingData
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.loading.loader import Batch
from ossconsole.training.plan import Split
from ossconsole.training.settings import RENORMALIZING, TrainSettings

log = logging.getLogger(__name__)

_NICENESS = 10


def lower_priority() -> None:
    """Raises the niceness of this thread, and of the threads and processes that it starts.

    The screen needs 2 % of a core. With two busy cores, a dialog then opened in 50 to 70 ms (p95), instead of 80 to 90.
    """
    thread = threading.get_native_id()  # Linux has a niceness for each thread
    present = os.getpriority(os.PRIO_PROCESS, thread)  # that of `nice ossconsole`; only root may lower it
    os.setpriority(os.PRIO_PROCESS, thread, present + _NICENESS)


def compute_threads(workers: int, cores: int) -> int:
    """Threads for a step on the CPU: leaves a core for each reader, at least one, at most a quarter of the cores.

    The threads of a step synchronise hundreds of times, so one that shares its core delays all: on two busy cores, a
    step of ResNet-18 at 64 px and batch size 32 took 0.85 to 5 s with 2 threads, 0.6 to 1.8 s with one.
    """
    left = max(1, min(workers, cores // 4))
    return max(1, cores - left)


# Texts of RuntimeErrors for too little memory, other than torch.OutOfMemoryError.
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator", "unable to find an engine")

# Texts of RuntimeErrors after which every further call fails.
_FATAL = ("CUDA error", "EXECUTION_FAILED")

_NORMALIZE = (IMAGENET_MEAN, IMAGENET_STD)

_MUCH_MEMORY = 1e9  # bytes; a CUDA context alone takes about half of that


@dataclass(frozen=True)
class StepTimes:
    """The durations of the parts of one step, in seconds; they add up to `step_s`.

    On a GPU they are measured between events on its stream; `host_s` is its idle time before the batch was enqueued,
    other than waiting for data, and `host_late` means that it finished before the next step was completely enqueued.
    On a CPU the host's work is part of `compute_s`.
    """

    step_s: float
    wait_s: float
    copy_s: float
    compute_s: float
    host_s: float = 0.0
    host_late: bool = False


class DeviceContext:
    """A device with its precision, its copy stream, and images from rows of the batch buffer.

    `transform` describes the rows. `sharing` is the number of processes of the run that share this machine's cores when
    there is no GPU.
    """

    def __init__(
        self, settings: TrainSettings, transform: SampleTransform, *, device: torch.device, sharing: int = 1
    ) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        if self.cuda:
            # Otherwise this thread's events and kernels would go to GPU 0, whichever GPU this process has.
            torch.cuda.set_device(device)
        self._settings = settings
        self._transform = transform
        self._amp = amp_dtype(settings.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self._amp is torch.float16)
        self._stream = torch.cuda.Stream(device) if self.cuda else None  # type: ignore[no-untyped-call]
        self._buffers = (_DeviceBuffer(), _DeviceBuffer())  # used in turn
        self._copies: list[torch.cuda.Event] = []  # of the newest batch
        self._earlier_copies: list[torch.cuda.Event] = []  # of the one before
        # Normalize(mean, std)(x / 255) is x * scale + shift.
        mean, std = (torch.tensor(values, device=device).view(1, CHANNELS, 1, 1) for values in _NORMALIZE)
        self._scale, self._shift = 1 / (255 * std), -mean / std
        if self.cuda:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        elif "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(compute_threads(settings.workers, max(1, usable_cores() // sharing)))

    @property
    def precision(self) -> str:
        """The precision of matrix products: fp32, bf16 or fp16."""
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self._amp]

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast to the precision; no effect in fp32."""
        return torch.autocast(self.device.type, dtype=self._amp) if self._amp else nullcontext()

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype to which autocast rounds the images in the first convolution, after reading them once more."""
        return torch.float32 if self._amp is None or self._settings.model in RENORMALIZING else self._amp

    def images(self, rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normalised images (n, 3, size, size) on the device, channels last, from rows (uint8, (n, bytes))."""
        if self._stream is None:
            return self._prepared(rows, dtype)
        self._buffers = self._buffers[::-1]
        buffer = self._buffers[0]
        copied, event = buffer.copy(rows, self.device, self._stream)
        self._copies.append(event)
        images = self._prepared(copied, dtype)
        buffer.used = torch.cuda.current_stream(self.device).record_event()
        return images

    def _prepared(self, copied: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """New tensors, never views of the rows."""
        size, stored = self._transform.size, self._transform.stored_size
        if self._transform.raw:
            prepared = copied.view(torch.float32).view(-1, CHANNELS, stored, stored)
            if size != stored:
                left, top, width, height = centre_box(stored, stored, size)
                prepared = transforms.resized_crop(prepared, top, left, height, width, [size, size], antialias=True)
            return prepared.to(dtype, memory_format=torch.channels_last, copy=True)
        pixels = copied.view(-1, size, size, CHANNELS).permute(0, 3, 1, 2)  # channels last without a copy
        images = torch.empty_like(pixels, dtype=dtype)
        # One kernel: cast, scale and shift in float32, and round to the dtype of `images`.
        return torch.addcmul(self._shift, pixels, self._scale, out=images)

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels (int64, (n,)) on the device; the copy does not block."""
        return labels.pin_memory().to(self.device, non_blocking=True) if self.cuda else labels

    def host_copy(self, value: Any) -> Any:
        """A copy on the host of a tensor, or of the tensors in dictionaries and lists.

        The copy from a GPU is asynchronous: it is complete when a `milestone` created after this call is reached.
        Tensors of one dtype then share one page-locked storage: locking one for each delayed training by 0.1 to 0.25 s
        (140 MB in 250 tensors, H100).
        """
        if not self.cuda:
            return map_tensors(value, lambda tensor: tensor.detach().clone())
        sizes: Counter[torch.dtype] = Counter()
        map_tensors(value, lambda tensor: sizes.update({tensor.dtype: tensor.numel()}))
        free = {dtype: torch.empty(size, dtype=dtype, pin_memory=True) for dtype, size in sizes.items()}

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            space = free[tensor.dtype]
            free[tensor.dtype] = space[tensor.numel() :]
            # Dense tensors keep their strides, of channels_last too.
            copied = space[: tensor.numel()].as_strided(tensor.shape, tensor.stride())
            return copied.copy_(tensor.detach(), non_blocking=True)

        return map_tensors(value, copy)

    def milestone(self) -> Callable[[], object]:
        """Returns a function, for any thread, that blocks until all work enqueued on the device so far is done."""
        return _recorded().synchronize if self.cuda else _nothing

    def device_errors(self) -> AbstractContextManager[None]:
        """`device_errors` for this device and batch size."""
        return device_errors(self.device, self._settings.batch_size)

    def free_slots(self) -> None:
        """Waits until the batch before the last is copied from its buffer. Call once before each next batch."""
        for event in self._earlier_copies:
            event.synchronize()
        self._earlier_copies, self._copies = self._copies, []

    def free_all_slots(self) -> None:
        """Waits until all copies from the buffers are done. A GPU that failed copies nothing: its error is logged."""
        try:
            for event in (*self._earlier_copies, *self._copies):
                event.synchronize()
        except RuntimeError as error:  # the run ends with the first error of the GPU
            log.warning("The copies to %s did not end: %s", self.device, error)


class _DeviceBuffer:
    """Memory of a GPU for the rows of one batch, kept for the whole run.

    The next copy into it waits, on the copy stream, until the kernels that read the rows are done: `used`. With two
    buffers, the host is at most two batches ahead of the GPU, and nothing is allocated for a batch.
    """

    def __init__(self) -> None:
        self.used: torch.cuda.Event | None = None
        self._rows = torch.empty(0)

    def copy(
        self, rows: torch.Tensor, device: torch.device, stream: torch.cuda.Stream
    ) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Starts to copy `rows` on `stream`; the current stream waits for it. Returns the copy and its end."""
        current = torch.cuda.current_stream(device)
        if len(self._rows) < len(rows) or self._rows.shape[1:] != rows.shape[1:] or self._rows.dtype != rows.dtype:
            self._rows = torch.empty_like(rows, device=device)
            stream.wait_stream(current)  # kernels before this one may still use the memory
        copied = self._rows[: len(rows)]
        with torch.cuda.stream(stream):
            if self.used is not None:
                stream.wait_event(self.used)
            copied.copy_(rows, non_blocking=True)
            event = stream.record_event()
        current.wait_event(event)
        return copied, event


class StepClock:
    """Times the steps: with the host's clock on the CPU, between CUDA events on a GPU.

    The GPU finishes a step later than the host enqueues it, so `finish` returns times to read later.
    """

    def __init__(self, compute: DeviceContext) -> None:
        self._cuda = compute.cuda
        self._previous: Mark = None
        self._marks: list[Mark] = []

    def mark(self) -> None:
        """Call three times per step: batch available, batch on the device, step computed."""
        self._marks.append(self._now())

    def restart(self) -> None:
        """Call after a pause, a validation, or any other work that is not part of a step."""
        self._previous = self._now()
        self._marks = []

    def finish(self) -> PendingTimes:
        """The times of the step with the last three marks."""
        arrived, copied, done = self._marks
        previous = arrived if self._previous is None else self._previous
        self._previous, self._marks = done, []
        return PendingTimes(previous, arrived, copied, done)

    def _now(self) -> Mark:
        return _recorded() if self._cuda else time.perf_counter()


def _recorded() -> torch.cuda.Event:
    """An event on the current stream of the thread's device."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


Mark = Any
"""A moment: seconds of the host's clock (float), or a CUDA event on the compute stream."""


@dataclass(frozen=True)
class PendingTimes:
    """The marks of one step. `arrived` is when the batches of all ranks were available."""

    previous: Mark
    arrived: Mark
    copied: Mark
    done: Mark

    def read(self, *, slowest_wait_s: float) -> StepTimes:
        """Waits for the GPU to reach the last mark. `slowest_wait_s` is the longest wait of a rank for its batch.

        Call it when the next step is enqueued: a GPU that is idle by then waits for the host.
        """
        on_gpu = isinstance(self.done, torch.cuda.Event)
        host_late = on_gpu and self.done.query()
        if on_gpu:
            self.done.synchronize()
        step_s = _between(self.previous, self.done)
        # The GPU may still have been busy with the step before while the host waited: only its idle time counts.
        wait_s = min(slowest_wait_s, _between(self.previous, self.arrived))
        copy_s = _between(self.arrived, self.copied)
        rest_s = step_s - wait_s - copy_s
        compute_s = min(rest_s, _between(self.copied, self.done)) if on_gpu else rest_s
        return StepTimes(step_s, wait_s, copy_s, compute_s, host_s=rest_s - compute_s, host_late=host_late)


def _between(first: Mark, second: Mark) -> float:
    """Seconds from one moment to the other."""
    return float(first.elapsed_time(second)) / 1000 if isinstance(first, torch.cuda.Event) else float(second - first)


def map_tensors(value: Any, action: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with every tensor, also in its dictionaries and lists, replaced by `action(tensor)`."""
    if isinstance(value, torch.Tensor):
        return action(value)
    if isinstance(value, dict):
        return {key: map_tensors(each, action) for key, each in value.items()}
    return [map_tensors(each, action) for each in value] if isinstance(value, list) else value


def _nothing() -> None:
    """On a CPU, all work is already done."""


@contextmanager
def device_errors(device: torch.device, batch_size: int) -> Iterator[None]:
    """Translates device errors to ConsoleError; out of memory also names the other processes on the GPU."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY):
            raise _out_of_memory(device, batch_size) from error
        if _is_fatal(error):
            raise BrokenDeviceError(
                f"{device} failed: {str(error).splitlines()[0]}.",
                remedy="Restart ossconsole: this process can no longer use the GPU. `dmesg` may have an Xid.",
            ) from error
        raise


def _is_fatal(error: RuntimeError) -> bool:
    accelerator_error = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    known = accelerator_error is not None and isinstance(error, accelerator_error)
    return known or any(text in str(error) for text in _FATAL)


def _out_of_memory(device: torch.device, batch_size: int) -> ConsoleError:
    smaller = "Try a smaller --image-size."
    if batch_size > 1:
        smaller = f"Try --batch-size {batch_size // 2}, with --accumulate 2 for the same result."
    others = _others_on(device) if device.type == "cuda" else ()
    if sum(other.bytes for other in others) < _MUCH_MEMORY:
        return ConsoleError(f"Out of memory on {device} with batch size {batch_size}.", remedy=smaller)
    held = ", ".join(f"{other.name} (process {other.pid}) {other.bytes / 1e9:,.1f} GB" for other in others)
    return ConsoleError(
        f"Out of memory on {device} with batch size {batch_size}; other processes use it too: {held}.",
        remedy=f"End them, or use another GPU. {smaller}",
    )


def _others_on(device: torch.device) -> tuple[GpuProcess, ...]:
    try:
        return memory_of_others(gpu_uuid(device.index or 0))
    except RuntimeError:  # CUDA found no memory for its context either
        return ()


def amp_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype for autocast, None for float32.

    `auto` is float32 on a CPU, and fp16 on a GPU, also where it has bf16: ResNet-18 trains 15,003 samples/s in fp16
    against 11,506 in bf16 (H100, batch 256, torch 2.11), probably because batch norm in bf16 does not use cuDNN.
    GradScaler keeps fp16 from overflowing. Raises SettingsError for fp16 on a CPU, which has no fast kernels for it.
    """
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else None
    if precision == "fp16" and device.type == "cpu":
        raise SettingsError("--precision fp16 needs a GPU, and this machine has none.", remedy="Use --precision auto.")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


class BatchTransform:
    """Turns batches into images and labels."""

    def __init__(self, data: TrainingData, compute: DeviceContext) -> None:
        self._compute = compute
        self._labels = {split: torch.from_numpy(data.columns(str(split)).labels) for split in Split}

    def images(self, batch: Batch) -> torch.Tensor:
        """Normalised images (n, 3, size, size) for autocast, on the device; n may be 0."""
        return self._compute.images(batch.data, self._compute.input_dtype)

    def labels(self, split: Split, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """The labels of the rows of a split: int64 (n,), on the device."""
        return self._compute.labels(self._labels[split][rows])
