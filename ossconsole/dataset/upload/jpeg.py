"""Ordinary JPEGs made small in a third of Pillow's time: libjpeg-turbo decodes, OpenCV resizes.

What is out of the ordinary in any way (turned, damaged, not three channels) is left to Pillow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import simplejpeg

from ossconsole.dataset.upload.prepare import UnreadablePictureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

cv2.setNumThreads(1)  # there is a process for each core


# What libjpeg says where it makes up the rest of the pixels; Pillow takes such a picture for a good one.
_PART_IS_LOST = "premature end of data segment"


def decode_small(data: bytes, size: tuple[int, int], at_least: int) -> NDArray[np.uint8] | None:
    """(height, width, 3) in RGB of the JPEG that has `size` (width, height); None when Pillow should have a look.

    It is halved until a side would come below `at_least` pixels. Raises UnreadablePictureError when a part is lost.
    """
    enough = at_least if min(size) >= 2 * at_least else 0
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", fastupsample=True, min_height=enough, min_width=enough, min_factor=2, strict=True
        )
    except ValueError as error:
        if _PART_IS_LOST in str(error):
            raise UnreadablePictureError("its data are damaged: a part of the picture is lost") from error
        return None
    return pixels


def resize(pixels: NDArray[np.uint8], box: tuple[float, float, float, float], target: tuple[int, int]) -> bytes:
    """The part within `box` (left, top, right, bottom; whole pixels of it) as (3, height, width) bytes.

    `target` is width and height. Bilinear, and meant for less than halving, as nothing is averaged.
    """
    left, top, right, bottom = (round(edge) for edge in box)
    part = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    resized = cv2.resize(part, target, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized.transpose(2, 0, 1)).tobytes()
