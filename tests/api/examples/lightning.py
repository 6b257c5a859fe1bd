"""Lightning, with a watched OssImages as its training data, resumed exactly after a kill."""

from __future__ import annotations

import argparse
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

import ossconsole

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()


class Classifier(pl.LightningModule):
    """A linear classifier of small pictures; `begun` is the step it continues after."""

    def __init__(self, classes: int, begun: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, classes))
        self.begun = begun

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _index: int) -> torch.Tensor:
        """The loss of one batch."""
        pictures, labels = batch
        loss = nn.functional.cross_entropy(self.model(pictures), labels)
        batches.log(loss=loss, lr=0.1)
        return loss

    def on_train_batch_end(self, _outputs: Any, batch: Any, _index: int) -> None:
        """Saves weights and position after each step."""
        step = self.begun + self.trainer.global_step
        state = {"model": self.model.state_dict(), "images": images.state_dict(), "step": step}
        checkpoints.save(state, step=step, background=True)
        print("batch", step, *batch[1].tolist(), flush=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


images = ossconsole.OssImages(batch_size=20, workers=1, device="cpu")
checkpoints = ossconsole.OssCheckpoints("lightning", keep=0)
saved: dict[str, Any] = checkpoints.load() if options.resume else {"step": 0}
classifier = Classifier(len(images.classes), saved["step"])
if options.resume:
    classifier.model.load_state_dict(saved["model"])
    images.load_state_dict(saved["images"])
batches = ossconsole.watch(images, epochs=options.epochs)
trainer = pl.Trainer(
    max_epochs=options.epochs - images.epoch,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(classifier, train_dataloaders=batches)
print("steps", trainer.global_step)
batches.close()
checkpoints.close()
images.close()
