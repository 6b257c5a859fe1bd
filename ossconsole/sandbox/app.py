"""The sandbox's process: folder, keys, sockets, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from aiohttp import web

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.sandbox.api.call import Service
from ossconsole.sandbox.cache import BlockCache
from ossconsole.sandbox.keys import KeyRing
from ossconsole.sandbox.process import LOG_NAME, SandboxInfo, make_folder
from ossconsole.sandbox.reading import Reader
from ossconsole.sandbox.requestlog import RequestLog
from ossconsole.sandbox.server import ADDRESSES, Front
from ossconsole.sandbox.shaping import Origin, Shaping
from ossconsole.sandbox.store import Store

# The connector calls `<bucket>.<endpoint host>`: with this bucket and these hosts that is 127.0.0.1 and 127.0.0.2.
BUCKET = "127"
_HOSTS = {EndpointKind.STANDARD: "0.0.1", EndpointKind.ACCELERATED: "0.0.2"}
_BIND_ATTEMPTS = 20
_SHUTDOWN_S = 1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a sandbox. Port 0 takes a free one."""

    directory: Path
    port: int = 0
    region: str = "cn-sandbox"
    shaping: Shaping = Shaping()
    until_stdin_closes: bool = False


def run(settings: Settings, ready: Callable[[SandboxInfo], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is called once both endpoints answer. Raises ConsoleError."""
    directory = settings.directory
    make_folder(directory)
    with _locked(directory), contextlib.closing(Store(directory)) as store:
        asyncio.run(_serve(settings, store, ready))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One sandbox per folder. Raises SettingsError."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise SettingsError(
            f"Another sandbox runs on {directory}.", remedy="Stop it, or give another --dir."
        ) from error
    finally:
        os.close(descriptor)


async def _serve(settings: Settings, store: Store, ready: Callable[[SandboxInfo], None]) -> None:
    sockets = _bind(settings.port)
    port = sockets[EndpointKind.STANDARD].getsockname()[1]
    service = _service(settings, store, port)
    if BUCKET not in store.buckets:
        store.create_bucket(BUCKET)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if settings.until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), lambda: _on_stdin(stop))
    log = RequestLog(settings.directory / LOG_NAME)
    front = Front(service, log)
    runners = []
    for kind, listener in sockets.items():
        runner = web.ServerRunner(front.server(kind), shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        await web.SockSite(runner, listener, backlog=1024).start()
        runners.append(runner)
    gc.freeze()
    ready(_info(settings, service.keys, port))
    await stop.wait()
    await asyncio.gather(*(runner.cleanup() for runner in runners))
    log.close()


def _on_stdin(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


def _service(settings: Settings, store: Store, port: int) -> Service:
    shaping = settings.shaping
    origin = Origin(shaping)
    cache = BlockCache(int(shaping.cache_mb * 1e6))
    return Service(
        store=store,
        keys=KeyRing.load(settings.directory / "keys.json"),
        region=settings.region,
        port=port,
        origin=origin,
        reader=Reader(store.blobs, origin, shaping, cache),
        cache=cache,
        clock=time.time,
    )


def _info(settings: Settings, keys: KeyRing, port: int) -> SandboxInfo:
    return SandboxInfo(
        bucket=BUCKET,
        region=settings.region,
        endpoints={kind.value: f"http://{host}:{port}" for kind, host in _HOSTS.items()},
        path_style_endpoint=f"http://{ADDRESSES[EndpointKind.STANDARD]}:{port}",
        access_key_id=keys.owner.id,
        access_key_secret=keys.owner.secret,
    )


def _bind(port: int) -> dict[EndpointKind, socket.socket]:
    """Both listeners on one port. Raises ConsoleError when it is taken."""
    for _ in range(_BIND_ATTEMPTS):
        sockets: dict[EndpointKind, socket.socket] = {}
        chosen = port
        try:
            for kind, address in ADDRESSES.items():
                listener = socket.socket()
                sockets[kind] = listener
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, chosen))
                # Bound is not taken yet: with SO_REUSEADDR only listening claims the port.
                listener.listen(1024)
                chosen = listener.getsockname()[1]
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
    raise ConsoleError("No free port was found on 127.0.0.1 and 127.0.0.2.", remedy="Give one with --port.")
