"""OpeningScreen: the frame, painted before the screens' modules are loaded and before anything is made ready."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult

from ossconsole.tui.screens.base import ConsoleScreen
from ossconsole.tui.text import Line, safe
from ossconsole.tui.widgets.panel import Panel

_SANDBOX = (
    "Opening the embedded sandbox: an object storage of this machine alone,",
    "with a standard and an accelerated endpoint whose speeds are simulated.",
)


class OpeningScreen(ConsoleScreen):
    """Says what is being opened. Keys pressed meanwhile are kept for the screen that follows."""

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
