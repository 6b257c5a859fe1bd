"""NewRunScreen: the settings of the next run, with the last ones of the profile as a start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal, Vertical
from textual.widgets import Button, Input, Label, Select, Static

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.training.settings import TrainSettings
from ossconsole.tui.kit import memory
from ossconsole.tui.kit.screen import ConsoleModal

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
