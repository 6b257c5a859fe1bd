"""The lines of the Browse screen: rows, header, path, status and jobs."""

from __future__ import annotations

from dataclasses import dataclass

from ossconsole.config.text import counted, safe_text
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.listing import ListingState, ObjectRows, Sort, SortKey
from ossconsole.tui.browse.model import BrowseModel
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.text import Line, duration, moment, percent, shorten_middle, size

_MARGIN = 3  # chosen mark and folder mark


@dataclass(frozen=True)
class Column:
    """A column: what it sorts by, its title, its cells (0: what is left), and the table's width it needs to show."""

    key: SortKey
    title: str
    width: int
    needs: int = 0


COLUMNS = (
    Column(SortKey.NAME, "name", 0),
    Column(SortKey.SIZE, "size", 10),
    Column(SortKey.MODIFIED, "modified", 19, needs=56),
    Column(SortKey.STORAGE_CLASS, "class", 15, needs=96),
)


def columns(width: int) -> list[tuple[Column, int, int]]:
    """The columns that show in `width` cells, each with its first cell and its width."""
    shown = [column for column in COLUMNS if width >= column.needs]
    name = width - _MARGIN - sum(column.width + 2 for column in shown if column.width)
    found, at = [], _MARGIN
    for column in shown:
        cells = column.width or name
        found.append((column, at, cells))
        at += cells + 2
    return found


def column_at(width: int, cell: int) -> SortKey:
    """The column under a cell of the header."""
    return [column for column, start, _ in columns(width) if start <= max(cell, _MARGIN)][-1].key


def header(width: int, sort: Sort, glyphs: Glyphs) -> Line:
    line = Line()
    for column, start, cells in columns(width):
        on = column.key is sort.key
        arrow = f" {glyphs.down if sort.descending else glyphs.up}" if on else ""
        title = column.title + arrow
        line.to(start).add(title.rjust(cells) if column.key is SortKey.SIZE else title, "strong" if on else "dim")
    return line


def row_line(rows: ObjectRows, row: int, width: int, *, chosen: bool, glyphs: Glyphs) -> Line:
    is_folder = rows.is_folder(row)
    mark = glyphs.done if chosen else " "
    line = Line((mark, "good"), (glyphs.folder if is_folder else " ", "primary"))
    for column, start, cells in columns(width):
        line.to(start)
        if column.key is SortKey.NAME:
            name = shown_name(rows.name(row))
            style = "warn" if chosen else "primary" if is_folder else "text"
            line.add(shorten_middle(name, cells, glyphs.ellipsis), style)
        elif not is_folder:
            line.add(_figure(rows, row, column.key, cells), "dim")
    return line


def _figure(rows: ObjectRows, row: int, key: SortKey, cells: int) -> str:
    if key is SortKey.SIZE:
        return size(rows.size(row)).rjust(cells)
    return moment(rows.modified(row)) if key is SortKey.MODIFIED else rows.storage_class(row)


def shown_name(name: str) -> str:
    """A row's name: never empty, and nothing in it acts on the terminal."""
    if not name:
        return "(this folder's marker)"
    return "(empty name)/" if name == "/" else safe_text(name)


def path_line(model: BrowseModel, bucket: str, width: int, glyphs: Glyphs) -> Line:
    """The way from the bucket to the folder; what does not fit is left out in the middle."""
    folder, _, begun = model.prefix.rpartition("/")
    parts = [shown_name(f"{part}/").rstrip("/") if part else "(empty)" for part in folder.split("/")] if folder else []
    tail = f" {glyphs.prompt} names that begin with {safe_text(begun)}" if begun else ""
    inner = f" {glyphs.prompt} ".join(parts)
    line = Line((f" oss://{safe_text(bucket)}", "dim"))
    if parts:
        line.add(f" {glyphs.prompt} ", "dim")
        line.add(shorten_middle(inner, max(8, width - line.width - len(tail) - 1), glyphs.ellipsis), "title")
    return line.add(tail, "warn")


def status_line(model: BrowseModel, glyphs: Glyphs, waiting: str = "") -> Line:
    """How much is here, how far the listing is, what is filtered and chosen."""
    rows, view = model.rows, model.view
    shown = counted(f"{rows.count - rows.folders:,}{_plus(model)}", "object")
    line = Line((f" {counted(rows.folders, 'folder')}, {shown}", "text"))
    if model.row_filter:
        line.add(
            f"  filter {safe_text(model.row_filter.text)!r}: {len(view):,} of {rows.count:,}{_plus(model)}", "warn"
        )
    if model.sort.key is not SortKey.NAME and not model.listing.is_complete and rows.count:
        line.add(f"  sorted over the {view.covered:,} loaded", "warn")
    chosen = len(model.selection)
    if chosen:
        line.add(f"  {chosen:,} chosen, {size(model.selection.bytes)}", "good")
    if waiting:
        return line.add(f"  {safe_text(waiting)}", "warn")
    return line.add(_activity(model, glyphs), "dim")


def _plus(model: BrowseModel) -> str:
    return "" if model.listing.is_complete else "+"


def _activity(model: BrowseModel, glyphs: Glyphs) -> str:
    if model.refreshing:
        return f"  refreshing{glyphs.ellipsis} (esc stops)"
    if model.loading:
        return f"  loading{glyphs.ellipsis} (esc stops)"
    if model.listing.state is ListingState.STOPPED and model.rows.count:
        return "  stopped (r goes on)"
    if not model.settled:
        return f"  sorting{glyphs.ellipsis}"
    return "  nothing here" if model.listing.is_complete and not model.rows.count else ""


def job_line(job: Job, width: int, glyphs: Glyphs) -> Line:
    """A job in one line: how far, how fast, how long still; at the end, what became of it."""
    progress = job.progress()
    mark, style = {
        JobState.RUNNING: (glyphs.running, "primary"),
        JobState.DONE: (glyphs.done, "good"),
        JobState.FAILED: (glyphs.failed, "bad"),
        JobState.CANCELLED: (glyphs.paused, "warn"),
    }[job.state]
    more = "" if progress.total_known else "+"
    words = [f"{progress.items_done + progress.items_skipped:,}/{progress.items_total:,}{more}"]
    if progress.bytes_total:
        words.append(f"{size(progress.bytes_done)} of {size(progress.bytes_total)}{more}")
    if job.moves_bytes and progress.bytes_total and progress.total_known:
        words.insert(0, percent(progress.bytes_done / progress.bytes_total))
    if job.moves_bytes and progress.bytes_per_s:
        words.append(f"{size(progress.bytes_per_s)}/s")
    if job.moves_bytes and job.state is JobState.RUNNING and progress.eta_s is not None:
        words.append(f"{duration(progress.eta_s)} left")
    if progress.items_skipped:
        words.append(f"{progress.items_skipped:,} {job.skipped_label}")
    if job.failures:
        words.append(f"{len(job.failures):,} failed")
    if job.state is not JobState.RUNNING:
        words.append(str(job.state))
    elif job.waiting or job.note:
        words.append(safe_text(job.waiting or job.note))
    figures = Line(("  ".join(words) + " ", "text"))
    room = width - figures.width - 4
    return Line((f" {mark} ", style), (shorten_middle(job.title, room, glyphs.ellipsis), "text")).right(figures, width)
