"""Browser: what a command may use of the Browse screen; and the messages that its threads post."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from textual.message import Message
from textual.widgets import Input

from ossconsole.config.errors import ConsoleError
from ossconsole.storage.jobs.actions import ObjectOrPrefix
from ossconsole.storage.jobs.job import Job
from ossconsole.tui.browse.detail import Detail
from ossconsole.tui.browse.local import LocalPane
from ossconsole.tui.browse.model import BrowseModel
from ossconsole.tui.browse.table import ObjectTable
from ossconsole.tui.console import Console, Services
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.scroll import DetailView

if TYPE_CHECKING:
    from ossconsole.dataset.contents import ManifestIndex
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.jobs.actions import Usage

T = TypeVar("T")


class Browser(Protocol):
    """The Browse screen as its commands see it; `ossconsole.tui.browse.screen.BrowseScreen` is one."""

    app: Any
    store: ObjectStore | None
    """The bucket that shows; None until it can be used."""
    model: BrowseModel
    detail: Detail | None
    index: ManifestIndex | None
    """The manifest read last, with format and label of a sample."""
    usage: tuple[str, Usage] | None
    """The folder counted last, and the job that counts it."""
    range_start: str | None
    """The name of the first row of a range selection."""
    reported_error: ConsoleError | None
    """The listing error that was shown last."""
    table: ObjectTable
    pane: DetailView
    local: LocalPane
    """The folder of this machine beside the bucket; it shows while the screen has the class `-local`."""
    filter_input: Input

    @property
    def console(self) -> Console:
        """The App, as far as a screen may use it."""

    @property
    def services(self) -> Services:
        """Everything outside the App."""

    @property
    def targets(self) -> list[ObjectOrPrefix]:
        """The selected rows, or else the one under the cursor."""

    async def ask(self, dialog: ConsoleModal) -> Any:
        """The answer to a dialog, which opens once the screen shows and no other dialog covers it."""

    async def request(self, call: Callable[[], T]) -> T | None:
        """Runs `call` in a thread. None, after a toast, where it raises ConsoleError."""

    def run_job(self, job: Job, on_finished: Callable[[Job], None] | None = None, *, announced: bool = True) -> None:
        """Starts a job and shows its progress; `on_finished` is called on the event loop.

        Its success is a toast where that is to be `announced`, and not followed by a dialog that shows it.
        """

    def open_folder(self, prefix: str, select: str = "") -> None:
        """Lists a folder, or all keys that begin with `prefix`; the cursor goes to the name `select`."""

    def show_bucket(self) -> None:
        """Lists the bucket of `store` from its root."""

    def show_folder(self) -> None:
        """Shows the folder that the model has opened."""

    def show_pane(self, shown: bool, *, focus: bool = True) -> None:
        """Shows the detail pane, over the table where both have no room, or the table alone; moves the focus.

        Without `focus` it stays on a table that is not covered.
        """

    def save_cursor(self) -> None:
        """Remembers the cursor of the folder, before another one is opened."""

    def read_detail(self, *, full: bool = False) -> None:
        """Reads the object under the cursor; `full` adds ACL, tags and versions."""

    def redraw(self) -> None:
        """Paints all panels again."""

    def show_error(self, error: ConsoleError) -> None:
        """Shows an error as a toast."""

    # Of Textual's Screen

    def notify(self, message: str, *, timeout: float | None = None, markup: bool = True) -> None:
        """Shows a toast for `timeout` seconds."""

    def post_message(self, message: Message) -> bool:
        """Puts a message into the screen's queue, from any thread."""

    def has_class(self, *class_names: str) -> bool:
        """Whether the screen has all of these CSS classes."""

    def set_class(self, add: bool, *class_names: str) -> Any:
        """Adds or removes CSS classes."""


class Connected(Message):
    """The bucket can be used; `changed` where an earlier listing of it is out of date."""

    def __init__(self, store: ObjectStore, *, changed: bool) -> None:
        super().__init__()
        self.store = store
        self.changed = changed


class Changed(Message):
    """The listing, or the view of it, has changed."""

    def can_replace(self, message: Message) -> bool:
        """A queued message of this type is enough."""
        return isinstance(message, Changed)


class DetailRead(Message):
    """More is known of an object or a folder."""

    def __init__(self, detail: Detail) -> None:
        super().__init__()
        self.detail = detail
