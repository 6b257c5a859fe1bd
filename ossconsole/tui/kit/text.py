"""Lines made of styled pieces, and the formatting of numbers; without Textual."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from rich.cells import cell_len, chop_cells, set_cell_size

from ossconsole.config.text import safe_text

Piece = tuple[str, str]
"""Text and the name of its style (see `ossconsole.tui.kit.canvas.STYLES`)."""

MISSING = "–"
safe = safe_text


class Line:
    """One row of cells, built from left to right."""

    __slots__ = ("pieces", "width")

    def __init__(self, *pieces: Piece) -> None:
        self.pieces: list[Piece] = []
        self.width = 0
        for text, style in pieces:
            self.add(text, style)

    def add(self, text: str, style: str = "text") -> Line:
        """Adds a piece, with control characters spelled out."""
        if text:
            text = safe(text)
            self.pieces.append((text, style))
            self.width += cell_len(text)
        return self

    def extend(self, other: Line) -> Line:
        """Adds the pieces of another line."""
        self.pieces.extend(other.pieces)
        self.width += other.width
        return self

    def to(self, column: int, style: str = "text", fill: str = " ") -> Line:
        """Fills up to `column`, or cuts there."""
        if self.width > column:
            self._cut(column)
        return self.add(fill * (column - self.width), style)

    def right(self, other: Line, width: int) -> Line:
        """Puts `other` flush right in `width` cells; leaves it out where there is no room for a gap."""
        if self.width + other.width + 1 > width:
            return self.to(width)
        return self.to(width - other.width).extend(other)

    def _cut(self, column: int) -> None:
        kept, used = [], 0
        for text, style in self.pieces:
            size = cell_len(text)
            if used + size > column:
                kept.append((set_cell_size(text, column - used), style))
                used = column
                break
            kept.append((text, style))
            used += size
        self.pieces, self.width = kept, used

    def in_ascii(self) -> Line:
        """The line with typographic characters in ASCII; other characters, as in object keys, stay."""
        if self.text.isascii():
            return self
        return Line(*((text.translate(_ASCII), style) for text, style in self.pieces))

    @property
    def text(self) -> str:
        """The text without styles."""
        return "".join(text for text, _ in self.pieces)


_ASCII = str.maketrans(
    {"±": "+-", "–": "-", "°": "", "·": "-", "…": "~", "←": "<", "→": ">", "↑": "^", "↓": "v", "⌫": "bs", "×": "x"}
)


_UNIT = re.compile(r" (%|m?s\b|[KMGTP]?i?B\b)")
_WORD = 24
"""Cells of the longest word that is left out rather than cut: half a number is another number; keys are longer."""


def shorten(text: str, width: int, ellipsis: str = "…") -> str:
    """`text` in at most `width` cells; a long one ends in an ellipsis, between two words where that loses little."""
    if cell_len(text) <= width:
        return text
    if width <= 0:
        return ""
    kept = set_cell_size(text, max(0, width - cell_len(ellipsis)))
    words, _, word = kept.rpartition(" ")
    split = not text.startswith(" ", len(kept)) or _UNIT.match(text, len(kept))
    if split and words.strip() and cell_len(word) <= min(_WORD, width // 2):
        kept = words
    return kept.rstrip(" ,;:(") + ellipsis


def shorten_middle(text: str, width: int, ellipsis: str = "…") -> str:
    """Like `shorten`, but keeps both ends: object keys often differ only at the end."""
    if cell_len(text) <= width or width < 8:
        return shorten(text, width, ellipsis)
    head = (width - cell_len(ellipsis)) // 2
    tail = width - cell_len(ellipsis) - head
    end = len(text)
    while cell_len(text[end - 1 :]) <= tail:
        end -= 1
    return set_cell_size(text, head) + ellipsis + text[end:]


def shorten_around_key(text: str, width: int, ellipsis: str = "…") -> str:
    """Like `shorten`, but an object key in the sentence gives way first, in its middle, to what follows it."""
    excess = cell_len(text) - width
    key = max(text.split(" "), key=cell_len)
    if excess > 0 and cell_len(key) > _WORD:
        text = text.replace(key, shorten_middle(key, max(_WORD, cell_len(key) - excess), ellipsis), 1)
    return shorten(text, width, ellipsis)


def wrap(text: str, width: int) -> list[str]:
    """`text` broken between words into lines of at most `width` cells, and within words that are longer."""
    lines = [""]
    for word in _words(text):
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [part for line in lines for part in (chop_cells(line, max(2, width)) or [""])]


def _words(text: str) -> list[str]:
    """The words of `text`; a number and its unit are one word."""
    words: list[str] = []
    for word in text.split():
        if words and words[-1][-1].isdigit() and _UNIT.match(f" {word}"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def heading(title: str, width: int, rule: str, *notes: str) -> Line:
    """The first line of a panel: a rule with the title and, at the right, the first of `notes` that fits."""
    line = Line((f"{rule} ", "rule"), (f"{shorten(safe(title), width - 4)} ", "title"))
    note = next((note for note in map(safe, notes) if note and line.width + cell_len(note) + 4 <= width), "")
    if note:
        end = Line((" ", "rule"), (note, "dim"), (f" {rule}", "rule"))
        return line.to(width - end.width, "rule", rule).extend(end)
    return line.to(width, "rule", rule)


def tile_lines(tiles: Sequence[tuple[str, Line, Line]], width: int) -> list[Line]:
    """Tiles side by side in three lines: labels, values and notes."""
    lines = [Line((" ", "text")) for _ in range(3)]
    for index, (label, value, note) in enumerate(tiles):
        end = 1 + (width - 1) * (index + 1) // len(tiles)
        lines[0].add(shorten(label, end - lines[0].width - 1), "dim").to(end)
        lines[1].extend(value).to(end - 1).to(end)
        lines[2].extend(note).to(end - 1).to(end)
    return lines


def joined(parts: Iterable[str], separator: str = "  ") -> str:
    """The parts that are not empty."""
    return separator.join(part for part in parts if part)


# Numbers; None, NaN and infinity give MISSING


_SMALL, _SMALLER = 0.01, 0.001
"""Below these, decimals alone would leave fewer digits of a number; and one less is shown, to fit into a column."""


def number(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits, also of a small one such as a learning rate; no exponent up to 1e6."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value:.{digits}g}"
    if size < _SMALL:
        return f"{value:.{max(1, digits - (size < _SMALLER))}g}"
    whole = len(str(int(size))) if size >= 1 else 0
    return f"{value:,.{max(0, digits - whole)}f}" if size >= 1 else f"{value:.{digits}f}"


def compact(value: float) -> str:
    """A number for an axis: three digits without trailing zeros, `1.5M` for 1,500,000."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3g}"


def rate(value: float | None) -> str:
    """A rate such as samples/s, with one decimal below 1000."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def percent(fraction: float | None, digits: int = 0) -> str:
    """A fraction of 1 in percent."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    return f"{fraction * 100:.{digits}f} %"


def milliseconds(seconds: float | None) -> str:
    """Seconds in milliseconds, without the unit."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    value = seconds * 1000
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def short_times(values: Sequence[float | None], separator: str = " / ") -> str:
    """Short times in one unit: milliseconds, or seconds where the longest is at least a second."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return MISSING
    if max(finite) < 1:
        return separator.join(milliseconds(value) for value in values) + " ms"
    return separator.join(MISSING if value is None else f"{value:.2f}" for value in values) + " s"


_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float | None, *, binary: bool = False) -> str:
    """Bytes in units of 1000, or with `binary` of 1024, as for memory."""
    if count is None or not math.isfinite(count):
        return MISSING
    base, units = (1024.0, _BINARY_UNITS) if binary else (1000.0, _UNITS)
    value, unit = float(count), 0
    while abs(value) >= base and unit + 1 < len(units):
        value /= base
        unit += 1
    if unit == 0:
        return f"{value:.0f} B"
    return f"{value:.0f} {units[unit]}" if abs(value) >= 100 else f"{value:.1f} {units[unit]}"


def duration(seconds: float | None) -> str:
    """Seconds as `0:42`, `12:05`, `1:02:03` or `3d 04h`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    total = max(0, round(seconds))
    if total >= 86400:
        return f"{total // 86400}d {total % 86400 // 3600:02d}h"
    hours, rest = divmod(total, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def clock(unix: float) -> str:
    """The local time of day of a Unix time."""
    return time.strftime("%H:%M:%S", time.localtime(unix))


def moment(unix: float) -> str:
    """The local date and time of a Unix time."""
    return datetime.fromtimestamp(unix, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")


SHORT_MOMENT = 11
"""The cells of `short_moment`."""


def short_moment(unix: float) -> str:
    """The local date and time without the year, as `06-15 15:06`; of another year than this one, the date alone."""
    full = moment(unix)
    return full[5:16] if full[:4] == moment(now())[:4] else full[:10]


def now() -> float:
    """Unix time; in tests, that of their pictures."""
    return time.time()
