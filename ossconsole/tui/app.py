"""ConsoleApp: modes, themes, dialogs, the command palette, and the pull of the run's events."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from textual import work
from textual.binding import BindingType
from textual.color import Color
from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.filter import LineFilter
from textual.screen import Screen
from textual.worker import Worker, WorkerState

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import exposed_folders
from ossconsole.config.text import counted
from ossconsole.tui.console import NoCredentials, Services, Starting
from ossconsole.tui.help import OpeningScreen
from ossconsole.tui.kit import actions, glyphs, memory
from ossconsole.tui.kit import canvas as themes
from ossconsole.tui.kit.actions import Action
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.text import safe
from ossconsole.tui.kit.textual_internals import ConsoleTextualApp, FrugalStylesheet, TerminalGuard

if TYPE_CHECKING:
    from ossconsole.storage.jobs.job import Job
    from ossconsole.telemetry.events import Event
    from ossconsole.tui.train.monitor import RunMonitor

TICK_S = 0.25
log = logging.getLogger(__name__)

# What the first paint does not show is loaded when it is needed: the screens, the dialogs, the monitor of the run.


def _setup() -> Screen[None]:
    from ossconsole.tui.setup.screen import SetupScreen

    return SetupScreen()


def _browse() -> Screen[None]:
    from ossconsole.tui.browse.screen import BrowseScreen

    return BrowseScreen()


def _upload() -> Screen[None]:
    from ossconsole.tui.upload.screen import UploadScreen

    return UploadScreen()


def _train() -> Screen[None]:
    from ossconsole.tui.train.screen import TrainScreen

    return TrainScreen()


def _action_provider() -> type[ActionProvider]:

    return ActionProvider


class ConsoleApp(ConsoleTextualApp):
    """The console over `services`, opened on `initial_mode` (setup, browse, upload or train).

    `clock` gives Unix seconds. The return code is 0 after quitting and 1 after a crash, of which `crash_lines` has
    one line for the terminal. `return_value` is `detach` where the user left work that is to continue, `stop` where it
    is to end.
    """

    TITLE = "ossconsole"
    CSS_PATH: ClassVar[list[str | PurePath]] = [
        f"styles/{name}.tcss" for name in ("base", "train", "dialogs", "setup", "browse", "upload")
    ]
    MODES: ClassVar[dict[str, Callable[[], Screen[None]]]] = {  # type: ignore[assignment]
        "setup": _setup,
        "browse": _browse,
        "upload": _upload,
        "train": _train,
    }
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("app")]
    COMMANDS = ConsoleTextualApp.COMMANDS | {_action_provider}
    # Textual declares these two without ClassVar.
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide"), (170, "-vast")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (30, "-middle"), (50, "-high")]  # noqa: RUF012
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"

    def __init__(
        self,
        services: Services,
        initial_mode: str = "train",
        *,
        glyph_set: glyphs.Glyphs | None = None,
        theme: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.services = services
        self.initial_mode = initial_mode
        self._look = memory.recall("look", "")
        self.glyphs = glyph_set or glyphs.SETS.get(self._look.get("glyphs", ""), glyphs.for_terminal())
        self._undecided = initial_mode == "browse"
        """Until the credentials were looked for, or the user has chosen a screen."""
        self.jobs: list[Job] = []
        """Downloads and other work on objects, of the Browse screen."""
        self._modules = 0
        self._guard = TerminalGuard()
        self._clock = clock
        self._began = clock()
        for own in themes.OWN:
            self.register_theme(own)
        # 16 colours cannot carry a palette of our own: the terminal's is used as it is.
        poor = self.console.color_system == "standard"
        self.theme = theme or self._remembered_theme(poor=poor)
        self.stylesheet = FrugalStylesheet(variables=self.get_css_variables())
        self.set_class(self.glyphs is glyphs.ASCII, "-ascii")

    def _remembered_theme(self, *, poor: bool) -> str:
        known = self._look.get("theme", "")
        if known in self.available_themes and (not poor or self.available_themes[known].ansi):
            return str(known)
        return "ansi-dark" if poor else "console-dark"

    def _remember_look(self) -> None:
        """Theme and symbols are the user's, not a profile's."""
        self._look = {"theme": self.theme, "glyphs": self.glyphs.name}
        self.remember("look", "", self._look)

    def remember(self, form: str, profile: str, values: dict[str, Any]) -> bool:
        """Keeps what a form had for the next time; where that fails, one toast tells why, and all else continues."""
        problem = memory.remember(form, profile, values)
        if problem:
            self._warn(problem)
        return not problem

    def _warn(self, text: str) -> None:
        self.notify(safe(text), severity="warning", markup=False, timeout=12)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """`rule` and `dim` for the themes that are not ours."""
        current = self.current_theme
        if current.ansi or not current.background or not current.foreground:
            return {"rule": "ansi_bright_black", "dim": "ansi_bright_black"}
        ground, ink = Color.parse(current.background), Color.parse(current.foreground)
        return {"rule": ground.blend(ink, 0.25).hex, "dim": ground.blend(ink, 0.6).hex}

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), self._guard]

    def get_default_screen(self) -> Screen[None]:
        return OpeningScreen(id="_default")

    @cached_property
    def monitor(self) -> RunMonitor:
        """What this console has seen of the run."""
        from ossconsole.tui.train.monitor import RunMonitor

        return RunMonitor(self.services, self._clock)

    def on_mount(self) -> None:
        self.watch_process()
        self.call_after_refresh(self._open)

    def _open(self) -> None:
        """What the first paint does not wait for."""
        self.services.begin()
        for problem in filter(None, (memory.check(), *exposed_folders())):
            self._warn(problem)
        if isinstance(self.screen, OpeningScreen):
            self.switch_mode(self.initial_mode)
        self.set_interval(TICK_S, self.tick)
        self.key_order.open()

    def tick(self) -> None:
        """Take in what the run did, and show it on the screen in front; a hidden screen costs nothing."""
        self._spare_modules()
        for event in self.monitor.pull():
            self._announce(event)
        self._open_setup_without_credentials()
        # While a mode is shown for the first time it has no screen yet.
        screen = self.screen_stack[-1] if self.screen_stack else None
        if isinstance(screen, ConsoleScreen):
            screen.redraw_bars()
            screen.tick()

    def _open_setup_without_credentials(self) -> None:
        """At the start only, and only where the user has not chosen another screen meanwhile."""
        state = self.services.state
        if not self._undecided or isinstance(state, Starting):
            return
        self._undecided = False
        if isinstance(state, NoCredentials) and isinstance(self.screen, ConsoleScreen):
            self.switch_mode("setup")

    def _spare_modules(self) -> None:
        """Leave what modules hold to themselves: each full pass of the collector over them would hold up keys by 0.1 s,
        or by more once torch is loaded.
        """
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            gc.freeze()

    def on_unmount(self) -> None:
        gc.unfreeze()  # else libraries complain on the terminal, at the end of the process, of what was never let go

    def _announce(self, event: Event) -> None:
        """Tell of what matters while another screen shows; the Train screen has it in its event log."""
        from ossconsole.telemetry.events import ErrorEvent, RunState, State

        if event.time < self._began:
            return  # of a run that this console has found going on
        if isinstance(event, ErrorEvent):
            self.notify(safe(event.message), title="The run", severity="error", markup=False, timeout=15)
        elif self.current_mode != "train" and isinstance(event, State) and event.state.final:
            failed = event.state is RunState.FAILED
            self.notify(
                f"The run has {event.state.value}.", severity="error" if failed else "information", markup=False
            )

    def tell(self, error: ConsoleError) -> None:
        """Show an error of any screen: what happened, and what to do next."""
        self.notify(safe(str(error)), title="That did not work", severity="error", markup=False, timeout=12)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Tell of a worker that has failed, of any screen: those that must not end the console would fail unseen."""
        error = event.worker.error
        if event.state is WorkerState.ERROR and error is not None:
            log.error("the worker %s of %s failed", event.worker.name, event.worker.node, exc_info=error)
            self.tell(ConsoleError(f"Unexpected {type(error).__name__}.", remedy="See the log (f12)."))

    # Actions

    def action_mode(self, mode: str) -> None:
        if not isinstance(self.screen, ConsoleScreen):
            return
        self._undecided = False
        self.switch_mode(mode)

    def action_help(self) -> None:
        from ossconsole.tui.help import HelpScreen

        if isinstance(self.screen, HelpScreen):
            self.pop_screen()
        elif isinstance(self.screen, ConsoleScreen):
            self.push_screen(HelpScreen(self.screen.SCOPE, *self.screen.EXTRA_SCOPES))

    def action_log(self) -> None:
        from ossconsole.tui.help import LogScreen

        if isinstance(self.screen, LogScreen):
            self.pop_screen()
        elif isinstance(self.screen, ConsoleScreen):
            self.push_screen(LogScreen())

    def action_next_theme(self) -> None:
        names = themes.ROTATION
        at = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(at + 1) % len(names)]
        self.notify(f"Theme {self.theme}", timeout=2)
        self._remember_look()

    def action_next_glyphs(self) -> None:
        names = list(glyphs.SETS)
        self.glyphs = glyphs.SETS[names[(names.index(self.glyphs.name) + 1) % len(names)]]
        self.set_class(self.glyphs is glyphs.ASCII, "-ascii")
        self.notify(f"Symbols: {self.glyphs.name}", timeout=2)
        self._remember_look()
        self.tick()

    def action_interrupt(self) -> None:
        text = self.screen.get_selected_text()
        if text:
            self.copy_to_clipboard(text)
            self.notify("Copied.", timeout=2)
        else:
            self.notify("Press q to leave the console, s on the Train screen to stop the run.", timeout=4)

    @work(exclusive=True, group="quit", exit_on_error=False)
    async def action_quit(self) -> None:  # type: ignore[override]
        """Leave; where work is in progress, only after asking."""
        from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen

        run, upload = self.services.run, self.services.upload
        running = run is not None and run.alive and not run.elsewhere
        uploading = upload is not None and upload.alive and not upload.elsewhere
        jobs = sum(job.alive for job in self.jobs)
        if not running and not uploading and not jobs:
            self.exit("")
            return
        if isinstance(self.screen, ConfirmScreen):
            return
        kinds = (("a training run", running), ("an upload", uploading), (f"{counted(jobs, 'job')} on objects", jobs))
        work_words = " and ".join(words for words, busy in kinds if busy)
        choice = await self.push_screen_wait(
            ConfirmScreen(
                "Leave the console?",
                f"There is {work_words} in progress. It can go on without the console: start ossconsole again to see "
                "it. Stopping lets a run write a checkpoint first; an upload or a download can be resumed later.",
                (
                    Choice("", "Stay"),
                    Choice("detach", "Leave it running", "primary"),
                    Choice("stop", "Stop and leave", "warning"),
                ),
            )
        )
        if choice:
            self.exit(choice)


class ActionProvider(Provider):
    """Actions of the screen below the palette, and those that work everywhere."""

    def _valid(self) -> list[Action]:
        screen = self.screen
        known = screen.actions() if isinstance(screen, ConsoleScreen) else list(actions.of("app"))
        return [
            action
            for action in known
            if action.name != "command_palette" and (action.scope == "app" or screen.check_action(action.name, ()))
        ]

    async def discover(self) -> Hits:
        for action in self._valid():
            yield DiscoveryHit(self._title(action), self._run(action), help=action.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for action in self._valid():
            title = self._title(action)
            score = max(matcher.match(title), matcher.match(action.help))
            if score > 0:
                yield Hit(score, matcher.highlight(title), self._run(action), help=action.help)

    @staticmethod
    def _title(action: Action) -> str:
        return f"{actions.SCOPE_TITLES[action.scope]}: {action.label} ({action.key_text})"

    def _run(self, action: Action) -> Callable[[], Awaitable[None]]:
        namespace = self.app if action.scope == "app" else self.screen

        async def run() -> None:
            await self.app.run_action(action.call, namespace)

        return run
