"""Hugging Face's Trainer on images, with a watched OssImages as its data loader, resumed exactly after a kill."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

import ossconsole

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()


class Batches:
    """The batches as dictionaries, which the models of transformers take; `labels` are those of the newest."""

    labels = torch.empty(0)

    def __len__(self) -> int:
        return len(batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for pictures, self.labels in batches:
            yield {"pixel_values": pictures, "labels": self.labels}


class OssTrainer(Trainer):
    """A Trainer whose training data come from OSS."""

    def get_train_dataloader(self) -> Any:
        """The watched loader."""
        return loader

    def compute_loss(self, *arguments: Any, **others: Any) -> Any:
        """The loss, which the console shows too."""
        loss = super().compute_loss(*arguments, **others)
        batches.log(loss=loss)
        return loss


class Saving(TrainerCallback):
    """Saves weights and position after each step, and ends the training where the console stopped the loop."""

    def on_step_end(self, _arguments: Any, trained: Any, _control: Any, **_others: Any) -> None:
        """After each step."""
        step = begun + trained.global_step
        state = {"model": model.state_dict(), "images": images.state_dict(), "step": step}
        checkpoints.save(state, step=step, background=True)
        print("batch", step, *loader.labels.tolist(), flush=True)

    def on_epoch_end(self, _arguments: Any, _state: Any, control: Any, **_others: Any) -> None:
        """After each epoch."""
        control.should_training_stop = batches.stopping


images = ossconsole.OssImages(batch_size=20, workers=1, device="cpu")
checkpoints = ossconsole.OssCheckpoints("vit", keep=0)
config = ViTConfig(
    image_size=images.image_size,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    num_labels=len(images.classes),
)
model = ViTForImageClassification(config)
begun = 0
if options.resume:
    saved = checkpoints.load()
    begun = saved["step"]
    model.load_state_dict(saved["model"])
    images.load_state_dict(saved["images"])
batches = ossconsole.watch(images, epochs=options.epochs)
loader = Batches()
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        num_train_epochs=options.epochs - images.epoch,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = OssTrainer(model, arguments, callbacks=[Saving()])
    result = trainer.train()
print("steps", result.global_step)
batches.close()
checkpoints.close()
images.close()
