"""TrainScreen: the run, live, with its controls; NewRunScreen: the settings of the next run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal, Vertical
from textual.widgets import Button, Input, Label, Select, Static

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.telemetry.auto import AutoCompare
from ossconsole.telemetry.events import RunState
from ossconsole.training.settings import TrainSettings
from ossconsole.tui.console import ConsoleState, Ready, RunHandle
from ossconsole.tui.kit import actions, memory
from ossconsole.tui.kit.actions import Action
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, PromptScreen
from ossconsole.tui.kit.screen import ConsoleModal, notice, preparation, stages
from ossconsole.tui.kit.text import number
from ossconsole.tui.train.dashboard import Dashboard, Source

FORM = "train"


@dataclass(frozen=True)
class Field:
    """One setting in the form; `hint` stands in the empty input and below it while it has the focus."""

    name: str
    label: str
    hint: str


FIELDS = (
    Field("epochs", "Epochs", "times through the training set"),
    Field("max_steps", "Max steps", "end after so many steps; 0: no limit"),
    Field("batch_size", "Batch size", "samples per step"),
    Field("workers", "Workers", "reader processes, one at least"),
    Field("processes", "GPUs", "train on so many of this machine's; 0: on all of them"),
    Field("endpoint", "Endpoint", "where the first batches come from"),
    Field("switch_every", "Switch every", "alternate endpoints every N steps; 0: by hand"),
    Field("learning_rate", "Learning rate", "the peak; it warms up, then follows a cosine to 0"),
    Field("image_size", "Image size", "crop to so many px on the device; 0: as stored"),
    Field("weights", "Weights", "none, imagenet, a file, or oss://bucket/key"),
    Field("resume", "Resume from", "a checkpoint's key, or latest; empty: from the start"),
    Field("seed", "Seed", "order and augmentation follow from it"),
    Field("checkpoint_every", "Save every", "also save every N steps; 0: after each epoch"),
)


class NewRunScreen(ConsoleModal):
    """Returns TrainSettings, or None where the user went back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", show=False),
        Binding("ctrl+s", "start", "Start", show=False),
        Binding("ctrl+r", "defaults", "Defaults", show=False),
    ]

    def __init__(self, profile: Profile, *, resume: str = "") -> None:
        """`resume` is the checkpoint to go on from, which is not remembered: one goes on from it once."""
        super().__init__()
        self._profile = profile
        known = memory.recall(FORM, profile.name) | {"resume": resume}
        self._known = msgspec.to_builtins(TrainSettings()) | known

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog", id="new-run") as dialog:
            dialog.border_title = "New run"
            dialog.border_subtitle = "enter starts · ^r defaults · esc back"
            with Grid(id="fields"):
                for field in FIELDS:
                    yield Label(field.label)
                    yield self._control(field)
            yield Static(id="hint", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Back", id="back", compact=True)
                yield Button("Start", id="start", variant="primary", compact=True)

    def _control(self, field: Field) -> Input | Select[str]:
        value = self._known.get(field.name, "")
        if field.name == "endpoint":
            kinds = [(self.glyphs.named(kind), kind.value) for kind in self._profile.endpoints]
            known = value if value in {kind for _, kind in kinds} else EndpointKind.STANDARD.value
            return Select(kinds, value=known, allow_blank=False, compact=True, id=f"field-{field.name}")
        return Input(str(value), compact=True, id=f"field-{field.name}", select_on_focus=True)

    def on_mount(self) -> None:
        self.query_one("#field-epochs").focus()

    def on_descendant_focus(self) -> None:
        focused = self.focused
        name = (focused.id or "").removeprefix("field-") if focused else ""
        hint = next((field.hint for field in FIELDS if field.name == name), "")
        self.query_one("#hint", Static).set_class(False, "-error").update(hint)

    def on_input_submitted(self) -> None:
        self.action_start()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "start":
            self.action_start()
        else:
            self.action_back()

    def action_back(self) -> None:
        self.dismiss(None)

    def action_defaults(self) -> None:
        defaults = msgspec.to_builtins(TrainSettings())
        for field in FIELDS:
            control = self.query_one(f"#field-{field.name}")
            if isinstance(control, Input):
                control.value = str(defaults[field.name])
            elif isinstance(control, Select):
                control.value = defaults[field.name]

    def action_start(self) -> None:
        values: dict[str, Any] = {}
        for field in FIELDS:
            control = self.query_one(f"#field-{field.name}")
            values[field.name] = str(control.value).strip() if isinstance(control, Input | Select) else ""
        try:
            settings = msgspec.convert(values, TrainSettings, strict=False)
        except (msgspec.ValidationError, ConsoleError) as error:
            self._refuse(str(error))
            return
        self._remember(settings)
        self.dismiss(settings)

    def _refuse(self, reason: str) -> None:
        """Show why, and go to the field it is about."""
        self.query_one("#hint", Static).set_class(True, "-error").update(reason)
        for field in FIELDS:
            if f"$.{field.name}`" in reason:
                self.query_one(f"#field-{field.name}").focus()
                self.query_one("#hint", Static).set_class(True, "-error").update(f"{field.label}: {_plain(reason)}")

    def _remember(self, settings: TrainSettings) -> None:
        known = msgspec.to_builtins(settings)
        self.console.remember(FORM, self._profile.name, {field.name: known[field.name] for field in FIELDS})


def _plain(reason: str) -> str:
    """A validation message without the path, which the label says."""
    return reason.split(" - at ", maxsplit=1)[0].replace("Expected `int`", "a whole number is needed").replace("`", "")


class TrainScreen(Dashboard):
    """Live dashboard and the controls of the run."""

    SCOPE = "train"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("train")]

    @property
    def source(self) -> Source:
        return self.console.monitor

    @property
    def state(self) -> ConsoleState:
        return msgspec.structs.replace(self.services.state, stages=tuple(stages(self.services)))

    @property
    def starting(self) -> bool:
        return self.console.monitor.busy

    @property
    def steered(self) -> bool:
        return True

    @property
    def auto_words(self) -> str:
        monitor = self.console.monitor
        shown = monitor.auto or monitor.control
        return shown.words if shown else ""

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        busy = self.console.monitor.busy
        if action == "new_run":  # while the bucket is being made ready the key says why it does nothing
            return None if busy or self.services.readonly else True
        if action in {"switch", "auto_compare"}:
            return True if busy and self.context.has_accelerated else None
        if action == "control":
            return True if busy and self.console.monitor.view.delivering is not None else None
        if action in {"pause", "stop", "checkpoint", "learning_rate"}:
            return True if busy else None
        return super().check_action(action, parameters)

    def live_actions(self) -> list[tuple[Action, bool]]:
        ready = isinstance(self.services.state, Ready)
        return [(action, live and (ready or action.name != "new_run")) for action, live in super().live_actions()]

    def action_pause(self) -> None:
        run = self.console.monitor.run
        if run is None:
            return
        if run.state is RunState.PAUSED:
            run.resume()
        else:
            run.pause()

    @work(exclusive=True, group="stop", exit_on_error=False)
    async def action_stop(self) -> None:
        run = self.console.monitor.run
        if run is None:
            return
        choice = await self.app.push_screen_wait(
            ConfirmScreen(
                "Stop the run?",
                "The step in progress ends, a checkpoint is written, and the run is over. It can be resumed later.",
                (Choice("", "Go on"), Choice("stop", "Stop", "warning")),
            )
        )
        if choice == "stop":
            self._end(run)

    @work(thread=True, group="end", exit_on_error=False)
    def _end(self, run: RunHandle) -> None:
        """In a thread: the processes of a run on several GPUs are told, too."""
        run.stop()

    def action_checkpoint(self) -> None:
        run = self.console.monitor.run
        if run is not None:
            run.checkpoint()
            self.notify("A checkpoint is written after this step.", timeout=3)

    def action_switch(self) -> None:
        run, kind = self.console.monitor.run, self.console.monitor.view.endpoint
        if run is None or kind is None:
            return
        self.console.monitor.auto = None
        self._switch(kind.other)

    @work(thread=True, exclusive=True, group="switch", exit_on_error=False)
    def _switch(self, kind: EndpointKind) -> None:
        """Only to an endpoint that answers: the run would stall on one that does not."""
        run = self.console.monitor.run
        try:
            self.services.preflight(kind)
            if run is not None and run.alive:
                run.switch(kind, "by hand")
        except ConsoleError as error:
            self.app.call_from_thread(self.tell, error)

    def action_auto_compare(self) -> None:
        monitor = self.console.monitor
        if monitor.auto is not None and not monitor.auto.done:
            monitor.auto = None
            self.notify("Auto A/B is off.", timeout=3)
            return
        monitor.control = None
        monitor.auto = AutoCompare(seed=int(monitor.now))
        self.notify("Auto A/B: alternating the endpoints until the difference is known to ± 5 %.", timeout=4)

    def action_control(self) -> None:
        monitor = self.console.monitor
        if monitor.control is not None and not monitor.control.done:
            monitor.control = None
            self.notify("The A/A control is off.", timeout=3)
            return
        monitor.start_control()
        self.notify(
            f"A/A control: {monitor.view.delivering} alone, under both names by turns. The run is not changed. "
            "Its interval must hold 1.00.",
            timeout=5,
        )

    @work(exclusive=True, group="learning-rate", exit_on_error=False)
    async def action_learning_rate(self) -> None:
        run, step = self.console.monitor.run, self.console.monitor.view.last_step
        known = number(step.lr, 4) if step else ""
        hint = "The peak from the next step on; the schedule goes on from it."
        text = await self.app.push_screen_wait(PromptScreen("Learning rate", hint, known, _bad_lr))
        if text is not None and run is not None and run.alive:
            run.set_lr(float(text))

    @work(exclusive=True, group="new-run", exit_on_error=False)
    async def action_new_run(self) -> None:
        state = self.services.state
        if not isinstance(state, Ready) or state.profile is None:
            lines = preparation(self.services, self.glyphs) or notice(state, self.glyphs, self.size.width)
            self.notify(" ".join(line.text.strip() for line in lines), severity="warning", markup=False)
            return
        settings = await self.app.push_screen_wait(NewRunScreen(state.profile))
        if settings is not None:
            self._start(settings)

    @work(thread=True, group="start", exit_on_error=False)
    def _start(self, settings: TrainSettings) -> None:
        """In a thread: where another process holds the checkpoint prefix, all others are asked what they do."""
        try:
            self.services.start_run(settings)
        except ConsoleError as error:
            self.app.call_from_thread(self.tell, error)

    def action_runs(self) -> None:
        from ossconsole.tui.train.runs import RunsScreen

        self.app.push_screen(RunsScreen())


def _bad_lr(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return "A learning rate is a number such as 0.05."
    return "" if 0 < value < math.inf else "A learning rate is greater than 0."
