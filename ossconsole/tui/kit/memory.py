"""Values of forms and bookmarks that are kept between sessions, mostly per profile: a JSON file in the state folder.

They are a convenience: nothing here raises, and problems are returned as text.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from ossconsole.config.errors import SettingsError
from ossconsole.config.files import decode_json, read_private, set_aside, state_dir, write_private

log = logging.getLogger(__name__)

_FILE = "forms.json"


class _Look(TypedDict, total=False):
    theme: str
    glyphs: str


class _Bookmarks(TypedDict, total=False):
    prefixes: list[str]


class _Download(TypedDict, total=False):
    folder: str


class _Upload(TypedDict, total=False):
    recent: list[str]
    format: str
    size: str
    shape: str
    stored: str
    prefix: str


_FORMS: dict[str, Any] = {
    "look": _Look,
    "bookmarks": _Bookmarks,
    "download": _Download,
    "upload": _Upload,
    "train": dict[str, bool | int | float | str],
}
"""The type of the values of each form; any object for a form of another version."""


def recall(form: str, profile: str) -> dict[str, Any]:
    """The values last used in `form` with `profile`; empty where there are none, or they are not valid."""
    try:
        return _decode(form, _valid(_read()).get(f"{form}/{profile}", msgspec.Raw(b"{}")))
    except (SettingsError, msgspec.DecodeError):  # `check` reports it
        return {}


def remember(form: str, profile: str, values: dict[str, Any]) -> str:
    """Keeps `values` for the next session. Returns a message for the user where that fails, else ""."""
    problem = check()
    try:
        entries = _valid(_read())
        entries[f"{form}/{profile}"] = msgspec.Raw(msgspec.json.encode(values))
        _write(entries)
    except SettingsError as error:
        problem = f"Not remembered for the next session: {error}"
    if problem:
        log.warning("%s: %s", form, problem)
    return problem


def check() -> str:
    """Sets a damaged file aside and keeps its valid entries. Returns a message for the user, else ""."""
    try:
        data = _read()
        valid = _valid(data)
        if valid == _entries(data):
            return ""
        kept = set_aside(_path())
        if valid:
            _write(valid)
    except SettingsError as error:
        return str(error)
    return f"The file with the values of forms and bookmarks was damaged. It is kept as {kept}."


def _path() -> Path:
    return state_dir() / _FILE


def _read() -> bytes | None:
    return read_private(_path())


def _write(entries: dict[str, msgspec.Raw]) -> None:
    write_private(_path(), msgspec.json.format(msgspec.json.encode(entries)))


def _entries(data: bytes | None) -> dict[str, msgspec.Raw] | None:
    """All entries; None where the data is not a JSON object."""
    try:
        return {} if data is None else decode_json(data, dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return None


def _valid(data: bytes | None) -> dict[str, msgspec.Raw]:
    """The entries whose values have the type of their form."""
    valid = {}
    for key, value in (_entries(data) or {}).items():
        try:
            _decode(key.partition("/")[0], value)
        except msgspec.DecodeError:
            continue
        valid[key] = value
    return valid


def _decode(form: str, value: msgspec.Raw) -> dict[str, Any]:
    decoded: dict[str, Any] = decode_json(bytes(value), _FORMS.get(form, dict[str, Any]))
    return decoded
