"""The profiles on disk: one TOML file, private to the user, whose errors name file, line, key and what was meant."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ossconsole.config.errors import SettingsError
from ossconsole.config.files import read_text, write_private
from ossconsole.config.hosts import internal_endpoint
from ossconsole.config.paths import config_dir
from ossconsole.config.profile import SANDBOX_NAME, FieldError, Profile, check_profile_name, checked

_TOP_KEYS = ("active", "on_hangup", "profiles")
_PROFILE_KEYS = tuple(name for name in Profile.__struct_fields__ if name not in {"name", "simulated"})


class OnHangup(str, enum.Enum):
    """What becomes of a run or an upload when its terminal is lost, as in a dropped SSH connection."""

    GO_ON = "go-on"
    STOP = "stop"

    def __str__(self) -> str:
        return self.value


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All profiles, the name of the active one ("" for none: the sandbox), and what holds for all of them."""

    active: str = ""
    profiles: dict[str, Profile] = {}
    on_hangup: OnHangup = OnHangup.GO_ON

    def profile(self, name: str) -> Profile:
        """Raises SettingsError, naming the nearest profile, when there is none of this name."""
        try:
            return self.profiles[name]
        except KeyError:
            raise SettingsError(
                f"There is no profile {name!r}.", remedy=_meant(name, [*self.profiles, SANDBOX_NAME])
            ) from None

    def with_profile(self, profile: Profile, *, activate: bool = False) -> Settings:
        """With the profile added or replaced, once it has been checked."""
        _not_reserved(profile.name)
        profiles = {**self.profiles, profile.name: checked(profile)}
        return replace(self, active=profile.name if activate else self.active, profiles=profiles)

    def renamed(self, old: str, new: str) -> Settings:
        """Raises SettingsError when `new` is taken or no name."""
        _not_reserved(new)
        check_profile_name(new)
        profile = self.profile(old)
        if new != old and new in self.profiles:
            raise SettingsError(f"There is a profile {new!r} already.", remedy="Choose another name.")
        profiles = {
            (new if name == old else name): (replace(profile, name=new) if name == old else kept)
            for name, kept in self.profiles.items()
        }
        return replace(self, active=new if self.active == old else self.active, profiles=profiles)

    def without(self, name: str) -> Settings:
        self.profile(name)
        profiles = {kept: profile for kept, profile in self.profiles.items() if kept != name}
        return replace(self, active="" if self.active == name else self.active, profiles=profiles)

    def activated(self, name: str) -> Settings:
        """`name` may be "sandbox": no profile is active then."""
        if name in {"", SANDBOX_NAME}:
            return replace(self, active="")
        return replace(self, active=self.profile(name).name)


def settings_path() -> Path:
    return config_dir() / "profiles.toml"


def load_settings(path: Path | None = None) -> Settings:
    """The settings file, or empty settings where there is none. Raises SettingsError."""
    path = path or settings_path()
    text = read_text(path)
    return Settings() if text is None else _Reader(path, text).settings()


def save_settings(settings: Settings, path: Path | None = None) -> None:
    """Replaces the file in one step, mode 0600."""
    profiles = {name: _stored(profile) for name, profile in settings.profiles.items()}
    choice = {} if settings.on_hangup is OnHangup.GO_ON else {"on_hangup": settings.on_hangup.value}
    document = {"active": settings.active, **choice, "profiles": profiles}
    write_private(path or settings_path(), msgspec.toml.encode(document))


def _stored(profile: Profile) -> dict[str, str]:
    values = msgspec.structs.asdict(profile)
    return {key: values[key] for key in _PROFILE_KEYS if values[key] is not None}


class _Reader:
    """Reads one file; keeps its text to find the line of a key again."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def settings(self) -> Settings:
        try:
            document = msgspec.toml.decode(self._text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise SettingsError(
                f"{self._path} is not TOML: {error}.", remedy="Correct the line, or start anew: ossconsole config init"
            ) from error
        self._refuse_unknown(document, _TOP_KEYS, table="")
        tables = document.get("profiles", {})
        if not isinstance(tables, dict):
            raise self._error("", "profiles", "profiles must be tables: [profiles.NAME].")
        profiles = {name: self._profile(name, table) for name, table in tables.items()}
        active = document.get("active", "")
        if active not in ["", *profiles]:
            raise self._error(
                "", "active", f"active names no profile: {active!r}.", _meant(str(active), list(profiles))
            )
        return Settings(active=active, profiles=profiles, on_hangup=self._on_hangup(document))

    def _on_hangup(self, document: Mapping[str, Any]) -> OnHangup:
        value = document.get("on_hangup", OnHangup.GO_ON.value)
        try:
            return OnHangup(value)
        except ValueError:
            known = [str(choice) for choice in OnHangup]
            raise self._error("", "on_hangup", f"on_hangup cannot be {value!r}.", _meant(str(value), known)) from None

    def _profile(self, name: str, values: Any) -> Profile:
        table = f"profiles.{name}"
        if not isinstance(values, dict):
            raise self._error("profiles", name, f"{table} must be a table.", f"Write [{table}] and its keys below it.")
        self._refuse_unknown(values, _PROFILE_KEYS, table=table)
        for key, value in values.items():
            if not isinstance(value, str):
                raise self._error(table, key, f"{key} must be text in quotes, not {value!r}.")
        try:
            _not_reserved(name)
            return checked(Profile(name=name, **{**_defaults(values), **values}))
        except FieldError as error:
            raise self._error(table, error.field, error.message, error.remedy) from error

    def _refuse_unknown(self, values: Mapping[str, Any], known: tuple[str, ...], *, table: str) -> None:
        for key in values:
            if key not in known:
                raise self._error(table, key, f"there is no setting {key!r}.", _meant(key, list(known)))

    def _error(self, table: str, key: str, message: str, remedy: str = "") -> SettingsError:
        line = _line_of(self._text, table, key)
        where = f"{self._path}, line {line}" if line else str(self._path)
        place = f"[{table}] {key}" if table else key
        return SettingsError(f"{where}, {place}: {message}", remedy=remedy)


def _defaults(values: Mapping[str, str]) -> dict[str, str]:
    region = values.get("region", "")
    endpoint = internal_endpoint(region) if region else ""
    return {"region": "", "bucket": "", "standard_endpoint": endpoint}


def _not_reserved(name: str) -> None:
    if name == SANDBOX_NAME:
        raise FieldError("name", f"{SANDBOX_NAME!r} is the embedded server's name.", remedy="Choose another name.")


def _meant(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"There are: {', '.join(known)}." if known else "The file has no profiles. Make one: ossconsole config init"


def _line_of(text: str, table: str, key: str) -> int:
    """The 1-based line of `key` in `[table]`, else of the table's header, else 0."""
    header = re.compile(r"^\s*\[\s*([^\]]+?)\s*\]")
    assignment = re.compile(rf"^\s*(?:\"{re.escape(key)}\"|'{re.escape(key)}'|{re.escape(key)})\s*=")
    current, header_line = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if match := header.match(line):
            current = match[1].replace('"', "").replace("'", "")
            if current in {table, f"{table}.{key}".lstrip(".")}:
                header_line = header_line or number
        elif current == table and assignment.match(line):
            return number
    return header_line
