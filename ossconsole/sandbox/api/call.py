"""One request on its way through the sandbox, and the reply to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from heapq import merge
from itertools import islice
from operator import attrgetter

import msgspec
from aiohttp import StreamReader

from ossconsole.config.endpoints import EndpointKind
from ossconsole.sandbox.accelerator import SYNC_WARMUP, Accelerator
from ossconsole.sandbox.faults import FaultEngine
from ossconsole.sandbox.keys import AccessKey, KeyRing
from ossconsole.sandbox.listing import KeySource, SyntheticKeys
from ossconsole.sandbox.reading import BlockCache, Body, Origin, Reader
from ossconsole.sandbox.records import StoredObject
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import Incoming, Target
from ossconsole.sandbox.store import Store

OWNER = "sandbox"
_MAX_XML_BYTES = 4 << 20
_decode_accelerator = msgspec.json.Decoder(Accelerator).decode


@dataclass
class Service:
    """What the operations work on."""

    store: Store
    keys: KeyRing
    region: str
    port: int
    origin: Origin
    reader: Reader
    cache: BlockCache
    faults: FaultEngine
    synthetic: SyntheticKeys | None = None

    def clock(self) -> float:
        """Unix seconds, as this server has them."""
        return time.time() + self.faults.plan.clock_skew_s

    def source(self, bucket: str) -> KeySource:
        """What a listing of the bucket goes through."""
        stored = partial(self.store.index.scan, bucket)
        if self.synthetic is None:
            return stored
        made_up = self.synthetic.scan

        def merged(start: bytes, end: bytes, limit: int, *, inclusive: bool) -> list[StoredObject]:
            both = (scan(start, end, limit, inclusive=inclusive) for scan in (stored, made_up))
            return list(islice(merge(*both, key=attrgetter("key")), limit))

        return merged

    def accelerator(self, bucket: str) -> Accelerator | None:
        """The accelerator of a bucket, if it has one."""
        raw = self.store.bucket(bucket).accelerator
        return None if raw is None else _decode_accelerator(raw)

    def cache_policy(self, kind: EndpointKind, bucket: str, key: str) -> str | None:
        """How a request through this endpoint is cached; None when it is not."""
        if kind is EndpointKind.STANDARD or not self.cache.capacity:
            return None
        accelerator = self.accelerator(bucket)
        return accelerator.policy(key) if accelerator else None

    def warm(self, kind: EndpointKind, bucket: str, stored: StoredObject) -> None:
        """Cache an object just written, where the policy of its path says so."""
        if self.cache_policy(kind, bucket, stored.key) == SYNC_WARMUP:
            self.reader.warm(stored)


@dataclass
class Reply:
    """What to send: `body`, or the bytes of `source`. `length` is for a HEAD, which has neither."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    source: Body | None = None
    length: int = 0


@dataclass
class Call:
    """A request whose signature has been checked. `key` is the caller's key, None for an anonymous caller."""

    service: Service
    kind: EndpointKind
    incoming: Incoming
    content: StreamReader
    target: Target
    key: AccessKey | None

    @property
    def bucket(self) -> str:
        return self.target.bucket

    @property
    def object_key(self) -> str:
        return self.target.key

    @property
    def query(self) -> dict[str, str]:
        return self.incoming.query

    @property
    def headers(self) -> dict[str, str]:
        return self.incoming.headers

    @property
    def store(self) -> Store:
        return self.service.store

    async def xml_body(self) -> bytes:
        """The whole body, which must be small. Raises EntityTooLarge."""
        body = bytearray()
        async for data in self.content.iter_any():
            body += data
            if len(body) > _MAX_XML_BYTES:
                raise OssError("EntityTooLarge", fields={"MaxSizeAllowed": str(_MAX_XML_BYTES)})
        return bytes(body)


def xml_reply(document: bytes, *, status: int = 200) -> Reply:
    return Reply(status, {"Content-Type": "application/xml"}, document)
