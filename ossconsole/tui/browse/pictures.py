"""Pictures in cells: two pixels a cell as half blocks, or one as a letter where there are no colours."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ossconsole.dataset.preview import fit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HALF = "▀"
_RAMP = " .:-=+*#%@"


def half_blocks(pixels: NDArray[np.uint8], width: int, height: int) -> list[Strip]:
    """The picture fitted into `width` x `height` cells."""
    import numpy as np

    small = fit(pixels, width, height * 2)
    if small.shape[0] % 2:
        small = np.concatenate((small, np.zeros((1, small.shape[1], 3), np.uint8)))
    strips = []
    for y in range(0, small.shape[0], 2):
        pairs = [(tuple(top), tuple(low)) for top, low in zip(small[y].tolist(), small[y + 1].tolist(), strict=True)]
        segments = [
            Segment(_HALF * len(list(run)), Style(color=Color.from_rgb(*top), bgcolor=Color.from_rgb(*low)))
            for (top, low), run in groupby(pairs)
        ]
        strips.append(Strip(segments, small.shape[1]))
    return strips


def letters(pixels: NDArray[np.uint8], width: int, height: int) -> list[Strip]:
    """The picture's brightness as letters, fitted into `width` x `height` cells (twice as high as wide)."""
    import numpy as np

    small = fit(pixels, width, height * 2)[::2]
    levels = (small @ np.array([0.299, 0.587, 0.114])) / 256 * len(_RAMP)  # ITU-R BT.601 luma
    return [Strip([Segment("".join(_RAMP[int(level)] for level in row))], len(row)) for row in levels]
