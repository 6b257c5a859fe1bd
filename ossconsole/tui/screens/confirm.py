"""ConfirmScreen: a question whose safe answer has the focus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import msgspec
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Static

from ossconsole.tui.screens.base import ConsoleModal
from ossconsole.tui.text import safe


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
