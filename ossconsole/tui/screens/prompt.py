"""PromptScreen: one value, checked before it is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static

from ossconsole.tui.screens.base import ConsoleModal
from ossconsole.tui.text import safe


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
