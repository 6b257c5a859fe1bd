"""Text of others, as it could come in a reply, a file name or a settings file, and what a terminal would do with it."""

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"
WORST = f"a{CLIPBOARD}\x9b31m\u202e\u2066\u200f\u2028\x7f\x85\x1b[2J\u200b[bold]x[/]"
"""Writes the clipboard, colours, clears, reorders, hides, and is markup."""

FOREIGN = st.text(
    st.sampled_from("\x1b\x07\x9b\x9d\x85\x7f\r\n\t\b\u202e\u2066\u2069\u200f\u200b\u2028\ufeff[]/ab é漢")
    | st.characters(exclude_categories=["Cs"], exclude_characters="\x00"),
    max_size=30,
) | st.just(WORST)

_ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def acting(text: str) -> set[str]:
    """The characters of what a program printed that do more than show themselves; line ends may."""
    return {character for character in text if character != "\n" and unicodedata.category(character) in _ACTING}
