"""Decoding of image files: upright RGB pixels from JPEG, PNG and other formats. Uploads and readers share it.

Ordinary JPEGs take a third of Pillow's time with libjpeg-turbo. Pillow decodes the unusual ones: rotated, damaged, not
three channels.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from ossconsole.config.errors import ConsoleError

# numpy is imported where it is needed: a preparation process of image-u8 starts in half the time without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 100_000_000  # ImageNet's largest image has 54 million

# The formats PIL may open (MPO is part of JPEG): none that starts other programs (EPS) or has no photographs.
_IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
# Where PIL keeps what may have the orientation; for images without these the lookup would cost time for nothing.
_ORIENTED_BY = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_WHITE = (255, 255, 255, 255)


class UnreadableImageError(ConsoleError):
    """A file that cannot become a sample; the message is the reason alone."""


def image_problem(error: Exception) -> str:
    """The reason behind an exception of PIL, whose own texts quote bytes of the file and parts of PIL."""
    text = str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not a readable image"
    if isinstance(error, Image.DecompressionBombError):
        return "it has too many pixels"
    if isinstance(error, MemoryError):
        return "it needs more memory than is available"
    if any(sign in text for sign in ("truncated", "unexpected end", "not enough", "buffer of")):
        return "it is truncated: a part of the image is missing"
    if "Decompressed data too large" in text or "too large" in text.lower():
        return "its metadata (a colour profile or a text) are too large"
    return "it is damaged, or of an unsupported kind"


def open_pillow(data: bytes) -> Image.Image:
    """The image, not decoded yet. Raises UnreadableImageError when it is too large, and what PIL raises."""
    image = Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS)
    _check_pixels(*image.size)
    return image


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"{width} x {height} px are more than {MAX_PIXELS // 1_000_000} megapixels")


def is_rotated(image: Image.Image) -> bool:
    """Whether the EXIF orientation is not the usual one."""
    if image.format != "TIFF" and _ORIENTED_BY.isdisjoint(image.info):
        return False
    try:
        return bool(image.getexif().get(_ORIENTATION_TAG, 1) != 1)
    except Exception:  # noqa: BLE001  a broken EXIF block says nothing about the pixels
        return False


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    return ImageOps.exif_transpose(image) if is_rotated(image) else image


def to_rgb(image: Image.Image) -> Image.Image:
    """The decoded image in RGB: transparent parts on white, 16 bits scaled to 8.

    Raises UnreadableImageError for pixels without a known range, and what PIL's decoders raise.
    """
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16"):
        import numpy as np

        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise UnreadableImageError(f"its pixels ({image.mode}, 32 bits) have no known range")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, _WHITE)
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


# What libjpeg reports where it makes up the rest of the pixels; Pillow accepts such an image.
_DATA_MISSING = "premature end of data segment"


def import_jpeg_libraries() -> None:
    """Imports what `decode_jpeg` needs; called before a process forks, so that its forks have it."""
    import cv2
    import simplejpeg  # noqa: F401

    cv2.setNumThreads(1)  # there is a process for each core


# glibc's mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BUFFER, _KEPT_HEAP = 32 << 20, 128 << 20  # bytes; 32 MiB are an image of 11 megapixels


def keep_freed_memory() -> None:
    """For a process that decodes one image after the other: has it reuse the memory of the last one.

    Otherwise glibc returns it to the kernel and faults it in again for the next image, a quarter of the time.
    """
    import ctypes

    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP)


def decode_jpeg(data: bytes, size: tuple[int, int], at_least: int) -> NDArray[np.uint8] | None:
    """(height, width, 3) in RGB of the JPEG of `size` (width, height); None when Pillow should decode it.

    It is halved while both sides stay at least `at_least` pixels. Raises UnreadableImageError when data are missing.
    """
    enough = at_least if min(size) >= 2 * at_least else 0
    return _turbo_decode(data, enough, enough, fast_chroma=True)


def _turbo_decode(data: bytes, least_width: int, least_height: int, *, fast_chroma: bool) -> NDArray[np.uint8] | None:
    """Interpolated chroma costs 8 % of the time; pixels then differ from Pillow's by 0.25 levels (mean), not 0.85."""
    import simplejpeg

    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastupsample=fast_chroma,
            min_height=least_height,
            min_width=least_width,
            min_factor=2,
            strict=True,
        )
    except ValueError as error:
        if _DATA_MISSING in str(error):
            raise UnreadableImageError("its data are damaged: a part of the image is missing") from error
        return None
    return pixels


_JPEG_START = b"\xff\xd8\xff"
_METADATA = (b"Exif\0", b"http://ns.adobe.com/xap/")
"""What marks the metadata of a JPEG that may have an orientation."""

_METADATA_BYTES = 1 << 17  # searched for them; a segment of metadata has at most 64 KiB


class EncodedImage:
    """An image file whose header was read. `width` and `height` in pixels, upright."""

    def __init__(self, data: bytes) -> None:
        """Raises UnreadableImageError."""
        if not data:
            raise UnreadableImageError("the file is empty")
        self._data = data
        self._image: Image.Image | None = None
        try:
            self.width, self.height = self._plain_jpeg_size() or self._pillow_size()
        except UnreadableImageError:
            raise
        except Exception as error:  # PIL raises anything from struct.error to IndexError on broken files
            raise UnreadableImageError(image_problem(error)) from error

    @property
    def is_plain_jpeg(self) -> bool:
        """Whether it is an upright JPEG in three channels."""
        return self._image is None

    def pixels(self, least_width: int, least_height: int) -> NDArray[np.uint8]:
        """(height, width, 3) in RGB, halved up to three times while neither side falls below its least length.

        Raises UnreadableImageError.
        """
        try:
            if self._image is None:
                pixels = self._decode_jpeg(least_width, least_height)
                if pixels is not None:
                    return pixels
            return self._decode_pillow(least_width, least_height)
        except UnreadableImageError:
            raise
        except Exception as error:  # as above
            raise UnreadableImageError(image_problem(error)) from error

    def _plain_jpeg_size(self) -> tuple[int, int] | None:
        """Width and height of a JPEG in three channels without an orientation; None for any other image."""
        import simplejpeg

        data = self._data
        if not data.startswith(_JPEG_START) or any(data.find(mark, 0, _METADATA_BYTES) >= 0 for mark in _METADATA):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        _check_pixels(width, height)
        return (width, height) if colours == "YCbCr" else None

    def _pillow_size(self) -> tuple[int, int]:
        image = open_pillow(self._data)
        width, height = image.size
        if image.format == "JPEG" and image.mode == "RGB" and not is_rotated(image):
            return width, height
        self._image = image
        turned = is_rotated(image) and image.getexif().get(_ORIENTATION_TAG, 1) in _SIDEWAYS
        return (height, width) if turned else (width, height)

    def _decode_jpeg(self, least_width: int, least_height: int) -> NDArray[np.uint8] | None:
        can_halve = self.width >= 2 * least_width and self.height >= 2 * least_height
        least = (least_width, least_height) if can_halve else (0, 0)
        return _turbo_decode(self._data, *least, fast_chroma=False)

    def _decode_pillow(self, least_width: int, least_height: int) -> NDArray[np.uint8]:
        import numpy as np

        image = self._image or open_pillow(self._data)
        least = (least_width, least_height) if image.size == (self.width, self.height) else (least_height, least_width)
        image.draft("RGB", least)
        return np.asarray(to_rgb(upright(image)))
