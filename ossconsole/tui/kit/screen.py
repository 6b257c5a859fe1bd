"""ConsoleScreen: the frame of every screen (mode bar, key bar); and the lines for a bucket that is not ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar, cast

import msgspec
from textual import events
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Static
from textual.worker import Worker

from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import FLAGS_NAME, Profile
from ossconsole.config.text import counted
from ossconsole.terminal.tty import MIN_COLUMNS, MIN_ROWS
from ossconsole.tui.console import (
    Console,
    ConsoleState,
    NoCredentials,
    PreparationStage,
    Services,
    StageState,
    Starting,
    Unavailable,
)
from ossconsole.tui.kit import actions
from ossconsole.tui.kit.actions import KeyAction, key_text
from ossconsole.tui.kit.canvas import Canvas, Panel
from ossconsole.tui.kit.glyphs import ASCII, Glyphs
from ossconsole.tui.kit.text import Line, safe, shorten, shorten_middle, wrap
from ossconsole.tui.kit.textual_internals import Paced

T = TypeVar("T")

MODES = (("setup", "Setup"), ("browse", "Browse"), ("upload", "Upload"), ("train", "Train"))
_POLL_S = 0.05


class _ConsoleAccess:
    """Typed access to the App for screens, dialogs and bars."""

    app: Any

    @property
    def console(self) -> Console:
        """The App, as far as a screen may use it."""
        return cast("Console", self.app)

    @property
    def services(self) -> Services:
        """Everything outside the App."""
        return self.console.services

    @property
    def glyphs(self) -> Glyphs:
        """The characters to draw with."""
        return cast("Glyphs", self.app.glyphs)

    @property
    def plain(self) -> bool:
        """True where an image can only be drawn with letters: without colours, or in ASCII."""
        return self.glyphs is ASCII or bool(self.app.no_color)

    def show_error(self, error: ConsoleError) -> None:
        """Show an error as a toast: what happened, and what to do next."""
        self.console.show_error(error)

    async def request(self, call: Callable[[], T]) -> T | None:
        """Run a blocking call in a thread; None, after a toast, where it raises ConsoleError."""
        try:
            return await asyncio.to_thread(call)
        except ConsoleError as error:
            self.show_error(error)
            return None

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Report a failed worker."""
        self.console.on_worker_state_changed(event)


class ModeBar(_ConsoleAccess, Canvas):
    """The modes with their keys, the work in progress, then the endpoint in use, the bucket and the profile."""

    _compact = False
    _work_at = 0
    """The column of the first chip; the width of the bar where there is none."""

    def paint(self, width: int, _height: int) -> Sequence[Line]:
        variants = self._variants()
        self._compact = self._tabs(compact=False).width + sum(part.width for part in variants[0]) >= width
        line = self._tabs(compact=self._compact)
        room = width - line.width
        work, status = next(
            ((work, status) for work, status in variants if work.width + status.width < room), (Line(), Line())
        )
        self._work_at = width - status.width - work.width if work.width else width
        return [line.to(width - status.width - work.width, "chip").extend(work).extend(status)]

    def _variants(self) -> list[tuple[Line, Line]]:
        """The work in progress and the state of the bucket, from the longest variant to the shortest."""
        chips = self.console.chips
        named = any(chip.names_endpoint for chip in chips)
        statuses = self._statuses(endpoint=not named)
        if not chips:
            return [(Line(), status) for status in statuses]
        key = key_text(actions.key_of("app", "work"))
        long, short = (
            self._chips(key, [Line(*chip.long) for chip in chips]),
            self._chips(key, [Line(*chip.short) for chip in chips]),
        )
        first = self._chips(key, [Line(*next((chip for chip in chips if chip.failed), chips[0]).short)])
        variants = [(work, status) for work in (long, short) for status in (*statuses, Line())]
        return [*variants, (first, Line())]

    @staticmethod
    def _chips(key: str, lines: Sequence[Line]) -> Line:
        found = Line((f" {key} ", "chip-key"))
        for number, line in enumerate(lines):
            found.add("  " if number else "", "chip").extend(line)
        return found.add(" ", "chip")

    def _tabs(self, *, compact: bool) -> Line:
        line = Line()
        for number, (mode, title) in enumerate(MODES, 1):
            on = mode == self.console.current_mode
            if compact:
                line.add(f"{number} {title}", "chip-on" if on else "chip-dim").add(" ", "chip")
            else:
                line.add(f" {number} {title} ", "chip-on" if on else "chip-dim")
        return line

    def _statuses(self, *, endpoint: bool) -> list[Line]:
        """The state of the bucket, from the longest variant to the shortest; with the endpoint in use or without."""
        state, profile = self.services.state, self.services.profile
        if profile is None:
            return [Line((f"{self._unusable(state)} ", "chip"))]
        kind = self.console.endpoint if endpoint else None
        named = (self.glyphs.named(kind), f"chip-{kind}") if kind else ("", "chip")
        bucket = f"oss://{shorten_middle(safe(profile.bucket), 24)}"
        sandbox = f"sandbox: {'preparing' if isinstance(state, Starting) else 'simulated'}"
        name = sandbox if profile.simulated else shorten_middle(safe(profile.name), 20)
        short = "simulated" if profile.simulated else ""
        readonly = "read-only" if self.services.readonly else ""
        return [
            self._status(named, *((text, "chip") for text in (*variant, readonly)))
            for variant in ((bucket, name), (name,), (short,), ())
        ]

    @staticmethod
    def _unusable(state: ConsoleState) -> str:
        if state.profile is None:
            return "sandbox: failed" if isinstance(state, Unavailable) else "sandbox: starting"
        flags_only = state.profile.name == FLAGS_NAME
        name = shorten_middle(safe(f"oss://{state.profile.bucket}" if flags_only else state.profile.name), 24)
        if isinstance(state, NoCredentials):
            return f"{name}: no credentials"
        return f"{name}: failed" if isinstance(state, Unavailable) else f"{name}: opening"

    @staticmethod
    def _status(*parts: tuple[str, str]) -> Line:
        line = Line()
        for text, style in parts:
            if text:
                line.add("  " if line.width else "", "chip").add(text, style)
        return line.add(" ", "chip")

    def on_click(self, event: events.Click) -> None:
        """Open the mode under the mouse, or the work in progress."""
        if event.x >= self._work_at:
            self.console.action_work()
            return
        column = 0
        for number, (mode, title) in enumerate(MODES, 1):
            column += len(f"{number} {title} ") + (not self._compact)
            if event.x < column:
                self.console.action_mode(mode)
                return


class KeyBar(Canvas):
    """The actions that work now, by their order in the footer; those that do not fit are counted."""

    def __init__(self, actions: Callable[[], Sequence[tuple[KeyAction, bool]]]) -> None:
        """`actions` are the actions, each with whether it has an effect now."""
        super().__init__()
        self._actions = actions

    def paint(self, width: int, _height: int) -> Sequence[Line]:
        wanted = sorted(self._actions(), key=lambda item: -item[0].footer)
        shown = self._fitting(wanted, width)
        line = Line()
        for action, enabled in shown:
            line.add(" ", "chip").add(action.key_text, "chip-key" if enabled else "chip-dim")
            line.add(f" {action.footer_label} ", "chip" if enabled else "chip-dim")
        hidden = len(wanted) - len(shown)
        more = Line((f" {key_text('question_mark')} +{hidden} more ", "chip-dim")) if hidden else Line()
        return [line.to(width - more.width, "chip").extend(more)]

    @staticmethod
    def _fitting(wanted: Sequence[tuple[KeyAction, bool]], width: int) -> Sequence[tuple[KeyAction, bool]]:
        sizes = [len(f" {action.key_text} {action.footer_label} ") for action, _ in wanted]
        if sum(sizes) <= width:
            return wanted
        room = width - len(" ? +99 more ")
        return next((wanted[:count] for count in range(len(wanted) - 1, 0, -1) if sum(sizes[:count]) <= room), [])


class ConsoleScreen(_ConsoleAccess, Paced, Screen[None]):
    """Subclasses set SCOPE and yield their widgets in `body`; `tick` runs 4 times a second while the screen shows."""

    SCOPE: ClassVar[str]
    """The scope of the screen's actions, see `ossconsole.tui.kit.actions`."""
    EXTRA_SCOPES: ClassVar[tuple[str, ...]] = ()
    # Nothing has the focus at first: in an input the keys of the modes would be typed.
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave_input", show=False)]
    _focused_before: Widget | None = None
    """The focus before the terminal was too small."""

    def compose(self) -> ComposeResult:
        """Both bars and the body."""
        yield ModeBar()
        with Container(id="body"):
            yield from self.body()
        yield Static(id="too-small", markup=False)
        yield KeyBar(self.live_actions)

    def body(self) -> ComposeResult:
        """The widgets between the two bars."""
        raise NotImplementedError

    def tick(self) -> None:
        """Show the changes; by default all panels are painted again."""
        for panel in self.query(Panel):
            panel.redraw()

    def redraw_bars(self) -> None:
        """Paint mode bar and key bar; either may be missing while the screen is composed or removed."""
        for bar in self.query(Canvas):
            if isinstance(bar, ModeBar | KeyBar):
                bar.redraw()

    def actions(self) -> list[KeyAction]:
        """All actions of the screen, its own scope first."""
        return [action for scope in (self.SCOPE, *self.EXTRA_SCOPES, "app") for action in actions.of(scope)]

    def live_actions(self) -> list[tuple[KeyAction, bool]]:
        """The actions of the footer that exist now, each with whether it has an effect."""
        live = []
        for action in self.actions():
            allowed = self.check_action(action.name, ()) if action.scope != "app" else True
            if action.footer and allowed is not False:
                live.append((replace(action, label_now=self.label_now(action.name)), allowed is True))
        return live

    def label_now(self, _action: str) -> str:
        """What an action does next, where that is not its label: a key that pauses also continues. By default ""."""
        return ""

    def on_resize(self, event: events.Resize) -> None:
        """Replace the body by a notice where the terminal is too small; the focus returns with the body."""
        small = event.size.width < MIN_COLUMNS or event.size.height < MIN_ROWS
        if small and not self.has_class("-too-small"):
            self._focused_before = self.focused
        elif not small and self.has_class("-too-small"):
            self.call_after_refresh(self._restore_focus)
        self.set_class(small, "-too-small")
        if small:
            self.query_one("#too-small", Static).update(
                f"This terminal has {event.size.width} x {event.size.height} cells;\n"
                f"the console needs {MIN_COLUMNS} x {MIN_ROWS}.\n\nMake it larger, or press q to quit."
            )

    def _restore_focus(self) -> None:
        widget = self._focused_before
        if widget is not None and widget.is_attached:
            self.set_focus(widget)

    async def ask(self, dialog: ConsoleModal) -> Any:
        """The answer to a dialog, which opens once this screen shows and no other dialog covers it."""
        while not self.is_active:  # noqa: ASYNC110 - Textual has no event for it
            await asyncio.sleep(_POLL_S)
        return await self.app.push_screen_wait(dialog)

    def action_leave_input(self) -> None:
        """Leave the input, so that keys are commands again."""
        self.set_focus(None)

    def action_leave(self) -> None:
        """Close the screen and return to the one below."""
        self.dismiss(None)

    def on_screen_resume(self) -> None:
        """Paint, as nothing was painted while another screen showed."""
        self.redraw_bars()
        self.tick()


_VIM = {
    "j": "down",
    "k": "up",
    "h": "left",
    "l": "right",
    "g": "home",
    "G": "end",
    "ctrl+d": "pagedown",
    "ctrl+u": "pageup",
}
"""Movement as in vim: in lists, trees, texts and between the buttons of a dialog."""


class ConsoleModal(_ConsoleAccess, Paced, ModalScreen[Any]):
    """A dialog over a screen; Escape closes it with None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", show=False),
        *(Binding(key, f"app.simulate_key('{arrow}')", show=False) for key, arrow in _VIM.items()),
    ]

    def frame(
        self,
        title: str,
        keys: str = "",
        *,
        classes: str = "",
        id: str | None = None,  # noqa: A002 - Textual's name
        scroll: bool = False,
    ) -> Vertical | VerticalScroll:
        """The framed container of the dialog, with the title above and the keys below."""
        frame = (VerticalScroll if scroll else Vertical)(classes=f"dialog {classes}".strip(), id=id)
        frame.border_title = Content(safe(title))
        if keys:
            frame.border_subtitle = keys
        return frame

    def dismiss(self, result: Any = None) -> AwaitComplete:
        """Close the dialog with a result; nothing where that was done: several clicks may arrive together."""
        return super().dismiss(result) if self.is_active else AwaitComplete()

    def action_back(self) -> None:
        """Close the dialog without a result."""
        self.dismiss(None)


# Lines for a bucket that is not ready


def notice(state: ConsoleState, glyphs: Glyphs, width: int) -> list[Line]:
    """Why the bucket cannot be used yet, and what to do; empty once it can."""
    if state.usable:
        return []
    where = profile_label(state.profile)
    if isinstance(state, NoCredentials):
        line = Line((f" No credentials for {where}. ", "warn"), ("Press ", "text"), ("1", "primary"))
        return [line.add(", then ", "text").add(state.key, "primary").add(".", "text")]
    if isinstance(state, Unavailable):
        subject = "The sandbox" if state.profile is None else where[:1].upper() + where[1:]
        text = safe(f"{subject} cannot be used. {state.reason}")
        return [*(Line((f" {part}", "bad")) for part in wrap(text, width - 2)), retry_hint()]
    if state.profile is None:
        return [Line((f" The sandbox is starting{glyphs.ellipsis}", "dim"))]
    return [Line((f" Reading the credentials of {where}{glyphs.ellipsis}", "dim"))]


def retry_hint() -> Line:
    """The keys that open the profile once more."""
    return Line((" Press ", "text"), ("1", "primary"), (", then ", "text"), ("r", "primary"), (", to retry.", "text"))


def profile_label(profile: Profile | None) -> str:
    """The profile in words; one that is given by flags alone has no name and is called by its bucket."""
    if profile is None:
        return "the sandbox"
    return f"oss://{profile.bucket}" if profile.name == FLAGS_NAME else f"profile {profile.name}"


def preparation(services: Services, glyphs: Glyphs, width: int) -> list[Line]:
    """The progress of the sample dataset in a line; empty once the dataset is complete."""
    state = services.state
    if not isinstance(state, Starting) or not state.opened:
        return []
    active = next((stage for stage in preparation_stages(services) if stage.state is StageState.ACTIVE), None)
    text = f": {active.label} {active.detail}".rstrip() if active else glyphs.ellipsis
    shown = shorten(f" Preparing the sample dataset{safe(text)}", width, glyphs.ellipsis)
    return [Line((shown, "warn"))]


def stage_lines(glyphs: Glyphs, stages: Sequence[PreparationStage], width: int) -> list[Line]:
    """The stages of the preparation with their progress; a failed one with its reason in full."""
    marks = {
        StageState.WAITING: glyphs.waiting,
        StageState.ACTIVE: glyphs.running,
        StageState.DONE: glyphs.done,
        StageState.FAILED: glyphs.failed,
    }
    lines = []
    label_width = max((len(stage.label) for stage in stages), default=0) + 5
    for stage in stages:
        style = _STAGE_STYLES[stage.state]
        line = Line((f"  {marks[stage.state]} {safe(stage.label)}", style)).to(label_width)
        if stage.state is StageState.ACTIVE and stage.share is not None:
            full = round(_STAGE_BAR * min(1.0, stage.share))
            line.add(glyphs.bar_full * full, "primary").add(glyphs.bar_empty * (_STAGE_BAR - full), "rule").add("  ")
        first, *rest = wrap(safe(stage.detail), width - line.width - 1) or [""]
        detail_style = "text" if stage.state is StageState.FAILED else "dim"
        lines.append(line.add(first, detail_style))
        lines += [Line().to(label_width).add(part, detail_style) for part in rest]
    return lines


_STAGE_STYLES = {
    StageState.WAITING: "dim",
    StageState.ACTIVE: "strong",
    StageState.DONE: "good",
    StageState.FAILED: "bad",
}
_STAGE_BAR = 20


def preparation_stages(services: Services) -> Sequence[PreparationStage]:
    """The work before the first run; the active stage shows the progress of a running upload."""
    stages, upload = services.state.stages, services.upload
    if upload is None or not upload.alive:
        return stages
    progress = upload.progress()
    done = f"{progress.done:,} of " if progress.total_known else ""
    detail = done + counted(progress.total if progress.total_known else progress.done, "sample")
    return [
        msgspec.structs.replace(stage, detail=detail)
        if stage.state is StageState.ACTIVE and not stage.detail
        else stage
        for stage in stages
    ]
