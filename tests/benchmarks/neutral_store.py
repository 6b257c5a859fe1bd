"""A store that takes next to no processor time: an upload's target that is no part of what is measured.

It answers PutObject, HeadObject, GetObject (always 404) and ListObjectsV2 as OSS does, without checking signatures, and
keeps of an object only its size and CRC64. Each answer to a PUT is sent a fixed time after its last byte.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
from contextlib import AbstractContextManager
from types import TracebackType
from urllib.parse import parse_qs, quote, unquote, urlsplit

import fastcrc
import psutil

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.profiles import Profile

_PAGE = 1000
_MISSING = b"<Error><Code>NoSuchKey</Code><Message>It does not exist.</Message><RequestId>0</RequestId></Error>"
_LISTED = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{:016X}&quot;</ETag>"
    "<Size>{}</Size><StorageClass>Standard</StorageClass></Contents>"
)


class NeutralStore(AbstractContextManager["NeutralStore"]):
    """The store in a process of its own, on a port of 127.0.0.1."""

    owner = FixedSource(Credentials("id", Secret("secret")))

    def __init__(self, first_byte_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, first_byte_s), daemon=True)
        self._process.start()
        self._port = ours.recv()
        self._used = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def cpu_s(self) -> float:
        """Processor seconds of the store so far."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def profile(self) -> Profile:
        """Each time with another dataset prefix. The bucket and the endpoint make up the address 127.0.0.1."""
        self._used += 1
        return Profile(
            name="neutral",
            region="cn-neutral",
            bucket="127",
            standard_endpoint=f"http://0.0.1:{self._port}",
            dataset_prefix=f"bench/{self._used}",
            checkpoint_prefix="checkpoints",
        )

    @property
    def address(self) -> str:
        """For oss2."""
        return f"http://127.0.0.1:{self._port}"


class _Objects:
    """Size and CRC64 by key."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int]] = {}

    def answer(self, method: str, target: str) -> bytes:
        """The answer to any request but a PUT."""
        address = urlsplit(target)
        key = unquote(address.path.partition("/")[2].partition("/")[2])
        if not key:
            return self._page({name: values[0] for name, values in parse_qs(address.query).items()})
        size, crc64 = self._found.get(key, (0, 0))
        if key not in self._found or method != "HEAD":
            return _response("404 Not Found", _MISSING, is_head=method == "HEAD")
        return _response("200 OK", b"", f'ETag: "{crc64:016X}"\r\nx-oss-hash-crc64ecma: {crc64}\r\n', length=size)

    def put(self, target: str, size: int, crc64: int) -> bytes:
        """Keeps the object, and returns the answer."""
        self._found[unquote(target.partition("?")[0][1:].partition("/")[2])] = (size, crc64)
        return _response("200 OK", b"", f'ETag: "{crc64:016X}"\r\nx-oss-hash-crc64ecma: {crc64}\r\n')

    def _page(self, asked: dict[str, str]) -> bytes:
        prefix, after = asked.get("prefix", ""), asked.get("continuation-token", "")
        keys = sorted(key for key in self._found if key.startswith(prefix) and key > after)
        limit = min(_PAGE, int(asked.get("max-keys", _PAGE)))
        shown, cut = keys[:limit], len(keys) > limit
        listed = "".join(_LISTED.format(quote(key), self._found[key][1], self._found[key][0]) for key in shown)
        token = f"<NextContinuationToken>{quote(shown[-1])}</NextContinuationToken>" if cut else ""
        return _response(
            "200 OK",
            f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{str(cut).lower()}</IsTruncated>"
            f"{token}{listed}</ListBucketResult>".encode(),
        )


def _response(
    status: str, body: bytes, headers: str = "", *, is_head: bool = False, length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nServer: Neutral\r\nContent-Length: {size}\r\nx-oss-request-id: 0\r\n{headers}\r\n"
    return head.encode() + (b"" if is_head else body)


class _Connection(asyncio.Protocol):
    def __init__(self, objects: _Objects, first_byte_s: float) -> None:
        self._objects = objects
        self._first_byte_s = first_byte_s
        self._head = b""
        self._target = ""
        self._size = self._left = self._crc64 = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head = b""
            self._begin(head.decode())
        if self._size and data:
            self._left -= len(data)
            self._crc64 = fastcrc.crc64.xz(data, self._crc64)
            if not self._left:
                self._put()

    def _begin(self, head: str) -> None:
        line, *fields = head.split("\r\n")
        method, self._target, _ = line.split(" ")
        headers = dict(field.lower().split(": ", 1) for field in fields)
        self._size = self._left = int(headers.get("content-length", 0)) if method == "PUT" else 0
        self._crc64 = 0
        if method != "PUT":
            self._transport.write(self._objects.answer(method, self._target))
        elif not self._size:
            self._put()

    def _put(self) -> None:
        answer = self._objects.put(self._target, self._size, self._crc64)
        asyncio.get_running_loop().call_later(self._first_byte_s, self._transport.write, answer)


def _serve(parent: multiprocessing.connection.Connection, first_byte_s: float) -> None:
    asyncio.run(_run(parent, first_byte_s))


async def _run(parent: multiprocessing.connection.Connection, first_byte_s: float) -> None:
    objects = _Objects()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(objects, first_byte_s), "127.0.0.1", 0)
    parent.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()
