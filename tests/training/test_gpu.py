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

    for number in range(8):  # kernels are chosen, memory is taken, the graph is recorded
        step(number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, done = step(8), compute.milestone()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    done()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_as_a_graph_computes_what_the_eager_step_does(precision: str, accumulate: int) -> None:
    settings = TrainSettings(batch_size=16, precision=precision, warmup_steps=0, learning_rate=0.01)
    random = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(count, 3, 32, 32, generator=random), torch.randint(0, 10, (count,), generator=random))
        for count in (16,) * 10 + (5,) + (16,) * 3
    ]
    losses = {}
    for graphed in (True, False):
        torch.manual_seed(0)
        compute = Compute(settings, SampleFormat.IMAGE_U8, device=choose_device())
        trainer = Trainer(resnet18(num_classes=10), compute, settings, Ranks(Place(), compute.device), total_steps=100)
        if not graphed:
            trainer._graph = None
        found = []
        for number, (images, labels) in enumerate(batches, start=1):
            update = number % accumulate == 0
            on_device = images.to(compute.device, memory_format=torch.channels_last)
            loss = trainer.step(on_device, labels.to(compute.device), EpochMeter(), samples=len(labels), update=update)
            found.append(float(loss))
        losses[graphed] = found
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


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
