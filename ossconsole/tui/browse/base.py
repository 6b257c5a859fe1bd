"""BrowseBase: the widgets and state that all commands of the Browse screen use, and the messages of its threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.jobs.actions import ObjectOrPrefix
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.objects import ListPage
from ossconsole.tui.browse.detail import Detail
from ossconsole.tui.browse.model import BrowseModel, source
from ossconsole.tui.browse.object_table import ObjectTable
from ossconsole.tui.kit.detail_view import Block, DetailView
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.text import Line

if TYPE_CHECKING:
    from ossconsole.dataset.contents import ManifestIndex
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.jobs.actions import Usage
    from ossconsole.tui.browse.detail import Detail

T = TypeVar("T")
_ENDED_SHOWN = 2  # jobs that are over and still show, so that their end can be read


class NoBucket:
    """What is listed before the bucket is known."""

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        del prefix, delimiter, token, start_after, max_keys
        return ListPage([], [], "")


class BrowseBase(ConsoleScreen):
    """State and helpers; `store` is None until the bucket is known."""

    SCOPE = "browse"

    def __init__(self) -> None:
        super().__init__()
        self.store: ObjectStore | None = None
        self.model = BrowseModel(NoBucket(), lambda: None)
        self.detail: Detail | None = None
        self.index: ManifestIndex | None = None
        """The manifest that was last looked at, which tells samples apart."""
        self.usage: tuple[str, Usage] | None = None
        """The folder that was last counted, and its count."""
        self.range_start: int | None = None
        """Where a range of chosen rows begins, as a position in the view."""
        self.told: ConsoleError | None = None
        self._endings: dict[Job, Callable[[Job], None]] = {}
        # Kept here, as they are also reached for while the screen is put together or taken apart.
        self.table = ObjectTable(self.row_line, self.header_line, self.model.view, id="objects")
        self.pane = DetailView(self.detail_blocks, id="detail")
        self.side = Vertical(self.pane, id="side")
        self.entry = Input(placeholder="name, *.pt, re:^n0, ! in front turns it round", id="filter", compact=True)

    @property
    def jobs(self) -> list[Job]:
        """Of the whole console; they outlive the screen."""
        return self.console.jobs

    # For the screen that draws

    def row_line(self, row: int, width: int) -> Line:
        raise NotImplementedError

    def header_line(self, width: int) -> Line:
        raise NotImplementedError

    def detail_blocks(self, width: int, _height: int) -> Sequence[Block]:
        raise NotImplementedError

    def open_folder(self, prefix: str, select: str = "") -> None:
        raise NotImplementedError

    def read_detail(self, *, full: bool = False) -> None:
        raise NotImplementedError

    def redraw(self) -> None:
        raise NotImplementedError

    # What is meant

    def meant(self) -> list[ObjectOrPrefix]:
        """The chosen rows, or the one under the cursor."""
        rows = self.table.view.rows
        if rows is not self.model.rows:
            return []
        chosen = self.model.selection.rows
        if not len(chosen):
            current = self.table.current
            return [] if current is None else [source(rows, current)]
        return [source(rows, int(row)) for row in chosen]

    def current_object(self) -> str | None:
        """The key of the object under the cursor; None on a folder."""
        row = self.table.current
        rows = self.table.view.rows
        return None if row is None or rows.is_folder(row) else rows.key(row)

    # Work

    async def behind(self, request: Callable[[], T]) -> T | None:
        """Runs a request in a thread; an error is told, and gives None."""
        try:
            return await asyncio.to_thread(request)
        except ConsoleError as error:
            self.tell(error)
            return None

    def run_job(self, job: Job, ending: Callable[[Job], None] | None = None) -> None:
        """Starts a job and shows it; `ending` is called, here, when it is over."""
        over = [known for known in self.jobs if not known.alive and known not in self._endings]
        for known in over[: max(0, len(over) - _ENDED_SHOWN + 1)]:
            self.jobs.remove(known)
        self.jobs.append(job)
        self._endings[job] = ending or (lambda _: None)
        job.start()
        self.redraw()

    def watch_jobs(self) -> None:
        """Tells of the jobs that have ended since the last look."""
        for job in [job for job in self._endings if not job.alive]:
            ending = self._endings.pop(job)
            if job.error is not None:
                self.tell(job.error)
            elif job.failures:
                first = job.failures[0]
                more = f" and {len(job.failures) - 1} more" if len(job.failures) > 1 else ""
                self.tell(ConsoleError(f"{job.title}: {first.reason}{more}", remedy="J shows them and tries again."))
            elif job.state is JobState.DONE:
                self.notify(f"{job.title}: done.", markup=False, timeout=4)
            ending(job)


class Connected(Message):
    """The bucket may be listed; `changed` tells that what was listed of it before is out of date."""

    def __init__(self, store: ObjectStore, *, changed: bool) -> None:
        super().__init__()
        self.store = store
        self.changed = changed


class Changed(Message):
    """The listing, or the view of it, has more than what shows."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Changed)


class DetailRead(Message):
    """Something became known of an object or a folder."""

    def __init__(self, detail: Detail) -> None:
        super().__init__()
        self.detail = detail
