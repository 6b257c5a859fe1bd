"""Canvas and Panel: widgets drawn from styled lines, of which only changed cells are sent; styles and themes.

Styles are not CSS component classes because Textual would match eighteen of those for every canvas on every change of
styles, which took a quarter of the first paint. In every theme `secondary` is the standard endpoint and `accent` the
accelerated one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import msgspec
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.geometry import Region
from textual.strip import Strip
from textual.theme import Theme
from textual.widget import Widget

from ossconsole.tui.kit.glyphs import ASCII
from ossconsole.tui.kit.text import Line, Piece


class InkSpec(msgspec.Struct, frozen=True):
    """A style. `colour` and `ground` (background) are variables of the theme; "" is the ground of the widget.

    `ansi` is the colour in themes of the terminal's own 16 colours. `reverse` replaces the ground there, and on
    terminals without colours.
    """

    colour: str = "foreground"
    ground: str = ""
    bold: bool = False
    ansi: str = ""
    reverse: bool = False


# The terminal's own blue is too dark for text on most dark grounds.
_ANSI_PRIMARY, _ANSI_ACCELERATED = "ansi_bright_blue", "ansi_magenta"

STYLES = {
    "text": InkSpec(),
    "dim": InkSpec("dim"),
    "strong": InkSpec(bold=True),
    "rule": InkSpec("rule"),
    "title": InkSpec(bold=True),
    "good": InkSpec("success"),
    "warn": InkSpec("warning", bold=True),
    "bad": InkSpec("error", bold=True),
    "standard": InkSpec("secondary", bold=True),
    "accelerated": InkSpec("accent", bold=True, ansi=_ANSI_ACCELERATED),
    "primary": InkSpec("primary", bold=True, ansi=_ANSI_PRIMARY),
    "cursor": InkSpec(ground="cursor", bold=True, reverse=True),
    "chip": InkSpec(ground="panel"),
    "chip-dim": InkSpec("dim", "panel"),
    "chip-on": InkSpec("background", "primary", bold=True, reverse=True),
    "chip-key": InkSpec("primary", "panel", bold=True, ansi=_ANSI_PRIMARY),
    "chip-standard": InkSpec("secondary", "panel", bold=True),
    "chip-good": InkSpec("success", "panel", bold=True),
    "chip-warn": InkSpec("warning", "panel", bold=True),
    "chip-bad": InkSpec("error", "panel", bold=True),
    "chip-accelerated": InkSpec("accent", "panel", bold=True, ansi=_ANSI_ACCELERATED),
}


class StyleCache:
    """The rich styles of one widget by name, on its background; clear it when the widget's styles change."""

    def __init__(self, widget: Widget) -> None:
        self._widget = widget
        self._cache: dict[tuple[str, bool], Style] = {}

    def clear(self) -> None:
        """Forgets all styles."""
        self._cache.clear()

    def style(self, name: str, *, cursor: bool = False) -> Style:
        """The style called `name` in `STYLES`; with `cursor` on the background of the cursor."""
        found = self._cache.get((name, cursor))
        if found is None:
            found = self._resolve(STYLES[name])
            if cursor:
                over = self._resolve(STYLES["cursor"])
                found += Style(bgcolor=over.bgcolor, bold=True, reverse=over.reverse)
            self._cache[name, cursor] = found
        return found

    def strip(self, line: Line, width: int, *, cursor: bool = False) -> Strip:
        """The line as `width` cells: cut, or filled with blanks."""
        pieces = [Segment(text, self.style(name, cursor=cursor)) for text, name in line.pieces]
        return Strip(pieces, line.width).adjust_cell_length(width, self.style("text"))

    def blank(self, width: int) -> Strip:
        """`width` cells of the widget's background."""
        return Strip.blank(width, self.style("text"))

    def _resolve(self, ink: InkSpec) -> Style:
        app = self._widget.app
        variables = app.theme_variables
        base = self._widget.rich_style
        if app.native_ansi_color:
            colour = Color.parse(variables["foreground"] if ink.reverse else ink.ansi or variables[ink.colour])
            return base + Style(color=colour.rich_color, bold=ink.bold, reverse=ink.reverse or None)
        colour = Color.parse(variables[ink.colour])
        ground = Color.parse(variables[ink.ground]) if ink.ground else None
        return base + Style(
            color=colour.rich_color,
            bgcolor=ground.rich_color if ground else None,
            bold=ink.bold,
            reverse=(ink.reverse and app.no_color) or None,
        )


class Canvas(Widget):
    """Subclasses return their lines from `paint`; `redraw` calls it and refreshes only the cells that differ."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, classes=classes)
        self._lines: list[Line] = []
        self._style_cache = StyleCache(self)

    def paint(self, width: int, height: int) -> Sequence[Line]:
        """The lines for `width` x `height` cells; missing lines are blank, long lines are cut."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Paint again; without a change nothing is sent."""
        width, height = self.size
        if not self.is_attached or not width or not height:
            return
        lines = list(self.paint(width, height))[:height]
        if getattr(self.app, "glyphs", None) is ASCII:
            lines = [line.in_ascii() for line in lines]
        lines = [line.to(width) for line in lines]
        regions = list(_differences(self._lines, lines, width))
        self._lines = lines
        if regions:
            self.refresh(*regions)

    def on_resize(self) -> None:
        """Paint for the new size."""
        self._lines = []
        self.redraw()
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._style_cache.clear()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y >= len(self._lines):
            return self._style_cache.blank(width)
        return self._style_cache.strip(self._lines[y], width)


def _differences(old: Sequence[Line], new: Sequence[Line], width: int) -> list[Region]:
    """The cells that differ, by whole pieces, as Textual sends a piece as a whole, with its colours."""
    regions = []
    for y, (before, after) in enumerate(zip_longest(old, new)):
        if before is None or after is None:
            regions.append(Region(0, y, width, 1))
        elif before.pieces != after.pieces:
            regions += [Region(start, y, end - start, 1) for start, end in _changes(before.pieces, after.pieces)]
    return regions


def _changes(before: Sequence[Piece], after: Sequence[Piece]) -> list[tuple[int, int]]:
    """The new pieces as spans of cells, the end exclusive; adjacent ones are joined."""
    old = set(_with_starts(before))
    found: list[tuple[int, int]] = []
    for piece in _with_starts(after):
        start, text, _ = piece
        if piece in old:
            continue
        end = start + cell_len(text)
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _with_starts(pieces: Sequence[Piece]) -> Iterator[tuple[int, str, str]]:
    """The pieces, each with its first cell."""
    at = 0
    for text, style in pieces:
        yield at, text, style
        at += cell_len(text)


Painter = Callable[[int, int], Sequence[Line]]
"""Returns the lines for a width and a height in cells."""


class Panel(Canvas):
    """A canvas drawn by a function."""

    def __init__(self, painter: Painter, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._painter = painter

    def paint(self, width: int, height: int) -> Sequence[Line]:
        return self._painter(width, height)


def _scroll_bar(thumb: str, hover: str, track: str) -> dict[str, str]:
    """The variables of scroll bars. Textual's own: a black track in dark themes, and a thumb that dimmed is navy."""
    tracks = ("background", "background-hover", "background-active", "corner-color")
    return {"scrollbar": thumb, "scrollbar-hover": hover} | {f"scrollbar-{name}": track for name in tracks}


DARK = Theme(
    name="console-dark",
    primary="#86abf9",
    secondary="#6cb6ff",
    accent="#ff9e64",
    success="#8fd19e",
    warning="#e6c35c",
    error="#f6837b",
    foreground="#d3dae3",
    background="#10151b",
    surface="#161d25",
    panel="#1e2731",
    dark=True,
    variables={"rule": "#33404d", "dim": "#8f9dac", "cursor": "#233145", "footer-key-foreground": "#86abf9"}
    | _scroll_bar("#6b7a8a", "#8f9dac", "#1e2731"),
)

LIGHT = Theme(
    name="console-light",
    primary="#2f52bb",
    secondary="#0a5ab3",
    accent="#9a4100",
    success="#156a2e",
    warning="#745200",
    error="#b0262e",
    foreground="#1f2630",
    background="#fbfcfd",
    surface="#f1f4f7",
    panel="#e4e9ee",
    dark=False,
    variables={"rule": "#c3ccd5", "dim": "#545f6b", "cursor": "#d5e2fa", "footer-key-foreground": "#2f52bb"}
    | _scroll_bar("#74818e", "#545f6b", "#e4e9ee"),
)

# For terminals of 256 colours, such as those of plain SSH: each colour is one that such a terminal shows as it is. The
# colours of the other themes would become navy, teal and pure red there.
DARK_256 = Theme(
    name="console-dark-256",
    primary="#87afff",
    secondary="#5fafff",
    accent="#ffaf5f",
    success="#87d787",
    warning="#ffd75f",
    error="#ff8787",
    foreground="#e0e0e0",
    background="#141414",
    surface="#1f1f1f",
    panel="#292929",
    dark=True,
    variables={"rule": "#525252", "dim": "#adadad", "cursor": "#333333", "footer-key-foreground": "#87afff"}
    | _scroll_bar("#7a7a7a", "#adadad", "#292929"),
)

LIGHT_256 = Theme(
    name="console-light-256",
    primary="#0000d7",
    secondary="#005faf",
    accent="#87005f",
    success="#005f00",
    warning="#5f5f00",
    error="#af0000",
    foreground="#141414",
    background="#ffffff",
    surface="#f5f5f5",
    panel="#ebebeb",
    dark=False,
    variables={"rule": "#c2c2c2", "dim": "#525252", "cursor": "#e0e0e0", "footer-key-foreground": "#0000d7"}
    | _scroll_bar("#858585", "#525252", "#ebebeb"),
)

OWN = (DARK, LIGHT, DARK_256, LIGHT_256)

ROTATION = ("console-dark", "console-light", "ansi-dark", "ansi-light")
"""The themes of the theme key, without their variants for 256 colours."""


def theme_for(name: str, color_system: str | None) -> str:
    """The variant of a theme for the colours of the terminal (`rich.console.Console.color_system`).

    16 colours cannot show our own palette: the terminal's is used.
    """
    if name.startswith("ansi") or color_system not in {"256", "standard"}:
        return name
    return f"{name}-256" if color_system == "256" else name.replace("console", "ansi")


def base_of(theme: str) -> str:
    """The theme of which `theme` is the variant for 256 colours, or itself."""
    return theme.removesuffix("-256")
