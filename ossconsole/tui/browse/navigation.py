"""Ways through the bucket: folders, history, bookmarks, prefixes; and sorting, filtering, choosing."""

from __future__ import annotations

import asyncio

import numpy as np
from textual import work

from ossconsole.config.text import safe_text
from ossconsole.storage.errors import StorageError
from ossconsole.storage.listing import RowFilter, SortKey
from ossconsole.tui.browse.browser import BrowseBase
from ossconsole.tui.kit import memory
from ossconsole.tui.kit.dialogs import InputDialog, ListDialog
from ossconsole.tui.kit.text import Line, moment

_SORT_ORDER = (SortKey.NAME, SortKey.SIZE, SortKey.MODIFIED, SortKey.STORAGE_CLASS)
_BOOKMARKS = "bookmarks"


class Moving(BrowseBase):
    """Actions that change what is looked at and nothing in the bucket."""

    # For the screen that draws

    def arrive(self) -> None:
        raise NotImplementedError

    def leave_place(self) -> None:
        raise NotImplementedError

    def show_bucket(self, prefix: str = "") -> None:
        raise NotImplementedError

    # Folders

    def on_virtual_table_opened(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        row = self.table.current
        if row is None:
            return
        rows = self.table.view.rows
        if rows.is_folder(row):
            self.open_folder(rows.key(row))
        else:
            self.show_pane(True)
            self.read_detail(full=True)

    def show_pane(self, shown: bool) -> None:
        """The detail pane in place of the table, where both have no room; beside it, only the focus moves."""
        side_by_side = self.app.has_class("-wide") or self.has_class("-wide") or self.has_class("-vast")
        self.set_class(shown and not side_by_side, "-pane")
        (self.pane if shown else self.table).focus()

    def action_wider(self) -> None:
        """The pane over the whole width, or back beside the table."""
        self.toggle_class("-pane")
        (self.pane if self.has_class("-pane") else self.table).focus()
        self.read_detail()

    def action_up(self) -> None:
        if self.has_class("-pane"):
            self.remove_class("-pane")
            self.table.focus()
            return
        self.leave_place()
        if self.model.up():
            self.arrive()

    def action_history_back(self) -> None:
        self.leave_place()
        if self.model.back():
            self.arrive()

    def action_history_forward(self) -> None:
        self.leave_place()
        if self.model.forward():
            self.arrive()

    def action_refresh(self) -> None:
        """Lists the folder again; after a stop or an error it goes on from there."""
        self.told = None
        if self.model.listing.is_complete or self.model.loading:
            self.model.refresh()
        else:
            self.model.resume()
        self.redraw()

    def action_checkpoints(self) -> None:
        self._jump("checkpoint_prefix")

    def action_dataset(self) -> None:
        self._jump("dataset_prefix")

    def _jump(self, name: str) -> None:
        if self.store is not None:
            prefix = getattr(self.store.profile, name)
            self.open_folder(f"{prefix}/" if prefix else "")

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_go_to(self) -> None:
        """Asks the server for names that begin so, wherever they are."""
        answer = await self.app.push_screen_wait(
            InputDialog(
                "Go to", "A prefix, listed by the server: a folder, or the beginning of names.", self.model.prefix
            )
        )
        if answer is not None and self.store is not None:
            uri = f"oss://{self.store.profile.bucket}/"
            self.open_folder(answer.removeprefix(uri))

    # Buckets and bookmarks

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_buckets(self) -> None:
        """The buckets of the account; where listing them is denied, one may be named."""
        store = self.store
        if store is None:
            return
        try:
            buckets = await asyncio.to_thread(store.list_buckets)
        except StorageError as error:
            name = await self.app.push_screen_wait(InputDialog("Bucket", f"{error.message}\n\nName a bucket:"))
        else:
            rows = [
                Line((f" {safe_text(b.name):<36}", "text"), (f"{b.region:<18}{moment(b.created)[:10]}", "dim"))
                for b in buckets
            ]
            answer = await self.app.push_screen_wait(ListDialog("Buckets of the account", rows))
            name = buckets[answer[1]].name if answer else None
        if not name or self.store is None:
            return
        if name == self.store.profile.bucket:
            self.open_folder("")
            return
        other = self.store.for_bucket(name)
        if await self.behind(lambda: other.list_page("", max_keys=1)) is not None:
            self.store = other
            self.show_bucket()

    @property
    def _bookmarks(self) -> list[str]:
        return list(memory.recall(_BOOKMARKS, self._memory_name).get("prefixes", []))

    @property
    def _memory_name(self) -> str:
        return f"{self.store.profile.name}/{self.store.profile.bucket}" if self.store else ""

    def action_bookmark(self) -> None:
        """Adds the folder to the bookmarks, or takes it out."""
        known, prefix = self._bookmarks, self.model.prefix
        marked = prefix not in known
        known = [*known, prefix] if marked else [other for other in known if other != prefix]
        if self.console.remember(_BOOKMARKS, self._memory_name, {"prefixes": known}):
            done = "set" if marked else "removed"
            self.notify(f"Bookmark {done}: {safe_text(prefix) or '/'}", markup=False, timeout=3)

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_bookmarks(self) -> None:
        known = self._bookmarks
        if not known:
            self.notify("No bookmarks yet: b sets one.", timeout=3)
            return
        rows = [Line((f" {safe_text(prefix) or '/'}", "text")) for prefix in known]
        answer = await self.app.push_screen_wait(ListDialog("Bookmarks", rows))
        if answer:
            self.open_folder(known[answer[1]])

    # Order and choice

    def action_sort(self) -> None:
        at = _SORT_ORDER.index(self.model.sort.key)
        self.sort_by(_SORT_ORDER[(at + 1) % len(_SORT_ORDER)])

    def action_reverse(self) -> None:
        self.sort_by(self.model.sort.key)

    def sort_by(self, key: SortKey) -> None:
        self.model.sort_by(key)
        self.redraw()

    def action_filter(self) -> None:
        self.entry.display = True
        self.entry.focus()

    def action_choose(self) -> None:
        row = self.table.current
        if row is not None:
            self.model.selection.toggle(row)
            self.table.action_move(1)
            self.table.refresh()
            self.redraw()

    def action_choose_range(self) -> None:
        """The first time it marks where the range begins, the second time it chooses up to the cursor."""
        if self.range_start is None:
            self.range_start = self.table.cursor
            self.notify("The range begins here: move, then press v again.", timeout=3)
            return
        first, last = sorted((self.range_start, self.table.cursor))
        self.range_start = None
        self.model.selection.set(self.table.view.order[first : last + 1], chosen=True)
        self.table.refresh()
        self.redraw()

    def action_choose_all(self) -> None:
        """Chooses all rows that show, or none where all are chosen."""
        order = self.table.view.order
        chosen = np.isin(order, self.model.selection.rows, assume_unique=True).all() if len(order) else False
        self.model.selection.set(order, chosen=not chosen)
        self.table.refresh()
        self.redraw()

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def action_choose_pattern(self) -> None:
        def check(text: str) -> None:
            RowFilter(text)

        answer = await self.app.push_screen_wait(
            InputDialog(
                "Choose by name", "As in the filter: part of a name, *.pt, re:^n0, ! turns it round.", check=check
            )
        )
        if answer:
            rows = self.model.rows
            matched = await self.behind(lambda: rows.matching(RowFilter(answer), 0, rows.count))
            if matched is not None and rows is self.model.rows:
                self.model.selection.set(matched, chosen=True)
                self.table.refresh()
                self.redraw()
