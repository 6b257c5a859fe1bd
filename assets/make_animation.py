"""Makes the README's animated picture: the real console and its demo in a pseudo-terminal, as one SVG without scripts.

Usage: python -m assets.make_animation [--frames FOLDER]

Each row of cells is drawn once for the time in which it does not change. Waiting is cut short: of a running screen only
the last frames before the next event are kept. `--frames` also writes each frame as a picture of its own.
"""

from __future__ import annotations

import argparse
import os
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
    """The demo: welcome, preparation, a run on standard, the switch, the bucket with its checkpoints."""
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
            terminal.film(lambda text: "switches to the accelerated" in text, 14)
            terminal.film(lambda text: "cache is warm" in text, 16)
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
    """The SVG; each row has the times in which it shows."""
    width, height = COLUMNS * CELL_W + 2 * MARGIN, ROWS * CELL_H + 2 * MARGIN
    total = sum(frame.seconds for frame in frames)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
        "<style>text{font:" + str(SIZE) + "px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        "white-space:pre}.b{font-weight:bold}</style>",
        f'<rect width="100%" height="100%" rx="8" fill="{GROUND}"/>',
    ]
    for y in range(ROWS):
        start = 0.0
        for row, run in groupby(frames, key=lambda frame: frame.rows[y]):
            end = start + sum(frame.seconds for frame in run)
            drawn = _drawn(row, y)
            if drawn:
                times = _times(start / total, end / total, total) if animated else ""
                hidden = ' display="none"' if animated and end < total - 0.001 else ""
                parts.append(f"<g{hidden}>{times}{drawn}</g>")
            start = end
    return "".join([*parts, "</svg>\n"])


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


def _drawn(row: Row, y: int) -> str:
    """Grounds, then texts; blanks are not drawn."""
    grounds, texts, column = [], [], 0
    for text, (colour, ground, bold) in row:
        x, width = MARGIN + column * CELL_W, len(text) * CELL_W
        if ground:
            top = MARGIN + y * CELL_H
            grounds.append(f'<rect x="{x:g}" y="{top}" width="{width:.4g}" height="{CELL_H}" fill="{ground}"/>')
        if text.strip():
            skipped = len(text) - len(text.lstrip())
            shown, at = text.strip(), x + skipped * CELL_W
            place = f'x="{at:.5g}" textLength="{len(shown) * CELL_W:.5g}"'
            look = f'fill="{colour}"' + (' class="b"' if bold else "")
            texts.append(f"<tspan {place} {look}>{escape(shown)}</tspan>")
        column += len(text)
    line = f'<text y="{MARGIN + y * CELL_H + 13}">{"".join(texts)}</text>' if texts else ""
    return "".join(grounds) + line


def main() -> None:
    """Records the demo and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, help="also write each frame into this folder")
    folder: Path | None = parser.parse_args().frames
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        frames = record(Path(name))
    text = picture(frames)
    if len(text.encode()) > MAX_BYTES:
        sys.exit(f"{len(text.encode()):,} bytes, at most {MAX_BYTES:,}")
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
