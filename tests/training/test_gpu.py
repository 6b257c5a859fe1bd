"""On a GPU: a step is enqueued without waiting for it, and buffers can be page-locked repeatedly."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet18

from ossconsole.dataset.formats import SampleFormat
from ossconsole.training.compute.acceleration import ForwardBackward
from ossconsole.training.compute.device import DeviceContext
from ossconsole.training.compute.selection import select_device
from ossconsole.training.compute.trainer import EpochMeter, Trainer
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.loading.loader import lock_pages, unlock_pages
from ossconsole.training.loading.shared_memory import SharedBuffer
from ossconsole.training.settings import TrainSettings

_ROWS = SampleTransform(SampleFormat.IMAGE_JPEG, stored_size=27, size=24, augment=True, seed=0)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_step_is_not_waited_for(precision: str) -> None:
    settings = TrainSettings(batch_size=8, image_size=24, precision=precision, ema_decay=0.9)
    compute = DeviceContext(settings, _ROWS, device=select_device())
    trainer = Trainer(
        resnet18(num_classes=10), compute, settings, ProcessGroup(RankInfo(), compute.device), total_steps=100
    )
    rows = torch.randint(0, 256, (8, _ROWS.row_bytes), dtype=torch.uint8).pin_memory()
    labels, meter = torch.randint(0, 10, (8,)), EpochMeter()

    def step() -> torch.Tensor:
        images = compute.images(rows, compute.input_dtype)
        loss: torch.Tensor = compute.host_copy(trainer.step(images, compute.labels(labels), meter, samples=8))
        compute.host_copy(trainer.model.state_dict())
        return loss

    for _ in range(8):  # kernels are chosen, memory is taken, the graph is recorded
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, done = step(), compute.milestone()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    done()
    assert torch.isfinite(loss)


def test_a_graph_computes_the_gradients_of_the_eager_step() -> None:
    settings = TrainSettings(batch_size=32, precision="fp16", warmup_steps=0, learning_rate=1e-4)
    random = torch.Generator().manual_seed(0)
    compute = DeviceContext(settings, _ROWS, device=select_device())
    images = torch.randn(32, 3, 64, 64, generator=random).to(compute.device, memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (32,), generator=random).to(compute.device)
    torch.manual_seed(0)
    trainer = Trainer(
        resnet18(num_classes=10), compute, settings, ProcessGroup(RankInfo(), compute.device), total_steps=100
    )
    for _ in range(8):  # from the sixth on as a graph
        trainer.step(images, labels, EpochMeter(), samples=32)
    graph = trainer._graph
    assert graph is not None
    assert graph._graph is not None

    def gradients(run: ForwardBackward) -> tuple[float, dict[str, torch.Tensor]]:
        trainer.optimizer.zero_grad(set_to_none=False)
        trainer.model.train()
        loss = run(images, labels, 0.5)[0].item()
        return loss, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}

    loss, found = gradients(graph)
    eager_loss, eager = gradients(trainer._forward_backward)
    _, again = gradients(trainer._forward_backward)
    assert loss == pytest.approx(eager_loss, rel=1e-3)
    for name, gradient in eager.items():
        # Kernels that add in any order differ between two eager steps too.
        noise = (again[name] - gradient).norm()
        assert (found[name] - gradient).norm() <= 3 * noise + 0.02 * gradient.norm(), name


def test_gradients_add_up_in_a_graph() -> None:
    settings = TrainSettings(batch_size=32, precision="fp16", warmup_steps=0, learning_rate=1e-4)
    compute = DeviceContext(settings, _ROWS, device=select_device())
    images = torch.randn(32, 3, 64, 64, device=compute.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (32,), device=compute.device)
    trainer = Trainer(
        resnet18(num_classes=10), compute, settings, ProcessGroup(RankInfo(), compute.device), total_steps=100
    )
    for _ in range(8):
        trainer.step(images, labels, EpochMeter(), samples=32)
    trainer.step(images, labels, EpochMeter(), samples=32, update=False)
    once = trainer.model.fc.weight.grad.clone()
    trainer.step(images, labels, EpochMeter(), samples=32, update=False)
    twice = trainer.model.fc.weight.grad
    assert torch.allclose(twice, 2 * once, rtol=0.05, atol=1e-3 * float(once.abs().max()))


def test_buffers_can_be_page_locked_repeatedly() -> None:
    for _ in range(2):
        buffer = SharedBuffer(1 << 22)
        slots = torch.frombuffer(buffer.memory, dtype=torch.uint8)
        lock_pages(slots)
        assert slots.is_pinned()
        unlock_pages(slots)
        lock_pages(slots)
        unlock_pages(slots)
        buffer.close()
