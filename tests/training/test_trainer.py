"""The trainer: each sample counts the same, also a single one, and too large a batch is reported with a remedy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.telemetry.gpu import GpuProcess
from ossconsole.training.compute.device import DeviceContext, device_errors
from ossconsole.training.compute.trainer import EpochMeter, StepGraph, Trainer, counts
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.settings import TrainSettings

CPU = torch.device("cpu")
CLASSES = 4
ROWS = SampleTransform(SampleFormat.IMAGE_JPEG, stored_size=9, size=8, augment=True, seed=0)
SETTINGS: dict[str, Any] = {"warmup_steps": 0, "label_smoothing": 0.0}


def trainer_of(model: nn.Module, **settings: Any) -> Trainer:
    chosen = TrainSettings(**{**SETTINGS, **settings})
    compute = DeviceContext(chosen, ROWS, device=CPU)
    return Trainer(model, compute, chosen, ProcessGroup(RankInfo(), CPU), total_steps=10**9)


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_too_large_a_batch_is_reported_with_the_size_to_try() -> None:
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, _images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = trainer_of(Full(), batch_size=8)
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)  # what a backward pass leaves that fails half-way
    with pytest.raises(ConsoleError, match="Out of memory on cpu with batch size 8") as error:
        trainer.step(torch.zeros(8, 3, 8, 8), torch.zeros(8).long(), EpochMeter(), samples=8)
    assert "--batch-size 4" in error.value.remedy
    assert not trainer.state()["gradients"]


def test_memory_that_others_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = GpuProcess(4711, "python3", 70 * 10**9)
    monkeypatch.setattr("ossconsole.training.compute.device.gpu_uuid", str)
    monkeypatch.setattr("ossconsole.training.compute.device.memory_of_others", lambda _uuid: (holder,))
    gpu = torch.device("cuda", 0)
    with pytest.raises(ConsoleError, match=r"python3 \(process 4711\) 70.0 GB") as error, device_errors(gpu, 256):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "--batch-size 128" in error.value.remedy


def test_a_broken_device_asks_for_a_restart() -> None:
    with pytest.raises(ConsoleError, match="illegal memory access") as error, device_errors(CPU, 8):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")
    assert "Restart ossconsole" in error.value.remedy


def test_a_step_that_cannot_be_recorded_as_a_graph_stays_eager(caplog: pytest.LogCaptureFixture) -> None:
    def action(images: torch.Tensor, labels: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
        ran.append(len(labels))
        return images.sum() * weight

    ran: list[int] = []
    graph = StepGraph(action)
    for count in (4, 4, 4, 2, 4, 4, 4, 4):  # recording is tried once: without a GPU it fails
        found = graph(torch.ones(count, 3, 2, 2), torch.zeros(count).long(), 0.5)
        assert float(found) == count * 12 * 0.5
    assert ran == [4, 4, 4, 2, 4, 4, 4, 4]
    assert len(caplog.records) == 1


def test_images_that_do_not_fit_into_memory_are_reported() -> None:
    compute = DeviceContext(TrainSettings(batch_size=1), ROWS, device=CPU)
    with pytest.raises(ConsoleError, match="Out of memory on cpu with batch size 1") as error, compute.device_errors():
        torch.empty(1 << 60)
    assert "--image-size" in error.value.remedy
    with pytest.raises(RuntimeError, match="invalid for input"), compute.device_errors():
        torch.zeros(2, 3).view(5)


def test_counting_waits_for_no_gpu() -> None:
    class Crossings(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Records copies between devices and reads by the host."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.seen: list[str] = []

        def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            given = {arg.device for arg in args if isinstance(arg, torch.Tensor)}
            if isinstance(made, torch.Tensor) and given not in (set(), {made.device}):
                self.seen.append(str(function))
            return made

    with FakeTensorMode():  # stands in for a GPU that is not there; it refuses to tell a value
        gpu = torch.device("cuda", 0)
        outputs, labels = torch.empty(8, 10, device=gpu), torch.empty(8, dtype=torch.int64, device=gpu)
        with Crossings() as crossings:
            counted = counts(outputs.mean(), outputs, labels)
    assert (counted.device, counted.dtype, crossings.seen) == (gpu, torch.float64, [])


def test_a_batch_of_one_image_of_one_pixel_trains() -> None:
    meter = EpochMeter()
    loss = trainer_of(small_model()).step(torch.rand(1, 3, 3, 3), torch.tensor([1]), meter, samples=1)
    assert torch.isfinite(loss)
    assert meter.samples == 1


def test_a_rank_without_samples_takes_part_and_counts_for_nothing() -> None:
    trainer, meter = trainer_of(small_model()), EpochMeter()
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.step(torch.empty(0, 3, 8, 8), torch.empty(0).long(), meter, samples=5)
    assert meter.samples == 0
    for was, parameter in zip(before, trainer.model.parameters(), strict=True):
        if parameter.ndim <= 1:  # weight decay moves the others
            assert torch.equal(was, parameter)


def test_batches_of_one_update_give_the_gradient_of_one_large_batch() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 8, 8), torch.randint(0, CLASSES, (8,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    twin = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    twin.load_state_dict(model.state_dict())
    trainer_of(model).step(images, labels, EpochMeter(), samples=8)
    parts = trainer_of(twin)
    parts.step(images[:5], labels[:5], EpochMeter(), samples=5, share=5 / 8, update=False)
    parts.step(images[5:], labels[5:], EpochMeter(), samples=3, share=3 / 8)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_learning_rate_is_that_of_the_first_step_of_an_update(recwarn: pytest.WarningsRecorder) -> None:
    trainer = trainer_of(small_model(), learning_rate=1.0, warmup_steps=4)
    rates = []
    for number in range(6):
        rates.append(trainer.lr)
        images, labels = torch.rand(4, 3, 8, 8), torch.zeros(4).long()
        trainer.step(images, labels, EpochMeter(), samples=4, share=0.5, update=number % 2 == 1)
    assert rates == pytest.approx([0.25, 0.25, 0.75, 0.75, 1.0, 1.0])
    assert not recwarn.list


def test_a_changed_peak_is_kept_until_the_settings_name_another() -> None:
    trainer = trainer_of(small_model(), learning_rate=0.1)
    trainer.set_peak_lr(0.02)
    state = trainer.state()
    same, other = trainer_of(small_model(), learning_rate=0.1), trainer_of(small_model(), learning_rate=0.5, momentum=0)
    same.load(state)
    other.load(state)
    assert (same.lr, other.lr) == pytest.approx((0.02, 0.5))
    assert other.optimizer.param_groups[0]["momentum"] == 0


def fused_trainer_of(model: nn.Module, **settings: Any) -> Trainer:
    """As on a GPU in fp16: the fused optimizer, and a scaler of losses. Both exist for the CPU too."""
    chosen = TrainSettings(**{**SETTINGS, **settings})
    compute = DeviceContext(chosen, ROWS, device=CPU)
    compute.cuda, compute.scaler = True, torch.amp.GradScaler("cpu")
    return Trainer(model, compute, chosen, ProcessGroup(RankInfo(), CPU), total_steps=10**9)


def fill_freed_memory(value: float) -> None:
    """What is allocated next without being filled holds `value`."""
    for size in (4, 192 * 4):
        held = [torch.full((size,), value) for _ in range(50)]
        del held


@pytest.mark.parametrize("resumed_from_no_momentum", [False, True])
def test_a_first_step_that_overflows_leaves_no_trace(resumed_from_no_momentum: bool) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 8, 8), torch.randint(0, CLASSES, (8,))
    layer = nn.Linear(192, CLASSES)
    model = nn.Sequential(nn.Flatten(), layer)
    twin = copy.deepcopy(model)
    trainer, unhurt = fused_trainer_of(model), trainer_of(twin)
    if resumed_from_no_momentum:
        trainer.load({**trainer_of(copy.deepcopy(model), momentum=0).state(), "scaler": {}})
    before = layer.weight.detach().clone()
    fill_freed_memory(1e30)
    trainer.step(images * float("inf"), labels, EpochMeter(), samples=8)
    assert torch.equal(layer.weight, before)  # the step was skipped
    for _ in range(2):
        trainer.step(images, labels, EpochMeter(), samples=8)
        unhurt.step(images, labels, EpochMeter(), samples=8)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_the_average_follows_the_weights_and_is_a_state_of_the_model_itself() -> None:
    torch.manual_seed(0)
    trainer = trainer_of(small_model(), ema_decay=0.9)
    expected = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for _ in range(3):
        trainer.step(torch.rand(4, 3, 8, 8), torch.zeros(4).long(), EpochMeter(), samples=4)
        for name, value in trainer.model.state_dict().items():
            floating = value.is_floating_point()
            expected[name] = expected[name] * 0.9 + value * 0.1 if floating else value.clone()
    average = trainer.state()["average"]
    assert int(average["1.num_batches_tracked"]) == 3
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value)
    small_model().load_state_dict(average)


def test_an_average_is_resumed_as_earlier_versions_saved_it_and_begins_at_the_weights_without_one() -> None:
    trainer, state = trainer_of(small_model(), ema_decay=0.9), trainer_of(small_model(), ema_decay=0.9).state()
    model = state["model"]
    of_torch = {"n_averaged": torch.tensor(3), **{f"module.{name}": value + 1 for name, value in model.items()}}
    trainer.load({**state, "average": of_torch})
    torch.testing.assert_close(trainer.state()["average"]["0.weight"], model["0.weight"] + 1)
    state.pop("average")
    trainer.load(state)
    torch.testing.assert_close(trainer.state()["average"]["0.weight"], model["0.weight"])
