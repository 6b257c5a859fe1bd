"""FormScreen: labelled fields with a hint each; what is wrong is said at the field it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Input, Label, Select, Static

from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import FieldError
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.text import safe

Values = Mapping[str, str]


@dataclass(frozen=True)
class Field:
    """One field. With `choices` (label and value) it is a list to choose from; a `secret` shows dots as it is typed."""

    name: str
    label: str
    hint: str = ""
    value: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    secret: bool = False


class FormScreen(ConsoleModal):
    """Returns what `accept` makes of the values, or None where the user went back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", show=False),
        Binding("ctrl+s", "save", "Save", show=False),
    ]

    def __init__(self, title: str, *, save: str = "Save") -> None:
        super().__init__()
        self._title = title
        self._save = save
        self._fields: dict[str, Field] = {}
        self._problem = ""

    def fields(self) -> Sequence[Field]:
        raise NotImplementedError

    def accept(self, values: Values) -> Any:
        """The result of the form. Raises FieldError or another ConsoleError, which keeps the form open."""
        raise NotImplementedError

    def extra(self) -> ComposeResult:
        """What stands between the fields and the hint."""
        yield from ()

    def hint(self, field: Field) -> str:
        """The line shown while the field has the focus."""
        return field.hint

    def compose(self) -> ComposeResult:
        self._fields = {field.name: field for field in self.fields()}
        with Vertical(classes="dialog form") as dialog:
            dialog.border_title = Content(safe(self._title))
            dialog.border_subtitle = "^s saves · esc back"
            with VerticalScroll(classes="scroll", can_focus=False), Grid(classes="fields"):
                for field in self._fields.values():
                    yield Label(field.label, markup=False)
                    yield self._control(field)
            yield from self.extra()
            yield Static(classes="hint", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Back", id="back", compact=True)
                yield Button(self._save, id="save", variant="primary", compact=True)

    def _control(self, field: Field) -> Input | Select[str]:
        name = f"field-{field.name.replace('.', '-')}"
        if field.choices:
            return Select(field.choices, value=field.value, allow_blank=False, compact=True, id=name)
        return Input(field.value, password=field.secret, compact=True, id=name, select_on_focus=not field.secret)

    def control(self, name: str) -> Input | Select[str]:
        found = self.query_one(f"#field-{name.replace('.', '-')}")
        assert isinstance(found, Input | Select)  # noqa: S101 - `_control` makes no other
        return found

    def value(self, name: str) -> str:
        return str(self.control(name).value).strip()

    @property
    def focused_field(self) -> Field | None:
        name = (self.focused.id or "") if self.focused else ""
        return next((field for field in self._fields.values() if name == self.control(field.name).id), None)

    def on_mount(self) -> None:
        first = next(iter(self._fields))
        self.control(first).focus()

    def on_descendant_focus(self) -> None:
        self.show_hint()

    def on_input_changed(self) -> None:
        self._problem = ""
        self.show_hint()

    def show_hint(self) -> None:
        """The hint of the field with the focus; what is wrong stays until something is typed."""
        field = self.focused_field
        words = self._problem or (self.hint(field) if field else "")
        self.query_one(".hint", Static).set_class(bool(self._problem), "-error").update(words)

    def on_input_submitted(self) -> None:
        self.action_save()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "save":
            self.action_save()
        else:
            self.action_back()

    def action_back(self) -> None:
        self.dismiss(None)

    def action_save(self) -> None:
        try:
            result = self.accept({name: self.value(name) for name in self._fields})
        except ConsoleError as error:
            self.refuse(error)
        else:
            self.dismiss(result)

    def refuse(self, error: ConsoleError) -> None:
        """Goes to the field the error is about, and says what is wrong."""
        self._problem = str(error)
        if isinstance(error, FieldError) and error.field in self._fields:
            self.control(error.field).focus()
        self.show_hint()
