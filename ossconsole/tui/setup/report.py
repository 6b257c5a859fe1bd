"""ReportScreen: each step of a proving in full, as text that can be selected and copied."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from ossconsole.storage.steps import Step
from ossconsole.tui.screens.base import ConsoleModal
from ossconsole.tui.setup.proof import Proof
from ossconsole.tui.text import milliseconds, safe


class ReportScreen(ConsoleModal):
    """Scrolls; `y` copies all of it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,d,q", "dismiss", "Back", show=False),
        Binding("y", "copy", "Copy", show=False),
    ]

    def __init__(self, proof: Proof) -> None:
        super().__init__()
        self._text = "\n".join(_words(step) for step in proof.steps) or safe(proof.problem)

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog -full") as dialog:
            dialog.border_title = "What the proving found"
            dialog.border_subtitle = "y copy · esc back"
            yield Static(self._text, markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._text)
        self.notify("Copied.", timeout=2)


def _words(step: Step) -> str:
    where = f"{step.kind or 'permission':<12} {step.stage:<12} {step.status:<8}{milliseconds(step.seconds):>6} ms"
    ids = ", ".join(part for part in (step.code, step.ec, step.request_id) if part)
    lines = [f"{where}  {safe(step.detail)}"]
    lines += [f"{'':13}{label}: {safe(text)}" for label, text in (("OSS", ids), ("remedy", step.remedy)) if text]
    return "\n".join(lines)
