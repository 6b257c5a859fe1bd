"""A listing that fills in the background: the first page at once, the rest behind it, stopped and resumed at will."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.objects import ListPage
from ossconsole.storage.rows import ObjectRows

_GIVE_WAY_S = 0.15  # after a key, in which the next one is likely
_LONGEST_WAIT_S = 0.6  # before a page, however many keys come


class PageSource(Protocol):
    """What a listing needs of an ObjectStore."""

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage: ...


class ListingState(str, enum.Enum):
    """How far a listing is."""

    LOADING = "loading"
    STOPPED = "stopped"
    FAILED = "failed"
    COMPLETE = "complete"


class Listing:
    """One prefix being listed by a thread of its own.

    Pages land in the rows of the listing that asked for them, so that a late page of one folder cannot show up in
    another; within a listing the generation does the same for a page asked for before a stop.
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

        Names are told relative to the last folder of `prefix`, which may end in the middle of a name.
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
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ended.set()

    def start(self) -> None:
        """Lists from the first page, or goes on after the last page that arrived (after `stop` or a failure)."""
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
        """Keeps what has arrived and asks for no more; a page on its way is dropped and asked for again by `start`."""
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
        """Asks for no page in the next moment: reading one keeps Python from answering the key just pressed."""
        self._busy_until = time.monotonic() + _GIVE_WAY_S

    @property
    def is_complete(self) -> bool:
        return self.state is ListingState.COMPLETE

    def _load(self, generation: int) -> None:
        began = time.perf_counter()
        while True:
            try:
                page = self._source.list_page(self.prefix, delimiter=self._delimiter, token=self._token)
            except ConsoleError as error:
                if self._fail(generation, error):
                    self._on_change(self)
                return
            with self._lock:
                if generation != self._generation:
                    return
                self.rows.append(page)
                self._token = page.next_token
                if self.first_rows_s is None:
                    self.first_rows_s = time.perf_counter() - began
                if not page.next_token:
                    self._end(ListingState.COMPLETE)
            self._on_change(self)
            if not page.next_token:
                return
            latest = time.monotonic() + _LONGEST_WAIT_S
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
