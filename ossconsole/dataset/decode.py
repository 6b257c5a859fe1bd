"""Decoding of image files: upright RGB pixels from JPEG, PNG and other formats. Uploads and readers share it.

Ordinary JPEGs take a third of Pillow's time with libjpeg-turbo. Pillow decodes the unusual ones: rotated, damaged, not
three channels.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageOps, PngImagePlugin, UnidentifiedImageError

from ossconsole.config.errors import ConsoleError

# numpy is imported where it is needed: a preparation process of image-u8 starts in half the time without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 100_000_000  # of a JPEG; ImageNet's largest image has 54 million
MAX_WHOLE_PIXELS = 50_000_000
"""Of an image that cannot be decoded at a smaller size. Decoding one of any kind takes at most 1.1 GB of memory."""

# The formats PIL may open (MPO is part of JPEG): none that starts other programs (EPS) or has no photographs.
_IMAGE_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_FTYP_FORMATS = ("AVIF", "HEIF")  # where a codec is there

PngImagePlugin.MAX_TEXT_CHUNK = 8 << 20  # of a colour profile; cameras' and printers' have up to 4 MB
Image.MAX_IMAGE_PIXELS = None  # the limits here are lower for most formats, and checked before anything is decoded
_ORIENTATION_TAG = 0x0112
_TIFF_SIDES = (256, 257)  # the tags of width and height as they are stored
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
# Where PIL keeps what may have the orientation; for images without these the lookup would cost time for nothing.
_ORIENTED_BY = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_WHITE = (255, 255, 255)
_STRIP = 256  # rows


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


_BY_FIRST_BYTES = (
    (re.compile(rb"....ftyp(?:heic|heix|hevc|heim|heis|mif1|msf1)", re.DOTALL), "a HEIC image"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "an AVIF image"),
    (re.compile(rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 image, which is not supported"),
    (re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL "), "a JPEG XL image, which is not supported"),
    (re.compile(rb"8BPS"), "a Photoshop document, which is not supported"),
    (re.compile(rb"%PDF"), "a PDF document, not an image"),
    (re.compile(rb"%!PS"), "a PostScript document, not an image"),
    (re.compile(rb"\s*<svg|\s*<\?xml", re.IGNORECASE), "an XML or SVG document, not an image"),
    (re.compile(rb"\s*<(?:!doctype|html)", re.IGNORECASE), "an HTML page, not an image"),
)
_CODECS = {"a HEIC image": "pillow-heif", "an AVIF image": "pillow-avif-plugin"}
"""The packages that read a kind of image that Pillow may not read itself."""


@functools.cache
def _register_heif() -> None:
    """Lets Pillow read HEIC where the package for it is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found]

        pillow_heif.register_heif_opener()


def not_an_image(data: bytes) -> str:
    """What a file is that cannot be read as an image, by its first bytes."""
    kind = next((kind for pattern, kind in _BY_FIRST_BYTES if pattern.match(data)), "")
    if kind in _CODECS:
        return f"{kind}: install {_CODECS[kind]} to read it"
    return kind or "not a readable image"


def open_pillow(data: bytes) -> Image.Image:
    """The image, not decoded yet. Raises UnreadableImageError when it is too large or no image, and what PIL raises."""
    formats = _IMAGE_FORMATS
    if data[4:8] == b"ftyp":
        _register_heif()
        Image.init()
        formats = tuple(each for each in _FTYP_FORMATS if each in Image.OPEN)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(not_an_image(data)) from error
    check_pixels(*image.size, MAX_PIXELS if image.format in {"JPEG", "MPO"} else MAX_WHOLE_PIXELS)
    return image


def check_pixels(width: int, height: int, limit: int) -> None:
    """Raises UnreadableImageError for more pixels than `limit`."""
    if width * height > limit:
        raise UnreadableImageError(f"{width} x {height} px are more than {limit // 1_000_000} megapixels")


def is_rotated(image: Image.Image) -> bool:
    """Whether the EXIF orientation is not the usual one."""
    if image.format != "TIFF" and _ORIENTED_BY.isdisjoint(image.info):
        return False
    try:
        return bool(image.getexif().get(_ORIENTATION_TAG, 1) != 1)
    except Exception:  # noqa: BLE001  a broken EXIF block says nothing about the pixels
        return False


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, in place: a copy beside it may have 400 MB."""
    if is_rotated(image):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image decoded, turned upright, and in RGB, see `to_rgb`. Raises what that does."""
    # Pillow takes every CMYK JPEG for one of Adobe's, which store the values inverted.
    inverted = image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info
    turned = upright(image)
    return _inverted_to_rgb(turned) if inverted else to_rgb(turned)


def _inverted_to_rgb(image: Image.Image) -> Image.Image:
    """The CMYK image with its values inverted, in RGB: a strip after the other, as a copy of it has 400 MB."""
    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        converted.paste(ImageChops.invert(strip).convert("RGB"), (0, top))
    return converted


def to_rgb(image: Image.Image) -> Image.Image:
    """The decoded image in RGB: transparent parts on white, 16 bits scaled to 8.

    Raises UnreadableImageError for pixels without a known range, and what PIL's decoders raise.
    """
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16"):
        import numpy as np

        levels = np.asarray(image)
        return Image.fromarray(_to_eight_bits()[levels]).convert("RGB")
    if image.mode in {"I", "F"}:
        raise UnreadableImageError(f"its pixels ({image.mode}, 32 bits) have no known range")
    if image.has_transparency_data:
        if image.mode not in {"RGBA", "LA"}:
            image = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, _WHITE)
        opaque.paste(
            image if image.mode == "RGBA" else image.getchannel("L").convert("RGB"), mask=image.getchannel("A")
        )
        return opaque
    return image.convert("RGB")


@functools.cache
def _to_eight_bits() -> NDArray[np.uint8]:
    """(65536,): the level of 8 bits for each level of 16 bits."""
    import numpy as np

    return ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


# What libjpeg reports where it makes up pixels; Pillow accepts such an image.
_DATA_DAMAGED = re.compile(
    r"premature end of data|bad Huffman|bad arithmetic|instead of RST|inconsistent progress", re.IGNORECASE
)


def import_jpeg_libraries() -> None:
    """Imports what `EncodedImage` needs; called before a process forks, so that its forks have it."""
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


def _turbo_decode(data: bytes, least_width: int, least_height: int) -> NDArray[np.uint8] | None:
    """(height, width, 3) in RGB of a JPEG, the same pixels as Pillow's; None when Pillow should decode it.

    It is halved while neither side falls below its least length; 0 is the whole size. Raises UnreadableImageError when
    data are missing.
    """
    import simplejpeg

    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastupsample=False,
            min_height=least_height,
            min_width=least_width,
            min_factor=2,
            strict=True,
        )
    except ValueError as error:
        if _DATA_DAMAGED.search(str(error)):
            raise UnreadableImageError("its data are damaged: a part of the image is missing") from error
        return None
    return pixels


_JPEG_START = b"\xff\xd8\xff"
_MARKER = 0xFF
_METADATA = (b"Exif\0", b"http://ns.adobe.com/xap/")
"""What marks the metadata of a JPEG that may have an orientation."""

_APP1, _START_OF_SCAN = 0xE1, 0xDA
_LONE_MARKERS = {0x01, 0xFF, *range(0xD0, 0xD9)}
"""The second bytes of what has no length: TEM, fill bytes, RST and SOI."""


def _has_metadata(data: bytes) -> bool:
    """Whether a JPEG may have an orientation, by its segments before the image; True where they are damaged."""
    at = 2
    while at + 4 <= len(data) and data[at] == _MARKER:
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            return False
        if marker in _LONE_MARKERS:
            at += 1 if marker == _MARKER else 2
            continue
        if marker == _APP1 and data.startswith(_METADATA, at + 4):
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True


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
        if not data.startswith(_JPEG_START) or _has_metadata(data):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        check_pixels(width, height, MAX_PIXELS)
        return (width, height) if colours == "YCbCr" else None

    def _pillow_size(self) -> tuple[int, int]:
        image = open_pillow(self._data)
        width, height = image.size
        if image.format == "TIFF":  # its size is upright already, or not, depending on the version of Pillow
            width, height = (int(image.tag_v2[tag]) for tag in _TIFF_SIDES)  # type: ignore[attr-defined]
        if image.format == "JPEG" and image.mode == "RGB" and not is_rotated(image):
            return width, height
        self._image = image
        turned = is_rotated(image) and image.getexif().get(_ORIENTATION_TAG, 1) in _SIDEWAYS
        return (height, width) if turned else (width, height)

    def _decode_jpeg(self, least_width: int, least_height: int) -> NDArray[np.uint8] | None:
        can_halve = self.width >= 2 * least_width and self.height >= 2 * least_height
        least = (least_width, least_height) if can_halve else (0, 0)
        return _turbo_decode(self._data, *least)

    def _decode_pillow(self, least_width: int, least_height: int) -> NDArray[np.uint8]:
        import numpy as np

        if self._data.startswith(_JPEG_START):
            _turbo_decode(self._data, 1, 1)  # at an eighth: only to find out whether the data are complete
        image = self._image or open_pillow(self._data)
        least = (least_width, least_height) if image.size == (self.width, self.height) else (least_height, least_width)
        image.draft("RGB", least)
        upright_image = upright_rgb(image)
        # The image as it was decoded is dropped: with its copies it would take more memory than a process may.
        self._image = self._image and open_pillow(self._data)
        del image
        return np.asarray(upright_image)
