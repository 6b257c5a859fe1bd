"""The dialogs: confirm, confirm by typing a word, prompt, form, list, text, image, details."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
from rich.cells import cell_len
from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Input, Label, Select, Static, TextArea

from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import FieldError
from ossconsole.tui.kit.canvas import Painter, Panel
from ossconsole.tui.kit.screen import ConsoleModal
from ossconsole.tui.kit.scroll import Block, DetailView, ImageBlock, graphics_of, image_widget
from ossconsole.tui.kit.table import VirtualTable
from ossconsole.tui.kit.text import Line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_REFRESH_S = 0.5


class Choice(msgspec.Struct, frozen=True):
    """One answer: the value returned, the label of its button, and the look of the button."""

    value: str
    label: str
    variant: Literal["default", "primary", "warning", "error"] = "default"


_TYPING_S = 0.15
"""Keys that follow one another sooner are a paste or were typed before the dialog showed: they answer nothing."""


class ConfirmScreen(ConsoleModal):
    """Returns the value of the answer; the first choice is the safe one, also that of Escape.

    Each answer has a letter, underlined in its label; `n` is the safe one as well, and `y` the other one of two.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "app.focus_previous", show=False),
        Binding("right", "app.focus_next", show=False),
    ]

    def __init__(self, title: str, question: str, choices: Sequence[Choice]) -> None:
        super().__init__()
        self._title = title
        self._question = question
        self._choices = choices
        self._letters = _letters([choice.label for choice in choices])
        self._last_key_at = 0.0

    def compose(self) -> ComposeResult:
        hints = [f"{letter} {label.lower()}" for letter, label in self._letters.items()]
        with self.frame(self._title, " · ".join((*hints, "esc back"))):
            yield Static(self._question, markup=False)
            with Horizontal(classes="buttons"):
                for number, (letter, choice) in enumerate(zip(self._letters, self._choices, strict=True)):
                    label = _underlined(choice.label, letter)
                    yield Button(label, id=f"choice-{number}", variant=choice.variant, compact=True)

    def on_mount(self) -> None:
        """Focus the safe answer."""
        self.query_one("#choice-0").focus()
        self._last_key_at = time.monotonic()

    def on_key(self, event: events.Key) -> None:
        """Give the answer with this letter."""
        sooner, self._last_key_at = event.time - self._last_key_at < _TYPING_S, event.time
        answers = [*self._letters]
        keys = {letter: number for number, letter in enumerate(answers)}
        keys.setdefault("n", 0)
        if len(answers) == 2:
            keys.setdefault("y", 1)
        number = keys.get((event.character or "").lower())
        if number is not None:
            event.stop()
            if not sooner:
                self.dismiss(self._choices[number].value)

    def _on_button_pressed(self, event: Button.Pressed) -> None:
        number = int((event.button.id or "choice-0").removeprefix("choice-"))
        self.dismiss(self._choices[number].value)

    def action_back(self) -> None:
        """Give the safe answer."""
        self.dismiss(self._choices[0].value)


def _letters(labels: Sequence[str]) -> dict[str, str]:
    """A letter for each label, in their order: the first of its letters that no other has."""
    found: dict[str, str] = {}
    for label in labels:
        letter = next((letter for letter in label.lower() if letter.isalpha() and letter not in found), label[:1])
        found[letter] = label
    return found


def _underlined(label: str, letter: str) -> Content:
    """The label with its letter underlined."""
    before, _, after = label.partition(label[label.lower().index(letter)])
    return Content.assemble(before, (label[len(before)], "underline"), after)


class TypedConfirmScreen(ConsoleModal):
    """For what cannot be undone: returns True once `word` was typed and confirmed, else something false."""

    def __init__(self, title: str, question: str, *, word: str, button: str) -> None:
        super().__init__()
        self._title = title
        self._question = question
        self._word = word
        self._button = button

    def compose(self) -> ComposeResult:
        with self.frame(self._title):
            yield Static(self._question, markup=False)
            yield Static(f"Type {self._word} to confirm:", markup=False, classes="ask")
            yield Input(compact=True, id="answer")
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button(self._button, id="go", variant="error", compact=True, disabled=True)

    def on_mount(self) -> None:
        """Focus the input."""
        self.query_one(Input).focus()

    def _on_input_changed(self, event: Input.Changed) -> None:
        self.query_one("#go", Button).disabled = event.value.strip() != self._word

    def _on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip() == self._word:
            self.dismiss(True)

    def _on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "go")


class PromptScreen(ConsoleModal):
    """Returns the text, or None after Escape. `check` raises ConsoleError for a text that is not valid.

    With `replace`, the first key typed replaces `value`; otherwise the cursor is at its end.
    """

    def __init__(
        self,
        title: str,
        question: str,
        value: str = "",
        *,
        check: Callable[[str], object] | None = None,
        replace: bool = False,
    ) -> None:
        super().__init__()
        self._title = title
        self._question = question
        self._value = value
        self._check = check
        self._replace = replace

    def compose(self) -> ComposeResult:
        with self.frame(self._title, "enter OK · esc cancel", id="prompt"):
            yield Static(self._question, markup=False)
            yield Input(self._value, compact=True, id="answer", select_on_focus=self._replace)
            yield Static(id="problem", markup=False)

    def on_mount(self) -> None:
        """Focus the input, and show the end of a long value, where the cursor is."""
        self.query_one(Input).focus()
        if not self._replace:
            self.call_after_refresh(_show_end, self.query_one(Input))

    def _on_input_submitted(self, event: Input.Submitted) -> None:
        if self._check is None:
            self.dismiss(event.value)
        else:
            self._run_check(self._check, event.value)

    @work(exclusive=True, exit_on_error=False)
    async def _run_check(self, check: Callable[[str], object], text: str) -> None:
        """In a thread: a folder may be on a file server that does not answer."""
        try:
            await asyncio.to_thread(check, text)
        except ConsoleError as error:
            self.query_one("#problem", Static).update(str(error))
        except OSError as error:  # of a path: too long, or in a folder without access
            self.query_one("#problem", Static).update(f"{error.strerror}.")
        else:
            self.dismiss(text)


def _show_end(entry: Input) -> None:
    """Scrolls to the end of a value that does not fit."""
    # The cell that the cursor needs at the end would push the first character out of a value that just fits.
    if cell_len(entry.value) > entry.content_size.width:
        entry.action_home()  # an Input scrolls only when its cursor moves
        entry.action_end()


Values = Mapping[str, str]
"""What was typed into a form, by the name of the field, without blanks around it."""


@dataclass(frozen=True)
class Field:
    """One field of a form. `choices` (label and value) make it a list; a `secret` shows dots as it is typed."""

    name: str
    label: str
    hint: str = ""
    value: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    secret: bool = False


class FormScreen(ConsoleModal):
    """Labelled fields with a hint each. Returns what `accept` makes of the values, or None after Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+s", "save", "Save", show=False)]

    def __init__(self, title: str, *, save: str = "Save", keys: str = "") -> None:
        """`save` is the label of the button; `keys` names more keys in the frame."""
        super().__init__()
        self._title = title
        self._save = save
        self._keys = keys
        self._fields: dict[str, Field] = {}
        self._problem = ""

    def fields(self) -> Sequence[Field]:
        """The fields, read once when the form opens."""
        raise NotImplementedError

    def accept(self, values: Values) -> Any:
        """The result of the form. Raises FieldError or another ConsoleError, which keeps the form open."""
        raise NotImplementedError

    def extra(self) -> ComposeResult:
        """Widgets between the fields and the hint."""
        yield from ()

    def more_buttons(self) -> ComposeResult:
        """Buttons between Cancel and the one that saves."""
        yield from ()

    def hint(self, field: Field) -> str:
        """The line shown while the field has the focus."""
        return field.hint

    def compose(self) -> ComposeResult:
        """The fields with their labels, then hint and buttons."""
        self._fields = {field.name: field for field in self.fields()}
        with self.frame(self._title, f"enter, ^s {self._save.lower()}{self._keys} · esc cancel", classes="form"):
            with VerticalScroll(classes="scroll", can_focus=False), Grid(classes="fields"):
                for field in self._fields.values():
                    yield Label(field.label, markup=False)
                    yield self._make_control(field)
            yield from self.extra()
            yield Static(classes="hint", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield from self.more_buttons()
                yield Button(self._save, id="save", variant="primary", compact=True)

    def _make_control(self, field: Field) -> Input | Select[str]:
        name = f"field-{field.name.replace('.', '-')}"
        if field.choices:
            values = [value for _, value in field.choices]
            value = field.value if field.value in values else values[0]  # of another version, or another machine
            return Select(field.choices, value=value, allow_blank=False, compact=True, id=name)
        return Input(field.value, password=field.secret, compact=True, id=name, select_on_focus=not field.secret)

    def control(self, name: str) -> Input | Select[str]:
        """The widget of a field."""
        found = self.query_one(f"#field-{name.replace('.', '-')}")
        assert isinstance(found, Input | Select)  # noqa: S101 - `_make_control` makes no other
        return found

    def value(self, name: str) -> str:
        """The present value of a field, without blanks around it."""
        return str(self.control(name).value).strip()

    @property
    def focused_field(self) -> Field | None:
        """The field with the focus."""
        name = (self.focused.id or "") if self.focused else ""
        return next((field for field in self._fields.values() if name == self.control(field.name).id), None)

    def on_mount(self) -> None:
        """Focus the first field; the others show the end of their values, which says more than the beginning."""
        self.call_after_refresh(self._show_ends)
        self.control(next(iter(self._fields))).focus()

    def _show_ends(self) -> None:
        for entry in self.query(Input):
            if not entry.has_focus:
                _show_end(entry)

    def _on_descendant_focus(self) -> None:
        self.show_hint()

    def _on_input_changed(self) -> None:
        self._problem = ""
        self.show_hint()

    def show_hint(self) -> None:
        """Show the hint of the field with the focus; an error message stays until something is typed."""
        field = self.focused_field
        text = self._problem or (self.hint(field) if field else "")
        self.query_one(".hint", Static).set_class(bool(self._problem), "-error").update(text)

    def _on_input_submitted(self) -> None:
        self.action_save()

    def _on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "save":
            self.action_save()
        elif event.button.id == "cancel":
            self.action_back()

    def action_save(self) -> None:
        """Check the values and return the result; an error is shown at the field that it names."""
        try:
            result = self.accept({name: self.value(name) for name in self._fields})
        except ConsoleError as error:
            self._problem = str(error)
            if isinstance(error, FieldError) and error.field in self._fields:
                self.control(error.field).focus()
            self.show_hint()
        else:
            self.dismiss(result)


class ListScreen(ConsoleModal):
    """Returns (key, index of the row) for Enter or one of `keys`, or None.

    With `read`, the rows are painted again twice a second from what it returns, which has as many. The cursor begins at
    the row `at`.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "back", show=False)]

    def __init__(
        self,
        title: str,
        rows: Sequence[Line],
        *,
        hint: str = "enter OK",
        keys: str = "",
        read: Callable[[], Sequence[Line]] | None = None,
        at: int = 0,
    ) -> None:
        super().__init__()
        self._at = at
        self._title = title
        self._rows = rows
        self._read = read
        self._hint = hint
        self._keys = keys

    def compose(self) -> ComposeResult:
        # Where keys act on a row, "cancel" could mean the job of the row.
        with self.frame(self._title, f"{self._hint} · esc {'close' if self._keys else 'cancel'}"):
            yield VirtualTable[Line](lambda line, width: Line().extend(line).to(width), id="choices")

    def on_mount(self) -> None:
        """Fill the list and focus it."""
        table = self.query_one(VirtualTable)
        table.show(self._rows, self._at)
        table.styles.height = min(max(1, len(self._rows)), 16)
        table.focus()
        if self._read is not None:
            read = self._read
            self.set_interval(_REFRESH_S, lambda: table.show(read(), table.cursor))

    def _on_virtual_table_opened(self, event: VirtualTable.Opened) -> None:
        self.dismiss(("enter", event.index))

    def key_enter(self, event: events.Key) -> None:
        """Return the row under the cursor."""
        event.stop()  # the screen below would handle it, too
        self._answer("enter")

    def on_key(self, event: events.Key) -> None:
        """Return the row under the cursor with one of `keys`."""
        if event.character and event.character in self._keys:
            event.stop()
            self._answer(event.character)

    def _answer(self, key: str) -> None:
        if self._rows:
            self.dismiss((key, self.query_one(VirtualTable).cursor))


class TextScreen(ConsoleModal):
    """A text to select, or to write to `path`, for terminals whose clipboard cannot be set."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,enter", "back", show=False),
        Binding("w", "write", "Write", show=False),
    ]

    def __init__(self, title: str, text: str, note: str, path: Path) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._note = note
        self._path = path

    def compose(self) -> ComposeResult:
        with self.frame(self._title, "w write to a file · esc close", id="text-screen"):
            yield Static(self._note, markup=False, classes="hint")
            yield TextArea(self._text, read_only=True, soft_wrap=True, show_line_numbers=False, compact=True, id="text")

    def on_mount(self) -> None:
        """Remove the focus, so that keys are commands."""
        self.set_focus(None)

    def action_write(self) -> None:
        """Write the text to a file in the working directory."""
        try:
            self._path.write_text(self._text + "\n", encoding="utf-8")
        except OSError as error:
            self.show_error(ConsoleError(f"{self._path} cannot be written: {error.strerror}."))
        else:
            self.notify(f"Written to {self._path}", markup=False)


class ImageScreen(ConsoleModal):
    """An image over the whole screen, in the terminal's own graphics where it has them.

    `pixels` is uint8, height x width x 3 (RGB).
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,enter,i", "back", show=False)]

    def __init__(self, title: str, pixels: NDArray[np.uint8]) -> None:
        super().__init__()
        self._title = title
        self._pixels = pixels

    def compose(self) -> ComposeResult:
        with self.frame(self._title, "esc close", classes="-full", id="image-screen"):
            yield image_widget(self._pixels, graphics_of(os.environ)) or DetailView(self._blocks, id="image")

    def on_mount(self) -> None:
        """Draw with letters on terminals without colours."""
        for view in self.query(DetailView):
            view.plain = self.plain

    def _blocks(self, _width: int, _height: int) -> list[Block]:
        return [ImageBlock(self._pixels)]


class DetailScreen(ConsoleModal):
    """Scrolled lines, painted again twice a second. `key` opened the screen, and closes it like Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("q", "back", show=False)]

    def __init__(self, title: str, key: str, painter: Painter) -> None:
        super().__init__()
        self._title = title
        self._painter = painter
        self._key = key

    def compose(self) -> ComposeResult:
        with self.frame(self._title, "esc close", classes="-full", scroll=True):
            yield Panel(self._paint, id="detail")

    def on_mount(self) -> None:
        """Paint twice a second."""
        self.query_one(VerticalScroll).focus()
        self.set_interval(_REFRESH_S, self.query_one(Panel).redraw)

    def on_key(self, event: events.Key) -> None:
        """Close the screen with the key that opened it."""
        if event.key == self._key:
            event.stop()
            self.dismiss()

    def _paint(self, width: int, _height: int) -> Sequence[Line]:
        room = self.query_one(VerticalScroll).size.height
        lines = self._painter(width, room)
        self.query_one(Panel).styles.height = max(room, len(lines))
        return lines
