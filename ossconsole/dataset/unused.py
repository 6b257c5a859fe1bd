"""Unused: what is left out, grouped by reason: how many, and the first names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

KEPT_NAMES = 10
SHOWN_NAMES = 3


class Unused(msgspec.Struct, frozen=True):
    """`count` things of one kind (`file`, `class folder`) that are left out for `reason`; `names` are the first."""

    kind: str
    count: int
    reason: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, reason: str, names: Iterable[str]) -> tuple[Unused, ...]:
        """One group, or none where there are no names."""
        found = sorted(names)
        return (cls(kind, len(found), reason, tuple(found[:KEPT_NAMES])),) if found else ()

    def __str__(self) -> str:
        """Like `2 files (a named pipe): a, b`. The names are those of the source: escape them for a terminal."""
        plural = f"{self.kind}es" if self.kind.endswith("s") else f"{self.kind}s"
        kind = self.kind if self.count == 1 else plural
        return f"{self.count:,} {kind} ({self.reason}): {first_names(self.names, self.count)}"


class UnusedTally:
    """Files that are left out, counted as they turn up."""

    def __init__(self, kind: str = "file") -> None:
        self._kind = kind
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, reason: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < KEPT_NAMES:
            names.append(name)

    @property
    def count(self) -> int:
        return sum(self._counts.values())

    def groups(self) -> tuple[Unused, ...]:
        counts = list(self._counts.items())  # another thread may add to them
        return tuple(Unused(self._kind, count, reason, tuple(self._names[reason])) for reason, count in counts)


def first_names(names: Sequence[str], count: int) -> str:
    """Like `a, b, c and 7 more`."""
    shown = ", ".join(names[:SHOWN_NAMES])
    more = count - min(len(names), SHOWN_NAMES)
    return f"{shown} and {more:,} more" if more else shown
