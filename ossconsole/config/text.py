"""Text for people: escaping of unprintable characters, plurals, names of signals, and enums that print their value."""

from __future__ import annotations

import enum
import re
import signal

# Terminals combine these with the character before them, at widths that differ: variation selectors, the keycap, flags'
# letters, skin tones. A zero-width joiner is not printable anyway.
_JOINING = re.compile("[\ufe00-\ufe0f\u20e3\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")


class StrEnum(str, enum.Enum):
    """As Python 3.11's `enum.StrEnum`: formatting a member returns its value."""

    __str__ = str.__str__


def safe_text(text: str) -> str:
    """`text` with every character escaped that is not printable (`\\x1b`, `\\n`, `\\u202e`) or has no fixed width.

    The result cannot move the cursor, change colours, reorder or hide text, or shift a column: it has no control,
    format or private-use characters, lone surrogates, unusual spaces or line separators. It is idempotent.
    """
    if text.isprintable() and not _JOINING.search(text):
        return text
    return "".join(
        _escape(character) if not character.isprintable() or _JOINING.match(character) else character
        for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def counted(count: int | str, noun: str, plural: str = "") -> str:
    """`1 epoch`, `3 epochs`, `12,000 objects`. `count` may be formatted already, such as `0.3` or `12+`.

    `plural` is for nouns whose plural is not formed with an s.
    """
    figure = count if isinstance(count, str) else f"{count:,}"
    return f"{figure} {noun if figure == '1' else plural or noun + 's'}"


def signal_name(number: int) -> str:
    """`SIGKILL`; `signal 35` for most real-time signals, which have no name in Python."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
