"""ConsoleScreen: the frame of every screen (mode bar, key bar); and the lines for a bucket that is not ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import msgspec
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Resize
from textual.screen import ModalScreen, Screen
from textual.widgets import Static
from textual.worker import Worker

from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import FLAGS_NAME, Profile
from ossconsole.config.text import counted
from ossconsole.tui.console import (
    ConsoleState,
    Failed,
    NoCredentials,
    Services,
    Stage,
    StageState,
    Starting,
)
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.actions import Action, key_text
from ossconsole.tui.kit.canvas import Canvas
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.text import Line, safe, shorten_middle, wrap

if TYPE_CHECKING:
    from ossconsole.tui.app import ConsoleApp
    from ossconsole.tui.console import Services
    from ossconsole.tui.kit.glyphs import Glyphs

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


MIN_WIDTH, MIN_HEIGHT = 60, 18


class _ConsoleMixin:
    """Typed ways to the App for screens."""

    app: Any

    @property
    def console(self) -> ConsoleApp:
        return cast("ConsoleApp", self.app)

    @property
    def services(self) -> Services:
        return self.console.services

    @property
    def glyphs(self) -> Glyphs:
        return self.console.glyphs

    def tell(self, error: ConsoleError) -> None:
        """Show an error: what happened, and what to do next."""
        self.console.tell(error)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        self.console.on_worker_state_changed(event)


class ConsoleScreen(_ConsoleMixin, Screen[None]):
    """Subclasses set SCOPE and give their widgets in `body`; `tick` runs 4 times a second while the screen shows."""

    SCOPE: ClassVar[str]
    EXTRA_SCOPES: ClassVar[tuple[str, ...]] = ()
    # Nothing has the focus at first: in an input the keys of the modes would be typed.
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave_input", show=False)]

    def compose(self) -> ComposeResult:
        yield ModeBar()
        with Container(id="body"):
            yield from self.body()
        yield Static(id="too-small", markup=False)
        yield KeyBar(self.live_actions)

    def body(self) -> ComposeResult:
        raise NotImplementedError

    def tick(self) -> None:
        """Show what changed."""

    def redraw_bars(self) -> None:
        """Also while the screen is being put together or taken apart, when either bar may be missing."""
        for bar in self.query(Canvas):
            if isinstance(bar, ModeBar | KeyBar):
                bar.redraw()

    def actions(self) -> list[Action]:
        """What can be done here, the screen's own first."""
        return [action for scope in (self.SCOPE, *self.EXTRA_SCOPES, "app") for action in actions.of(scope)]

    def live_actions(self) -> list[tuple[Action, bool]]:
        """The footer's actions that exist now, and whether each would do something."""
        found = []
        for action in self.actions():
            allowed = self.check_action(action.name, ()) if action.scope != "app" else True
            if action.footer and allowed is not False:
                found.append((action, allowed is True))
        return found

    def on_resize(self, event: Resize) -> None:
        small = event.size.width < MIN_WIDTH or event.size.height < MIN_HEIGHT
        self.set_class(small, "-too-small")
        if small:
            self.query_one("#too-small", Static).update(
                f"This terminal has {event.size.width} x {event.size.height} cells;\n"
                f"the console needs {MIN_WIDTH} x {MIN_HEIGHT}.\n\nMake it larger, or press q to leave."
            )

    def action_leave_input(self) -> None:
        self.set_focus(None)

    def on_screen_resume(self) -> None:
        self.redraw_bars()
        self.tick()


class ConsoleModal(_ConsoleMixin, ModalScreen[Any]):
    """A dialog over a screen."""


def notice(state: ConsoleState, glyphs: Glyphs, width: int) -> list[Line]:
    """Why there is no bucket to work on, and what to do; nothing once there is one."""
    if state.usable:
        return []
    where = place(state.profile)
    if isinstance(state, NoCredentials):
        line = Line((f" No credentials for {where}. ", "warn"), ("Press ", "text"), ("1", "primary"))
        return [line.add(", then ", "text").add("k", "primary").add(".", "text")]
    if isinstance(state, Failed):
        words = f"{'The sandbox' if state.profile is None else _capital(where)} cannot be used. {state.reason}"
        return [*(Line((f" {part}", "bad")) for part in wrap(safe(words), width - 2)), try_again()]
    if state.profile is None:
        return [Line((f" The sandbox is starting{glyphs.ellipsis}", "dim"))]
    return [Line((f" Looking for the credentials of {where}{glyphs.ellipsis}", "dim"))]


def try_again() -> Line:
    return Line(
        (" Press ", "text"), ("1", "primary"), (", then ", "text"), ("r", "primary"), (", to try again.", "text")
    )


def place(profile: Profile | None) -> str:
    """The profile in words; what was given by flags alone has no name, and goes by its bucket."""
    if profile is None:
        return "the sandbox"
    return f"oss://{profile.bucket}" if profile.name == FLAGS_NAME else f"profile {profile.name}"


def preparation(services: Services, glyphs: Glyphs) -> list[Line]:
    """What is being done for the sample dataset, in a line; nothing once it is there."""
    state = services.state
    if not isinstance(state, Starting) or not state.opened:
        return []
    active = next((stage for stage in stages(services) if stage.state is StageState.ACTIVE), None)
    words = f": {active.label} {active.detail}".rstrip() if active else glyphs.ellipsis
    return [Line((f" Preparing the sample dataset{safe(words)}", "warn"))]


def stages(services: Services) -> Sequence[Stage]:
    """The work before the first run; the upload that is going on tells how far it is."""
    found, upload = services.state.stages, services.upload
    if upload is None or not upload.alive:
        return found
    progress = upload.progress()
    detail = (
        f"{progress.done:,} of {counted(progress.total, 'sample')}"
        if progress.total_known
        else counted(progress.done, "sample")
    )
    return [
        msgspec.structs.replace(stage, detail=detail)
        if stage.state is StageState.ACTIVE and not stage.detail
        else stage
        for stage in found
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
