"""The two bars every screen has: where am I, and which keys do something here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from textual import events

from ossconsole.config.profile import FLAGS_NAME
from ossconsole.tui.actions import Action, key_text
from ossconsole.tui.services import ConsoleState, Failed, NoCredentials, Starting
from ossconsole.tui.text import Line, safe, shorten_middle
from ossconsole.tui.widgets.canvas import Canvas

if TYPE_CHECKING:
    from ossconsole.tui.app import ConsoleApp

MODES = (("setup", "Setup"), ("browse", "Browse"), ("upload", "Upload"), ("train", "Train"))


class ModeBar(Canvas):
    """The modes with their keys, then the endpoint in use, the bucket and the profile."""

    _compact = False

    def paint(self, width: int, _height: int) -> Sequence[Line]:
        app = cast("ConsoleApp", self.app)
        statuses = self._statuses(app)
        self._compact = self._tabs(app, compact=False).width + statuses[0].width >= width
        line = self._tabs(app, compact=self._compact)
        status = next((status for status in statuses if status.width < width - line.width), Line())
        return [line.to(width - status.width, "chip").extend(status)]

    @staticmethod
    def _tabs(app: ConsoleApp, *, compact: bool) -> Line:
        line = Line()
        for number, (mode, title) in enumerate(MODES, 1):
            on = mode == app.current_mode
            if compact:
                line.add(f"{number} {title}", "chip-key" if on else "chip-dim").add(" ", "chip")
            else:
                line.add(f" {number} {title} ", "chip-on" if on else "chip-dim")
        return line

    def _statuses(self, app: ConsoleApp) -> list[Line]:
        """The right side, from the fullest to the shortest."""
        state = app.services.state
        profile = app.services.profile
        if profile is None:
            return [Line((f"{self._unusable(state)} ", "chip"))]
        kind = app.monitor.endpoint
        endpoint = app.glyphs.named(kind) if kind else ""
        bucket = f"oss://{shorten_middle(safe(profile.bucket), 24)}"
        preparing = isinstance(state, Starting)
        sandbox = "sandbox: preparing" if preparing else "sandbox: simulated"
        name = sandbox if profile.simulated else shorten_middle(safe(profile.name), 20)
        short = "simulated" if profile.simulated else ""
        readonly = "read-only" if app.services.readonly else ""
        style = str(kind) if kind else "chip"
        variants = ((bucket, name), (name,), (short,), ())
        return [self._status(endpoint, style, (*variant, readonly)) for variant in variants]

    @staticmethod
    def _unusable(state: ConsoleState) -> str:
        if state.profile is None:
            return "sandbox: failed" if isinstance(state, Failed) else "sandbox: starting"
        flags_only = state.profile.name == FLAGS_NAME
        name = shorten_middle(safe(f"oss://{state.profile.bucket}" if flags_only else state.profile.name), 24)
        if isinstance(state, NoCredentials):
            return f"{name}: no credentials"
        return f"{name}: failed" if isinstance(state, Failed) else f"{name}: opening"

    @staticmethod
    def _status(endpoint: str, style: str, rest: Sequence[str]) -> Line:
        line = Line()
        for text, look in (
            (endpoint, f"chip-{style}" if style != "chip" else style),
            *((text, "chip") for text in rest),
        ):
            if text:
                line.add("  " if line.width else "", "chip").add(text, look)
        return line.add(" ", "chip")

    def on_click(self, event: events.Click) -> None:
        column = 0
        for number, (mode, title) in enumerate(MODES, 1):
            column += len(f"{number} {title} ") + (not self._compact)
            if event.x < column:
                cast("ConsoleApp", self.app).action_mode(mode)
                return


class KeyBar(Canvas):
    """The actions that work now, the most useful first; what does not fit is counted."""

    def __init__(self, actions: Callable[[], Sequence[tuple[Action, bool]]]) -> None:
        super().__init__()
        self._actions = actions

    def paint(self, width: int, _height: int) -> Sequence[Line]:
        wanted = sorted(self._actions(), key=lambda item: -item[0].footer)
        shown = self._fitting(wanted, width)
        line = Line()
        for action, enabled in shown:
            line.add(" ", "chip").add(action.key_text, "chip-key" if enabled else "chip-dim")
            line.add(f" {action.label} ", "chip" if enabled else "chip-dim")
        hidden = len(wanted) - len(shown)
        more = Line((f" {key_text('question_mark')} +{hidden} more ", "chip-dim")) if hidden else Line()
        return [line.to(width - more.width, "chip").extend(more)]

    @staticmethod
    def _fitting(wanted: Sequence[tuple[Action, bool]], width: int) -> Sequence[tuple[Action, bool]]:
        sizes = [len(f" {action.key_text} {action.label} ") for action, _ in wanted]
        if sum(sizes) <= width:
            return wanted
        room = width - len(" ? +99 more ")
        for count in range(len(wanted) - 1, 0, -1):
            if sum(sizes[:count]) <= room:
                return wanted[:count]
        return []
