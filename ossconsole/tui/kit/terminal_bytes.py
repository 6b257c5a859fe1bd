"""TerminalBytes: input as text, without what is not a key; TerminalGuard: the output without controls."""

from __future__ import annotations

import codecs
import re

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter
from textual.message import Message

# Never keys: an X10 mouse report, whose three bytes may have any value; the reply to a query of another program (OSC,
# DCS, APC, PM, SOS); a control sequence longer than Textual's parser accepts.
_NO_KEYS = re.compile(rb"\x1b\[M[\s\S]{3}|\x1b[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-?]{29,}[ -/]*[@-~]")
_CUT_OFF = re.compile(rb"\x1b\[(?:M[\s\S]{0,2})?\Z|\x1b\](?:\d[^\x07\x1b]{0,64}\x1b?)?\Z")
_BACKGROUND = re.compile(rb"\x1b\]11;rgba?:([0-9a-fA-F]+)/([0-9a-fA-F]+)/([0-9a-fA-F]+)")


class TerminalBackground(Message):
    """The terminal's answer to `ConsoleTextualApp.query_background`: its background, 0 to 1 per channel."""

    def __init__(self, red: float, green: float, blue: float) -> None:
        super().__init__()
        self.luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601

    @property
    def is_light(self) -> bool:
        """Whether dark text is easier to read on it."""
        return self.luma > 0.5


class TerminalBytes:
    """Decodes the input of a terminal. Bytes that are not keys or not UTF-8 are dropped.

    `background` is the newest answer to a query of the background, until it is taken.
    """

    def __init__(self) -> None:
        self.background: TerminalBackground | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._kept = b""

    def text(self, data: bytes) -> str:
        """The text of `data` and of the rest kept before; an incomplete sequence at the end is kept.

        Call it without data after a pause in the input.
        """
        whole, self._kept = self._kept + data, b""
        if data:
            found = _BACKGROUND.search(whole)
            if found:
                channels = [int(part, 16) / (16 ** len(part) - 1) for part in found.groups()]
                self.background = TerminalBackground(*channels)
            whole = _NO_KEYS.sub(b"", whole)
            cut = _CUT_OFF.search(whole)
            if cut:
                whole, self._kept = whole[: cut.start()], whole[cut.start() :]
        elif len(whole) > len("\x1b["):
            whole = b""  # an incomplete mouse report
        return self._decoder.decode(whole)


_KITTY_PLACEHOLDER = "\U0010eeee"  # a part of an image that the terminal has already
_REPLACEMENT = "?"


class TerminalGuard(LineFilter):
    """Replaces control characters in everything that is drawn, the last guard before the terminal.

    Our own lines spell such characters out (see `ossconsole.config.text.safe_text`). Textual's widgets show pasted text
    and file names unchanged.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's signature
        if all(segment.text.isprintable() for segment in segments):
            return segments
        return [segment if segment.control else segment._replace(text=_printable(segment.text)) for segment in segments]


def _printable(text: str) -> str:
    """The text with "?" for control characters, in the same number of cells."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == _KITTY_PLACEHOLDER else _REPLACEMENT * cell_len(character)
        for character in text
    )
