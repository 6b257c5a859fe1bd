"""Control of a running sandbox (faults, keys, restores and the cache) through `/-/` on either endpoint.

It is protected by the owner's key pair (HTTP Basic), so that curl can use it as well:
`curl -u ID:SECRET -X PUT --data @faults.json http://127.0.0.1:PORT/-/faults`.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.errors import ConsoleError
from ossconsole.sandbox.api.call import Service
from ossconsole.sandbox.faults import FaultEngine, FaultPlan
from ossconsole.sandbox.keys import Role
from ossconsole.sandbox.process import SandboxInfo, Shaping
from ossconsole.sandbox.request import IncomingRequest

PREFIX = "/-/"
_TIMEOUT_S = 10.0


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to create; with `ttl_s` a temporary one, with a security token (negative: expired already)."""

    role: Role = Role.OWNER
    prefix: str = ""
    ttl_s: float | None = None


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was created, in clear. `expires_at` is Unix seconds."""

    id: str
    secret: str
    token: str | None = None
    expires_at: float | None = None

    def __repr__(self) -> str:
        return f"IssuedKey({self.id})"


class StandardSpeed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GETs per second of the bucket from now on, over all connections; 0 is unlimited.

    With `while_locked` they last until no process holds the lock of the folder's `slowed` file.
    """

    objects_per_s: Annotated[float, msgspec.Meta(ge=0)]
    while_locked: bool = False


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The sandbox's simulated speeds, cache statistics, and how many requests each rule of the fault plan hit.

    `slowed_to` is the standard endpoint's objects/s while a demo has changed them, else None.
    """

    shaping: Shaping
    cache_hits: int
    cache_misses: int
    cache_bytes: int
    fault_hits: list[int]
    slowed_to: float | None = None


def authorization(access_key_id: str, secret: str) -> str:
    """The value of the Authorization header."""
    return "Basic " + base64.b64encode(f"{access_key_id}:{secret}".encode()).decode()


class SandboxControl:
    """The client of `/-/`, for tests and for `shared`. Methods raise ConsoleError."""

    def __init__(self, info: SandboxInfo) -> None:
        self._address = urlsplit(info.path_style_endpoint).netloc
        self._authorization = authorization(info.access_key_id, info.access_key_secret.reveal())

    def set_faults(self, plan: FaultPlan) -> None:
        """Replaces the fault plan; its time and counts start now."""
        self._call("PUT", "faults", plan)

    def clear_faults(self) -> None:
        """Ends all faults and outages."""
        self._call("DELETE", "faults")

    def issue_key(self, role: Role = Role.OWNER, *, prefix: str = "", ttl_s: float | None = None) -> Credentials:
        """Creates a key pair with this role, for object keys below `prefix`; with `ttl_s` a temporary one."""
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
        """Deletes the key, as after a rotation."""
        self._call("DELETE", f"keys/{access_key_id}")

    def finish_restores(self) -> None:
        """Ends every restore in progress now."""
        self._call("POST", "restores")

    def clear_cache(self) -> None:
        """Empties the accelerator's cache."""
        self._call("DELETE", "cache")

    def set_standard_speed(self, objects_per_s: float, *, while_locked: bool = False) -> None:
        """Changes the simulated speed of the standard endpoint, for all users of the sandbox."""
        self._call("PUT", "speed", StandardSpeed(objects_per_s=objects_per_s, while_locked=while_locked))

    def restore_standard_speed(self) -> None:
        """Gives the standard endpoint the speed again that the sandbox was started with."""
        self._call("DELETE", "speed")

    def status(self) -> Status:
        """The sandbox's statistics."""
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


def is_control_request(incoming: IncomingRequest) -> bool:
    """Whether it is for `/-/`: an object's key may begin with `-/` too, but its request is signed."""
    return incoming.path.startswith(PREFIX) and incoming.headers.get("authorization", "").startswith("Basic ")


class ControlApi:
    """The server side of `/-/`; `outage` is called with each new fault plan."""

    def __init__(self, service: Service, shaping: Shaping, outage: Callable[[FaultPlan], None]) -> None:
        self._service = service
        self._started_with = self._shaping = shaping
        self._outage = outage
        self.speed_is_leased = False
        """True while the speed is that of a process which may end without giving it back."""

    def set_plan(self, plan: FaultPlan) -> None:
        """Replaces the fault plan, outages included."""
        self._service.faults = FaultEngine(plan, time.monotonic())
        self._outage(plan)

    async def handle(self, request: web.BaseRequest, incoming: IncomingRequest) -> web.Response:
        """The response to one control request: 401 without the owner's key pair, 400 and 404 for errors."""
        owner = self._service.keys.owner
        expected = authorization(owner.id, owner.secret.reveal())
        if not hmac.compare_digest(incoming.headers["authorization"].encode(errors="replace"), expected.encode()):
            return web.Response(status=401, text="the owner's key pair is needed")
        body = await request.read()
        name, _, argument = incoming.path[len(PREFIX) :].partition("/")
        try:
            return self._do(incoming.method, name, argument, body)
        except msgspec.DecodeError as error:
            return web.Response(status=400, text=str(error))
        except KeyError as error:
            return web.Response(status=404, text=f"no such key: {error}")

    def _do(self, method: str, name: str, argument: str, body: bytes) -> web.Response:
        service = self._service
        match method, name:
            case "PUT", "faults":
                self.set_plan(msgspec.json.decode(body, type=FaultPlan))
            case "DELETE", "faults":
                self.set_plan(FaultPlan())
            case "GET", "faults":
                return _json(service.faults.plan)
            case "POST", "keys":
                return _json(self._issue(msgspec.json.decode(body, type=KeyRequest)))
            case "DELETE", "keys":
                service.keys.revoke(argument)
            case "POST", "restores":
                service.store.finish_restores()
            case "DELETE", "cache":
                service.cache.clear()
            case "PUT", "speed":
                wanted = msgspec.json.decode(body, type=StandardSpeed)
                self._limit(wanted.objects_per_s, leased=wanted.while_locked)
            case "DELETE", "speed":
                self.restore_speed()
            case "GET", "status":
                return _json(self._status())
            case _:
                return web.Response(status=404, text="faults, keys, restores, cache, speed, status")
        return web.Response(status=204)

    def restore_speed(self) -> None:
        """Gives the standard endpoint the speed again that the sandbox was started with."""
        self._limit(self._started_with.standard_objects_per_s, leased=False)

    def _limit(self, objects_per_s: float, *, leased: bool) -> None:
        self.speed_is_leased = leased
        self._service.origin.limit(objects_per_s)
        self._shaping = msgspec.structs.replace(self._shaping, standard_objects_per_s=objects_per_s)

    def _issue(self, wanted: KeyRequest) -> IssuedKey:
        expires_at = None if wanted.ttl_s is None else self._service.clock() + wanted.ttl_s
        key = self._service.keys.issue(wanted.role, prefix=wanted.prefix, expires_at=expires_at)
        token = key.token.reveal() if key.token else None
        return IssuedKey(id=key.id, secret=key.secret.reveal(), token=token, expires_at=expires_at)

    def _status(self) -> Status:
        cache, speed = self._service.cache, self._shaping.standard_objects_per_s
        return Status(
            shaping=self._shaping,
            cache_hits=cache.hits,
            cache_misses=cache.misses,
            cache_bytes=cache.size,
            fault_hits=self._service.faults.hits,
            slowed_to=None if speed == self._started_with.standard_objects_per_s else speed,
        )


def _json(content: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")
