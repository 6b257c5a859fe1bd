"""Sending a reply: whole, or as a fault of the fault plan changes it."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import closing, nullcontext
from typing import NoReturn

import msgspec
from aiohttp import web

from ossconsole.sandbox import faults
from ossconsole.sandbox.api.call import Reply
from ossconsole.sandbox.replies import OssError

_STALL_STEP_S = 0.1
_SLOW_STEP_S = 0.05
_CRC = "x-oss-hash-crc64ecma"


class RequestRecord(msgspec.Struct, kw_only=True):
    """One line of the request log, filled in while the request is served.

    `time` is Unix seconds at its start, `ms` the time until the last byte of the reply, `bytes` the size of the body
    sent. `code` is the error code and `fault` the injected fault, each empty for none.
    """

    time: float
    endpoint: str
    method: str
    operation: str = ""
    bucket: str = ""
    key: str = ""
    query: dict[str, str] = {}
    status: int = 0
    bytes: int = 0
    user_agent: str
    request_id: str
    ms: float = 0.0
    code: str = ""
    fault: str = ""


async def inject_before(request: web.BaseRequest, action: faults.Action | None) -> None:
    """Applies a fault that takes effect before the operation. Raises OssError, ConnectionResetError."""
    if isinstance(action, faults.Error):
        delay = {} if action.qos_delay_ms is None else {"x-oss-qos-delay-time": str(action.qos_delay_ms)}
        raise OssError(action.code, action.message, status=action.status, ec=action.ec, headers=delay)
    if isinstance(action, faults.Reset) and not action.after_bytes:
        _reset(request)
    if isinstance(action, faults.Stall) and not action.after_bytes:
        await _stall(request, action.seconds)


async def send(
    request: web.BaseRequest, record: RequestRecord, reply: Reply, action: faults.Action | None = None
) -> web.StreamResponse:
    """Sends `reply`. Raises ConnectionError where the client has disconnected or a fault cuts the reply off."""
    record.status = reply.status
    with closing(reply.source) if reply.source else nullcontext():
        if action is not None:
            return await _send_faulty(request, record, reply, action)
        if reply.source is None:
            return _whole(request, record, reply)
        data = await reply.source.read()
        if len(data) == reply.source.length:
            reply.body = data
            return _whole(request, record, reply)
        response = await _begin(request, reply, reply.source.length)
        while data:
            await response.write(data)
            record.bytes += len(data)
            data = await reply.source.read()
    await response.write_eof()
    return response


def _whole(request: web.BaseRequest, record: RequestRecord, reply: Reply) -> web.Response:
    if request.method == "HEAD":
        reply.headers["Content-Length"] = str(reply.length)
    record.bytes = len(reply.body)
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body or None)


async def _begin(request: web.BaseRequest, reply: Reply, length: int) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response.content_length = length
    await response.prepare(request)
    return response


async def _send_faulty(
    request: web.BaseRequest, record: RequestRecord, reply: Reply, action: faults.Action
) -> web.StreamResponse:
    if isinstance(action, faults.LostReply):
        _reset(request)
    if isinstance(action, faults.WrongCrc) and _CRC in reply.headers:
        reply.headers[_CRC] = str(int(reply.headers[_CRC]) ^ 1)
    if isinstance(action, faults.MalformedListing):
        reply.body = reply.body[: len(reply.body) // 2]
    if request.method == "HEAD":
        return _whole(request, record, reply)
    length = reply.source.length if reply.source else len(reply.body)
    if isinstance(action, faults.Truncate) and action.quietly:
        length = min(length, action.after_bytes)
    first = await reply.source.read() if reply.source else reply.body  # a disk error comes before the headers
    response = await _begin(request, reply, length)
    async for data in _faulty_chunks(request, _chunks(reply, first), action):
        await response.write(data)
        record.bytes += len(data)
    await response.write_eof()
    return response


async def _chunks(reply: Reply, first: bytes) -> AsyncIterator[bytes]:
    yield first
    while reply.source and (data := await reply.source.read()):
        yield data


async def _faulty_chunks(
    request: web.BaseRequest, chunks: AsyncIterator[bytes], action: faults.Action
) -> AsyncIterator[bytes]:
    """The chunks as the fault changes them. Raises ConnectionResetError where it cuts them off."""
    if isinstance(action, faults.Slow):
        step = max(1, int(action.bytes_per_s * _SLOW_STEP_S))
        async for data in chunks:
            for start in range(0, len(data), step):
                yield data[start : start + step]
                await asyncio.sleep(_SLOW_STEP_S)
        return
    if isinstance(action, faults.Corrupt):
        first = True
        async for data in chunks:
            yield bytes([data[0] ^ 1]) + data[1:] if first and data else data
            first = False
        return
    cut = action.after_bytes if isinstance(action, (faults.Reset, faults.Truncate, faults.Stall)) else None
    if cut == 0 and not isinstance(action, faults.Truncate):  # done before the operation
        cut = None
    async for data in chunks:
        if cut is None or cut > len(data):
            yield data
            cut = None if cut is None else cut - len(data)
            continue
        yield data[:cut]
        await _cut(request, action)
        if isinstance(action, faults.Truncate):
            return
        yield data[cut:]
        cut = None


async def _cut(request: web.BaseRequest, action: faults.Action) -> None:
    if isinstance(action, faults.Stall):
        await _stall(request, action.seconds)
    elif isinstance(action, faults.Reset):
        _reset(request)
    elif isinstance(action, faults.Truncate) and not action.quietly:
        if request.transport is not None:
            request.transport.close()
        raise ConnectionResetError("cut off by a fault")


async def _stall(request: web.BaseRequest, seconds: float) -> None:
    """Sends nothing for `seconds`, or until the client disconnects. Raises ConnectionResetError then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client gave up waiting")
        await asyncio.sleep(min(_STALL_STEP_S, seconds))


def _reset(request: web.BaseRequest) -> NoReturn:
    """Ends the connection with an RST in place of a FIN: a linger time of zero makes the kernel do so."""
    transport = request.transport
    if transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    raise ConnectionResetError("reset by a fault")
