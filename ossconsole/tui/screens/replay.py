"""ReplayScreen: the dashboard over a run's record: played at any speed, or followed while another process writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType

from ossconsole.config.errors import ConsoleError
from ossconsole.telemetry.runs import RunSummary
from ossconsole.tui import actions
from ossconsole.tui.replay import Replay
from ossconsole.tui.screens.dashboard import Dashboard, Source
from ossconsole.tui.text import Line, clock, safe
from ossconsole.tui.widgets.panel import Panel

_BREATH_S = 0.01


class ReplayScreen(Dashboard):
    """`replay` is closed with the screen."""

    SCOPE = "replay"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("replay")]

    def __init__(self, run: RunSummary, replay: Replay) -> None:
        super().__init__()
        self._run = run
        self._replay = replay

    @property
    def source(self) -> Source:
        return self._replay

    def body(self) -> ComposeResult:
        yield Panel(self._banner, id="replay")
        yield from super().body()

    def tick(self) -> None:
        if not self._replay.behind:
            self._catch_up()
        super().tick()

    def _catch_up(self) -> None:
        """Take in what is due, with a breath in between for the keys."""
        self._replay.pull()
        if self._replay.behind:
            self.set_timer(_BREATH_S, self._catch_up)

    def on_unmount(self) -> None:
        self._replay.close()

    def _banner(self, width: int, _height: int) -> Sequence[Line]:
        replay, glyphs = self._replay, self.glyphs
        line = Line((" WATCHING " if replay.follow else " REPLAY ", "chip-on"), (f" {safe(self._run.run)}", "strong"))
        if replay.follow:
            words = "as another process writes it"
        elif replay.at_end:
            words = f"{glyphs.done} all of it"
        else:
            mark = glyphs.running if replay.playing else glyphs.paused
            words = f"{mark} {replay.speed:g}x"
        line.add(f"  {words}", "text")
        return [line.right(Line((f"{clock(replay.now)} ", "dim")), width)]

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in {"play", "speed", "restart", "skip"} and self._replay.follow:
            return False
        return super().check_action(action, parameters)

    def action_play(self) -> None:
        if self._replay.at_end:
            self.action_restart()
        else:
            self._replay.playing = not self._replay.playing
        self.draw()

    def action_speed(self, direction: int) -> None:
        self._replay.faster(direction)
        self.draw()

    def action_restart(self) -> None:
        try:
            self._replay.restart()
        except ConsoleError as error:
            self.tell(error)
        self._axis.follow()
        self.draw()

    def action_skip(self) -> None:
        self._replay.skip()
        self.tick()
        self.draw()

    def action_leave(self) -> None:
        self.dismiss(None)
