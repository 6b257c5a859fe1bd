"""The dialogs: confirm, confirm by typing a word, prompt, form, list, text, image."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import Key
from textual.widgets import Button, Input, Label, Select, Static, TextArea

from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import FieldError
from ossconsole.tui.kit.canvas import Painter, Panel
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.scroll import Block, DetailView, PictureBlock, graphics_of, picture_widget
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.kit.text import Line, safe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Check = Callable[[str], None]
"""Raises ConsoleError for a text that will not do."""


class InputDialog(ConsoleModal):
    """Returns the text, or None where the user went back. `check` is asked before."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back", show=False)]

    def __init__(self, title: str, question: str, value: str = "", *, check: Check | None = None) -> None:
        super().__init__()
        self._title = title
        self._question = question
        self._value = value
        self._check = check

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog", id="input-dialog") as dialog:
            dialog.border_title = Content(safe(self._title))
            dialog.border_subtitle = "enter accepts · esc back"
            yield Static(self._question, markup=False)
            yield Input(self._value, compact=True, id="answer", select_on_focus=False)
            yield Static(id="refusal", markup=False)

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if self._check is None:
            self.dismiss(event.value)
        else:
            self._checked(self._check, event.value)

    @work(exclusive=True, exit_on_error=False)
    async def _checked(self, check: Check, text: str) -> None:
        """In a thread: a folder may be on a file server that does not answer."""
        try:
            await asyncio.to_thread(check, text)
        except ConsoleError as error:
            self.query_one("#refusal", Static).update(str(error))
        else:
            self.dismiss(text)

    def action_leave(self) -> None:
        self.dismiss(None)


class TypedConfirm(ConsoleModal):
    """Returns True only after `word` was typed; for what cannot be undone."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back", show=False)]

    def __init__(self, title: str, text: str, word: str) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._word = word

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Content(safe(self._title))
            yield Static(self._text, markup=False)
            yield Static(f"Type  {self._word}  to go ahead; esc goes back.", markup=False, classes="hint")
            yield Input(compact=True, id="answer")
            with Horizontal(classes="buttons"):
                yield Button("Back", id="back", compact=True)
                yield Button("Go ahead", id="go", variant="error", compact=True, disabled=True)

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.query_one("#go", Button).disabled = event.value.strip() != self._word

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip() == self._word:
            self.dismiss(True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "go")

    def action_leave(self) -> None:
        self.dismiss(False)


class ListDialog(ConsoleModal):
    """Returns (key pressed, index of the row) for Enter or one of `keys`, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "leave", "Back", show=False)]

    def __init__(self, title: str, rows: Sequence[Line], *, hint: str = "", keys: str = "") -> None:
        super().__init__()
        self._title = title
        self._rows_given = rows
        self._hint = hint
        self._keys = keys

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog", id="list-dialog") as dialog:
            dialog.border_title = Content(safe(self._title))
            dialog.border_subtitle = f"{self._hint} · esc back" if self._hint else "enter chooses · esc back"
            yield VirtualTable[Line](lambda line, width: Line().extend(line).to(width), id="choices")

    def on_mount(self) -> None:
        table = self.query_one(VirtualTable)
        table.show(self._rows_given)
        table.styles.height = min(max(1, len(self._rows_given)), 16)
        table.focus()

    def on_virtual_table_opened(self, event: VirtualTable.Opened) -> None:
        self.dismiss(("enter", event.index))

    def key_enter(self, event: events.Key) -> None:
        event.stop()  # what is below would take it for its own
        self._answer("enter")

    def on_key(self, event: events.Key) -> None:
        if event.character and event.character in self._keys:
            event.stop()
            self._answer(event.character)

    def _answer(self, key: str) -> None:
        if self._rows_given:
            self.dismiss((key, self.query_one(VirtualTable).cursor))

    def action_leave(self) -> None:
        self.dismiss(None)


class TextDialog(ConsoleModal):
    """A text to be selected or written to a file, where the clipboard may not have taken it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "leave", "Back", show=False),
        Binding("w", "write", "Write", show=False),
    ]

    def __init__(self, title: str, text: str, note: str, path: Path) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._note = note
        self._path = path

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog", id="text-dialog") as dialog:
            dialog.border_title = Content(safe(self._title))
            dialog.border_subtitle = "w writes it to a file · esc back"
            yield Static(self._note, markup=False, classes="hint")
            yield TextArea(self._text, read_only=True, soft_wrap=True, show_line_numbers=False, compact=True, id="text")

    def on_mount(self) -> None:
        self.set_focus(None)

    def action_write(self) -> None:
        try:
            self._path.write_text(self._text + "\n", encoding="utf-8")
        except OSError as error:
            self.tell(ConsoleError(f"{self._path} cannot be written: {error.strerror}."))
        else:
            self.notify(f"Written to {self._path}", markup=False)

    def action_leave(self) -> None:
        self.dismiss(None)


class PictureScreen(ConsoleModal):
    """A picture over the whole screen, in the terminal's own graphics where it has them."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,i", "leave", "Back", show=False)]

    def __init__(self, title: str, pixels: NDArray[np.uint8]) -> None:
        super().__init__()
        self._title = title
        self._pixels = pixels

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -full", id="picture-screen") as dialog:
            dialog.border_title = Content(safe(self._title))
            dialog.border_subtitle = "esc back"
            yield picture_widget(self._pixels, graphics_of(os.environ)) or DetailView(self._blocks, id="picture")

    def on_mount(self) -> None:
        for view in self.query(DetailView):
            view.plain = self.glyphs.name == "ascii" or self.app.no_color

    def _blocks(self, _width: int, _height: int) -> list[Block]:
        return [PictureBlock(self._pixels)]

    def action_leave(self) -> None:
        self.dismiss(None)


class Choice(msgspec.Struct, frozen=True):
    """One answer: what is returned, what its button says, and how it looks."""

    value: str
    label: str
    variant: Literal["default", "primary", "warning", "error"] = "default"


class ConfirmScreen(ConsoleModal):
    """Returns the value of the answer; the first choice is the safe one, also that of Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "safe", "Back", show=False),
        Binding("left", "app.focus_previous", show=False),
        Binding("right", "app.focus_next", show=False),
    ]

    def __init__(self, title: str, question: str, choices: Sequence[Choice]) -> None:
        super().__init__()
        self._title = title
        self._question = question
        self._choices = choices

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Content(safe(self._title))
            yield Static(self._question, markup=False)
            with Horizontal(classes="buttons"):
                for number, choice in enumerate(self._choices):
                    yield Button(choice.label, id=f"choice-{number}", variant=choice.variant, compact=True)

    def on_mount(self) -> None:
        self.query_one("#choice-0").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        number = int((event.button.id or "choice-0").removeprefix("choice-"))
        self.dismiss(self._choices[number].value)

    def action_safe(self) -> None:
        self.dismiss(self._choices[0].value)


class TypedConfirmScreen(ConsoleModal):
    """Returns True once `word` was typed and the button pressed; False otherwise."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Back", show=False)]

    def __init__(self, title: str, question: str, *, word: str, button: str) -> None:
        super().__init__()
        self._title = title
        self._question = question
        self._word = word
        self._button = button

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Content(safe(self._title))
            yield Static(self._question, markup=False)
            yield Static(f"Type {self._word} to go on:", markup=False, classes="ask")
            yield Input(compact=True, id="typed")
            with Horizontal(classes="buttons"):
                yield Button("Back", id="back", compact=True)
                yield Button(self._button, id="go", variant="error", compact=True, disabled=True)

    def on_mount(self) -> None:
        self.query_one("#typed").focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.query_one("#go", Button).disabled = event.value.strip() != self._word

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip() == self._word:
            self.dismiss(True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "go")

    def action_back(self) -> None:
        self.dismiss(False)


class PromptScreen(ConsoleModal):
    """Returns the text, or None where the user went back. `refuse` gives why a text will not do, or ""."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Back", show=False)]

    def __init__(self, title: str, hint: str, value: str, refuse: Callable[[str], str]) -> None:
        super().__init__()
        self._title = title
        self._hint = hint
        self._value = value
        self._refuse = refuse

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -small") as dialog:
            dialog.border_title = Content(safe(self._title))
            dialog.border_subtitle = "enter takes it · esc back"
            yield Input(self._value, compact=True, id="value", select_on_focus=True)
            yield Static(self._hint, id="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        text = event.value.strip()
        problem = self._refuse(text)
        if problem:
            self.query_one("#hint", Static).set_class(True, "-error").update(problem)
        else:
            self.dismiss(text)

    def action_back(self) -> None:
        self.dismiss(None)


REFRESH_S = 0.5


class DetailScreen(ConsoleModal):
    """`key` opened it, and closes it like Escape. More lines than fit are scrolled to."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss", show=False)]

    def __init__(self, title: str, key: str, painter: Painter) -> None:
        super().__init__()
        self._title = title
        self._painter = painter
        self._key = key

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog -full") as dialog:
            dialog.border_title = Content(safe(self._title))
            dialog.border_subtitle = "esc closes"
            yield Panel(self._paint, id="detail")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self.set_interval(REFRESH_S, self.query_one(Panel).redraw)

    def on_key(self, event: Key) -> None:
        if event.key == self._key:
            event.stop()
            self.dismiss()

    def _paint(self, width: int, _height: int) -> Sequence[Line]:
        room = self.query_one(VerticalScroll).size.height
        lines = self._painter(width, room)
        self.query_one(Panel).styles.height = max(room, len(lines))
        return lines


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
