"""Preparation: an image file becomes the bytes of a sample. The same file, key and config give the same bytes."""

from __future__ import annotations

import functools
import hashlib
import math
import random
from typing import TYPE_CHECKING, Any

import msgspec
from PIL import Image

from ossconsole.config.errors import SettingsError
from ossconsole.dataset.decode import (
    UnreadableImageError,
    decode_jpeg,
    image_problem,
    is_rotated,
    open_pillow,
    to_rgb,
    upright,
)
from ossconsole.dataset.formats import CHANNELS, IMAGENET_MEAN, IMAGENET_STD, SampleFormat, encode
from ossconsole.dataset.manifest import MAX_SIDE, TRAIN

# numpy is imported where it is needed: a preparation process of image-u8 starts in half the time without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREPARATION_VERSION = 2
"""Increased when the same config gives other bytes than before; part of the digest in journals."""

MIN_SIZE = 8  # pixels

# torchvision.transforms.RandomResizedCrop's defaults, which the tutorial uses.
_CROP_AREA = (0.08, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10
# The evaluation transform of ImageNet models: resize the short side to 256, crop 224 (pytorch/examples/imagenet).
EVAL_MARGIN = 256 / 224


class PreprocessConfig(msgspec.Struct, frozen=True):
    """How images become samples. `size` in pixels; with `keep_ratio` (image-u8 only) it is the short side."""

    format: SampleFormat
    size: int
    keep_ratio: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raises SettingsError when the values do not fit together."""
        if not MIN_SIZE <= self.size <= MAX_SIDE // 2:
            raise SettingsError(
                f"--size {self.size} is not within {MIN_SIZE}..{MAX_SIDE // 2} pixels.", remedy="Use 224 or 64."
            )
        if self.keep_ratio and self.format is not SampleFormat.IMAGE_U8:
            raise SettingsError(
                f"--keep-ratio is for {SampleFormat.IMAGE_U8} only: {self.format} stores the crop itself.",
                remedy="Leave it out, or use --format image-u8.",
            )

    @property
    def digest(self) -> str:
        """Equal for two configs exactly when they give the same bytes."""
        return hashlib.sha256(msgspec.json.encode((PREPARATION_VERSION, self))).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """The description of the preparation in the manifest."""
        evaluation = f"short side {_eval_short_side(self.size)}, centre crop {self.size}"
        if self.format is SampleFormat.TENSOR_F32:
            train = f"random resized crop {self.size}, random flip, normalised, as torchvision does it"
            evaluation += ", normalised"
        elif self.keep_ratio:
            train = evaluation = f"short side {self.size}, ratio kept"
        else:
            train = f"short side {self.size}, centre crop {self.size}"
        return {"version": PREPARATION_VERSION, "seed": self.seed, "train": train, "val": evaluation}


class Prepared(msgspec.Struct, frozen=True):
    """A sample ready to be sent: `payload` is (3, height, width) in the config's format."""

    height: int
    width: int
    payload: bytes


def prepare(data: bytes, key: str, config: PreprocessConfig) -> Prepared:
    """The sample of the image file `data`. `key` begins with the split. Raises UnreadableImageError."""
    train = key.startswith(f"{TRAIN}/")
    make = _tensor if config.format is SampleFormat.TENSOR_F32 else _image
    if not data:
        raise UnreadableImageError("the file is empty")
    try:
        return make(data, key, train, config)
    except UnreadableImageError:
        raise
    except Exception as error:  # PIL's decoders raise anything from struct.error to IndexError on broken files
        raise UnreadableImageError(image_problem(error)) from error


def _eval_short_side(size: int) -> int:
    return round(size * EVAL_MARGIN)


# image-u8


def _image(data: bytes, _key: str, train: bool, config: PreprocessConfig) -> Prepared:
    size = config.size
    short = size if train or config.keep_ratio else _eval_short_side(size)
    image = open_pillow(data)
    if image.format == "JPEG" and image.mode == "RGB" and not is_rotated(image):
        pixels = decode_jpeg(data, image.size, short)
        if pixels is not None:
            box, target = _cut(pixels.shape[1], pixels.shape[0], short, config)
            return Prepared(target[1], target[0], _resize(pixels, box, target))
    image.draft("RGB", (short, short))
    image = to_rgb(upright(image))
    box, target = _cut(*image.size, short, config)
    resized = image.resize(target, Image.Resampling.BILINEAR, box=box)
    return Prepared(resized.height, resized.width, b"".join(band.tobytes() for band in resized.split()))


def _cut(
    width: int, height: int, short: int, config: PreprocessConfig
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """The part of an image that is stored, and its target width and height."""
    size = config.size
    if config.keep_ratio:
        return (0.0, 0.0, float(width), float(height)), _scaled(width, height, size)
    side = min(width, height) * size / short
    return ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2), (size, size)


def _scaled(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height with the short side `short`, as torchvision's Resize rounds. Raises UnreadableImageError."""
    long = int(short * max(width, height) / min(width, height))
    if long > MAX_SIDE:
        raise UnreadableImageError(f"{width} x {height} px would become longer than {MAX_SIDE} px")
    return (short, long) if width <= height else (long, short)


def _resize(pixels: NDArray[np.uint8], box: tuple[float, float, float, float], target: tuple[int, int]) -> bytes:
    """The part within `box` (left, top, right, bottom; whole pixels of it) as (3, height, width) bytes.

    `target` is width and height. Bilinear without averaging, so meant for less than halving.
    """
    import cv2
    import numpy as np

    left, top, right, bottom = (round(edge) for edge in box)
    part = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    resized = cv2.resize(part, target, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized.transpose(2, 0, 1)).tobytes()


# tensor-f32: the same steps, rounding and order as torchvision's transforms on a PIL image


def _tensor(data: bytes, key: str, train: bool, config: PreprocessConfig) -> Prepared:
    import numpy as np

    image = open_pillow(data)
    if image.format == "JPEG":
        decode_jpeg(data, image.size, 1)  # at an eighth: only to find out whether the data are complete
    image = to_rgb(upright(image))
    size = config.size
    if train:
        rng = random.Random(hashlib.sha256(f"{config.seed}/{key}".encode()).digest())  # noqa: S311  no secret
        left, top, width, height = crop_box(image.width, image.height, rng)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((size, size), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        short = _eval_short_side(size)
        if min(image.size) != short:
            image = image.resize(_scaled(image.width, image.height, short), Image.Resampling.BILINEAR)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return Prepared(size, size, encode(config.format, normalise(np.asarray(image))))


def crop_box(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop: torchvision's RandomResizedCrop.get_params with this generator."""
    low, high = math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*_CROP_AREA)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            return left, top, w, h
    w, h = width, height
    if width / height < _CROP_RATIO[0]:
        h = round(width / _CROP_RATIO[0])
    elif width / height > _CROP_RATIO[1]:
        w = round(height * _CROP_RATIO[1])
    return (width - w) // 2, (height - h) // 2, w, h


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(height, width, 3) uint8 as (3, height, width) float32: ToTensor and Normalize, value by value from a table."""
    import numpy as np

    table = _levels()
    out = np.empty((CHANNELS, *pixels.shape[:2]), dtype=np.float32)
    for channel in range(CHANNELS):
        np.take(table[channel], pixels[:, :, channel], out=out[channel], mode="clip")
    return out


@functools.lru_cache(maxsize=1)
def _levels() -> NDArray[np.float32]:
    """(3, 256): the normalised value of each level of each channel, in float32 steps as torch takes them."""
    import numpy as np

    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    table: NDArray[np.float32] = (levels - mean) / std
    return table
