"""The last guard before the terminal: whatever a widget draws, its characters only draw."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_KITTY_PLACEHOLDER = "\U0010eeee"  # stands for a part of a picture that was sent to the terminal before
_REPLACEMENT = "?"


class TerminalGuard(LineFilter):
    """Replaces what a terminal would act on, cell by cell.

    Our own lines spell such characters out (see `ossconsole.config.text.safe_text`). This is for Textual's own widgets,
    which show what was pasted into a field, or the names of files, as they are.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's signature
        if all(segment.text.isprintable() for segment in segments):
            return segments
        return [segment if segment.control else segment._replace(text=_drawn(segment.text)) for segment in segments]


def _drawn(text: str) -> str:
    """The text in the same number of cells."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == _KITTY_PLACEHOLDER else _REPLACEMENT * cell_len(character)
        for character in text
    )
