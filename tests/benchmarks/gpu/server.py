"""Several processes that serve one made-up dataset as fast as loopback allows, in front of a sandbox for the rest.

The sandbox is one asyncio process, so a fast GPU would measure the sandbox. These processes share one port
(SO_REUSEPORT) and answer a GET of a sample with bytes that are already in memory, without checking its signature.
A connection whose first request is anything else (manifest, checkpoint, listing) is passed through to the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from email.utils import formatdate

import msgspec
import numpy as np

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import CHANNELS, IMAGENET_MEAN, IMAGENET_STD, SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from tests.benchmarks.datasets import made_up_body, made_up_sample

CLASSES = 10
VARIANTS = 4
_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*)", re.IGNORECASE)
_REQUEST = re.compile(rb"^GET /([^ ?]+)")


class MadeUpDataset:
    """Noisy pictures whose class shows in the mean colour of their left half; `bodies` by key in the bucket."""

    def __init__(
        self, fmt: SampleFormat, size: int, samples: int, val_samples: int = 0, *, classes: int = CLASSES
    ) -> None:
        self.prefix = f"made-up/{fmt}-{size}-{samples}"
        blobs = [[_body(fmt, size, label, variant) for variant in range(VARIANTS)] for label in range(CLASSES)]
        likes = [
            [made_up_sample(fmt, "", label, size, blob) for blob in variants] for label, variants in enumerate(blobs)
        ]
        self.bodies: dict[bytes, bytes] = {}
        splits: dict[str, tuple[Sample, ...]] = {}
        for split, count in (("train", samples), ("val", val_samples)):
            listed = []
            for number in range(count):
                label, variant = number % classes, number // classes % VARIANTS
                like = likes[label % CLASSES][variant]
                key = f"{split}/{label}/{number:07}{fmt.suffix}"
                listed.append(msgspec.structs.replace(like, key=key, label=label))
                self.bodies[object_key(self.prefix, key).encode()] = blobs[label % CLASSES][variant]
            if listed:
                splits[split] = tuple(listed)
        names = tuple(str(label) for label in range(classes))
        self.manifest = Manifest(format=fmt, size=size, classes=names, splits=splits)

    def write_manifest(self, sandbox: SandboxProcess) -> None:
        """Puts the manifest where a run looks for it: into the sandbox."""
        profile = sandbox.profile()
        with contextlib.closing(ObjectStore(profile, FixedSource(sandbox.credentials()))) as store:
            write_manifest(store, self.prefix, self.manifest)


@contextlib.contextmanager
def static_servers(
    sandbox: SandboxProcess, datasets: Sequence[MadeUpDataset], processes: int, *, kinds: Sequence[EndpointKind]
) -> Iterator[Profile]:
    """Serves the datasets; gives the sandbox's profile with the endpoints of `kinds` replaced by these servers.

    Checkpoints go to the standard endpoint. They fail where that is replaced: the connector signs the Host header.
    """
    bodies: dict[bytes, bytes] = {}
    for dataset in datasets:
        bodies.update(dataset.bodies)
        dataset.write_manifest(sandbox)
    profile = sandbox.profile()
    with contextlib.ExitStack() as stack:
        endpoints = {}
        for kind in kinds:
            name = f"{kind}_endpoint"
            endpoint: str = getattr(profile, name)
            host, _, port = endpoint.removeprefix("http://").rpartition(":")
            address = f"{profile.bucket}.{host}"
            own_port = stack.enter_context(_processes(address, (address, int(port)), bodies, processes))
            endpoints[name] = f"http://{host}:{own_port}"
        yield msgspec.structs.replace(profile, **endpoints)


@contextlib.contextmanager
def _processes(address: str, sandbox: tuple[str, int], bodies: Mapping[bytes, bytes], count: int) -> Iterator[int]:
    """`count` processes that share one port of `address`; gives the port."""
    with contextlib.closing(_listen(address, 0)) as first:
        port: int = first.getsockname()[1]
        sockets = [first, *(_listen(address, port) for _ in range(count - 1))]
        fork = multiprocessing.get_context("fork")  # the bodies are shared, not copied
        children = [
            fork.Process(target=_serve, args=(each, sandbox, bodies), name=f"static-server-{number}", daemon=True)
            for number, each in enumerate(sockets)
        ]
        for child in children:
            child.start()
        for each in sockets[1:]:
            each.close()
    try:
        yield port
    finally:
        for child in children:
            child.terminate()
            child.join(5)


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((address, port))
    listener.listen(1024)
    return listener


def _serve(listener: socket.socket, sandbox: tuple[str, int], bodies: Mapping[bytes, bytes]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def forever() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(sandbox, bodies), sock=listener)
        await server.serve_forever()

    asyncio.run(forever())


class _Connection(asyncio.Protocol):
    """Answers GETs of samples; becomes a tunnel to the sandbox at the first request for anything else."""

    def __init__(self, sandbox: tuple[str, int], bodies: Mapping[bytes, bytes]) -> None:
        self._sandbox = sandbox
        self._bodies = bodies
        self._received = b""
        self._tunnel: asyncio.Transport | None = None
        self._tunnelling = False
        self._opening: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.write(self._for_sandbox(data))
            return
        self._received += data
        while not self._tunnelling and b"\r\n\r\n" in self._received:
            head, _, rest = self._received.partition(b"\r\n\r\n")
            found = _REQUEST.match(head)
            body = self._bodies.get(found[1]) if found else None
            if body is None:
                self._tunnelling = True
                self._opening = asyncio.ensure_future(self._open_tunnel())
            else:
                self._received = rest
                self._answer(head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tunnel is not None:
            self._tunnel.close()

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self.transport is not None
        wanted = _RANGE.search(head)
        status, extra = b"200 OK", b""
        content = memoryview(body)
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            content = content[first : last + 1]
            status, extra = b"206 Partial Content", b"Content-Range: bytes %d-%d/%d\r\n" % (first, last, len(body))
        self.transport.write(
            b"HTTP/1.1 %b\r\nContent-Length: %d\r\nContent-Type: application/octet-stream\r\n%b"
            b'ETag: "0"\r\nLast-Modified: %b\r\nx-oss-request-id: 0\r\nx-oss-object-type: Normal\r\n\r\n'
            % (status, len(content), extra, _MODIFIED)
        )
        self.transport.write(content)

    async def _open_tunnel(self) -> None:
        assert self.transport is not None
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: _Back(self), *self._sandbox)
        self._tunnel = transport
        self._tunnel.write(self._for_sandbox(self._received))
        self._received = b""

    def _for_sandbox(self, data: bytes) -> bytes:
        """The bytes with the sandbox's own port in their Host header, which it checks and oss2 does not sign."""
        assert self.transport is not None
        host, port = self.transport.get_extra_info("sockname")
        return data.replace(b"%b:%d\r\n" % (host.encode(), port), b"%b:%d\r\n" % (host.encode(), self._sandbox[1]))


class _Back(asyncio.Protocol):
    """What the sandbox answers, on its way back."""

    def __init__(self, front: _Connection) -> None:
        self._front = front

    def data_received(self, data: bytes) -> None:
        if self._front.transport is not None:
            self._front.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._front.transport is not None:
            self._front.transport.close()


_MODIFIED = formatdate(usegmt=True).encode()


def _body(fmt: SampleFormat, size: int, label: int, variant: int) -> bytes:
    if fmt.encoded:
        return made_up_body(fmt, size, label * VARIANTS + variant)
    random = np.random.default_rng((label, variant))
    picture = random.integers(0, 160, (CHANNELS, size, size), dtype=np.uint8)
    colour = (label % 3, label // 3 % 3, label // 9)
    for channel, level in enumerate(colour):
        picture[channel, :, : size // 2] //= 2
        picture[channel, :, : size // 2] += np.uint8(level * 80)
    if fmt is SampleFormat.IMAGE_U8:
        return picture.tobytes()
    mean, std = (np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((picture.astype(np.float32) / 255 - mean) / std).astype(np.float32).tobytes()
