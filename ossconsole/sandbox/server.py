"""The HTTP server: its listening sockets, and the checks, dispatch, reply and log record of each request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
from aiohttp import web

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import open_private
from ossconsole.sandbox import faults, response
from ossconsole.sandbox.api import routes
from ossconsole.sandbox.api.call import Call, Reply, Service
from ossconsole.sandbox.api.routes import Operation
from ossconsole.sandbox.control import ControlApi, is_control_request
from ossconsole.sandbox.keys import Permission, authorise
from ossconsole.sandbox.records import check_key
from ossconsole.sandbox.replies import OssError, http_time, invalid_argument
from ossconsole.sandbox.request import IncomingRequest
from ossconsole.sandbox.response import RequestRecord
from ossconsole.sandbox.signature import Verifier

log = logging.getLogger(__name__)

_MAX_BYTES = 64 << 20
_SECRET_PARAMETERS = frozenset({"x-oss-signature", "Signature", "x-oss-security-token", "security-token"})


def logged_query(query: dict[str, str]) -> dict[str, str]:
    """The parameters without signatures and tokens: a presigned URL is a secret while it is valid."""
    return {name: value for name, value in query.items() if name not in _SECRET_PARAMETERS}


class RequestLog:
    """Appends records; at 64 MiB the file becomes `sandbox.log.1` and a new one begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()
        self._encoder = msgspec.json.Encoder()

    def write(self, record: RequestRecord) -> None:
        """Appends one line. Never raises."""
        line = self._encoder.encode(record) + b"\n"
        # A full disk does not stop the server.
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line)
        self._size += len(line)
        if self._size > _MAX_BYTES:
            self._rotate()

    def _rotate(self) -> None:
        """Begins a new file. Where none can be opened, the present one is written further."""
        before = self._descriptor
        with contextlib.suppress(OSError):
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        with contextlib.suppress(SettingsError):
            self._open()
            os.close(before)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _open(self) -> None:
        self._descriptor = open_private(self._path)
        self._size = os.fstat(self._descriptor).st_size


ADDRESSES = {EndpointKind.STANDARD: "127.0.0.1", EndpointKind.ACCELERATED: "127.0.0.2"}
_SERVER_NAME = "ossconsole-sandbox"
_CLIENT_GONE = 499  # nginx's status for it; no client sees it
# A key of 1,023 bytes is three times as long percent-encoded, and so is a copy source.
_MAX_LINE_BYTES = 32 << 10


class RequestHandler:
    """Handles aiohttp's requests: signature, permission, fault plan, operation, reply, log record."""

    def __init__(self, service: Service, control: ControlApi, log: RequestLog) -> None:
        self._service = service
        self._control = control
        self._log = log
        self._verifier = Verifier(service.keys, service.region)
        self._id_prefix = secrets.token_hex(6).upper()
        self._numbers = count(1)
        self._hosts = {f"{host}:{service.port}" for host in (*ADDRESSES.values(), "localhost")}

    def server(self, kind: EndpointKind) -> web.Server:
        """aiohttp's server for one endpoint."""
        return web.Server(
            partial(self._handle, kind),
            access_log=None,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            auto_decompress=False,  # OSS stores what it is sent
        )

    async def _handle(self, kind: EndpointKind, request: web.BaseRequest) -> web.StreamResponse:
        started = time.monotonic()
        record = RequestRecord(
            time=time.time(),
            endpoint=kind.value,
            method=request.method,
            # A lone surrogate, which stands for a byte that is not UTF-8, has no form in JSON.
            user_agent=request.headers.get("User-Agent", "").encode("utf-8", "replace").decode(),
            request_id=f"{self._id_prefix}{next(self._numbers):012X}",
        )
        try:
            return await self._answer(kind, request, record)
        except ConnectionError:
            record.code = "" if record.fault else "ClientGone"
            return self._abandoned(request)
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets an answer of OSS's form
            if record.bytes:  # in the middle of the reply
                return self._abandoned(request)
            return await self._refuse(request, record, self._as_oss_error(request, error))
        finally:
            record.ms = round((time.monotonic() - started) * 1000, 3)
            self._log.write(record)

    @staticmethod
    def _as_oss_error(request: web.BaseRequest, error: Exception) -> OssError:
        if isinstance(error, OssError):
            return error
        if isinstance(error, web.RequestPayloadError):
            return OssError("BadRequest", str(error))
        if isinstance(error, UnicodeEncodeError):
            return invalid_argument("A header is not UTF-8.")
        if isinstance(error, OSError | sqlite3.OperationalError):
            return OssError("InternalError", f"The sandbox's disk: {error}.")
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        return OssError("InternalError")

    @staticmethod
    def _abandoned(request: web.BaseRequest) -> web.StreamResponse:
        """Ends the connection of a reply that cannot be completed; the response is never sent."""
        if request.transport is not None:
            request.transport.close()
        return web.Response(status=_CLIENT_GONE)

    async def _answer(self, kind: EndpointKind, request: web.BaseRequest, record: RequestRecord) -> web.StreamResponse:
        service = self._service
        incoming = IncomingRequest(request.method, request.raw_path, request.raw_headers)
        record.query = logged_query(incoming.query)
        # Against DNS rebinding: a web page whose name resolves to 127.0.0.1 sends that name.
        if incoming.host.lower() not in self._hosts:
            raise OssError("AccessDenied", "The sandbox answers to its loopback addresses only.")
        if is_control_request(incoming):
            record.operation = "Control"
            return await self._control.handle(request, incoming)
        candidates = incoming.candidates(service.store.buckets)
        record.bucket, record.key = candidates[0].bucket, candidates[0].key
        caller = self._verifier.check(incoming, candidates, service.clock())
        target = caller.target
        record.bucket, record.key = target.bucket, target.key
        operation = routes.find(incoming, target)
        record.operation = operation.name
        if target.key:
            check_key(target.key)
        authorise(service.store, operation.action, caller.key, target, incoming)
        action = self._fault(kind, incoming, operation, record)
        if action is not None:
            await response.inject_before(request, action)
        if incoming.headers.get("expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        reply = await operation.run(Call(service, kind, incoming, request.content, target, caller.key))
        if operation.action is Permission.WRITE:
            await service.origin.put()
        return await self._send(request, record, reply, action)

    def _fault(
        self, kind: EndpointKind, incoming: IncomingRequest, operation: Operation, record: RequestRecord
    ) -> faults.Action | None:
        engine = self._service.faults
        if not engine.plan.rules:
            return None
        agent = incoming.headers.get("user-agent", "")
        candidate = faults.FaultCandidate(incoming.method, operation.name, kind, record.key, agent)
        action = engine.decide(candidate, time.monotonic())
        if action is not None:
            record.fault = str(action.__struct_config__.tag)
        return action

    async def _send(
        self, request: web.BaseRequest, record: RequestRecord, reply: Reply, action: faults.Action | None = None
    ) -> web.StreamResponse:
        headers = reply.headers
        headers["Server"] = _SERVER_NAME
        headers["x-oss-request-id"] = record.request_id
        headers["x-oss-server-time"] = str(int((time.time() - record.time) * 1000))
        if self._service.faults.plan.clock_skew_s:
            headers["Date"] = http_time(self._service.clock())
        return await response.send(request, record, reply, action)

    async def _refuse(self, request: web.BaseRequest, record: RequestRecord, error: OssError) -> web.StreamResponse:
        record.code = error.code
        xml = error.xml(record.request_id, request.headers.get("Host", ""))
        head = request.method == "HEAD"
        headers = {"Content-Type": "application/xml", **error.headers(xml, head=head)}
        return await self._send(request, record, Reply(error.status, headers, b"" if head else xml))


_BIND_ATTEMPTS = 20
_BACKLOG = 1024
_SHUTDOWN_S = 1.0
_RETRY_S = 0.2


def reserve(addresses: Sequence[str], port: int) -> dict[str, socket.socket]:
    """One bound, listening socket per address, all on one port; port 0 selects a free one.

    Raises ConsoleError where the port is in use.
    """
    for _ in range(_BIND_ATTEMPTS):
        sockets: dict[str, socket.socket] = {}
        selected = port
        try:
            for address in addresses:
                sockets[address] = _bound(address, selected)
                # With SO_REUSEADDR only listening claims the port.
                sockets[address].listen(_BACKLOG)
                selected = sockets[address].getsockname()[1]
        except OSError as error:
            for listener in sockets.values():
                listener.close()
            if port:
                raise ConsoleError(
                    f"The sandbox cannot listen on port {port}: {error.strerror}.",
                    remedy="Stop the program that uses it, or give another --port (0: a free one).",
                ) from error
        else:
            return sockets
    raise ConsoleError("No port is free on all loopback addresses.", remedy="Give one with --port.")


def _bound(address: str, port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener


class Listener:
    """One address that a server listens on, and its simulated outages."""

    def __init__(self, web_server: web.Server, listening: socket.socket) -> None:
        self._web_server = web_server
        self._first = listening
        self._address, self._port = listening.getsockname()
        self._server: asyncio.Server | None = None
        self._outage_end: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to accept connections."""
        self._server = await asyncio.get_running_loop().create_server(self._web_server, sock=self._first)

    def outage(self, seconds: float) -> None:
        """Drops all connections and refuses new ones for `seconds`; 0 ends an outage."""
        if self._outage_end is not None:
            self._outage_end.cancel()
        if seconds and self._server is not None:
            self._server.close()
            self._server = None
            for connection in self._web_server.connections:
                connection.force_close()
        if self._server is None:
            self._outage_end = asyncio.get_running_loop().create_task(self._end_outage(seconds))

    async def _end_outage(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while True:
            try:
                listening = _bound(self._address, self._port)
                break
            except OSError:
                # Another program took the port meanwhile; the outage lasts until it is free.
                await asyncio.sleep(_RETRY_S)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._web_server, sock=listening, backlog=_BACKLOG)

    async def stop(self) -> None:
        """Stops listening and finishes requests in progress, for a second at most."""
        if self._outage_end is not None:
            self._outage_end.cancel()
        if self._server is not None:
            self._server.close()
        self._web_server.pre_shutdown()
        await self._web_server.shutdown(_SHUTDOWN_S)
