"""The trainer: each sample counts the same, also a single one, and too large a batch is reported with a remedy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.telemetry.gpu import GpuProcess
from ossconsole.training.compute.acceleration import StepGraph
from ossconsole.training.compute.device import DeviceContext, device_errors
from ossconsole.training.compute.trainer import EpochMeter, Trainer, counts
from ossconsole.training.distributed.process_group import ProcessGroup
from ossconsole.training.distributed.ranks import RankInfo
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.settings import MAX_SEED, TrainSettings

CPU = torch.device("cpu")
CLASSES = 4
ROWS = SampleTransform(SampleFormat.IMAGE_JPEG, stored_size=9, size=8, augment=True, seed=0)
SETTINGS: dict[str, Any] = {"batch_size": 64, "learning_rate": 0.05, "warmup_steps": 0, "label_smoothing": 0.0}


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


def test_a_broken_device_needs_a_restart() -> None:
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


def test_a_step_without_samples_ends_the_update_of_the_steps_before() -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.zeros(4).long()
    model = small_model()
    trainer, twin = trainer_of(model), trainer_of(copy.deepcopy(model))
    twin.step(images, labels, EpochMeter(), samples=4, share=0.5)
    trainer.step(images, labels, EpochMeter(), samples=4, share=0.5, update=False)
    trainer.skip(update=True)
    after = weights_of(trainer.model)
    assert torch.equal(after, weights_of(twin.model))
    trainer.skip(update=False)
    assert not trainer.state()["gradients"]
    trainer.skip(update=True)
    assert torch.equal(after, weights_of(trainer.model)), "also the momentum changes nothing"
    assert trainer.state()["schedule"]["steps"] == 4


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


def weights_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def test_gradients_are_measured_and_clipped_to_a_norm() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 8, 8), torch.randint(0, CLASSES, (8,))
    moved = {}
    for clip in (0.0, 0.01, 1e6):
        torch.manual_seed(1)
        model = small_model()
        before = weights_of(model)
        trainer = trainer_of(model, clip_norm=clip, momentum=0, weight_decay=0, learning_rate=1.0)
        trainer.step(images, labels, EpochMeter(), samples=8, share=0.5, update=False)
        assert trainer.grad_norm is None
        trainer.step(images, labels, EpochMeter(), samples=8, share=0.5)
        norm = float(trainer.grad_norm or 0)
        moved[clip] = float((weights_of(model) - before).norm())
        assert norm == pytest.approx(moved[0.0], rel=1e-3)  # with a learning rate of 1
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3)
    assert moved[1e6] == pytest.approx(moved[0.0])


def test_clipping_follows_the_true_gradients_of_a_scaled_loss() -> None:
    images, labels = torch.rand(8, 3, 8, 8), torch.randint(0, CLASSES, (8,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    twin = copy.deepcopy(model)
    for trainer in (fused_trainer_of(model, clip_norm=0.05), trainer_of(twin, clip_norm=0.05)):
        trainer.step(images, labels, EpochMeter(), samples=8)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_a_frozen_backbone_keeps_its_weights_and_its_batch_norm_statistics() -> None:
    model = small_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("4."))
    before = copy.deepcopy(model.state_dict())
    trainer = trainer_of(model, ema_decay=0.9)
    for _ in range(2):
        trainer.step(torch.rand(8, 3, 8, 8), torch.randint(0, CLASSES, (8,)), EpochMeter(), samples=8)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"4.weight", "4.bias"}
    resumed = trainer_of(copy.deepcopy(model), ema_decay=0.9)
    resumed.load(trainer.state())


def test_the_automatic_learning_rate_follows_from_the_samples_of_an_update() -> None:
    found = trainer_of(small_model(), learning_rate=0.0, batch_size=128, accumulate=4)
    assert found.lr == pytest.approx(0.2)
    assert TrainSettings(batch_size=64).peak_lr(world=8) == pytest.approx(0.2)
    assert TrainSettings(batch_size=64, learning_rate=0.3).peak_lr(world=8) == 0.3


def test_the_automatic_warm_up_is_a_share_of_the_run() -> None:
    chosen = TrainSettings(batch_size=4, learning_rate=1.0)
    compute = DeviceContext(chosen, ROWS, device=CPU)
    trainer = Trainer(small_model(), compute, chosen, ProcessGroup(RankInfo(), CPU), total_steps=40)
    rates = []
    for _ in range(4):
        rates.append(trainer.lr)
        trainer.step(torch.rand(4, 3, 8, 8), torch.zeros(4).long(), EpochMeter(), samples=4)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0], abs=0.02)


@pytest.mark.parametrize("seed", [0, 20261128, MAX_SEED])
def test_dropout_is_the_same_in_a_resumed_run(seed: int) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, CLASSES))

    images, labels = torch.rand(8, 3, 8, 8), torch.randint(0, CLASSES, (8,))
    whole, losses = trainer_of(model(), seed=seed), []
    for _ in range(4):
        state = copy.deepcopy(whole.state())
        losses.append(float(whole.step(images, labels, EpochMeter(), samples=8)))
    torch.manual_seed(99)
    resumed = trainer_of(model(), seed=seed)
    resumed.load(state)
    assert float(resumed.step(images, labels, EpochMeter(), samples=8)) == losses[-1]
    assert len(set(losses)) == 4


def test_validation_counts_by_class_and_in_single_precision() -> None:
    class Fixed(nn.Module):
        """Outputs that differ in float32 only; its gradients are of no use."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :CLASSES] + 0 * self.weight

    trainer, meter = trainer_of(Fixed()), EpochMeter()
    images = torch.zeros(3, 3, 8, 8)
    images[0, 0, 0, 1] = images[1, 0, 0, 2] = images[2, 0, 0, 0] = 1.0
    trainer.validate(images, torch.tensor([1, 1, 0]), meter)
    trainer.validate(images[:1], torch.tensor([3]), meter)
    assert meter.class_top1(("a", "b", "c", "d")) == {"a": 1.0, "b": 0.5, "d": 0.0}
    assert meter.top1 == 0.5
    assert EpochMeter().class_top1(("a",)) == {}


def test_outputs_are_evaluated_in_single_precision() -> None:
    compute = DeviceContext(TrainSettings(precision="bf16"), ROWS, device=CPU)
    settings = TrainSettings(batch_size=8, precision="bf16")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    trainer, meter = Trainer(model, compute, settings, ProcessGroup(RankInfo(), CPU), total_steps=9), EpochMeter()
    seen: list[torch.dtype] = []
    trainer._val_loss.register_forward_pre_hook(lambda _module, given: seen.append(given[0].dtype))
    trainer.validate(torch.rand(8, 3, 8, 8), torch.zeros(8).long(), meter)
    assert seen == [torch.float32]


class Compiler:
    """Stands in for torch.compile: compiles for one shape after another, or fails as it does without a compiler."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.shapes: list[int] = []

    def __call__(self, model: nn.Module, *, dynamic: bool) -> Any:
        assert not dynamic

        def run(images: torch.Tensor) -> Any:
            if self.broken:
                raise BackendCompilerFailed(self.__call__, RuntimeError("no C++ compiler"), None)
            self.shapes.append(len(images))
            return model(images)

        return run


def test_only_batches_of_full_size_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", compiler := Compiler())
    trainer = trainer_of(small_model(), compile=True)
    compiling = []
    for count in (8, 8, 3, 8, 1):
        compiling.append(trainer.compiles(count))
        trainer.step(torch.rand(count, 3, 8, 8), torch.zeros(count).long(), EpochMeter(), samples=count)
    assert compiling == [True, False, False, False, False]
    assert compiler.shapes == [8, 8, 8]


def test_a_run_continues_where_the_compiler_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(broken=True))
    chosen = TrainSettings(**SETTINGS, compile=True)
    compute, warned = DeviceContext(chosen, ROWS, device=CPU), []
    group = ProcessGroup(RankInfo(), CPU)
    trainer = Trainer(
        small_model(), compute, chosen, group, total_steps=9, on_warning=lambda *texts: warned.append(texts)
    )
    for _ in range(2):
        trainer.step(torch.rand(4, 3, 8, 8), torch.zeros(4).long(), EpochMeter(), samples=4)
    ((message, remedy),) = warned
    assert "not compiled" in message
    assert "no C++ compiler" in message
    assert "g++" in remedy
    assert not trainer.compiles(4)


def test_errors_of_a_compiled_model_itself_are_not_those_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, _images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "compile", Compiler())
    with pytest.raises(ConsoleError, match="illegal memory access"):
        trainer_of(Broken(), compile=True).step(torch.rand(4, 3, 8, 8), torch.zeros(4).long(), EpochMeter(), samples=4)


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
    average = trainer.state()["model"]
    assert int(average["1.num_batches_tracked"]) == 3
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value)
    small_model().load_state_dict(average)


def test_an_average_is_resumed_as_earlier_versions_saved_it_and_begins_at_the_weights_without_one() -> None:
    trainer, state = trainer_of(small_model(), ema_decay=0.9), trainer_of(small_model(), ema_decay=0.9).state()
    model = state["model"]
    of_torch = {"n_averaged": torch.tensor(3), **{f"module.{name}": value + 1 for name, value in model.items()}}
    del state["current"]
    trainer.load({**state, "average": of_torch})
    torch.testing.assert_close(trainer.state()["model"]["0.weight"], model["0.weight"] + 1)
    torch.testing.assert_close(trainer.state()["current"]["0.weight"], model["0.weight"])
    trainer.load(state)
    torch.testing.assert_close(trainer.state()["model"]["0.weight"], model["0.weight"])
