"""The sources of credentials, in their order: environment, connector file, ossutil, aliyun CLI, ECS RAM role."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec

from ossconsole.config.credentials import Credentials, CredentialSource, Secret, mask_key_id
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import decode_json, read_text, short_path, write_private
from ossconsole.config.metadata import MetadataError, MetadataService
from ossconsole.config.profiles import AUTO_CREDENTIALS, CREDENTIAL_KINDS, Profile

REFRESH_BEFORE = timedelta(minutes=10)
"""A role's credentials are fetched this long before they expire; the service renews them half an hour before."""


class NoCredentialsError(ConsoleError):
    """No source has a key pair; `looked` lists the sources, one line each."""

    exit_code = 2

    def __init__(self, looked: list[str]) -> None:
        super().__init__(
            f"No credentials were found. Checked: {'; '.join(looked)}.",
            remedy="Enter an AccessKey on the Setup screen, or set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET.",
        )
        self.looked = looked


@dataclass(frozen=True)
class FixedSource:
    """A known key pair, such as the sandbox's."""

    credentials: Credentials

    def __call__(self) -> Credentials:
        return self.credentials


@dataclass(frozen=True)
class EnvironmentSource:
    """OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and OSS_SESSION_TOKEN, as oss2 and ossutil read them."""

    def __call__(self) -> Credentials:
        found = self.read()
        if found is None:
            raise NoCredentialsError([str(self)])
        return found

    def read(self, environ: Mapping[str, str] = os.environ) -> Credentials | None:
        """The key pair; None where a variable is missing."""
        key_id, key_secret = environ.get("OSS_ACCESS_KEY_ID"), environ.get("OSS_ACCESS_KEY_SECRET")
        if not key_id or not key_secret:
            return None
        token = environ.get("OSS_SESSION_TOKEN")
        return Credentials(key_id, Secret(key_secret), Secret(token) if token else None, source=str(self))

    def __str__(self) -> str:
        return "environment OSS_ACCESS_KEY_ID"


@dataclass(frozen=True)
class FileSource:
    """A credential file, read again when it has changed or its credentials have expired."""

    kind: str
    path: Path
    name: str = ""
    _kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self) -> Credentials:
        found = self.read()
        if found is None:
            raise NoCredentialsError([str(self)])
        return found

    def read(self) -> Credentials | None:
        """The key pair; None where the file or the profile `name` does not exist. Raises SettingsError."""
        try:
            stamp = self.path.stat()
        except OSError:
            return None
        version = (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino)
        kept: Credentials | None = self._kept.get("credentials")
        if self._kept.get("version") == version and kept is not None and not ends_within(kept, timedelta(0)):
            return kept
        found = _READERS[self.kind](self.path, self.name)
        self._kept.update(version=version, credentials=found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "name": self.name, "_kept": {}}

    def __str__(self) -> str:
        return " ".join(part for part in (self.kind, self.name, short_path(self.path)) if part)


class EcsRoleSource:
    """The instance's RAM role; fetched again REFRESH_BEFORE its expiry, and kept while the service does not answer."""

    def __init__(self, role: str = "", *, url: str | None = None, now: Callable[[], datetime] | None = None) -> None:
        self.role = role
        self._url = url
        self._now = now or _utc_now
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None

    def __call__(self) -> Credentials:
        with self._lock:
            kept = self._credentials
            if kept is not None and not ends_within(kept, REFRESH_BEFORE, self._now()):
                return kept
            try:
                self._credentials = MetadataService(self._url).credentials(self.role)
            except MetadataError:
                if kept is None or ends_within(kept, timedelta(0), self._now()):
                    raise
            assert self._credentials is not None  # noqa: S101 - set above, or kept
            return self._credentials

    def __getstate__(self) -> dict[str, Any]:
        return {"role": self.role, "_url": self._url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["role"], url=state["_url"])  # type: ignore[misc]

    def __str__(self) -> str:
        return f"ECS RAM role {self.role}".strip()


AnySource = EnvironmentSource | FileSource | EcsRoleSource


def find_credentials(profile: Profile, environ: Mapping[str, str] = os.environ) -> CredentialSource:
    """The first source that has a key pair, or the one that the profile names.

    Raises NoCredentialsError with the sources checked, or SettingsError for a file that cannot be used.
    """
    looked = []
    for source in sources(profile, environ):
        missing = _missing(source, environ)
        if missing is None:
            return source
        looked.append(f"{source} ({missing})")
    raise NoCredentialsError(looked)


def describe_credentials(profile: Profile, environ: Mapping[str, str] = os.environ) -> str:
    """The masked key pair in use and its source, or the reason why there is none."""
    try:
        found = find_credentials(profile, environ)()
    except ConsoleError as error:
        return str(error)
    return f"{mask_key_id(found.access_key_id)} from {found.source}"


@dataclass(frozen=True)
class SourceState:
    """One source: its `credentials`, or the `problem` for which it has none."""

    source: AnySource
    credentials: Credentials | None
    problem: str = ""


def list_sources(environ: Mapping[str, str] = os.environ) -> list[SourceState]:
    """All sources in their order, with all profiles of ossutil and of the aliyun CLI; may take a second."""
    found: list[AnySource] = [EnvironmentSource(), FileSource("connector", connector_file())]
    tools = (("ossutil", ossutil_file(environ), ossutil_names), ("aliyun", aliyun_file(), aliyun_names))
    for kind, path, list_names in tools:
        names = []
        with contextlib.suppress(ConsoleError):  # a file that cannot be used is reported by the source without a name
            names = list_names(path)
        found += [FileSource(kind, path, name) for name in ("", *names)]
    return [_state(source) for source in (*found, EcsRoleSource())]


def _state(source: AnySource) -> SourceState:
    try:
        return SourceState(source, source())
    except NoCredentialsError:
        return SourceState(source, None, "none")
    except ConsoleError as error:
        return SourceState(source, None, error.message)


def sources(profile: Profile, environ: Mapping[str, str] = os.environ) -> Iterator[AnySource]:
    """The sources of this profile, in their order."""
    kind, _, name = profile.credentials.partition(":")
    for wanted in CREDENTIAL_KINDS if profile.credentials == AUTO_CREDENTIALS else (kind,):
        if wanted == "environment":
            yield EnvironmentSource()
        elif wanted == "connector":
            yield FileSource("connector", connector_file())
        elif wanted == "ossutil":
            yield FileSource("ossutil", ossutil_file(environ), name or environ.get("OSS_PROFILE", ""))
        elif wanted == "aliyun":
            yield FileSource("aliyun", aliyun_file(), name or environ.get("ALIBABA_CLOUD_PROFILE", ""))
        else:
            yield EcsRoleSource(name)


def ends_within(credentials: Credentials, margin: timedelta, now: datetime | None = None) -> bool:
    """Whether the credentials expire within `margin` from now; False for those without expiry."""
    return credentials.expiration is not None and credentials.expiration - (now or _utc_now()) <= margin


def _missing(source: AnySource, environ: Mapping[str, str]) -> str | None:
    """Why this source has no key pair, None when it has one."""
    if isinstance(source, EnvironmentSource):
        return None if source.read(environ) else "not set"
    if isinstance(source, FileSource):
        return None if source.read() else "none"
    try:
        source()
    except MetadataError as error:
        return error.message.rstrip(".")
    return None


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


_EXPIRATION_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_ALIYUN_MODES = {"AK", "StsToken", ""}


def connector_file() -> Path:
    """The file that the connector itself reads when it runs as root."""
    return Path.home() / ".alibabacloud" / "credentials"


def ossutil_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The configuration file of ossutil."""
    return Path(environ.get("OSS_CONFIG_FILE") or Path.home() / ".ossutilconfig")


def aliyun_file() -> Path:
    """The configuration file of the aliyun CLI."""
    return Path.home() / ".aliyun" / "config.json"


class _ConnectorDocument(msgspec.Struct, rename="pascal"):
    access_key_id: str
    access_key_secret: str
    security_token: str = ""
    expiration: str = ""


def read_connector_file(path: Path, _name: str = "") -> Credentials | None:
    """The key pair; None where the file does not exist. Raises SettingsError for a file in another format."""
    text = read_text(path)
    if text is None:
        return None
    try:
        found: _ConnectorDocument = decode_json(text, _ConnectorDocument)
        expiration = parse_expiration(found.expiration)
    except (msgspec.DecodeError, ValueError):
        raise _bad(path, "it needs AccessKeyId, AccessKeySecret, and Expiration as 2030-01-31T08:00:00Z") from None
    source = f"connector file {short_path(path)}"
    return _credentials(found.access_key_id, found.access_key_secret, found.security_token, expiration, source)


def write_connector_file(credentials: Credentials, path: Path | None = None) -> Path:
    """Writes the connector's file atomically with mode 0400; returns its path. Raises SettingsError."""
    path = path or connector_file()
    document = {
        "AccessKeyId": credentials.access_key_id,
        "AccessKeySecret": credentials.access_key_secret.reveal(),
    }
    if credentials.security_token:
        document["SecurityToken"] = credentials.security_token.reveal()
    if credentials.expiration:
        document["Expiration"] = credentials.expiration.astimezone(timezone.utc).strftime(_EXPIRATION_FORMAT)
    write_private(path, msgspec.json.encode(document) + b"\n", mode=0o400)
    return path


def read_ossutil_file(path: Path, name: str = "") -> Credentials | None:
    """The profile `name`, else `default`, else the section of ossutil 1. None where the profile does not exist."""
    text = read_text(path)
    if text is None:
        return None
    sections = _ini_sections(path, text)
    wanted = [_plain(f"profile{name}"), _plain(name)] if name else ["default", "credentials"]
    section = next((sections[key] for key in wanted if key in sections), None)
    if section is None or not section.get("accesskeyid"):
        return None
    source = f"ossutil {name or 'default'} ({short_path(path)})"
    key_secret, token = section.get("accesskeysecret", ""), section.get("ststoken", "")
    return _credentials(section["accesskeyid"], key_secret, token, None, source)


def read_aliyun_file(path: Path, name: str = "") -> Credentials | None:
    """The profile `name`, else the current one; None where it does not exist or has no key pair."""
    text = read_text(path)
    if text is None:
        return None
    current, profiles = _aliyun_profiles(path, text)
    selected = name or current
    found = profiles.get(selected)
    if found is None or found.get("mode", "AK") not in _ALIYUN_MODES or not found.get("access_key_id"):
        return None
    source = f"aliyun CLI {selected} ({short_path(path)})"
    key_id, key_secret, token = (str(found.get(key, "")) for key in ("access_key_id", "access_key_secret", "sts_token"))
    return _credentials(key_id, key_secret, token, None, source)


_READERS = {"connector": read_connector_file, "ossutil": read_ossutil_file, "aliyun": read_aliyun_file}


def ossutil_names(path: Path) -> list[str]:
    """The names of the profiles in the file, without `default`; empty where the file does not exist."""
    text = read_text(path)
    names = _ini_parser(path, text).sections() if text is not None else []
    return [name.split(maxsplit=1)[1] for name in names if name.lower().startswith("profile ")]


def aliyun_names(path: Path) -> list[str]:
    """The names of the profiles in the file; empty where the file does not exist."""
    text = read_text(path)
    return list(_aliyun_profiles(path, text)[1]) if text is not None else []


def parse_expiration(text: str) -> datetime | None:
    """The UTC time of `YYYY-MM-DDTHH:MM:SSZ`, None for "". Raises ValueError for another format."""
    return datetime.strptime(text, _EXPIRATION_FORMAT).replace(tzinfo=timezone.utc) if text else None


def loose_mode(path: Path) -> int | None:
    """The file's permission bits where they grant access to other users, else None."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return mode if mode & 0o077 else None


def _credentials(key_id: str, key_secret: str, token: str, expiration: datetime | None, source: str) -> Credentials:
    if not key_id or not key_secret:
        raise SettingsError(f"{source}: the AccessKey ID or secret is empty.", remedy="Enter the key pair again.")
    return Credentials(key_id, Secret(key_secret), Secret(token) if token else None, expiration, source)


def _aliyun_profiles(path: Path, text: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The name of the current profile, and all by name."""
    try:
        document: Any = decode_json(text)
        profiles = {str(profile["name"]): profile for profile in document["profiles"]}
        return str(document.get("current") or "default"), profiles
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        raise _bad(path, "it has no list of profiles") from None


def _ini_sections(path: Path, text: str) -> dict[str, dict[str, str]]:
    """Sections and keys by their plain names: ossutil accepts any case, and `-` or `_` between words."""
    parser = _ini_parser(path, text)
    return {
        _plain(section): {_plain(key): value.strip() for key, value in parser.items(section)}
        for section in parser.sections()
    }


def _ini_parser(path: Path, text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False, default_section="\0none")
    try:
        parser.read_string(text)
    except configparser.Error:
        raise _bad(path, "it is not ossutil's INI format") from None
    return parser


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _bad(path: Path, why: str) -> SettingsError:
    # Without the parser's own message: it may quote a line with a secret.
    return SettingsError(f"{path} cannot be used: {why}.", remedy="Correct the file, or enter the key pair on Setup.")
