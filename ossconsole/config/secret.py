"""Secret: a string that shows itself to nobody who did not ask for it by name."""

from __future__ import annotations

from typing import NoReturn

MASK = "••••••••"


class Secret:
    """Holds a key secret or token; `reveal()` is the only way to its text.

    Formatting, `repr`, tracebacks with locals and JSON encoders see the mask. It may be pickled, because the
    reader processes get their credentials over a private pipe (never through argv or the environment).
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __iter__(self) -> NoReturn:
        raise TypeError("a Secret is not iterable; use reveal()")


def mask_key_id(access_key_id: str) -> str:
    """An AccessKey ID shortened for the screen: enough to recognise, not enough to copy."""
    if len(access_key_id) <= 8:
        return access_key_id[:2] + "…"
    return f"{access_key_id[:4]}…{access_key_id[-4:]}"
