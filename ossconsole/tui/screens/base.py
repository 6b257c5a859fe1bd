"""ConsoleScreen: the frame of every screen: mode bar, body, key bar, and a card where the terminal is too small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Resize
from textual.screen import ModalScreen, Screen
from textual.widgets import Static
from textual.worker import Worker

from ossconsole.config.errors import ConsoleError
from ossconsole.tui import actions
from ossconsole.tui.actions import Action
from ossconsole.tui.widgets.bars import KeyBar, ModeBar
from ossconsole.tui.widgets.canvas import Canvas

if TYPE_CHECKING:
    from ossconsole.tui.app import ConsoleApp
    from ossconsole.tui.glyphs import Glyphs
    from ossconsole.tui.services import Services

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
