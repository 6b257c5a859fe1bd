"""Hugging Face's Trainer on images, with a watched OssImages as its data loader."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import ossconsole


class Batches:
    """The batches as dictionaries, which the models of transformers take."""

    def __init__(self, batches: ossconsole.Watch[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for pictures, labels in self.batches:
            yield {"pixel_values": pictures, "labels": labels}


class OssTrainer(Trainer):
    """A Trainer whose training data come from OSS."""

    def get_train_dataloader(self) -> Any:
        """The watched loader."""
        return Batches(batches)


images = ossconsole.OssImages(batch_size=20, workers=1, device="cpu")
batches = ossconsole.watch(images, epochs=2)
config = ViTConfig(
    image_size=images.image_size,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    num_labels=len(images.classes),
)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(folder, num_train_epochs=2, report_to=[], save_strategy="no", use_cpu=True)
    trainer = OssTrainer(ViTForImageClassification(config), arguments)
    result = trainer.train()
print("steps", result.global_step)
batches.close()
images.close()
