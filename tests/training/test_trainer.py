"""The trainer: each sample counts the same, a lone sample too, and too large a batch is told with what to try."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.training.compute import Compute
from ossconsole.training.place import Place
from ossconsole.training.ranks import Ranks
from ossconsole.training.settings import TrainSettings
from ossconsole.training.trainer import EpochMeter, Trainer

CPU = torch.device("cpu")
CLASSES = 4


def trainer_of(model: nn.Module, **settings: Any) -> Trainer:
    chosen = TrainSettings(**{"warmup_steps": 0, "label_smoothing": 0.0, **settings})
    compute = Compute(chosen, SampleFormat.IMAGE_U8, device=CPU)
    return Trainer(model, compute, chosen, Ranks(Place(), CPU), total_steps=10**9)


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_too_large_a_batch_is_told_with_the_size_to_try() -> None:
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, _images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConsoleError, match="does not hold a batch of 8") as error:
        trainer_of(Full()).step(torch.zeros(8, 3, 8, 8), torch.zeros(8).long(), EpochMeter(), samples=8, update=True)
    assert "--batch-size 4" in error.value.remedy


def test_a_lone_sample_of_a_picture_of_one_pixel_can_be_learnt_from() -> None:
    meter = EpochMeter()
    loss = trainer_of(small_model()).step(torch.rand(1, 3, 3, 3), torch.tensor([1]), meter, samples=1, update=True)
    assert torch.isfinite(loss)
    assert meter.samples == 1


def test_a_rank_without_samples_takes_part_and_counts_for_nothing() -> None:
    trainer, meter = trainer_of(small_model()), EpochMeter()
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.step(torch.empty(0, 3, 8, 8), torch.empty(0).long(), meter, samples=5, update=True)
    assert meter.samples == 0
    for was, parameter in zip(before, trainer.model.parameters(), strict=True):
        if parameter.ndim <= 1:  # weight decay moves the others
            assert torch.equal(was, parameter)


def test_accumulated_batches_give_the_gradient_of_one_large_batch() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 8, 8), torch.randint(0, CLASSES, (8,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    twin = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    twin.load_state_dict(model.state_dict())
    trainer_of(model).step(images, labels, EpochMeter(), samples=8, update=True)
    halves = trainer_of(twin, accumulate=2)
    halves.step(images[:4], labels[:4], EpochMeter(), samples=4, update=False)
    halves.step(images[4:], labels[4:], EpochMeter(), samples=4, update=True)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)
