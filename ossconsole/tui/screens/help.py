"""HelpScreen: what every key does, made from the action registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.geometry import Size

from ossconsole.tui import actions
from ossconsole.tui.actions import SCOPE_TITLES, Action
from ossconsole.tui.screens.base import ConsoleModal
from ossconsole.tui.text import Line, wrap
from ossconsole.tui.widgets.canvas import Canvas


class KeyTable(Canvas):
    """Scopes with their keys, the current screen's first."""

    def __init__(self, scopes: Sequence[str]) -> None:
        super().__init__()
        here = [*scopes, "app"]
        self._scopes = [*here, *(other for other in SCOPE_TITLES if other not in here)]
        self._known: tuple[int, list[Line]] = 0, []

    def lines(self, width: int) -> list[Line]:
        """Every key for this width; asked for several times on the way to the first paint, made once."""
        if self._known[0] != width:
            self._known = width, self._lines_of(width)
        return self._known[1]

    def _lines_of(self, width: int) -> list[Line]:
        found: list[Line] = []
        for scope in self._scopes:
            rows = actions.of(scope)
            if rows:
                found.append(Line((SCOPE_TITLES[scope], "title")))
                found += [line for action in rows for line in self._row(action, width)]
                found.append(Line())
        return found[:-1]

    @staticmethod
    def _row(action: Action, width: int) -> list[Line]:
        keys = " ".join(actions.key_text(key) for key in action.keys.split(","))
        row = Line((f"  {keys}", "primary")).to(12).add(action.label, "text").to(26)
        first, *rest = wrap(action.help, max(20, width - 26))
        return [row.add(first, "dim"), *(Line().to(26).add(part, "dim") for part in rest)]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        del container, viewport
        return len(self.lines(width))

    def paint(self, width: int, _height: int) -> Sequence[Line]:
        return self.lines(width)


class HelpScreen(ConsoleModal):
    """The keys of `scopes` first. Any of the keys that close dialogs leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q", "dismiss", "Close", show=False),
        Binding("j", "scroll('down')", show=False),
        Binding("k", "scroll('up')", show=False),
    ]

    def __init__(self, *scopes: str) -> None:
        super().__init__()
        self._scopes = scopes

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog") as dialog:
            dialog.border_title = "Keys"
            dialog.border_subtitle = "esc closes"
            yield KeyTable(self._scopes)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_scroll(self, direction: str) -> None:
        scroll = self.query_one(VerticalScroll)
        if direction == "down":
            scroll.scroll_down(animate=False)
        else:
            scroll.scroll_up(animate=False)
