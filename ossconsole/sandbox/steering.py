"""The server's side of `control`: what `/-/` does."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from ossconsole.sandbox.api.call import Service
from ossconsole.sandbox.control import PREFIX, IssuedKey, KeyRequest, Status, authorization
from ossconsole.sandbox.faults import FaultEngine, FaultPlan
from ossconsole.sandbox.incoming import Incoming
from ossconsole.sandbox.shaping import Shaping


def is_steering(incoming: Incoming) -> bool:
    """An object's key may begin with `-/` as well; what is signed like an OSS request is one."""
    return incoming.path.startswith(PREFIX) and incoming.headers.get("authorization", "").startswith("Basic ")


class Steering:
    """Carries out control requests; `outage` is told which endpoints to take down and for how long."""

    def __init__(self, service: Service, shaping: Shaping, outage: Callable[[FaultPlan], None]) -> None:
        self._service = service
        self._shaping = shaping
        self._outage = outage

    def set_plan(self, plan: FaultPlan) -> None:
        self._service.faults = FaultEngine(plan, time.monotonic())
        self._outage(plan)

    async def handle(self, request: web.BaseRequest, incoming: Incoming) -> web.Response:
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
        if (method, name) == ("PUT", "faults"):
            self.set_plan(msgspec.json.decode(body, type=FaultPlan))
        elif (method, name) == ("DELETE", "faults"):
            self.set_plan(FaultPlan())
        elif (method, name) == ("GET", "faults"):
            return _json(service.faults.plan)
        elif (method, name) == ("POST", "keys"):
            return _json(self._issue(msgspec.json.decode(body, type=KeyRequest)))
        elif (method, name) == ("DELETE", "keys"):
            service.keys.revoke(argument)
        elif (method, name) == ("DELETE", "cache"):
            service.cache.clear()
        elif (method, name) == ("GET", "status"):
            return _json(self._status())
        else:
            return web.Response(status=404, text="faults, keys, cache, status")
        return web.Response(status=204)

    def _issue(self, wanted: KeyRequest) -> IssuedKey:
        expires_at = None if wanted.ttl_s is None else self._service.clock() + wanted.ttl_s
        key = self._service.keys.issue(wanted.role, prefix=wanted.prefix, expires_at=expires_at)
        token = key.token.reveal() if key.token else None
        return IssuedKey(id=key.id, secret=key.secret.reveal(), token=token, expires_at=expires_at)

    def _status(self) -> Status:
        cache = self._service.cache
        return Status(
            shaping=self._shaping,
            cache_hits=cache.hits,
            cache_misses=cache.misses,
            cache_bytes=cache.size,
            fault_hits=self._service.faults.hits,
        )


def _json(content: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")
