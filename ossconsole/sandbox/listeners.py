"""The listening sockets of the endpoints: opened together on one port, taken down and put back one by one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from aiohttp import web

from ossconsole.config.errors import ConsoleError

_BIND_ATTEMPTS = 20
_BACKLOG = 1024
_SHUTDOWN_S = 1.0
_RETRY_S = 0.2


def reserve(addresses: Sequence[str], port: int) -> dict[str, socket.socket]:
    """One bound, listening socket per address, all on one port; port 0 takes a free one.

    Raises ConsoleError when the port is taken.
    """
    for _ in range(_BIND_ATTEMPTS):
        sockets: dict[str, socket.socket] = {}
        chosen = port
        try:
            for address in addresses:
                sockets[address] = _bound(address, chosen)
                # With SO_REUSEADDR only listening claims the port.
                sockets[address].listen(_BACKLOG)
                chosen = sockets[address].getsockname()[1]
        except OSError as error:
            for listener in sockets.values():
                listener.close()
            if port:
                raise ConsoleError(
                    f"The sandbox cannot listen on port {port}: {error.strerror}.",
                    remedy="Stop what uses it, or give another --port (0 takes a free one).",
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
    """One address where a server answers."""

    def __init__(self, web_server: web.Server, listening: socket.socket) -> None:
        self._web_server = web_server
        self._first = listening
        self._address, self._port = listening.getsockname()
        self._server: asyncio.Server | None = None
        self._return: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._web_server, sock=self._first)

    def outage(self, seconds: float) -> None:
        """Refuse connections, and drop those there are, for so long; 0 ends an outage."""
        if self._return is not None:
            self._return.cancel()
        if seconds and self._server is not None:
            self._server.close()
            self._server = None
            for connection in self._web_server.connections:
                connection.force_close()
        if self._server is None:
            self._return = asyncio.get_running_loop().create_task(self._come_back(seconds))

    async def _come_back(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while True:
            try:
                listening = _bound(self._address, self._port)
                break
            except OSError:
                # Someone else took the port meanwhile; the outage lasts until it is free again.
                await asyncio.sleep(_RETRY_S)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._web_server, sock=listening, backlog=_BACKLOG)

    async def stop(self) -> None:
        """Finish what is under way, for a second at most."""
        if self._return is not None:
            self._return.cancel()
        if self._server is not None:
            self._server.close()
        self._web_server.pre_shutdown()
        await self._web_server.shutdown(_SHUTDOWN_S)
