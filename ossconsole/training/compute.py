"""The device a run computes on: precision, copies on a side stream, and pictures made from stored bytes."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms.v2 import functional as transforms

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import CHANNELS, IMAGENET_MEAN, IMAGENET_STD, SampleFormat
from ossconsole.training.augment import random_crops, random_flips
from ossconsole.training.cores import compute_threads, usable_cores
from ossconsole.training.settings import TrainSettings

_RESIZE_RATIO = 256 / 224  # validation: short side of 256 px for a centre crop of 224, as in pytorch/examples/imagenet


@dataclass(frozen=True)
class StepTimes:
    """How long the parts of one step took, in seconds. On a GPU they are between events on its stream."""

    step_s: float
    wait_s: float
    copy_s: float
    compute_s: float


class Compute:
    """One device with its precision. `image_size` 0 keeps the stored size.

    `sharing` is how many processes of the run compute on this machine's cores where there is no GPU.
    """

    def __init__(
        self, settings: TrainSettings, sample_format: SampleFormat, *, device: torch.device, sharing: int = 1
    ) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self._settings = settings
        self._format = sample_format
        self._amp = amp_dtype(settings.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self._amp is torch.float16)
        self._stream = torch.cuda.Stream(device) if self.cuda else None  # type: ignore[no-untyped-call]
        self._copies: deque[torch.cuda.Event] = deque()
        shape = (1, CHANNELS, 1, 1)
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(shape) * 255
        self._std = torch.tensor(IMAGENET_STD, device=device).view(shape) * 255
        if self.cuda:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        elif "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(compute_threads(settings.workers, max(1, usable_cores() // sharing)))

    @property
    def precision(self) -> str:
        """What the products are computed in, in words for the screen."""
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self._amp]

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self._amp) if self._amp else nullcontext()

    def images(self, data: torch.Tensor, height: int, width: int, *, generator: torch.Generator | None) -> torch.Tensor:
        """float32 pictures of shape (n, 3, size, size), normalised, on the device, from rows of stored bytes.

        With a generator (training) image-u8 is cropped and flipped at random; tensor-f32 is used as it was prepared.
        """
        size = self._settings.image_size or min(height, width)
        if self._format is SampleFormat.TENSOR_F32:
            stored = self._copy(data[:, : CHANNELS * height * width * 4].view(torch.float32))
            return _channels_last(_resized(stored.view(-1, CHANNELS, height, width), size))
        pictures = self._copy(data[:, : CHANNELS * height * width]).view(-1, CHANNELS, height, width)
        values = (_channels_last(pictures).float() - self._mean) / self._std
        if generator is None or not self._settings.augment:
            return _centre_crop(values, size)
        if size < min(height, width):
            values = random_crops(values, size, generator)
        return random_flips(_resized(values, size), generator)

    def no_images(self, stored_size: int) -> torch.Tensor:
        """What `images` gives for no rows: shape (0, 3, size, size)."""
        size = self._settings.image_size or stored_size
        return torch.empty(0, CHANNELS, size, size, device=self.device)

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels.to(self.device, non_blocking=self.cuda)

    def generator(self, *seeds: int) -> torch.Generator:
        """A source of randomness fixed by `seeds` alone, so that a resumed run draws the same."""
        generator = torch.Generator(self.device)
        state = 0
        for seed in seeds:
            state = (state * 1_000_003 + seed) % (1 << 62)
        return generator.manual_seed(state)

    def free_slots(self) -> None:
        """Waits until the copy of the batch before the last has left its buffer, which is about to be filled again."""
        while len(self._copies) > 1:
            self._copies.popleft().synchronize()

    def _copy(self, data: torch.Tensor) -> torch.Tensor:
        if self._stream is None:
            return data
        with torch.cuda.stream(self._stream):
            copied = data.to(self.device, non_blocking=True)
            event = self._stream.record_event()
        torch.cuda.current_stream(self.device).wait_event(event)
        copied.record_stream(torch.cuda.current_stream(self.device))
        self._copies.append(event)
        return copied


class StepClock:
    """Times the steps: with the host's clock on the CPU, between CUDA events on a GPU.

    On a GPU the figures of a step are known only when it is done, so `finish` gives what to read later.
    """

    def __init__(self, compute: Compute) -> None:
        self._cuda = compute.cuda
        self._previous: Mark = None
        self._marks: list[Mark] = []

    def mark(self) -> None:
        """Call when the batch has arrived, when it is on the device, and when the step is computed."""
        self._marks.append(self._now())

    def restart(self) -> None:
        """Call after a pause, a validation or anything else that is not part of a step."""
        self._previous = self._now()
        self._marks = []

    def finish(self) -> PendingTimes:
        """The times of the step whose three marks were made."""
        arrived, copied, done = self._marks
        previous = arrived if self._previous is None else self._previous
        self._previous, self._marks = done, []
        return PendingTimes(previous, arrived, copied, done)

    def _now(self) -> Mark:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


Mark = Any
"""A moment: seconds of the host's clock (float), or a CUDA event on the compute stream."""


@dataclass(frozen=True)
class PendingTimes:
    """The marks of one step. The batch is there at `arrived`, for all processes that train together."""

    previous: Mark
    arrived: Mark
    copied: Mark
    done: Mark

    def read(self, *, slowest_wait_s: float) -> StepTimes:
        """Waits for the GPU to reach the last mark. `slowest_wait_s` is the longest wait of a process for its batch."""
        if isinstance(self.done, torch.cuda.Event):
            self.done.synchronize()
        return StepTimes(
            step_s=_between(self.previous, self.done),
            # The GPU may still have been busy with the step before while the host waited: only its idle time counts.
            wait_s=min(slowest_wait_s, _between(self.previous, self.arrived)),
            copy_s=_between(self.arrived, self.copied),
            compute_s=_between(self.copied, self.done),
        )


def _between(first: Mark, second: Mark) -> float:
    """Seconds from one moment to the other."""
    return float(first.elapsed_time(second)) / 1000 if isinstance(first, torch.cuda.Event) else float(second - first)


def choose_device(local_rank: int = 0) -> torch.device:
    """The GPU of this process, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def amp_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision, None for float32.

    `auto` takes bf16 where the GPU has it, else fp16; float32 on a CPU. Raises ConsoleError for fp16 on a CPU, which
    has no fast kernels for it.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise ConsoleError("fp16 needs a GPU; this run uses the CPU.", remedy="Use --precision auto.")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _channels_last(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _resized(images: torch.Tensor, size: int) -> torch.Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return _centre_crop(images, size)


def _centre_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """Short side resized to 256/224 of `size` (where the stored one is larger), then the centre of size x size."""
    if images.shape[-2:] == (size, size):
        return images
    short = min(images.shape[-2:])
    target = min(short, round(size * _RESIZE_RATIO)) if short >= size else size
    if target != short:
        images = transforms.resize(images, [target], antialias=True)
    cropped: torch.Tensor = transforms.center_crop(images, [size, size])
    return cropped
