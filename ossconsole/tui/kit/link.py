"""What a slow connection needs: only cells that differ are sent, and a held key is painted at the pace of a link."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console
from textual.strip import Strip

_JOINED_CELLS = 8
"""Unchanged cells between two changed ones that are sent with them: a move of the cursor has as many bytes."""
_BYTES_PER_S = 20_000
_LONGEST_PAUSE_S = 0.25
_HELD_KEYS, _HELD_S = 4, 0.5

Cell = tuple[str, str]
"""A character, and its style as the parameters of an SGR sequence."""


class ShownCells:
    """The cells of the terminal, as far as they are known. Rows and columns begin at 0."""

    def __init__(self) -> None:
        self._strips: dict[int, Strip] = {}  # whole rows that nothing was compared with yet
        self._rows: dict[int, list[Cell] | None] = {}  # None: it has something else than cells of one character each

    def forget(self) -> None:
        """Nothing is known any more: the terminal was resized, or another program has used it."""
        self._strips.clear()
        self._rows.clear()

    def whole_row(self, y: int, strip: Strip, console: Console) -> str:
        """As `changes`, for a whole row."""
        old = self._row(y, console)
        if old is not None and len(old) == strip.cell_length:
            return self.changes(0, y, strip, console)
        self._rows.pop(y, None)
        self._strips[y] = strip
        return f"{_move_to(0, y)}{strip.render(console)}"

    def changes(self, x: int, y: int, strip: Strip, console: Console) -> str:
        """The escape sequences that show `strip` at column `x` of row `y`; "" where it shows already."""
        old, new = self._row(y, console), _cells(strip, console)
        if old is None or new is None or len(old) < x + len(new):
            self._rows[y] = None
            return f"{_move_to(x, y)}{strip.render(console)}"
        parts = []
        for first, last in _runs(old[x : x + len(new)], new):
            parts.append(_move_to(x + first, y))
            parts.append(_rendered(new[first:last]))
        old[x : x + len(new)] = new
        return "".join(parts)

    def _row(self, y: int, console: Console) -> list[Cell] | None:
        if (strip := self._strips.pop(y, None)) is not None:
            self._rows[y] = _cells(strip, console)
        return self._rows.get(y)


def _move_to(x: int, y: int) -> str:
    return f"\x1b[{y + 1};{x + 1}H"


def _cells(strip: Strip, console: Console) -> list[Cell] | None:
    """The cells of a row; None where a character has not one cell, and for links and control sequences."""
    system = COLOR_SYSTEMS.get(console.color_system or "", ColorSystem.TRUECOLOR)
    cells: list[Cell] = []
    for text, style, control in strip:
        if control or (style is not None and style.link) or not (text.isascii() or _has_single_cells(text)):
            return None
        ansi = Strip.render_ansi(style, system) if style else ""
        cells.extend([(character, ansi) for character in text])
    return cells


def _has_single_cells(text: str) -> bool:
    return all(cell_len(character) == 1 for character in text)


def _runs(old: Sequence[Cell], new: Sequence[Cell]) -> Iterable[tuple[int, int]]:
    """The first cell of each run of changed cells, and the one after its last."""
    first = last = -1
    for at, (before, now) in enumerate(zip(old, new, strict=True)):
        if before == now:
            continue
        if first >= 0 and at - last > _JOINED_CELLS:
            yield first, last + 1
            first = -1
        first, last = at if first < 0 else first, at
    if first >= 0:
        yield first, last + 1


def _rendered(cells: Sequence[Cell]) -> str:
    parts: list[str] = []
    style: str | None = None
    for character, ansi in cells:
        if ansi != style:
            parts.append(f"\x1b[0;{ansi}m" if ansi else "\x1b[0m")
            style = ansi
        parts.append(character)
    return "".join([*parts, "\x1b[0m"])


class HeldKeyPace:
    """Lets the screen rest while a key is held: it would be repainted faster than a slow connection carries it.

    What was not sent yet when the key is let go would still be shown, row by row, for many seconds.
    """

    def __init__(self) -> None:
        self._keys: deque[tuple[str, float]] = deque(maxlen=_HELD_KEYS)
        self._until = 0.0

    def key(self, key: str, now: float) -> None:
        """Notes a key; times in seconds of one clock."""
        self._keys.append((key, now))

    def painted(self, size: int, now: float) -> None:
        """Notes that `size` characters were sent."""
        if self._held(now):
            self._until = max(self._until, now + min(size / _BYTES_PER_S, _LONGEST_PAUSE_S))

    def rests(self, now: float) -> bool:
        """Whether to wait with the next repaint."""
        return now < self._until

    def _held(self, now: float) -> bool:
        keys = self._keys
        return len(keys) == _HELD_KEYS and now - keys[0][1] < _HELD_S and len({key for key, _ in keys}) == 1
