"""DistributedDataParallel on two gloo ranks; start it with torchrun."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ossconsole

dist.init_process_group("gloo")
images = ossconsole.OssImages(batch_size=10, workers=1, device="cpu")
model = DistributedDataParallel(
    nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(images.classes)))
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batches = ossconsole.watch(images, epochs=40)
for epoch in range(40):
    for pictures, labels in batches:
        loss = nn.functional.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        batches.log(loss=loss)
        print(dist.get_rank(), epoch, len(labels), flush=True)
    if batches.stopping:
        break
batches.close()
images.close()
dist.destroy_process_group()
