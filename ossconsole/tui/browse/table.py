"""ObjectTable and the lines of the Browse screen: rows, header, path, status and jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, overload

from textual import events
from textual.binding import BindingType
from textual.message import Message

from ossconsole.config.text import counted, safe_text
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.listing import ListingState, ObjectRows, RowView, Sort, SortKey
from ossconsole.storage.objects import SYMLINK
from ossconsole.tui.browse.model import BrowseModel
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.table import Row, RowPainter, VirtualTable, row_bindings
from ossconsole.tui.kit.text import SHORT_MOMENT, Line, moment, short_moment, shorten_middle, size, wrap

_MARGIN = 3  # marks for selection and folder


@dataclass(frozen=True)
class Column:
    """A column: its sort key, its title, its width in cells (0 = the rest), and the table width from which it shows."""

    key: SortKey
    title: str
    width: int
    needs: int = 0


COLUMNS = (
    Column(SortKey.NAME, "name", 0),
    Column(SortKey.SIZE, "size", 10),
    Column(SortKey.MODIFIED, "modified", 19, needs=56),
    Column(SortKey.STORAGE_CLASS, "storage", 15, needs=96),
)


_FULL_DATES_FROM = 90  # cells of the table


def columns(width: int, keys: Sequence[SortKey] = tuple(SortKey)) -> list[tuple[Column, int, int]]:
    """The visible columns of a table of `width` cells, each with its first cell and its width."""
    shown = [column for column in COLUMNS if width >= column.needs and column.key in keys]
    if width < _FULL_DATES_FROM:  # names need the cells more than years and seconds do
        shown = [replace(column, width=SHORT_MOMENT) if column.key is SortKey.MODIFIED else column for column in shown]
    name = width - _MARGIN - sum(column.width + 2 for column in shown if column.width)
    placed, at = [], _MARGIN
    for column in shown:
        cells = column.width or name
        placed.append((column, at, cells))
        at += cells + 2
    return placed


def column_at(width: int, cell: int) -> SortKey:
    """The column under a cell of the header."""
    return [column for column, start, _ in columns(width) if start <= max(cell, _MARGIN)][-1].key


def header(width: int, sort: Sort, glyphs: Glyphs) -> Line:
    """The titles of the columns, with an arrow at the one that is sorted."""
    line = Line()
    for column, start, cells in columns(width):
        on = column.key is sort.key
        arrow = f" {glyphs.down if sort.descending else glyphs.up}" if on else ""
        title = column.title + arrow
        line.to(start).add(title.rjust(cells) if column.key is SortKey.SIZE else title, "strong" if on else "dim")
    return line


def row_line(
    rows: ObjectRows, row: int, width: int, *, selected: bool, glyphs: Glyphs, checkpoint: Callable[[str, int], str]
) -> Line:
    """A folder or an object; `checkpoint` gives the name of a run's checkpoint in columns, "" for other names."""
    is_folder = rows.is_folder(row)
    mark = glyphs.done if selected else " "
    line = Line((mark, "good"), (glyphs.folder if is_folder else " ", "primary"))
    for column, start, cells in columns(width):
        if column.key is SortKey.NAME:
            name = shown_name(rows.name(row))
            style = "warn" if selected else "primary" if is_folder else "text"
            room = width - start - 1 if is_folder else cells  # a folder has no figures
            line.to(start).add(checkpoint(name, room) or shorten_middle(name, cells, glyphs.ellipsis), style)
        elif not is_folder:
            line.to(start).add(_figure(rows, row, column.key, cells), "dim")
    return line


def _figure(rows: ObjectRows, row: int, key: SortKey, cells: int) -> str:
    if key is SortKey.SIZE:
        # The listing has the size of a link, not of what it names.
        text = "-" if rows.type(row) == SYMLINK else size(rows.size(row))
        return text.rjust(cells)
    if key is SortKey.MODIFIED:
        modified = rows.modified(row)
        return short_moment(modified) if cells == SHORT_MOMENT else moment(modified)
    return rows.type(row) if rows.type(row) == SYMLINK else rows.storage_class(row)


def shown_name(name: str) -> str:
    """The name of a row, never empty and safe for the terminal."""
    if not name:
        return "(this folder's marker)"
    return "(empty name)/" if name == "/" else safe_text(name)


def path_line(model: BrowseModel, bucket: str, width: int, glyphs: Glyphs) -> Line:
    """The path from the bucket to the folder, shortened in the middle."""
    folder, _, begun = model.prefix.rpartition("/")
    parts = [shown_name(f"{part}/").rstrip("/") if part else "(empty)" for part in folder.split("/")] if folder else []
    tail = f" {glyphs.prompt} names beginning with {safe_text(begun)}" if begun else ""
    inner = f" {glyphs.prompt} ".join(parts)
    line = Line((f" oss://{safe_text(bucket)}", "dim"))
    if parts:
        line.add(f" {glyphs.prompt} ", "dim")
        line.add(shorten_middle(inner, max(8, width - line.width - len(tail) - 1), glyphs.ellipsis), "title")
    return line.add(tail, "warn")


RECONNECT_S = 5.0


def connecting_lines(refusal: str, width: int) -> list[Line]:
    """That the bucket is being opened; after a failure, why it could not be."""
    if not refusal:
        return [Line((" Connecting.", "dim"))]
    reasons = [Line((f" {part}", "bad")) for part in wrap(safe_text(refusal), width - 2)]
    return [*reasons, Line((f" It is tried again every {RECONNECT_S:.0f} s.", "dim"))]


_ERROR_ROWS = 3
_SLOW_S = 3.0


def status_lines(model: BrowseModel, glyphs: Glyphs, width: int, waiting: str = "") -> list[Line]:
    """The state of the listing; an error of it in full, as the toast that says the same leaves."""
    if model.error is None:
        return [_status_line(model, glyphs, waiting)]
    loaded = Line((f" {model.rows.count:,} loaded; press ", "text"), ("r", "primary"), (" to continue", "text"))
    if not model.rows.count:  # a key may be allowed to list some prefixes alone
        loaded.add(", or ", "text").add("g", "primary").add(" to list another prefix", "text")
    loaded.add(".", "text")
    return [loaded, *(Line((f" {part}", "bad")) for part in wrap(model.error.message, width - 2)[:_ERROR_ROWS])]


def _status_line(model: BrowseModel, glyphs: Glyphs, waiting: str) -> Line:
    """The counts of the folder, the progress of the listing, the filter and the selection."""
    rows, view = model.rows, model.view
    shown = counted(f"{rows.count - rows.folders:,}{_plus(model)}", "object")
    line = Line((f" {counted(rows.folders, 'folder')}, {shown}", "text"))
    if model.row_filter:
        line.add(
            f"  filter {safe_text(model.row_filter.text)!r}: {len(view):,} of {rows.count:,}{_plus(model)}", "warn"
        )
    if model.sort.key is not SortKey.NAME and not model.listing.is_complete and rows.count:
        line.add(f"  sorted among {view.covered:,} loaded", "warn")
    if len(model.selection):
        folders = model.selection.folders
        objects = len(model.selection) - folders
        line.add(f"  {selection_words(folders, objects, model.selection.bytes, 'object')}", "good")
    if waiting:
        return line.add(f"  {safe_text(waiting)}", "warn")
    return line.add(_activity(model, glyphs), "dim")


def selection_words(folders: int, others: int, amount: int, kind: str) -> str:
    """What is selected; `amount` is the bytes of the others alone, as nothing is known of what folders contain."""
    if not folders:
        return f"{others:,} selected, {size(amount)}"
    parts = [counted(folders, "folder"), f"{counted(others, kind)} of {size(amount)}"]
    return f"{folders + others:,} selected: {', '.join(parts)}" if others else f"{parts[0]} selected"


def _plus(model: BrowseModel) -> str:
    return "" if model.listing.is_complete else "+"


def _activity(model: BrowseModel, glyphs: Glyphs) -> str:
    if model.unanswered_s > _SLOW_S:
        return f"  no answer for {model.unanswered_s:.0f} s (esc to stop)"
    if model.refreshing:
        return f"  refreshing{glyphs.ellipsis} (esc to stop)"
    if model.loading:
        return f"  loading{glyphs.ellipsis} (esc to stop)"
    if model.listing.state is ListingState.STOPPED and model.rows.count:
        return "  stopped (r to continue)"
    if not model.settled:
        return f"  sorting{glyphs.ellipsis}"
    return "  empty" if model.listing.is_complete and not model.rows.count else ""


_JOBS_SHOWN = 3


def shown_jobs(jobs: Sequence[Job]) -> list[Job]:
    """The newest jobs that need attention; those that are done were announced, and `J` lists them."""
    return [job for job in jobs if job.state is not JobState.DONE or job.failures][-_JOBS_SHOWN:]


class _ViewRows(Sequence[int]):
    """The row numbers of a view as a sequence, without a copy."""

    def __init__(self, view: RowView) -> None:
        self._view = view

    def __len__(self) -> int:
        return len(self._view)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [int(row) for row in self._view.order[index]]
        return int(self._view.order[index])


class FileTable(VirtualTable[Row], inherit_bindings=False):
    """A table of files and folders. The key `g` is a command of the screen, unlike in other tables."""

    BINDINGS: ClassVar[list[BindingType]] = row_bindings("home")


class ObjectTable(FileTable[int]):
    """Shows a RowView; its rows are row numbers."""

    class HeaderClicked(Message):
        """The header was clicked at this cell."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    def __init__(self, painter: RowPainter[int], header: Callable[[int], Line], view: RowView, *, id: str) -> None:  # noqa: A002
        super().__init__(painter, header, id=id)
        self.view = view
        self._rows = _ViewRows(view)  # type: ignore[assignment]

    def set_view(self, view: RowView, *, go_to: int | None = None, above: int | None = None) -> None:
        """Shows another view. The cursor goes to the row `go_to`, or else stays on its row or at its position.

        `above` is the number of rows above the cursor, by default as before. A cursor on the first row stays there.
        """
        row = go_to if go_to is not None else self.cursor_row
        same_rows = view.rows is self.view.rows
        before, top = self.cursor, round(self.scroll_target_y)
        position = None
        if row is not None and (go_to is not None or (same_rows and before > 0)):
            position = view.position(row)
        self.view = view
        self._rows = _ViewRows(view)  # type: ignore[assignment]
        self._measure()
        target = self._clamped(before if position is None else position)
        with self.prevent(self.Moved):
            self.cursor = target
        offset = above if above is not None else before - top
        self.scroll_to(y=max(0, target - offset), animate=False, force=True, immediate=True)
        self.watch_cursor(target, target)
        self.refresh()

    @property
    def rows_above(self) -> int:
        """The number of visible rows above the cursor."""
        return self.cursor - round(self.scroll_target_y)

    def on_click(self, event: events.Click) -> None:
        """Post `HeaderClicked`; Textual calls the handler of VirtualTable for a click on a row."""
        if event.y < self._head:
            event.prevent_default()
            self.post_message(self.HeaderClicked(event.x))
