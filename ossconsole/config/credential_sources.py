"""The sources of credentials, and the order in which `auto` tries them.

1. `environment`: OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET, OSS_SESSION_TOKEN, then ALIBABA_CLOUD_ACCESS_KEY_ID,
   ALIBABA_CLOUD_ACCESS_KEY_SECRET, ALIBABA_CLOUD_SECURITY_TOKEN
2. `oidc`: ALIBABA_CLOUD_ROLE_ARN, ALIBABA_CLOUD_OIDC_PROVIDER_ARN, ALIBABA_CLOUD_OIDC_TOKEN_FILE (RRSA of ACK)
3. `connector`: the connector's own file, ~/.alibabacloud/credentials
4. `ossutil`: ~/.ossutilconfig
5. `aliyun`: the aliyun CLI's profiles, ~/.aliyun/config.json, in every mode
6. `sdk`: the SDK's ~/.alibabacloud/credentials.ini
7. `uri`: ALIBABA_CLOUD_CREDENTIALS_URI (PAI-DSW)
8. `ecs`: the instance's RAM role, from its metadata service in token mode

It is the order of Alibaba Cloud's own default chain, with two differences: the files of the connector and of ossutil
are in it, and the URI comes before the instance's role, because it was set for this process. A source that exists and
cannot be used (expired, refused, a mode that OSS does not accept) is passed over, and named.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import stat
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec

from ossconsole.config.alibaba_credentials import (
    STATIC_MODES,
    CliProfileSource,
    OidcSource,
    SdkFileSource,
    UnusableCredentialsError,
    UriSource,
    read_cli_file,
)
from ossconsole.config.credentials import (
    Credentials,
    NoCredentialsError,
    Secret,
    mask_key_id,
    register_credentials,
)
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import decode_json, read_text, short_path, typed_path, write_private
from ossconsole.config.metadata import MetadataError, MetadataService
from ossconsole.config.profiles import AUTO_CREDENTIALS, CREDENTIAL_KINDS, Profile
from ossconsole.config.renewal import RenewedSource, ends_within, utc_now


@dataclass(frozen=True)
class FixedSource:
    """A known key pair, such as the sandbox's."""

    credentials: Credentials

    def __call__(self) -> Credentials:
        return self.credentials


_OSS_NAMES = ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN")
_ALIBABA_NAMES = (
    "ALIBABA_CLOUD_ACCESS_KEY_ID",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
    "ALIBABA_CLOUD_SECURITY_TOKEN",
)


@dataclass(frozen=True)
class EnvironmentSource:
    """The key pair in variables: those of oss2 and ossutil, or those of Alibaba Cloud's other tools."""

    names: tuple[str, str, str] = _OSS_NAMES

    def __call__(self) -> Credentials:
        key_id, key_secret, token = (os.environ.get(name, "") for name in self.names)
        if not key_id and not key_secret:
            raise NoCredentialsError([str(self)])
        if not key_id or not key_secret:
            here, missing = self.names[:2] if key_id else self.names[1::-1]
            raise UnusableCredentialsError(f"{here} is set, but not {missing}.", remedy="Set both, or neither.")
        return Credentials(key_id, Secret(key_secret), Secret(token) if token else None, source=str(self))

    def __str__(self) -> str:
        return f"environment {self.names[0]}"


class FileSource(RenewedSource):
    """The file of the connector or of ossutil, read again when it has changed or its credentials expire."""

    def __init__(self, kind: str, path: Path, name: str = "", now: Callable[[], datetime] = utc_now) -> None:
        super().__init__(now)
        self.kind = kind
        self.path = path
        self.name = name

    def fetch(self) -> Credentials:
        """Reads the file. Raises NoCredentialsError where it or the profile does not exist, or SettingsError."""
        found = _READERS[self.kind](self.path, self.name)
        if found is None:
            raise NoCredentialsError([str(self)])
        return found

    def version(self) -> Hashable:
        """The file's time, size and inode; None where it does not exist."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def __str__(self) -> str:
        return " ".join(part for part in (self.kind, self.name, short_path(self.path)) if part)


class EcsRoleSource(RenewedSource):
    """The instance's RAM role."""

    def __init__(self, role: str = "", *, url: str | None = None, now: Callable[[], datetime] = utc_now) -> None:
        super().__init__(now)
        self.role = role
        self._url = url

    def fetch(self) -> Credentials:
        """Asks the metadata service. Raises MetadataError."""
        return MetadataService(self._url).credentials(self.role)

    def __str__(self) -> str:
        return f"ECS RAM role {self.role}".strip()


AnySource = EnvironmentSource | FileSource | CliProfileSource | SdkFileSource | OidcSource | UriSource | EcsRoleSource


@dataclass(frozen=True)
class SourceState:
    """One source: its `credentials`, or the `problem` for which it has none.

    `exists` is False where nothing is there: a variable that is not set, a file or a metadata service that does not
    exist. Expired credentials are there, with a problem.
    """

    source: AnySource
    credentials: Credentials | None
    problem: str = ""
    remedy: str = ""
    exists: bool = True


@dataclass(frozen=True)
class SelectedCredentials:
    """The first usable source, and those before it that exist and cannot be used."""

    source: AnySource
    passed_over: tuple[SourceState, ...]


def select_credentials(profile: Profile) -> SelectedCredentials:
    """The first source that has usable credentials, or the one that the profile names.

    Expired credentials are selected where there is nothing else: their source may renew them. Raises NoCredentialsError
    with the sources checked, or SettingsError where one exists and none can be used.
    """
    looked: list[str] = []
    passed_over: list[SourceState] = []
    for source in sources(profile):
        state = _state(source)
        if state.credentials is not None and not state.problem:
            return SelectedCredentials(source, tuple(passed_over))
        looked.append(f"{source} ({state.problem.rstrip('.')})")
        if state.exists:
            passed_over.append(state)
    for state in passed_over:
        if state.credentials is not None:
            others = tuple(other for other in passed_over if other is not state)
            return SelectedCredentials(state.source, others)
    if passed_over:
        text = " ".join(f"{state.problem.rstrip('.')}." for state in passed_over)
        raise UnusableCredentialsError(text, remedy=passed_over[0].remedy)
    raise NoCredentialsError(looked, "" if profile.reads_key_file else profile.credentials)


def find_credentials(profile: Profile) -> AnySource:
    """The source of `select_credentials`."""
    return select_credentials(profile).source


def describe_credentials(profile: Profile) -> str:
    """The masked key pair in use and its source, with those passed over; or the reason why there is none."""
    try:
        selected = select_credentials(profile)
        found = selected.source()
    except ConsoleError as error:
        return str(error)
    return f"{mask_key_id(found.access_key_id)} from {found.source}{describe_passed_over(selected.passed_over)}"


def describe_passed_over(states: tuple[SourceState, ...]) -> str:
    """The sources that exist and cannot be used, with their reasons; "" for none."""
    reasons = [state.problem.rstrip(".") for state in states]
    return f"; found, but not usable: {'; '.join(reasons)}" if reasons else ""


def list_sources() -> list[SourceState]:
    """All sources in their order, with all profiles of ossutil and of the aliyun CLI; may take a second.

    A CLI profile that does not have its key pair in the file is not tried: that would call a service or a program.
    """
    names = {"ossutil": lambda: ossutil_names(ossutil_file()), "aliyun": lambda: aliyun_names(aliyun_file())}
    found: list[SourceState] = []
    for kind in CREDENTIAL_KINDS:
        listed = [""]
        with contextlib.suppress(ConsoleError):  # a file that cannot be used is reported by the source without a name
            listed += names[kind]() if kind in names else []
        found += [_listed(source) for name in listed for source in _of_kind(kind, name, listed=True)]
    return found


def _listed(source: AnySource) -> SourceState:
    if isinstance(source, CliProfileSource):
        try:
            mode = source.mode()
        except ConsoleError as error:
            return SourceState(source, None, error.message, error.remedy)
        if mode is not None and mode not in STATIC_MODES:
            how = "its command runs only when it is used" if mode == "External" else "fetched when it is used"
            return SourceState(source, None, f"mode {mode}, {how}")
    return _state(source)


def _state(source: AnySource) -> SourceState:
    try:
        found = source()
    except NoCredentialsError:
        variables = isinstance(source, EnvironmentSource | OidcSource | UriSource)
        return SourceState(source, None, "not set" if variables else "none", exists=False)
    except MetadataError as error:
        return SourceState(source, None, error.message, error.remedy, exists=False)
    except ConsoleError as error:
        return SourceState(source, None, error.message, error.remedy)
    register_credentials(found)
    if ends_within(found, timedelta(0)):
        return SourceState(source, found, f"{found.source}: expired at {found.expiration:%Y-%m-%d %H:%M:%S} UTC")
    return SourceState(source, found)


def sources(profile: Profile) -> Iterator[AnySource]:
    """The sources of this profile, in their order."""
    kind, _, name = profile.credentials.partition(":")
    for wanted in CREDENTIAL_KINDS if profile.credentials == AUTO_CREDENTIALS else (kind,):
        yield from _of_kind(wanted, name)


def _of_kind(kind: str, name: str, *, listed: bool = False) -> Iterator[AnySource]:
    """The sources of a kind. `listed`: without the tools' own variables, which name a profile."""
    environ = os.environ
    named = {} if listed else environ
    if kind == "environment":
        yield EnvironmentSource()
        yield EnvironmentSource(_ALIBABA_NAMES)
    elif kind == "oidc":
        yield OidcSource.of_environment()
    elif kind == "connector":
        yield FileSource("connector", connector_file())
    elif kind == "ossutil":
        yield FileSource("ossutil", ossutil_file(), name or named.get("OSS_PROFILE", ""))
    elif kind == "aliyun":
        yield CliProfileSource(aliyun_file(), name or named.get("ALIBABA_CLOUD_PROFILE", ""))
    elif kind == "sdk":
        path = Path(
            environ.get("ALIBABA_CLOUD_CREDENTIALS_FILE") or typed_path("~") / ".alibabacloud" / "credentials.ini"
        )
        yield SdkFileSource(path, name or named.get("ALIBABA_CLOUD_PROFILE", "") or "default")
    elif kind == "uri":
        yield UriSource(environ.get("ALIBABA_CLOUD_CREDENTIALS_URI", ""))
    else:
        yield EcsRoleSource(name or environ.get("ALIBABA_CLOUD_ECS_METADATA", ""))


_EXPIRATION_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_OSSUTIL_MODES = {"", "ak", "ststoken"}


def connector_file() -> Path:
    """The file that the connector itself reads when it runs as root."""
    return typed_path("~") / ".alibabacloud" / "credentials"


def ossutil_file() -> Path:
    """The configuration file of ossutil."""
    return Path(os.environ.get("OSS_CONFIG_FILE") or typed_path("~") / ".ossutilconfig")


def aliyun_file() -> Path:
    """The configuration file of the aliyun CLI."""
    return typed_path("~") / ".aliyun" / "config.json"


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


def write_connector_file(credentials: Credentials) -> Path:
    """Writes the connector's file atomically with mode 0400; returns its path. Raises SettingsError."""
    path = connector_file()
    write_private(path, encode_connector_file(credentials), mode=0o400)
    return path


def encode_connector_file(credentials: Credentials) -> bytes:
    """The connector's file in its format, JSON, with the secret in clear."""
    document = {
        "AccessKeyId": credentials.access_key_id,
        "AccessKeySecret": credentials.access_key_secret.reveal(),
    }
    if credentials.security_token:
        document["SecurityToken"] = credentials.security_token.reveal()
    if credentials.expiration:
        document["Expiration"] = credentials.expiration.astimezone(timezone.utc).strftime(_EXPIRATION_FORMAT)
    return msgspec.json.encode(document) + b"\n"


def read_ossutil_file(path: Path, name: str = "") -> Credentials | None:
    """The profile `name`, else `default`, else the section of ossutil 1. None where the profile does not exist."""
    text = read_text(path)
    if text is None:
        return None
    sections = _ini_sections(path, text)
    wanted = [_plain(f"profile{name}"), _plain(name)] if name else ["default", "credentials"]
    section = next((sections[key] for key in wanted if key in sections), None)
    if section is None:
        return None
    source = f"ossutil {name or 'default'} ({short_path(path)})"
    mode = section.get("mode", "")
    if mode.lower() == "ecsramrole":
        found = MetadataService().credentials(section.get("ecsrolename", ""))
        return Credentials(found.access_key_id, found.access_key_secret, found.security_token, found.expiration, source)
    if mode.lower() not in _OSSUTIL_MODES:
        raise UnusableCredentialsError(
            f"{source}: mode {mode} is read from the aliyun CLI's profiles only.",
            remedy=f"Create one: aliyun configure --mode {mode}",
        )
    if not section.get("accesskeyid"):
        return None
    key_secret, token = section.get("accesskeysecret", ""), section.get("ststoken", "")
    return _credentials(section["accesskeyid"], key_secret, token, None, source)


_READERS = {"connector": read_connector_file, "ossutil": read_ossutil_file}


def ossutil_names(path: Path) -> list[str]:
    """The names of the profiles in the file, without `default`; empty where the file does not exist."""
    text = read_text(path)
    names = _ini_parser(path, text).sections() if text is not None else []
    return [name.split(maxsplit=1)[1] for name in names if name.lower().startswith("profile ")]


def aliyun_names(path: Path) -> list[str]:
    """The names of the profiles in the file; empty where the file does not exist."""
    found = read_cli_file(path)
    return list(found.profiles) if found else []


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
