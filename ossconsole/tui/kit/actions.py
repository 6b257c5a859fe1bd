"""All actions of the console: key bindings, footer, help and command palette are generated from this table.

`[keys]` in the settings replaces keys of it (`use_keymap`): the console runs once in a process, so its keys are global.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from textual.binding import Binding

from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import settings_path


@dataclass(frozen=True)
class KeyAction:
    """One action of a screen (`scope`), or of all screens (scope `app`).

    `call` is Textual's action string. `default_keys` are separated by commas; the first one is shown. `footer` is the
    order in the footer, highest first; 0 keeps the action out of it. `label_now` replaces the label in the footer.
    """

    scope: str
    call: str
    default_keys: str
    label: str
    help: str
    footer: int = 0
    label_now: str = ""

    @property
    def footer_label(self) -> str:
        """The label in the footer: what the action does now."""
        return self.label_now or self.label

    @property
    def binding(self) -> Binding:
        """The Textual binding of the action."""
        target = f"app.{self.call}" if self.scope == "app" else self.call
        return Binding(self.keys, target, self.label, show=self.footer > 0, id=self.id, tooltip=self.help)

    @property
    def id(self) -> str:
        """The name of the action in `[keys]`: its scope and its label, as in `train.new-run`."""
        return f"{self.scope}.{re.sub('[^a-z0-9]+', '-', self.label.lower()).strip('-')}"

    @property
    def keys(self) -> str:
        """The keys in use, separated by commas."""
        return _keymap.get(self.id, self.default_keys)

    @property
    def name(self) -> str:
        """The name of the action without arguments."""
        return self.call.split("(", 1)[0]

    @property
    def key_text(self) -> str:
        """The first key, as people write it."""
        return key_text(self.keys.split(",", maxsplit=1)[0])


_keymap: dict[str, str] = {}
_KEY_WORDS = {
    "colon": ":",
    "semicolon": ";",
    "exclamation_mark": "!",
    "at": "@",
    "number_sign": "#",
    "dollar_sign": "$",
    "percent_sign": "%",
    "ampersand": "&",
    "underscore": "_",
    "grave_accent": "`",
    "tilde": "~",
    "vertical_line": "|",
    "backslash": "\\",
    "quotation_mark": '"',
    "left_parenthesis": "(",
    "right_parenthesis": ")",
    "left_curly_bracket": "{",
    "right_curly_bracket": "}",
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
    "welcome": "Welcome",
    "setup": "Setup",
    "browse": "Browse",
    "upload": "Upload",
    "train": "Train",
    "view": "Charts",
    "replay": "Replay",
    "runs": "Runs",
    "compare": "Compare",
}


def _scope(scope: str, *rows: tuple[str, str, str, str, int]) -> list[KeyAction]:
    """The actions of one scope, each row as call, keys, label, help and order in the footer."""
    return [KeyAction(scope, *row) for row in rows]


ACTIONS = (
    *_scope(
        "app",
        ("mode('setup')", "1", "Setup", "Profile, credentials and endpoints", 0),
        ("mode('browse')", "2", "Browse", "Folders and objects of the bucket", 0),
        ("mode('upload')", "3", "Upload", "Prepare a dataset and upload it", 0),
        ("mode('train')", "4", "Train", "The training run, live", 0),
        ("work", "0", "Work", "Show the run, the upload or the jobs in progress, failed ones first", 0),
        ("help", "question_mark,f1", "Help", "All keys", 5),
        ("tour", "W", "Tour", "Captions that name each panel once", 0),
        ("command_palette", "colon,ctrl+p", "Commands", "Find an action by name", 2),
        ("log", "L,f12", "Log", "The program's log and the output of native libraries", 0),
        ("next_theme", "M,f9", "Theme", "The next colour theme", 0),
        ("next_glyphs", "Y,f10", "Symbols", "Charts in braille, blocks or plain ASCII", 0),
        ("quit", "q,ctrl+q", "Quit", "Quit the console", 4),
        ("suspend", "Z,ctrl+z", "Suspend", "Stop the console and return to the shell; fg continues it", 0),
        ("interrupt", "K,ctrl+c", "Interrupt", "Copy the selection, or show how to quit", 0),
    ),
    *_scope(
        "welcome",
        ("demo", "d", "Demo", "A run on a local object store; no account needed", 90),
        ("connect", "c", "Connect", "Set up a bucket: region, endpoints, AccessKey", 80),
        ("continue_run", "r", "Runs", "The recorded runs: resume, replay, compare", 70),
        ("select", "enter", "Select", "Start what is selected", 0),
    ),
    *_scope(
        "setup",
        ("test", "c", "Test", "Test both endpoints and this key's permissions", 90),
        ("profiles", "p", "Profiles", "Use, create, copy, edit, rename or delete a profile", 80),
        ("edit", "e", "Edit", "Edit the profile in use", 70),
        ("key", "k", "Key", "Enter an AccessKey or import one from another tool", 60),
        ("accelerator", "a", "Accelerator", "Create, change or delete the bucket's accelerator", 50),
        ("connector", "o", "Connector", "Edit the connector's configuration", 40),
        ("warm_up", "w", "Warm up", "Read the dataset once into the accelerator's cache", 35),
        ("create_bucket", "b", "Create bucket", "Create the bucket that the test did not find", 95),
        ("report", "d", "Report", "Each step of the test in full, with OSS request IDs", 30),
        ("reload", "r", "Reload", "Read settings and credentials again", 0),
    ),
    *_scope(
        "browse",
        ("open", "enter,l,right", "Open", "Open the folder, or all details of the object", 90),
        ("up", "backspace,h,left", "Up", "Open the parent folder", 80),
        ("filter", "slash", "Filter", "Show only the loaded names that match", 75),
        ("go_to", "g", "Go to", "List a prefix on the server", 70),
        ("sort", "s", "Sort", "Sort by the next column", 65),
        ("reverse", "S", "Reverse", "Reverse the order", 0),
        ("select", "space", "Select", "Select or deselect the row", 60),
        ("select_range", "v", "Range", "Start or end a range selection", 0),
        ("select_all", "a", "All", "Select all visible rows, or none", 0),
        ("select_pattern", "asterisk", "Pattern", "Select the loaded names that match", 0),
        ("download", "d", "Download", "Download the selection, with subfolders", 58),
        ("upload", "u", "Upload", "Upload a file or a folder, as it is, to this folder", 54),
        ("two_panes", "t", "Two panes", "Show a local folder beside the bucket, to copy both ways", 0),
        ("switch_side", "tab", "Other side", "Move the cursor to the other of the two panes", 88),
        ("sync", "n", "Sync", "Compare both panes, show the plan, then copy what is new or changed", 59),
        ("delete", "x,delete", "Delete", "Delete the selection, after a confirmation", 45),
        ("copy", "c", "Copy", "Copy inside the bucket, on the server", 0),
        ("rename", "m", "Rename", "Rename or move, on the server", 0),
        ("addresses", "y", "Address", "Copy URI, key, URL or presigned URL", 40),
        ("count", "z", "Count", "Count the objects below and their total size", 50),
        ("image", "i", "Image", "Show the image over the whole screen", 0),
        ("images", "p", "Images", "Preview the first images of the folder", 0),
        ("toggle_pane", "w", "Pane", "Toggle full-width details", 0),
        ("train_from", "T", "Resume from", "Start a run from this checkpoint", 57),
        ("best", "B", "Best", "Copy this checkpoint to the best one of its model", 0),
        ("compare", "equals_sign", "Compare", "Compare the two selected checkpoints", 0),
        ("check_manifest", "f", "Check", "Compare the manifest with the listing", 0),
        ("restore", "R", "Restore", "Make archived objects readable for a day", 0),
        ("uploads", "U", "Uploads", "Unfinished multipart uploads", 0),
        ("jobs", "J", "Jobs", "Jobs: cancel, retry, show failures", 0),
        ("checkpoints", "C", "Checkpoints", "Jump to the checkpoints", 56),
        ("dataset", "D", "Dataset", "Jump to the dataset", 55),
        ("bookmark", "b", "Bookmark", "Add or remove a bookmark", 0),
        ("bookmarks", "apostrophe", "Bookmarks", "Jump to a bookmark", 0),
        ("buckets", "o", "Buckets", "Open another bucket of the account", 0),
        ("history_back", "left_square_bracket", "Back", "Back in history", 0),
        ("history_forward", "right_square_bracket", "Forward", "Forward in history", 0),
        ("refresh", "r", "Refresh", "List again, or continue after a stop", 52),
    ),
    *_scope(
        "upload",
        ("start", "s,ctrl+s", "Start", "Show the plan of the upload, then start it", 90),
        ("pick", "o", "Open", "Select a source from a tree or the recent ones", 85),
        ("advanced", "a", "Advanced", "Label files, a held-out share, and the encoding of names", 82),
        ("pause", "p", "Pause", "Pause or resume the upload", 80),
        ("cancel", "x", "Cancel", "End the upload; uploaded samples stay", 70),
        ("retry", "r", "Retry", "Upload only what failed or is missing", 78),
        ("new", "n", "New", "Prepare another upload", 76),
        ("problems", "f", "Problems", "All files that failed, were rejected or are not used, in full", 0),
        ("parallel(1)", "plus,equals_sign", "More", "Send more samples simultaneously", 40),
        ("parallel(-1)", "minus", "Fewer", "Send fewer samples simultaneously", 38),
        ("bandwidth", "b", "Bandwidth", "Cap the bytes sent per second, or remove the cap", 36),
        ("back", "escape", "Back", "Cancel the scan of the source, or edit the form", 0),
    ),
    *_scope(
        "train",
        ("new_run", "n", "New run", "Configure a run and start it", 95),
        ("switch", "e", "Endpoint", "Switch between standard and accelerated during the run", 90),
        ("pause", "space", "Pause", "Pause or resume the run", 85),
        ("stop", "s", "Stop", "Write a checkpoint and end the run", 80),
        ("auto_compare", "a", "Auto A/B", "Alternate the endpoints until the ratio is known", 75),
        ("control", "A", "A/A", "Control: one endpoint under both names; must find 1.00", 0),
        ("checkpoint", "c", "Checkpoint", "Write a checkpoint now", 70),
        ("runs", "r", "Runs", "All runs: replay, compare, export", 65),
        ("profile", "t", "Profile", "Record the next steps with torch.profiler", 0),
        ("resume", "T", "Resume", "Resume from the last checkpoint of the run", 63),
        ("learning_rate", "R", "Learning rate", "Change the peak learning rate of the run", 0),
        ("warm_up", "w", "Warm up", "Read the dataset once into the accelerator's cache", 0),
    ),
    *_scope(
        "view",
        ("next_charts", "v", "Charts", "Show the charts that did not fit", 60),
        ("zoom(1)", "plus,equals_sign", "Zoom in", "A shorter time window", 0),
        ("zoom(-1)", "minus", "Zoom out", "A longer time window, up to the whole run", 0),
        ("pan(-1)", "left,h", "Earlier", "Move the charts, or the crosshair, back in time", 0),
        ("pan(1)", "right,l", "Later", "Move the charts, or the crosshair, forward in time", 0),
        ("follow", "end,f", "Follow", "Return to the newest values", 0),
        ("crosshair", "x", "Crosshair", "The values at one moment; left and right move it", 0),
        ("log_scale", "y", "Log scale", "The loss on a logarithmic axis", 0),
        ("raw", "u", "Raw loss", "The raw loss alone, or behind the smoothed one", 0),
        ("comparison", "b", "A/B", "All measurements of both endpoints", 0),
        ("machine", "g", "Machine", "All metrics of GPUs and host", 0),
        ("events", "i", "Events", "All events of the run in full", 0),
        ("predictions", "p", "Predictions", "After the run: accuracy by class, confusions, the worst images", 0),
        ("dismiss_errors", "d", "Dismiss", "Dismiss all errors", 0),
    ),
    *_scope(
        "replay",
        ("play", "space", "Play", "Play or pause the record", 90),
        ("speed(1)", "greater_than_sign,full_stop", "Faster", "Play faster", 80),
        ("speed(-1)", "less_than_sign,comma", "Slower", "Play slower", 70),
        ("restart", "home", "Restart", "Play from the beginning", 60),
        ("skip", "G", "To the end", "Skip to the end", 65),
        ("leave", "escape,backspace", "Back", "Return to the runs", 95),
    ),
    *_scope(
        "runs",
        ("replay", "enter", "Open", "Replay the run, or watch it live", 95),
        ("mark", "space,m", "Mark", "Mark for the comparison", 80),
        ("compare", "c", "Compare", "Two to six marked runs, with their curves", 85),
        ("export", "x", "Export", "Write the run as CSV, JSON or for TensorBoard", 75),
        ("report", "w", "Report", "Write a page about the run, to send or print", 70),
        ("refresh", "r", "Refresh", "List the runs again", 60),
        ("leave", "escape,backspace", "Back", "Return to the Train screen", 90),
    ),
    *_scope(
        "compare",
        ("leave", "escape,backspace", "Back", "Return to the runs", 90),
        ("axis", "t", "Axis", "The curves over time, or over steps", 80),
        ("smoothing", "u", "Smoothing", "Average the curves over 0, 2, 5 or 10 % of the axis", 70),
    ),
)


_KEY = re.compile(
    r"(?:(?:ctrl|alt|shift)\+)*(?:[^\s,]|f[1-9]|f1\d|f2[0-4]|space|enter|escape|tab|backspace|delete|insert|home|end|"
    r"pageup|pagedown|up|down|left|right)"
)
_SHARED = (("train", "view", "app"), ("replay", "view", "app"))
"""Scopes whose actions are on one screen, besides each scope with `app`."""


def checked_keymap(keys: Mapping[str, str]) -> dict[str, str]:
    """The keys of `[keys]` by the id of the action, as Textual names them. Raises SettingsError."""
    known = {action.id: action for action in ACTIONS}
    found: dict[str, str] = {}
    names = {text: name for name, text in _KEY_WORDS.items()}
    for name, text in keys.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            remedy = f"Did you mean {close[0]!r}?" if close else "The help (?) shows the names of all actions."
            raise SettingsError(f"{settings_path()}, [keys] {name}: the action does not exist.", remedy=remedy)
        parts = [names.get(part.strip(), part.strip()) for part in text.split(",")]
        for part in parts:
            if part not in _KEY_WORDS and not _KEY.fullmatch(part):
                remedy = 'Write a character, or a name such as space, f5 or ctrl+s; separate several by ",".'
                raise SettingsError(f"{settings_path()}, [keys] {name}: {part!r} is not a key.", remedy=remedy)
        found[name] = ",".join(parts)
    for scopes in (*_SHARED, *((scope, "app") for scope in SCOPE_TITLES if scope != "app")):
        _refuse_conflicts([action for action in ACTIONS if action.scope in scopes], found)
    return found


def _refuse_conflicts(actions: list[KeyAction], keymap: Mapping[str, str]) -> None:
    """Raises SettingsError where two actions of one screen have the same key."""
    owners: dict[str, KeyAction] = {}
    for action in actions:
        for key in keymap.get(action.id, action.default_keys).split(","):
            other = owners.setdefault(key, action)
            if other is not action:
                name = action.id if action.id in keymap else other.id
                raise SettingsError(
                    f"{settings_path()}, [keys] {name}: {key_text(key)} is a key of both {other.id} and {action.id}.",
                    remedy="Give one of them another key.",
                )


def use_keymap(keymap: Mapping[str, str]) -> None:
    """Uses the keys of `checked_keymap` from now on, in place of those in the table."""
    _keymap.clear()
    _keymap.update(keymap)


def of(scope: str) -> tuple[KeyAction, ...]:
    """The actions of one scope, in the order of the table."""
    return tuple(action for action in ACTIONS if action.scope == scope)


def key_of(scope: str, call: str) -> str:
    """The first key of an action."""
    return next(action for action in of(scope) if action.call == call).keys.partition(",")[0]


def app_key_text(call: str) -> str:
    """The key of an action of the App, as people write it."""
    return key_text(key_of("app", call))


def bindings(scope: str) -> list[Binding]:
    """The Textual bindings of one scope."""
    return [action.binding for action in of(scope)]
