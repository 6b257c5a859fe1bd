"""Rows of images: the pixels of an independent reference, the crops of torchvision, randomness of the sample alone."""

from __future__ import annotations

import io
import math
import random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from ossconsole.dataset.crop import centre_box, crop_box
from ossconsole.dataset.decode import UnreadableImageError
from ossconsole.dataset.formats import SampleFormat
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.plan import Split
from tests.dataset.conftest import jpeg

SIZE = 64


def transform(
    fmt: SampleFormat = SampleFormat.IMAGE_JPEG, *, augment: bool = True, seed: int = 0, stored: int = 73
) -> SampleTransform:
    return SampleTransform(fmt, stored, SIZE, augment, seed)


def row_of(
    used: SampleTransform, data: bytes, rng: random.Random | None, height: int = 0, width: int = 0
) -> npt.NDArray[np.uint8]:
    row = np.zeros(used.row_bytes, np.uint8)
    used.write(data, height, width, rng, row)
    return row.reshape(SIZE, SIZE, 3)


def expected(data: bytes, box: tuple[int, int, int, int], *, flip: bool) -> npt.NDArray[np.uint8]:
    """Pillow decodes, torchvision cuts the same box and resizes it with antialiasing."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    left, top, width, height = box
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    cut = reference.resized_crop(
        pixels, top, left, height, width, [SIZE, SIZE], interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    if flip:
        cut = reference.horizontal_flip(cut)
    return np.asarray(cut.permute(1, 2, 0), np.uint8)


def difference(found: npt.NDArray[np.uint8], wanted: npt.NDArray[np.uint8]) -> tuple[float, int]:
    """Mean and maximum difference in levels."""
    levels = np.abs(found.astype(int) - wanted.astype(int))
    return float(levels.mean()), int(levels.max())


@pytest.mark.parametrize("size", [(73, 97), (97, 73), (500, 375), (64, 64), (40, 60), (900, 300)])
@pytest.mark.parametrize("number", range(4))
def test_training_pixels_are_those_of_pillow_and_torchvision(size: tuple[int, int], number: int) -> None:
    data, used = jpeg(number, size), transform()
    rng, again = (used.rng(Split.TRAIN, 1, number) for _ in range(2))
    assert rng is not None
    assert again is not None
    box = crop_box(*size, again)
    mean, most = difference(row_of(used, data, rng), expected(data, box, flip=again.random() < 0.5))
    assert mean < 4
    assert most < 128


@pytest.mark.parametrize("size", [(73, 97), (97, 73), (500, 375), (64, 64), (40, 60), (900, 300)])
def test_validation_pixels_are_those_of_pillow_and_torchvision(size: tuple[int, int]) -> None:
    data = jpeg(1, size)
    mean, most = difference(row_of(transform(), data, None), expected(data, centre_box(*size, SIZE), flip=False))
    assert mean < 4
    assert most < 128


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((256, 342), (16, 59, 224, 224)),
        ((224, 224), (0, 0, 224, 224)),
        ((240, 300), (8, 38, 224, 224)),
        ((512, 512), (32, 32, 448, 448)),
        ((100, 300), (0, 100, 100, 100)),
    ],
)
def test_the_centre_crop_is_that_of_imagenet_models(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert centre_box(*size, 224) == box


def test_stored_pixels_give_the_crop_of_the_same_encoded_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    for epoch in range(1, 4):
        rows = []
        for fmt, data in (
            (SampleFormat.IMAGE_JPEG, png.getvalue()),
            (SampleFormat.IMAGE_U8, pixels.transpose(2, 0, 1).tobytes()),
        ):
            used = transform(fmt)
            rows.append(row_of(used, data, used.rng(Split.TRAIN, epoch, 5), 80, 96))
        assert (rows[0] == rows[1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_before_the_crop(orientation: int) -> None:
    image, exif = Image.open(io.BytesIO(jpeg(3, (300, 200)))), Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    data, used = buffer.getvalue(), transform()
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    again = used.rng(Split.TRAIN, 1, 9)
    assert again is not None
    box = crop_box(*upright, again)
    mean, _ = difference(
        row_of(used, data, used.rng(Split.TRAIN, 1, 9)), expected(data, box, flip=again.random() < 0.5)
    )
    assert mean < 4


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGBA", "P", "LA", "I;16"])
def test_other_colours_become_rgb(mode: str) -> None:
    flat = Image.new("RGB", (90, 90), (200, 30, 60))
    if mode == "I;16":
        image = Image.fromarray(np.full((90, 90), 200 * 257, np.uint16))
        wanted: tuple[int, ...] = (200, 200, 200)
    else:
        image = flat.quantize(8) if mode == "P" else flat.convert(mode)
        wanted = image.convert("RGB").getpixel((5, 5))  # type: ignore[assignment]
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    row = row_of(transform(), buffer.getvalue(), None)
    assert np.abs(row.astype(int) - np.array(wanted)).max() <= 3


@pytest.mark.parametrize("data", [b"", b"no image", jpeg(1, (90, 90))[:600]])
def test_what_is_not_an_image_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        row_of(transform(), data, None)


def test_random_numbers_are_those_of_the_sample_alone() -> None:
    def draws(used: SampleTransform, epoch: int, sample: int) -> float:
        rng = used.rng(Split.TRAIN, epoch, sample)
        assert rng is not None
        return rng.random()

    assert draws(transform(), 1, 7) == draws(transform(SampleFormat.IMAGE_U8, stored=9), 1, 7)
    others = {draws(transform(), 2, 7), draws(transform(), 1, 8), draws(transform(seed=1), 1, 7)}
    assert len(others | {draws(transform(), 1, 7)}) == 4
    assert transform().rng(Split.VAL, 1, 7) is None
    assert transform(augment=False).rng(Split.TRAIN, 1, 7) is None
    assert transform(SampleFormat.TENSOR_F32).rng(Split.TRAIN, 1, 7) is None


def test_crops_are_distributed_as_those_of_torchvision() -> None:
    """Area and ratio: the largest distance of the distributions is below the 0.1 % limit of Kolmogorov and Smirnov."""
    count, width, height = 3000, 341, 256
    used = transform()
    own = [crop_box(width, height, rng) for number in range(count) if (rng := used.rng(Split.TRAIN, 1, number))]
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    ours = np.array([[w * h, w / h, left, top] for left, top, w, h in own])
    others = np.array([[w * h, w / h, left, top] for top, left, h, w in theirs])
    for figures in zip(ours.T, others.T, strict=True):
        at = np.sort(np.concatenate(figures))
        cdfs = [np.searchsorted(np.sort(each), at, side="right") / count for each in figures]
        assert np.abs(cdfs[0] - cdfs[1]).max() < 1.95 * math.sqrt(2 / count)
