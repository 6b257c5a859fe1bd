"""Inks: the styles of `text.STYLES` in the colours of the theme.

They are no CSS component classes because Textual would match eighteen of those for every canvas on every change of
styles, which took a quarter of the first paint.
"""

from __future__ import annotations

import msgspec
from rich.style import Style
from textual.color import Color
from textual.widget import Widget


class Ink(msgspec.Struct, frozen=True):
    """Colour and ground are variables of the theme; without a ground it is the widget's.

    `ansi` is the colour in themes that use the terminal's own sixteen; `reverse` is what is left there, and without
    colours, of a ground.
    """

    colour: str = "foreground"
    ground: str = ""
    bold: bool = False
    ansi: str = ""
    reverse: bool = False


# The terminal's own blue is too dark for text on most dark grounds.
_ANSI_PRIMARY, _ANSI_ACCELERATED = "ansi_bright_blue", "ansi_magenta"

INKS = {
    "text": Ink(),
    "dim": Ink("dim"),
    "strong": Ink(bold=True),
    "rule": Ink("rule"),
    "title": Ink(bold=True),
    "good": Ink("success"),
    "warn": Ink("warning", bold=True),
    "bad": Ink("error", bold=True),
    "standard": Ink("secondary", bold=True),
    "accelerated": Ink("accent", bold=True, ansi=_ANSI_ACCELERATED),
    "primary": Ink("primary", bold=True, ansi=_ANSI_PRIMARY),
    "cursor": Ink(ground="primary", bold=True, reverse=True),
    "chip": Ink(ground="panel"),
    "chip-dim": Ink("dim", "panel"),
    "chip-on": Ink("background", "primary", bold=True, reverse=True),
    "chip-key": Ink("primary", "panel", bold=True, ansi=_ANSI_PRIMARY),
    "chip-standard": Ink("secondary", "panel", bold=True),
    "chip-accelerated": Ink("accent", "panel", bold=True, ansi=_ANSI_ACCELERATED),
}
_CURSOR_STRENGTH = 0.3


class Inkwell:
    """The inks of one widget, on its ground; to be cleared when its styles change."""

    def __init__(self, widget: Widget) -> None:
        self._widget = widget
        self._known: dict[tuple[str, bool], Style] = {}

    def clear(self) -> None:
        self._known.clear()

    def style(self, name: str, *, cursor: bool = False) -> Style:
        """The style of this name; with `cursor` on the cursor's ground."""
        found = self._known.get((name, cursor))
        if found is None:
            found = self._mixed(INKS[name])
            if cursor:
                over = self._mixed(INKS["cursor"])
                found += Style(bgcolor=over.bgcolor, bold=True, reverse=over.reverse)
            self._known[name, cursor] = found
        return found

    def _mixed(self, ink: Ink) -> Style:
        app = self._widget.app
        known = app.theme_variables
        plain = self._widget.rich_style
        if app.native_ansi_color:
            colour = Color.parse(known["foreground"] if ink.reverse else ink.ansi or known[ink.colour])
            return plain + Style(color=colour.rich_color, bold=ink.bold, reverse=ink.reverse or None)
        colour = Color.parse(known[ink.colour])
        ground = Color.parse(known[ink.ground]) if ink.ground else None
        if ground is not None and ink is INKS["cursor"]:
            ground = self._widget.background_colors[1].blend(ground, _CURSOR_STRENGTH)
        return plain + Style(
            color=colour.rich_color,
            bgcolor=ground.rich_color if ground else None,
            bold=ink.bold,
            reverse=(ink.reverse and app.no_color) or None,
        )
