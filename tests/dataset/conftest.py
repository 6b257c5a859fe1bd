"""A store, a profile of its own and small pictures for each dataset test."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenacity
from PIL import Image

from ossconsole.config.profiles import Profile
from ossconsole.storage import retry
from tests.sandboxed import Sandboxed


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait hardly at all of themselves; what OSS asks for they wait all the same."""
    monkeypatch.setattr(retry, "backoff", lambda _policy: tenacity.wait_random(0, 0.03))


@pytest.fixture
def profile(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest) -> Profile:
    """The sandbox, with a dataset prefix that no other test uses."""
    return sandboxed_bucket.profile(f"{request.module.__name__}/{request.node.name}")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture of colours that differ from number to number, with structure in both directions."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    channels = [(x + 40 * number) % 256, (y + 70 * number) % 256, (x + y + 20 * number) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def jpeg(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    picture(number, size).save(buffer, "JPEG")
    return buffer.getvalue()


def make_pictures(folder: Path, train: int = 6, val: int = 2) -> Path:
    """`folder/{train,val}/{ants,bees}/N.jpg`, in all `train` and `val` pictures."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            path = folder / split / ("ants", "bees")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))
    return folder
