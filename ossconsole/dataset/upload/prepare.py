"""Preparation: an image file becomes the bytes of a sample. The same file, key and config give the same bytes."""

from __future__ import annotations

import functools
import hashlib
import math
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from PIL import Image

from ossconsole.config.errors import SettingsError
from ossconsole.dataset.crop import EVAL_MARGIN, crop_box
from ossconsole.dataset.decode import (
    EncodedImage,
    UnreadableImageError,
    image_problem,
)
from ossconsole.dataset.formats import CHANNELS, IMAGENET_MEAN, IMAGENET_STD, SampleFormat, encode
from ossconsole.dataset.manifest import MAX_IMAGE_SIDE, MAX_SIDE, TRAIN

# numpy is imported where it is needed: a preparation process of image-u8 starts in half the time without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREPARATION_VERSION = 4
"""Increased when the same config gives other bytes than before; part of the digest in journals."""

MIN_SIZE = 8  # pixels
DEFAULT_QUALITY = 90
"""Of the JPEGs that preparation encodes."""

MAX_JPEG_SIDE = 65500  # pixels; libjpeg's limit


class PreprocessConfig(msgspec.Struct, frozen=True):
    """How images become samples. `size` in pixels: the short side of image-jpeg, and with `keep_ratio` of image-u8.

    `quality` is that of image-jpeg (1 to 100; 0 for the other formats). With `originals` its samples are the image
    files byte for byte, and `size` and `quality` are 0.
    """

    format: SampleFormat
    size: int
    keep_ratio: bool = False
    seed: int = 0
    quality: int = 0
    originals: bool = False

    @property
    def suffix(self) -> str:
        """The ending of a sample's key; "" where keys keep the endings of the files."""
        return "" if self.originals else self.format.suffix

    def check(self) -> None:
        """Raises SettingsError when the values do not fit together."""
        if self.keep_ratio and self.format is not SampleFormat.IMAGE_U8:
            raise SettingsError(
                f"--keep-ratio is for {SampleFormat.IMAGE_U8} only: {_WHY_NO_RATIO[self.format]}.",
                remedy="Leave it out, or use --format image-u8.",
            )
        if self.format is not SampleFormat.IMAGE_JPEG and (self.quality or self.originals):
            option = "--originals" if self.originals else "--quality"
            raise SettingsError(
                f"{option} is for {SampleFormat.IMAGE_JPEG} only.", remedy="Leave it out, or use --format image-jpeg."
            )
        if self.originals:
            if self.size or self.quality:
                raise SettingsError(
                    "--originals keeps the files as they are: --size and --quality do not apply.",
                    remedy="Leave them out, or leave out --originals.",
                )
            return
        if not MIN_SIZE <= self.size <= MAX_SIDE // 2:
            raise SettingsError(
                f"--size {self.size} is not within {MIN_SIZE}..{MAX_SIDE // 2} pixels.", remedy="Use 224 or 64."
            )
        if self.format is SampleFormat.IMAGE_JPEG and not 1 <= self.quality <= 100:
            raise SettingsError(f"--quality {self.quality} is not within 1..100.", remedy="Use 90.")

    @property
    def digest(self) -> str:
        """Equal for two configs exactly when they give the same bytes."""
        return hashlib.sha256(msgspec.json.encode((PREPARATION_VERSION, self))).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """The description of the preparation in the manifest."""
        if self.format is SampleFormat.IMAGE_JPEG:
            images = (
                "the original files"
                if self.originals
                else f"short side at most {self.size}, {_HOW}, ratio kept, JPEG at quality {self.quality}"
            )
            return {"version": PREPARATION_VERSION, "seed": self.seed, "images": images}
        evaluation = f"short side {_eval_short_side(self.size)}, {_HOW}, centre crop {self.size}"
        if self.format is SampleFormat.TENSOR_F32:
            train = f"random resized crop {self.size}, {_HOW}, random flip, normalised, as torchvision does it"
            evaluation += ", normalised"
        elif self.keep_ratio:
            train = evaluation = f"short side {self.size}, {_HOW}, ratio kept"
        else:
            train = f"short side {self.size}, {_HOW}, centre crop {self.size}"
        return {"version": PREPARATION_VERSION, "seed": self.seed, "train": train, "val": evaluation}


_HOW = "bilinear, antialiased"
_WHY_NO_RATIO = {
    SampleFormat.IMAGE_JPEG: "image-jpeg always keeps the ratio",
    SampleFormat.TENSOR_F32: "tensor-f32 stores the crop itself",
}


class Prepared(msgspec.Struct, frozen=True):
    """A sample ready to be sent: an encoded image, or (3, height, width) in the config's format."""

    height: int
    width: int
    payload: bytes


def prepare(data: bytes, key: str, config: PreprocessConfig) -> Prepared:
    """The sample of the image file `data`. `key` begins with the split. Raises UnreadableImageError."""
    train = key.startswith(f"{TRAIN}/")
    make = _MAKERS[config.format]
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


# image-jpeg


def _encoded(data: bytes, _key: str, _train: bool, config: PreprocessConfig) -> Prepared:
    image = EncodedImage(data)
    width, height = image.width, image.height
    if max(width, height) > MAX_IMAGE_SIDE:
        raise UnreadableImageError(f"{width} x {height} px are longer than {MAX_IMAGE_SIDE} px")
    if config.originals:
        return Prepared(height, width, data)
    if min(width, height) <= config.size:
        pixels = image.pixels(width, height)  # also shows whether the data are complete
        return Prepared(height, width, data if image.is_plain_jpeg else _jpeg(pixels, config.quality))
    target = _scaled(width, height, config.size)
    return Prepared(target[1], target[0], _jpeg(_resize(image.pixels(*target), target), config.quality))


def _resize(pixels: NDArray[np.uint8], target: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels at the width and height `target`: bilinear, antialiased, as torchvision's Resize.

    For less than halving OpenCV is three times as fast as Pillow: a blur of three pixels adds the variance that its
    bilinear interpolation lacks (1/6 instead of ratio²/6).
    """
    import cv2
    import numpy as np

    if pixels.shape[1::-1] == target:
        return pixels
    ratios = [have / wanted for have, wanted in zip(pixels.shape[1::-1], target, strict=True)]
    if max(ratios) >= 2:
        return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BILINEAR))
    if max(ratios) > 1:
        across, down = map(_blur_sigma, ratios)
        blurred = cv2.GaussianBlur(pixels, (3, 3), across, sigmaY=down, borderType=cv2.BORDER_REPLICATE)
        pixels = np.asarray(blurred, np.uint8)
    return np.asarray(cv2.resize(pixels, target, interpolation=cv2.INTER_LINEAR), np.uint8)


def _blur_sigma(ratio: float) -> float:
    """The sigma for which OpenCV's Gaussian of three pixels has the variance (ratio² - 1) / 6."""
    side = (ratio**2 - 1) / 12  # the weight of each neighbour, below 1/4
    if side < _MIN_WEIGHT:
        return _NO_BLUR
    return math.sqrt(-0.5 / math.log(side / (1 - 2 * side)))  # neighbours weigh exp(-0.5 / sigma²) of the centre


_MIN_WEIGHT = 1e-3  # a quarter of a level of 255
_NO_BLUR = 1e-3  # 0 would let OpenCV select one


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    import simplejpeg

    height, width = pixels.shape[:2]
    if max(width, height) > MAX_JPEG_SIDE:
        raise UnreadableImageError(f"{width} x {height} px are longer than a JPEG's {MAX_JPEG_SIDE} px")
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
    return encoded


# image-u8


def _image(data: bytes, _key: str, train: bool, config: PreprocessConfig) -> Prepared:
    import cv2

    size = config.size
    image = EncodedImage(data)
    if config.keep_ratio:
        target = _scaled(image.width, image.height, size)
        pixels = _resize(image.pixels(*target), target)
    else:
        pixels = _square(image, size if train else _eval_short_side(size), size)
    return Prepared(pixels.shape[0], pixels.shape[1], b"".join(band.tobytes() for band in cv2.split(pixels)))


_MAX_CROPPED_RATIO = 4


def _square(image: EncodedImage, short: int, size: int) -> NDArray[np.uint8]:
    """The middle `size` x `size` pixels of the image with the short side at `short`."""
    width, height = image.width, image.height
    limit = min(width, height) * _MAX_CROPPED_RATIO
    if max(width, height) <= limit:
        target = _scaled(width, height, short)
        return _middle(image.pixels(*target), target, size)
    least = _scaled(min(width, limit), min(height, limit), short)  # a very long image: only its middle
    pixels = image.pixels(*least)
    height, width = pixels.shape[:2]
    limit = min(width, height) * _MAX_CROPPED_RATIO
    left, top = (max(0, (side - limit) // 2) for side in (width, height))
    pixels = pixels[top : top + limit, left : left + limit]
    return _middle(pixels, _scaled(pixels.shape[1], pixels.shape[0], short), size)


def _middle(pixels: NDArray[np.uint8], target: tuple[int, int], size: int) -> NDArray[np.uint8]:
    """The middle `size` x `size` pixels at the width and height `target`; only what they need is resized."""
    across, down = (_span(have, wanted, size) for have, wanted in zip(pixels.shape[1::-1], target, strict=True))
    part = pixels[down.begin : down.end, across.begin : across.end]
    resized = _resize(part, (across.wanted, down.wanted))
    return resized[down.skipped : down.skipped + size, across.skipped : across.skipped + size]


class _CropSpan(NamedTuple):
    """The pixels `begin` to `end` of a side, which become `wanted` pixels; the first `skipped` are cut off."""

    begin: int
    end: int
    wanted: int
    skipped: int


_SLACK = 8  # pixels


@functools.lru_cache(maxsize=1024)  # most photographs of a dataset have a few sizes
def _span(have: int, wanted: int, size: int) -> _CropSpan:
    """A span of a side of `have` pixels, resized to `wanted`, that holds its middle `size` pixels.

    Its ends are where a pixel of the resized side begins as close as possible to one of the side.
    """
    first = round((wanted - size) / 2)
    ratio = have / wanted
    if ratio <= 1 or wanted == size:
        return _CropSpan(0, have, wanted, first)

    def off(place: int) -> float:
        return abs(place * ratio - round(place * ratio))

    # A pixel more than needed: the blur and the interpolation look at the neighbours.
    left = min(range(max(0, first - _SLACK), max(0, first - 1) + 1), key=off)
    right = min(range(min(wanted, first + size + 1), min(wanted, first + size + _SLACK) + 1), key=off)
    return _CropSpan(round(left * ratio), round(right * ratio), right - left, first - left)


def _scaled(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height with the short side `short`, as torchvision's Resize rounds. Raises UnreadableImageError."""
    long = int(short * max(width, height) / min(width, height))
    if long > MAX_SIDE:
        raise UnreadableImageError(f"{width} x {height} px would become longer than {MAX_SIDE} px")
    return (short, long) if width <= height else (long, short)


# tensor-f32: the same steps, rounding and order as torchvision's transforms on a PIL image


def _tensor(data: bytes, key: str, train: bool, config: PreprocessConfig) -> Prepared:
    import numpy as np

    encoded = EncodedImage(data)
    pixels = encoded.pixels(encoded.width, encoded.height)
    size = config.size
    if train:
        rng = random.Random(hashlib.sha256(f"{config.seed}/{key}".encode()).digest())  # noqa: S311  no secret
        left, top, width, height = crop_box(encoded.width, encoded.height, rng)
        image = Image.fromarray(pixels[top : top + height, left : left + width])
        image = image.resize((size, size), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        short = _eval_short_side(size)
        image = Image.fromarray(pixels)
        if min(image.size) != short:
            image = image.resize(_scaled(image.width, image.height, short), Image.Resampling.BILINEAR)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return Prepared(size, size, encode(config.format, normalise(np.asarray(image))))


_MAKERS = {SampleFormat.IMAGE_JPEG: _encoded, SampleFormat.IMAGE_U8: _image, SampleFormat.TENSOR_F32: _tensor}


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(height, width, 3) uint8 as (3, height, width) float32: ToTensor and Normalize, value by value from a table."""
    import cv2
    import numpy as np

    out = np.empty((CHANNELS, *pixels.shape[:2]), dtype=np.float32)
    for plane, levels, normalised in zip(cv2.split(pixels), _levels(), out, strict=True):
        cv2.LUT(plane, levels, normalised)
    return out


@functools.lru_cache(maxsize=1)
def _levels() -> NDArray[np.float32]:
    """(3, 256): the normalised value of each level of each channel, in float32 steps as torch takes them."""
    import numpy as np

    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    table: NDArray[np.float32] = (levels - mean) / std
    return table
