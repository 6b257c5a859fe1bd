from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.contents import fit, guess_sample, show_image, show_sample, square_side
from ossconsole.dataset.formats import IMAGENET_MEAN, IMAGENET_STD, SampleFormat, encode


def photograph(side: int) -> npt.NDArray[np.uint8]:
    """Something with the values of a picture, CHW uint8."""
    y, x = np.mgrid[:side, :side]
    return np.stack([(np.sin(x / 9) + 1) * 127, (np.cos(y / 7) + 1) * 100, (x + y) * 127 / side]).astype(np.uint8)


def normalised(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return np.asarray((pixels / 255 - mean) / std, np.float32)


def test_a_u8_sample_is_the_picture_it_holds() -> None:
    pixels = photograph(32)
    picture = show_sample(SampleFormat.IMAGE_U8, encode(SampleFormat.IMAGE_U8, pixels), 32, 32, basis="x")
    assert np.array_equal(picture.pixels, pixels.transpose(1, 2, 0))
    assert (picture.minimum, picture.maximum) == (float(pixels.min()), float(pixels.max()))
    assert picture.mean == pytest.approx(pixels.mean())


def test_an_f32_sample_is_shown_with_its_normalisation_undone() -> None:
    pixels = photograph(32)
    values = normalised(pixels)
    picture = show_sample(SampleFormat.TENSOR_F32, encode(SampleFormat.TENSOR_F32, values), 32, 32, basis="x")
    assert np.array_equal(picture.pixels, pixels.transpose(1, 2, 0))
    assert picture.minimum == pytest.approx(values.min())


def test_values_that_are_no_numbers_do_not_break_the_picture() -> None:
    values = normalised(photograph(8))
    values[0, 0, :3] = (np.nan, np.inf, -np.inf)
    picture = show_sample(SampleFormat.TENSOR_F32, values.tobytes(), 8, 8, basis="x")
    assert picture.pixels[0, :3, 0].tolist() == [0, 255, 0]
    for figure in (picture.minimum, picture.maximum, picture.mean):
        assert figure is not None
        assert np.isfinite(figure)


@pytest.mark.parametrize("name", ["a.pt", "a.u8", "a"])
def test_where_both_formats_fit_the_values_decide(name: str) -> None:
    u8, f32 = photograph(64), normalised(photograph(32))
    assert len(u8.tobytes()) == len(f32.tobytes())
    assert guess_sample(name, u8.tobytes()).width == 64
    assert guess_sample(name, f32.tobytes()).width == 32
    black = np.zeros((3, 64, 64), np.uint8)
    assert guess_sample(name, black.tobytes()).width == 64


def test_a_size_that_fits_nothing_says_so() -> None:
    assert square_side(SampleFormat.IMAGE_U8, 1000) is None
    with pytest.raises(ConsoleError, match="1,000 bytes fit no known sample format"):
        guess_sample("a.pt", b"x" * 1000)


def jpeg(side: int) -> bytes:
    sink = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def test_images_and_the_upper_part_of_a_cut_one() -> None:
    data = jpeg(300)
    whole = show_image(data)
    assert whole.kind == "JPEG RGB, 300 x 300 px"
    part = show_image(data[: len(data) // 2], is_whole=False)
    assert np.array_equal(part.pixels[:100], whole.pixels[:100])
    assert part.pixels[-20:].std() == 0
    with pytest.raises(ConsoleError, match="cannot be read"):
        show_image(data[: len(data) // 2])
    sink = io.BytesIO()
    Image.fromarray(whole.pixels).save(sink, "PNG")
    with pytest.raises(ConsoleError, match="300 x 300 px: its first"):
        show_image(sink.getvalue()[:5000], is_whole=False)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF1234WEBP"])
def test_what_only_begins_like_an_image_is_refused(data: bytes) -> None:
    with pytest.raises(ConsoleError):
        show_image(data)


def test_fitting_keeps_proportions() -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    assert fit(wide, 20, 20).shape == (5, 20, 3)
    assert fit(wide, 80, 80).shape == (20, 80, 3)
