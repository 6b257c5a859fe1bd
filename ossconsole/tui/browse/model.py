"""BrowseModel: the open folder, its rows in their order, the selection, and the history of folders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.jobs.actions import ObjectOrPrefix
from ossconsole.storage.listing import (
    Indexes,
    Listing,
    ListingState,
    ObjectRows,
    PageSource,
    RowFilter,
    RowView,
    Sort,
    SortKey,
    build_view,
)
from ossconsole.storage.objects import ObjectSummary


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


def source(rows: ObjectRows, row: int) -> ObjectOrPrefix:
    """What actions take for a row: an object, or the prefix of a folder."""
    if rows.is_folder(row):
        return rows.key(row)
    return ObjectSummary(rows.key(row), rows.size(row), rows.modified(row), rows.storage_class(row))


_BUILT_AT_ONCE = 20_000  # rows that are sorted and filtered within some milliseconds
_REST = 4.0  # the thread that sorts rests this many times as long as it took, while more pages arrive


@dataclass
class Place:
    """Where somebody was in a folder: the name under the cursor, and how far down the window it stood."""

    name: str = ""
    position: int = 0
    above: int = 0


@dataclass
class _Building:
    """A view being built by a thread."""

    cancelled: threading.Event = field(default_factory=threading.Event)
    view: RowView | None = None


class BrowseModel:
    """Listing, view, selection and history of one bucket.

    `changed` is called from any thread when `poll` has something to do; all else belongs to the screen's thread.
    """

    def __init__(self, source: PageSource, changed: Callable[[], None]) -> None:
        self.source = source
        self.sort = Sort()
        self.row_filter: RowFilter | None = None
        self.places: dict[str, Place] = {}
        self.wanted: Place | None = None
        """Where the cursor is to go as soon as that row is there."""
        self._changed = changed
        self._back: list[str] = []
        self._forward: list[str] = []
        self._incoming: Listing | None = None
        self._building: _Building | None = None
        self._built_at = 0.0
        self._took = 0.0
        self._refresh_error: ConsoleError | None = None
        self.listing = Listing(source, "")
        self.selection = Selection(self.listing.rows)
        self.view = RowView(self.listing.rows)

    @property
    def prefix(self) -> str:
        return self.listing.prefix

    @property
    def rows(self) -> ObjectRows:
        return self.listing.rows

    @property
    def loading(self) -> bool:
        return self.listing.state is ListingState.LOADING

    @property
    def refreshing(self) -> bool:
        return self._incoming is not None

    @property
    def error(self) -> ConsoleError | None:
        """Why the listing, or the refresh of it, ended early."""
        return self.listing.error or self._refresh_error

    @property
    def settled(self) -> bool:
        """Whether the view shows all that is loaded, in the order asked for."""
        return (
            self.view.rows is self.rows
            and self.view.covered == self.rows.count
            and self.view.sort == self.sort
            and self.view.row_filter is self.row_filter
        )

    # Ways

    def open(self, prefix: str, *, select: str = "", remember: bool = True) -> None:
        """Lists `prefix`; the cursor goes to the name `select`, or to where it was when the folder was left."""
        if remember and prefix != self.prefix:
            self._back.append(self.prefix)
            self._forward.clear()
        self._drop_incoming()
        self.listing.stop()
        self._refresh_error = None
        self.row_filter = None
        self.wanted = Place(name=select) if select else self.places.get(prefix)
        self._show(Listing(self.source, prefix, on_change=self._on_change))
        self.listing.start()

    def up(self) -> bool:
        """To the folder above, with the cursor on this one; False at the top of the bucket."""
        if not self.prefix:
            return False
        above = self.prefix.rstrip("/").rpartition("/")[0]
        above = f"{above}/" if above else ""
        self.open(above, select=self.prefix[len(above) :])
        return True

    def back(self) -> bool:
        return self._travel(self._back, self._forward)

    def forward(self) -> bool:
        return self._travel(self._forward, self._back)

    def _travel(self, origin: list[str], other: list[str]) -> bool:
        if not origin:
            return False
        other.append(self.prefix)
        self.open(origin.pop(), remember=False)
        return True

    def refresh(self) -> None:
        """Lists anew behind the rows that show, which are replaced when the new ones are as many, or all."""
        self._drop_incoming()
        self._refresh_error = None
        self._incoming = Listing(self.source, self.prefix, on_change=self._on_change)
        self._incoming.start()

    def resume(self) -> None:
        """Goes on after a stop or a failure."""
        if self._refresh_error is not None:
            self.refresh()
        else:
            self.listing.start()

    def stop(self) -> bool:
        """Stops what is loading; False when nothing was."""
        was_busy = self.loading or self.refreshing
        self._drop_incoming()
        self.listing.stop()
        return was_busy

    def give_way(self) -> None:
        """Called for each key: what loads in the background waits a moment."""
        self.listing.give_way()
        if self._incoming:
            self._incoming.give_way()

    def close(self) -> None:
        self.stop()
        if self._building:
            self._building.cancelled.set()

    # Order

    def sort_by(self, key: SortKey, *, descending: bool | None = None) -> None:
        """Sorts by the column; a second time, the other way round. Size and time begin with the largest and newest."""
        if descending is None:
            again = key is self.sort.key
            descending = not self.sort.descending if again else key in {SortKey.SIZE, SortKey.MODIFIED}
        self.sort = Sort(key, descending)
        self._rebuild()

    def filter_by(self, text: str) -> None:
        """Shows only names that match; "" shows all. Raises SettingsError for a bad expression."""
        self.row_filter = RowFilter(text) if text else None
        self._rebuild()

    # What threads bring

    def poll(self) -> bool:
        """Takes over what threads have brought; True when the view is another one."""
        before = self.view
        if self._building and self._building.view is not None:
            built, self._building = self._building.view, None
            self._take(built)
        self._take_incoming()
        if not self.settled:
            self._build(self.rows)
        return self.view is not before

    def _take(self, built: RowView) -> None:
        """Shows it, unless it is of rows or in an order that are no longer wanted."""
        if built.sort != self.sort or built.row_filter is not self.row_filter:
            return
        if built.rows is self.rows:
            self.view = built
        elif self._incoming is not None and built.rows is self._incoming.rows:
            self._replace(self._incoming, built)

    def _on_change(self, _: Listing) -> None:
        self._changed()

    def _show(self, listing: Listing) -> None:
        self.listing = listing
        self.selection = Selection(listing.rows)
        self.view = RowView(listing.rows, self.sort, self.row_filter)

    def _drop_incoming(self) -> None:
        if self._incoming:
            self._incoming.stop()
            self._incoming = None

    def _take_incoming(self) -> None:
        incoming = self._incoming
        if incoming is None:
            return
        if incoming.state is ListingState.FAILED:
            self._incoming, self._refresh_error = None, incoming.error
        elif incoming.is_complete or (not self.listing.is_complete and incoming.rows.count >= self.rows.count):
            self._build(incoming.rows)

    def _replace(self, incoming: Listing, view: RowView) -> None:
        """Shows the refreshed listing in place of the old one, at once: nothing blinks."""
        self._incoming = None
        self.listing.stop()
        selection = self.selection.moved_to(incoming.rows)
        self._show(incoming)
        self.selection, self.view = selection, view

    def _rebuild(self) -> None:
        if self._building:
            self._building.cancelled.set()
            self._building = None
        self._built_at = 0.0
        self._build(self.rows)

    def _build(self, rows: ObjectRows) -> None:
        """The view of the rows that show, or that are to show: at once where that takes no time."""
        if rows.count <= _BUILT_AT_ONCE:
            self._take(build_view(rows, self.sort, self.row_filter, previous=self.view))
        elif self._building is None and (self._rested or rows is not self.rows):
            building = self._building = _Building()
            arguments = (building, rows, self.sort, self.row_filter, self.view)
            threading.Thread(target=self._build_behind, args=arguments, name="view", daemon=True).start()

    @property
    def _rested(self) -> bool:
        return time.monotonic() >= self._built_at + _REST * self._took

    def _build_behind(
        self, building: _Building, rows: ObjectRows, sort: Sort, row_filter: RowFilter | None, previous: RowView
    ) -> None:
        began = time.monotonic()
        view = build_view(rows, sort, row_filter, previous=previous, is_cancelled=building.cancelled.is_set)
        if building.cancelled.is_set():
            return
        self._built_at = time.monotonic()
        self._took = self._built_at - began
        building.view = view
        self._changed()
