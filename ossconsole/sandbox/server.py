"""The HTTP server: both endpoints on one port, every request checked, dispatched, answered and logged."""

from __future__ import annotations

import secrets
import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import cast

from aiohttp import web

from ossconsole.config.endpoints import EndpointKind
from ossconsole.sandbox.api import routes
from ossconsole.sandbox.api.call import Call, Reply, Service
from ossconsole.sandbox.errors import OssError
from ossconsole.sandbox.incoming import Incoming, Target
from ossconsole.sandbox.keys import AccessKey, Action
from ossconsole.sandbox.names import check_key
from ossconsole.sandbox.reading import Body
from ossconsole.sandbox.requestlog import RequestLog, RequestRecord, shown_query
from ossconsole.sandbox.signature import Verifier

ADDRESSES = {EndpointKind.STANDARD: "127.0.0.1", EndpointKind.ACCELERATED: "127.0.0.2"}
_SERVER_NAME = "ossconsole-sandbox"
# A key of 1,023 bytes is three times as long percent-encoded, and a copy source likewise.
_MAX_LINE_BYTES = 32 << 10


@dataclass
class _Trace:
    """What is known of a request so far, for the log."""

    request_id: str
    started: float
    target: Target = field(default_factory=Target)
    query: dict[str, str] = field(default_factory=dict)
    operation: str = ""
    code: str = ""
    status: int = 0
    sent: int = 0


class Front:
    """Turns aiohttp's requests into calls of the service, and replies into what goes over the wire."""

    def __init__(self, service: Service, log: RequestLog) -> None:
        self._service = service
        self._log = log
        self._verifier = Verifier(service.keys, service.region)
        self._id_prefix = secrets.token_hex(6).upper()
        self._numbers = count(1)
        self._hosts = {f"{host}:{service.port}" for host in (*ADDRESSES.values(), "localhost")}

    def server(self, kind: EndpointKind) -> web.Server:
        """The server of one endpoint."""
        return web.Server(
            partial(self._handle, kind),
            access_log=None,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
        )

    async def _handle(self, kind: EndpointKind, request: web.BaseRequest) -> web.StreamResponse:
        trace = _Trace(f"{self._id_prefix}{next(self._numbers):012X}", time.monotonic())
        try:
            return await self._send(request, trace, await self._answer(kind, request, trace))
        except OssError as error:
            return await self._refuse(request, trace, error)
        except web.RequestPayloadError as error:
            return await self._refuse(request, trace, OssError("BadRequest", str(error)))
        except ConnectionError:
            trace.code = "ClientGone"
            raise
        except OSError as error:
            if trace.sent:
                raise
            return await self._refuse(request, trace, OssError("InternalError", f"The sandbox's disk: {error}."))
        finally:
            self._record(kind, request, trace)

    async def _answer(self, kind: EndpointKind, request: web.BaseRequest, trace: _Trace) -> Reply:
        service = self._service
        incoming = Incoming(request.method, request.raw_path, request.raw_headers)
        trace.query = incoming.query
        # A page in a browser that resolves its own name to 127.0.0.1 sends that name here.
        if incoming.host not in self._hosts:
            raise OssError("AccessDenied", "The sandbox answers to its loopback addresses only.")
        readings = incoming.readings(service.store.buckets)
        trace.target = readings[0]
        caller = self._verifier.check(incoming, readings, service.clock())
        trace.target = target = caller.target
        operation = routes.find(incoming, target)
        trace.operation = operation.name
        if target.key:
            check_key(target.key)
        self._authorise(operation.action, caller.key, target, incoming)
        if incoming.headers.get("expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await operation.run(Call(service, kind, incoming, request.content, target, caller.key))

    def _authorise(self, action: Action, key: AccessKey | None, target: Target, incoming: Incoming) -> None:
        if key is None:
            self._authorise_anonymous(action, target)
            return
        name = incoming.query.get("prefix", "") if action is Action.LIST and not target.key else target.key
        # A batch delete names its keys in the body, where each is checked.
        if not (action is Action.DELETE and not target.key) and not key.allows(action, name):
            raise OssError("AccessDenied", "You have no right to access this object because of bucket acl.")

    def _authorise_anonymous(self, action: Action, target: Target) -> None:
        if not target.bucket:
            raise OssError("AccessDenied", "Anonymous access is forbidden for this operation.")
        acl = self._service.store.bucket(target.bucket).acl
        if target.key and action is Action.READ:
            found = self._service.store.index.get(target.bucket, target.key)
            if found is not None and found.attributes.acl != "default":
                acl = found.attributes.acl
        allowed = {
            Action.READ: acl.startswith("public-read"),
            Action.LIST: acl.startswith("public-read") and not target.key,
            Action.WRITE: acl == "public-read-write" and bool(target.key),
            Action.DELETE: acl == "public-read-write" and bool(target.key),
        }
        if not allowed.get(action):
            raise OssError("AccessDenied", "Anonymous access is forbidden for this operation.")

    async def _send(self, request: web.BaseRequest, trace: _Trace, reply: Reply) -> web.StreamResponse:
        trace.status = reply.status
        headers = reply.headers
        headers["Server"] = _SERVER_NAME
        headers["x-oss-request-id"] = trace.request_id
        headers["x-oss-server-time"] = str(int((time.monotonic() - trace.started) * 1000))
        if reply.source is not None:
            with closing(reply.source) as source:
                return await _send_source(request, trace, reply, source)
        if request.method == "HEAD":
            headers["Content-Length"] = str(reply.length)
        trace.sent = len(reply.body)
        return web.Response(status=reply.status, headers=headers, body=reply.body or None)

    async def _refuse(self, request: web.BaseRequest, trace: _Trace, error: OssError) -> web.StreamResponse:
        trace.code = error.code
        xml = error.xml(trace.request_id, request.headers.get("Host", ""))
        head = request.method == "HEAD"
        headers = {"Content-Type": "application/xml", **error.headers(xml, head=head)}
        return await self._send(request, trace, Reply(error.status, headers, b"" if head else xml))

    def _record(self, kind: EndpointKind, request: web.BaseRequest, trace: _Trace) -> None:
        record = RequestRecord(
            time=time.time(),
            endpoint=kind.value,
            method=request.method,
            operation=trace.operation,
            bucket=trace.target.bucket,
            key=trace.target.key,
            query=shown_query(trace.query),
            status=trace.status,
            bytes=trace.sent,
            user_agent=cast(str, request.headers.get("User-Agent", "")),
            request_id=trace.request_id,
            ms=round((time.monotonic() - trace.started) * 1000, 3),
            code=trace.code,
        )
        self._log.write(record)


async def _send_source(request: web.BaseRequest, trace: _Trace, reply: Reply, source: Body) -> web.StreamResponse:
    data = await source.read()
    if len(data) == source.length:
        trace.sent = source.length
        return web.Response(status=reply.status, headers=reply.headers, body=data)
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response.content_length = source.length
    await response.prepare(request)
    while data:
        await response.write(data)
        trace.sent += len(data)
        data = await source.read()
    await response.write_eof()
    return response
