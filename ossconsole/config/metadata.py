"""The metadata service of ECS instances, in token mode; elsewhere it does not answer, hence the short timeout."""

from __future__ import annotations

import os
from datetime import datetime
from urllib.parse import quote, urlsplit

import msgspec

from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.errors import ConsoleError

METADATA_URL = "http://100.100.100.200"
METADATA_VARIABLE = "OSSCONSOLE_METADATA_URL"
"""Overrides the service's address, for an instance behind a proxy and for tests."""
TIMEOUT_S = 1.0
_TOKEN_TTL_S = 21600  # the service's maximum


class MetadataError(ConsoleError):
    """The metadata service did not answer, or does not have the item."""


class RoleKeys(msgspec.Struct, frozen=True, rename="pascal"):
    """The reply to `ram/security-credentials/<role>`."""

    access_key_id: str
    access_key_secret: str
    security_token: str
    expiration: datetime
    code: str = "Success"


class Instance(msgspec.Struct, frozen=True):
    """The ECS instance of this machine; a value is "" where the service does not report it."""

    region: str
    zone: str = ""
    instance_type: str = ""


class MetadataService:
    """A client of the metadata service. Every method raises MetadataError, after about a second per request."""

    def __init__(self, url: str | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = (url or os.environ.get(METADATA_VARIABLE) or METADATA_URL).rstrip("/")
        self._timeout_s = timeout_s
        self._token = ""

    def instance(self) -> Instance:
        """The region, zone and type of this instance."""
        return Instance(
            region=self.get("region-id"),
            zone=self.get("zone-id"),
            instance_type=self.get("instance/instance-type"),
        )

    def role(self) -> str:
        """The name of the RAM role attached to the instance."""
        attached = self.get("ram/security-credentials/").split()
        if not attached:
            raise MetadataError("The metadata service names no RAM role.", remedy=_ROLE_REMEDY)
        return attached[0]

    def credentials(self, role: str = "") -> Credentials:
        """The role's current temporary credentials; by default of the attached role."""
        role = role or self.role()
        body = self.get(f"ram/security-credentials/{quote(role, safe='')}")
        try:
            keys = msgspec.json.decode(body, type=RoleKeys)
        except msgspec.DecodeError as error:
            # Without the cause's traceback: it may quote the body, which has a secret.
            raise MetadataError(
                f"The metadata service gave no credentials for the role {role!r}.", remedy=_ROLE_REMEDY
            ) from error.with_traceback(None)
        if keys.code != "Success":
            raise MetadataError(f"The metadata service refused the role {role!r}: {keys.code}.", remedy=_ROLE_REMEDY)
        return Credentials(
            keys.access_key_id,
            Secret(keys.access_key_secret),
            Secret(keys.security_token),
            keys.expiration,
            source=f"ECS RAM role {role}",
        )

    def get(self, item: str) -> str:
        """The text of one item below `meta-data/`."""
        if not self._token:
            self._token = self._request(
                "PUT", "/latest/api/token", {"X-aliyun-ecs-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
            )
        return self._request("GET", f"/latest/meta-data/{item}", {"X-aliyun-ecs-metadata-token": self._token})

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str:
        import http.client  # slow to import: it would delay every start of the console

        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=self._timeout_s)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read().decode("utf-8", "replace")
        except ValueError:  # without the cause: it quotes the reply to the request for a token
            raise MetadataError(
                f"{self.url} is not the metadata service: its token cannot be sent.", remedy=_NO_ECS_REMEDY
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise MetadataError(
                f"No answer from the metadata service {self.url}: {reason}.",
                remedy=_NO_ECS_REMEDY,
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            remedy = _ROLE_REMEDY if "security-credentials" in path else ""
            raise MetadataError(f"The metadata service answered HTTP {response.status} to {path}.", remedy=remedy)
        return body


_ROLE_REMEDY = "Attach a RAM role with access to the bucket to the instance, in the ECS console."
_NO_ECS_REMEDY = "It answers on an ECS instance only; elsewhere enter an AccessKey."
