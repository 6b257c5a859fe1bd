"""WelcomeScreen: the first screen where nothing is set up and nothing runs, with three ways to begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.telemetry.runs import SUFFIX, runs_dir
from ossconsole.tui.console import Starting, Unavailable
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.actions import KeyAction
from ossconsole.tui.kit.canvas import Panel
from ossconsole.tui.kit.screen import ConsoleScreen, notice, preparation_stages, stage_lines
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.kit.text import Line, heading, shorten

_TITLES = {"demo": "Try the demo", "connect": "Connect a bucket", "continue_run": "Continue a run"}
_TITLE_WIDTH = 24


class WelcomeScreen(ConsoleScreen):
    """Try the demo, connect a bucket, continue a run; below, the preparation of the sandbox."""

    SCOPE = "welcome"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("welcome")]

    def __init__(self) -> None:
        super().__init__()
        self._runs: int | None = None

    def body(self) -> ComposeResult:
        yield Panel(self._intro, id="welcome-intro")
        yield VirtualTable[KeyAction](self._row, id="welcome-options")
        yield Panel(self._preparation, id="welcome-preparation")

    def on_mount(self) -> None:
        """Select the first option."""
        table = self.query_one(VirtualTable)
        table.show([action for action in self.actions() if action.name in _TITLES])
        table.focus()
        self._count_runs()

    @work(thread=True, group="runs", exit_on_error=False)
    def _count_runs(self) -> None:
        try:
            self._runs = sum(path.suffix == SUFFIX for path in runs_dir().iterdir())
        except OSError:  # before the first run
            self._runs = 0
        self.app.call_from_thread(self.query_one(VirtualTable).refresh)

    @staticmethod
    def _intro(_width: int, _height: int) -> Sequence[Line]:
        return [
            Line(),
            Line((" Train on data in OSS, and measure what its endpoints are worth.", "strong")),
            Line((" No bucket is connected yet. Select a way to begin:", "dim")),
        ]

    def _row(self, action: KeyAction, width: int) -> Line:
        line = Line((f"  {action.key_text}  ", "primary"), (_TITLES[action.name], "strong")).to(_TITLE_WIDTH)
        text = action.help
        if action.name == "continue_run" and self._runs is not None:
            text = f"{counted(self._runs, 'recorded run')}: resume, replay, compare" if self._runs else "No runs yet"
        return line.add(shorten(text, width - line.width - 1, self.glyphs.ellipsis), "dim")

    def _preparation(self, width: int, height: int) -> Sequence[Line]:
        state = self.services.state
        stages = preparation_stages(self.services)
        title = "Preparing the sandbox" if isinstance(state, Starting) else "Sandbox"
        lines = [heading(title, width, self.glyphs.rule), *stage_lines(self.glyphs, stages, width)]
        if isinstance(state, Unavailable):
            lines += notice(state, self.glyphs, width)
        elif not isinstance(state, Starting):
            lines.append(Line((f"  {self.glyphs.done} ready: its speeds are simulated", "good")))
        return lines[:height]

    # Actions

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool | None:
        """The demo writes, so it needs write access."""
        return None if action == "demo" and self.services.readonly else True

    def _on_virtual_table_opened(self) -> None:
        """Start what was clicked."""
        self.call_later(self.action_select)

    async def action_select(self) -> None:
        """Start what is selected."""
        action = self.query_one(VirtualTable).cursor_row
        if action is not None:
            await self.run_action(action.call)

    @work(thread=True, exclusive=True, group="demo", exit_on_error=False)
    def action_demo(self) -> None:
        """Start the demo's run, and show it."""
        try:
            self.services.start_demo()
        except ConsoleError as error:
            self.app.call_from_thread(self.show_error, error)
        else:
            self.app.call_from_thread(self.console.action_mode, "train")

    def action_connect(self) -> None:
        """Open the form of a new profile."""
        self.console.action_mode("setup")
        self.app.call_later(self.app.run_action, "screen.edit")

    def action_continue_run(self) -> None:
        """List the recorded runs."""
        self.console.action_mode("train")
        self.app.call_later(self.app.run_action, "screen.runs")
