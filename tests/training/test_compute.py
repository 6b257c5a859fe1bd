"""The device: images from rows, precisions, the times of steps."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import IMAGENET_MEAN, IMAGENET_STD, SampleFormat
from ossconsole.training.compute.device import (
    DeviceContext,
    PendingTimes,
    StepClock,
    amp_dtype,
)
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.settings import TrainSettings

CPU = torch.device("cpu")


def transform(fmt: SampleFormat = SampleFormat.IMAGE_U8, stored: int = 8, size: int = 8) -> SampleTransform:
    return SampleTransform(fmt, stored, size, augment=True, seed=0)


def context(fmt: SampleFormat = SampleFormat.IMAGE_U8, stored: int = 8, size: int = 8) -> DeviceContext:
    return DeviceContext(TrainSettings(), transform(fmt, stored, size), device=CPU)


def test_both_kinds_of_rows_match_torchvisions_normalised_image() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    expected = reference.normalize(pixels.permute(0, 3, 1, 2).float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    images = context().images(pixels.flatten(1))
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    stored = expected.contiguous().view(4, -1).view(torch.uint8)
    tensors = context(SampleFormat.TENSOR_F32).images(stored)
    torch.testing.assert_close(tensors, expected)
    assert tensors.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fmt", [SampleFormat.IMAGE_U8, SampleFormat.TENSOR_F32])
def test_images_for_autocast_are_those_that_it_would_round(fmt: SampleFormat) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    rows = pixels.flatten(1) if fmt is SampleFormat.IMAGE_U8 else torch.randn(4, 3 * 8 * 8).view(torch.uint8)
    full, half = (
        DeviceContext(TrainSettings(precision=precision), transform(fmt), device=CPU) for precision in ("fp32", "bf16")
    )
    assert half.images(rows).dtype is torch.float32, "scripts get float32"
    images = half.images(rows, half.input_dtype)
    assert images.dtype is torch.bfloat16
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, full.images(rows).bfloat16()), "rounded once"
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    with half.autocast():
        assert torch.equal(model(images), model(full.images(rows, full.input_dtype)))


def test_a_model_that_converts_the_images_first_gets_them_unrounded() -> None:
    settings = TrainSettings(precision="bf16", model="googlenet")
    assert DeviceContext(settings, transform(), device=CPU).input_dtype is torch.float32


def test_a_smaller_tensor_is_cut_from_the_centre() -> None:
    stored = torch.rand(2, 3, 16, 16)
    images = context(SampleFormat.TENSOR_F32, stored=16, size=14).images(stored.flatten(1).view(torch.uint8))
    torch.testing.assert_close(images, stored[..., 1:15, 1:15])


def test_no_rows_are_no_images() -> None:
    assert context().images(torch.empty(0, 3 * 8 * 8, dtype=torch.uint8)).shape == (0, 3, 8, 8)


def test_fp16_on_a_cpu_is_refused_and_auto_takes_float32() -> None:
    assert amp_dtype("auto", CPU) is None
    with pytest.raises(ConsoleError, match="needs a GPU"):
        amp_dtype("fp16", CPU)


def test_a_buffer_is_free_once_its_own_copy_is_done_also_after_a_batch_without_one() -> None:
    class Copy:
        waited_for = False

        def synchronize(self) -> None:
            self.waited_for = True

    compute = context()
    first, second, last = (Copy() for _ in range(3))

    def ask_for_a_batch(*copies: Copy) -> None:
        compute.free_slots()
        compute._copies.extend(copies)  # type: ignore[arg-type]

    ask_for_a_batch(first)
    ask_for_a_batch(second)
    assert not first.waited_for
    ask_for_a_batch()  # no sample of it is for this process
    assert first.waited_for
    assert not second.waited_for
    ask_for_a_batch(last)
    assert second.waited_for
    compute.free_all_slots()
    assert last.waited_for


class Streams:
    """Stands in for CUDA streams: notes what each waits for. An event is `(stream, number)`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waited: list[tuple[str, Any]] = []
        self.compute, self.side = Stream("compute", self), Stream("copy", self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: self.compute)
        monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())


class Stream:
    def __init__(self, name: str, streams: Streams) -> None:
        self.name, self.streams, self.recorded = name, streams, 0

    def record_event(self) -> tuple[str, int]:
        self.recorded += 1
        return (self.name, self.recorded)

    def wait_event(self, event: object) -> None:
        self.streams.waited.append((self.name, event))

    def wait_stream(self, other: Stream) -> None:
        self.streams.waited.append((self.name, other.name))


@pytest.mark.parametrize("fmt", [SampleFormat.IMAGE_U8, SampleFormat.TENSOR_F32])
def test_two_device_buffers_are_used_in_turn_each_once_its_images_are_made(
    monkeypatch: pytest.MonkeyPatch, fmt: SampleFormat
) -> None:
    compute, streams = context(fmt), Streams(monkeypatch)
    compute._stream = streams.side  # type: ignore[assignment]
    random = np.random.default_rng(0)
    batches = [
        torch.from_numpy(random.integers(0, 120, (count, transform(fmt).row_bytes), dtype=np.uint8))
        for count in (4, 4, 3, 4, 5)
    ]
    found = [compute.images(rows) for rows in batches]
    for images, rows in zip(found, batches, strict=True):  # no image is in memory that a later batch has overwritten
        assert torch.equal(images, context(fmt).images(rows))
    assert [waited for name, waited in streams.waited if name == "compute"] == [("copy", n) for n in range(1, 6)]
    copies = [waited for name, waited in streams.waited if name == "copy"]
    new = "compute"  # memory that kernels before may still use
    assert copies == [new, new, ("compute", 1), ("compute", 2), new, ("compute", 3)]
    assert compute._copies == [("copy", number) for number in range(1, 6)]  # type: ignore[comparison-overlap]


def test_the_parts_of_a_step_add_up() -> None:
    clock = StepClock(context())
    clock.restart()
    for _ in range(3):
        clock.mark()
    times = clock.finish().read(slowest_wait_s=1e9)
    assert times.step_s == pytest.approx(times.wait_s + times.copy_s + times.compute_s)
    assert (times.host_s, times.host_late) == (0, False)  # a CPU does the host's work itself


class _Event:
    """A moment on a GPU's stream, in ms; `reached` means that the GPU has passed it."""

    def __init__(self, at: float, *, reached: bool = False) -> None:
        self.at, self.reached = at, reached

    def query(self) -> bool:
        return self.reached

    def synchronize(self) -> None:
        self.reached = True

    def elapsed_time(self, other: _Event) -> float:
        return other.at - self.at


@pytest.mark.parametrize(("late", "waited_s"), [(True, 0.01), (False, 0.5)])
def test_on_a_gpu_the_host_has_a_part_of_the_step(monkeypatch: pytest.MonkeyPatch, late: bool, waited_s: float) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    marks = (_Event(0), _Event(40), _Event(50), _Event(100, reached=late))
    times = PendingTimes(*marks).read(slowest_wait_s=waited_s)
    assert times.host_late is late
    assert times.wait_s == pytest.approx(min(waited_s, 0.04))
    assert times.host_s == pytest.approx(0.04 - times.wait_s)
    assert times.step_s == pytest.approx(times.wait_s + times.copy_s + times.compute_s + times.host_s)
