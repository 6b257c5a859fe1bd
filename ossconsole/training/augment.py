"""Random crops and flips of a whole batch on the device: one kernel, another crop for every picture."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

_SCALE = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
"""Shares of the area and aspect ratios of a crop: torchvision's RandomResizedCrop, as the tutorial uses it."""


def random_crops(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """A random part of each picture, stretched to size x size; float (n, c, h, w) in, (n, c, size, size) out."""
    count, _, height, width = images.shape
    area = _uniform(count, *_SCALE, generator)
    ratio = torch.exp(_uniform(count, math.log(_RATIO[0]), math.log(_RATIO[1]), generator))
    # Sides as shares of the picture's; a crop that would stick out is cut to the picture, as after torchvision's tries.
    crop_width = (torch.sqrt(area * ratio * height / width)).clamp(max=1)
    crop_height = (torch.sqrt(area / ratio * width / height)).clamp(max=1)
    left = (2 * _uniform(count, 0, 1, generator) - 1) * (1 - crop_width)
    top = (2 * _uniform(count, 0, 1, generator) - 1) * (1 - crop_height)
    theta = torch.zeros(count, 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = crop_width, left
    theta[:, 1, 1], theta[:, 1, 2] = crop_height, top
    grid = functional.affine_grid(theta, [count, images.shape[1], size, size], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def random_flips(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture mirrored left to right with a chance of one half."""
    flip = _uniform(len(images), 0, 1, generator) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)
