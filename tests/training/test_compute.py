"""Decoding on the device: both formats give the same images, and randomness follows from the seed."""

from __future__ import annotations

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
    random_crops,
    random_flips,
    select_device,
)
from ossconsole.training.settings import TrainSettings

CPU = torch.device("cpu")


def stored(side: int = 8, count: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def test_both_formats_match_torchvisions_normalised_image() -> None:
    pictures = stored()
    expected = reference.normalize(pictures.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    u8 = DeviceContext(TrainSettings(), SampleFormat.IMAGE_U8, device=CPU)
    f32 = DeviceContext(TrainSettings(), SampleFormat.TENSOR_F32, device=CPU)
    torch.testing.assert_close(u8.images(pictures.flatten(1), 8, 8, generator=None), expected, atol=1e-5, rtol=1e-5)
    rows = expected.contiguous().view(4, -1).view(torch.uint8)
    torch.testing.assert_close(f32.images(rows, 8, 8, generator=None), expected)


def test_rows_longer_than_the_sample_are_cut() -> None:
    pictures = stored()
    padded = torch.cat([pictures.flatten(1), torch.full((4, 7), 255, dtype=torch.uint8)], dim=1)
    compute = DeviceContext(TrainSettings(), SampleFormat.IMAGE_U8, device=CPU)
    torch.testing.assert_close(
        compute.images(padded, 8, 8, generator=None), compute.images(pictures.flatten(1), 8, 8, generator=None)
    )


def test_tensor_f32_is_not_augmented() -> None:
    compute = DeviceContext(TrainSettings(), SampleFormat.TENSOR_F32, device=CPU)
    rows = torch.rand(4, 3 * 8 * 8).view(torch.uint8)
    torch.testing.assert_close(
        compute.images(rows, 8, 8, generator=compute.generator(1)), compute.images(rows, 8, 8, generator=None)
    )


def test_the_same_seeds_draw_the_same_crops_and_others_do_not() -> None:
    compute = DeviceContext(TrainSettings(image_size=8), SampleFormat.IMAGE_U8, device=CPU)
    rows = stored(side=16).flatten(1)

    def images(*seeds: int) -> torch.Tensor:
        return compute.images(rows, 16, 16, generator=compute.generator(*seeds))

    assert images(1, 2).shape == (4, 3, 8, 8)
    assert torch.equal(images(1, 2), images(1, 2))
    assert not torch.equal(images(1, 2), images(1, 3))


def test_validation_takes_the_centre() -> None:
    compute = DeviceContext(TrainSettings(image_size=14), SampleFormat.IMAGE_U8, device=CPU)
    rows = stored(side=16)
    whole = DeviceContext(TrainSettings(), SampleFormat.IMAGE_U8, device=CPU).images(
        rows.flatten(1), 16, 16, generator=None
    )
    assert torch.equal(compute.images(rows.flatten(1), 16, 16, generator=None), whole[..., 1:15, 1:15])


def test_random_crops_stay_inside_and_random_flips_mirror_some() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    crops = random_crops(ramp, 16, generator)
    assert crops.shape == (64, 3, 16, 16)
    assert crops.min() >= 0
    assert crops.max() <= 1
    spans = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]).abs()
    assert spans.std() > 0.05  # each picture has a crop of its own
    flipped = random_flips(ramp, generator)
    mirrored = (flipped[:, 0, 0, 0] > 0.5).sum().item()
    assert 10 < mirrored < 54


def test_fp16_on_a_cpu_is_refused_and_auto_takes_float32() -> None:
    assert amp_dtype("auto", CPU) is None
    with pytest.raises(ConsoleError, match="needs a GPU"):
        amp_dtype("fp16", CPU)


def test_a_buffer_is_free_once_its_own_copy_is_done_also_after_a_batch_without_one() -> None:
    class Copy:
        waited_for = False

        def synchronize(self) -> None:
            self.waited_for = True

    compute = DeviceContext(TrainSettings(), SampleFormat.IMAGE_U8, device=CPU)
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


def test_a_process_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device(1) == torch.device("cuda", 1)
    with pytest.raises(
        ConsoleError, match="Process 3 of the run needs a GPU of its own, and only 2 are available"
    ) as error:
        select_device(2)
    assert "--processes 0" in error.value.remedy


def test_the_parts_of_a_step_add_up() -> None:
    clock = StepClock(DeviceContext(TrainSettings(), SampleFormat.IMAGE_U8, device=CPU))
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
