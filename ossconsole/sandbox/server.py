"""The HTTP server: every request of both endpoints checked, dispatched, answered and logged."""

from __future__ import annotations

import secrets
import time
from functools import partial
from itertools import count

from aiohttp import web

from ossconsole.config.endpoints import EndpointKind
from ossconsole.sandbox import delivery, faults
from ossconsole.sandbox.access import authorise
from ossconsole.sandbox.api import routes
from ossconsole.sandbox.api.call import Call, Reply, Service
from ossconsole.sandbox.api.routes import Operation
from ossconsole.sandbox.delivery import Trace
from ossconsole.sandbox.errors import OssError
from ossconsole.sandbox.incoming import Incoming
from ossconsole.sandbox.keys import Action
from ossconsole.sandbox.names import check_key
from ossconsole.sandbox.requestlog import RequestLog, RequestRecord, shown_query
from ossconsole.sandbox.signature import Verifier
from ossconsole.sandbox.steering import Steering, is_steering
from ossconsole.sandbox.times import http_time

ADDRESSES = {EndpointKind.STANDARD: "127.0.0.1", EndpointKind.ACCELERATED: "127.0.0.2"}
_SERVER_NAME = "ossconsole-sandbox"
# A key of 1,023 bytes is three times as long percent-encoded, and a copy source likewise.
_MAX_LINE_BYTES = 32 << 10


class Front:
    """Turns aiohttp's requests into calls of the service, and replies into what goes over the wire."""

    def __init__(self, service: Service, steering: Steering, log: RequestLog) -> None:
        self._service = service
        self._steering = steering
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
        trace = Trace(f"{self._id_prefix}{next(self._numbers):012X}", time.monotonic())
        try:
            return await self._answer(kind, request, trace)
        except OssError as error:
            return await self._refuse(request, trace, error)
        except web.RequestPayloadError as error:
            return await self._refuse(request, trace, OssError("BadRequest", str(error)))
        except ConnectionError:
            trace.code = "" if trace.fault else "ClientGone"
            raise
        except OSError as error:
            if trace.sent:
                raise
            return await self._refuse(request, trace, OssError("InternalError", f"The sandbox's disk: {error}."))
        finally:
            self._record(kind, request, trace)

    async def _answer(self, kind: EndpointKind, request: web.BaseRequest, trace: Trace) -> web.StreamResponse:
        service = self._service
        incoming = Incoming(request.method, request.raw_path, request.raw_headers)
        trace.query = incoming.query
        # A page in a browser that resolves its own name to 127.0.0.1 sends that name here.
        if incoming.host not in self._hosts:
            raise OssError("AccessDenied", "The sandbox answers to its loopback addresses only.")
        if is_steering(incoming):
            trace.operation = "Steering"
            return await self._steering.handle(request, incoming)
        readings = incoming.readings(service.store.buckets)
        trace.target = readings[0]
        caller = self._verifier.check(incoming, readings, service.clock())
        trace.target = target = caller.target
        operation = routes.find(incoming, target)
        trace.operation = operation.name
        if target.key:
            check_key(target.key)
        authorise(service.store, operation.action, caller.key, target, incoming)
        action = self._fault(kind, incoming, operation, trace)
        if action is not None:
            await delivery.before(request, action)
        if incoming.headers.get("expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        reply = await operation.run(Call(service, kind, incoming, request.content, target, caller.key))
        if operation.action is Action.WRITE:
            await service.origin.put()
        return await self._send(request, trace, reply, action)

    def _fault(
        self, kind: EndpointKind, incoming: Incoming, operation: Operation, trace: Trace
    ) -> faults.Action | None:
        engine = self._service.faults
        if not engine.plan.rules:
            return None
        agent = incoming.headers.get("user-agent", "")
        about = faults.Request(incoming.method, operation.name, kind, trace.target.key, agent)
        action = engine.decide(about, time.monotonic())
        if action is not None:
            trace.fault = str(action.__struct_config__.tag)
        return action

    async def _send(
        self, request: web.BaseRequest, trace: Trace, reply: Reply, action: faults.Action | None = None
    ) -> web.StreamResponse:
        headers = reply.headers
        headers["Server"] = _SERVER_NAME
        headers["x-oss-request-id"] = trace.request_id
        headers["x-oss-server-time"] = str(int((time.monotonic() - trace.started) * 1000))
        if self._service.faults.plan.clock_skew_s:
            headers["Date"] = http_time(self._service.clock())
        return await delivery.deliver(request, trace, reply, action)

    async def _refuse(self, request: web.BaseRequest, trace: Trace, error: OssError) -> web.StreamResponse:
        trace.code = error.code
        xml = error.xml(trace.request_id, request.headers.get("Host", ""))
        head = request.method == "HEAD"
        headers = {"Content-Type": "application/xml", **error.headers(xml, head=head)}
        return await self._send(request, trace, Reply(error.status, headers, b"" if head else xml))

    def _record(self, kind: EndpointKind, request: web.BaseRequest, trace: Trace) -> None:
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
            user_agent=request.headers.get("User-Agent", ""),
            request_id=trace.request_id,
            ms=round((time.monotonic() - trace.started) * 1000, 3),
            code=trace.code,
            fault=trace.fault,
        )
        self._log.write(record)
