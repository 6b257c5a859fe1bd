"""Text for people: what a terminal would act on is spelled out, and counted things get the right number."""

from __future__ import annotations

import re

# Terminals draw these together with the character before them, each in another width: variation selectors, the keycap,
# flags' letters, skin tones. A zero-width joiner is not printable anyway.
_JOINING = re.compile("[\ufe00-\ufe0f\u20e3\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")


def safe_text(text: str) -> str:
    """`text` with every character spelled out that is not printable (`\\x1b`, `\\n`, `\\u202e`) or has no fixed width.

    What is left can neither move the cursor, nor colour, nor reorder, nor hide, nor shift a column: control, format and
    private-use characters, lone surrogates, odd blanks and line separators are all gone. Doing it twice changes nothing
    more.
    """
    if text.isprintable() and not _JOINING.search(text):
        return text
    return "".join(
        _spell(character) if not character.isprintable() or _JOINING.match(character) else character
        for character in text
    )


def _spell(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def counted(count: int | str, noun: str, plural: str = "") -> str:
    """`1 epoch`, `3 epochs`, `12,000 objects`. `count` may be a figure already in words, such as `0.3` or `12+`.

    `plural` is for nouns that take more than an s.
    """
    figure = count if isinstance(count, str) else f"{count:,}"
    return f"{figure} {noun if figure == '1' else plural or noun + 's'}"
