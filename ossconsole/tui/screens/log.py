"""LogScreen: the end of the program's log and of what native libraries printed, following as they grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from ossconsole.terminal import logs
from ossconsole.tui.screens.base import ConsoleModal
from ossconsole.tui.text import Line
from ossconsole.tui.widgets.canvas import Canvas

REFRESH_S = 1.0


class LogTail(Canvas):
    """The last lines, oldest first."""

    def paint(self, width: int, height: int) -> Sequence[Line]:
        own = height * 2 // 3
        return [
            Line((f"{logs.log_path()}", "title")),
            *self._block(logs.tail(logs.log_path(), own - 2, width), own - 1),
            Line((f"{logs.native_log_path()}", "title")),
            *self._block(logs.tail(logs.native_log_path(), height - own - 1, width), height - own - 1),
        ]

    @staticmethod
    def _block(lines: Sequence[str], height: int) -> list[Line]:
        shown = [Line((line, _style(line))) for line in lines] or [Line(("nothing yet", "dim"))]
        return [*shown, *(Line() for _ in range(height - len(shown)))]


def _style(line: str) -> str:
    if " ERROR " in line or " CRITICAL " in line:
        return "bad"
    return "warn" if " WARNING " in line else "dim"


class LogScreen(ConsoleModal):
    """Covers the whole screen, so that long lines have room."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f12,q", "dismiss", "Close", show=False)]

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -full") as dialog:
            dialog.border_title = "Log"
            dialog.border_subtitle = "esc closes"
            yield LogTail()

    def on_mount(self) -> None:
        self.set_interval(REFRESH_S, self.query_one(LogTail).redraw)
