"""Samples as pictures: what the bytes of a stored sample show, and what they are when no manifest says so."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import CHANNELS, IMAGENET_MEAN, IMAGENET_STD, SampleFormat, decode, sample_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_IMAGE_PIXELS = 64_000_000
_JPEG_MAGIC = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"  # with it a decoder takes a cut file for a whole one, and leaves the rest grey
_NORMALISED_LIMIT = 8.0  # ImageNet's normalisation gives -2.2 … 2.7; any other bytes read as float32 go far beyond


@dataclass(frozen=True)
class Picture:
    """A picture to show: `pixels` is uint8, (height, width, 3).

    `minimum`, `maximum` and `mean` are of the values as stored, None for an ordinary image file. `basis` tells in
    words how the format was found out.
    """

    pixels: NDArray[np.uint8]
    kind: str
    basis: str
    is_part: bool = False
    """True for an image of which only the upper part was read."""
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


def square_side(fmt: SampleFormat, size: int) -> int | None:
    """The side of the square sample that has `size` bytes, None when none has."""
    side = math.isqrt(size // (CHANNELS * fmt.itemsize))
    return side if side and sample_bytes(fmt, side, side) == size else None


def guess_sample(name: str, data: bytes) -> Picture:
    """The picture in a sample of which only name and bytes are known. Raises ConsoleError when the size fits none.

    Where both formats have a square of that size the values decide: bytes of pixels make no small float32.
    """
    sides = {fmt: side for fmt in SampleFormat if (side := square_side(fmt, len(data)))}
    if not sides:
        raise ConsoleError(
            f"{len(data):,} bytes fit no known sample format: a square has 3·n·n (image-u8) or 12·n·n (tensor-f32).",
            remedy="Without a manifest only square samples are recognised.",
        )
    if len(sides) == 1:
        (fmt,) = sides
        return show_sample(fmt, data, sides[fmt], sides[fmt], basis="by its size")
    fmt = SampleFormat.TENSOR_F32 if _looks_like_floats(data) else SampleFormat.IMAGE_U8
    basis = "by its name, size and values" if name.endswith(fmt.suffix) else "by its size and values"
    return show_sample(fmt, data, sides[fmt], sides[fmt], basis=basis)


def show_sample(fmt: SampleFormat, data: bytes, height: int, width: int, *, basis: str) -> Picture:
    """The picture of a sample; `tensor-f32` with the normalisation undone. Raises ConsoleError on a wrong length."""
    import numpy as np

    values = decode(fmt, data, height, width)
    finite = values[np.isfinite(values)]
    if fmt is SampleFormat.IMAGE_U8:
        pixels = values.astype(np.uint8)
    else:
        mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
        scaled = np.nan_to_num(values.astype(np.float32) * std + mean, nan=0.0, posinf=1.0, neginf=0.0)
        pixels = (scaled.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return Picture(
        pixels=np.ascontiguousarray(pixels.transpose(1, 2, 0)),
        kind=str(fmt),
        basis=basis,
        minimum=float(finite.min()) if finite.size else None,
        maximum=float(finite.max()) if finite.size else None,
        mean=float(finite.mean(dtype=np.float64)) if finite.size else None,
    )


def show_image(data: bytes, *, is_whole: bool = True) -> Picture:
    """An ordinary image file (JPEG, PNG, …); of a JPEG that is cut short, the upper part. Raises ConsoleError."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from ossconsole.dataset.upload.prepare import picture_problem

    is_part = not is_whole and data.startswith(_JPEG_MAGIC)
    try:
        with Image.open(io.BytesIO(data + _JPEG_END if is_part else data)) as image:
            kind = f"{image.format or 'image'} {image.mode}, {image.width} x {image.height} px"
            if image.width * image.height > _MAX_IMAGE_PIXELS:
                raise ConsoleError(f"{kind}: too many pixels to show.")
            if not is_whole and not is_part:
                raise ConsoleError(f"{kind}: its first {len(data):,} bytes alone show nothing.")
            kind += f", from its first {len(data):,} bytes" if is_part else ""
            return Picture(np.asarray(image.convert("RGB")), kind, "by its first bytes", is_part=is_part)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConsoleError(f"The image cannot be read: {picture_problem(error)}.") from error


def fit(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture scaled to fit `width` x `height` pixels with its proportions kept."""
    import numpy as np
    from PIL import Image

    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, resampling))


def contact_sheet(pictures: list[Picture], columns: int, side: int, gap: int = 2) -> NDArray[np.uint8]:
    """Pictures in rows of `columns`, each fitted into a square of `side` pixels, on black."""
    import numpy as np

    rows = -(-len(pictures) // columns)
    step = side + gap
    sheet = np.zeros((max(1, rows * step - gap), columns * step - gap, 3), np.uint8)
    for number, picture in enumerate(pictures):
        small = fit(picture.pixels, side, side)
        top = number // columns * step + (side - small.shape[0]) // 2
        left = number % columns * step + (side - small.shape[1]) // 2
        sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
    return sheet


def _looks_like_floats(data: bytes) -> bool:
    import numpy as np

    values = np.frombuffer(data, "<f4")
    return bool(np.isfinite(values).all() and np.abs(values).max() < _NORMALISED_LIMIT and np.abs(values).mean() > 1e-6)
