"""Where the console keeps its files; every folder is private to the user (0700)."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from ossconsole.config.errors import SettingsError

CONFIG_DIR_VARIABLE = "OSSCONSOLE_CONFIG_DIR"
STATE_DIR_VARIABLE = "OSSCONSOLE_STATE_DIR"
_APP = "ossconsole"


def config_dir() -> Path:
    """Profiles and connector configuration. Raises SettingsError when it cannot be made."""
    return _private_dir(CONFIG_DIR_VARIABLE, platformdirs.user_config_path(_APP))


def state_dir() -> Path:
    """Run records, journals, logs and the sandbox's objects. Raises SettingsError when it cannot be made."""
    return _private_dir(STATE_DIR_VARIABLE, platformdirs.user_state_path(_APP))


def short_path(path: Path | str) -> str:
    """The path with `~` for the home folder, as it is shown."""
    text, home = str(path), str(Path.home())
    return "~" + text[len(home) :] if text == home or text.startswith(home + os.sep) else text


def _private_dir(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable) or default).expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The folder {path} cannot be made: {error.strerror}.",
            remedy=f"Free the path, or set {variable} to a folder you may write.",
        ) from error
    return path
