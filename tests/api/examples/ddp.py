"""DistributedDataParallel on two gloo ranks, resumed exactly after a kill; start it with torchrun."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ossconsole

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=40)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()

dist.init_process_group("gloo")
images = ossconsole.OssImages(batch_size=10, workers=1, device="cpu")
checkpoints = ossconsole.OssCheckpoints("ddp", keep=0)
model = DistributedDataParallel(
    nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(images.classes)))
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
step = 0
if options.resume:
    state = checkpoints.load()
    model.module.load_state_dict(state["model"])
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
        batches.log(loss=loss)
        if dist.get_rank() == 0:  # every rank is at the same position
            state = {"model": model.module.state_dict(), "images": images.state_dict(), "step": step}
            checkpoints.save(state, step=step, epoch=epoch, background=True)
            print(epoch, step, *labels.tolist(), flush=True)
    if batches.stopping:
        break
batches.close()
checkpoints.close()
images.close()
dist.destroy_process_group()
