"""Lightning, with a watched OssImages as its training data."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

import ossconsole


class Classifier(pl.LightningModule):
    """A linear classifier of small pictures."""

    def __init__(self, classes: int, batches: ossconsole.Watch[Any]) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, classes))
        self.batches = batches

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _index: int) -> torch.Tensor:
        """The loss of one batch."""
        pictures, labels = batch
        loss = nn.functional.cross_entropy(self.model(pictures), labels)
        self.batches.log(loss=loss, lr=0.1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


images = ossconsole.OssImages(batch_size=20, workers=1, device="cpu")
batches = ossconsole.watch(images, epochs=2)
trainer = pl.Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(Classifier(len(images.classes), batches), train_dataloaders=batches)
print("steps", trainer.global_step)
batches.close()
images.close()
