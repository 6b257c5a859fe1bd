"""Classification with plain PyTorch: batches from OSS, watched by the console, resumed exactly after a kill."""

from __future__ import annotations

import argparse

import torch
from torch import nn

import ossconsole

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()

images = ossconsole.OssImages(batch_size=20, workers=1, device="cpu")
checkpoints = ossconsole.OssCheckpoints("plain", keep=0)
model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(images.classes)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
step = 0
if options.resume:
    state = checkpoints.load()
    model.load_state_dict(state["model"])
    images.load_state_dict(state["images"])
    step = state["step"]

batches = ossconsole.watch(images, epochs=options.epochs)
for epoch in range(images.epoch, options.epochs):
    for pictures, labels in batches:
        loss = nn.functional.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        batches.log(loss=loss, lr=0.1)
        state = {"model": model.state_dict(), "images": images.state_dict(), "step": step}
        checkpoints.save(state, step=step, epoch=epoch, background=True)
        print(epoch, step, *labels.tolist(), flush=True)
    if batches.stopping:
        break
batches.close()
checkpoints.close()
images.close()
