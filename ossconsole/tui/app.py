"""ConsoleApp: modes, themes and toasts; it applies the events of the run four times a second."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from textual import events, work
from textual.binding import BindingType
from textual.color import Color
from textual.command import Provider
from textual.filter import LineFilter
from textual.screen import Screen
from textual.worker import Worker, WorkerState

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import exposed_folders
from ossconsole.config.text import counted
from ossconsole.tui.console import Console, NoCredentials, Services, Starting, WorkChip
from ossconsole.tui.help import OpeningScreen
from ossconsole.tui.kit import actions, glyphs, memory
from ossconsole.tui.kit import canvas as themes
from ossconsole.tui.kit.palette import ActionProvider
from ossconsole.tui.kit.screen import ConsoleScreen
from ossconsole.tui.kit.terminal_bytes import TerminalBackground, TerminalGuard
from ossconsole.tui.kit.text import safe
from ossconsole.tui.kit.textual_internals import CachedStylesheet, ConsoleTextualApp

if TYPE_CHECKING:
    from ossconsole.config.endpoints import EndpointKind
    from ossconsole.storage.jobs.job import Job
    from ossconsole.telemetry.events import Event
    from ossconsole.tui.train.monitor import RunMonitor
    from ossconsole.tui.train.screen import NewRun

TICK_S = 0.25
_BACKGROUND_S = 2.0
_IDLE_S, _YIELD_S = 2.0, 0.01
# Collections of the second generation between full ones: a dashboard causes about one in two seconds.
_COLLECTIONS_IDLE, _COLLECTIONS = 25, 100
log = logging.getLogger(__name__)

# Screens, dialogs and the monitor of the run are imported when they are first needed: the first paint shows none.


def _screen(feature: str, name: str) -> Callable[[], Screen[None]]:
    """Imports and makes the screen of a feature when its mode is first shown."""

    def make() -> Screen[None]:
        screen: Screen[None] = getattr(importlib.import_module(f"ossconsole.tui.{feature}.screen"), name)()
        return screen

    return make


def _welcome() -> Screen[None]:
    from ossconsole.tui.welcome import WelcomeScreen

    return WelcomeScreen()


class ConsoleApp(ConsoleTextualApp):
    """The console over `services`, opened on `initial_mode` (setup, browse, upload or train).

    With "" it opens where the work is: a live run or upload, credentials that are missing, or the welcome; it follows
    what becomes known of them until the first key is pressed.

    `clock` returns Unix seconds. The return code is 0 after quitting and 1 after a crash; `crash_lines` then has one
    line for the terminal. `return_value` is `detach` where running work should continue, `stop` where it should end.
    """

    TITLE = "ossconsole"
    CSS_PATH: ClassVar[list[str | PurePath]] = [
        f"styles/{name}.tcss" for name in ("base", "train", "dialogs", "setup", "browse", "upload")
    ]
    MODES: ClassVar[dict[str, Callable[[], Screen[None]]]] = {  # type: ignore[assignment]
        "setup": _screen("setup", "SetupScreen"),
        "browse": _screen("browse", "BrowseScreen"),
        "upload": _screen("upload", "UploadScreen"),
        "train": _screen("train", "TrainScreen"),
        "welcome": _welcome,
    }
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("app")]
    COMMANDS: ClassVar[set[type[Provider]]] = {ActionProvider}  # type: ignore[assignment]
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
        price_per_hour: float = 0.0,
        tour: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.services = services
        self.initial_mode = initial_mode
        self.price_per_hour, self._tour = price_per_hour, tour
        self._appearance = memory.recall("look", "")
        self.glyphs = glyph_set or glyphs.SETS.get(self._appearance.get("glyphs", ""), glyphs.for_terminal())
        self._follows_work = not initial_mode
        """Show the screen where the work is, until the first key."""
        self.jobs: list[Job] = []
        """See `Console.jobs`."""
        self._modules, self._gc_thresholds = 0, gc.get_threshold()
        self._guard = TerminalGuard()
        self._clock = clock
        self._started_at = clock()
        self.set_keymap({action.id: action.keys for action in actions.ACTIONS if action.keys != action.default_keys})
        for own in themes.OWN:
            self.register_theme(own)
        self._background_asked_at: float | None = None
        self.theme = theme or self._remembered_theme()
        self.stylesheet = CachedStylesheet(variables=self.get_css_variables())
        self.set_class(self.glyphs is glyphs.ASCII, "-ascii")

    def _remembered_theme(self) -> str:
        name = str(self._appearance.get("theme", ""))
        return themes.theme_for(name if name in themes.ROTATION else themes.DARK.name, self.console.color_system)

    def _remember_appearance(self) -> None:
        """Theme and symbols belong to the user, not to a profile."""
        self._appearance = {"theme": themes.base_of(self.theme), "glyphs": self.glyphs.name}
        self.remember("look", "", self._appearance)

    def _ask_background(self) -> None:
        """Ask the terminal for its background, unless the user has selected a theme."""
        if themes.base_of(self.theme) == themes.DARK.name and "theme" not in self._appearance:
            self._background_asked_at = time.monotonic()
            self.query_background()

    def on_terminal_background(self, event: TerminalBackground) -> None:
        """Use the light theme on a light terminal; a late answer changes nothing, as the user works already."""
        asked, self._background_asked_at = self._background_asked_at, None
        if asked is not None and time.monotonic() - asked < _BACKGROUND_S and event.is_light:
            self.theme = themes.theme_for(themes.LIGHT.name, self.console.color_system)

    def remember(self, form: str, profile: str, values: dict[str, Any]) -> bool:
        """See `Console.remember`."""
        problem = memory.remember(form, profile, values)
        if problem:
            self._warn(problem)
        return not problem

    def _warn(self, text: str) -> None:
        self.notify(safe(text), severity="warning", markup=False, timeout=12)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """The variables `rule`, `dim` and `cursor` for the themes of Textual."""
        current = self.current_theme
        if current.ansi or not current.background or not current.foreground:
            return {"rule": "ansi_bright_black", "dim": "ansi_bright_black", "cursor": "ansi_default"}
        back, front = Color.parse(current.background), Color.parse(current.foreground)
        return {
            "rule": back.blend(front, 0.25).hex,
            "dim": back.blend(front, 0.6).hex,
            "cursor": back.blend(front, 0.2).hex,
        }

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's filters and the guard of the terminal."""
        return [*super().get_line_filters(), self._guard]

    def get_default_screen(self) -> Screen[None]:
        """The screen of the first paint."""
        return OpeningScreen(id="_default")

    @property
    def last_checkpoint(self) -> str:
        """See `Console.last_checkpoint`."""
        checkpoint = self.monitor.view.last_checkpoint
        return checkpoint.key if checkpoint is not None else ""

    @cached_property
    def monitor(self) -> RunMonitor:
        """The newest run as this console has seen it."""
        from ossconsole.tui.train.monitor import RunMonitor

        return RunMonitor(self.services, self._clock)

    @property
    def endpoint(self) -> EndpointKind | None:
        """See `Console.endpoint`."""
        return self.monitor.endpoint

    @property
    def now(self) -> float:
        """The time of the console's clock, in Unix seconds."""
        return self._clock()

    def on_mount(self) -> None:
        """Open the first mode after the first paint."""
        self.watch_process()
        gc.set_threshold(*self._gc_thresholds[:2], 1_000_000)  # full collections are run by `tick`
        self.call_after_refresh(self._open)

    def _open(self) -> None:
        """Everything that would delay the first paint."""
        self.services.begin()
        self._ask_background()
        for problem in filter(None, (memory.check(), *exposed_folders())):
            self._warn(problem)
        if isinstance(self.screen, OpeningScreen):
            profile = self.services.state.profile
            nothing_yet = profile is None or profile.simulated
            self.switch_mode(self.initial_mode or ("welcome" if nothing_yet else "browse"))
        self.set_interval(TICK_S, self.tick)
        self.key_order.open()

    def tick(self) -> None:
        """Apply the events of the run and update the visible screen; hidden screens cost nothing."""
        self._freeze_modules()
        self._collect_garbage()
        if self.monitor.reading is None:
            self._pull()
        self._follow_work()
        # A mode that opens for the first time has no screen yet.
        screen = self.screen_stack[-1] if self.screen_stack else None
        if isinstance(screen, ConsoleScreen):
            screen.redraw_bars()
            screen.tick()
            if self._tour and self.monitor.view.last_step is not None:  # its panels have something to show
                self._tour = False
                self.action_tour()

    def _pull(self) -> None:
        """Apply the events of the run; those of a long record in portions, so that keys are handled in between."""
        for event in self.monitor.pull():
            self._announce(event)
        if self.monitor.reading is not None:
            self.set_timer(_YIELD_S, self._pull)

    def _follow_work(self) -> None:
        """Show the screen where the work is; other processes report theirs seconds after the start."""
        if not self._follows_work or not self.screen_stack or not isinstance(self.screen, ConsoleScreen):
            return
        run, upload, state = self.services.run, self.services.upload, self.services.state
        preparing = isinstance(state, Starting) and state.stages  # its upload is that of the sample dataset
        if run is not None and run.alive:
            mode = "train"
        elif upload is not None and upload.alive and not preparing:
            mode = "upload"
        elif isinstance(state, NoCredentials):
            mode = "setup"
        else:
            return
        self._follows_work = False
        self.switch_mode(mode)

    async def on_event(self, event: events.Event) -> None:
        """The first key ends the search for the screen where the work is."""
        if isinstance(event, events.Key):
            self._follows_work = False
        await super().on_event(event)

    @property
    def chips(self) -> Sequence[WorkChip]:
        """See `Console.chips`."""
        run, upload = self.services.run, self.services.upload
        if run is None and upload is None and not self.jobs:
            return ()
        from ossconsole.tui import activity

        chips = [
            activity.run_chip(self.monitor.view, self.glyphs, alive=run.alive) if run is not None else None,
            activity.upload_chip(upload, self.glyphs) if upload is not None else None,
            activity.jobs_chip(self.jobs, self.glyphs),
        ]
        return [chip for chip in chips if chip is not None]

    def _freeze_modules(self) -> None:
        """Exclude the objects of modules from full collections, which delay keys by 0.1 s, and by more with torch."""
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            gc.freeze()

    def _collect_garbage(self) -> None:
        """Run a full collection while no key is pressed: it takes 0.1 s, and opening a dialog often caused one."""
        idle = self.pace.since_key(time.monotonic()) > _IDLE_S
        if gc.get_count()[2] > (_COLLECTIONS_IDLE if idle else _COLLECTIONS):
            gc.collect()

    def on_unmount(self) -> None:
        """End auto A/B. Collect garbage as usual again; else libraries report leaks on the terminal at the end."""
        if "monitor" in self.__dict__:
            self.monitor.leave("the console was closed")
        gc.unfreeze()
        gc.set_threshold(*self._gc_thresholds)

    def _announce(self, event: Event) -> None:
        """Report errors, and on other screens the end of the run; the card of a failed run would be below its error."""
        from ossconsole.telemetry.events import ErrorEvent, RunState, State

        failed = self.monitor.view.state is RunState.FAILED
        if event.time < self._started_at:
            return  # of a run that was running before this console
        if isinstance(event, ErrorEvent):
            if not (failed and self.screen_stack and getattr(self.screen, "SCOPE", "") == "train"):
                self.notify(safe(event.message), title="Training run", severity="error", markup=False, timeout=15)
        elif self.current_mode != "train" and isinstance(event, State) and event.state.final:
            self.notify(
                f"The run has {event.state.value}.", severity="error" if failed else "information", markup=False
            )

    def show_error(self, error: ConsoleError) -> None:
        """See `Console.show_error`."""
        self.notify(safe(str(error)), title="Error", severity="error", markup=False, timeout=12)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Report a failed worker of any screen: with `exit_on_error=False` its error would stay unseen."""
        error = event.worker.error
        if event.state is WorkerState.ERROR and error is not None:
            log.error("the worker %s of %s failed", event.worker.name, event.worker.node, exc_info=error)
            self.show_error(
                ConsoleError(
                    f"Unexpected {type(error).__name__}.",
                    remedy=f"See the log ({actions.app_key_text('log')}).",
                )
            )

    @work(exclusive=True, group="dialog", exit_on_error=False)
    async def new_run(self, resume: str = "", known: Mapping[str, Any] | None = None) -> None:
        """See `Console.new_run`."""
        from ossconsole.tui.train.screen import NewRunScreen

        profile, run = self.services.profile, self.services.run
        if run is not None and run.alive:
            remedy = f"Press {actions.app_key_text('work')}, then s, to stop it."
            self.show_error(ConsoleError("A run is in progress.", remedy=remedy))
            return
        try:
            if self.services.evaluation is not None:
                self.services.evaluation.refuse_others("a run")
        except ConsoleError as error:
            self.show_error(error)
            return
        if profile is not None:
            new = await self.push_screen_wait(NewRunScreen(profile, resume=resume, known=known or {}))
            if new is not None and self.services.profile != profile:
                self.show_error(ConsoleError("Another profile was opened: no run was started.", remedy="Try again."))
            elif new is not None:
                self._start_run(new, show=bool(resume), typed=new.settings.resume not in ("", resume))

    @work(thread=True, group="start", exit_on_error=False)
    def _start_run(self, new: NewRun, *, show: bool, typed: bool) -> None:
        """In a thread: where another process has claimed the checkpoint prefix, all processes are queried.

        Where the checkpoint to resume was `typed`, the run takes over the settings that it needs.
        """
        try:
            known = self.services.settings_to_resume(new.settings) if typed else {}
            self.services.start_run(msgspec.structs.replace(new.settings, **known), new.dataset_prefix)
            if known:
                taken = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items())
                self.call_from_thread(self.notify, f"As in the checkpoint: {taken}.", markup=False)
        except ConsoleError as error:
            self.call_from_thread(self.show_error, error)
        else:
            if show:
                self.call_from_thread(self.action_mode, "train")

    # Actions

    def action_mode(self, mode: str) -> None:
        """Show another mode; ignored while a dialog is open."""
        if not isinstance(self.screen, ConsoleScreen):
            return
        self._follows_work = False
        self.switch_mode(mode)

    def action_work(self) -> None:
        """Show the work in progress, the failed one first; further calls show the others."""
        modes = [chip.mode for chip in sorted(self.chips, key=lambda chip: not chip.failed)]
        if not modes:
            self.notify("No run, upload or job is in progress.", timeout=3)
            return
        here = modes.index(self.current_mode) if self.current_mode in modes else -1
        self.action_mode(modes[(here + 1) % len(modes)])

    def action_tour(self) -> None:
        """Start the tour."""
        from ossconsole.tui import tour

        tour.start(self)

    def action_help(self) -> None:
        """Show or close the help."""
        from ossconsole.tui.help import HelpScreen

        if isinstance(self.screen, HelpScreen):
            self.pop_screen()
        elif isinstance(self.screen, ConsoleScreen):
            self.push_screen(HelpScreen(self.screen.SCOPE, *self.screen.EXTRA_SCOPES))

    def action_log(self) -> None:
        """Show or close the log."""
        from ossconsole.tui.help import LogScreen

        if isinstance(self.screen, LogScreen):
            self.pop_screen()
        elif isinstance(self.screen, ConsoleScreen):
            self.push_screen(LogScreen())

    def action_next_theme(self) -> None:
        """Use the next theme, and remember it."""
        names = list(dict.fromkeys(themes.theme_for(name, self.console.color_system) for name in themes.ROTATION))
        at = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(at + 1) % len(names)]
        self.notify(f"Theme {self.theme}", timeout=2)
        self._remember_appearance()

    def action_next_glyphs(self) -> None:
        """Use the next set of symbols, and remember it."""
        names = list(glyphs.SETS)
        self.glyphs = glyphs.SETS[names[(names.index(self.glyphs.name) + 1) % len(names)]]
        self.set_class(self.glyphs is glyphs.ASCII, "-ascii")
        self.notify(f"Symbols: {self.glyphs.name}", timeout=2)
        self._remember_appearance()
        self.tick()

    def action_interrupt(self) -> None:
        """Copy the selected text, or show how to quit."""
        text = self.screen.get_selected_text()
        if text:
            self.copy_to_clipboard(text)
            self.notify("Copied.", timeout=2)
        else:
            self.notify("q quits the console. 4, then s, stops the run.", timeout=4)

    def action_suspend(self) -> None:
        """Suspend the console as any program of the shell; not while work of this process would stop with it."""
        names = self._own_work()
        if names:
            self.notify(f"{_subject(names)} would pause, too. Press q to leave the console.", timeout=6)
        elif isinstance(self.screen, ConsoleScreen):
            self.action_suspend_process()

    def _own_work(self) -> list[str]:
        """What this process works on, in words; work of other processes continues without the console."""
        run, upload = self.services.run, self.services.upload
        running = run is not None and run.alive and not run.is_remote
        uploading = upload is not None and upload.alive and not upload.is_remote
        jobs = sum(job.alive for job in self.jobs)
        kinds = (("a training run", running), ("an upload", uploading), (counted(jobs, "object job"), jobs))
        return [name for name, busy in kinds if busy]

    @work(exclusive=True, group="quit", exit_on_error=False)
    async def action_quit(self) -> None:  # type: ignore[override]
        """Quit, after a question where work is running."""
        from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen

        names = self._own_work()
        if not names:
            self.exit("")
            return
        if isinstance(self.screen, ConfirmScreen):
            return
        plural = len(names) > 1 or names[0].endswith("s")
        choice = await self.push_screen_wait(
            ConfirmScreen(
                "Quit the console?",
                f"{_subject(names)} {'are' if plural else 'is'} still running. "
                f"{'They' if plural else 'It'} can continue in the background; start ossconsole again to see "
                f"{'them' if plural else 'it'}. If stopped, a run writes a checkpoint first; an upload or a download "
                "can be resumed later.",
                (
                    Choice("", "Stay"),
                    Choice("detach", "Run in background", "primary"),
                    Choice("stop", "Stop and quit", "warning"),
                ),
            )
        )
        if choice:
            self.exit(choice)


def _subject(names: Sequence[str]) -> str:
    """The names as the subject of a sentence."""
    text = " and ".join(names)
    return f"{text[:1].upper()}{text[1:]}"


if TYPE_CHECKING:
    _console: type[Console] = ConsoleApp  # mypy: the App is what the screens rely on
