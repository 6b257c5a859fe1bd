"""Size and number of everything below prefixes, counted while it can be watched and stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.text import counted, safe_text
from ossconsole.storage.job import Job
from ossconsole.storage.objects import ObjectSummary

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

Source = ObjectSummary | str
"""An object, or a prefix that stands for everything below it."""


def objects_of(store: ObjectStore, sources: Sequence[Source]) -> Iterator[ObjectSummary]:
    """The objects that `sources` stand for, in the order of their keys."""
    for source in sorted(sources, key=source_key):
        if isinstance(source, str):
            yield from store.list_all(source)
        else:
            yield source


def source_key(source: Source) -> str:
    return source if isinstance(source, str) else source.key


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted so far. `newest` in seconds since the epoch, 0 when nothing was found."""

    objects: int = 0
    bytes: int = 0
    newest: int = 0
    by_class: dict[str, tuple[int, int]] = {}
    """Objects and bytes of each storage class."""


class Usage(Job):
    """Counts what `sources` stand for; `totals` may be read at any time."""

    def __init__(self, store: ObjectStore, sources: Sequence[Source]) -> None:
        where = safe_text(source_key(sources[0])) if len(sources) == 1 else counted(len(sources), "item")
        super().__init__(f"Size of {where or 'the bucket'}", threads=1)
        self.totals = UsageTotals()
        self._store = store.pausing(self.pause)
        self._sources = sources

    def work(self) -> None:
        objects = size = newest = 0
        by_class: dict[str, tuple[int, int]] = {}
        for found in objects_of(self._store, self._sources):
            self.check_cancelled()
            self.ledger.expect(1, found.size)
            self.ledger.finish(None, found.size)
            objects, size, newest = objects + 1, size + found.size, max(newest, found.modified)
            count, part = by_class.get(found.storage_class, (0, 0))
            by_class[found.storage_class] = (count + 1, part + found.size)
            if objects % 500 == 0:
                self.totals = UsageTotals(objects=objects, bytes=size, newest=newest, by_class=dict(by_class))
        self.totals = UsageTotals(objects=objects, bytes=size, newest=newest, by_class=by_class)
        self.ledger.totals_known()
