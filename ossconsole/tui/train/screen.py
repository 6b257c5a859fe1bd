"""TrainScreen: the run, live, with its controls; NewRunScreen: the settings of the next run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import msgspec
from textual import work
from textual.binding import Binding, BindingType

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import FieldError, Profile, checked
from ossconsole.telemetry.auto import AutoCompare
from ossconsole.telemetry.events import RunState
from ossconsole.training.settings import TrainSettings
from ossconsole.tui.console import ConsoleState, Ready, RunHandle
from ossconsole.tui.kit import actions, memory
from ossconsole.tui.kit.actions import KeyAction
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, Field, FormScreen, PromptScreen, Values
from ossconsole.tui.kit.screen import notice, preparation, preparation_stages
from ossconsole.tui.kit.text import number
from ossconsole.tui.train.dashboard import Dashboard, RunSource
from ossconsole.tui.train.monitor import RunMonitor

FORM = "train"
_FIELDS = (
    Field("epochs", "Epochs", "passes over the training set"),
    Field("max_steps", "Max steps", "stop after this many steps; 0 = no limit"),
    Field("batch_size", "Batch size", "samples per step"),
    Field("workers", "Workers", "reader processes, at least one"),
    Field("processes", "GPUs", "number of GPUs to use; 0 = all"),
    Field("endpoint", "Endpoint", "endpoint to start with"),
    Field("dataset_prefix", "Dataset", "prefix with train/<class>/ in it: prepared samples, or plain images"),
    Field("val_split", "Held out", "share of the images to validate with, where the dataset has no val/"),
    Field("switch_every", "Switch every", "alternate the endpoints every N steps; 0 = manual (e)"),
    Field("learning_rate", "Learning rate", "peak; linear warm-up, then a cosine schedule to 0"),
    Field("image_size", "Image size", "side of the training images in px; 0 = 224 from 256 stored"),
    Field("weights", "Weights", "none, imagenet, a file, or oss://bucket/key"),
    Field("resume", "Resume from", "key of a checkpoint, or latest; empty = from scratch"),
    Field("seed", "Seed", "of the sample order and the augmentation"),
    Field("checkpoint_every", "Save every", "also save every N steps; 0 = after each epoch only"),
)


class NewRun(msgspec.Struct, frozen=True):
    """A run to start. `dataset_prefix` replaces the profile's."""

    settings: TrainSettings
    dataset_prefix: str


class NewRunScreen(FormScreen):
    """Returns NewRun, or None after Escape. Opens with the values last used with the profile."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+r", "defaults", "Defaults", show=False)]

    def __init__(self, profile: Profile, *, resume: str = "") -> None:
        """`resume` is the key of a checkpoint; it is not remembered, as a run resumes from it only once."""
        super().__init__("New run", save="Start", keys=" · ^r defaults")
        self._profile = profile
        remembered = {name: value for name, value in memory.recall(FORM, profile.name).items() if value != ""}
        self._initial = self._defaults() | remembered | {"resume": resume}
        if self._initial["endpoint"] not in map(str, profile.endpoints):
            self._initial["endpoint"] = str(EndpointKind.STANDARD)

    def fields(self) -> list[Field]:
        """The settings of the form, the endpoint as a list."""
        kinds = tuple((self.glyphs.named(kind), kind.value) for kind in self._profile.endpoints)
        fields = [replace(field, value=str(self._initial.get(field.name, ""))) for field in _FIELDS]
        return [replace(field, choices=kinds) if field.name == "endpoint" else field for field in fields]

    def _defaults(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(TrainSettings()), "dataset_prefix": self._profile.dataset_prefix}

    def action_defaults(self) -> None:
        """Put the default into every field."""
        defaults = self._defaults()
        for field in _FIELDS:
            self.control(field.name).value = str(defaults[field.name])

    def accept(self, values: Values) -> NewRun:
        """The run; its values are remembered, the dataset prefix unless it is the profile's. Raises FieldError."""
        typed = dict(values)
        profile = checked(msgspec.structs.replace(self._profile, dataset_prefix=typed.pop("dataset_prefix")))
        try:
            settings = msgspec.convert(typed, TrainSettings, strict=False)
        except msgspec.ValidationError as error:
            raise _field_error(str(error)) from error
        prefix = profile.dataset_prefix
        own = "" if prefix == self._profile.dataset_prefix else prefix
        known = msgspec.to_builtins(settings) | {"dataset_prefix": own}
        self.console.remember(FORM, self._profile.name, {field.name: known[field.name] for field in _FIELDS})
        return NewRun(settings, prefix)


def _field_error(reason: str) -> ConsoleError:
    """A validation message of msgspec as one about the field, without the path, which the label says."""
    field = next((field for field in _FIELDS if f"$.{field.name}`" in reason), None)
    if field is None:
        return ConsoleError(reason)
    text = reason.split(" - at ", maxsplit=1)[0].replace("Expected `int`", "a whole number is needed").replace("`", "")
    return FieldError(field.name, f"{field.label}: {text}")


class TrainScreen(Dashboard):
    """The live dashboard, and the controls of the run."""

    SCOPE = "train"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("train")]

    @property
    def monitor(self) -> RunMonitor:
        """The newest run as the console has seen it."""
        monitor: RunMonitor = self.app.monitor
        return monitor

    @property
    def source(self) -> RunSource:
        """The newest run."""
        return self.monitor

    @property
    def state(self) -> ConsoleState:
        """The state of the bucket, with the progress of the preparation."""
        return msgspec.structs.replace(self.services.state, stages=tuple(preparation_stages(self.services)))

    @property
    def starting(self) -> bool:
        """True for a run that has not reported yet."""
        return self.monitor.busy

    @property
    def has_controls(self) -> bool:
        """True."""
        return True

    @property
    def comparison_status(self) -> str:
        """The state of auto A/B or of the A/A control."""
        shown = self.monitor.auto or self.monitor.control
        return shown.words if shown else ""

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable what needs a running run, a second endpoint or write access."""
        busy = self.monitor.busy
        if action == "new_run":  # while the bucket is being prepared, the key explains why no run can start
            return None if busy or self.services.readonly else True
        if action in {"switch", "auto_compare"}:
            return True if busy and self.context.has_accelerated and not self.context.foreign_loader else None
        if action == "control":
            return True if busy and self.monitor.view.delivering is not None else None
        if action in {"pause", "stop", "checkpoint", "learning_rate"}:
            return True if busy else None
        return super().check_action(action, parameters)

    def live_actions(self) -> list[tuple[KeyAction, bool]]:
        """The actions of the footer; a new run shows as disabled until the bucket is ready."""
        ready = isinstance(self.services.state, Ready)
        return [(action, live and (ready or action.name != "new_run")) for action, live in super().live_actions()]

    def action_pause(self) -> None:
        """Pause the run, or resume it."""
        run = self.monitor.run
        if run is not None:
            if run.state is RunState.PAUSED:
                run.resume()
            else:
                run.pause()

    @work(exclusive=True, group="stop", exit_on_error=False)
    async def action_stop(self) -> None:
        """End the run with a checkpoint, after a question."""
        run = self.monitor.run
        if run is None:
            return
        choice = await self.app.push_screen_wait(
            ConfirmScreen(
                "Stop the run?",
                "The current step completes, a checkpoint is written, and the run ends. It can be resumed later.",
                (Choice("", "Keep running"), Choice("stop", "Stop", "warning")),
            )
        )
        if choice == "stop":
            self._stop(run)

    @work(thread=True, group="end", exit_on_error=False)
    def _stop(self, run: RunHandle) -> None:
        """In a thread: the processes of a run on several GPUs are asked, too."""
        run.stop()

    def action_checkpoint(self) -> None:
        """Write a checkpoint after the current step."""
        run = self.monitor.run
        if run is not None:
            run.checkpoint()
            self.notify("A checkpoint is written after this step.", timeout=3)

    def action_switch(self) -> None:
        """Switch to the other endpoint; auto A/B ends."""
        run, kind = self.monitor.run, self.monitor.view.endpoint
        if run is not None and kind is not None:
            self.monitor.auto = None
            self._switch(kind.other)

    @work(thread=True, exclusive=True, group="switch", exit_on_error=False)
    def _switch(self, kind: EndpointKind) -> None:
        """Only to an endpoint that answers: the run would stall on one that does not."""
        run = self.monitor.run
        try:
            self.services.preflight(kind)
            if run is not None and run.alive:
                run.switch(kind, "by hand")
        except ConsoleError as error:
            self.app.call_from_thread(self.show_error, error)

    def action_auto_compare(self) -> None:
        """Start or end auto A/B: the endpoints alternate until the ratio is known."""
        monitor = self.monitor
        if monitor.auto is not None and not monitor.auto.done:
            monitor.auto = None
            self.notify("Auto A/B is off.", timeout=3)
            return
        monitor.control = None
        monitor.auto = AutoCompare(seed=int(monitor.now))
        self.notify("Auto A/B: alternating the endpoints until the ratio is known to ± 5 %.", timeout=4)

    def action_control(self) -> None:
        """Start or end the A/A control: one endpoint measured under both names."""
        monitor = self.monitor
        if monitor.control is not None and not monitor.control.done:
            monitor.control = None
            self.notify("The A/A control is off.", timeout=3)
            return
        monitor.start_control()
        self.notify(
            f"A/A control: {monitor.view.delivering} alone, alternating under both names. The run is not changed. "
            "The interval must contain 1.00.",
            timeout=5,
        )

    @work(exclusive=True, group="learning-rate", exit_on_error=False)
    async def action_learning_rate(self) -> None:
        """Change the peak learning rate."""
        run, step = self.monitor.run, self.monitor.view.last_step
        present = number(step.lr, 4) if step else ""
        question = "The new peak, from the next step on. The schedule continues from it."
        prompt = PromptScreen("Learning rate", question, present, check=_check_learning_rate, replace=True)
        text = await self.app.push_screen_wait(prompt)
        if text is not None and run is not None and run.alive:
            run.set_lr(float(text))

    def action_new_run(self) -> None:
        """Open the form of a new run; while the bucket is not ready, say why."""
        state = self.services.state
        if isinstance(state, Ready):
            self.console.new_run()
            return
        lines = preparation(self.services, self.glyphs) or notice(state, self.glyphs, self.size.width)
        self.notify(" ".join(line.text.strip() for line in lines), severity="warning", markup=False)

    def action_runs(self) -> None:
        """Open the list of recorded runs."""
        from ossconsole.tui.train.runs import RunsScreen

        self.app.push_screen(RunsScreen())


def _check_learning_rate(text: str) -> None:
    """Raises ConsoleError for anything but a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConsoleError(f"{text.strip()!r} is not a learning rate.", remedy="Enter a number above 0, such as 0.05.")
