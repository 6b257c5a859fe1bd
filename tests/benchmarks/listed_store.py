"""A bucket that answers ListObjectsV2 alone, after a fixed time, and counts the requests that are in flight."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import signal
import socket
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
import psutil
from aiohttp import web

FIRST_BYTE_S = 0.03
"""About what a page of 1,000 objects takes in the region."""

_OBJECT = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{}&quot;</ETag>"
    "<Type>Normal</Type><Size>{}</Size><StorageClass>Standard</StorageClass></Contents>"
)


class ListingCounts(msgspec.Struct, frozen=True):
    """What the bucket saw. `mean` and `most` are requests in flight; `last` is the clock's time of the last answer."""

    requests: int
    most: int
    mean: float
    last: float
    cpu_s: float


class ListedStore:
    """The bucket in a process of its own."""

    def __init__(self, address: str, bodies: Mapping[bytes, bytes]) -> None:
        listener = socket.create_server((address, 0), backlog=128)
        self.port: int = listener.getsockname()[1]
        context = multiprocessing.get_context("fork")  # the keys are shared, not copied
        self._figures = context.Array("d", 5)
        self._process = context.Process(target=_serve, args=(listener, bodies, self._figures), daemon=True)
        self._process.start()
        listener.close()

    def counts(self) -> ListingCounts:
        requests, most, busy_s, first, last = self._figures[:]
        times = psutil.Process(self._process.pid).cpu_times()
        return ListingCounts(int(requests), int(most), busy_s / (last - first), last, times.user + times.system)

    def close(self) -> None:
        self._process.terminate()
        self._process.join(5)


@contextlib.contextmanager
def listed_store(address: str, bodies: Mapping[bytes, bytes]) -> Iterator[ListedStore]:
    """A bucket at `address` that lists `bodies` by key."""
    store = ListedStore(address, bodies)
    try:
        yield store
    finally:
        store.close()


def _serve(listener: socket.socket, bodies: Mapping[bytes, bytes], figures: Any) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    etags = {body: hashlib.md5(body).hexdigest().upper() for body in set(bodies.values())}
    keys = sorted(key.decode() for key in bodies)
    described = [_OBJECT.format(quote(key), etags[bodies[key.encode()]], len(bodies[key.encode()])) for key in keys]

    async def answer(request: web.Request) -> web.Response:
        if "list-type" not in request.query:
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", headers={"x-oss-request-id": "0"}
            )
        began = time.monotonic()
        figures[0], figures[3] = figures[0] + 1, figures[3] or began
        waiting.add(id(request))
        figures[1] = max(figures[1], len(waiting))
        await asyncio.sleep(FIRST_BYTE_S)
        page = _page(keys, described, request.query)
        waiting.discard(id(request))
        figures[4] = time.monotonic()
        figures[2] += figures[4] - began
        return web.Response(text=page, content_type="application/xml", headers={"x-oss-request-id": "0"})

    async def forever() -> None:
        app = web.Application()
        app.router.add_route("*", "/{key:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        await asyncio.Event().wait()

    waiting: set[int] = set()
    asyncio.run(forever())


def _page(keys: Sequence[str], described: Sequence[str], asked: Mapping[str, str]) -> str:
    prefix, delimiter, limit = asked.get("prefix", ""), asked.get("delimiter", ""), int(asked.get("max-keys", 1000))
    at = int(
        asked.get("continuation-token")
        or max(bisect_left(keys, prefix), bisect_right(keys, asked.get("start-after", "")))
    )
    end = bisect_left(keys, f"{prefix}\U0010ffff")
    parts: list[str] = []
    while at < end and len(parts) < limit:
        folder = keys[at][len(prefix) :].partition(delimiter)[0] if delimiter else ""
        if delimiter and len(prefix) + len(folder) < len(keys[at]):
            whole = f"{prefix}{folder}{delimiter}"
            parts.append(f"<CommonPrefixes><Prefix>{quote(whole)}</Prefix></CommonPrefixes>")
            at = bisect_left(keys, f"{whole}\U0010ffff")
        else:
            parts.append(described[at])
            at += 1
    token = f"<NextContinuationToken>{at}</NextContinuationToken>" if at < end else ""
    return (
        f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{str(at < end).lower()}</IsTruncated>"
        f"{token}{''.join(parts)}</ListBucketResult>"
    )
