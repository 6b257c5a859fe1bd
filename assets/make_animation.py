"""Makes the README's animated picture: the real console and its demo in a pseudo-terminal, as one SVG without scripts.

Usage: python -m assets.make_animation [--frames FOLDER]

Each piece of text is drawn once for the time in which it does not change. Waiting is cut short: of a running screen
only the last frames before the next event are kept. `--frames` also writes each frame as a picture of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.sax.saxutils import escape

import pyte

from tests.benchmarks.bench_tui import Terminal
from tests.cli.consoles import cleared

OUTPUT = Path(__file__).parent / "demo.svg"
COLUMNS, ROWS = 100, 30
CELL_W, CELL_H, SIZE = 8.4, 17, 14
MARGIN = 12
TEXT, GROUND = "#dde3ea", "#10151c"
MAX_FRAME_S, LAST_FRAME_S = 1.2, 4.0
EVERY_S = 0.7  # of a running screen
DEADLINE_S = 900.0
DECISION_S = 120.0  # for the ratio; on a busy machine it stays undecided
MAX_BYTES = 500_000
_WORDS = re.compile(r"\S+(?: \S+)*")

Style = tuple[str, str, bool]
"""Colour, ground ("" for the terminal's), bold."""
Row = tuple[tuple[str, Style], ...]
"""Runs of cells of one style."""


@dataclass(frozen=True)
class Frame:
    """What the terminal showed, and for how long."""

    rows: tuple[Row, ...]
    seconds: float


class Recorder(Terminal):
    """A terminal whose screens are kept as frames."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        super().__init__(command, (COLUMNS, ROWS), environment)
        self.frames: list[Frame] = []

    def keep(self, seconds: float) -> None:
        """Keeps the screen as a frame; one that is like the frame before prolongs that."""
        self._stream.feed(self._unseen)
        self._unseen = b""
        rows = tuple(_row(self._screen, y) for y in range(ROWS))
        if self.frames and self.frames[-1].rows == rows:
            seconds = min(MAX_FRAME_S, self.frames.pop().seconds + seconds)
        self.frames.append(Frame(rows, seconds))

    def show(self, keys: str, *words: str, seconds: float = 1.0) -> None:
        """Presses keys, waits for the words, and keeps the screen."""
        self.press(keys)
        self.wait(lambda text: all(word in text for word in words), DEADLINE_S)
        self.rest(0.5)
        self.keep(seconds)

    def film(self, until: Callable[[str], bool], frames: int, *, patience_s: float = 0.0) -> None:
        """Keeps the last `frames` screens of the time until something shows, or until the patience ends."""
        before, began = len(self.frames), time.monotonic()
        while not until(self.text):
            if patience_s and time.monotonic() - began > patience_s:
                break
            if time.monotonic() - began > DEADLINE_S:
                raise TimeoutError(self.text)
            self.rest(EVERY_S)
            self.keep(0.35)
            if len(self.frames) - before > frames:
                del self.frames[before]
        self.keep(0.8)

    def rest(self, seconds: float) -> None:
        """Takes in what comes."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.read(left)


def _row(screen: pyte.Screen, y: int) -> Row:
    cells = [screen.buffer[y][x] for x in range(COLUMNS)]
    styled = [(cell.data or " ", _style(cell)) for cell in cells]
    return tuple(("".join(text for text, _ in run), style) for style, run in groupby(styled, key=lambda item: item[1]))


def _style(cell: pyte.screens.Char) -> Style:
    colour, ground = _colour(cell.fg, TEXT), _colour(cell.bg, "")
    if cell.reverse:
        colour, ground = ground or GROUND, colour
    return colour, "" if ground == GROUND else ground, bool(cell.bold)


def _colour(name: str, default: str) -> str:
    return f"#{name}" if len(name) == 6 and all(letter in "0123456789abcdef" for letter in name) else default


def record(folder: Path) -> list[Frame]:
    """The demo: welcome, preparation, a run that fills the cache, switches, the bucket with its checkpoints."""
    state = folder / "state"
    environment = {
        "OSSCONSOLE_STATE_DIR": str(state),
        "OSSCONSOLE_CONFIG_DIR": str(folder / "config"),
        "COLORTERM": "truecolor",
    }
    with cleared(state):
        terminal = Recorder([sys.executable, "-m", "ossconsole"], environment)
        try:
            terminal.show("", "Try the demo", seconds=2.0)
            terminal.press("d")
            terminal.film(lambda text: "compute" in text, 12)
            terminal.film(lambda text: "filled the accelerator" in text, 14)
            terminal.film(lambda text: "switched to accelerated" in text, 16)
            terminal.film(_decided, 14, patience_s=DECISION_S)
            terminal.show("2", "checkpoints/", seconds=1.0)
            terminal.show("C", "resnet18", seconds=1.0)
            terminal.show("\x1b[F", "resnet18", seconds=1.5)
            terminal.show("0", "compute", seconds=LAST_FRAME_S)
        finally:
            terminal.close()
    return terminal.frames


def _decided(text: str) -> bool:
    return "× standard" in text or "x standard" in text


def picture(frames: Sequence[Frame], *, animated: bool = True) -> str:
    """The SVG: what shows in the same time is one group, which is hidden in the rest of it."""
    width, height = COLUMNS * CELL_W + 2 * MARGIN, ROWS * CELL_H + 2 * MARGIN
    palette = sorted({style for frame in frames for row in frame.rows for _, style in row})
    names = {style: f"s{number}" for number, style in enumerate(palette)}
    looks = "".join(
        f".{name}{{fill:{colour}{';font-weight:bold' if bold else ''}}}" for (colour, _, bold), name in names.items()
    )
    font = f"{SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
        f"<style>text{{font:{font};white-space:pre}}{looks}</style>",
        f'<rect width="100%" height="100%" rx="8" fill="{GROUND}"/>',
    ]
    starts = [sum(frame.seconds for frame in frames[:number]) for number in range(len(frames) + 1)]
    spans = _spans(frames, names)
    for kind in ("<rect", "<text"):  # texts are drawn over all grounds
        for (first, last), drawn in spans.items():
            times = _times(starts[first] / starts[-1], starts[last] / starts[-1], starts[-1]) if animated else ""
            hidden = ' display="none"' if animated and last < len(frames) else ""
            if of_kind := "".join(element for element in drawn if element.startswith(kind)):
                parts.append(f"<g{hidden}>{times}{of_kind}</g>")
    return "".join([*parts, "</svg>\n"])


def _spans(frames: Sequence[Frame], names: dict[Style, str]) -> dict[tuple[int, int], list[str]]:
    """What is drawn, by the first frame that it shows in and the one after the last."""
    spans: dict[tuple[int, int], list[str]] = {}
    open_since: dict[str, int] = {}
    for number in range(len(frames) + 1):
        shown = _drawn(frames[number], names) if number < len(frames) else []
        for drawn in [drawn for drawn in open_since if drawn not in shown]:
            spans.setdefault((open_since.pop(drawn), number), []).append(drawn)
        for drawn in shown:
            open_since.setdefault(drawn, number)
    return spans


def _times(start: float, end: float, total: float) -> str:
    """When a row shows, as shares of the whole time."""
    if start <= 0 and end >= 0.9999:
        return ""
    values, keys = ["none", "inline", "none"], [0.0, start, end]
    if start <= 0:
        values, keys = values[1:], [0.0, end]
    if end >= 0.9999:
        values, keys = values[:-1], keys[:-1]
    return (
        f'<animate attributeName="display" values="{";".join(values)}" '
        f'keyTimes="{";".join(f"{key:.4f}".rstrip("0").rstrip(".") for key in keys)}" '
        f'dur="{total:.1f}s" calcMode="discrete" repeatCount="indefinite"/>'
    )


def _drawn(frame: Frame, names: dict[Style, str]) -> list[str]:
    """The grounds and the texts of a frame, each as an element; blanks are not drawn."""
    found = []
    for y, row in enumerate(frame.rows):
        column, top = 0, MARGIN + y * CELL_H
        for text, style in row:
            if style[1]:
                x, width = MARGIN + column * CELL_W, len(text) * CELL_W
                found.append(f'<rect x="{x:.4g}" y="{top}" width="{width:.4g}" height="{CELL_H}" fill="{style[1]}"/>')
            for words in _WORDS.finditer(text):  # blanks between them may have another width in the reader's font
                x, shown = MARGIN + (column + words.start()) * CELL_W, words.group()
                length = f' textLength="{len(shown) * CELL_W:.4g}"' if len(shown) > 3 else ""
                found.append(f'<text x="{x:.4g}" y="{top + 13}"{length} class="{names[style]}">{escape(shown)}</text>')
            column += len(text)
    return found


def thinned(frames: Sequence[Frame]) -> list[Frame]:
    """Half of the frames, in the same time."""
    pairs = [frames[number : number + 2] for number in range(0, len(frames), 2)]
    return [Frame(pair[-1].rows, sum(frame.seconds for frame in pair)) for pair in pairs]


def main() -> None:
    """Records the demo and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, help="also write each frame into this folder")
    folder: Path | None = parser.parse_args().frames
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        frames = record(Path(name))
    while len((text := picture(frames)).encode()) > MAX_BYTES:
        frames = thinned(frames)
    OUTPUT.write_text(text, encoding="utf-8")
    print(  # noqa: T201
        f"{OUTPUT}: {len(frames)} frames, {sum(f.seconds for f in frames):.0f} s, {len(text.encode()):,} bytes"
    )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(frames):
            (folder / f"{number:03}.svg").write_text(picture([frame], animated=False), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("LANG", "C.UTF-8")
    main()
