"""Every action of the console, in one place: key bindings, footer, help and command palette are made from it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding


@dataclass(frozen=True)
class Action:
    """One action of a screen (`scope`), or of all of them (scope `app`).

    `call` is Textual's action string. `keys` are separated by commas, the first is the one shown. `footer` orders the
    footer, highest first; 0 keeps the action out of it.
    """

    scope: str
    call: str
    keys: str
    label: str
    help: str
    footer: int = 0

    @property
    def binding(self) -> Binding:
        target = f"app.{self.call}" if self.scope == "app" else self.call
        return Binding(
            self.keys, target, self.label, show=self.footer > 0, id=f"{self.scope}.{self.call}", tooltip=self.help
        )

    @property
    def name(self) -> str:
        """The action's name without its arguments."""
        return self.call.split("(", 1)[0]

    @property
    def key_text(self) -> str:
        return key_text(self.keys.split(",", maxsplit=1)[0])


_KEY_WORDS = {
    "question_mark": "?",
    "plus": "+",
    "minus": "-",
    "slash": "/",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "escape": "esc",
    "backspace": "⌫",
    "full_stop": ".",
    "comma": ",",
    "less_than_sign": "<",
    "greater_than_sign": ">",
}


def key_text(key: str) -> str:
    """A key as people write it."""
    if key.startswith("ctrl+"):
        return "^" + key.removeprefix("ctrl+")
    return _KEY_WORDS.get(key, key)


SCOPE_TITLES = {
    "app": "Everywhere",
    "setup": "Setup",
    "browse": "Browse",
    "upload": "Upload",
    "train": "Train",
    "runs": "Runs",
}

ACTIONS = (
    Action("app", "mode('setup')", "1", "Setup", "Profile, credentials and endpoints"),
    Action("app", "mode('browse')", "2", "Browse", "Folders and objects of the bucket"),
    Action("app", "mode('upload')", "3", "Upload", "Prepare a dataset and upload it"),
    Action("app", "mode('train')", "4", "Train", "The training run, live"),
    Action("app", "help", "question_mark,f1", "Help", "What every key does", footer=5),
    Action("app", "command_palette", "ctrl+p", "Commands", "Find an action by name", footer=2),
    Action("app", "log", "f12", "Log", "The program's log, with what native libraries print"),
    Action("app", "next_theme", "f9", "Theme", "The next colour theme"),
    Action("app", "next_glyphs", "f10", "Symbols", "Charts in braille, blocks or plain ASCII"),
    Action("app", "quit", "q,ctrl+q", "Quit", "Leave the console", footer=4),
    Action("app", "interrupt", "ctrl+c", "Interrupt", "Copy the selection, or say how to leave"),
    Action("setup", "check", "c,r", "Check", "Ask the bucket through every endpoint", footer=90),
    Action("browse", "open", "enter,l,right", "Open", "Open the folder", footer=90),
    Action("browse", "back", "backspace,h,left", "Back", "The folder above", footer=80),
    Action("browse", "refresh", "r", "Refresh", "List the folder again", footer=70),
    Action("browse", "checkpoints", "C", "Checkpoints", "Jump to the checkpoints", footer=60),
    Action("browse", "dataset", "D", "Dataset", "Jump to the dataset", footer=50),
    Action("upload", "start", "ctrl+s", "Start", "Prepare and upload the source", footer=90),
    Action("upload", "pause", "p", "Pause", "Pause the upload, or go on", footer=80),
    Action("upload", "cancel", "x", "Cancel", "End the upload; what is uploaded stays", footer=70),
    Action("train", "new_run", "n", "New run", "Set up a run and start it", footer=95),
    Action("train", "switch", "e", "Endpoint", "Switch between standard and accelerated, while it runs", footer=90),
    Action("train", "pause", "space", "Pause", "Pause the run, or go on", footer=85),
    Action("train", "stop", "s", "Stop", "Write a checkpoint and end the run", footer=80),
    Action("train", "checkpoint", "c", "Checkpoint", "Write a checkpoint now", footer=70),
    Action("train", "auto_compare", "a", "Auto A/B", "Alternate endpoints until the ratio is known", footer=75),
)


def of(scope: str) -> tuple[Action, ...]:
    """The actions of one scope, in the registry's order."""
    return tuple(action for action in ACTIONS if action.scope == scope)


def bindings(scope: str) -> list[Binding]:
    return [action.binding for action in of(scope)]
