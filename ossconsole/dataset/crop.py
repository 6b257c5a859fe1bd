"""Which part of an image becomes a sample: random crops for training, centre crops for validation."""

from __future__ import annotations

import math
import random

# torchvision.transforms.RandomResizedCrop's defaults, which the tutorial uses.
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
# The evaluation transform of ImageNet models: resize the short side to 256, crop 224 (pytorch/examples/imagenet).
EVAL_MARGIN = 256 / 224

Box = tuple[int, int, int, int]
"""A part of an image: left, top, width and height in pixels."""


def crop_box(width: int, height: int, rng: random.Random) -> Box:
    """Left, top, width and height of a random crop: torchvision's RandomResizedCrop.get_params with this generator."""
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_AREA)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            return left, top, w, h
    w, h = width, height
    if width / height < _RATIO[0]:
        h = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        w = round(height * _RATIO[1])
    return (width - w) // 2, (height - h) // 2, w, h


def centre_box(width: int, height: int, size: int) -> Box:
    """The part of an image that a centre crop of `size` shows once the short side is resized to 256/224 of `size`.

    An image with a shorter side is not enlarged first, as long as it holds the crop.
    """
    short = min(width, height)
    side = round(short * size / max(size, min(short, round(size * EVAL_MARGIN))))
    return (width - side) // 2, (height - side) // 2, side, side
