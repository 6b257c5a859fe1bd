"""Text for people: what a terminal would act on is spelled out, and counted things get the right number."""

from __future__ import annotations


def safe_text(text: str) -> str:
    """`text` with every character that is not printable spelled out (`\\x1b`, `\\n`, `\\u202e`).

    What is left can neither move the cursor, nor colour, nor reorder, nor hide: control, format and private-use
    characters, lone surrogates, odd blanks and line separators are all gone. Doing it twice changes nothing more.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _spell(character) for character in text)


def _spell(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def counted(count: int | str, noun: str, plural: str = "") -> str:
    """`1 epoch`, `3 epochs`, `12,000 objects`. `count` may be a figure already in words, such as `0.3` or `12+`.

    `plural` is for nouns that take more than an s.
    """
    figure = count if isinstance(count, str) else f"{count:,}"
    return f"{figure} {noun if figure == '1' else plural or noun + 's'}"
