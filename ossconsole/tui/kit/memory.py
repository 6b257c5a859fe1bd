"""What the console remembers between sessions, mostly per profile: a small JSON file in the state folder.

It is nice to have: nothing here raises, and what cannot be kept or read is told in words.
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
"""The shape of each form's values; any object for the form of another version."""


def recall(form: str, profile: str) -> dict[str, Any]:
    """The values last used in `form` with `profile`; empty where there are none that fit."""
    try:
        return _decode(form, _fitting(_read()).get(f"{form}/{profile}", msgspec.Raw(b"{}")))
    except (SettingsError, msgspec.DecodeError):  # `check` tells of it
        return {}


def remember(form: str, profile: str, values: dict[str, Any]) -> str:
    """Keeps `values` for the next time; gives what to tell the user about that, "" when all is well."""
    problem = check()
    try:
        known = _fitting(_read())
        known[f"{form}/{profile}"] = msgspec.Raw(msgspec.json.encode(values))
        _write(known)
    except SettingsError as error:
        problem = f"Not remembered for the next time: {error}"
    if problem:
        log.warning("%s: %s", form, problem)
    return problem


def check() -> str:
    """Sets the file aside when it is damaged, but for what fits; gives what to tell the user, "" when all is well."""
    try:
        data = _read()
        fitting = _fitting(data)
        if data is None or len(fitting) == _count(data):
            return ""
        kept = set_aside(_path())
        if fitting:
            _write(fitting)
    except SettingsError as error:
        return str(error)
    return f"What the console remembers of forms and bookmarks was damaged. The file is kept as {kept}."


def _path() -> Path:
    return state_dir() / _FILE


def _read() -> bytes | None:
    return read_private(_path())


def _write(entries: dict[str, msgspec.Raw]) -> None:
    write_private(_path(), msgspec.json.format(msgspec.json.encode(entries)))


def _count(data: bytes) -> int:
    """The number of entries, -1 where it is no object."""
    try:
        return len(decode_json(data, dict[str, msgspec.Raw]))
    except msgspec.DecodeError:
        return -1


def _fitting(data: bytes | None) -> dict[str, msgspec.Raw]:
    """The entries that have the shape of their form."""
    try:
        entries: dict[str, msgspec.Raw] = {} if data is None else decode_json(data, dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return {}
    fitting = {}
    for key, value in entries.items():
        try:
            _decode(key.partition("/")[0], value)
        except msgspec.DecodeError:
            continue
        fitting[key] = value
    return fitting


def _decode(form: str, value: msgspec.Raw) -> dict[str, Any]:
    found: dict[str, Any] = decode_json(bytes(value), _FORMS.get(form, dict[str, Any]))
    return found
