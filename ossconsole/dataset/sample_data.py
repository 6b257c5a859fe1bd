"""Sample images for the demo: ten classes of drawn shapes and patterns, written as real JPEG files.

Each class is a figure with a preferred colour; colour, position, scale, angle, light, noise and background vary so much
that neither colour nor shape alone identifies the class.
"""

from __future__ import annotations

import colorsys
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import make_folder
from ossconsole.dataset.manifest import TRAIN, VAL

SIDE = 96  # pixels
JPEG_QUALITY = 85
TRAIN_IMAGES, VAL_IMAGES = 500, 50
"""Of the demo: few, as the first epoch fills the cache before anything is measured."""

Floats = NDArray[np.float32]
Figure = Callable[[Floats, Floats], NDArray[np.bool_]]


def _triangle(x: Floats, y: Floats) -> NDArray[np.bool_]:
    return (y < 0.5) & (y > 2 * np.abs(x) - 0.8)


def _cross(x: Floats, y: Floats) -> NDArray[np.bool_]:
    across, along = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    inside: NDArray[np.bool_] = (across < 0.2) & (along < 0.75)
    return inside


FIGURES: dict[str, Figure] = {
    "checks": lambda x, y: np.sin(7 * x) * np.sin(7 * y) > 0,
    "cross": _cross,
    "disc": lambda x, y: x * x + y * y < 0.42,
    "dots": lambda x, y: np.cos(8 * x) + np.cos(8 * y) > 0.9,
    "rings": lambda x, y: np.sin(14 * np.hypot(x, y)) > 0,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.58,
    "stripes-level": lambda x, y: np.sin(9 * y + 0 * x) > 0,
    "stripes-slant": lambda x, y: np.sin(9 * (x + y) * 0.7) > 0,
    "stripes-upright": lambda x, y: np.sin(9 * x + 0 * y) > 0,
    "triangle": _triangle,
}
"""Class name to figure: which points of the plane, about -1..1 in both directions, have the figure's colour."""


def make_sample_images(
    directory: Path,
    *,
    classes: int = 10,
    train: int = TRAIN_IMAGES,
    val: int = VAL_IMAGES,
    seed: int = 0,
    on_drawn: Callable[[int, int], None] = lambda _count, _total: None,
) -> int:
    """Writes `train` and `val` images in all as `directory/{train,val}/<class>/<class>-NNNN.jpg`; returns their number.

    The same seed gives the same images. The folder appears complete or not at all; an existing one is not changed.
    Only one process may call this for a folder. `on_drawn` receives the images drawn so far and in all.
    Raises ConsoleError when the folder cannot be written.
    """
    names = list(FIGURES)[:classes]
    if directory.exists():
        return sum(1 for _ in directory.glob("*/*/*.jpg"))
    make_folder(directory.parent)
    building = directory.with_name(f"{directory.name}.part")
    try:
        if building.exists():  # of a process that was killed
            shutil.rmtree(building)
        for split_number, (split, count) in enumerate(((TRAIN, train), (VAL, val))):
            for name in names:
                (building / split / name).mkdir(parents=True)
            for index in range(count):
                label = index % len(names)
                name = names[label]
                image = draw(name, np.random.default_rng((seed, split_number, index)))
                Image.fromarray(image).save(
                    building / split / name / f"{name}-{index // len(names):04}.jpg", quality=JPEG_QUALITY
                )
                on_drawn(split_number * train + index + 1, train + val)
        building.rename(directory)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise ConsoleError(
            f"The sample images cannot be written to {directory}: {error.strerror}.",
            remedy="Free space there, or set OSSCONSOLE_STATE_DIR to another folder.",
        ) from error
    return train + val


def draw(name: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One image of class `name`, (SIDE, SIDE, 3) uint8."""
    x, y = _plane(rng)
    figure = FIGURES[name](x, y).astype(np.float32)[..., None]
    hue = list(FIGURES).index(name) / len(FIGURES) + rng.normal(0, 0.06)
    colour = _rgb(hue, rng.uniform(0.35, 0.95), rng.uniform(0.45, 0.95))
    other = _rgb(rng.uniform(), rng.uniform(0.0, 0.4), rng.uniform(0.15, 0.9))
    light = 1 + rng.normal(0, 0.15) * _grid()[0] + rng.normal(0, 0.15) * _grid()[1]
    image = (figure * colour + (1 - figure) * other) * light[..., None]
    image += _clouds(rng) + _grain(rng)
    pixels: NDArray[np.uint8] = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    return pixels


@functools.lru_cache(maxsize=1)
def _grid() -> tuple[Floats, Floats]:
    axis = np.linspace(-1, 1, SIDE, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def _plane(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The figure's coordinates of each pixel: moved, scaled and turned a little."""
    x, y = _grid()
    angle, scale = rng.normal(0, 0.18), rng.uniform(0.8, 1.7)
    x, y = x - np.float32(rng.uniform(-0.35, 0.35)), y - np.float32(rng.uniform(-0.35, 0.35))
    cos, sin = np.float32(np.cos(angle) * scale), np.float32(np.sin(angle) * scale)
    return cos * x - sin * y, sin * x + cos * y


def _clouds(rng: np.random.Generator) -> Floats:
    """A soft background of (SIDE, SIDE, 3), as an out-of-focus scene would give."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
    clouds: Floats = (smooth / np.float32(255) - np.float32(0.5)) * np.float32(rng.uniform(0.1, 0.4))
    return clouds


def _grain(rng: np.random.Generator) -> Floats:
    """Camera noise, (SIDE, SIDE, 3)."""
    grain: Floats = rng.standard_normal((SIDE, SIDE, 3), dtype=np.float32) * np.float32(rng.uniform(0.02, 0.08))
    return grain


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    return np.asarray(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)
