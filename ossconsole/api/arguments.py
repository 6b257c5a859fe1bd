"""Checks of what scripts pass to the public API: a wrong value is refused where it is passed, not in mid-training."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from ossconsole.config.errors import ConsoleError

S = TypeVar("S", bound=msgspec.Struct)

_FIELD = re.compile(r" - at `\$\.(\w+)`")


class ArgumentError(ConsoleError):
    """A value that an argument of the public API cannot have."""


def checked(kind: type[S], owner: str, values: dict[str, Any]) -> S:
    """A struct of the values; integers of NumPy count as such. Raises ArgumentError about the argument of `owner`."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        reason = str(error)
        field = _FIELD.search(reason)
        name = field[1] if field is not None else ""
        wanted = reason.split(" - at ", maxsplit=1)[0].replace("`", "")
        raise ArgumentError(
            f"{owner} got {name}={values.get(name)!r}: {wanted[:1].lower()}{wanted[1:]}.",
            remedy=_REMEDIES.get(name, f"help({owner}) describes its arguments."),
        ) from error


_REMEDIES = {
    "workers": "Give 1 or more: the connector reads in processes of its own, never in that of the training.",
    "endpoint": 'Give "standard" or "accelerated".',
}
