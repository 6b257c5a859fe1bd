"""Commands of the two panes: a local folder beside the bucket, copies both ways, and the sync with its plan."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import is_folder, typed_path, working_folder
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.manifest import key_problem
from ossconsole.storage.jobs.actions import key_of
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.jobs.sync import Direction, SyncComparison, SyncDifference, SyncEntry, SyncPlan
from ossconsole.tui.browse import commands
from ossconsole.tui.browse.browser import Browser
from ossconsole.tui.browse.jobs import job_ended
from ossconsole.tui.browse.local import LocalPane
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, PromptScreen, TypedConfirmScreen
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.kit.text import Line, shorten_middle, size

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_KEEP, _REPLACE = "keep", "replace"
_NAMES_SHOWN, _NAME_CELLS = 6, 66

Command = Callable[[Browser], object]


def by_side(bucket: Command, local: Callable[[LocalPane], None]) -> Command:
    """A command that acts on the side with the focus."""

    def command(screen: Browser) -> None:
        if screen.local.in_use:
            local(screen.local)
        else:
            bucket(screen)

    return command


def two_panes(screen: Browser) -> None:
    """Show the local folder beside the bucket with the focus, or hide it."""
    shown = not screen.has_class("-local")
    screen.set_class(shown, "-local")
    if shown:
        screen.set_class(False, "-pane")
        screen.local.go_to(screen.local.folder)
    _focus(screen, local=shown)


def switch_side(screen: Browser) -> None:
    """Move the focus to the other side."""
    _focus(screen, local=not screen.local.in_use)


def _focus(screen: Browser, *, local: bool) -> None:
    screen.set_class(local, "-local-focus")
    (screen.local.table if local else screen.table).focus()


# Copies of the selection


def download(screen: Browser) -> None:
    """Copy the selection of the bucket to the local pane where it shows; else to a folder that is typed."""
    if not screen.has_class("-local"):
        commands.download(screen)
        return
    base = screen.model.rows.base
    names = [key_of(source)[len(base) :] for source in screen.targets]
    _copy(screen, Direction.DOWNLOAD, names)


def upload(screen: Browser) -> None:
    """Copy the selection of the local pane to the folder of the bucket; from the bucket's side, type what to upload."""
    if screen.local.in_use:
        _copy(screen, Direction.UPLOAD, [entry.sync_name for entry in screen.local.targets])
    else:
        _upload_typed(screen)


@work(exclusive=True, group="dialog", exit_on_error=False)
async def _upload_typed(screen: Browser) -> None:
    store, base = screen.store, screen.model.rows.base
    if store is None:
        return
    question = f"A file or a folder of this machine; its objects go below {safe_text(store.uri(base))}."
    text = await screen.ask(PromptScreen("Upload", question, check=_existing))
    if not text:
        return
    source = _absolute(text)
    if await asyncio.to_thread(is_folder, source):
        compared = SyncComparison(store, source, f"{base}{source.name}/", Direction.UPLOAD)
    else:
        compared = SyncComparison(store, source.parent, base, Direction.UPLOAD, names=[source.name])
    await _carry_out(screen, store, compared)


def _absolute(text: str) -> Path:
    """The path as typed, with the name of a link and not that of its target."""
    return Path(os.path.abspath(working_folder() / typed_path(text.strip())))  # noqa: PTH100 - resolve follows links


def _existing(text: str) -> None:
    """Raises ConsoleError unless it is the path of a file or a folder with a name that a key can have; blocks."""
    path = _absolute(text)
    if not text.strip() or not path.exists():
        raise ConsoleError(f"{safe_text(text.strip()) or 'An empty path'} does not exist.", remedy="Enter a path.")
    if not path.name:
        raise ConsoleError(f"{path} has no name that its objects could have.", remedy="Enter a file or a folder in it.")
    if problem := key_problem(path.name):
        raise ConsoleError(f"{safe_text(str(path))}: {problem}.", remedy="Rename it.")


@work(exclusive=True, group="dialog", exit_on_error=False)
async def _copy(screen: Browser, direction: Direction, names: Sequence[str]) -> None:
    store = screen.store
    if store is None or not names:
        return
    base = screen.model.rows.base
    await _carry_out(screen, store, SyncComparison(store, screen.local.folder, base, direction, names=names))


async def _carry_out(screen: Browser, store: ObjectStore, comparison: SyncComparison) -> None:
    """Copies what is new, and what differs after a question."""
    plan = await _compared(screen, comparison)
    if plan is None:
        return
    replace, (changed, _) = False, plan.total(SyncDifference.CHANGED)
    if changed:
        answer = await screen.ask(_replace_question(plan))
        if not answer:
            return
        replace = answer == _REPLACE
    if not _start(screen, store, plan, replace=replace, delete=False):
        screen.notify(f"Nothing to copy: {_why_nothing(plan)}.", timeout=5)


def _why_nothing(plan: SyncPlan) -> str:
    if plan.of(SyncDifference.CHANGED):
        return "what exists was left alone"
    if plan.others:
        return "links to folders, pipes and sockets are left alone"
    return "the other side has the same files"


def _names(entries: Sequence[SyncEntry]) -> list[str]:
    """The first names, each in one line of a dialog; cut at their ends, different names would look alike."""
    names = [f"  {shorten_middle(safe_text(entry.key), _NAME_CELLS)}" for entry in entries[:_NAMES_SHOWN]]
    more = len(entries) - _NAMES_SHOWN
    return [*names, *([f"  and {more:,} more"] if more > 0 else [])]


def _replace_question(plan: SyncPlan) -> ConfirmScreen:
    changed = plan.of(SyncDifference.CHANGED)
    where = "in the bucket" if plan.direction is Direction.UPLOAD else "on this machine"
    text = f"{counted(len(changed), 'file')} {where} would be replaced by others of the same name:"
    return ConfirmScreen(
        "Files exist already",
        "\n".join([text, *_names(changed)]),
        (Choice("", "Cancel"), Choice(_KEEP, "Skip them"), Choice(_REPLACE, "Replace", "warning")),
    )


# Sync


@work(exclusive=True, group="dialog", exit_on_error=False)
async def sync(screen: Browser) -> None:
    """Compare the local folder with the folder of the bucket, show the plan, and carry it out once it is confirmed."""
    store = screen.store
    if store is None:
        return
    choices = [Choice("", "Cancel"), Choice(Direction.DOWNLOAD.value, "Bucket to local")]
    if not screen.services.readonly:
        choices.append(Choice(Direction.UPLOAD.value, "Local to bucket"))
    base = safe_text(store.uri(screen.model.rows.base))
    question = f"Compare both folders, with their subfolders. The plan is shown before anything is copied.\n\n{base}\n"
    question += safe_text(str(screen.local.folder))
    answer = await screen.ask(ConfirmScreen("Sync", question, choices))
    if not answer:
        return
    compared = SyncComparison(store, screen.local.folder, screen.model.rows.base, Direction(answer))
    plan = await _compared(screen, compared)
    if plan is None:
        return
    decided = await screen.ask(SyncScreen(plan, store.uri(plan.prefix)))
    if decided is None:
        return
    replace, delete = decided
    if delete and not await screen.ask(_delete_question(plan)):
        return
    _start(screen, store, plan, replace=replace, delete=delete)


async def _compared(screen: Browser, job: SyncComparison) -> SyncPlan | None:
    """The plan, compared by a job; None where that fails or is cancelled."""
    screen.run_job(job, announced=False)
    await job_ended(job)
    return job.plan


def _delete_question(plan: SyncPlan) -> TypedConfirmScreen:
    number, amount = plan.total(SyncDifference.EXTRA)
    up = plan.direction is Direction.UPLOAD
    what = counted(number, "object" if up else "file")
    names = "\n".join(_names(plan.of(SyncDifference.EXTRA)))
    where = "in the bucket" if up else f"on this machine, in {safe_text(str(plan.folder))}"
    text = f"{what}, {size(amount)}, {where}, which the other side does not have:\n{names}"
    return TypedConfirmScreen("Delete", text, word=f"delete {number}", button="Sync and delete")


def _start(screen: Browser, store: ObjectStore, plan: SyncPlan, *, replace: bool, delete: bool) -> bool:
    """Starts the jobs of the plan one after the other; False where there is nothing to do."""
    from ossconsole.dataset.upload.plain import transfer_jobs

    try:
        jobs = transfer_jobs(store, plan, replace=replace, delete=delete)
    except ConsoleError as error:
        screen.show_error(error)
        return True

    def run_next(before: Job | None = None) -> None:
        if before is not None:
            screen.local.refresh_rows()
            screen.model.refresh()
        if jobs and (before is None or before.state is JobState.DONE):
            screen.run_job(jobs.pop(0), run_next)

    screen.model.selection.clear()
    screen.local.selected.clear()
    started = bool(jobs)
    run_next()
    return started


_WORDS = {
    SyncDifference.NEW: "new",
    SyncDifference.CHANGED: "changed",
    SyncDifference.SAME: "same",
    SyncDifference.EXTRA: "only there",
}
_STYLES = {
    SyncDifference.NEW: "good",
    SyncDifference.CHANGED: "warn",
    SyncDifference.SAME: "dim",
    SyncDifference.EXTRA: "accelerated",
}


class SyncScreen(ConsoleModal):
    """The plan of a sync. Returns (replace, delete) to carry it out, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "replace", show=False),
        Binding("d", "delete", show=False),
    ]

    def __init__(self, plan: SyncPlan, uri: str) -> None:
        super().__init__()
        self._plan = plan
        self._uri = uri
        self._replace = True
        self._delete = False
        order = (SyncDifference.CHANGED, SyncDifference.EXTRA, SyncDifference.NEW, SyncDifference.SAME)
        self._entries = [entry for difference in order for entry in plan.of(difference)]

    def compose(self) -> ComposeResult:
        keys = "enter start · r replace changed · d delete · esc cancel"
        with self.frame("Sync", keys, classes="-full", id="sync-frame"):
            yield Panel(self._lines, id="sync-totals")
            yield VirtualTable[SyncEntry](self._row_line, id="sync-entries")

    def on_mount(self) -> None:
        """Fill the table."""
        table = self.query_one(VirtualTable)
        table.show(self._entries)
        table.focus()

    def _lines(self, width: int, _height: int) -> Sequence[Line]:
        bucket, folder = self._uri, str(self._plan.folder)
        up = self._plan.direction is Direction.UPLOAD
        source, target = (folder, bucket) if up else (bucket, folder)
        lines = [
            Line(("from ", "dim"), (shorten_middle(safe_text(source), width - 6), "text")),
            Line(("to   ", "dim"), (shorten_middle(safe_text(target), width - 6), "strong")),
            Line(),
        ]
        for difference in SyncDifference:
            number, amount = self._plan.total(difference)
            fate, style = self._fate(difference)
            figures = f"{number:>9,}  {size(amount):>9}  "
            lines.append(Line((f"{_WORDS[difference]:<12}", _STYLES[difference]), (figures, "text"), (fate, style)))
        if self._plan.others:
            others = f"not a file: {self._plan.others:,} (links to folders, pipes, sockets) are left alone"
            lines.append(Line((others, "dim")))
        lines.append(Line())
        return lines

    def _fate(self, difference: SyncDifference) -> tuple[str, str]:
        """What the sync does with the entries of this difference, and the style of the words."""
        if difference is SyncDifference.NEW:
            return "copied", "text"
        if difference is SyncDifference.CHANGED:
            return ("replaced (r keeps them)", "warn") if self._replace else ("left alone (r replaces them)", "text")
        if difference is SyncDifference.EXTRA:
            return ("DELETED (d keeps them)", "bad") if self._delete else ("left alone (d deletes them)", "text")
        return "left alone", "text"

    def _row_line(self, entry: SyncEntry, width: int) -> Line:
        word = _WORDS[entry.difference]
        line = Line((f"{word:<12}", _STYLES[entry.difference]), (f"{size(entry.size):>9}  ", "dim"))
        name = entry.key[len(self._plan.prefix) :]
        return line.add(shorten_middle(safe_text(name), width - line.width, self.glyphs.ellipsis), "text")

    def key_enter(self) -> None:
        """Carry out the plan."""
        self.dismiss((self._replace, self._delete and bool(self._plan.of(SyncDifference.EXTRA))))

    def action_replace(self) -> None:
        """Replace what has changed, or leave it alone."""
        self._replace = not self._replace
        self.query_one(Panel).redraw()

    def action_delete(self) -> None:
        """Delete what the source does not have, or leave it alone."""
        self._delete = not self._delete
        self.query_one(Panel).redraw()
