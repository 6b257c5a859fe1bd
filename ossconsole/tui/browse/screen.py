"""BrowseScreen: folders and objects of the bucket, details of the one under the cursor, and jobs on them.

Its commands are functions of the screen, in `navigation`, `commands` and `checkpoints`. Threads list, read and work;
their results are applied here, on the event loop, which owns all state of the screen.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.timer import Timer
from textual.widgets import Input

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.contents import ImageContent, ManifestIndex
from ossconsole.dataset.manifest import Manifest
from ossconsole.storage.checkpoints.inspect import CheckpointInfo
from ossconsole.storage.jobs.actions import ObjectOrPrefix
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.listing import ListingState
from ossconsole.tui.browse import checkpoints, commands, jobs, navigation, table, transfers
from ossconsole.tui.browse.browser import Changed, Connected, DetailRead
from ossconsole.tui.browse.detail import Detail, detail_blocks, read_index
from ossconsole.tui.browse.local import LocalPane
from ossconsole.tui.browse.model import BrowseModel, CursorPosition, EmptyBucket, source_of_row
from ossconsole.tui.browse.table import ObjectTable
from ossconsole.tui.console import ConsoleState, Ready, Starting
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.jobs import job_line
from ossconsole.tui.kit.screen import ConsoleScreen, notice, preparation
from ossconsole.tui.kit.scroll import Block, DetailView
from ossconsole.tui.kit.text import Line

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.jobs.actions import Usage

_READ_DELAY_S = 0.2  # the cursor rests on a row this long before it is read: moving through a folder sends no requests
_REPORT_S = 0.5  # also while another screen shows: the next job of a sync waits for it
_WRITES = {"upload", "delete", "copy", "rename", "best", "restore", "train_from"}
_NEEDS_CONTENT = {"image": ImageContent, "check_manifest": Manifest}
_NEEDS_BUCKET = {action.name for action in actions.of("browse")}
_SIDES = {"switch_side", "sync"}
_OF_BOTH_SIDES = {"open", "up", "refresh", "select", "select_all", "upload", "two_panes", "jobs", *_SIDES}
_OF_THE_BUCKET = _NEEDS_BUCKET - _OF_BOTH_SIDES
_log = logging.getLogger(__name__)


class BrowseScreen(ConsoleScreen):
    """The Browse mode. It is the `Browser` of its commands, see there for the attributes."""

    SCOPE = "browse"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("browse"), Binding("escape", "escape", show=False)]

    action_open = transfers.by_side(navigation.open_row, LocalPane.open_row)
    action_toggle_pane = navigation.toggle_pane
    action_up = transfers.by_side(navigation.up, LocalPane.up)
    action_history_back = navigation.history_back
    action_history_forward = navigation.history_forward
    action_escape = navigation.escape
    action_refresh = transfers.by_side(navigation.refresh, LocalPane.refresh_rows)
    action_checkpoints = navigation.checkpoints
    action_dataset = navigation.dataset
    action_go_to = navigation.go_to
    action_buckets = navigation.buckets
    action_bookmark = navigation.bookmark
    action_bookmarks = navigation.bookmarks
    action_sort = navigation.sort
    action_reverse = navigation.reverse
    action_filter = navigation.edit_filter
    action_select = transfers.by_side(navigation.select, LocalPane.select)
    action_select_range = navigation.select_range
    action_select_all = transfers.by_side(navigation.select_all, LocalPane.select_all)
    action_select_pattern = navigation.select_pattern
    action_two_panes = transfers.two_panes
    action_switch_side = transfers.switch_side
    action_download = transfers.download
    action_upload = transfers.upload
    action_sync = transfers.sync
    action_delete = commands.delete
    action_copy = commands.copy
    action_rename = commands.rename
    action_restore = commands.restore
    action_addresses = commands.addresses
    action_count = commands.count
    action_check_manifest = commands.check_manifest
    action_image = commands.image
    action_images = commands.images
    action_uploads = jobs.uploads
    action_jobs = jobs.jobs
    action_train_from = checkpoints.train_from
    action_best = checkpoints.best
    action_compare = checkpoints.compare

    def __init__(self) -> None:
        super().__init__()
        self.store: ObjectStore | None = None
        self.model = BrowseModel(EmptyBucket(), self._post_changed)
        self.detail: Detail | None = None
        self.index: ManifestIndex | None = None
        self.usage: tuple[str, Usage] | None = None
        self.range_start: str | None = None
        self.reported_error: ConsoleError | None = None
        self._state: ConsoleState | None = None
        self._profile_store: ObjectStore | None = None  # `store` may be another bucket of the account
        self._connecting, self._refusal = False, ""  # why the last attempt has failed
        self._read_timer: Timer | None = None
        self._drawn: tuple[object, ...] = ()
        self._manifest_requested: tuple[object, str] | None = None
        self._on_finished: dict[Job, Callable[[Job], None]] = {}
        self._quiet: set[Job] = set()
        self._known = checkpoints.KnownCheckpoints(lambda: self.table.call_later(self.table.refresh))
        # Attributes, as they are also used while the screen is composed or removed.
        self.table = ObjectTable(self._row_line, self._header_line, self.model.view, id="objects")
        self.local = LocalPane()
        self.pane = DetailView(self._detail_blocks, id="detail")
        self.filter_input = Input(placeholder="name, *.pt, re:^n0; ! inverts it", id="filter", compact=True)

    def body(self) -> ComposeResult:
        yield Panel(self._path_lines, id="path")
        with Horizontal(id="main"):
            yield self.table
            yield self.local
            yield Vertical(self.pane, id="side")
        yield Panel(self._job_lines, id="jobs")
        yield self.filter_input
        yield Panel(self._status_lines, id="status")

    def on_mount(self) -> None:
        """Focus the table and hide the filter."""
        self.table.focus()
        self.filter_input.display = False
        self.set_interval(_REPORT_S, self._report_finished_jobs)

    def tick(self) -> None:
        if self.table.is_attached:
            self._apply_state()
            navigation.follow_checkpoints(self)
            self._poll_model()
            self._report_finished_jobs()
            self.redraw()

    # Selection and jobs

    @property
    def targets(self) -> list[ObjectOrPrefix]:
        """See `Browser.targets`."""
        rows = self.table.view.rows
        if rows is not self.model.rows:
            return []
        selected = self.model.selection.rows
        if not len(selected):
            row = self.table.cursor_row
            return [] if row is None else [source_of_row(rows, row)]
        return [source_of_row(rows, int(row)) for row in selected]

    def run_job(self, job: Job, on_finished: Callable[[Job], None] | None = None, *, announced: bool = True) -> None:
        """See `Browser.run_job`."""
        jobs.add_job(self.console.jobs, job, self._on_finished)
        self._on_finished[job] = on_finished or (lambda _: None)
        if not announced:
            self._quiet.add(job)
        job.start()
        self.redraw()

    def _report_finished_jobs(self) -> None:
        for job in [job for job in self._on_finished if not job.alive]:
            on_finished = self._on_finished.pop(job)
            if job.error is not None:
                self.show_error(job.error)
            elif job.failures:
                self.show_error(ConsoleError(jobs.failure_text(job), remedy="Press J to see failures and to retry."))
            elif job.state is JobState.DONE and job not in self._quiet:
                self.notify(jobs.result_text(job), markup=False, timeout=4)
            self._quiet.discard(job)
            on_finished(job)

    # Connection

    def _apply_state(self) -> None:
        """Connect once the bucket can be used, and leave it once it no longer can."""
        state, before = self.services.state, self._state
        if state is before or self._connecting:
            return
        self._state = state
        if state.usable:
            self._connecting = True
            self._connect(changed=isinstance(before, Starting) and before.opened and isinstance(state, Ready))
        elif self.store is not None:
            self.store = self._profile_store = None
            self._replace_model(BrowseModel(EmptyBucket(), self._post_changed))
            self.show_folder()
            self.redraw_bars()

    @work(thread=True, group="connect", exit_on_error=False)
    def _connect(self, *, changed: bool) -> None:
        problem = "The bucket cannot be opened: an unexpected error, see the log."
        try:
            self.post_message(Connected(self.services.store(EndpointKind.STANDARD), changed=changed))
            problem = ""
        except ConsoleError as error:
            problem = str(error)
        finally:
            if problem:
                self.app.call_from_thread(self._connection_failed, problem)

    def _connection_failed(self, problem: str) -> None:
        self._connecting, self._refusal = False, problem
        self.set_timer(table.RECONNECT_S, self._forget_state)

    def _forget_state(self) -> None:
        self._state = self._state if self.store else None  # without one, the next tick connects

    @on(Connected)
    def _connected(self, event: Connected) -> None:
        self._connecting, self._refusal = False, ""
        if event.store is not self._profile_store:
            self.store = self._profile_store = event.store
            self.show_bucket()
        elif event.changed and self.store is self._profile_store:
            self.model.refresh()
        self.redraw_bars()
        self.redraw()

    # Listing

    def show_bucket(self) -> None:
        """See `Browser.show_bucket`."""
        assert self.store is not None  # noqa: S101
        self._replace_model(BrowseModel(self.store, self._post_changed))
        self.model.open("", remember=False)
        self.show_folder()

    def _replace_model(self, model: BrowseModel) -> None:
        self.model.close()
        self.index = self.usage = self.detail = self._manifest_requested = None
        self._known.forget()
        self.model = model

    def open_folder(self, prefix: str, select: str = "") -> None:
        """See `Browser.open_folder`."""
        self.save_cursor()
        self.model.open(prefix, select=select)
        self.show_folder()

    def save_cursor(self) -> None:
        """See `Browser.save_cursor`."""
        row = self.table.cursor_row
        if row is not None and self.table.view.rows is self.model.rows:
            position = CursorPosition(self.model.rows.name(row), self.table.cursor, self.table.rows_above)
            self.model.cursor_positions[self.model.prefix] = position

    def show_folder(self) -> None:
        """See `Browser.show_folder`."""
        navigation.close_filter(self)
        self.range_start = None
        self.table.set_view(self.model.view)
        self._request_manifest()
        self._poll_model()
        self._cursor_changed()
        self.redraw()

    def _post_changed(self) -> None:
        """Called by threads."""
        self.post_message(Changed())

    @on(Changed)
    def _model_changed(self) -> None:
        self._poll_model()
        self.redraw()

    def _poll_model(self) -> None:
        if self.model.poll() or self.table.view is not self.model.view:
            self._show_view()
        error = self.model.error
        if error is not None and error is not self.reported_error:
            self.reported_error = error
            self.show_error(error)

    def _show_view(self) -> None:
        view, old, position = self.model.view, self.table.view, self.model.pending_cursor
        refreshed = old.rows is not view.rows and old.rows.base == view.rows.base
        if position is None and refreshed and self.table.cursor_row is not None:
            name = old.rows.name(self.table.cursor_row)
            position = CursorPosition(name, self.table.cursor, self.table.rows_above)
        if refreshed:
            self.detail = None  # the object may have been replaced
            self._known.forget()
        row = view.rows.find(position.name) if position else None
        if position is not None and row is not None and view.position(row) is not None:
            self.table.set_view(view, go_to=row, above=position.above)
            self.model.pending_cursor = None
        else:
            self.table.set_view(view)
            if self.model.listing.state is not ListingState.LOADING:
                self.model.pending_cursor = None
        self._cursor_changed()

    # Details

    def _request_manifest(self) -> None:
        """Below the dataset prefix the manifest gives format and label of the samples; it is read once."""
        store = self.store
        if store is None:
            return
        prefix = store.profile.dataset_prefix
        if f"{self.model.prefix}/".startswith(f"{prefix}/") and self._manifest_requested != (store, prefix):
            self._manifest_requested = (store, prefix)
            self._read_manifest(store, prefix)

    @work(thread=True, group="manifest", exit_on_error=False)
    def _read_manifest(self, store: ObjectStore, prefix: str) -> None:
        try:
            index = read_index(store, prefix)
        except ConsoleError as error:
            _log.info("samples show without labels, as there is no manifest: %s", error)
        else:
            self.app.call_from_thread(self._manifest_read, store, index)

    def _manifest_read(self, store: ObjectStore, index: ManifestIndex | None) -> None:
        if index is None or store is not self.store or self.index is not None:
            return
        self.index = index
        if self.detail is not None and self.detail.key.startswith(f"{index.prefix}/"):
            self.detail = None  # it was read, or is being read, without the manifest
            self._cursor_changed()

    def _on_virtual_table_moved(self) -> None:
        """Read the row under the cursor, after a delay."""
        self.model.pending_cursor = None
        self._cursor_changed()

    def _cursor_changed(self) -> None:
        row, rows = self.table.cursor_row, self.table.view.rows
        if row is not None and self.detail is not None and self.detail.key == rows.key(row):
            return  # the table also posts `Moved` after a resize
        if self._read_timer:
            self._read_timer.stop()
        if row is None or self.store is None:
            self.detail = None
        else:
            self.detail = Detail(rows.key(row), rows.is_folder(row))
            # Read even where the pane is hidden: the content decides which commands are available.
            self._read_timer = self.set_timer(_READ_DELAY_S, self.read_detail)
        self._draw_detail()

    def read_detail(self, *, full: bool = False) -> None:
        """See `Browser.read_detail`."""
        detail = self.detail
        if detail is None or self.store is None or (detail.content and (detail.full is not None or not full)):
            return
        detail.loading = not detail.is_folder  # of most folders nothing is to be read
        self._draw_detail()
        self._read_detail(self.store, detail, self.index, full)

    @work(thread=True, group="detail", exclusive=True, exit_on_error=False)
    def _read_detail(self, store: ObjectStore, detail: Detail, index: ManifestIndex | None, full: bool) -> None:
        detail.read(store, index, full=full, on_change=lambda changed: self.post_message(DetailRead(changed)))

    @on(DetailRead)
    def _detail_read(self, event: DetailRead) -> None:
        content = event.detail.content
        if isinstance(content, Manifest):
            prefix = event.detail.key.rpartition("/")[0]
            if self.index is None or self.index.prefix != prefix:
                self.index = ManifestIndex(content, prefix)
        elif isinstance(content, CheckpointInfo) and self._known.add(event.detail.key, content):
            self.table.refresh()
        if event.detail is self.detail:
            self._draw_detail()
            self.redraw_bars()

    def _draw_detail(self) -> None:
        self.pane.plain = self.plain
        self.pane.redraw()

    def show_pane(self, shown: bool, *, focus: bool = True) -> None:
        """See `Browser.show_pane`."""
        side_by_side = self.app.has_class("-wide") or self.has_class("-wide") or self.has_class("-vast")
        covers = shown and (self.has_class("-local") or not side_by_side)
        self.set_class(covers, "-pane")
        if focus or covers:
            (self.pane if shown else self.table).focus()

    # Drawing

    def redraw(self) -> None:
        """See `Browser.redraw`."""
        for panel in self.query(Panel):
            panel.redraw()
            if panel.id == "jobs":
                panel.styles.height = len(table.shown_jobs(self.console.jobs))
            elif panel.id == "path":
                panel.styles.height = len(self._path_lines(self.size.width, 1))
            elif panel.id == "status":
                panel.styles.height = max(1, len(self._status_lines(self.size.width, 1)))
        state = (self.model.sort, self.glyphs.name)
        if state != self._drawn:
            self._drawn = state
            self.table.refresh()
            self._draw_detail()
        if self.usage is not None and self.detail is not None and self.detail.key == self.usage[0]:
            self.detail.usage = self.usage[1].totals
            self._draw_detail()

    def _path_lines(self, width: int, _height: int) -> Sequence[Line]:
        if self.store is None:
            return notice(self.services.state, self.glyphs, width) or table.connecting_lines(self._refusal, width)
        return [table.path_line(self.model, self.store.profile.bucket, width, self.glyphs)]

    def _header_line(self, width: int) -> Line:
        return table.header(width, self.model.sort, self.glyphs)

    def _row_line(self, row: int, width: int) -> Line:
        rows = self.table.view.rows
        selected = row in self.model.selection
        named = functools.partial(checkpoints.columns, key=rows.key(row), known=self._known)
        return table.row_line(rows, row, width, selected=selected, glyphs=self.glyphs, checkpoint=named)

    def _detail_blocks(self, width: int, _height: int) -> Sequence[Block]:
        return detail_blocks(self.detail, width, self.glyphs) if self.detail is not None else []

    def _job_lines(self, width: int, _height: int) -> Sequence[Line]:
        return [job_line(job, width, self.glyphs) for job in table.shown_jobs(self.console.jobs)]

    def _status_lines(self, width: int, _height: int) -> Sequence[Line]:
        if self.store is None:
            return []
        if preparing := preparation(self.services, self.glyphs, width):
            return preparing
        return table.status_lines(self.model, self.glyphs, width, self.store.waiting)

    # Filter, keys and mouse

    @on(Input.Changed, "#filter")
    def _filter_typed(self, event: Input.Changed) -> None:
        event.stop()
        navigation.filter_typed(self, event.input)

    @on(Input.Submitted, "#filter")
    def _filter_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if not event.value:
            navigation.close_filter(self)
        self.table.focus()

    @on(LocalPane.Focused)
    def _side_changed(self, event: LocalPane.Focused) -> None:
        self.set_class(event.focused, "-local-focus")
        self.table.shows_cursor, self.local.table.shows_cursor = not event.focused, event.focused
        self.table.refresh()
        self.local.redraw()
        self.redraw_bars()

    def _on_virtual_table_opened(self) -> None:
        """Open the row that was clicked."""
        navigation.open_row(self)

    def _on_object_table_header_clicked(self, event: ObjectTable.HeaderClicked) -> None:
        """Sort by the column that was clicked."""
        navigation.sort_by(self, table.column_at(self.table.size.width, event.column))

    def on_key(self) -> None:
        """Let keys take precedence over the listing."""
        self.model.give_way()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Disable what the bucket, the object under the cursor or read-only mode does not allow."""
        unknown_here = _OF_THE_BUCKET if self.local.in_use else () if self.has_class("-local") else _SIDES
        if action in unknown_here:
            return False
        if (action in _WRITES and self.services.readonly) or (action in _NEEDS_BUCKET and self.store is None):
            return None
        content = self.detail.content if self.detail else None
        if action in checkpoints.NEEDS_CHECKPOINT:
            return checkpoints.allows(action, content)
        if action in _NEEDS_CONTENT:
            return isinstance(content, _NEEDS_CONTENT[action])
        return True
