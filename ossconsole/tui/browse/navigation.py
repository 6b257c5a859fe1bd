"""Commands that change only what shows: folders, history, bookmarks, prefixes, sorting, filtering, selection."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

import numpy as np
from textual import work
from textual.widgets import Input

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import safe_text
from ossconsole.storage.errors import StorageError
from ossconsole.storage.listing import RowFilter, SortKey
from ossconsole.tui.browse.browser import Browser, Changed
from ossconsole.tui.kit import memory
from ossconsole.tui.kit.dialogs import ListScreen, PromptScreen
from ossconsole.tui.kit.text import Line, moment

_SORT_ORDER = (SortKey.NAME, SortKey.SIZE, SortKey.MODIFIED, SortKey.STORAGE_CLASS)
if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_BOOKMARKS = "bookmarks"
_SCHEME = "oss://"
_LISTED_AGAIN = 5_000  # rows, which are five requests


# Folders


def open_row(screen: Browser) -> None:
    """Open the folder under the cursor, or all details of the object."""
    row = screen.table.cursor_row
    if row is None:
        return
    rows = screen.table.view.rows
    if rows.is_folder(row):
        screen.open_folder(rows.key(row))
    else:
        screen.show_pane(True)
        screen.read_detail(full=True)


def toggle_pane(screen: Browser) -> None:
    """Show the detail pane over the whole width, or beside the table again."""
    shown = not screen.has_class("-pane")
    screen.set_class(shown, "-pane")
    (screen.pane if shown else screen.table).focus()
    screen.read_detail()


def up(screen: Browser) -> None:
    """Close the pane where it covers the table; else open the parent folder."""
    if screen.has_class("-pane"):
        screen.show_pane(False)
        return
    screen.save_cursor()
    if screen.model.up():
        screen.show_folder()


def history_back(screen: Browser) -> None:
    """Open the previous folder."""
    screen.save_cursor()
    if screen.model.back():
        screen.show_folder()


def history_forward(screen: Browser) -> None:
    """Open the folder that was left with `history_back`."""
    screen.save_cursor()
    if screen.model.forward():
        screen.show_folder()


def refresh(screen: Browser) -> None:
    """List the folder again; after a stop or an error, continue the listing."""
    screen.reported_error = None
    if screen.model.listing.is_complete or screen.model.loading:
        screen.model.refresh()
    else:
        screen.model.resume()
    screen.redraw()


def follow_checkpoints(screen: Browser) -> None:
    """List the folder again once the run has written a checkpoint below it."""
    key, model = screen.console.last_checkpoint, screen.model
    if key == model.seen_checkpoint or model.loading or model.refreshing:
        return
    model.seen_checkpoint = key
    if key.startswith(model.prefix) and model.rows.count < _LISTED_AGAIN:
        model.refresh()


def checkpoints(screen: Browser) -> None:
    """Open the checkpoint prefix of the profile."""
    if screen.store is not None:
        _open_prefix(screen, screen.store.profile.checkpoint_prefix)


def dataset(screen: Browser) -> None:
    """Open the dataset prefix of the profile."""
    if screen.store is not None:
        _open_prefix(screen, screen.store.profile.dataset_prefix)


def _open_prefix(screen: Browser, prefix: str) -> None:
    screen.open_folder(f"{prefix}/" if prefix else "")


@work(exclusive=True, group="dialog", exit_on_error=False)
async def go_to(screen: Browser) -> None:
    """List any prefix on the server: a folder, or the beginning of keys."""
    question = "A prefix to list on the server: a folder, or the beginning of names."
    store = screen.store
    if store is None:
        return
    check = functools.partial(typed_key, store)
    answer = await screen.ask(PromptScreen("Go to", question, screen.model.prefix, check=check))
    if answer is not None and screen.store is store:
        screen.open_folder(typed_key(store, answer).lstrip("/"))  # no key begins with a slash


def typed_key(store: ObjectStore, text: str) -> str:
    """The key or prefix that was typed, also as the URI of this bucket. Raises ConsoleError for that of another one."""
    if not text.startswith(_SCHEME):
        return text
    bucket, _, key = text.removeprefix(_SCHEME).partition("/")
    if bucket != store.profile.bucket:
        raise ConsoleError(
            f"oss://{safe_text(bucket)} is not the bucket that shows.", remedy="o on Browse opens another one."
        )
    return key


# Buckets and bookmarks


@work(exclusive=True, group="dialog", exit_on_error=False)
async def buckets(screen: Browser) -> None:
    """Select another bucket of the account; where listing them is denied, type its name."""
    store = screen.store
    if store is None:
        return
    try:
        found = await asyncio.to_thread(store.list_buckets)
    except StorageError as error:
        name = await screen.ask(PromptScreen("Bucket", f"{error.message}\n\nName of a bucket:"))
    else:
        rows = [
            Line((f" {safe_text(b.name):<36}", "text"), (f"{b.region:<18}{moment(b.created)[:10]}", "dim"))
            for b in found
        ]
        answer = await screen.ask(ListScreen("Buckets of the account", rows))
        name = found[answer[1]].name if answer else None
    if not name or screen.store is not store:  # the profile has changed meanwhile
        return
    if name == store.profile.bucket:
        screen.open_folder("")
        return
    other = store.for_bucket(name)
    page = await screen.request(lambda: other.list_page("", max_keys=1))
    if page is not None and screen.store is store:
        screen.store = other
        screen.show_bucket()


def _memory_name(screen: Browser) -> str:
    return f"{screen.store.profile.name}/{screen.store.profile.bucket}" if screen.store else ""


def _bookmarked(screen: Browser) -> list[str]:
    return list(memory.recall(_BOOKMARKS, _memory_name(screen)).get("prefixes", []))


def bookmark(screen: Browser) -> None:
    """Add the folder to the bookmarks, or remove it."""
    known, prefix = _bookmarked(screen), screen.model.prefix
    added = prefix not in known
    known = [*known, prefix] if added else [other for other in known if other != prefix]
    if screen.console.remember(_BOOKMARKS, _memory_name(screen), {"prefixes": known}):
        done = "added" if added else "removed"
        screen.notify(f"Bookmark {done}: {safe_text(prefix) or '/'}", markup=False, timeout=3)


@work(exclusive=True, group="dialog", exit_on_error=False)
async def bookmarks(screen: Browser) -> None:
    """Open a bookmark."""
    known = _bookmarked(screen)
    if not known:
        screen.notify("No bookmarks. Press b to add one.", timeout=3)
        return
    rows = [Line((f" {safe_text(prefix) or '/'}", "text")) for prefix in known]
    answer = await screen.ask(ListScreen("Bookmarks", rows))
    if answer:
        screen.open_folder(known[answer[1]])


# Order


def sort(screen: Browser) -> None:
    """Sort by the next column."""
    at = _SORT_ORDER.index(screen.model.sort.key)
    sort_by(screen, _SORT_ORDER[(at + 1) % len(_SORT_ORDER)])


def reverse(screen: Browser) -> None:
    """Reverse the order."""
    sort_by(screen, screen.model.sort.key)


def sort_by(screen: Browser, key: SortKey) -> None:
    """Sort by a column; the second time, in reverse."""
    screen.model.sort_by(key)
    screen.redraw()


def edit_filter(screen: Browser) -> None:
    """Show the input of the filter."""
    screen.filter_input.display = True
    screen.filter_input.focus()


def filter_typed(screen: Browser, field: Input) -> None:
    """Filter by what is typed; an expression that is not valid is marked."""
    try:
        screen.model.filter_by(field.value)
    except ConsoleError:
        field.add_class("-bad")
    else:
        field.remove_class("-bad")
    screen.post_message(Changed())


def close_filter(screen: Browser) -> None:
    """Show all rows, without the input of the filter."""
    field = screen.filter_input
    field.display = False
    with field.prevent(Input.Changed):
        field.value = ""
    field.remove_class("-bad")
    if screen.model.row_filter is not None:
        screen.model.filter_by("")
        screen.post_message(Changed())
    screen.table.focus()


def escape(screen: Browser) -> None:
    """Undo one layer: close the pane, stop loading, clear the filter, the begun range or the selection."""
    if screen.has_class("-pane"):
        screen.show_pane(False)
    elif screen.filter_input.has_focus:
        close_filter(screen)
    elif screen.model.stop():
        pass
    elif screen.model.row_filter is not None:
        close_filter(screen)
    elif screen.range_start is not None:
        screen.range_start = None
        screen.notify("No range any more.", timeout=2)
    elif len(screen.model.selection):
        screen.model.selection.clear()
        screen.table.refresh()
    else:
        screen.table.focus()
    screen.redraw()


# Selection


def _selection_changed(screen: Browser) -> None:
    screen.table.refresh()
    screen.redraw()


def select(screen: Browser) -> None:
    """Select or deselect the row under the cursor."""
    row = screen.table.cursor_row
    if row is not None:
        screen.model.selection.toggle(row)
        screen.table.action_move(1)
        _selection_changed(screen)


def select_range(screen: Browser) -> None:
    """Start a range; the second time, select all rows from there to the cursor."""
    view, row = screen.table.view, screen.table.cursor_row
    if row is None:
        return
    begun = view.rows.find(screen.range_start) if screen.range_start is not None else None
    position = view.position(begun) if begun is not None else None
    if position is None:
        screen.range_start = view.rows.name(row)
        screen.notify("Range started. Move the cursor, then press v again.", timeout=3)
        return
    first, last = sorted((position, screen.table.cursor))
    screen.range_start = None
    screen.model.selection.set(view.order[first : last + 1], selected=True)
    _selection_changed(screen)


def select_all(screen: Browser) -> None:
    """Select all rows of the view, or none where all are selected."""
    order = screen.table.view.order
    complete = np.isin(order, screen.model.selection.rows, assume_unique=True).all() if len(order) else False
    screen.model.selection.set(order, selected=not complete)
    _selection_changed(screen)


@work(exclusive=True, group="dialog", exit_on_error=False)
async def select_pattern(screen: Browser) -> None:
    """Select the loaded names that match a pattern."""
    question = "As in the filter: part of a name, *.pt, re:^n0; ! in front inverts it."
    answer = await screen.ask(PromptScreen("Select by name", question, check=RowFilter))
    if answer:
        rows = screen.model.rows
        matched = await screen.request(lambda: rows.matching(RowFilter(answer), 0, rows.count))
        if matched is not None and rows is screen.model.rows:
            screen.model.selection.set(matched, selected=True)
            _selection_changed(screen)
            if not len(matched):
                screen.notify("No loaded name matches.", timeout=3)
