"""On a GPU: a step is only told to it and not waited for, and buffers can be page-locked again and again."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet18

from ossconsole.dataset.formats import SampleFormat
from ossconsole.training.buffers import SharedBuffer
from ossconsole.training.compute import Compute, choose_device
from ossconsole.training.loader import lock_pages, unlock_pages
from ossconsole.training.place import Place
from ossconsole.training.ranks import Ranks
from ossconsole.training.settings import TrainSettings
from ossconsole.training.trainer import EpochMeter, Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_step_is_not_waited_for(precision: str) -> None:
    settings = TrainSettings(batch_size=8, image_size=24, precision=precision, ema_decay=0.9)
    compute = Compute(settings, SampleFormat.IMAGE_U8, device=choose_device())
    trainer = Trainer(resnet18(num_classes=10), compute, settings, Ranks(Place(), compute.device), total_steps=100)
    stored = torch.randint(0, 256, (8, 3 * 32 * 32), dtype=torch.uint8).pin_memory()
    labels, meter = torch.randint(0, 10, (8,)), EpochMeter()

    def step(number: int) -> torch.Tensor:
        images = compute.images(stored, 32, 32, generator=compute.generator(number))
        loss: torch.Tensor = compute.host_copy(trainer.step(images, compute.labels(labels), meter, samples=8))
        compute.host_copy(trainer.model.state_dict())
        return loss

    for number in range(3):  # kernels are chosen, and memory is taken
        step(number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, done = step(3), compute.milestone()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    done()
    assert torch.isfinite(loss)


def test_buffers_are_page_locked_again_and_again() -> None:
    for _ in range(2):
        buffer = SharedBuffer(1 << 22)
        slots = torch.frombuffer(buffer.memory, dtype=torch.uint8)
        lock_pages(slots)
        assert slots.is_pinned()
        unlock_pages(slots)
        lock_pages(slots)
        unlock_pages(slots)
        buffer.close()
