"""What the console remembers between sessions, mostly per profile: a small JSON file in the state folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ossconsole.config.files import write_private
from ossconsole.config.paths import state_dir

_FILE = "forms.json"


def _path() -> Path:
    return state_dir() / _FILE


def _read() -> dict[str, dict[str, Any]]:
    """Everything remembered; nothing where the file is missing or not ours."""
    try:
        return msgspec.json.decode(_path().read_bytes(), type=dict[str, dict[str, Any]])
    except (OSError, msgspec.DecodeError):
        return {}


def recall(form: str, profile: str) -> dict[str, Any]:
    """The values last used in `form` with `profile`; empty where there are none."""
    return _read().get(f"{form}/{profile}", {})


def remember(form: str, profile: str, values: dict[str, Any]) -> None:
    """Keep `values` for the next time. Raises SettingsError where the file cannot be written."""
    known = _read()
    known[f"{form}/{profile}"] = values
    write_private(_path(), msgspec.json.format(msgspec.json.encode(known)))
