"""TypedConfirmScreen: a question that is answered by typing a name, for what costs money or cannot be undone."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, Static

from ossconsole.tui.screens.base import ConsoleModal
from ossconsole.tui.text import safe


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
