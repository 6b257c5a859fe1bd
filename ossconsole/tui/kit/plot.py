"""Curves and large digits as characters: braille, block or ASCII cells, without widgets and colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ossconsole.telemetry.series import Point
from ossconsole.tui.kit.glyphs import Glyphs

Column = tuple[float, float]
"""Lowest and highest value to draw in one column of dots."""

DOTS = {"braille": (2, 4), "block": (1, 8), "ascii": (1, 1)}
"""Dots per cell, across and down."""

_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLOCKS = " ▁▂▃▄▅▆▇█"
_LOOSE = {"block": "·", "ascii": "."}


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on the vertical axis; with `log` their logarithms."""

    low: float
    high: float
    log: bool = False

    def position(self, value: float) -> float:
        """The position of `value`, from 0 at the bottom to 1 at the top, clamped."""
        low, high = self._transform(self.low), self._transform(self.high)
        span = high - low
        if not 0 < span < math.inf:
            return 0.0
        return min(1.0, max(0.0, (self._transform(value) - low) / span))

    def value(self, position: float) -> float:
        """The value at a position from 0 to 1: the inverse of `position`."""
        low, high = self._transform(self.low), self._transform(self.high)
        value = low + (high - low) * position
        return 10**value if self.log else value

    def _transform(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


def nice_ceiling(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten; the small steps use most of the height."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10):
        if value <= factor * power * (1 + 1e-9):
            return factor * power
    return 10 * power


def scale_from_zero(points: Sequence[Point]) -> Scale:
    """From zero to a round number above the values."""
    highest = max((point.high for point in points if not math.isnan(point.high)), default=0.0)
    return Scale(0.0, nice_ceiling(highest * 1.05))


def scale_around(points: Sequence[Point], *, log: bool = False) -> Scale:
    """The range of the values with a margin, for quantities whose zero has no meaning."""
    lows = [point.low for point in points if not math.isnan(point.low)]
    if not lows:
        return Scale(0.1, 1.0, log) if log else Scale(0.0, 1.0)
    low, high = min(lows), max(point.high for point in points if not math.isnan(point.high))
    if log:
        return Scale(max(low, 1e-9) / 1.1, max(high, 1e-9) * 1.1, log=True)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return Scale(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)


def columns_of(points: Sequence[Point], t0: float, t1: float, count: int, *, join: bool = True) -> list[Column | None]:
    """The range to draw in each of `count` columns of dots from t0 to t1 (Unix seconds); None is a gap.

    With `join`, neighbouring points are connected, except across a gap.
    """
    drawn: list[Column | None] = [None] * count
    previous: tuple[int, float] | None = None
    for point in points:
        if math.isnan(point.last):
            previous = None
            continue
        at = min(count - 1, max(0, int((point.time - t0) / (t1 - t0) * count)))
        low, high = point.low, point.high
        if join and previous is not None:
            _join(drawn, previous, (at, point.last))
        _merge(drawn, at, low, high)
        previous = None if point.gap else (at, point.last)
    return drawn


def _join(drawn: list[Column | None], start: tuple[int, float], end: tuple[int, float]) -> None:
    """A straight line from `start` to `end`, without both ends."""
    span = end[0] - start[0]
    for step in range(1, span):
        value = start[1] + (end[1] - start[1]) * step / span
        _merge(drawn, start[0] + step, value, value)


def _merge(drawn: list[Column | None], at: int, low: float, high: float) -> None:
    present = drawn[at]
    drawn[at] = (low, high) if present is None else (min(present[0], low), max(present[1], high))


def draw(columns: Sequence[Column | None], scale: Scale, height: int, symbols: str) -> list[str]:
    """The rows of cells, top to bottom, for columns with DOTS[symbols][0] dots per cell."""
    painter = {"braille": _draw_braille, "block": _draw_block, "ascii": _draw_ascii}[symbols]
    return painter(columns, scale, height)


def _draw_braille(columns: Sequence[Column | None], scale: Scale, height: int) -> list[str]:
    width = (len(columns) + 1) // 2
    cells = [[0] * width for _ in range(height)]
    top = height * 4 - 1
    for x, low, high in _uprights(columns, scale, top):
        for dot in range(top - high, top - low + 1):
            cells[dot // 4][x // 2] |= _BRAILLE[x % 2][dot % 4]
    return ["".join(chr(0x2800 + bits) if bits else " " for bits in row) for row in cells]


def _uprights(columns: Sequence[Column | None], scale: Scale, top: int) -> Iterator[tuple[int, int, int]]:
    """Index, lowest and highest dot of each column, extended so that it touches the previous one."""
    before: tuple[int, int] | None = None
    for x, column in enumerate(columns):
        if column is None:
            before = None
            continue
        low, high = (round(scale.position(value) * top) for value in column)
        if before is None:
            yield x, low, high
        else:
            yield x, min(low, before[1] + 1), max(high, before[0] - 1)
        before = (low, high)


def _draw_block(columns: Sequence[Column | None], scale: Scale, height: int) -> list[str]:
    """Bars from the bottom, in eighths of a cell."""
    eighths = [0 if column is None else max(1, round(scale.position(column[1]) * height * 8)) for column in columns]
    return [
        "".join(_BLOCKS[min(8, max(0, value - (height - 1 - row) * 8))] for value in eighths) for row in range(height)
    ]


def _draw_ascii(columns: Sequence[Column | None], scale: Scale, height: int) -> list[str]:
    rows = [[" "] * len(columns) for _ in range(height)]
    top = height - 1
    for x, low, high in _uprights(columns, scale, top):
        for y in range(low, high + 1):
            rows[top - y][x] = "|"
        for value in columns[x] or ():
            rows[top - round(scale.position(value) * top)][x] = "*"
    return ["".join(row) for row in rows]


def scatter(columns: Sequence[Column | None], scale: Scale, height: int, symbols: str) -> list[str]:
    """Like `draw`, but only dots for the lowest and the highest value of each column, behind a curve."""
    across, down = DOTS[symbols] if symbols == "braille" else (1, 1)
    top = height * down - 1
    cells = [[0] * ((len(columns) + across - 1) // across) for _ in range(height)]
    for x, column in enumerate(columns):
        for value in column or ():
            dot = top - round(scale.position(value) * top)
            cells[dot // down][x // across] |= _BRAILLE[x % across][dot % down]
    return ["".join(_LOOSE.get(symbols, chr(0x2800 + bits)) if bits else " " for bits in row) for row in cells]


_NAMES = "0123456789.x"
# Three cells each, a column between them; of the point only the middle one is used.
_BLOCK_FONT = (
    "█▀█ ▀█  ▀▀█ ▀▀█ █ █ █▀▀ █▀▀ ▀▀█ █▀█ █▀█        ",
    "█ █  █  █▀▀  ▀█ ▀▀█ ▀▀█ █▀█   █ █▀█ ▀▀█     ▀▄▀",
    "▀▀▀ ▀▀▀ ▀▀▀ ▀▀▀   ▀ ▀▀▀ ▀▀▀   ▀ ▀▀▀ ▀▀▀  ▀  ▀ ▀",
)
_ASCII = (
    " _       _   _       _   _   _   _   _         ",
    "| |   |  _|  _| |_| |_  |_    | |_| |_|     \\ /",
    "|_|   | |_   _|   |  _| |_|   | |_|  _|  .  / \\",
)


def large(text: str, glyphs: Glyphs) -> tuple[str, str, str]:
    """The three rows of `text`, which consists of digits, points and "x"."""
    font = _ASCII if glyphs.chart == "ascii" else _BLOCK_FONT
    at = [(name, 4 * _NAMES.index(name)) for name in text]
    cells = [slice(start + 1, start + 2) if name == "." else slice(start, start + 3) for name, start in at]
    first, second, third = (" ".join(row[cell] for cell in cells) for row in font)
    return first, second, third
