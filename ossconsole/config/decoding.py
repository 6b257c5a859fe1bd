"""Decoding what may have been made by anybody."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def decode_json(data: bytes | str, kind: type[T] | Any = Any) -> T:
    """The document as `kind`. Raises msgspec.DecodeError, also for nesting that msgspec itself runs out of stack on."""
    try:
        found: T = msgspec.json.decode(data, type=kind)
    except (RecursionError, UnicodeDecodeError) as error:
        raise msgspec.DecodeError("it is nested too deeply, or is not UTF-8 text") from error
    return found
