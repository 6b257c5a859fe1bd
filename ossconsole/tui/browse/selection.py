"""Selection: which rows of a listing are chosen."""

from __future__ import annotations

import numpy as np

from ossconsole.storage.objects import ObjectSummary
from ossconsole.storage.rows import Indexes, ObjectRows
from ossconsole.storage.usage import Source


class Selection:
    """Chosen rows, as one byte each; rows that come later are not chosen."""

    def __init__(self, rows: ObjectRows) -> None:
        self._rows = rows
        self._mask = np.zeros(0, np.bool_)

    def __contains__(self, row: int) -> bool:
        return row < len(self._mask) and bool(self._mask[row])

    def __len__(self) -> int:
        return int(np.count_nonzero(self._mask))

    @property
    def rows(self) -> Indexes:
        return np.flatnonzero(self._mask).astype(np.uint32)

    @property
    def bytes(self) -> int:
        """The size of the chosen objects; what lies in folders is not known."""
        return self._rows.total_size(self.rows)

    def toggle(self, row: int) -> None:
        self.set(np.array([row], np.uint32), row not in self)

    def set(self, rows: Indexes, chosen: bool) -> None:
        if len(self._mask) < self._rows.count:
            self._mask = np.concatenate((self._mask, np.zeros(self._rows.count - len(self._mask), np.bool_)))
        self._mask[rows] = chosen

    def clear(self) -> None:
        self._mask = np.zeros(0, np.bool_)

    def moved_to(self, rows: ObjectRows) -> Selection:
        """The selection of the same names in another listing of the folder."""
        moved = Selection(rows)
        if len(self):
            names = {self._rows.name(int(row)) for row in self.rows}
            moved.set(rows.named(names), chosen=True)
        return moved


def source(rows: ObjectRows, row: int) -> Source:
    """What actions take for a row: an object, or the prefix of a folder."""
    if rows.is_folder(row):
        return rows.key(row)
    return ObjectSummary(rows.key(row), rows.size(row), rows.modified(row), rows.storage_class(row))
