"""BrowseScreen: folders and objects of the bucket, what is known of the one under the cursor, and work on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.timer import Timer
from textual.widgets import Input

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.contents import MAX_MANIFEST_BYTES, ImageContent, ManifestIndex, read_content
from ossconsole.dataset.manifest import Manifest, manifest_key, read_manifest
from ossconsole.storage.checkpoints.inspect import CheckpointInfo
from ossconsole.storage.jobs.actions import object_details
from ossconsole.storage.listing import ListingState
from ossconsole.tui.browse import detail
from ossconsole.tui.browse import rows as painting
from ossconsole.tui.browse.base import Changed, Connected, DetailRead, NoBucket
from ossconsole.tui.browse.checkpoints import Checkpoints
from ossconsole.tui.browse.detail import Detail
from ossconsole.tui.browse.model import BrowseModel, Place
from ossconsole.tui.browse.navigation import Moving
from ossconsole.tui.browse.object_commands import Working
from ossconsole.tui.browse.object_table import ObjectTable
from ossconsole.tui.console import ConsoleState, Ready, Starting
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.detail_view import Block
from ossconsole.tui.kit.notice import notice, preparation
from ossconsole.tui.kit.text import Line

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_REST_BEFORE_READING_S = 0.2  # of the cursor on a row, so that moving through a folder asks nothing
_JOBS_SHOWN = 3
_WRITES = {"delete", "copy", "rename", "best", "restore", "train_from"}
_NEEDS_CONTENT = {"best": CheckpointInfo, "picture": ImageContent, "check_manifest": Manifest}
_NEEDS_BUCKET = {action.name for action in actions.of("browse")}
_log = logging.getLogger(__name__)


class BrowseScreen(Moving, Working, Checkpoints):
    """Threads list, read and work; what they bring is taken over here, where all state of the screen belongs."""

    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("browse"), Binding("escape", "escape", show=False)]

    def __init__(self) -> None:
        super().__init__()
        self._state: ConsoleState | None = None
        self._own_store: ObjectStore | None = None  # of the profile; the user may look at another bucket
        self._connecting = False
        self._waiting: Timer | None = None
        self._drawn: tuple[object, ...] = ()
        self._manifest_asked: tuple[object, str] | None = None

    def body(self) -> ComposeResult:
        yield Panel(self._path, id="path")
        with Horizontal(id="main"):
            yield self.table
            yield self.side
        yield Panel(self._jobs, id="jobs")
        yield self.entry
        yield Panel(self._status, id="status")

    def on_mount(self) -> None:
        self.table.focus()
        self.entry.display = False

    def tick(self) -> None:
        if not self.table.is_attached:
            return
        self._follow_state()
        self._take_over()
        self.watch_jobs()
        self.redraw()

    # Connecting and listing

    def _follow_state(self) -> None:
        """Connects where there is a bucket to work on, and leaves the last one where there is none any more."""
        state, before = self.services.state, self._state
        if state is before or self._connecting:
            return
        self._state = state
        if state.usable:
            self._connecting = True
            self._connect(changed=isinstance(before, Starting) and before.opened and isinstance(state, Ready))
        elif self.store is not None:
            self._leave_bucket()

    @work(thread=True, group="connect", exit_on_error=False)
    def _connect(self, *, changed: bool) -> None:
        try:
            store = self.services.store(EndpointKind.STANDARD)
        except ConsoleError as error:
            self.app.call_from_thread(self._refuse, error)
        else:
            self.post_message(Connected(cast("ObjectStore", store), changed=changed))

    def _refuse(self, error: ConsoleError) -> None:
        self._connecting = False
        self.tell(error)

    @on(Connected)
    def _connected(self, event: Connected) -> None:
        self._connecting = False
        if event.store is not self._own_store:
            self.store = self._own_store = event.store
            self.show_bucket()
        elif event.changed and self.store is self._own_store:
            self.model.refresh()
        self.redraw_bars()
        self.redraw()

    def _leave_bucket(self) -> None:
        self.store = self._own_store = None
        self._open_model(BrowseModel(NoBucket(), self._announce))
        self.arrive()
        self.redraw_bars()

    def show_bucket(self, prefix: str = "") -> None:
        """Lists the bucket of `store` from the start."""
        assert self.store is not None  # noqa: S101
        self._open_model(BrowseModel(self.store, self._announce))
        self.model.open(prefix, remember=False)
        self.arrive()

    def _open_model(self, model: BrowseModel) -> None:
        self.model.close()
        self.index = None
        self.model = model

    def open_folder(self, prefix: str, select: str = "") -> None:
        """Lists a folder, or what begins with `prefix`; the cursor goes to `select`, or where it was last."""
        self.leave_place()
        self.model.open(prefix, select=select)
        self.arrive()

    def leave_place(self) -> None:
        row = self.table.current
        if row is not None and self.table.view.rows is self.model.rows:
            place = Place(self.model.rows.name(row), self.table.cursor, self.table.rows_above)
            self.model.places[self.model.prefix] = place

    def arrive(self) -> None:
        self.close_filter()
        self.range_start = None
        self.table.set_view(self.model.view)
        self._want_manifest()
        self._take_over()
        self._want_detail()
        self.redraw()

    def _announce(self) -> None:
        """Called by threads."""
        self.post_message(Changed())

    @on(Changed)
    def _changed(self) -> None:
        self._take_over()
        self.redraw()

    def _take_over(self) -> None:
        if self.model.poll() or self.table.view is not self.model.view:
            self._show_view()
        error = self.model.error
        if error is not None and error is not self.told:
            self.told = error
            self.tell(error)

    def _show_view(self) -> None:
        view, old, place = self.model.view, self.table.view, self.model.wanted
        refreshed = old.rows is not view.rows and old.rows.base == view.rows.base
        if place is None and refreshed and self.table.current is not None:
            place = Place(old.rows.name(self.table.current), self.table.cursor, self.table.rows_above)
        if refreshed:
            self.detail = None  # the object may be another one by now
        row = view.rows.find(place.name) if place else None
        if place is not None and row is not None and view.position(row) is not None:
            self.table.set_view(view, go_to=row, above=place.above)
            self.model.wanted = None
        else:
            self.table.set_view(view)
            if self.model.listing.state is not ListingState.LOADING:
                self.model.wanted = None
        self._want_detail()

    # Detail

    def _want_manifest(self) -> None:
        """Below the dataset prefix samples are told by the manifest there, which is read once."""
        store = self.store
        if store is None:
            return
        prefix = store.profile.dataset_prefix
        if f"{self.model.prefix}/".startswith(f"{prefix}/") and self._manifest_asked != (store, prefix):
            self._manifest_asked = (store, prefix)
            self._read_manifest(store, prefix)

    @work(thread=True, group="manifest", exit_on_error=False)
    def _read_manifest(self, store: ObjectStore, prefix: str) -> None:
        try:
            if store.head(manifest_key(prefix)).size > MAX_MANIFEST_BYTES:
                return
            index = ManifestIndex(read_manifest(store, prefix), prefix)
        except ConsoleError as error:
            _log.info("samples are told without a manifest: %s", error)
        else:
            self.app.call_from_thread(self._take_manifest, store, index)

    def _take_manifest(self, store: ObjectStore, index: ManifestIndex) -> None:
        if store is not self.store or self.index is not None:
            return
        self.index = index
        if self.detail is not None and self.detail.key.startswith(f"{index.prefix}/"):
            self.detail = None  # read without it, or being read
            self._want_detail()

    def on_virtual_table_moved(self) -> None:
        self.model.wanted = None
        self._want_detail()

    def _want_detail(self) -> None:
        row, rows = self.table.current, self.table.view.rows
        if row is not None and self.detail is not None and self.detail.key == rows.key(row):
            return  # the table tells of its cursor also when it was resized
        if self._waiting:
            self._waiting.stop()
        if row is None or self.store is None:
            self.detail = None
        else:
            self.detail = Detail(rows.key(row), rows.is_folder(row))
            # Also where the pane has no room: what can be done with it depends on what it holds.
            if not rows.is_folder(row) and not self.has_class("-too-small"):
                self._waiting = self.set_timer(_REST_BEFORE_READING_S, self.read_detail)
        self._draw_detail()

    def read_detail(self, *, full: bool = False) -> None:
        """Reads what is shown of the object under the cursor; `full` also asks for ACL, tags and versions."""
        detail = self.detail
        if detail is None or detail.is_folder or self.store is None:
            return
        if detail.content is not None and (detail.full is not None or not full):
            return
        detail.loading = True
        self._draw_detail()
        self._read(self.store, detail, self.index, full)

    @work(thread=True, group="detail", exclusive=True, exit_on_error=False)
    def _read(self, store: ObjectStore, detail: Detail, index: ManifestIndex | None, full: bool) -> None:
        try:
            if full:
                detail.full = object_details(store, detail.key)
            detail.info = detail.full.info if detail.full else store.head(detail.key)
            self.post_message(DetailRead(detail))
            detail.content = detail.content or read_content(store, detail.info, index)
        except ConsoleError as error:
            detail.problem = str(error)
        finally:
            detail.loading = False
            self.post_message(DetailRead(detail))

    @on(DetailRead)
    def _detail_read(self, event: DetailRead) -> None:
        content = event.detail.content
        if isinstance(content, Manifest):
            prefix = event.detail.key.rpartition("/")[0]
            if self.index is None or self.index.prefix != prefix:
                self.index = ManifestIndex(content, prefix)
        if event.detail is self.detail:
            self._draw_detail()
            self.redraw_bars()

    def _draw_detail(self) -> None:
        self.pane.plain = self.glyphs.name == "ascii" or self.app.no_color
        self.pane.redraw()

    # Drawing

    def redraw(self) -> None:
        for panel in self.query(Panel):
            panel.redraw()
            if panel.id == "jobs":
                panel.styles.height = min(len(self.jobs), _JOBS_SHOWN)
            elif panel.id == "path":
                panel.styles.height = len(self._path(self.size.width, 1))
        state = (self.model.sort, self.glyphs.name)
        if state != self._drawn:
            self._drawn = state
            self.table.refresh()
            self._draw_detail()
        if self.usage is not None and self.detail is not None and self.detail.key == self.usage[0]:
            self.detail.usage = self.usage[1].totals
            self._draw_detail()

    def _path(self, width: int, _height: int) -> Sequence[Line]:
        if self.store is None:
            return notice(self.services.state, self.glyphs, width) or [Line((" Connecting.", "dim"))]
        return [painting.path_line(self.model, self.store.profile.bucket, width, self.glyphs)]

    def header_line(self, width: int) -> Line:
        return painting.header(width, self.model.sort, self.glyphs)

    def row_line(self, row: int, width: int) -> Line:
        rows = self.table.view.rows
        return painting.row_line(rows, row, width, chosen=row in self.model.selection, glyphs=self.glyphs)

    def detail_blocks(self, width: int, _height: int) -> Sequence[Block]:
        return detail.detail_blocks(self.detail, width, self.glyphs) if self.detail is not None else []

    def _jobs(self, width: int, _height: int) -> Sequence[Line]:
        return [painting.job_line(job, width, self.glyphs) for job in self.jobs[-_JOBS_SHOWN:]]

    def _status(self, _width: int, _height: int) -> Sequence[Line]:
        if self.store is None:
            return []
        if preparing := preparation(self.services, self.glyphs):
            return preparing
        error = self.model.error
        if error is not None:
            return [Line((f" {self.model.rows.count:,} loaded; r goes on. ", "text"), (error.message, "bad"))]
        return [painting.status_line(self.model, self.glyphs, self.store.waiting)]

    # Filter and escape

    @on(Input.Changed, "#filter")
    def _filter_typed(self, event: Input.Changed) -> None:
        event.stop()
        try:
            self.model.filter_by(event.value)
        except ConsoleError:
            event.input.add_class("-bad")
        else:
            event.input.remove_class("-bad")
            self._take_over()
        self.redraw()

    @on(Input.Submitted, "#filter")
    def _filter_done(self, event: Input.Submitted) -> None:
        event.stop()
        if not event.value:
            self.close_filter()
        self.table.focus()

    def close_filter(self) -> None:
        self.entry.display = False
        with self.prevent(Input.Changed):
            self.entry.value = ""
        self.entry.remove_class("-bad")
        if self.model.row_filter is not None:
            self.model.filter_by("")
            self._take_over()
        self.table.focus()

    def action_escape(self) -> None:
        """One layer back: the pane, what is loading, the filter, what is chosen."""
        if self.has_class("-pane"):
            self.show_pane(False)
        elif self.entry.has_focus:
            self.close_filter()
        elif self.model.stop():
            self.redraw()
        elif self.model.row_filter is not None:
            self.close_filter()
        elif len(self.model.selection):
            self.model.selection.clear()
            self.table.refresh()
        else:
            self.table.focus()
        self.redraw()

    def on_object_table_header_clicked(self, event: ObjectTable.HeaderClicked) -> None:
        self.sort_by(painting.column_at(self.table.size.width, event.column))

    # Keys

    def on_key(self) -> None:
        self.model.give_way()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        if action in _WRITES and self.services.readonly:
            return None
        if action in _NEEDS_BUCKET and self.store is None:
            return None
        content = self.detail.content if self.detail else None
        if action == "train_from":
            return isinstance(content, CheckpointInfo) and content.resumable
        if action in _NEEDS_CONTENT:
            return isinstance(content, _NEEDS_CONTENT[action])
        return True
