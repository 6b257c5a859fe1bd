"""A simulated ECS instance metadata service on loopback: region, zone, instance type and role credentials."""

from __future__ import annotations

import secrets
import time

import msgspec
from aiohttp import web

from ossconsole.sandbox.keys import AccessKey, KeyRing, Role
from ossconsole.sandbox.request import whole_number

ROLE_NAME = "sandbox-role"
INSTANCE_TYPE = "ecs.sandbox.large"
_TOKEN_HEADER = "X-aliyun-ecs-metadata-token"  # noqa: S105 - a header's name
_TTL_HEADER = "X-aliyun-ecs-metadata-token-ttl-seconds"
_MAX_TTL_S = 21_600
_ITEMS = "/latest/meta-data/"
_CREDENTIALS = "ram/security-credentials/"


class MetadataServer:
    """Answers like the metadata service of an ECS instance; `tokens_only` disables requests without a token (v1)."""

    def __init__(
        self,
        keys: KeyRing,
        region: str,
        *,
        host: str,
        tokens_only: bool,
        credential_ttl_s: float,
    ) -> None:
        self._keys = keys
        self._host = host
        self._tokens_only = tokens_only
        self._ttl_s = credential_ttl_s
        self._tokens: dict[str, float] = {}
        self._issued: AccessKey | None = None
        self._items = {
            "region-id": region,
            "zone-id": f"{region}-a",
            "instance-id": "i-sandbox",
            "instance/instance-type": INSTANCE_TYPE,
            "instance/instance-name": "sandbox",
            "image-id": "sandbox",
            _CREDENTIALS: ROLE_NAME,
        }

    def server(self) -> web.Server:
        """aiohttp's server for it."""
        return web.Server(self._handle, access_log=None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Host") != self._host:
            return web.Response(status=403, text="Forbidden")
        if request.method == "PUT" and request.path == "/latest/api/token":
            return self._token(request.headers.get(_TTL_HEADER, ""))
        if request.method != "GET" or not request.path.startswith(_ITEMS):
            return web.Response(status=404, text="Not Found")
        if not self._admits(request.headers.get(_TOKEN_HEADER)):
            return web.Response(status=403, text="Forbidden")
        return self._item(request.path[len(_ITEMS) :])

    def _token(self, ttl: str) -> web.Response:
        seconds = whole_number(ttl)
        if seconds is None or not 1 <= seconds <= _MAX_TTL_S:
            return web.Response(status=400, text="Bad Request")
        token = secrets.token_urlsafe(32)
        self._tokens[token] = time.time() + seconds
        return web.Response(text=token, headers={_TTL_HEADER: ttl})

    def _admits(self, token: str | None) -> bool:
        if token is None:
            return not self._tokens_only
        return self._tokens.get(token, 0.0) > time.time()

    def _item(self, name: str) -> web.Response:
        if name == f"{_CREDENTIALS}{ROLE_NAME}":
            return web.Response(body=self._credentials(), content_type="application/json")
        value = self._items.get(name) or self._items.get(f"{name}/")
        return web.Response(text=value) if value else web.Response(status=404, text="Not Found")

    def _credentials(self) -> bytes:
        """The role's credentials as JSON, renewed after half of their lifetime."""
        now = time.time()
        issued = self._issued
        if issued is None or issued.expires_at is None or issued.expires_at - now < self._ttl_s / 2:
            issued = self._keys.issue(Role.OWNER, expires_at=now + self._ttl_s)
            self._issued = issued
        fields = {
            "Code": "Success",
            "AccessKeyId": issued.id,
            "AccessKeySecret": issued.secret.reveal(),
            "SecurityToken": issued.token.reveal() if issued.token else "",
            "Expiration": _utc(issued.expires_at or now),
            "LastUpdated": _utc(now),
        }
        return msgspec.json.encode(fields)


def _utc(timestamp: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp))
