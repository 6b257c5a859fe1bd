"""Profiles: named sets of region, bucket, prefixes, endpoints and credential source, in one private TOML file.

Errors name the file, the line, the key and the nearest valid spelling.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ossconsole.config.endpoints import (
    REGIONS,
    EndpointKind,
    classify,
    internal_endpoint,
    is_region_id,
    likely_endpoint,
    misuse,
    normalise_endpoint,
    sends_in_clear,
    suggest_region,
    without_bucket,
)
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import config_dir, read_text, write_private
from ossconsole.config.text import StrEnum

DEFAULT_DATASET_PREFIX = "dataset/imagenet/ILSVRC/Data"
DEFAULT_CHECKPOINT_PREFIX = "checkpoints"
AUTO_CREDENTIALS = "auto"
SANDBOX_NAME = "sandbox"
"""Reserved: `--profile sandbox` is the embedded server, whatever profiles exist."""
FLAGS_NAME = "flags"
"""The name of a profile that consists of flags and environment variables alone."""

PLAIN_HTTP_ALLOWED = "allowed"

CREDENTIAL_KINDS = ("environment", "oidc", "connector", "ossutil", "aliyun", "sdk", "uri", "ecs")
"""The valid values of `credentials`, in the order in which `auto` checks them."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one bucket. Endpoints are normalised (`scheme://host[:port]`).

    Prefixes have no slash at either end. `accelerated_endpoint` is None where the bucket has no accelerator.
    `credentials` is `auto` (all sources in order) or one of CREDENTIAL_KINDS, where `ossutil:NAME` and `aliyun:NAME`
    name a profile of that tool and `ecs:ROLE` a role. `plain_http` is `allowed` where the user permits endpoints of
    other machines without TLS.
    """

    name: str
    region: str
    bucket: str
    standard_endpoint: str
    accelerated_endpoint: str | None = None
    dataset_prefix: str = DEFAULT_DATASET_PREFIX
    checkpoint_prefix: str = DEFAULT_CHECKPOINT_PREFIX
    credentials: str = AUTO_CREDENTIALS
    plain_http: str | None = None
    simulated: bool = False
    """True for the sandbox: every measurement through it is shown with the word *simulated*."""

    def endpoint(self, kind: EndpointKind) -> str | None:
        """The URL of the endpoint, or None where the profile has none of this kind."""
        return self.standard_endpoint if kind is EndpointKind.STANDARD else self.accelerated_endpoint

    @property
    def reads_key_file(self) -> bool:
        """Whether the AccessKey that is entered on the Setup screen, into the connector's file, may be used."""
        return self.credentials in {AUTO_CREDENTIALS, "connector"}

    @property
    def endpoints(self) -> dict[EndpointKind, str]:
        """The endpoints this profile has, standard first."""
        found = {kind: self.endpoint(kind) for kind in EndpointKind}
        return {kind: url for kind, url in found.items() if url is not None}


class FieldError(SettingsError):
    """One field of a profile, or of the settings of a run, is invalid; `field` is its name."""

    def __init__(self, field: str, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.field = field


def refuse_plain_http(profile: Profile) -> None:
    """Raises FieldError for an endpoint of another machine without TLS, unless the profile permits it."""
    if profile.plain_http == PLAIN_HTTP_ALLOWED:
        return
    for kind, endpoint in profile.endpoints.items():
        if sends_in_clear(profile.bucket, endpoint):
            raise FieldError(
                f"{kind}_endpoint",
                f"The {kind} endpoint {endpoint} has no TLS: the network could read and change the data, and use a "
                "temporary key's token.",
                remedy=f"Write https://{endpoint.partition('://')[2]}, or permit it: --plain-http "
                f'{PLAIN_HTTP_ALLOWED}, or plain_http = "{PLAIN_HTTP_ALLOWED}" in the profile.',
            )


def refuse_other_region(profile: Profile) -> None:
    """Raises FieldError for an endpoint of another region than the bucket's: no request through it can succeed.

    Both have to be regions that are known: the hosts of some, such as finance clouds, have a name of their own.
    """
    for kind, endpoint in profile.endpoints.items():
        found = classify(endpoint).region
        if found in REGIONS and profile.region in REGIONS and found != profile.region:
            likely = likely_endpoint(kind, profile.region)
            raise FieldError(
                f"{kind}_endpoint",
                f"The {kind} endpoint {endpoint} is in {found}, and the bucket in {profile.region}.",
                remedy=f"Use {likely}, or correct the region.",
            )


def endpoint_problem(profile: Profile) -> FieldError | None:
    """What is wrong with the endpoints of a profile that was saved before: it can still be opened and corrected."""
    try:
        refuse_other_region(profile)
        refuse_misuse(profile)
    except FieldError as error:
        return error
    return None


def refuse_misuse(profile: Profile) -> None:
    """Raises FieldError for an accelerator's endpoint where the bucket's own belongs, and the other way round."""
    for kind, endpoint in profile.endpoints.items():
        if problem := misuse(kind, endpoint):
            likely = likely_endpoint(kind, profile.region)
            empty = ", or nothing where the bucket has no accelerator" if kind is EndpointKind.ACCELERATED else ""
            raise FieldError(f"{kind}_endpoint", problem, remedy=f"Enter one such as {likely}{empty}.")


_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_PREFIX_BYTES = 800  # bytes; OSS keys have at most 1023, including the names below the prefix


def checked(profile: Profile) -> Profile:
    """The profile with normalised endpoints and prefixes. Raises FieldError for an invalid field."""
    _check_names(profile)
    endpoints: dict[str, str | None] = {}
    for field in ("standard_endpoint", "accelerated_endpoint"):
        text = getattr(profile, field)
        if not text:
            if field == "standard_endpoint":
                raise FieldError(field, "The standard endpoint is missing.", remedy="Give the internal endpoint.")
            endpoints[field] = None
            continue
        try:
            endpoints[field] = endpoint = without_bucket(normalise_endpoint(text), profile.bucket)
        except SettingsError as error:
            raise FieldError(field, error.message, remedy=error.remedy) from error
        _check_host(field, endpoint)
    if profile.plain_http not in {None, "", PLAIN_HTTP_ALLOWED}:
        raise FieldError(
            "plain_http",
            f"plain_http cannot be {profile.plain_http!r}.",
            remedy=f"Set it to {PLAIN_HTTP_ALLOWED}, or leave it out.",
        )
    prefixes = {name: _prefix(profile, name) for name in ("dataset_prefix", "checkpoint_prefix")}
    return msgspec.structs.replace(profile, **endpoints, **prefixes, plain_http=profile.plain_http or None)


def _check_host(field: str, endpoint: str) -> None:
    """Raises FieldError for an OSS host with an invalid region."""
    region = classify(endpoint).region
    if region and not is_region_id(region):
        close = suggest_region(region)
        remedy = f"Did you mean {endpoint.replace(region, close)}?" if close else "Copy it from the OSS console."
        raise FieldError(field, f"{endpoint} does not exist: {region!r} is not a region ID.", remedy=remedy)


def check_profile_name(name: str) -> None:
    """Raises FieldError unless `name` is a valid profile name."""
    if not _PROFILE_NAME.fullmatch(name):
        raise FieldError(
            "name", f"{name!r} is not a profile name.", remedy="Use letters, digits, dots, hyphens and underscores."
        )


def _check_names(profile: Profile) -> None:
    check_profile_name(profile.name)
    if not _BUCKET.fullmatch(profile.bucket):
        raise FieldError(
            "bucket",
            f"{profile.bucket!r} is not a bucket name." if profile.bucket else "The bucket is missing.",
            remedy="Bucket names have 3 to 63 lower-case letters, digits and inner hyphens.",
        )
    if profile.bucket in REGIONS:
        raise FieldError(
            "bucket", f"{profile.bucket!r} is a region, not a bucket.", remedy="Give the name of the bucket in it."
        )
    if not is_region_id(profile.region):
        close = suggest_region(profile.region)
        raise FieldError(
            "region",
            f"{profile.region!r} is not a region ID." if profile.region else "The region is missing.",
            remedy=f"Did you mean {close}?" if close else "Give it as OSS spells it, such as cn-hangzhou.",
        )
    kind, _, name = profile.credentials.partition(":")
    known = kind in CREDENTIAL_KINDS or profile.credentials == AUTO_CREDENTIALS
    if not known or (name and kind in {"environment", "oidc", "connector", "uri"}):
        raise FieldError(
            "credentials",
            f"{profile.credentials!r} is not a credential source.",
            remedy=f"Use {AUTO_CREDENTIALS}, {', '.join(CREDENTIAL_KINDS)}, ossutil:NAME, aliyun:NAME, sdk:NAME "
            "or ecs:ROLE.",
        )


def _prefix(profile: Profile, field: str) -> str:
    text: str = getattr(profile, field)
    prefix = text.strip()
    if prefix.startswith("oss://"):
        bucket, _, prefix = prefix.removeprefix("oss://").partition("/")
        if bucket != profile.bucket:
            raise FieldError(
                field, f"{text} is not in the bucket {profile.bucket}.", remedy="Give a folder of the profile's bucket."
            )
    prefix = prefix.strip("/")
    if "\\" in prefix or "\n" in prefix or len(prefix.encode()) > _MAX_PREFIX_BYTES:
        raise FieldError(
            field, f"{text!r} is not a prefix.", remedy="Give a folder of the bucket such as dataset/train."
        )
    if not prefix:
        raise FieldError(field, "The prefix is empty.", remedy="Give a folder of the bucket such as dataset/train.")
    return prefix


_TOP_KEYS = ("active", "on_hangup", "price_per_hour", "keys", "profiles")
_HIGHEST_PRICE = 1e9  # CNY per hour; TOML has integers that no float holds
_PROFILE_KEYS = tuple(name for name in Profile.__struct_fields__ if name not in {"name", "simulated"})


class OnHangup(StrEnum):
    """Whether a run or an upload continues when its terminal is lost, as in a dropped SSH connection."""

    CONTINUE = "go-on"
    STOP = "stop"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings file: all profiles, the name of the active one ("": the sandbox), and common settings.

    `keys` are the keys of the console's actions by their names, such as `train.pause`; the console validates them.
    `price_per_hour` is what an hour of the training machine costs in CNY, 0 where the user has not said.
    """

    active: str = ""
    profiles: dict[str, Profile] = {}
    on_hangup: OnHangup = OnHangup.CONTINUE
    price_per_hour: float = 0.0
    keys: dict[str, str] = {}

    def profile(self, name: str) -> Profile:
        """The profile. Raises SettingsError, with the nearest name, where it does not exist."""
        try:
            return self.profiles[name]
        except KeyError:
            raise SettingsError(
                f"The profile {name!r} does not exist.", remedy=_suggestion(name, [*self.profiles, SANDBOX_NAME])
            ) from None

    def with_profile(self, profile: Profile, *, activate: bool = False) -> Settings:
        """The settings with the validated profile added or replaced. Raises FieldError."""
        check_new_name(profile.name)
        profiles = {**self.profiles, profile.name: checked(profile)}
        return replace(self, active=profile.name if activate else self.active, profiles=profiles)

    def renamed(self, old: str, new: str) -> Settings:
        """The settings with a profile renamed. Raises SettingsError where `new` exists or is not a valid name."""
        check_new_name(new)
        profile = self.profile(old)
        if new != old and new in self.profiles:
            raise SettingsError(f"The profile {new!r} exists already.", remedy="Select another name.")
        profiles = {
            (new if name == old else name): (replace(profile, name=new) if name == old else kept)
            for name, kept in self.profiles.items()
        }
        return replace(self, active=new if self.active == old else self.active, profiles=profiles)

    def without(self, name: str) -> Settings:
        """The settings without a profile. Raises SettingsError where it does not exist."""
        self.profile(name)
        profiles = {kept: profile for kept, profile in self.profiles.items() if kept != name}
        return replace(self, active="" if self.active == name else self.active, profiles=profiles)

    def activated(self, name: str) -> Settings:
        """The settings with another active profile; none for "sandbox". Raises SettingsError."""
        if name in {"", SANDBOX_NAME}:
            return replace(self, active="")
        return replace(self, active=self.profile(name).name)


def settings_path() -> Path:
    """The settings file; it may be missing."""
    return config_dir() / "profiles.toml"


def load_settings(path: Path | None = None) -> Settings:
    """The settings in the file; empty ones where it does not exist. Raises SettingsError."""
    path = path or settings_path()
    text = read_text(path)
    return Settings() if text is None else _SettingsParser(path, text).settings()


def save_settings(settings: Settings, path: Path | None = None) -> None:
    """Replaces the file atomically, with mode 0600. Raises SettingsError."""
    profiles = {}
    for name, profile in settings.profiles.items():
        values = msgspec.structs.asdict(profile)
        profiles[name] = {key: values[key] for key in _PROFILE_KEYS if values[key] is not None}
    choice = {} if settings.on_hangup is OnHangup.CONTINUE else {"on_hangup": settings.on_hangup.value}
    price = {"price_per_hour": settings.price_per_hour} if settings.price_per_hour else {}
    keys: dict[str, dict[str, str]] = {}
    for name, text in settings.keys.items():
        scope, _, action = name.partition(".")
        keys.setdefault(scope, {})[action] = text
    document = {"active": settings.active, **choice, **price, **({"keys": keys} if keys else {}), "profiles": profiles}
    write_private(path or settings_path(), msgspec.toml.encode(document))


class _SettingsParser:
    """Parses one file; its text serves to find the line of a key for messages."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def settings(self) -> Settings:
        try:
            document = msgspec.toml.decode(self._text)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:  # ValueError: a number of 4,301 digits
            raise SettingsError(
                f"{self._path} is not TOML: {error}.",
                remedy="Correct the line, or remove the file and run: ossconsole config init",
            ) from error
        self._refuse_unknown(document, _TOP_KEYS, table="")
        tables = document.get("profiles", {})
        if not isinstance(tables, dict):
            raise self._error("", "profiles", "profiles must be tables: [profiles.NAME].")
        profiles = {name: self._profile(name, table) for name, table in tables.items()}
        active = document.get("active", "")
        if active not in ["", *profiles]:
            raise self._error(
                "", "active", f"the active profile {active!r} does not exist.", _suggestion(str(active), list(profiles))
            )
        on_hangup, keys = self._on_hangup(document), self._keys(document.get("keys", {}))
        price = self._price(document.get("price_per_hour", 0.0))
        return Settings(active=active, profiles=profiles, on_hangup=on_hangup, price_per_hour=price, keys=keys)

    def _price(self, value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _HIGHEST_PRICE:
            shown = "one above 1e9" if isinstance(value, int) and value > _HIGHEST_PRICE else repr(value)
            raise self._error("", "price_per_hour", f"price_per_hour must be a number of CNY, not {shown}.")
        return float(value)

    def _keys(self, scopes: Any) -> dict[str, str]:
        if not isinstance(scopes, dict) or not all(isinstance(actions, dict) for actions in scopes.values()):
            raise self._error("", "keys", 'keys must be a table, such as [keys] and below it train.pause = "p".')
        found = {f"{scope}.{name}": key for scope, actions in scopes.items() for name, key in actions.items()}
        for name, key in found.items():
            if not isinstance(key, str) or not key:
                raise self._error("keys", name, f"{name} must be a key in quotes, not {key!r}.")
        return found

    def _on_hangup(self, document: Mapping[str, Any]) -> OnHangup:
        value = document.get("on_hangup", OnHangup.CONTINUE.value)
        try:
            return OnHangup(value)
        except ValueError:
            known = [str(choice) for choice in OnHangup]
            raise self._error(
                "", "on_hangup", f"on_hangup cannot be {value!r}.", _suggestion(str(value), known)
            ) from None

    def _profile(self, name: str, values: Any) -> Profile:
        table = f"profiles.{name}"
        if not isinstance(values, dict):
            raise self._error("profiles", name, f"{table} must be a table.", f"Write [{table}] and its keys below it.")
        self._refuse_unknown(values, _PROFILE_KEYS, table=table)
        for key, value in values.items():
            if not isinstance(value, str):
                raise self._error(table, key, f"{key} must be text in quotes, not {value!r}.")
        try:
            check_new_name(name)
            region = values.get("region", "")
            defaults = {"region": "", "bucket": "", "standard_endpoint": internal_endpoint(region) if region else ""}
            return checked(Profile(name=name, **{**defaults, **values}))
        except FieldError as error:
            raise self._error(table, error.field, error.message, error.remedy) from error

    def _refuse_unknown(self, values: Mapping[str, Any], known: tuple[str, ...], *, table: str) -> None:
        for key in values:
            if key not in known:
                raise self._error(table, key, f"the setting {key!r} does not exist.", _suggestion(key, list(known)))

    def _error(self, table: str, key: str, message: str, remedy: str = "") -> SettingsError:
        line = _line_of(self._text, table, key)
        where = f"{self._path}, line {line}" if line else str(self._path)
        place = f"[{table}] {key}" if table else key
        return SettingsError(f"{where}, {place}: {message}", remedy=remedy)


def check_new_name(name: str) -> None:
    """Raises FieldError unless a profile can have this name."""
    check_profile_name(name)
    if name == SANDBOX_NAME:
        raise FieldError("name", f"{SANDBOX_NAME!r} is the embedded server's name.", remedy="Select another name.")


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Valid names: {', '.join(known)}." if known else "Create a profile: ossconsole config init"


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
