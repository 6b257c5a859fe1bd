"""BrowseScreen: folders and objects of the bucket, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.storage.objects import ListPage, ObjectSummary
from ossconsole.tui import actions
from ossconsole.tui.screens.base import ConsoleScreen
from ossconsole.tui.text import Line, moment, safe, shorten_middle, size
from ossconsole.tui.widgets.panel import Panel
from ossconsole.tui.widgets.table import VirtualTable


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A row: a folder, or an object with its size in bytes and time in Unix seconds."""

    key: str
    name: str
    size: int | None = None
    modified: int | None = None

    @property
    def folder(self) -> bool:
        return self.size is None


class BrowseScreen(ConsoleScreen):
    """Lists in a thread; an answer that comes after the folder was left is dropped."""

    SCOPE = "browse"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("browse")]

    def __init__(self) -> None:
        super().__init__()
        self._prefix = ""
        self._places: dict[str, str] = {}
        self._request = 0
        self._loading = False
        self._problem = ""
        self._listed = False

    def body(self) -> ComposeResult:
        yield Panel(self._path, id="path")
        yield VirtualTable[Entry](self._row, self._header, id="objects")
        yield Panel(self._status, id="status")

    @property
    def table(self) -> VirtualTable[Entry]:
        return self.query_one("#objects", VirtualTable)

    def on_mount(self) -> None:
        self.table.focus()

    def tick(self) -> None:
        if not self._listed and self.services.profile is not None:
            self.go_to(self._prefix)
        for panel in self.query(Panel):
            panel.redraw()

    # Listing

    def go_to(self, prefix: str, select: str = "") -> None:
        """List `prefix` anew, with the cursor on `select` where it is found."""
        self._listed = True
        self._prefix = prefix
        self._request += 1
        self._problem = ""
        self._loading = True
        self.table.show([])
        self._list(self._request, prefix, select or self._places.get(prefix, ""))

    @work(thread=True, group="list", exit_on_error=False)
    def _list(self, request: int, prefix: str, select: str) -> None:
        token = ""
        try:
            store = self.services.store(EndpointKind.STANDARD)
            while request == self._request:
                page = store.list_page(prefix, token=token)
                token = page.next_token
                self.app.call_from_thread(self._take, request, page, select)
                if not token:
                    return
        except ConsoleError as error:
            self.app.call_from_thread(self._fail, request, error)

    def _take(self, request: int, page: ListPage, select: str) -> None:
        if request != self._request:
            return
        self._loading = bool(page.next_token)
        known = len(self.table.rows)
        rows = _entries(self._prefix, page)
        self.table.append(rows)
        for index, row in enumerate(rows):
            if row.key == select:
                self.table.cursor = known + index
        self.tick()

    def _fail(self, request: int, error: ConsoleError) -> None:
        if request != self._request:
            return
        self._loading = False
        self._problem = safe(error.message)
        self.tell(error)
        self.tick()

    # Drawing

    def _path(self, width: int, _height: int) -> Sequence[Line]:
        profile = self.services.profile
        if profile is None:
            return [Line((" The sandbox is starting.", "dim"))]
        uri = f"oss://{profile.bucket}/{self._prefix}"
        return [Line((" ", "dim"), (shorten_middle(safe(uri), width - 2), "title"))]

    def _header(self, width: int) -> Line:
        return Line((" name", "dim")).right(Line(("size       modified           ", "dim")), width)

    def _row(self, entry: Entry, width: int) -> Line:
        room = width - 34
        if entry.folder:
            mark = self.glyphs.folder
            return Line((f" {mark} ", "primary"), (shorten_middle(safe(entry.name), room), "primary"))
        name = shorten_middle(safe(entry.name), room)
        figures = f"{size(entry.size):>10}  {moment(entry.modified or 0)} "
        return Line((f"   {name}", "text")).to(width - len(figures)).add(figures, "dim")

    def _status(self, width: int, _height: int) -> Sequence[Line]:
        if self._problem:
            return [Line((f" {self._problem}", "bad")).to(width)]
        rows = self.table.rows
        folders = sum(row.folder for row in rows)
        total = sum(row.size or 0 for row in rows)
        words = f" {folders:,} folders, {len(rows) - folders:,} objects, {size(total)}"
        if self._loading:
            words += f" so far{self.glyphs.ellipsis}"
        elif not rows:
            words = " Nothing here."
        return [Line((words, "dim"))]

    # Actions

    def on_virtual_table_opened(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        entry = self.table.current
        if entry is not None and entry.folder:
            self._places[self._prefix] = entry.key
            self.go_to(entry.key)

    def action_back(self) -> None:
        if not self._prefix:
            return
        left = self._prefix
        above = left.rstrip("/").rpartition("/")[0]
        self.go_to(f"{above}/" if above else "", select=left)

    def action_refresh(self) -> None:
        entry = self.table.current
        self.go_to(self._prefix, select=entry.key if entry else "")

    def action_checkpoints(self) -> None:
        profile = self.services.profile
        if profile is not None:
            self.go_to(_folder(profile.checkpoint_prefix))

    def action_dataset(self) -> None:
        profile = self.services.profile
        if profile is not None:
            self.go_to(_folder(profile.dataset_prefix))


def _folder(prefix: str) -> str:
    return f"{prefix}/" if prefix else ""


def _entries(prefix: str, page: ListPage) -> list[Entry]:
    """Folders first, then the objects; the folder's own marker object is left out."""
    folders = [Entry(found, found[len(prefix) :]) for found in page.prefixes]
    return [*folders, *(_object(prefix, found) for found in page.objects if found.key != prefix)]


def _object(prefix: str, found: ObjectSummary) -> Entry:
    return Entry(found.key, found.key[len(prefix) :], found.size, found.modified)
