"""A bare Textual app with panels, figures that change four times a second, and a dialog: what Textual itself costs."""

from __future__ import annotations

import itertools
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

_KEYS = "\n".join(f"key {number:2}  what action {number} does, in a few words" for number in range(60))
_ROWS = "·   ·   ·   ⣀⣀⣀⡀  ·   ·   ·\n⠒⠒⠒⠒⠒⠒⠒⠒⠃   ·   ·   ·   ·\n       ⠈⠉⠉⠙⠲⢤⣀"


class Dialog(ModalScreen[None]):
    """The help."""

    CSS = """
    Dialog { align: center middle; }
    Dialog VerticalScroll { width: 70; height: 20; border: round blue; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("q,escape", "dismiss", show=False)]

    def compose(self) -> ComposeResult:
        """One text that scrolls."""
        with VerticalScroll() as frame:
            frame.border_title = "Keys"
            yield Static(_KEYS)


class PrototypeApp(App[None]):
    """A dashboard of 80x24: two rows of figures, four charts, and lines of events."""

    CSS = """
    Static { height: auto; }
    .chart { width: 1fr; height: 5; border-top: solid gray; }
    Horizontal { height: 5; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "title('loss, log')", show=False),
        Binding("u", "title('loss, raw')", show=False),
        Binding("question_mark", "help", show=False),
    ]

    def compose(self) -> ComposeResult:
        """The panels."""
        yield Static("1 Setup 2 Browse 3 Upload 4 Train", id="modes")
        yield Static(id="figures")
        for number in range(2):
            with Horizontal():
                for side in range(2):
                    yield Static(_ROWS, classes="chart", id=f"chart-{2 * number + side}")
        yield Static("events\n" * 4)

    def on_mount(self) -> None:
        """Update four times a second, as the console does."""
        self._steps = itertools.count(1)
        self._titled = False
        self.set_interval(0.25, self._tick)
        self._tick()

    def _tick(self) -> None:
        step = next(self._steps)
        figures = f"step {step:,}  samples/s {700 + step % 90}.{step % 10}\nsamples/s   data wait   loss\n{step % 97} %"
        self.query_one("#figures", Static).update(figures)
        for number in range(4):
            self.query_one(f"#chart-{number}", Static).update(f"{_ROWS[step % 7 :]}")

    def action_title(self, title: str) -> None:
        """Change one chart and its title; the same key again takes the change away."""
        chart = self.query_one("#chart-3", Static)
        chart.border_title = "loss" if self._titled else title
        chart.update(_ROWS if self._titled else _ROWS[::-1])
        self._titled = not self._titled

    def action_help(self) -> None:
        """Open the dialog."""
        self.push_screen(Dialog())


if __name__ == "__main__":
    PrototypeApp().run()
