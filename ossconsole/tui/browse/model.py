"""BrowseModel: the open folder, its rows in their order, the selection, and the history of folders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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
from ossconsole.storage.objects import ListPage, ObjectSummary


class Selection:
    """The selected rows, as a mask; rows that are loaded later are not selected."""

    def __init__(self, rows: ObjectRows) -> None:
        self._rows = rows
        self._mask: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)

    def __contains__(self, row: int) -> bool:
        return row < len(self._mask) and bool(self._mask[row])

    def __len__(self) -> int:
        return int(np.count_nonzero(self._mask))

    @property
    def rows(self) -> Indexes:
        """The numbers of the selected rows, ascending."""
        return np.flatnonzero(self._mask).astype(np.uint32)

    @property
    def bytes(self) -> int:
        """The size of the selected objects in bytes, without the content of folders."""
        return self._rows.total_size(self.rows)

    @property
    def folders(self) -> int:
        """The number of selected folders."""
        return int(np.count_nonzero(self._rows.folder_mask(len(self._mask)) & self._mask))

    def toggle(self, row: int) -> None:
        """Selects or deselects a row."""
        self.set(np.array([row], np.uint32), row not in self)

    def set(self, rows: Indexes, selected: bool) -> None:
        """Selects or deselects rows."""
        if len(self._mask) < self._rows.count:
            self._mask = np.concatenate((self._mask, np.zeros(self._rows.count - len(self._mask), np.bool_)))
        self._mask[rows] = selected

    def clear(self) -> None:
        """Deselects all rows."""
        self._mask = np.zeros(0, np.bool_)

    def moved_to(self, rows: ObjectRows) -> Selection:
        """A selection of the same names in another listing of the folder."""
        moved = Selection(rows)
        if len(self):
            names = {self._rows.name(int(row)) for row in self.rows}
            moved.set(rows.named(names), selected=True)
        return moved


def source_of_row(rows: ObjectRows, row: int) -> ObjectOrPrefix:
    """A row as the jobs accept it: an object, or the prefix of a folder."""
    if rows.is_folder(row):
        return rows.key(row)
    key, size, modified = rows.key(row), rows.size(row), rows.modified(row)
    return ObjectSummary(key, size, modified, rows.storage_class(row), type=rows.type(row))


_BUILT_DIRECTLY = 20_000  # rows, which are sorted and filtered within a few milliseconds
_REST = 4.0  # while more pages arrive, the sorting thread pauses for this multiple of its last run


class EmptyBucket:
    """The source of a model while there is no bucket."""

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        """An empty page."""
        del prefix, delimiter, token, start_after, max_keys
        return ListPage([], [], "")


@dataclass
class CursorPosition:
    """The cursor of a folder: the name under it, its position, and the number of visible rows above it."""

    name: str = ""
    position: int = 0
    above: int = 0


@dataclass
class _Building:
    """A view that a thread builds."""

    cancelled: threading.Event = field(default_factory=threading.Event)
    view: RowView | None = None


class BrowseModel:
    """Listing, view, selection and history of one bucket.

    `changed` is called from any thread when `poll` should be called. Everything else belongs to the event loop.
    """

    def __init__(self, source: PageSource, changed: Callable[[], None]) -> None:
        self.source = source
        self.sort = Sort()
        self.row_filter: RowFilter | None = None
        self.cursor_positions: dict[str, CursorPosition] = {}
        self.seen_checkpoint = ""
        """The checkpoint that the run had written last when the folder was listed again for it."""
        self.pending_cursor: CursorPosition | None = None
        """The cursor to restore once its row is loaded."""
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
        """The prefix of the listing; "" for the root."""
        return self.listing.prefix

    @property
    def rows(self) -> ObjectRows:
        """The rows loaded so far."""
        return self.listing.rows

    @property
    def loading(self) -> bool:
        """Whether pages are being requested."""
        return self.listing.state is ListingState.LOADING

    @property
    def refreshing(self) -> bool:
        """Whether the folder is listed again in the background."""
        return self._incoming is not None

    @property
    def unanswered_s(self) -> float:
        """How long the listing, or the refresh of it, has had no answer, seconds."""
        return (self._incoming or self.listing).unanswered_s

    @property
    def error(self) -> ConsoleError | None:
        """Why the listing, or the refresh of it, ended early."""
        return self.listing.error or self._refresh_error

    @property
    def settled(self) -> bool:
        """Whether the view shows all loaded rows, in the requested order."""
        return (
            self.view.rows is self.rows
            and self.view.covered == self.rows.count
            and self.view.sort == self.sort
            and self.view.row_filter is self.row_filter
        )

    # Folders

    def open(self, prefix: str, *, select: str = "", remember: bool = True) -> None:
        """Lists `prefix`; the cursor goes to the name `select`, or to its last position in the folder."""
        if remember and prefix != self.prefix:
            self._back.append(self.prefix)
            self._forward.clear()
        self._drop_incoming()
        self.listing.stop()
        self._refresh_error = None
        self.row_filter = None
        self.pending_cursor = CursorPosition(name=select) if select else self.cursor_positions.get(prefix)
        self._show(Listing(self.source, prefix, on_change=self._on_change))
        self.listing.start()

    def up(self) -> bool:
        """Opens the parent folder with the cursor on this one; False at the root of the bucket."""
        if not self.prefix:
            return False
        above = self.prefix[: self.prefix[:-1].rfind("/") + 1]  # a name may be empty
        self.open(above, select=self.prefix[len(above) :])
        return True

    def back(self) -> bool:
        """Opens the previous folder; False where there is none."""
        return self._travel(self._back, self._forward)

    def forward(self) -> bool:
        """Opens the folder left with `back`; False where there is none."""
        return self._travel(self._forward, self._back)

    def _travel(self, origin: list[str], other: list[str]) -> bool:
        if not origin:
            return False
        other.append(self.prefix)
        self.open(origin.pop(), remember=False)
        return True

    def refresh(self) -> None:
        """Lists again in the background; the rows are replaced once the new listing is complete or as long."""
        self._drop_incoming()
        self._refresh_error = None
        self._incoming = Listing(self.source, self.prefix, on_change=self._on_change)
        self._incoming.start()

    def resume(self) -> None:
        """Continues after a stop or a failure."""
        if self._refresh_error is not None:
            self.refresh()
        else:
            self.listing.start()

    def stop(self) -> bool:
        """Stops the requests; False where there were none."""
        was_loading = self.loading or self.refreshing
        self._drop_incoming()
        self.listing.stop()
        return was_loading

    def give_way(self) -> None:
        """Pauses the background listing for a moment; call it for each key."""
        self.listing.give_way()
        if self._incoming:
            self._incoming.give_way()

    def close(self) -> None:
        """Stops all threads."""
        self.stop()
        if self._building:
            self._building.cancelled.set()

    # Order

    def sort_by(self, key: SortKey, *, descending: bool | None = None) -> None:
        """Sorts by a column; the second time in reverse. Size and time start with the largest and the newest."""
        if descending is None:
            same = key is self.sort.key
            descending = not self.sort.descending if same else key in {SortKey.SIZE, SortKey.MODIFIED}
        self.sort = Sort(key, descending)
        self._rebuild()

    def filter_by(self, text: str) -> None:
        """Shows only names that match; "" shows all. Raises SettingsError for a bad expression."""
        self.row_filter = RowFilter(text) if text else None
        self._rebuild()

    # Results of threads

    def poll(self) -> bool:
        """Applies the results of threads; True when the view was replaced."""
        before = self.view
        if self._building and self._building.view is not None:
            built, self._building = self._building.view, None
            self._apply(built)
        self._apply_incoming()
        if not self.settled:
            self._build(self.rows)
        return self.view is not before

    def _apply(self, built: RowView) -> None:
        """Shows it, unless its rows or its order are out of date."""
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

    def _apply_incoming(self) -> None:
        incoming = self._incoming
        if incoming is None:
            return
        if incoming.state is ListingState.FAILED:
            self._incoming, self._refresh_error = None, incoming.error
        elif incoming.is_complete or (not self.listing.is_complete and incoming.rows.count >= self.rows.count):
            self._build(incoming.rows)

    def _replace(self, incoming: Listing, view: RowView) -> None:
        """Replaces the old listing by the refreshed one in a single step, without flicker."""
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
        """Builds the view of `rows`: directly where there are few, else in a thread."""
        if rows.count <= _BUILT_DIRECTLY:
            self._apply(build_view(rows, self.sort, self.row_filter, previous=self.view))
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
