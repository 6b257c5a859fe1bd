"""Decodes, crops and flips a sample's bytes into its row of a batch buffer."""

from __future__ import annotations

import random
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ossconsole.dataset.crop import Box, centre_box, crop_box
from ossconsole.dataset.decode import EncodedImage
from ossconsole.dataset.formats import CHANNELS, SampleFormat, sample_bytes
from ossconsole.training.plan import Split

Pixels = npt.NDArray[np.uint8]
"""An image: uint8, shape (height, width, 3), channels R, G, B."""


@dataclass(frozen=True)
class SampleTransform:
    """Turns stored bytes into rows. `stored_size` and `size` are the sides of stored and of training images, pixels.

    A row of `tensor-f32` holds the stored bytes. Any other is an image of `size` x `size`: uint8 in HWC order. Training
    images are random crops and flips with `augment`, as torchvision's RandomResizedCrop and RandomHorizontalFlip make
    them; all others are centre crops.
    """

    format: SampleFormat
    stored_size: int
    size: int
    augment: bool
    seed: int

    @property
    def raw(self) -> bool:
        """Whether a row is the stored bytes."""
        return self.format is SampleFormat.TENSOR_F32

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        if self.raw:
            return sample_bytes(self.format, self.stored_size, self.stored_size)
        return CHANNELS * self.size * self.size

    def rng(self, split: Split, epoch: int, sample: int) -> random.Random | None:
        """The random numbers for sample number `sample` of the split in an epoch; None where nothing is random.

        They depend on nothing else, so a resumed run, and any number of readers and ranks, draw the same.
        """
        if not self.augment or split is not Split.TRAIN or self.raw:
            return None
        return random.Random(f"{self.seed}/{epoch}/{sample}")  # noqa: S311  no secret

    def write(self, data: bytes, height: int, width: int, rng: random.Random | None, row: Pixels) -> None:
        """Fills `row` (uint8, 1-D) from the bytes of an image; `height` and `width` are those of `image-u8`, pixels.

        Raises UnreadableImageError.
        """
        out = row.reshape(self.size, self.size, CHANNELS)
        if self.format is SampleFormat.IMAGE_U8:
            planes = np.frombuffer(data, np.uint8).reshape(CHANNELS, height, width)
            box, flip = self._draw(width, height, rng)
            left, top, across, down = box
            part = planes[:, top : top + down, left : left + across]
            _resize(cv2.merge(tuple(part)), out, flip=flip)
            return
        image = EncodedImage(data)
        box, flip = self._draw(image.width, image.height, rng)
        left, top, across, down = box
        pixels = image.pixels(_least(image.width, across, self.size), _least(image.height, down, self.size))
        x, y = pixels.shape[1] / image.width, pixels.shape[0] / image.height
        first, last = round(left * x), max(round((left + across) * x), round(left * x) + 1)
        upper, lower = round(top * y), max(round((top + down) * y), round(top * y) + 1)
        _resize(pixels[upper:lower, first:last], out, flip=flip)

    def _draw(self, width: int, height: int, rng: random.Random | None) -> tuple[Box, bool]:
        if rng is None:
            return centre_box(width, height, self.size), False
        return crop_box(width, height, rng), rng.random() < 0.5


def _least(length: int, part: int, size: int) -> int:
    """The least decoded length of an image at which `part` of its `length` pixels still has `size` pixels."""
    return -(-length * size // part)


def _resize(part: Pixels, out: Pixels, *, flip: bool) -> None:
    """Resizes a part to the shape of `out`, antialiased where it shrinks."""
    size = out.shape[0]
    if part.shape[:2] != (size, size):
        shrinks = part.shape[0] >= size and part.shape[1] >= size
        cv2.resize(part, (size, size), dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    else:
        np.copyto(out, part)
    if flip:
        cv2.flip(out, 1, dst=out)
