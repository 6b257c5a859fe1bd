"""Where credentials come from: environment, connector file, ossutil, aliyun CLI, ECS RAM role; in this order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ossconsole.config import credential_files
from ossconsole.config.credentials import Credentials, CredentialSource
from ossconsole.config.errors import ConsoleError
from ossconsole.config.metadata import MetadataError, MetadataService
from ossconsole.config.paths import short_path
from ossconsole.config.profile import AUTO_CREDENTIALS, CREDENTIAL_KINDS, Profile
from ossconsole.config.secret import Secret, mask_key_id

REFRESH_BEFORE = timedelta(minutes=10)
"""A role's credentials are fetched anew this long before they end; the service renews them half an hour before."""


class NoCredentialsError(ConsoleError):
    """No source has a key pair; `looked` says where, one line each."""

    exit_code = 2

    def __init__(self, looked: list[str]) -> None:
        super().__init__(
            f"No credentials were found. Looked in: {'; '.join(looked)}.",
            remedy="Enter an AccessKey on the Setup screen, or set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET.",
        )
        self.looked = looked


@dataclass(frozen=True)
class FixedSource:
    """A pair that is known already, such as the sandbox's."""

    credentials: Credentials

    def __call__(self) -> Credentials:
        return self.credentials


@dataclass(frozen=True)
class EnvironmentSource:
    """OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and OSS_SESSION_TOKEN, as oss2 and ossutil read them."""

    def __call__(self) -> Credentials:
        found = self.look(os.environ)
        if found is None:
            raise NoCredentialsError([str(self)])
        return found

    def look(self, environ: Mapping[str, str]) -> Credentials | None:
        key_id, key_secret = environ.get("OSS_ACCESS_KEY_ID"), environ.get("OSS_ACCESS_KEY_SECRET")
        if not key_id or not key_secret:
            return None
        token = environ.get("OSS_SESSION_TOKEN")
        return Credentials(key_id, Secret(key_secret), Secret(token) if token else None, source=str(self))

    def __str__(self) -> str:
        return "environment OSS_ACCESS_KEY_ID"


@dataclass(frozen=True)
class FileSource:
    """A credential file, read again when it has changed or its credentials have ended."""

    kind: str
    path: Path
    name: str = ""
    _kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self) -> Credentials:
        found = self.look()
        if found is None:
            raise NoCredentialsError([str(self)])
        return found

    def look(self) -> Credentials | None:
        try:
            stamp = self.path.stat()
        except OSError:
            return None
        version = (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino)
        kept: Credentials | None = self._kept.get("credentials")
        if self._kept.get("version") == version and kept is not None and not ends_within(kept, timedelta(0)):
            return kept
        found = self._read()
        self._kept.update(version=version, credentials=found)
        return found

    def _read(self) -> Credentials | None:
        if self.kind == "connector":
            return credential_files.read_connector_file(self.path)
        if self.kind == "ossutil":
            return credential_files.read_ossutil_file(self.path, self.name)
        return credential_files.read_aliyun_file(self.path, self.name)

    def __getstate__(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "name": self.name, "_kept": {}}

    def __str__(self) -> str:
        return " ".join(part for part in (self.kind, self.name, short_path(self.path)) if part)


class EcsRoleSource:
    """The instance's RAM role; fetched again REFRESH_BEFORE its end, and kept while the service is away."""

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
    """The first source that has a key pair; only the one that the profile names, when it names one.

    Raises NoCredentialsError saying where it looked, or SettingsError when a file is there but cannot be used.
    """
    looked = []
    for source in sources(profile, environ):
        missing = _missing(source, environ)
        if missing is None:
            return source
        looked.append(f"{source} ({missing})")
    raise NoCredentialsError(looked)


def describe_credentials(profile: Profile, environ: Mapping[str, str] = os.environ) -> str:
    """The pair in use and its source, masked; or why there is none."""
    try:
        found = find_credentials(profile, environ)()
    except ConsoleError as error:
        return str(error)
    return f"{mask_key_id(found.access_key_id)} from {found.source}"


@dataclass(frozen=True)
class SourceState:
    """One place where credentials may lie: what is there (`credentials`), else why there is nothing (`words`)."""

    source: AnySource
    credentials: Credentials | None
    words: str = ""


def survey(environ: Mapping[str, str] = os.environ) -> list[SourceState]:
    """Every place, in the order of looking, with all profiles of ossutil and of the aliyun CLI; may take a second."""
    ossutil, aliyun = credential_files.ossutil_file(environ), credential_files.aliyun_file()
    places: list[AnySource] = [EnvironmentSource(), FileSource("connector", credential_files.connector_file())]
    for kind, path, names in (
        ("ossutil", ossutil, credential_files.ossutil_names),
        ("aliyun", aliyun, credential_files.aliyun_names),
    ):
        places += [FileSource(kind, path, name) for name in ("", *_readable(names, path))]
    return [_state(place) for place in (*places, EcsRoleSource())]


def _readable(names: Callable[[Path], list[str]], path: Path) -> list[str]:
    """The names in the file; none where it cannot be used, which its own state tells."""
    try:
        return names(path)
    except ConsoleError:
        return []


def _state(source: AnySource) -> SourceState:
    try:
        return SourceState(source, source())
    except NoCredentialsError:
        return SourceState(source, None, "none")
    except ConsoleError as error:
        return SourceState(source, None, error.message)


def sources(profile: Profile, environ: Mapping[str, str] = os.environ) -> Iterator[AnySource]:
    """The sources to ask for this profile, in order."""
    kind, _, name = profile.credentials.partition(":")
    for wanted in CREDENTIAL_KINDS if profile.credentials == AUTO_CREDENTIALS else (kind,):
        if wanted == "environment":
            yield EnvironmentSource()
        elif wanted == "connector":
            yield FileSource("connector", credential_files.connector_file())
        elif wanted == "ossutil":
            yield FileSource("ossutil", credential_files.ossutil_file(environ), name or environ.get("OSS_PROFILE", ""))
        elif wanted == "aliyun":
            yield FileSource("aliyun", credential_files.aliyun_file(), name or environ.get("ALIBABA_CLOUD_PROFILE", ""))
        else:
            yield EcsRoleSource(name)


def ends_within(credentials: Credentials, margin: timedelta, now: datetime | None = None) -> bool:
    """Whether the credentials end within `margin` from now; False for those that never end."""
    return credentials.expiration is not None and credentials.expiration - (now or _utc_now()) <= margin


def _missing(source: AnySource, environ: Mapping[str, str]) -> str | None:
    """Why this source has no key pair, None when it has one."""
    if isinstance(source, EnvironmentSource):
        return None if source.look(environ) else "not set"
    if isinstance(source, FileSource):
        return None if source.look() else "none"
    try:
        source()
    except MetadataError as error:
        return error.message.rstrip(".")
    return None


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)
