"""LocalPane: a folder of this machine beside the bucket. Its selection and the bucket's are independent."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, cast

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import working_folder
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.contents import read_content
from ossconsole.storage.checkpoints.inspect import LocalFiles
from ossconsole.storage.listing import SortKey
from ossconsole.storage.multipart import is_partial
from ossconsole.storage.objects import ObjectInfo
from ossconsole.tui.browse.detail import Detail, detail_blocks
from ossconsole.tui.browse.table import FileTable, columns, selection_words
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.scroll import Block, DetailView
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.kit.text import Line, moment, short_moment, shorten_middle, size

_COLUMNS = (SortKey.NAME, SortKey.SIZE, SortKey.MODIFIED)
_RIGHT_MARGIN = 1  # cells


class LocalEntry(msgspec.Struct, frozen=True):
    """A row: a file or a folder. `modified` in Unix seconds; `size` in bytes, 0 for a folder."""

    name: str
    size: int
    modified: float
    is_folder: bool

    @property
    def sync_name(self) -> str:
        """The name for a `SyncComparison`: that of a folder ends in "/"."""
        return f"{self.name}/" if self.is_folder else self.name


def read_folder(folder: Path) -> list[LocalEntry]:
    """The files and folders in a folder, folders first; blocks. Raises OSError."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_partial(Path(entry.path)):
                continue
            try:
                # A symbolic link to nothing shows, too, and the upload names it.
                status = entry.stat() if os.path.exists(entry) else entry.stat(follow_symlinks=False)  # noqa: PTH110
            except FileNotFoundError:  # deleted or renamed meanwhile
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            found.append(LocalEntry(entry.name, 0 if is_folder else status.st_size, status.st_mtime, is_folder))
    return sorted(found, key=lambda entry: (not entry.is_folder, entry.name))


class LocalPane(Vertical):
    """The pane. `folder` is the one that shows; `selected` has names of it."""

    class Focused(Message):
        """The focus has come to this side, or has left it."""

        def __init__(self, *, focused: bool) -> None:
            super().__init__()
            self.focused = focused

    def __init__(self) -> None:
        super().__init__(id="local")
        self.folder = working_folder()
        self.selected: set[str] = set()
        self._problem = ""
        self._loading = False
        self.table = FileTable[LocalEntry](self._row_line, self._header_line, id="local-files")

    def compose(self) -> ComposeResult:
        yield Panel(self._path_lines, id="local-path")
        yield self.table
        yield Panel(self._status_lines, id="local-status")

    @property
    def _glyphs(self) -> Glyphs:
        return cast("Glyphs", self.app.glyphs)  # type: ignore[attr-defined]

    @property
    def in_use(self) -> bool:
        """Whether the pane has the focus: keys act on its side."""
        return self.table.has_focus

    @property
    def targets(self) -> list[LocalEntry]:
        """The selected entries, or else the one under the cursor."""
        selected = [entry for entry in self.table.rows if entry.name in self.selected]
        row = self.table.cursor_row
        return selected or ([row] if row is not None else [])

    def go_to(self, folder: Path, select: str = "") -> None:
        """Show a folder with the cursor on the name `select`."""
        self.folder = folder
        self.selected.clear()
        self.table.show([])
        self.refresh_rows(select)

    def refresh_rows(self, select: str = "") -> None:
        """Read the folder; the cursor stays on its name, or goes to the name `select`."""
        self._loading = True
        self._read(self.folder, select)

    @work(thread=True, group="local", exclusive=True, exit_on_error=False)
    def _read(self, folder: Path, select: str) -> None:
        problem = ""
        entries: list[LocalEntry] = []
        try:
            entries = read_folder(folder)
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
        self.app.call_from_thread(self._show, folder, entries, problem, select)

    def _show(self, folder: Path, entries: Sequence[LocalEntry], problem: str, select: str) -> None:
        if folder != self.folder:
            return
        row = self.table.cursor_row
        wanted = select or (row.name if row is not None else "")
        at = next((number for number, entry in enumerate(entries) if entry.name == wanted), self.table.cursor)
        self.selected &= {entry.name for entry in entries}
        self._problem, self._loading = problem, False
        self.table.show(entries, at)
        self.redraw()

    def redraw(self) -> None:
        """Paint both lines and the rows."""
        for panel in self.query(Panel):
            panel.redraw()
        self.table.refresh()

    # Commands

    def open_row(self) -> None:
        """Open the folder under the cursor, or show what the file contains."""
        row = self.table.cursor_row
        if row is not None and row.is_folder:
            self.go_to(self.folder / row.name)
        elif row is not None:
            self.app.push_screen(LocalFileScreen(self.folder / row.name, row))

    def up(self) -> None:
        """Open the parent folder with the cursor on this one."""
        if self.folder.parent != self.folder:
            self.go_to(self.folder.parent, self.folder.name)

    def select(self) -> None:
        """Select or deselect the row under the cursor."""
        row = self.table.cursor_row
        if row is not None:
            self.selected ^= {row.name}
            self.table.action_move(1)
            self.redraw()

    def select_all(self) -> None:
        """Select all rows, or none where all are selected."""
        names = {entry.name for entry in self.table.rows}
        self.selected = set() if names == self.selected else names
        self.redraw()

    # Drawing, focus and mouse

    def _on_descendant_focus(self) -> None:
        self.post_message(self.Focused(focused=True))

    def _on_descendant_blur(self) -> None:
        self.post_message(self.Focused(focused=False))

    def _on_virtual_table_opened(self, event: VirtualTable.Opened) -> None:
        event.stop()
        self.open_row()

    def _on_virtual_table_moved(self, event: VirtualTable.Moved) -> None:
        event.stop()

    def _path_lines(self, width: int, _height: int) -> Sequence[Line]:
        line = Line((" this machine ", "dim"), (f"{self._glyphs.prompt} ", "dim"))
        path = shorten_middle(safe_text(str(self.folder)), max(8, width - line.width - 1), self._glyphs.ellipsis)
        return [line.add(path, "title" if self.in_use else "dim")]

    def _status_lines(self, _width: int, _height: int) -> Sequence[Line]:
        if self._problem:
            return [Line((f" {self._problem}", "bad"))]
        if self._loading:
            return [Line((f" reading{self._glyphs.ellipsis}", "dim"))]
        folders = sum(entry.is_folder for entry in self.table.rows)
        text = f" {counted(folders, 'folder')}, {counted(len(self.table.rows) - folders, 'file')}"
        line = Line((text, "text"))
        if self.selected:
            selected = [entry for entry in self.table.rows if entry.name in self.selected]
            files = [entry for entry in selected if not entry.is_folder]
            amount = sum(entry.size for entry in files)
            line.add(f"  {selection_words(len(selected) - len(files), len(files), amount, 'file')}", "good")
        return [line]

    def _header_line(self, width: int) -> Line:
        line = Line()
        for column, start, cells in columns(width - _RIGHT_MARGIN, _COLUMNS):
            line.to(start).add(column.title.rjust(cells) if column.key is SortKey.SIZE else column.title, "dim")
        return line

    def _row_line(self, entry: LocalEntry, width: int) -> Line:
        selected = entry.name in self.selected
        folder = self._glyphs.folder if entry.is_folder else " "
        line = Line((self._glyphs.done if selected else " ", "good"), (folder, "primary"))
        for column, start, cells in columns(width - _RIGHT_MARGIN, _COLUMNS):
            line.to(start)
            if column.key is SortKey.NAME:
                name = safe_text(entry.sync_name)
                style = "warn" if selected else "primary" if entry.is_folder else "text"
                line.add(shorten_middle(name, cells, self._glyphs.ellipsis), style)
            elif column.key is SortKey.MODIFIED:
                date = moment(entry.modified)
                line.add(date if cells >= len(date) else short_moment(entry.modified), "dim")
            elif not entry.is_folder:
                line.add(size(entry.size).rjust(cells), "dim")
        return line


class LocalFileScreen(ConsoleModal):
    """What a file of this machine contains, as the details of an object show it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,enter", "back", show=False)]

    def __init__(self, path: Path, entry: LocalEntry) -> None:
        super().__init__()
        self._path = path
        self._entry = entry
        self._detail = Detail(str(path), is_folder=False, loading=True)

    def compose(self) -> ComposeResult:
        """The details as one scrolled view."""
        facts = f"{size(self._entry.size)}, {moment(self._entry.modified)}"
        with self.frame("Local file", f"{facts} · esc close", classes="-full"):
            yield DetailView(self._blocks, id="local-file")

    def on_mount(self) -> None:
        """Read the file."""
        view = self.query_one(DetailView)
        view.plain = self.plain
        view.focus()
        self._read()

    @work(thread=True, exit_on_error=False)
    def _read(self) -> None:
        found = Detail(str(self._path), is_folder=False)
        try:
            found.content = read_content(LocalFiles(), local_info(self._path, self._entry))
        except ConsoleError as error:
            found.problem = str(error)
        self.app.call_from_thread(self._show, found)

    def _show(self, detail: Detail) -> None:
        self._detail = detail
        self.query_one(DetailView).redraw()

    def _blocks(self, width: int, _height: int) -> Sequence[Block]:
        return detail_blocks(self._detail, width, self.glyphs)


def local_info(path: Path, entry: LocalEntry) -> ObjectInfo:
    """A file as `read_content` takes it."""
    return ObjectInfo(
        key=str(path),
        size=entry.size,
        modified=int(entry.modified),
        etag="",
        crc64=None,
        storage_class="",
        content_type="",
        object_type="",
        metadata={},
        headers={},
    )
