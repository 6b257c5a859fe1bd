"""A listing that loads in the background into columns; a million rows take some hundred bytes each."""

from __future__ import annotations

import enum
import fnmatch
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.storage.objects import ListPage

Indexes = npt.NDArray[np.uint32]
_FOLDER = -1  # in the size column
_FIRST_CAPACITY = 2048
_CHUNK_BITS = 10
_CHUNK = 1 << _CHUNK_BITS


class ObjectRows:
    """The folders and objects of one prefix, by arrival: folders among themselves and objects among themselves are
    in OSS's order (UTF-8 bytes of the key), which is also the order of Python's strings.

    One thread appends; any thread may read rows below `count`, which is raised last.
    """

    def __init__(self, base: str) -> None:
        """`base` is what every key begins with; names are what follows it."""
        self.base = base
        self.count = 0
        self.folders = 0
        """The number of rows that are folders."""
        # In tuples, which the garbage collector stops tracking; one list of a million names it would scan each time.
        self._chunks: list[tuple[str, ...]] = []
        self._kinds: list[tuple[str, str]] = [("", "")]
        """Pairs of storage class and type, of which there are few."""
        self._size = np.empty(_FIRST_CAPACITY, np.int64)
        self._modified = np.empty(_FIRST_CAPACITY, np.int64)
        self._kind = np.empty(_FIRST_CAPACITY, np.uint8)

    def append(self, page: ListPage) -> None:
        """Adds a page of the listing of a prefix that begins with `base`."""
        first, added = self.count, len(page.prefixes) + len(page.objects)
        self._reserve(first + added)
        skip = len(self.base)
        self._extend([*(prefix[skip:] for prefix in page.prefixes), *(o.key[skip:] for o in page.objects)])
        middle, end = first + len(page.prefixes), first + added
        self._size[first:middle] = _FOLDER
        self._modified[first:middle] = 0
        self._kind[first:middle] = 0
        self._size[middle:end] = [o.size for o in page.objects]
        self._modified[middle:end] = [o.modified for o in page.objects]
        self._kind[middle:end] = [self._kind_index((o.storage_class, o.type)) for o in page.objects]
        self.folders += len(page.prefixes)
        self.count = end

    def _extend(self, names: list[str]) -> None:
        last = self._chunks[-1] if self._chunks else ()
        taken = 0
        if 0 < len(last) < _CHUNK:
            taken = _CHUNK - len(last)
            self._chunks[-1] = (*last, *names[:taken])
        for start in range(taken, len(names), _CHUNK):
            self._chunks.append(tuple(names[start : start + _CHUNK]))

    def _reserve(self, needed: int) -> None:
        capacity = len(self._size)
        if needed <= capacity:
            return
        capacity = max(needed, capacity * 3 // 2)
        for name in ("_size", "_modified", "_kind"):
            old = getattr(self, name)
            grown = np.empty(capacity, old.dtype)
            grown[: self.count] = old[: self.count]
            setattr(self, name, grown)  # a reader with the old column sees the same rows

    def _kind_index(self, kind: tuple[str, str]) -> int:
        try:
            return self._kinds.index(kind)
        except ValueError:
            self._kinds.append(kind)
            return len(self._kinds) - 1

    def name(self, row: int) -> str:
        """The key without `base`; a folder's ends with a slash, the folder's own marker object has ""."""
        return self._chunks[row >> _CHUNK_BITS][row & (_CHUNK - 1)]

    def key(self, row: int) -> str:
        """The object's key, or the folder's prefix."""
        return self.base + self.name(row)

    def is_folder(self, row: int) -> bool:
        """Whether the row is a folder (a common prefix)."""
        return bool(self._size[row] == _FOLDER)

    def size(self, row: int) -> int:
        """Bytes; 0 for a folder."""
        return max(0, int(self._size[row]))

    def modified(self, row: int) -> int:
        """Seconds since the epoch, UTC; 0 for a folder."""
        return int(self._modified[row])

    def storage_class(self, row: int) -> str:
        """Empty for a folder."""
        return self._kinds[int(self._kind[row])][0]

    def type(self, row: int) -> str:
        """The object's type, as ObjectSummary's; empty for a folder."""
        return self._kinds[int(self._kind[row])][1]

    def find(self, name: str) -> int | None:
        """The row with this name; None where there is none."""
        for number, chunk in enumerate(self._chunks):
            if name in chunk:
                row = (number << _CHUNK_BITS) + chunk.index(name)
                return row if row < self.count else None
        return None

    def named(self, names: set[str]) -> Indexes:
        """The rows with these names."""
        found = [
            (number << _CHUNK_BITS) + at
            for number, chunk in enumerate(self._chunks)
            if not names.isdisjoint(chunk)
            for at, name in enumerate(chunk)
            if name in names
        ]
        return np.array([row for row in found if row < self.count], np.uint32)

    def folder_mask(self, count: int) -> npt.NDArray[np.bool_]:
        """Which of the first `count` rows are folders; shape (count,)."""
        return np.equal(self._size[:count], _FOLDER)

    def total_size(self, rows: Indexes) -> int:
        """The bytes of these objects; folders count as 0."""
        return int(np.maximum(self._size[: self.count][rows], 0).sum())

    def sort_column(self, key: SortKey, count: int) -> npt.NDArray[np.int64]:
        """Values whose order is that of the first `count` rows by `key`; shape (count,)."""
        if key is SortKey.SIZE:
            return self._size[:count]
        if key is SortKey.MODIFIED:
            return self._modified[:count]
        if key is SortKey.STORAGE_CLASS:
            kinds = list(self._kinds)
            ranks = np.empty(len(kinds), np.int64)
            classes = sorted({storage_class for storage_class, _ in kinds})
            ranks[:] = [classes.index(storage_class) for storage_class, _ in kinds]
            return ranks[self._kind[:count]]
        return np.arange(count, dtype=np.int64)

    def matching(
        self, row_filter: RowFilter, start: int, stop: int, is_cancelled: Callable[[], bool] | None = None
    ) -> Indexes:
        """The rows from `start` to `stop` that match the filter; when cancelled, those found until then."""
        found: list[int] = []
        for number in range(start >> _CHUNK_BITS, -(-stop >> _CHUNK_BITS)):
            if is_cancelled is not None and is_cancelled():
                break
            first = max(start, number << _CHUNK_BITS)
            names = self._chunks[number][first & (_CHUNK - 1) : min(_CHUNK, stop - (number << _CHUNK_BITS))]
            found.extend(first + at for at in row_filter.matching(names))
        return np.array(found, np.uint32)


class SortKey(str, enum.Enum):
    """A column to sort by."""

    NAME = "name"
    SIZE = "size"
    MODIFIED = "modified"
    STORAGE_CLASS = "class"


@dataclass(frozen=True)
class Sort:
    """An order of rows; folders come first in each, by name."""

    key: SortKey = SortKey.NAME
    descending: bool = False


class RowFilter:
    """Which names to show: `text` anywhere in the name, `*.pt` as a pattern of the whole name, `re:^n0[12]` as a
    regular expression; a leading `!` inverts it. Case is ignored. Raises SettingsError.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        wanted = text.removeprefix("!")
        self.inverse = wanted != text
        self._needle = ""
        """The plain text to find: one search through many joined names rules most of them out."""
        self.matches: Callable[[str], bool] = self._compile(wanted)

    def matching(self, names: Sequence[str]) -> Iterable[int]:
        """The indexes of the names that match."""
        if self._needle and self._needle not in "\n".join(names).casefold():
            return range(len(names)) if self.inverse else ()
        matches = self.matches
        return [at for at, name in enumerate(names) if matches(name)]

    def _compile(self, wanted: str) -> Callable[[str], bool]:
        search: Callable[[str], re.Match[str] | None]
        if wanted.startswith("re:"):
            try:
                search = re.compile(wanted.removeprefix("re:"), re.IGNORECASE).search
            except re.error as error:
                raise SettingsError(f"{wanted!r} is not a regular expression: {error}.") from error
        elif any(character in wanted for character in "*?["):
            pattern = re.compile(fnmatch.translate(wanted.removesuffix("/")), re.IGNORECASE)

            search = lambda name: pattern.match(name.removesuffix("/"))  # noqa: E731
        else:
            needle = self._needle = wanted.casefold()
            if self.inverse:
                return lambda name: needle not in name.casefold()
            return lambda name: needle in name.casefold()
        if self.inverse:
            return lambda name: search(name) is None
        return lambda name: search(name) is not None


@dataclass(frozen=True)
class RowView:
    """The rows to show, in order, of the first `covered` ones; a snapshot that later pages do not change."""

    rows: ObjectRows
    sort: Sort = field(default_factory=Sort)
    row_filter: RowFilter | None = None
    covered: int = 0
    order: Indexes = field(default_factory=lambda: np.empty(0, np.uint32))
    matched: Indexes | None = None
    """The rows that match the filter, by arrival; None without a filter."""

    def __len__(self) -> int:
        return len(self.order)

    def position(self, row: int) -> int | None:
        """The index of the row in this order; None where it is not shown."""
        found = np.flatnonzero(self.order == row)
        return int(found[0]) if len(found) else None


def build_view(
    rows: ObjectRows,
    sort: Sort,
    row_filter: RowFilter | None = None,
    *,
    previous: RowView | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> RowView:
    """The view of the rows loaded now. The results of `previous` are reused where its filter is the same."""
    covered = rows.count
    matched: Indexes | None = None
    if row_filter is not None:
        known = previous if previous and previous.rows is rows and previous.row_filter is row_filter else None
        start = known.covered if known else 0
        matched = rows.matching(row_filter, start, covered, is_cancelled)
        if known and known.matched is not None:
            matched = np.concatenate((known.matched, matched))
    folders = rows.folder_mask(covered)
    if matched is None:
        shown_folders, shown = (np.flatnonzero(mask).astype(np.uint32) for mask in (folders, ~folders))
    else:
        shown_folders, shown = matched[folders[matched]], matched[~folders[matched]]
    if sort.key is SortKey.NAME:
        if sort.descending:
            shown_folders, shown = shown_folders[::-1], shown[::-1]
    else:
        column = rows.sort_column(sort.key, covered)[shown]
        shown = shown[np.argsort(-column if sort.descending else column, kind="stable")]
    order = np.concatenate((shown_folders, shown)).astype(np.uint32, copy=False)
    return RowView(rows, sort, row_filter, covered, order, matched)


_KEY_PAUSE_S = 0.15  # after a key, in which the next one is likely
_MAX_WAIT_S = 0.6  # before a page, however many keys are pressed


class PageSource(Protocol):
    """The part of ObjectStore that a listing needs."""

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        """As ObjectStore.list_page."""


class ListingState(str, enum.Enum):
    """The state of a listing."""

    LOADING = "loading"
    STOPPED = "stopped"
    FAILED = "failed"
    COMPLETE = "complete"


class Listing:
    """The listing of one prefix, in a thread of its own.

    Pages go into the rows of the listing that requested them, so a late page cannot appear in another folder. Within a
    listing the generation does the same for a page requested before a stop.
    """

    def __init__(
        self,
        source: PageSource,
        prefix: str,
        *,
        delimiter: str = "/",
        on_change: Callable[[Listing], None] = lambda _: None,
    ) -> None:
        """`on_change` is called from the listing's thread after each page and each change of state.

        Names are relative to the last folder of `prefix`, which may end in the middle of a name.
        """
        self.prefix = prefix
        self.rows = ObjectRows(prefix[: prefix.rfind("/") + 1])
        self.state = ListingState.STOPPED
        self.error: ConsoleError | None = None
        self.first_rows_s: float | None = None
        """From `start` to the first page, seconds."""
        self._source = source
        self._delimiter = delimiter
        self._on_change = on_change
        self._token = ""
        self._generation = 0
        self._busy_until = 0.0
        self._asked_at: float | None = None  # while a page is requested
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ended.set()

    def start(self) -> None:
        """Lists from the first page, or continues after the last page that arrived (after `stop` or a failure)."""
        with self._lock:
            if self.state in {ListingState.LOADING, ListingState.COMPLETE}:
                return
            self._generation += 1
            self.state, self.error = ListingState.LOADING, None
            self._ended.clear()
        threading.Thread(
            target=self._load, args=(self._generation,), name=f"listing-{self._generation}", daemon=True
        ).start()

    def stop(self) -> None:
        """Keeps what has arrived and stops; a page that is being fetched is dropped, and `start` fetches it again."""
        with self._lock:
            if self.state is not ListingState.LOADING:
                return
            self._generation += 1
            self._end(ListingState.STOPPED)
        self._on_change(self)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until it is complete, stopped or failed; False on timeout."""
        return self._ended.wait(timeout_s)

    def give_way(self) -> None:
        """Delays the next page: parsing it would keep Python from handling the key just pressed."""
        self._busy_until = time.monotonic() + _KEY_PAUSE_S

    @property
    def is_complete(self) -> bool:
        """Whether every page has arrived."""
        return self.state is ListingState.COMPLETE

    @property
    def unanswered_s(self) -> float:
        """How long the request in progress has had no answer, seconds; 0 while there is none."""
        asked = self._asked_at
        return time.monotonic() - asked if asked is not None and self.state is ListingState.LOADING else 0.0

    def _load(self, generation: int) -> None:
        began = time.perf_counter()
        while True:
            self._asked_at = time.monotonic()
            try:
                page = self._source.list_page(self.prefix, delimiter=self._delimiter, token=self._token)
            except ConsoleError as error:
                if self._fail(generation, error):
                    self._on_change(self)
                return
            with self._lock:
                if generation != self._generation:
                    return
                self._asked_at = None
                self.rows.append(page)
                self._token = page.next_token
                if self.first_rows_s is None:
                    self.first_rows_s = time.perf_counter() - began
                if not page.next_token:
                    self._end(ListingState.COMPLETE)
            self._on_change(self)
            if not page.next_token:
                return
            latest = time.monotonic() + _MAX_WAIT_S
            while (left := min(self._busy_until, latest) - time.monotonic()) > 0 and not self._ended.wait(left):
                pass

    def _fail(self, generation: int, error: ConsoleError) -> bool:
        with self._lock:
            if generation != self._generation:
                return False
            self._end(ListingState.FAILED, error)
            return True

    def _end(self, state: ListingState, error: ConsoleError | None = None) -> None:
        self.state, self.error = state, error
        self._ended.set()
