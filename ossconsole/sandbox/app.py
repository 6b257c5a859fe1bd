"""The sandbox's process: its folder and lock, its parts, its sockets, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import SettingsError
from ossconsole.config.files import READ_WRITE, open_private, try_lock, write_private
from ossconsole.sandbox.accelerator import default_accelerator, encoded_accelerators
from ossconsole.sandbox.api.call import Service
from ossconsole.sandbox.control import ControlApi
from ossconsole.sandbox.faults import FaultEngine, FaultPlan
from ossconsole.sandbox.imds import MetadataServer
from ossconsole.sandbox.keys import KeyRing
from ossconsole.sandbox.listing import SyntheticKeys
from ossconsole.sandbox.process import INFO_NAME, LOCK_NAME, LOG_NAME, SLOWED_NAME, SandboxInfo, Shaping
from ossconsole.sandbox.reading import BlockCache, OriginDelay, Reader
from ossconsole.sandbox.records import Bucket
from ossconsole.sandbox.server import ADDRESSES, Listener, RequestHandler, RequestLog, reserve
from ossconsole.sandbox.shared import Users
from ossconsole.sandbox.store import SandboxStore

# The connector calls `<bucket>.<endpoint host>`: with this bucket and these hosts that is 127.0.0.1 and 127.0.0.2.
BUCKET = "127"
METADATA_ADDRESS = "127.0.0.3"
_UNUSED_POLL_S = 0.5
_LEASE_POLL_S = 0.5
_LOCK_TRIES, _LOCK_WAIT_S = 5, 0.05
_HOSTS = {EndpointKind.STANDARD: "0.0.1", EndpointKind.ACCELERATED: "0.0.2"}


class SandboxSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a sandbox. Port 0 selects a free one; `metadata` is `off`, `v1` (both versions) or `v2`.

    `until_stdin_closes` and `until_unused` end it with its parent process, or with the last user of its folder.
    """

    directory: Path
    port: int = 0
    region: str = "cn-sandbox"
    shaping: Shaping = Shaping()
    faults: FaultPlan = FaultPlan()
    synthetic_keys: int = 0
    metadata: str = "off"
    metadata_credential_ttl_s: float = 3600.0
    until_stdin_closes: bool = False
    until_unused: bool = False


def run(settings: SandboxSettings, ready: Callable[[SandboxInfo], None]) -> None:
    """Serves until SIGINT or SIGTERM; `ready` is called once the endpoints answer. Raises ConsoleError."""
    # Every connection, and every large object being read, uses a descriptor.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with _locked(settings.directory), contextlib.closing(SandboxStore(settings.directory)) as store:
        info_path = settings.directory / INFO_NAME
        info_path.unlink(missing_ok=True)  # of a sandbox that was killed
        try:
            asyncio.run(_serve(settings, store, ready))
        finally:
            info_path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One sandbox per folder. Raises SettingsError."""
    descriptor = open_private(directory / LOCK_NAME, READ_WRITE)
    try:
        # Several attempts: a process that checks whether the folder is served holds the lock for a moment.
        for _ in range(_LOCK_TRIES):
            if try_lock(descriptor):
                break
            time.sleep(_LOCK_WAIT_S)
        else:
            raise SettingsError(f"Another sandbox is running on {directory}.", remedy="Stop it, or give another --dir.")
        yield
    finally:
        os.close(descriptor)


async def _serve(settings: SandboxSettings, store: SandboxStore, ready: Callable[[SandboxInfo], None]) -> None:
    addresses = [*ADDRESSES.values(), *([METADATA_ADDRESS] if settings.metadata != "off" else [])]
    sockets = reserve(addresses, settings.port)
    port = sockets[addresses[0]].getsockname()[1]
    service = _service(settings, store, port)
    if BUCKET not in store.buckets:
        now = time.time()
        accelerator = encoded_accelerators([default_accelerator(settings.region, now)])
        store.put_bucket(Bucket(name=BUCKET, created=now, accelerator=accelerator))
    log = RequestLog(settings.directory / LOG_NAME)
    listeners: dict[EndpointKind, Listener] = {}

    def outage(plan: FaultPlan) -> None:
        for kind, listener in listeners.items():
            listener.outage(plan.outages.get(kind, 0.0))

    control = ControlApi(service, settings.shaping, outage)
    front = RequestHandler(service, control, log)
    listeners |= {kind: Listener(front.server(kind), sockets[address]) for kind, address in ADDRESSES.items()}
    everything = [*listeners.values(), *_metadata(settings, service.keys, port, sockets.get(METADATA_ADDRESS))]
    for listener in everything:
        await listener.start()
    stop = _stop_event(settings)
    control.set_plan(settings.faults)
    gc.freeze()
    info = _info(settings, service.keys, port)
    write_private(settings.directory / INFO_NAME, info.encode())
    ready(info)
    watches = [asyncio.create_task(_end_leases(settings, control))]
    if settings.until_unused:
        watches.append(asyncio.create_task(_unused(settings, stop)))
    await stop.wait()
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*(listener.stop() for listener in everything))
    log.close()


def _stop_event(settings: SandboxSettings) -> asyncio.Event:
    """An event that SIGINT, SIGTERM and, if configured, the end of stdin set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    if settings.until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), on_stdin)
    return stop


async def _unused(settings: SandboxSettings, stop: asyncio.Event) -> None:
    """Sets `stop` once the folder has no user; no other can join until this process has ended."""
    users = Users(settings.directory)
    while not users.leave():  # noqa: ASYNC110 - a kernel lock, which cannot be awaited
        await asyncio.sleep(_UNUSED_POLL_S)
    stop.set()


async def _end_leases(settings: SandboxSettings, control: ControlApi) -> None:
    """Restores the standard endpoint's speed once the process that changed it has ended, also by kill -9."""
    while True:
        await asyncio.sleep(_LEASE_POLL_S)
        if control.speed_is_leased:
            descriptor = open_private(settings.directory / SLOWED_NAME, READ_WRITE)
            try:
                if try_lock(descriptor, fcntl.LOCK_SH):
                    control.restore_speed()
            finally:
                os.close(descriptor)


def _service(settings: SandboxSettings, store: SandboxStore, port: int) -> Service:
    shaping = settings.shaping
    origin = OriginDelay(shaping)
    cache = BlockCache(int(shaping.cache_mb * 1e6))
    return Service(
        store=store,
        keys=KeyRing.load(settings.directory / "keys.json"),
        region=settings.region,
        port=port,
        origin=origin,
        reader=Reader(store.blobs, origin, shaping, cache),
        cache=cache,
        faults=FaultEngine(FaultPlan(), time.monotonic()),
        synthetic=SyntheticKeys(settings.synthetic_keys) if settings.synthetic_keys else None,
    )


def _metadata(settings: SandboxSettings, keys: KeyRing, port: int, listening: socket.socket | None) -> list[Listener]:
    if listening is None:
        return []
    service = MetadataServer(
        keys,
        settings.region,
        host=f"{METADATA_ADDRESS}:{port}",
        tokens_only=settings.metadata == "v2",
        credential_ttl_s=settings.metadata_credential_ttl_s,
    )
    return [Listener(service.server(), listening)]


def _info(settings: SandboxSettings, keys: KeyRing, port: int) -> SandboxInfo:
    return SandboxInfo(
        bucket=BUCKET,
        region=settings.region,
        endpoints={kind.value: f"http://{host}:{port}" for kind, host in _HOSTS.items()},
        path_style_endpoint=f"http://{ADDRESSES[EndpointKind.STANDARD]}:{port}",
        metadata_endpoint=None if settings.metadata == "off" else f"http://{METADATA_ADDRESS}:{port}",
        access_key_id=keys.owner.id,
        access_key_secret=keys.owner.secret,
        pid=os.getpid(),
        shared=settings.until_unused,
    )
