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
    "asterisk": "*",
    "equals_sign": "=",
    "apostrophe": "'",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
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
    "view": "Charts",
    "replay": "Replay",
    "runs": "Runs",
    "compare": "Compare",
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
    Action("setup", "prove", "c", "Prove", "Try both endpoints and what this key may do", footer=90),
    Action("setup", "profiles", "p", "Profiles", "Use, make, copy, change, rename or delete a profile", footer=80),
    Action("setup", "edit", "e", "Edit", "Change the profile in use", footer=70),
    Action("setup", "key", "k", "Key", "Enter an AccessKey, or take over another tool's", footer=60),
    Action("setup", "accelerator", "a", "Accelerator", "Create, change or delete the bucket's accelerator", footer=50),
    Action("setup", "connector", "o", "Connector", "Change the connector's configuration", footer=40),
    Action("setup", "create_bucket", "b", "Create bucket", "Create the bucket that proving found missing", footer=95),
    Action("setup", "report", "d", "Report", "Each step of the proving in full, with OSS's request ids", footer=30),
    Action("setup", "reload", "r", "Reload", "Read settings and credentials again"),
    Action("browse", "open", "enter,l,right", "Open", "Open the folder, or all of the detail", footer=90),
    Action("browse", "up", "backspace,h,left", "Up", "The folder above", footer=80),
    Action("browse", "filter", "slash", "Filter", "Show only the loaded names that match", footer=75),
    Action("browse", "go_to", "g", "Go to", "List a prefix, on the server", footer=70),
    Action("browse", "sort", "s", "Sort", "Sort by the next column", footer=65),
    Action("browse", "reverse", "S", "Reverse", "Sort the other way round"),
    Action("browse", "choose", "space", "Choose", "Choose the row, or no longer", footer=60),
    Action("browse", "choose_range", "v", "Range", "Begin a range of chosen rows, or end it"),
    Action("browse", "choose_all", "a", "All", "Choose all rows that show, or none"),
    Action("browse", "choose_pattern", "asterisk", "Pattern", "Choose the loaded names that match"),
    Action("browse", "download", "d", "Download", "Download what is chosen, and below", footer=58),
    Action("browse", "delete", "x,delete", "Delete", "Delete what is chosen, after asking", footer=45),
    Action("browse", "copy", "c", "Copy", "Copy inside the bucket, on the server"),
    Action("browse", "rename", "m", "Rename", "Rename or move, on the server"),
    Action("browse", "addresses", "y", "Address", "Copy URI, key, URL or presigned URL", footer=40),
    Action("browse", "count", "z", "Count", "Count objects and bytes below, live", footer=50),
    Action("browse", "picture", "i", "Picture", "The picture over the whole screen"),
    Action("browse", "pictures", "p", "Pictures", "A sheet of the folder's samples"),
    Action("browse", "wider", "w", "Pane", "The detail pane alone, or beside"),
    Action("browse", "train_from", "T", "Train on", "Start a run from this checkpoint", footer=57),
    Action("browse", "best", "B", "Best", "Copy this checkpoint to best.pt"),
    Action("browse", "compare", "equals_sign", "Compare", "Compare the two chosen checkpoints"),
    Action("browse", "check_manifest", "f", "Check", "Compare the manifest with the listing"),
    Action("browse", "restore", "R", "Restore", "Make archived objects readable for a day"),
    Action("browse", "uploads", "U", "Uploads", "Unfinished multipart uploads"),
    Action("browse", "jobs", "J", "Jobs", "Work: cancel, again, failures"),
    Action("browse", "checkpoints", "C", "Checkpoints", "Jump to the checkpoints", footer=56),
    Action("browse", "dataset", "D", "Dataset", "Jump to the dataset", footer=55),
    Action("browse", "bookmark", "b", "Bookmark", "Set a bookmark here, or take it away"),
    Action("browse", "bookmarks", "apostrophe", "Bookmarks", "Jump to a bookmark"),
    Action("browse", "buckets", "o", "Buckets", "Another bucket of the account"),
    Action("browse", "history_back", "left_square_bracket", "Back", "Where you were before"),
    Action("browse", "history_forward", "right_square_bracket", "Forward", "And back again"),
    Action("browse", "refresh", "r", "Refresh", "List again, or go on after a stop", footer=52),
    Action("upload", "start", "ctrl+s", "Start", "Show the plan of the upload, then start it", footer=90),
    Action("upload", "pick", "o", "Open", "Pick the source from a tree or the recent ones", footer=85),
    Action("upload", "pause", "p", "Pause", "Pause the upload, or go on", footer=80),
    Action("upload", "cancel", "x", "Cancel", "End the upload; what is uploaded stays", footer=70),
    Action("upload", "retry", "r", "Retry", "Send what failed or is missing, and only that", footer=78),
    Action("upload", "new", "n", "New", "Prepare another upload", footer=76),
    Action("upload", "parallel(1)", "plus,equals_sign", "More", "Send more samples at once", footer=40),
    Action("upload", "parallel(-1)", "minus", "Fewer", "Send fewer samples at once", footer=38),
    Action("upload", "bandwidth", "b", "Bandwidth", "Cap the bytes sent per second, or lift the cap", footer=36),
    Action("upload", "back", "escape", "Back", "Stop looking through the source, or change what was typed"),
    Action("train", "new_run", "n", "New run", "Set up a run and start it", footer=95),
    Action("train", "switch", "e", "Endpoint", "Switch between standard and accelerated, while it runs", footer=90),
    Action("train", "pause", "space", "Pause", "Pause the run, or go on", footer=85),
    Action("train", "stop", "s", "Stop", "Write a checkpoint and end the run", footer=80),
    Action("train", "auto_compare", "a", "Auto A/B", "Alternate endpoints until the ratio is known", footer=75),
    Action("train", "control", "A", "A/A", "Control: one endpoint under both names; must find 1.00"),
    Action("train", "checkpoint", "c", "Checkpoint", "Write a checkpoint now", footer=70),
    Action("train", "runs", "r", "Runs", "All runs: replay, compare, export", footer=65),
    Action("train", "learning_rate", "l", "Learning rate", "Change the peak learning rate of the run"),
    Action("view", "next_charts", "v", "Charts", "Show the charts there was no room for", footer=60),
    Action("view", "zoom(1)", "plus,equals_sign", "Zoom in", "A shorter stretch of time"),
    Action("view", "zoom(-1)", "minus", "Zoom out", "A longer stretch of time; the longest is the whole run"),
    Action("view", "pan(-1)", "left", "Earlier", "Move the charts, or the crosshair, back in time"),
    Action("view", "pan(1)", "right", "Later", "Move the charts, or the crosshair, on in time"),
    Action("view", "follow", "end,f", "Follow", "Back to the newest figures"),
    Action("view", "crosshair", "x", "Crosshair", "The values at one moment; left and right move it"),
    Action("view", "log_scale", "y", "Log scale", "The loss on a logarithmic axis"),
    Action("view", "raw", "u", "Raw loss", "The loss as measured alone, or behind the smoothed one"),
    Action("view", "comparison", "b", "A/B", "Everything that is known of both endpoints"),
    Action("view", "machine", "g", "Machine", "Every figure of every GPU, and of the host"),
    Action("view", "events", "i", "Events", "Every event of the run, with its whole text"),
    Action("view", "dismiss_errors", "d", "Dismiss", "The errors so far were read"),
    Action("replay", "play", "space", "Play", "Play or pause the record", footer=90),
    Action("replay", "speed(1)", "greater_than_sign,full_stop", "Faster", "Play faster", footer=80),
    Action("replay", "speed(-1)", "less_than_sign,comma", "Slower", "Play slower", footer=70),
    Action("replay", "restart", "home", "Restart", "From the beginning", footer=60),
    Action("replay", "skip", "G", "To the end", "Take in everything at once", footer=65),
    Action("replay", "leave", "escape,backspace", "Back", "Back to the runs", footer=95),
    Action("runs", "replay", "enter", "Open", "Replay the run, or watch one that is alive", footer=95),
    Action("runs", "mark", "space,m", "Mark", "Mark for the comparison", footer=80),
    Action("runs", "compare", "c", "Compare", "The two marked runs side by side", footer=85),
    Action("runs", "export", "x", "Export", "Write the run as CSV, JSON or for TensorBoard", footer=75),
    Action("runs", "refresh", "r", "Refresh", "Look for runs again", footer=60),
    Action("runs", "leave", "escape,backspace", "Back", "Back to the Train screen", footer=90),
    Action("compare", "leave", "escape,backspace", "Back", "Back to the runs", footer=90),
)


def of(scope: str) -> tuple[Action, ...]:
    """The actions of one scope, in the registry's order."""
    return tuple(action for action in ACTIONS if action.scope == scope)


def bindings(scope: str) -> list[Binding]:
    return [action.binding for action in of(scope)]
