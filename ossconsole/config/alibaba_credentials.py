"""Credentials through Alibaba Cloud's own library: OIDC roles, credentials URIs, aliyun CLI profiles, the SDK's file.

The library (alibabacloud-credentials 1.0.12) speaks to STS, CloudSSO, OAuth and helper programs. One of its providers
is made for each fetch and then forgotten: `RenewedSource` keeps the credentials, because the library's own cache
fetches for every request in the last 15 minutes of a key. Instance roles come from `MetadataService`: the library falls
back to the metadata service's first version, and starts a scheduler thread for each provider.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Hashable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from ossconsole.config.credentials import Credentials, NoCredentialsError, Secret
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import decode_json, open_private, read_text, short_path, state_dir
from ossconsole.config.metadata import MetadataService
from ossconsole.config.proxies import ca_bundle, proxies_for
from ossconsole.config.renewal import REFRESH_BEFORE, RenewedSource, utc_now

STATIC_MODES = frozenset({"", "AK", "StsToken"})
"""The modes of a CLI profile that has its key pair in the file."""
_ROLE_BY_ECS = frozenset({"RamRoleArnWithEcs", "RamRoleArnWithRoleName"})
_REWRITTEN_MODES = frozenset({"External", "OAuth"})
_REWRITTEN_KEYS = frozenset(
    {
        *("access_key_id", "access_key_secret", "sts_token", "sts_expiration"),
        *("oauth_access_token", "oauth_access_token_expire", "oauth_refresh_token"),
    }
)
"""What the library writes into the profile of a _REWRITTEN_MODES mode: no new settings of the user."""
_UNUSABLE_TYPES = {
    # The library signs its request to STS with HMAC over the private key; Alibaba's Java SDK signs it with RSA.
    "rsa_key_pair": "RSA key pairs are not supported",
}
_UNUSABLE_MODES = {"BearerToken": "OSS accepts no bearer tokens", "Anonymous": "it has no key pair"}


class UnusableCredentialsError(SettingsError):
    """A source exists, but gives no credentials that can be used."""


class OidcSource(RenewedSource):
    """The RAM role of a pod (RRSA of ACK): STS exchanges the pod's OIDC token for credentials of the role."""

    NAMES = ("ALIBABA_CLOUD_ROLE_ARN", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "ALIBABA_CLOUD_OIDC_TOKEN_FILE")

    def __init__(
        self, role_arn: str, provider_arn: str, token_file: str, now: Callable[[], datetime] = utc_now
    ) -> None:
        super().__init__(now)
        self.role_arn = role_arn
        self._provider_arn = provider_arn
        self._token_file = token_file

    @classmethod
    def of_environment(cls) -> OidcSource:
        """The role that the environment names."""
        role, provider, token_file = (os.environ.get(name, "") for name in cls.NAMES)
        return cls(role, provider, token_file)

    def fetch(self) -> Credentials:
        """Calls AssumeRoleWithOIDC. Raises NoCredentialsError without the variables, or UnusableCredentialsError."""
        given = dict(zip(self.NAMES, (self.role_arn, self._provider_arn, self._token_file), strict=True))
        missing = [name for name, value in given.items() if not value]
        if not self._provider_arn and not self._token_file:  # the role alone belongs to other sources
            raise NoCredentialsError([str(self)])
        if missing:
            raise UnusableCredentialsError(
                f"{self}: {' and '.join(missing)} not set.", remedy="Set all three variables."
            )
        return _fetched(
            str(self),
            lambda: _providers().OIDCRoleArnCredentialsProvider(
                role_arn=self.role_arn,
                oidc_provider_arn=self._provider_arn,
                oidc_token_file_path=self._token_file,
            ),
        )

    def __str__(self) -> str:
        return " ".join(
            part for part in ("OIDC role", self.role_arn.rpartition("/")[2], "(ALIBABA_CLOUD_ROLE_ARN)") if part
        )


class UriSource(RenewedSource):
    """A local service that hands out credentials, such as that of a PAI-DSW instance."""

    def __init__(self, uri: str, now: Callable[[], datetime] = utc_now) -> None:
        super().__init__(now)
        self._uri = uri

    def fetch(self) -> Credentials:
        """Reads the URI. Raises NoCredentialsError without one, or UnusableCredentialsError."""
        if not self._uri:
            raise NoCredentialsError([str(self)])
        return _fetched(str(self), lambda: _providers().URLCredentialsProvider(uri=self._uri))

    def __str__(self) -> str:
        bare = _bare(self._uri)
        return " ".join(part for part in ("credentials URI", bare, "(ALIBABA_CLOUD_CREDENTIALS_URI)") if part)


class CliProfileSource(RenewedSource):
    """A profile of the aliyun CLI, with the mode that it has; `name` "" is the current one."""

    def __init__(self, path: Path, name: str = "", now: Callable[[], datetime] = utc_now) -> None:
        super().__init__(now)
        self.path = path
        self.name = name
        self._read: tuple[Hashable, Hashable] = (None, None)

    def mode(self) -> str | None:
        """The profile's mode; None where the file or the profile does not exist. Raises SettingsError."""
        document = read_cli_file(self.path)
        profile = None if document is None else document.profiles.get(self.name or document.current)
        return None if profile is None else str(profile.get("mode") or "")

    def fetch(self) -> Credentials:
        """Fetches what the mode describes. Raises UnusableCredentialsError, or NoCredentialsError without a profile."""
        document = read_cli_file(self.path)
        name = self.name or (document.current if document else "")
        if document is None or name not in document.profiles:
            raise NoCredentialsError([str(self)])
        source = f"aliyun CLI {name} ({short_path(self.path)})"
        with _one_at_a_time():
            return _fetched(source, lambda: _cli_provider(self.path, name).of(document.raw, name))

    def version(self) -> Hashable:
        """The settings of all profiles in the file, without what is written there at each renewal."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self._read[0] != stamp:
            document = read_cli_file(self.path)
            self._read = stamp, None if document is None else document.settings()
        return self._read[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_read": (None, None)}

    def __str__(self) -> str:
        return " ".join(part for part in ("aliyun", self.name, short_path(self.path)) if part)


class SdkFileSource(RenewedSource):
    """A section of the SDK's own file, credentials.ini, with any of its types."""

    def __init__(self, path: Path, name: str = "default", now: Callable[[], datetime] = utc_now) -> None:
        super().__init__(now)
        self.path = path
        self.name = name

    def fetch(self) -> Credentials:
        """Fetches what the section describes. Raises UnusableCredentialsError, or NoCredentialsError without one."""
        text = read_text(self.path)
        if text is None or f"[{self.name}]" not in text:
            raise NoCredentialsError([str(self)])
        return _fetched(str(self), lambda: _sdk_file_provider(self.path, self.name))

    def version(self) -> Hashable:
        """The file's time and size."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def __str__(self) -> str:
        return f"SDK file {self.name} ({short_path(self.path)})"


class CliFile(msgspec.Struct, frozen=True):
    """The aliyun CLI's file: the name of the current profile, all profiles by name, and the document as it is."""

    current: str
    profiles: dict[str, dict[str, Any]]
    raw: dict[str, Any]

    def settings(self) -> str:
        """The settings of the user, as JSON."""
        kept = [
            {key: value for key, value in profile.items() if key not in _REWRITTEN_KEYS}
            if profile.get("mode") in _REWRITTEN_MODES
            else profile
            for profile in self.profiles.values()
        ]
        return json.dumps([self.current, kept], sort_keys=True)


def read_cli_file(path: Path) -> CliFile | None:
    """The file; None where it does not exist. Raises UnusableCredentialsError for a file in another format."""
    text = read_text(path)
    if text is None:
        return None
    try:
        document: Any = decode_json(text)
        profiles = {str(profile["name"]): dict(profile) for profile in document["profiles"]}
        return CliFile(str(document.get("current") or "default"), profiles, document)
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError):
        # Without the cause: it may quote a line with a secret.
        raise UnusableCredentialsError(
            f"{path} cannot be used: it has no list of profiles.", remedy="Write it again: aliyun configure"
        ) from None


@functools.cache
def _providers() -> Any:
    """The library, without what it does on import to the process's logging.

    Its loggers print to standard error, and their messages contain whole replies. Its HTTP client sends requests for
    this machine to HTTP_PROXY, and knows neither NO_PROXY nor REQUESTS_CA_BUNDLE: it gets a session that does.
    """
    import alibabacloud_credentials.provider
    import requests
    import Tea.core

    for name in ("credentials", "alibabacloud-tea"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.disabled = True

    class Session(requests.Session):
        def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            options["proxies"] = proxies_for(request.url or "")
            if (request.url or "").startswith("https:"):
                options["verify"] = ca_bundle() or options.get("verify", True)
            options["allow_redirects"] = False  # a redirect would get the token
            return super().send(request, **options)

    Tea.core.Session = Session
    return alibabacloud_credentials.provider


class _InstanceRole:
    """The instance's role with the interface of the library's providers."""

    def __init__(self, role: str) -> None:
        self._role = role

    def get_credentials(self) -> Any:
        from alibabacloud_credentials.provider.refreshable import Credentials as LibraryCredentials

        found = MetadataService().credentials(self._role)
        return LibraryCredentials(
            access_key_id=found.access_key_id,
            access_key_secret=found.access_key_secret.reveal(),
            security_token=found.security_token.reveal() if found.security_token else None,
            expiration=int(found.expiration.timestamp()) if found.expiration else None,
            provider_name=self.get_provider_name(),
        )

    def get_provider_name(self) -> str:
        return "ecs_ram_role"


def _cli_provider(path: Path, name: str) -> Any:
    """The library's reader of CLI profiles, with the modes that it lacks."""
    providers = _providers()
    parent: Any = providers.CLIProfileCredentialsProvider

    class CliProvider(parent):  # type: ignore[misc]
        def of(self, config: dict[str, Any], profile_name: str) -> Any:
            return self._get_credentials_provider(config, profile_name)

        def _get_credentials_provider(self, config: dict[str, Any], profile_name: str) -> Any:
            """Also called for the `source_profile` of a profile."""
            found = [item for item in config.get("profiles", []) if item.get("name") == profile_name]
            profile = found[0] if found else {}
            mode = str(profile.get("mode") or "")
            if mode in _UNUSABLE_MODES:
                raise UnusableCredentialsError(f"mode {mode}: {_UNUSABLE_MODES[mode]}")
            if mode == "EcsRamRole":
                return _InstanceRole(profile.get("ram_role_name") or "")
            if mode == "CredentialsURI":
                return providers.URLCredentialsProvider(uri=profile.get("credentials_uri"))
            if mode in _ROLE_BY_ECS:
                return providers.RamRoleArnCredentialsProvider(
                    credentials_provider=_InstanceRole(profile.get("ram_role_name") or ""),
                    role_arn=profile.get("ram_role_arn"),
                    role_session_name=profile.get("ram_session_name"),
                    duration_seconds=profile.get("expired_seconds") or None,
                    sts_region_id=profile.get("sts_region"),
                    enable_vpc=profile.get("enable_vpc"),
                )
            profiles = [_completed(item) if item is profile else item for item in config.get("profiles", [])]
            return super()._get_credentials_provider({**config, "profiles": profiles}, profile_name)

    return CliProvider(profile_name=name, profile_file=str(path))


def _completed(profile: dict[str, Any]) -> dict[str, Any]:
    """The profile as the library reads it; OAuth's stored key is left out near its end, so that it is renewed."""
    mode = profile.get("mode") or "AK"
    changed = {"mode": mode, "expired_seconds": profile.get("expired_seconds") or None}
    if mode == "OIDC":
        changed["role_session_name"] = profile.get("ram_session_name")
    soon = (utc_now() + REFRESH_BEFORE).timestamp()
    if mode == "OAuth" and int(profile.get("sts_expiration") or 0) <= soon:
        changed["sts_expiration"] = 0
    return {**profile, **changed}


def _sdk_file_provider(path: Path, name: str) -> Any:
    """The library's reader of credentials.ini; instance roles are ours, and the time of expiry is kept."""
    providers = _providers()
    parent: Any = providers.ProfileCredentialsProvider

    class SdkProvider(parent):  # type: ignore[misc]
        def _get_credentials_provider(self, section: dict[str, str]) -> Any:
            kind = section.get("type") or ""
            if kind in _UNUSABLE_TYPES:
                raise UnusableCredentialsError(f"type {kind}: {_UNUSABLE_TYPES[kind]}")
            if kind == "ecs_ram_role":
                self.inner = _Fetched(_InstanceRole(section.get("role_name") or ""))
            else:
                self.inner = _Fetched(super()._get_credentials_provider(section))
            return self.inner

        def get_credentials(self) -> Any:
            super().get_credentials()  # returns a copy without the time of expiry
            return self.inner.found

    return SdkProvider(profile_file=str(path), profile_name=name)


class _Fetched:
    """One of the library's providers, with what it returned last in `found`."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self.found: Any = None

    def get_credentials(self) -> Any:
        self.found = self._provider.get_credentials()
        return self.found

    def get_provider_name(self) -> Any:
        return self._provider.get_provider_name()


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keeps the processes of a run apart: OAuth's refresh token is valid once, and the next one is in the file."""
    descriptor = open_private(state_dir() / "aliyun.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fetched(source: str, make: Callable[[], Any]) -> Credentials:
    """The credentials of the provider that `make` returns. Raises UnusableCredentialsError, without any secret."""
    try:
        found = make().get_credentials()
    except ConsoleError as error:
        raise UnusableCredentialsError(f"{source}: {error.message}", remedy=error.remedy or _REMEDY) from None
    except Exception as error:  # noqa: BLE001 - the library raises many types; all are reported
        # Without the cause: its text may have the whole reply, or a URL with tokens.
        raise UnusableCredentialsError(f"{source}: {_why(error)}.", remedy=_REMEDY) from None
    key_id, secret, token = found.get_access_key_id(), found.get_access_key_secret(), found.get_security_token()
    if not (key_id and secret and isinstance(key_id, str) and isinstance(secret, str)):
        raise UnusableCredentialsError(f"{source}: the AccessKey ID or secret is empty.", remedy=_REMEDY)
    end = found.get_expiration()
    return Credentials(
        key_id,
        Secret(secret),
        Secret(token) if token else None,
        datetime.fromtimestamp(end, timezone.utc) if end else None,
        source,
    )


_REMEDY = "Correct it, or name another source in the profile's credentials, such as aliyun:NAME."
_REPLY = re.compile(r"(?:result|response): (.*)|OAuth token: (.*)", re.DOTALL)
_CAUSES = {
    "ProxyError": "the proxy does not connect",  # contains the proxy's own cause
    "NameResolutionError": "its name has no address",
    "ConnectTimeoutError": "no answer",
    "NewConnectionError": "the connection was refused",
    "SSLError": "its certificate is not trusted",
    "SSLCertVerificationError": "its certificate is not trusted",
    "ReadTimeoutError": "no answer",
}


def _why(error: Exception) -> str:
    """The reason in an exception of the library, without the secrets that its text may have."""
    text = str(error)
    kind = type(error).__name__
    if kind == "RetryError":  # of a connection; the text has the whole URL
        host = re.search(r"host='([^']+)', port=(\d+)", text)
        cause = next((words for name, words in _CAUSES.items() if name in text), "no connection")
        return f"{host[1]} port {host[2]}: {cause}" if host else cause
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or kind)
    if isinstance(error, json.JSONDecodeError):
        return "the reply is not JSON"
    if kind not in {"CredentialException", "ValueError"}:
        return f"the reply or the profile is incomplete ({kind})"
    if reply := _REPLY.search(text):
        status = re.search(r"(?:http_code|status code)\W+(\d+)", text)
        prefix = f"HTTP {status[1]}, " if status else ""
        return prefix + _refusal(reply[1] or reply[2] or "")
    return text.partition("\n")[0].rstrip(".").replace(" form cli credentials file", " in the aliyun CLI's file")


def _refusal(reply: str) -> str:
    """The code and message of a reply; nothing else of it, as it may have keys."""
    try:
        document = json.loads(reply)
    except ValueError:
        return "the reply is not JSON"
    names = ("Code", "Message", "error", "error_description", "ErrorCode", "ErrorMessage")
    found = [str(document[name]) for name in names if isinstance(document, dict) and document.get(name)]
    return ": ".join(found)[:300].rstrip(".") if found and found != ["Success"] else "the reply has no key pair"


def _bare(uri: str) -> str:
    """The URI without its query and user, which may be a token."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"
