"""DetailScreen: a panel of the dashboard over the whole screen, with what there is no room for otherwise; live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Key

from ossconsole.tui.screens.base import ConsoleModal
from ossconsole.tui.text import Line, safe
from ossconsole.tui.widgets.panel import Painter, Panel

REFRESH_S = 0.5


class DetailScreen(ConsoleModal):
    """`key` opened it, and closes it like Escape. More lines than fit are scrolled to."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss", show=False)]

    def __init__(self, title: str, key: str, painter: Painter) -> None:
        super().__init__()
        self._title = title
        self._painter = painter
        self._key = key

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog -full") as dialog:
            dialog.border_title = Content(safe(self._title))
            dialog.border_subtitle = "esc closes"
            yield Panel(self._paint, id="detail")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self.set_interval(REFRESH_S, self.query_one(Panel).redraw)

    def on_key(self, event: Key) -> None:
        if event.key == self._key:
            event.stop()
            self.dismiss()

    def _paint(self, width: int, _height: int) -> Sequence[Line]:
        room = self.query_one(VerticalScroll).size.height
        lines = self._painter(width, room)
        self.query_one(Panel).styles.height = max(room, len(lines))
        return lines
