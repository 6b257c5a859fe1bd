"""TrainScreen: the run, live, with its controls; NewRunScreen: the settings of the next run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Button

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import FieldError, Profile, checked
from ossconsole.telemetry.auto import AutoCompare
from ossconsole.telemetry.events import RunState
from ossconsole.telemetry.gpu import visible_gpus
from ossconsole.telemetry.runs import RunSummary, list_runs
from ossconsole.telemetry.samples import GpuSample
from ossconsole.telemetry.view import RunView
from ossconsole.training.settings import AUTO, BACKBONE, DEVICES, NOTHING, PRESETS, TrainSettings, auto_values
from ossconsole.tui.console import ConsoleState, Ready, RunHandle
from ossconsole.tui.kit import actions, memory
from ossconsole.tui.kit.actions import KeyAction
from ossconsole.tui.kit.dialogs import Choice, ConfirmScreen, Field, FormScreen, PromptScreen, Values
from ossconsole.tui.kit.jobs import warm_up
from ossconsole.tui.kit.screen import notice, preparation, preparation_stages
from ossconsole.tui.kit.text import number, safe
from ossconsole.tui.train.dashboard import Dashboard, RunSource
from ossconsole.tui.train.monitor import PendingRequest, RunMonitor

_log = logging.getLogger(__name__)

FORM = "train"
_UNLIMITED = 1000  # cells; a toast breaks its text itself
_RECENT = 40
"""The number of recorded runs that are read for an idle screen; a large one shows about as many."""
_FIELDS = (
    Field("epochs", "Epochs", "passes over the training set"),
    Field("max_steps", "Max steps", "stop after this many steps; 0 = no limit"),
    Field("model", "Model", "of torchvision, such as resnet50 or vit_b_16"),
    Field("batch_size", "Batch size", "samples per step; auto = 256 on a GPU with room, 64 on a CPU"),
    Field("workers", "Workers", "reader processes, at least one"),
    Field("processes", "GPUs", "number of GPUs to use; 0 = all"),
    Field("gpu", "GPU", "with one GPU: its index or UUID; auto = the emptiest"),
    Field("device", "Device", "auto = a GPU where there is one", choices=tuple((name, name) for name in DEVICES)),
    Field("endpoint", "Endpoint", "endpoint to start with"),
    Field("dataset_prefix", "Dataset", "prefix with train/<class>/ in it: prepared samples, or plain images"),
    Field("val_split", "Held out", "share of the images to validate with, where the dataset has no val/"),
    Field("switch_every", "Switch every", "alternate the endpoints every N steps; 0 = off, e switches by hand"),
    Field("learning_rate", "Learning rate", "peak, before a cosine to 0; auto = 0.1 per 256 samples"),
    Field("image_size", "Image size", "side of the training images in px; 0 = as stored (224 from 256)"),
    Field("weights", "Weights", "none, imagenet, a file, or oss://bucket/key"),
    Field("freeze", "Freeze", "backbone = train only the head", choices=((NOTHING, NOTHING), (BACKBONE, BACKBONE))),
    Field("resume", "Resume from", "key of a checkpoint, or latest; empty = from scratch"),
    Field("seed", "Seed", "of the sample order and the augmentation"),
    Field("checkpoint_every", "Save every", "also save every N steps; 0 = after each epoch only"),
)


_OF_A_RUN = {"switch", "auto_compare", "control", "pause", "stop", "checkpoint", "learning_rate", "profile"}

_OF_AN_ENDPOINT = {"switch", "auto_compare", "control"}


class NewRun(msgspec.Struct, frozen=True):
    """A run to start. `dataset_prefix` replaces the profile's."""

    settings: TrainSettings
    dataset_prefix: str


class NewRunScreen(FormScreen):
    """Returns NewRun, or None after Escape. Opens with the values last used with the profile."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+r", "defaults", "Defaults", show=False)]

    def __init__(self, profile: Profile, *, resume: str = "", known: Mapping[str, Any] | None = None) -> None:
        """`resume` is the key of a checkpoint; it is not remembered, as a run resumes from it only once.

        `known` are the settings of the run that wrote it, which it needs; its number of epochs is the least.
        """
        super().__init__("New run", save="Start", keys=" · ^r defaults")
        self._profile = profile
        remembered = {name: value for name, value in memory.recall(FORM, profile.name).items() if value != ""}
        before = self._defaults() | remembered
        self._initial = before | dict(known or {}) | {"resume": resume}
        self._initial["epochs"] = max(int(before["epochs"]), int(self._initial["epochs"]))

    def fields(self) -> list[Field]:
        """The settings of the form; the endpoint is a list, and the GPU where NVML lists any."""
        choices = {
            "endpoint": tuple((self.glyphs.named(kind), kind.value) for kind in self._profile.endpoints),
            "gpu": self._gpus(),
        }
        return [
            replace(
                field,
                value=_shown(field.name, self._initial.get(field.name, "")),
                choices=choices.get(field.name, field.choices),
            )
            for field in _FIELDS
        ]

    def _gpus(self) -> tuple[tuple[str, str], ...]:
        """Auto and the GPUs that CUDA can use, by UUID: NVML's indices are not CUDA's. Empty without any."""
        sample = self.services.sample
        found = [gpu for gpu in visible_gpus(sample.gpu.gpus if sample is not None else ()) if gpu.uuid]
        return ((AUTO, AUTO), *((_gpu_label(gpu), str(gpu.uuid)) for gpu in found)) if found else ()

    def _defaults(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(TrainSettings()), "dataset_prefix": self._profile.dataset_prefix}

    def more_buttons(self) -> ComposeResult:
        """The presets, and the defaults for terminals that keep Ctrl+R."""
        for name in PRESETS:
            yield Button(name.capitalize(), id=name, classes="preset", compact=True)
        yield Button("Defaults", id="defaults", compact=True)

    @on(Button.Pressed, "#defaults")
    def action_defaults(self) -> None:
        """Put the default into every field."""
        defaults = self._defaults()
        for field in _FIELDS:
            self.control(field.name).value = _shown(field.name, defaults[field.name])

    @on(Button.Pressed, ".preset")
    def _apply_preset(self, event: Button.Pressed) -> None:
        """Puts the values of the preset into its fields."""
        preset = PRESETS[str(event.button.id)]
        for field in _FIELDS:
            if field.name in preset:
                self.control(field.name).value = _shown(field.name, preset[field.name])

    def accept(self, values: Values) -> NewRun:
        """The run; its values are remembered, the dataset prefix unless it is the profile's. Raises FieldError."""
        typed = dict(values)
        profile = checked(msgspec.structs.replace(self._profile, dataset_prefix=typed.pop("dataset_prefix")))
        for name, (word, value) in _WORDS.items():
            if typed.get(name) == word:
                typed[name] = str(value)
        try:
            settings = msgspec.convert(typed, TrainSettings, strict=False)
        except msgspec.ValidationError as error:
            raise _field_error(str(error)) from error
        prefix = profile.dataset_prefix
        own = "" if prefix == self._profile.dataset_prefix else prefix
        known = msgspec.to_builtins(settings) | {"dataset_prefix": own}
        self.console.remember(FORM, self._profile.name, {field.name: known[field.name] for field in _FIELDS})
        return NewRun(settings, prefix)


_ZEROS = {"max_steps": "no limit", "switch_every": "off", "checkpoint_every": "each epoch", "image_size": "as stored"}
_WORDS: dict[str, tuple[str, int]] = {
    **{name: (AUTO, value) for name, value in auto_values().items()},
    **{name: (word, 0) for name, word in _ZEROS.items()},
}
"""What stands for a value of a setting in the form, and that value, which can be entered as well."""


def _shown(name: str, value: object) -> str:
    """A value of the settings in the form."""
    word, meant = _WORDS.get(name, ("", None))
    return word if word and value == meant else str(value)


def _gpu_label(gpu: GpuSample) -> str:
    """A GPU or MIG instance in the list, with its memory in use."""
    index = str(gpu.index) if gpu.mig is None else f"{gpu.index}.{gpu.mig}"
    label = f"{index} {(gpu.name or 'GPU').removeprefix('NVIDIA ')}"
    if gpu.memory_used is not None and gpu.memory_total:
        label += f", {gpu.memory_used / 2**30:.1f}/{gpu.memory_total / 2**30:.0f} GiB in use"
    return safe(label)


_EXPECTED = {
    "Expected `int`": "a whole number is needed",
    "Expected `float`": "a number is needed",
    " >= ": ", at least ",
    " > ": ", above ",
    " <= ": ", at most ",
    " < ": ", below ",
}
"""What messages of msgspec say, and what the form says."""


def _field_error(reason: str) -> ConsoleError:
    """A validation message of msgspec as one about the field, without the path, which the label says."""
    field = next((field for field in _FIELDS if f"$.{field.name}`" in reason), None)
    if field is None:
        return ConsoleError(reason)
    text = reason.split(" - at ", maxsplit=1)[0].partition(", got ")[0]
    for theirs, ours in _EXPECTED.items():
        text = text.replace(theirs, ours)
    return FieldError(field.name, f"{field.label}: {text.replace('`', '')}")


class TrainScreen(Dashboard):
    """The live dashboard, and the controls of the run."""

    SCOPE = "train"
    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings("train")]

    def __init__(self) -> None:
        super().__init__()
        self._recent: Sequence[RunSummary] = ()

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
    def record(self) -> Path | None:
        """The record of the newest run."""
        return self.monitor.run.record_path if self.monitor.run is not None else None

    @property
    def state(self) -> ConsoleState:
        """The state of the bucket, with the progress of the preparation."""
        return msgspec.structs.replace(self.services.state, stages=tuple(preparation_stages(self.services)))

    @property
    def starting(self) -> bool:
        """True for a run that has not reported yet."""
        return self.monitor.busy

    @property
    def recent(self) -> Sequence[RunSummary]:
        """The runs recorded last."""
        return self._recent

    def on_screen_resume(self) -> None:
        """Without a run, list the runs recorded last; Textual calls the base classes' handlers, which paint."""
        if self.monitor.view.run is None:
            self._list_recent()

    @work(thread=True, exclusive=True, group="recent", exit_on_error=False)
    def _list_recent(self) -> None:
        try:
            self._recent = list_runs(newest=_RECENT)
        except ConsoleError as error:
            _log.info("no recorded runs: %s", error)  # the list of runs shows it
        self.app.call_from_thread(self.draw)

    @property
    def has_controls(self) -> bool:
        """True."""
        return True

    @property
    def comparison_status(self) -> str:
        """The state of auto A/B, of the A/A control or of the demo; of a run that has ended, only a result."""
        shown, state = self.monitor.auto or self.monitor.control or self.monitor.guide, self.monitor.view.state
        over = state is not None and state.final
        return shown.words if shown and (shown.done or not over) else ""

    @property
    def reading(self) -> float | None:
        """Of a run of another process that began long before this console."""
        return self.monitor.reading

    @property
    def requested(self) -> str:
        """The request to the run that has not had its effect yet, in words; "" without one."""
        return self.monitor.request.words if self.monitor.request is not None else ""

    def _request(self, name: str, words: str, done: Callable[[RunView], bool]) -> None:
        """Acknowledge a request on the next paint: the run notices it after its step, which may take long."""
        self.monitor.request = PendingRequest(name, words, done)
        self.tick()

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable what needs a second endpoint or write access; hide what needs a run that is alive."""
        busy = self.monitor.busy
        if action in _OF_A_RUN:
            return self._allowed(action) if busy else False
        if action == "predictions" and busy:
            return None
        if action == "new_run":  # while the bucket is being prepared, the key explains why no run can start
            return None if busy or self.services.readonly else True
        if action == "warm_up":
            profile = self.services.profile
            return True if profile is not None and profile.accelerated_endpoint else None
        if action == "resume":
            possible = not busy and not self.services.readonly and isinstance(self.services.state, Ready)
            return True if possible and self.monitor.view.last_checkpoint is not None else None
        return super().check_action(action, parameters)

    def _allowed(self, action: str) -> bool | None:
        """The same for the actions of a run that is alive; while its past is read, its endpoint is not known."""
        if action in _OF_AN_ENDPOINT and self.reading is not None:
            return None
        if action in {"switch", "auto_compare"}:
            return True if self.context.has_accelerated and not self.context.foreign_loader else None
        return None if action == "control" and self.monitor.view.delivering is None else True

    def live_actions(self) -> list[tuple[KeyAction, bool]]:
        """The actions of the footer; a new run shows as disabled until the bucket is ready."""
        ready = isinstance(self.services.state, Ready)
        return [(action, live and (ready or action.name != "new_run")) for action, live in super().live_actions()]

    def label_now(self, action: str) -> str:
        """The pause key continues a run that is paused, or will be."""
        return "Continue" if action == "pause" and self._paused else ""

    @property
    def _paused(self) -> bool:
        """Whether the run is paused, or was asked to pause."""
        run, request = self.monitor.run, self.monitor.request
        asked = request.name if request is not None else ""
        return run is not None and (asked == "pause" or (run.state is RunState.PAUSED and asked != "resume"))

    def action_pause(self) -> None:
        """Pause the run, or resume it, also where it has not paused yet."""
        run = self.monitor.run
        if run is None:
            return
        if self._paused:
            run.resume()
            self._request("resume", "resuming", lambda view: view.state is not RunState.PAUSED)
        else:
            run.pause()
            self._request("pause", "pausing after this step", lambda view: view.state is RunState.PAUSED)

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
        if choice == "stop" and run is self.monitor.run and run.alive:  # not another one that has started meanwhile
            self._request("stop", "stopping after this step", lambda view: view.state is RunState.STOPPING)
            self._stop(run)

    @work(thread=True, group="end", exit_on_error=False)
    def _stop(self, run: RunHandle) -> None:
        """In a thread: the processes of a run on several GPUs are asked, too."""
        run.stop()

    def action_checkpoint(self) -> None:
        """Write a checkpoint after the current step."""
        run = self.monitor.run
        if run is not None:
            before = self.monitor.view.last_checkpoint
            run.checkpoint()
            self._request(
                "checkpoint",
                "checkpoint after this step",
                lambda view: view.saving is not None or view.last_checkpoint is not before,
            )

    def action_profile(self) -> None:
        """Record the next steps; the event log then names the file."""
        run = self.monitor.run
        if run is not None:
            run.profile()
            self.notify("The next steps are profiled; the event log names the file.", timeout=4)

    def action_switch(self) -> None:
        """Switch to the other endpoint; auto A/B ends."""
        run, kind = self.monitor.run, self.monitor.view.endpoint
        if run is not None and kind is not None:
            self.monitor.auto = None
            self._request("switch", f"switching to {kind.other}", lambda view: view.endpoint is not kind)
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
            self.app.call_from_thread(self._refused, error)

    def _refused(self, error: ConsoleError) -> None:
        request = self.monitor.request
        if request is not None and request.name == "switch":  # else a newer one
            self.monitor.request = None
        self.show_error(error)

    def action_auto_compare(self) -> None:
        """Start or end auto A/B: the endpoints alternate until the ratio is known."""
        monitor = self.monitor
        if monitor.auto is not None and not monitor.auto.done:
            monitor.auto = None
            self.notify(f"Auto A/B is off: the run stays on the {monitor.view.endpoint} endpoint.", timeout=4)
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
        run, view = self.monitor.run, self.monitor.view
        peak = f"{view.peak_lr:g}" if view.peak_lr is not None else ""  # OK then changes nothing
        now = f" The rate is now {number(view.last_step.lr, 4)}." if view.last_step else ""
        question = f"The new peak, from the next step on.{now}"
        prompt = PromptScreen("Peak learning rate", question, peak, check=_check_learning_rate, replace=True)
        text = await self.app.push_screen_wait(prompt)
        if text is not None and run is not None and run.alive:
            run.set_lr(float(text))
            after = self.monitor.view.step + 1  # a step that was under way ends first
            self._request(
                "learning rate",
                f"learning rate {text.strip()}",
                lambda view: view.peak_lr == float(text) or view.step > after,
            )

    @work(exclusive=True, group="warm-up", exit_on_error=False)
    async def action_warm_up(self) -> None:
        """Read the dataset once through the accelerated endpoint, or show the warm-up that is running."""
        await warm_up(self)

    def action_new_run(self) -> None:
        """Open the form of a new run; while the bucket is not ready, say why."""
        state = self.services.state
        if isinstance(state, Ready):
            self.console.new_run()
            return
        lines = preparation(self.services, self.glyphs, _UNLIMITED) or notice(state, self.glyphs, self.size.width)
        self.notify(" ".join(line.text.strip() for line in lines), severity="warning", markup=False)

    def action_resume(self) -> None:
        """Open the form of a run that resumes this one, with its settings."""
        view = self.monitor.view
        if view.last_checkpoint is not None:
            known = view.run.settings if view.run is not None else {}
            self.console.new_run(resume=view.last_checkpoint.key, known=resumable(known, view.last_checkpoint.epoch))

    def action_runs(self) -> None:
        """Open the list of recorded runs."""
        from ossconsole.tui.train.runs import RunsScreen

        self.app.push_screen(RunsScreen())


def resumable(settings: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """The settings of a run, as the form of the run that resumes it after `epoch` starts with them."""
    names = {field.name for field in _FIELDS} - {"resume", "weights", "max_steps"}
    known = {name: value for name, value in settings.items() if name in names and value not in (None, "")}
    return known | {"epochs": max(epoch + 1, int(known.get("epochs", 0))), "max_steps": 0}


def _check_learning_rate(text: str) -> None:
    """Raises ConsoleError for anything but a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConsoleError(f"{text.strip()!r} is not a learning rate.", remedy="Enter a number above 0, such as 0.05.")
