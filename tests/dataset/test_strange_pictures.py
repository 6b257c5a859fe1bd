"""Strange pictures, in every format of a sample: the right pixels, or a refusal in our own words."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, features

from ossconsole.dataset.decode import UnreadableImageError
from ossconsole.dataset.formats import SampleFormat, decode
from ossconsole.dataset.upload.prepare import PreprocessConfig, prepare
from tests.dataset.conftest import saved

SIDE = 64
CONFIGS = (
    PreprocessConfig(SampleFormat.IMAGE_JPEG, 32, quality=95),
    PreprocessConfig(SampleFormat.IMAGE_U8, 32, keep_ratio=True),
    PreprocessConfig(SampleFormat.TENSOR_F32, 32),
)


def scene() -> NDArray[np.uint8]:
    """(64, 64, 3): four flat colours, so that colours can be compared after any lossy coding."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    half = SIDE // 2
    pixels[:half, :half], pixels[:half, half:] = (220, 40, 40), (40, 200, 60)
    pixels[half:, :half], pixels[half:, half:] = (50, 60, 210), (230, 220, 90)
    return pixels


RGB = Image.fromarray(scene())


JPEG = saved(RGB, "JPEG", quality=95, subsampling=0)
PNG = saved(RGB, "PNG")


def without_app14(data: bytes) -> bytes:
    at = data.find(b"\xff\xee\x00\x0eAdobe")
    assert at > 0
    return data[:at] + data[at + 16 :]


def with_app14(data: bytes, transform: int) -> bytes:
    """The JPEG with an Adobe segment, in place of one it has."""
    data = without_app14(data) if b"\xff\xee\x00\x0eAdobe" in data else data
    return data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform]) + data[2:]


def without_jfif(data: bytes) -> bytes:
    length = struct.unpack(">H", data[4:6])[0]
    assert data[6:10] == b"JFIF"
    return data[:2] + data[4 + length :]


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


def frame(data: bytes, **changes: int) -> bytes:
    """The JPEG with changes to its frame header: `marker`, `precision`, `height`, `width`."""
    at = next(at for mark in (b"\xff\xc0", b"\xff\xc2") if (at := data.find(mark)) > 0)
    header = bytearray(data[at : at + 9])
    header[1] = changes.get("marker", header[1])
    header[4] = changes.get("precision", header[4])
    header[5:7] = struct.pack(">H", changes.get("height", struct.unpack(">H", header[5:7])[0]))
    header[7:9] = struct.pack(">H", changes.get("width", struct.unpack(">H", header[7:9])[0]))
    return data[:at] + bytes(header) + data[at + 9 :]


def cmyk(transform: int) -> bytes:
    """A CMYK JPEG with an Adobe segment; Pillow writes its values inverted, as Photoshop does."""
    return with_app14(saved(RGB.convert("CMYK"), "JPEG", quality=95), transform)


def ycck() -> bytes:
    """CMYK stored as YCCK, transform 2: the three colours of a YCbCr JPEG, and an even fourth channel."""
    import cv2

    ycc = cv2.cvtColor(255 - scene(), cv2.COLOR_RGB2YCrCb)[:, :, [0, 2, 1]]
    stored = np.dstack([ycc, np.full((SIDE, SIDE), 255, np.uint8)])
    # Pillow stores the four channels as they are, but for the inversion.
    return with_app14(saved(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=95), 2)


def damaged_last_scan() -> bytes:
    data = bytearray(saved(RGB, "JPEG", quality=95, progressive=True))
    last = data.rfind(b"\xff\xda")
    at = last + (len(data) - last) // 2
    data[at : at + 6] = b"\xff\xd9" + bytes(4)
    return bytes(data[: at + 2])


def restart_markers() -> bytes:
    """Twelve bytes too many before the first restart marker, where a decoder finds its place again."""
    data = saved(RGB, "JPEG", quality=95, subsampling=0, restart_marker_rows=1)
    at = data.find(b"\xff\xd0")
    return data[:at] + bytes(range(1, 13)) + data[at:]


def lost_restart() -> bytes:
    data = saved(RGB, "JPEG", quality=95, subsampling=0, restart_marker_rows=1)
    return data.replace(b"\xff\xd1", b"\xff\xd5", 1)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_png_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
    return data[:33] + png_chunk(kind, content) + data[33:]


def png_of_one_colour(width: int, height: int) -> bytes:
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(1 + width // 8)) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def sixteen_bits(kind: str) -> bytes:
    import cv2

    wide = scene()[:, :, ::-1].astype(np.uint16) * 257
    done, data = cv2.imencode(kind, wide)
    assert done
    return bytes(data)


def oriented(kind: str, orientation: int, stored: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(stored, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))


def frames(kind: str) -> bytes:
    return saved(RGB, kind, save_all=True, append_images=[Image.new("RGB", RGB.size)], lossless=True)


def heic() -> bytes:
    return b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)


ICC = bytes(range(256)) * 8192  # 2 MB
GREY = "grey"
FIRST_ANIMATED = frames("WEBP")


class Picture(NamedTuple):
    """`make` returns the file. It is refused for a reason, or has the colours of the scene or its grey."""

    make: Callable[[], bytes]
    refused: str = ""
    colours: str = "scene"


PICTURES: dict[str, Picture] = {
    "JPEG, grey": Picture(lambda: saved(RGB.convert("L"), "JPEG", quality=95), colours=GREY),
    "JPEG, progressive": Picture(lambda: saved(RGB, "JPEG", quality=95, progressive=True)),
    "JPEG, chroma 4:2:0": Picture(lambda: saved(RGB, "JPEG", quality=95, subsampling=2)),
    "JPEG, chroma 4:4:0": Picture(lambda: simplejpeg.encode_jpeg(scene(), 95, "RGB", "440")),
    "JPEG, neither JFIF nor Adobe": Picture(lambda: without_jfif(JPEG)),
    "JPEG, Adobe transform 1": Picture(lambda: with_app14(without_jfif(JPEG), 1)),
    "JPEG, Adobe transform 0: RGB as it is": Picture(
        lambda: with_app14(saved(RGB, "JPEG", quality=95, keep_rgb=True), 0)
    ),
    "CMYK, Adobe transform 0": Picture(lambda: cmyk(0)),
    "CMYK, Adobe transform 1, which is for three channels": Picture(lambda: with_app14(ycck(), 1)),
    "CMYK, Adobe transform 2 (YCCK)": Picture(ycck),
    "CMYK, no Adobe segment": Picture(
        lambda: without_app14(saved(Image.fromarray(255 - np.asarray(RGB.convert("CMYK")), "CMYK"), "JPEG", quality=95))
    ),
    "JPEG, orientation 6": Picture(lambda: oriented("JPEG", 6, RGB.transpose(Image.Transpose.ROTATE_90))),
    "JPEG, orientation 5 (mirrored)": Picture(lambda: oriented("JPEG", 5, RGB.transpose(Image.Transpose.TRANSPOSE))),
    "PNG, orientation 8": Picture(lambda: oriented("PNG", 8, RGB.transpose(Image.Transpose.ROTATE_270))),
    "JPEG, an EXIF block that claims 2.5 MB": Picture(
        lambda: with_segment(JPEG, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x9c\x9b\0\x01\0\x26\x25\xa0\0\0\0\x1a")
    ),
    "JPEG, a profile of 2 MB": Picture(lambda: saved(RGB, "JPEG", quality=95, subsampling=0, icc_profile=ICC)),
    "JPEG, MPO of two frames": Picture(
        lambda: saved(RGB, "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", RGB.size)])
    ),
    "JPEG, bytes after its end": Picture(lambda: JPEG + bytes(5000)),
    "JPEG, 12 bits": Picture(lambda: frame(JPEG, marker=0xC1, precision=12), "damaged|unsupported|not a readable"),
    "JPEG, lossless": Picture(lambda: frame(JPEG, marker=0xC3), "damaged|unsupported|not a readable|missing"),
    "JPEG, cut by 60 bytes": Picture(lambda: saved(RGB, "JPEG", quality=95)[:-60], "truncated|missing|damaged"),
    "JPEG, 12 bytes before a restart marker": Picture(restart_markers),
    "JPEG, a restart marker of another number": Picture(lost_restart, "missing|damaged"),
    "JPEG, progressive with a damaged last scan": Picture(damaged_last_scan, "missing|damaged|truncated"),
    "JPEG, 101 megapixels": Picture(lambda: frame(JPEG, width=10_100, height=10_000), "more than 100 megapixels"),
    "JPEG, no height": Picture(lambda: frame(JPEG, height=0), "damaged|not a readable|unsupported"),
    "PNG, grey of 16 bits": Picture(
        lambda: saved(Image.fromarray(np.asarray(RGB.convert("L")).astype(np.uint16) * 257), "PNG"), colours=GREY
    ),
    "PNG, colours of 16 bits": Picture(lambda: sixteen_bits(".png")),
    "PNG, palette": Picture(lambda: saved(RGB.quantize(16), "PNG")),
    "PNG, palette with a transparent colour": Picture(lambda: saved(RGB.quantize(16), "PNG", transparency=15)),
    "PNG, transparent": Picture(
        lambda: saved(Image.merge("RGBA", (*RGB.split(), Image.new("L", RGB.size, 255))), "PNG")
    ),
    "PNG, a profile of 2 MB": Picture(lambda: with_png_chunk(PNG, b"iCCP", b"x\0\0" + zlib.compress(ICC))),
    "PNG, a text of 80 MB": Picture(
        lambda: with_png_chunk(PNG, b"zTXt", b"x\0\0" + zlib.compress(bytes(80 << 20))), "metadata"
    ),
    "PNG, cut by 60 bytes": Picture(lambda: saved(Image.effect_noise((64, 64), 50), "PNG")[:-60], "truncated|damaged"),
    "PNG, 20,000 x 20,000 of one colour": Picture(lambda: png_of_one_colour(20_000, 20_000), "more than 50 megapixels"),
    "PNG, animated": Picture(
        lambda: saved(RGB, "PNG", save_all=True, append_images=[Image.new("RGB", RGB.size)], duration=100)
    ),
    "WebP, animated": Picture(lambda: FIRST_ANIMATED),
    "GIF, animated, with the name of a JPEG": Picture(lambda: frames("GIF")),
    "TIFF, colours of 16 bits": Picture(lambda: sixteen_bits(".tiff")),
    "TIFF, two pages": Picture(lambda: saved(RGB, "TIFF", save_all=True, append_images=[Image.new("RGB", RGB.size)])),
    "TIFF, CMYK": Picture(lambda: saved(RGB.convert("CMYK"), "TIFF")),
    "TIFF, floating point": Picture(
        lambda: saved(Image.fromarray(np.zeros((SIDE, SIDE), np.float32)), "TIFF"), "no known range"
    ),
    "AVIF": Picture(
        lambda: saved(RGB, "AVIF", quality=95) if features.check("avif") else heic().replace(b"heic", b"avif"),
        "" if features.check("avif") else "an AVIF image: install pillow-avif-plugin",
    ),
    "HEIC without a codec": Picture(heic, "a HEIC image: install pillow-heif|damaged"),
    "JPEG 2000": Picture(lambda: b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(200), "a JPEG 2000 image"),
    "JPEG XL": Picture(lambda: b"\xff\x0a" + bytes(200), "a JPEG XL image, which is not supported"),
    "a Photoshop document": Picture(lambda: b"8BPS\0\1" + bytes(200), "a Photoshop document"),
    "a PDF document": Picture(lambda: b"%PDF-1.7\n" + bytes(200), "a PDF document, not an image"),
    "an SVG document": Picture(lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an XML or SVG document"),
    "an HTML page with the name of a JPEG": Picture(lambda: b"<!DOCTYPE html><html><title>404", "an HTML page"),
    "nothing": Picture(lambda: b"", "the file is empty"),
}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.format))
@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("ignore")
def test_a_strange_picture_is_right_or_refused_in_our_own_words(name: str, config: PreprocessConfig) -> None:
    wanted = PICTURES[name]
    data = wanted.make()
    if wanted.refused:
        with pytest.raises(UnreadableImageError, match=wanted.refused) as raised:
            prepare(data, "val/a", config)
        assert not re.search(r"b'|0x|_io|Pillow|PIL|struct|MAX_TEXT", raised.value.message)
        return
    prepared = prepare(data, "val/a", config)
    if config.format.encoded:
        found = np.asarray(Image.open(io.BytesIO(prepared.payload)).convert("RGB"), dtype=float)
    else:
        found = (
            decode(config.format, prepared.payload, prepared.height, prepared.width).transpose(1, 2, 0).astype(float)
        )
        if config.format is SampleFormat.TENSOR_F32:
            found = (found * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255
    expected = np.asarray(RGB.convert("L").convert("RGB") if wanted.colours == GREY else RGB, dtype=float)
    for row in (0.25, 0.75):
        for column in (0.25, 0.75):
            here = found[int(found.shape[0] * row), int(found.shape[1] * column)]
            assert np.abs(here - expected[int(SIDE * row), int(SIDE * column)]).max() < 14, (row, column, here)


MEMORY_LIMIT = 1_100_000_000  # bytes; what the README says a preparation process needs at most for an image
_PREPARING = """
import json, re, sys
from pathlib import Path
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.prepare import PreprocessConfig, prepare

def peak():  # unlike ru_maxrss, without that of the process that started this one
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

format = SampleFormat(sys.argv[2])
config = PreprocessConfig(format, 32, quality=95 if format.encoded else 0)
prepare(Path(sys.argv[1]).read_bytes(), "val/a", config)  # the libraries are loaded
before = peak()
prepared = prepare(Path(sys.argv[3]).read_bytes(), "val/a", config)
print(json.dumps([peak() - before, prepared.height, prepared.width]))
"""


def large(kind: str, megapixels: int, mode: str = "RGB", **options: Any) -> bytes:
    """An image of 10,000 px width in one colour, whose encoded form is small."""
    return saved(Image.new(mode, (10_000, megapixels * 100), (90, 140, 200, 255)[: len(mode)]), kind, **options)


LARGE: dict[str, Callable[[], bytes]] = {
    "JPEG of 99 megapixels": lambda: large("JPEG", 99),
    "progressive JPEG of 99 megapixels": lambda: large("JPEG", 99, progressive=True),
    "CMYK JPEG of 99 megapixels": lambda: large("JPEG", 99, "CMYK"),
    "CMYK JPEG of 99 megapixels, no Adobe segment": lambda: without_app14(large("JPEG", 99, "CMYK")),
    "JPEG of 99 megapixels, orientation 6": lambda: oriented("JPEG", 6, Image.new("RGB", (10_000, 9_900))),
    "CMYK JPEG of 99 megapixels, orientation 6": lambda: oriented("JPEG", 6, Image.new("CMYK", (10_000, 9_900))),
    "PNG of 49 megapixels with transparency": lambda: large("PNG", 49, "RGBA", compress_level=1),
    "WebP of 49 megapixels with transparency": lambda: large("WEBP", 49, "RGBA", lossless=True, method=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("fmt", SampleFormat, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_the_largest_pictures_need_no_more_memory_than_is_stated(name: str, fmt: SampleFormat, tmp_path: Path) -> None:
    small, picture = tmp_path / "small", tmp_path / "picture"
    small.write_bytes(JPEG)
    picture.write_bytes(LARGE[name]())
    command = [sys.executable, "-c", _PREPARING, str(small), str(fmt), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, height, width = json.loads(done.stdout)
    assert min(height, width) == 32
    assert peak < MEMORY_LIMIT
