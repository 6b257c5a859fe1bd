"""Preparation: bit for bit what torchvision gives, and the right pixels from every kind of strange picture."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms import functional

from ossconsole.config.errors import SettingsError
from ossconsole.dataset import decode as decoding
from ossconsole.dataset.crop import crop_box
from ossconsole.dataset.decode import EncodedImage, UnreadableImageError, image_problem
from ossconsole.dataset.formats import IMAGENET_MEAN, IMAGENET_STD, SampleFormat, decode
from ossconsole.dataset.sample_data import make_sample_images
from ossconsole.dataset.upload.prepare import PreprocessConfig, prepare
from tests.dataset.conftest import jpeg, picture, saved

F32, U8, JPEG = SampleFormat.TENSOR_F32, SampleFormat.IMAGE_U8, SampleFormat.IMAGE_JPEG
ORIGINALS = PreprocessConfig(JPEG, 0, originals=True)


def pixels(data: bytes, recipe: PreprocessConfig, key: str = "train/a") -> NDArray[np.generic]:
    prepared = prepare(data, key, recipe)
    return decode(recipe.format, prepared.payload, prepared.height, prepared.width)


def u8(data: bytes, size: int = 16) -> NDArray[np.generic]:
    return pixels(data, PreprocessConfig(U8, size))


# tensor-f32 against torchvision


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (300, 40), (8, 8), (500, 375)])
@pytest.mark.parametrize("seed", [0, 1])
def test_training_tensors_are_bit_identical_to_torchvisions(size: tuple[int, int], seed: int) -> None:
    data, key = jpeg(seed, size), f"train/{size}/{seed}"
    rng = random.Random(hashlib.sha256(f"{seed}/{key}".encode()).digest())
    image = Image.open(io.BytesIO(data)).convert("RGB")
    left, top, width, height = crop_box(*image.size, rng)
    cropped = functional.resized_crop(image, top, left, height, width, [32, 32])
    if rng.random() < 0.5:
        cropped = functional.hflip(cropped)
    wanted = functional.normalize(functional.to_tensor(cropped), list(IMAGENET_MEAN), list(IMAGENET_STD)).numpy()
    assert (pixels(data, PreprocessConfig(F32, 32, seed=seed), key) == wanted).all()


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (256, 300), (37, 37)])
def test_validation_tensors_are_bit_identical_to_torchvisions(size: tuple[int, int]) -> None:
    data = jpeg(1, size)
    compose = transforms.Compose(
        [
            transforms.Resize(64),
            transforms.CenterCrop(56),
            transforms.ToTensor(),
            transforms.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)),
        ]
    )
    wanted = compose(Image.open(io.BytesIO(data)).convert("RGB")).numpy()
    assert (pixels(data, PreprocessConfig(F32, 56), "val/a") == wanted).all()


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32))
def test_a_random_crop_lies_inside_the_picture(width: int, height: int, seed: int) -> None:
    left, top, w, h = crop_box(width, height, random.Random(seed))
    assert 0 <= left <= left + w <= width
    assert 0 <= top <= top + h <= height
    assert w > 0
    assert h > 0


def test_crops_cover_the_areas_and_ratios_of_random_resized_crop() -> None:
    boxes = [crop_box(400, 300, random.Random(seed)) for seed in range(2000)]
    areas = [w * h / 120_000 for _, _, w, h in boxes]
    ratios = [w / h for _, _, w, h in boxes]
    assert min(areas) < 0.1
    assert max(areas) > 0.9
    assert min(ratios) == pytest.approx(3 / 4, abs=0.02)
    assert max(ratios) == pytest.approx(4 / 3, abs=0.02)


# Determinism


@pytest.mark.parametrize(
    "recipe",
    [
        PreprocessConfig(F32, 16),
        PreprocessConfig(U8, 16),
        PreprocessConfig(U8, 16, keep_ratio=True),
        PreprocessConfig(JPEG, 16, quality=90),
    ],
)
def test_the_same_seed_gives_the_same_bytes(recipe: PreprocessConfig) -> None:
    assert prepare(jpeg(1), "train/a", recipe) == prepare(jpeg(1), "train/a", recipe)


def test_seed_and_key_change_the_crop_but_not_a_stored_image() -> None:
    recipe = PreprocessConfig(F32, 16)
    crops = {prepare(jpeg(1), f"train/{n}", recipe).payload for n in range(5)}
    crops |= {prepare(jpeg(1), "train/0", PreprocessConfig(F32, 16, seed=n)).payload for n in range(1, 5)}
    assert len(crops) == 9
    assert prepare(jpeg(1), "train/0", PreprocessConfig(U8, 16)) == prepare(
        jpeg(1), "train/1", PreprocessConfig(U8, 16, seed=9)
    )


def test_different_recipes_have_different_digests() -> None:
    recipes = [
        PreprocessConfig(F32, 16),
        PreprocessConfig(U8, 16),
        PreprocessConfig(U8, 17),
        PreprocessConfig(U8, 16, keep_ratio=True),
        PreprocessConfig(U8, 16, seed=1),
        PreprocessConfig(JPEG, 16, quality=90),
        PreprocessConfig(JPEG, 16, quality=80),
        ORIGINALS,
    ]
    assert len({recipe.digest for recipe in recipes}) == len(recipes)
    assert PreprocessConfig(U8, 16).digest == PreprocessConfig(U8, 16).digest


# image-u8


def test_a_square_is_the_middle_of_the_short_side() -> None:
    image = Image.new("RGB", (60, 20), "red")
    image.paste((0, 255, 0), (20, 0, 40, 20))
    assert (u8(saved(image, "PNG"))[:, 2:14, 2:14].transpose(1, 2, 0) == (0, 255, 0)).all()


def test_validation_keeps_the_margin_of_the_evaluation_transform() -> None:
    image = Image.new("RGB", (256, 256), "red")
    image.paste((0, 255, 0), (16, 16, 240, 240))
    sample = pixels(saved(image, "PNG"), PreprocessConfig(U8, 224), "val/a")
    assert (sample.transpose(1, 2, 0) == (0, 255, 0)).all()


def test_the_ratio_can_be_kept() -> None:
    recipe = PreprocessConfig(U8, 16, keep_ratio=True)
    assert pixels(jpeg(1, (64, 32)), recipe).shape == (3, 16, 32)
    assert pixels(jpeg(1, (32, 64)), recipe).shape == (3, 32, 16)


def test_a_jpeg_decoded_smaller_resembles_one_decoded_whole(tmp_path: Path) -> None:
    make_sample_images(tmp_path / "pictures", train=10, val=0)
    for path in (tmp_path / "pictures").rglob("*.jpg"):
        whole = np.asarray(Image.open(path).resize((24, 24), Image.Resampling.BOX), dtype=float)
        sample = u8(path.read_bytes(), 24).transpose(1, 2, 0).astype(float)
        assert np.abs(whole - sample).mean() < 3


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_sizes_out_of_range_are_bad_usage(size: int) -> None:
    with pytest.raises(SettingsError, match=str(size)):
        PreprocessConfig(U8, size).check()


def test_the_ratio_cannot_be_kept_in_a_tensor() -> None:
    with pytest.raises(SettingsError, match="--keep-ratio"):
        PreprocessConfig(F32, 224, keep_ratio=True).check()


# image-jpeg


def as_jpeg(data: bytes, size: int = 16, quality: int = 90) -> Image.Image:
    """The picture that is stored, which must be a JPEG of the prepared sides."""
    prepared = prepare(data, "train/a", PreprocessConfig(JPEG, size, quality=quality))
    image = Image.open(io.BytesIO(prepared.payload))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (prepared.width, prepared.height))
    return image


def natural(size: tuple[int, int]) -> Image.Image:
    """A scene with soft and hard edges, and grain."""
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    scene = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    scene = np.where(scene > 200, 255, scene) + rng.integers(-12, 13, scene.shape, dtype=np.int16)
    return Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(282, 250), (420, 320), (360, 640), (900, 600), (2100, 1500)])
def test_a_stored_jpeg_has_the_pixels_of_an_antialiased_resize(kind: str, size: tuple[int, int]) -> None:
    image = natural(size)
    data = saved(image, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    stored = as_jpeg(data, 200)
    assert min(stored.size) == 200
    assert stored.width / stored.height == pytest.approx(size[0] / size[1], rel=0.01)
    whole = Image.open(io.BytesIO(data)).resize(stored.size, Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(stored, dtype=int) - np.asarray(whole, dtype=int))
    assert difference.mean() < 5
    assert np.percentile(difference, 99) < 30


def test_the_quality_is_that_of_the_setting() -> None:
    data = saved(natural((400, 300)), "PNG")
    sizes = [len(prepare(data, "train/a", PreprocessConfig(JPEG, 200, quality=q)).payload) for q in (30, 60, 90)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "subsampling": 0}])
def test_a_jpeg_that_fits_is_kept_byte_for_byte(options: dict[str, Any]) -> None:
    data = saved(natural((300, 200)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0", **options)
    for size in (200, 256):
        prepared = prepare(data, "train/a", PreprocessConfig(JPEG, size, quality=90))
        assert (prepared.height, prepared.width) == (200, 300)
        assert prepared.payload == data
    assert as_jpeg(data, 199).size == (298, 199)


def test_a_smaller_picture_is_not_enlarged() -> None:
    assert as_jpeg(saved(picture(1, (30, 20)), "PNG"), 256).size == (30, 20)
    assert as_jpeg(jpeg(1, (400, 1)), 16).size == (400, 1)


def test_other_pictures_that_fit_become_upright_jpegs_in_three_channels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    scene = natural((400, 300))
    turned = saved(scene, "JPEG", exif=exif, quality=95)
    upright = as_jpeg(turned, 512)
    assert upright.size == (300, 400)
    assert not upright.getexif()
    wanted = scene.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(upright, dtype=int) - np.asarray(wanted, dtype=int)).mean() < 8
    assert as_jpeg(turned, 150).size == (150, 200)
    for image, kind in (
        (picture(1).convert("L"), "JPEG"),
        (picture(1).convert("CMYK"), "JPEG"),
        (picture(1).convert("RGBA"), "PNG"),
        (Image.fromarray(np.zeros((30, 40), np.uint16)), "PNG"),
    ):
        assert as_jpeg(saved(image, kind), 64).size == (40, 30)


def test_a_picture_that_is_too_long_for_a_jpeg_is_reported() -> None:
    with pytest.raises(UnreadableImageError, match="longer than"):
        as_jpeg(saved(Image.new("RGB", (65_530, 2)), "PNG"))
    with pytest.raises(UnreadableImageError, match="longer than"):
        prepare(saved(Image.new("RGB", (65_540, 2)), "PNG"), "train/a", ORIGINALS)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("WEBP", "RGB")])
def test_originals_are_kept_byte_for_byte_with_their_upright_size(kind: str, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    for options, size in (({}, (30, 40)), ({"exif": exif}, (40, 30))):
        data = saved(picture(1, (40, 30)).convert(mode), kind, **options)
        prepared = prepare(data, "train/a", ORIGINALS)
        assert (prepared.payload, (prepared.height, prepared.width)) == (data, size)


@pytest.mark.parametrize("data", [b"", b"not a picture", jpeg(1)[:30], b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_an_original_that_is_not_an_image_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableImageError) as raised:
        prepare(data, "train/a", ORIGINALS)
    assert not re.search(r"b'|_io|PIL|struct", raised.value.message)


@pytest.mark.parametrize("size", [16, 256])
def test_a_damaged_jpeg_is_reported_whether_it_fits_or_not(size: int) -> None:
    recipe = PreprocessConfig(JPEG, size, quality=90)
    with pytest.raises(UnreadableImageError, match=r"truncated|a part of the image is missing"):
        prepare(jpeg(1, (400, 200))[:-500], "train/a", recipe)


# Strange pictures


def test_exif_orientation_turns_the_picture_upright() -> None:
    upright = Image.new("RGB", (32, 32), "black")
    upright.paste((255, 255, 255), (0, 0, 32, 16))  # the sky is above
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        sample = u8(saved(upright.transpose(turn), "JPEG", exif=exif))
        assert float(sample[:, :6].mean()) > 240
        assert float(sample[:, -6:].mean()) < 15


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_width_and_height_are_those_of_the_upright_picture(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = EncodedImage(saved(picture(5).resize((40, 10)), kind, exif=exif))
    assert (image.width, image.height) == ((40, 10) if orientation < 5 else (10, 40))
    assert image.pixels(40, 40).shape[:2] == (image.height, image.width)


def test_a_broken_exif_block_does_no_harm() -> None:
    data = saved(picture(1), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert (u8(data) == u8(saved(picture(1), "JPEG"))).all()


def test_grey_palette_and_bilevel_become_three_channels() -> None:
    grey = picture(1).convert("L")
    sample = u8(saved(grey, "PNG"))
    assert (sample[0] == sample[2]).all()
    palette = u8(saved(picture(1).quantize(64), "PNG"))
    assert np.abs(palette.astype(int) - u8(saved(picture(1), "PNG"))).mean() < 20
    assert set(np.unique(u8(saved(Image.new("1", (16, 16), 1), "PNG")))) == {255}


def test_cmyk_has_the_colours_it_shows() -> None:
    red = Image.new("RGB", (32, 32), (250, 10, 10)).convert("CMYK")
    channels = u8(saved(red, "JPEG")).mean(axis=(1, 2))
    assert channels[0] > 235
    assert channels[1] < 25


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)  # to 65,472
    sample = u8(saved(Image.fromarray(ramp), "PNG")).astype(int)
    assert sample.min() < 12
    assert sample.max() > 243
    assert abs(sample.mean() - 127) < 3


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert (u8(saved(clear, "PNG")) == 255).all()
    half = Image.new("LA", (32, 32), (0, 128))
    assert abs(int(u8(saved(half, "PNG")).mean()) - 127) <= 1
    indexed = Image.new("P", (32, 32), 0)
    indexed.putpalette([0, 0, 0, 9, 9, 9])
    assert (u8(saved(indexed, "PNG", transparency=0)) == 255).all()


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert u8(data)[0].mean() > 250


def test_the_content_decides_not_the_name() -> None:
    assert (u8(saved(picture(1), "PNG")) == u8(saved(picture(1), "BMP"))).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 2)])
def test_tiny_and_thin_pictures_are_stretched(size: tuple[int, int]) -> None:
    for recipe in (PreprocessConfig(U8, 16), PreprocessConfig(F32, 16)):
        assert pixels(jpeg(1, size), recipe).shape == (3, 16, 16)


def test_a_picture_too_thin_to_keep_its_ratio_is_reported() -> None:
    with pytest.raises(UnreadableImageError, match="longer than"):
        prepare(jpeg(1, (2000, 1)), "train/a", PreprocessConfig(U8, 16, keep_ratio=True))


def test_a_bomb_is_refused_before_it_unpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match="megapixels"):
        u8(jpeg(1, (40, 30)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="zero bytes"),
        pytest.param(b"not a picture at all", "not a readable image", id="text"),
        pytest.param(jpeg(1)[:400], "truncated|damaged|not a readable image", id="cut in the header"),
        pytest.param(jpeg(1)[:-200], "truncated", id="cut in the pixels"),
        pytest.param(b"P6 " + b"9" * 400, "damaged", id="PPM with an endless header"),
        pytest.param(b"\xff\xd8\xff" + bytes(100), ".", id="nothing but a JPEG's start"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), ".", id="nothing but a PNG's start"),
        pytest.param(
            b"BM" + struct.pack("<IHHIIiiHH", 100, 0, 0, 54, 40, -5, 2**31 - 1, 1, 24) + bytes(50), ".", id="odd BMP"
        ),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript document", id="PostScript"),
        pytest.param(saved(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "no known range", id="float TIFF"),
    ],
)
def test_what_cannot_be_read_says_why_in_our_own_words(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as raised:
        u8(data)
    assert not re.search(r"b'|0x|_io|Pillow|PIL|struct|MAX_TEXT", raised.value.message)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK", "colour profile or a text"),
        ("Token too long in file header: b'9999'", "damaged"),
        ("image file is truncated (5 bytes not processed)", "truncated: a part of the image is missing"),
        ("cannot identify image file <_io.BytesIO object at 0x7f00>", "damaged"),
    ],
)
def test_pillows_texts_are_not_shown(text: str, words: str) -> None:
    assert words in image_problem(ValueError(text))
    assert text not in image_problem(ValueError(text))


@pytest.mark.parametrize("recipe", [PreprocessConfig(U8, 16), PreprocessConfig(F32, 16)])
def test_a_jpeg_with_a_hole_in_its_data_is_reported_though_pillow_takes_it(recipe: PreprocessConfig) -> None:
    data = bytearray(saved(picture(1, (400, 300)), "JPEG"))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    Image.open(io.BytesIO(data)).load()
    with pytest.raises(UnreadableImageError, match="a part of the image is missing"):
        prepare(bytes(data), "train/a", recipe)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (700, 460), (240, 192)])
@pytest.mark.parametrize("recipe", [PreprocessConfig(U8, 200), PreprocessConfig(U8, 224)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_stored_square_is_that_of_torchvisions_antialiased_resize(
    size: tuple[int, int], recipe: PreprocessConfig, kind: str
) -> None:
    photograph = natural(size).filter(ImageFilter.GaussianBlur(1))  # as a lens and a camera's own filter have it
    data = saved(photograph, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    whole = Image.open(io.BytesIO(data))
    for key, short in (("train/a", recipe.size), ("val/a", round(recipe.size * 256 / 224))):
        resize = transforms.Compose([transforms.Resize(short), transforms.CenterCrop(recipe.size)])
        wanted = np.asarray(resize(whole), dtype=int)
        difference = np.abs(pixels(data, recipe, key).transpose(1, 2, 0).astype(int) - wanted)
        assert difference.mean() < 1


def test_a_very_long_image_is_cut_before_it_is_resized() -> None:
    image = Image.new("RGB", (9000, 30), "red")
    image.paste((0, 255, 0), (4400, 0, 4600, 30))
    sample = u8(saved(image, "PNG"))
    assert (sample.transpose(1, 2, 0) == (0, 255, 0)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(jpeg(3)) - 1), st.binary(min_size=1, max_size=30))
def test_damage_anywhere_is_a_sample_or_a_reason_never_a_crash(offset: int, damage: bytes) -> None:
    data = bytearray(jpeg(3))
    data[offset : offset + len(damage)] = damage
    with contextlib.suppress(UnreadableImageError):
        assert pixels(bytes(data), PreprocessConfig(U8, 16)).shape == (3, 16, 16)
