"""The screens outside the modes: help (all keys), the program's log, and the first screen while the console loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.geometry import Size

from ossconsole.terminal import logs
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.actions import SCOPE_TITLES, KeyAction
from ossconsole.tui.kit.canvas import Canvas, Panel
from ossconsole.tui.kit.screen import ConsoleModal, ConsoleScreen
from ossconsole.tui.kit.text import Line, safe, wrap


class KeyTable(Canvas):
    """All scopes with their keys, the scopes of the screen first."""

    def __init__(self, scopes: Sequence[str]) -> None:
        super().__init__()
        here = [*scopes, "app"]
        self._scopes = [*here, *(other for other in SCOPE_TITLES if other not in here)]
        self._cache: tuple[int, list[Line]] = 0, []

    def lines(self, width: int) -> list[Line]:
        """All keys, for a width in cells; kept, as Textual asks several times before the first paint."""
        if self._cache[0] != width:
            self._cache = width, self._lines_of(width)
        return self._cache[1]

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
    def _row(action: KeyAction, width: int) -> list[Line]:
        keys = " ".join(actions.key_text(key) for key in action.keys.split(","))
        row = Line((f"  {keys}", "primary")).to(12).add(action.label, "text").to(26)
        first, *rest = wrap(action.help, max(20, width - 26))
        return [row.add(first, "dim"), *(Line().to(26).add(part, "dim") for part in rest)]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The number of lines, so that the dialog scrolls."""
        del container, viewport
        return len(self.lines(width))

    def paint(self, width: int, _height: int) -> Sequence[Line]:
        return self.lines(width)


class HelpScreen(ConsoleModal):
    """All keys, those of `scopes` first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1,q", "back", show=False),
        Binding("j", "scroll('down')", show=False),
        Binding("k", "scroll('up')", show=False),
    ]

    def __init__(self, *scopes: str) -> None:
        super().__init__()
        self._scopes = scopes

    def compose(self) -> ComposeResult:
        with self.frame("Keys", "esc close", scroll=True):
            yield KeyTable(self._scopes)

    def on_mount(self) -> None:
        """Focus the keys, so that they can be scrolled."""
        self.query_one(VerticalScroll).focus()

    def action_scroll(self, direction: str) -> None:
        """Scroll one line."""
        scroll = self.query_one(VerticalScroll)
        if direction == "down":
            scroll.scroll_down(animate=False)
        else:
            scroll.scroll_up(animate=False)


REFRESH_S = 1.0


class LogTail(Canvas):
    """The last lines of both logs, oldest first."""

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
        shown = [Line((line, _style(line))) for line in lines] or [Line(("empty", "dim"))]
        return [*shown, *(Line() for _ in range(height - len(shown)))]


def _style(line: str) -> str:
    if " ERROR " in line or " CRITICAL " in line:
        return "bad"
    return "warn" if " WARNING " in line else "dim"


class LogScreen(ConsoleModal):
    """The end of the program's log and of the log of native libraries, updated every second."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f12,q", "back", show=False)]

    def compose(self) -> ComposeResult:
        """The tails of both logs."""
        with self.frame("Log", "esc close", classes="-full"):
            yield LogTail()

    def on_mount(self) -> None:
        """Update every second."""
        self.set_interval(REFRESH_S, self.query_one(LogTail).redraw)


_SANDBOX = (
    "Opening the embedded sandbox: a local object store on this machine,",
    "with a standard and an accelerated endpoint whose speeds are simulated.",
)


class OpeningScreen(ConsoleScreen):
    """Names the profile that is being opened. Keys pressed meanwhile go to the screen that follows."""

    SCOPE = "opening"

    def body(self) -> ComposeResult:
        yield Panel(self._settings, id="opening")

    def _settings(self, _width: int, _height: int) -> Sequence[Line]:
        settings = self.services.settings()
        if not settings:
            return [Line(), *(Line((f" {text}", "dim")) for text in _SANDBOX)]
        rows = [
            Line((f" {setting.name.replace('_', ' '):<22}", "dim"), (safe(setting.value), "text"))
            for setting in settings
            if setting.value
        ]
        return [Line(), Line((" Opening", "strong")), Line(), *rows]
