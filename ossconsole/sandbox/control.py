"""Steering a running sandbox: faults, keys and the cache, through `/-/` on either endpoint.

Protected by the owner's key pair (HTTP Basic), so that it can be used by hand as well:
`curl -u ID:SECRET -X PUT --data @faults.json http://127.0.0.1:PORT/-/faults`.
"""

from __future__ import annotations

import base64
import http.client
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ossconsole.config.credentials import Credentials
from ossconsole.config.errors import ConsoleError
from ossconsole.config.secret import Secret
from ossconsole.sandbox.faults import FaultPlan
from ossconsole.sandbox.keys import Role
from ossconsole.sandbox.process import SandboxInfo
from ossconsole.sandbox.shaping import Shaping

PREFIX = "/-/"
_TIMEOUT_S = 10.0


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to be made; with `ttl_s` a temporary one, with a security token (negative: expired already)."""

    role: Role = Role.OWNER
    prefix: str = ""
    ttl_s: float | None = None


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was made, in clear. `expires_at` is Unix seconds."""

    id: str
    secret: str
    token: str | None = None
    expires_at: float | None = None

    def __repr__(self) -> str:
        return f"IssuedKey({self.id})"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The sandbox's figures: how it is shaped, what its cache did, how often each rule of the fault plan struck."""

    shaping: Shaping
    cache_hits: int
    cache_misses: int
    cache_bytes: int
    fault_hits: list[int]


def authorization(access_key_id: str, secret: str) -> str:
    """The header that lets a request in."""
    return "Basic " + base64.b64encode(f"{access_key_id}:{secret}".encode()).decode()


class SandboxControl:
    """Talks to one sandbox. Methods raise ConsoleError."""

    def __init__(self, info: SandboxInfo) -> None:
        self._address = urlsplit(info.path_style_endpoint).netloc
        self._authorization = authorization(info.access_key_id, info.access_key_secret.reveal())

    def set_faults(self, plan: FaultPlan) -> None:
        """Replace the fault plan; its time and counts begin now."""
        self._call("PUT", "faults", plan)

    def clear_faults(self) -> None:
        """No more faults; endpoints that are out come back at once."""
        self._call("DELETE", "faults")

    def issue_key(self, role: Role = Role.OWNER, *, prefix: str = "", ttl_s: float | None = None) -> Credentials:
        """Make a key pair with this role, for object keys below `prefix`; with `ttl_s` a temporary one."""
        body = self._call("POST", "keys", KeyRequest(role=role, prefix=prefix, ttl_s=ttl_s))
        key = msgspec.json.decode(body, type=IssuedKey)
        return Credentials(
            access_key_id=key.id,
            access_key_secret=Secret(key.secret),
            security_token=Secret(key.token) if key.token else None,
            expiration=datetime.fromtimestamp(key.expires_at, timezone.utc) if key.expires_at is not None else None,
            source="sandbox",
        )

    def revoke_key(self, access_key_id: str) -> None:
        """The key is unknown from now on, as after a rotation."""
        self._call("DELETE", f"keys/{access_key_id}")

    def clear_cache(self) -> None:
        """The accelerator forgets everything: the next read of each object is cold."""
        self._call("DELETE", "cache")

    def status(self) -> Status:
        return msgspec.json.decode(self._call("GET", "status"), type=Status)

    def _call(self, method: str, path: str, content: Any = None) -> bytes:
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_S)
        try:
            body = None if content is None else msgspec.json.encode(content)
            connection.request(method, PREFIX + path, body, {"Authorization": self._authorization})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConsoleError(
                f"The sandbox on {self._address} does not answer: {error}.", remedy="Is it still running?"
            ) from error
        finally:
            connection.close()
        if response.status >= 300:
            raise ConsoleError(f"The sandbox refused {method} {path}: {answer.decode(errors='replace')}")
        return answer
