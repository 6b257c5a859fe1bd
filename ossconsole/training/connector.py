"""The connector as the console uses it: always with the region, our credentials and our configuration file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.profile import Profile


@dataclass(frozen=True)
class ConnectorSettings:
    """What a process needs to open the connector on a profile's bucket; it is sent to the reader processes."""

    profile: Profile
    credentials: CredentialSource
    config_path: Path
    native_log: Path

    def client_arguments(self, kind: EndpointKind) -> dict[str, Any]:
        """The keyword arguments that the connector's classes share."""
        endpoint = self.profile.endpoint(kind)
        if endpoint is None:
            raise SettingsError(f"Profile {self.profile.name!r} has no {kind} endpoint.")
        return {
            "endpoint": endpoint,
            "cred_provider": _Provider(self.credentials),
            "config_path": str(self.config_path),
            # The connector infers a wrong region, or none, from accelerated endpoints.
            "region": self.profile.region,
        }


def keep_native_prints_off(log: Path) -> None:
    """Sends this process's standard output and error to `log` (0600): the connector prints before it opens its own."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


@dataclass(frozen=True)
class _Provider:
    """A credentials provider in the connector's shape."""

    source: CredentialSource

    def get_credentials(self) -> Any:
        found = self.source()
        return _Pair(
            found.access_key_id,
            found.access_key_secret.reveal(),
            found.security_token.reveal() if found.security_token else "",
        )


class _Pair:
    """Plain strings for the C++ side, kept out of `repr`."""

    __slots__ = ("access_key_id", "access_key_secret", "security_token")

    def __init__(self, access_key_id: str, access_key_secret: str, security_token: str) -> None:
        self.access_key_id = access_key_id
        self.access_key_secret = access_key_secret
        self.security_token = security_token
