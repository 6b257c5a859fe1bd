"""What a slow connection needs: only cells that differ are sent, and a held key is painted at the pace of a link."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import COLOR_SYSTEMS, Console
from rich.style import Style
from textual.strip import Strip

_JOINED_CELLS = 8
"""Unchanged cells between two changed ones that are sent with them: a move of the cursor has as many bytes."""
_BYTES_PER_S = 20_000
_MAX_PAUSE_S = 0.25
_HELD_KEYS, _HELD_S = 4, 0.5
_EFFECT_S = 0.1
"""Within this time after a key, changes count as its effect: what takes longer feels slow anyway."""

Cells = tuple[str, str]
"""The characters of neighbouring cells, and a character for the style of each of them."""


class ShownCells:
    """The cells of the terminal, as far as they are known. Rows and columns begin at 0.

    A frame is a series of `changes` and `whole_row`, whose strings are sent in that order, and then `end_frame`. In
    between the terminal keeps the style of the last character.
    """

    def __init__(self) -> None:
        self._sgr = ""  # the style that the terminal has in this frame
        self._rows: dict[int, Cells] = {}
        self._names: dict[Style | None, str] = {}
        self._known: dict[str, str] = {}  # the name of each SGR sequence
        self._ansi: dict[str, str] = {}  # and the other way round

    def forget(self) -> None:
        """Nothing is known any more: the terminal was resized, or another program has used it."""
        for known in (self._rows, self._names, self._known, self._ansi):
            known.clear()  # names, too: images have thousands of styles

    def whole_row(self, y: int, strip: Strip, console: Console) -> str:
        """As `changes`, for a whole row."""
        old = self._rows.get(y)
        if old is not None and len(old[0]) == strip.cell_length:
            return self.changes(0, y, strip, console)
        self._keep(y, self._cells(strip, console))
        return f"{self.end_frame()}{_move_to(0, y)}{strip.render(console)}"

    def end_frame(self) -> str:
        """The escape sequence for the default style, which Textual expects; "" where the terminal has it."""
        return self._change_style("")

    def changes(self, x: int, y: int, strip: Strip, console: Console) -> str:
        """The escape sequences that show `strip` at column `x` of row `y`; "" where it shows already."""
        old, new = self._rows.get(y), self._cells(strip, console)
        if old is None or new is None or len(old[0]) < x + len(new[0]):
            self._keep(y, None)
            return f"{self.end_frame()}{_move_to(x, y)}{strip.render(console)}"
        end = x + len(new[0])
        before = old[0][x:end], old[1][x:end]
        if before == new:
            return ""
        self._rows[y] = old[0][:x] + new[0] + old[0][end:], old[1][:x] + new[1] + old[1][end:]
        return "".join(
            f"{_move_to(x + first, y)}{self._rendered(new[0][first:last], new[1][first:last])}"
            for first, last in _runs(before, new)
        )

    def _keep(self, y: int, cells: Cells | None) -> None:
        if cells is None:
            self._rows.pop(y, None)
        else:
            self._rows[y] = cells

    def _cells(self, strip: Strip, console: Console) -> Cells | None:
        """None where a character has not one cell, and for links and control sequences."""
        texts, styles = [], []
        for text, style, control in strip:
            if control or (style is not None and style.link) or not (text.isascii() or _has_single_cells(text)):
                return None
            texts.append(text)
            styles.append(self._name(style, console) * len(text))
        return "".join(texts), "".join(styles)

    def _name(self, style: Style | None, console: Console) -> str:
        """The character that stands for how the style looks."""
        if (name := self._names.get(style)) is None:
            system = COLOR_SYSTEMS.get(console.color_system or "", ColorSystem.TRUECOLOR)
            ansi = Strip.render_ansi(style, system) if style else ""
            name = self._names[style] = self._known.setdefault(ansi, chr(len(self._known)))
            self._ansi[name] = ansi
        return name

    def _rendered(self, text: str, styles: str) -> str:
        parts, at = [], 0
        for name, run in groupby(styles):
            length = len(list(run))
            parts.append(self._change_style(self._ansi[name]))
            parts.append(text[at : at + length])
            at += length
        return "".join(parts)

    def _change_style(self, ansi: str) -> str:
        before, self._sgr = self._sgr, ansi
        return _style_change(before, ansi)


_SGR = re.compile(r"[34]8;(?:2;\d+;\d+;\d+|5;\d+)|\d+")
"""A colour of 24 or of 8 bits, or any other parameter of Select Graphic Rendition (ECMA-48, 8.3.117)."""
_OFF = {"1": "22", "2": "22", "3": "23", "4": "24", "5": "25", "7": "27", "8": "28", "9": "29"}
"""The parameter that ends an attribute: bold and dim have the same."""


@lru_cache(maxsize=4096)
def _style_change(before: str, after: str) -> str:
    """The shortest sequence from one style to another, both as parameters of SGR; "" is the default style."""
    if before == after:
        return ""
    whole = f"\x1b[0;{after}m" if after else "\x1b[m"
    old, new = _attributes(before), _attributes(after)
    if not all(key in _OFF.values() or key in {"39", "49"} for key in (*old, *new)):
        return whole
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    ended = [key for key in old if key not in new or (key == _OFF["1"] and key in changed)]
    parameters = [*ended, *changed.values()]
    return min(whole, f"\x1b[{';'.join(parameters)}m", key=len)


def _attributes(ansi: str) -> dict[str, str]:
    """The parameters of a style by the parameter that ends each; those that are not known by themselves."""
    found: dict[str, str] = {}
    for parameter in _SGR.findall(ansi):
        number = int(parameter.split(";")[0])
        if number in range(30, 40) or number in range(90, 98):
            key = "39"
        elif number in range(40, 50) or number in range(100, 108):
            key = "49"
        else:
            key = _OFF.get(parameter, parameter)
        found[key] = f"{found[key]};{parameter}" if key in found else parameter
    return found


def _move_to(x: int, y: int) -> str:
    return f"\x1b[{y + 1};{x + 1}H"


@lru_cache(maxsize=4096)
def _has_single_cells(text: str) -> bool:
    return all(cell_len(character) == 1 for character in text)


def _runs(old: Cells, new: Cells) -> Iterable[tuple[int, int]]:
    """The first cell of each run of changed cells, and the one after its last."""
    first = last = -1
    for at, (text, now, style, style_now) in enumerate(zip(old[0], new[0], old[1], new[1], strict=True)):
        if text == now and style == style_now:
            continue
        if first >= 0 and at - last > _JOINED_CELLS:
            yield first, last + 1
            first = -1
        first, last = at if first < 0 else first, at
    if first >= 0:
        yield first, last + 1


class RepaintPace:
    """When a screen is repainted: after a key as soon as it has taken effect, otherwise with Textual's next frame.

    While a key is held, repaints are limited to what a slow connection carries: what was not sent yet when the key is
    let go would still be shown, row by row, for many seconds.
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
            self._until = max(self._until, now + min(size / _BYTES_PER_S, _MAX_PAUSE_S))

    def rests(self, now: float) -> bool:
        """Whether to wait with the next repaint."""
        return now < self._until

    def since_key(self, now: float) -> float:
        """Seconds since the last key; infinite before the first."""
        return now - self._keys[-1][1] if self._keys else math.inf

    def follows_key(self, now: float) -> bool:
        """Whether a change is the effect of a key, by the time."""
        return self.since_key(now) < _EFFECT_S

    def _held(self, now: float) -> bool:
        keys = self._keys
        return len(keys) == _HELD_KEYS and now - keys[0][1] < _HELD_S and len({key for key, _ in keys}) == 1
