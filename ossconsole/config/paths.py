"""Where the console keeps its files. Paths are only computed here; `ossconsole.config.files` makes what they name."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import platformdirs

CONFIG_DIR_VARIABLE = "OSSCONSOLE_CONFIG_DIR"
STATE_DIR_VARIABLE = "OSSCONSOLE_STATE_DIR"
_APP = "ossconsole"


def config_dir() -> Path:
    """The folder of profiles and connector configuration; it may be missing."""
    return _absolute(os.environ.get(CONFIG_DIR_VARIABLE) or platformdirs.user_config_path(_APP))


def state_dir() -> Path:
    """The folder of run records, journals, logs and the sandbox's objects; it may be missing."""
    return _absolute(os.environ.get(STATE_DIR_VARIABLE) or platformdirs.user_state_path(_APP))


def logs_dir() -> Path:
    """The folder of the logs, ours and the connector's; it may be missing."""
    return state_dir() / "logs"


def short_path(path: Path | str) -> str:
    """The path with `~` for the home folder, as it is shown."""
    text, home = str(path), str(Path.home())
    return "~" + text[len(home) :] if text == home or text.startswith(home + os.sep) else text


def exposed_folders() -> Iterator[str]:
    """A warning for each of the two folders that another user of the machine can write to."""
    for name, folder, variable in (
        ("settings", config_dir(), CONFIG_DIR_VARIABLE),
        ("state", state_dir(), STATE_DIR_VARIABLE),
    ):
        problem = exposure(folder)
        if problem:
            yield (
                f"The {name} folder {folder} {problem}: others can replace the files in it. "
                f"Make it private (chmod 700 {folder}), or set {variable} to another folder."
            )


def exposure(folder: Path) -> str:
    """Why users other than this one can write to `folder`; "" when none can, or it does not exist."""
    try:
        status = folder.stat()
    except OSError:  # the code that uses the folder reports this
        return ""
    if status.st_uid not in {0, os.geteuid()}:
        return f"belongs to another user (uid {status.st_uid})"
    mode = stat.S_IMODE(status.st_mode)
    return f"is writable for everybody (mode {mode:04o})" if mode & stat.S_IWOTH else ""


def _absolute(path: Path | str) -> Path:
    # Not Path.expanduser: without a home folder that raises, and the path is then at least named in the message.
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111
