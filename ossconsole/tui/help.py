"""The screens outside the modes: help (all keys), the program's log, and the first screen while the console loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.widgets import Input

from ossconsole.config.files import native_log_path
from ossconsole.terminal import logs
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.actions import SCOPE_TITLES, KeyAction
from ossconsole.tui.kit.canvas import Canvas, Panel
from ossconsole.tui.kit.screen import ConsoleModal, ConsoleScreen
from ossconsole.tui.kit.text import Line, safe, wrap


class KeyTable(Canvas):
    """All scopes with their keys, the scopes of the screen first; `filter` shows the actions that contain a text."""

    def __init__(self, scopes: Sequence[str]) -> None:
        super().__init__()
        self._here = [*scopes, "app"]
        self._scopes = [*self._here, *(other for other in SCOPE_TITLES if other not in self._here)]
        self._wanted = ""
        self._cache: tuple[int, list[Line]] = 0, []

    def filter(self, text: str) -> None:
        """Show the actions whose keys, label or help contain `text`; all for ""."""
        self._wanted, self._cache = text.strip().lower(), (0, [])
        self.refresh(layout=True)
        self.redraw()

    def lines(self, width: int) -> list[Line]:
        """All keys, for a width in cells; cached, as Textual calls this several times before the first paint."""
        if self._cache[0] != width:
            self._cache = width, self._lines_of(width)
        return self._cache[1]

    def _lines_of(self, width: int) -> list[Line]:
        found: list[Line] = []
        for scope in self._scopes:
            rows = [action for action in actions.of(scope) if self._shows(action)]
            if rows:
                note = "" if scope in self._here else "  on another screen"
                found.append(Line((SCOPE_TITLES[scope], "title"), (note, "dim")))
                found += [line for action in rows for line in self._row(action, width)]
                found.append(Line())
        return found[:-1] or [Line(("No action contains this text.", "dim"))]

    def _shows(self, action: KeyAction) -> bool:
        return self._wanted in f"{_keys_text(action)} {action.label} {action.help} {action.id}".lower()

    @staticmethod
    def _row(action: KeyAction, width: int) -> list[Line]:
        row = Line((f"  {_keys_text(action)}", "primary")).to(12).add(action.label, "text").to(26)
        first, *rest = wrap(action.help, max(20, width - 26))
        return [row.add(first, "dim"), *(Line().to(26).add(part, "dim") for part in rest)]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The number of lines, so that the dialog scrolls."""
        del container, viewport
        return len(self.lines(width))

    def paint(self, width: int, _height: int) -> Sequence[Line]:
        return self.lines(width)


def _keys_text(action: KeyAction) -> str:
    return " ".join(actions.key_text(key) for key in action.keys.split(","))


class HelpScreen(ConsoleModal):
    """All keys, those of `scopes` first; `/` searches them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1,q", "back", show=False),
        Binding("slash", "search", show=False),
    ]

    def __init__(self, *scopes: str) -> None:
        super().__init__()
        self._scopes = scopes

    def compose(self) -> ComposeResult:
        with self.frame("Keys", "/ search · esc close", id="keys"):
            yield Input(placeholder="search keys and actions", compact=True, id="help-search")
            with VerticalScroll(id="help-keys"):
                yield KeyTable(self._scopes)

    def on_mount(self) -> None:
        """Focus the keys, so that they can be scrolled."""
        self.query_one(Input).display = False
        self.query_one(VerticalScroll).focus()

    def action_search(self) -> None:
        """Enter a text to search for."""
        search = self.query_one(Input)
        search.display = True
        search.focus()

    def _on_input_changed(self, event: Input.Changed) -> None:
        self.query_one(KeyTable).filter(event.value)
        self.query_one(VerticalScroll).scroll_home(animate=False)

    def _on_input_submitted(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_back(self) -> None:
        """End the search, or close the help."""
        search = self.query_one(Input)
        if search.display:
            search.value = ""
            search.display = False
            self.query_one(VerticalScroll).focus()
        else:
            self.dismiss(None)


REFRESH_S = 1.0


class LogTail(Canvas):
    """The last lines of both logs, oldest first."""

    def paint(self, width: int, height: int) -> Sequence[Line]:
        own = height * 2 // 3
        return [
            Line((f"{logs.log_path()}", "title")),
            *self._block(logs.tail(logs.log_path(), own - 2, width), own - 1),
            Line((f"{native_log_path()}", "title")),
            *self._block(logs.tail(native_log_path(), height - own - 1, width), height - own - 1),
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

    BINDINGS: ClassVar[list[BindingType]] = [Binding("L,f12,q", "back", show=False)]

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
