"""One API call on its way through the sandbox, the parts of the server that it uses, and the reply to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from heapq import merge
from itertools import islice
from operator import attrgetter

from aiohttp import StreamReader

from ossconsole.config.endpoints import EndpointKind
from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.accelerator import SYNC_WARMUP, AcceleratorConfig, stored_accelerators
from ossconsole.sandbox.faults import FaultEngine
from ossconsole.sandbox.keys import AccessKey, KeyRing
from ossconsole.sandbox.listing import OWNER, KeySource, SyntheticKeys
from ossconsole.sandbox.reading import BlockCache, Body, OriginDelay, Reader
from ossconsole.sandbox.records import StoredObject
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import IncomingRequest, Resource
from ossconsole.sandbox.store import SandboxStore

OWNER_XML = xml.parent("Owner", xml.elements(ID=OWNER, DisplayName=OWNER))
_MAX_XML_BYTES = 4 << 20


@dataclass
class Service:
    """The parts of the server that operations use."""

    store: SandboxStore
    keys: KeyRing
    region: str
    port: int
    origin: OriginDelay
    reader: Reader
    cache: BlockCache
    faults: FaultEngine
    synthetic: SyntheticKeys | None = None

    def clock(self) -> float:
        """The server's time in Unix seconds, with the fault plan's skew."""
        return time.time() + self.faults.plan.clock_skew_s

    def source(self, bucket: str) -> KeySource:
        """The keys that a listing of the bucket reads: stored ones, and synthetic ones where they are configured."""
        stored = partial(self.store.index.scan, bucket)
        if self.synthetic is None:
            return stored
        synthetic = self.synthetic.scan

        def merged(start: bytes, end: bytes, limit: int, *, inclusive: bool) -> list[StoredObject]:
            both = (scan(start, end, limit, inclusive=inclusive) for scan in (stored, synthetic))
            return list(islice(merge(*both, key=attrgetter("key")), limit))

        return merged

    def accelerators(self, bucket: str) -> tuple[AcceleratorConfig, ...]:
        """The accelerators of a bucket, by zone."""
        return stored_accelerators(self.store.bucket(bucket).accelerator)

    def cache_policy(self, kind: EndpointKind, bucket: str, key: str) -> str | None:
        """The cache policy of a request through this endpoint; None when it bypasses the cache.

        The sandbox has one accelerated endpoint: it stands for those of all zones.
        """
        if kind is EndpointKind.STANDARD or not self.cache.capacity:
            return None
        policies = (accelerator.policy(key) for accelerator in self.accelerators(bucket))
        return next((policy for policy in policies if policy), None)

    def warm(self, kind: EndpointKind, bucket: str, stored: StoredObject) -> None:
        """Caches an object just written where the policy of its path is `sync-warmup`."""
        if self.cache_policy(kind, bucket, stored.key) == SYNC_WARMUP:
            self.reader.warm(stored)


@dataclass
class Reply:
    """A response: `body`, or the bytes of `source`. `length` is that of a HEAD, which sends neither."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    source: Body | None = None
    length: int = 0


@dataclass
class Call:
    """One API call, whose signature has been checked. `key` is the caller's key, None for an anonymous caller.

    `object_key` is "" for an operation on a bucket, `bucket` too for one on the service; header names are in lower
    case.
    """

    service: Service
    kind: EndpointKind
    incoming: IncomingRequest
    content: StreamReader
    target: Resource
    key: AccessKey | None

    def __post_init__(self) -> None:
        self.bucket, self.object_key = self.target.bucket, self.target.key
        self.query, self.headers = self.incoming.query, self.incoming.headers
        self.store = self.service.store

    async def xml_body(self) -> bytes:
        """The whole body, at most 4 MiB. Raises EntityTooLarge."""
        body = bytearray()
        async for data in self.content.iter_any():
            body += data
            if len(body) > _MAX_XML_BYTES:
                raise OssError("EntityTooLarge", fields={"MaxSizeAllowed": str(_MAX_XML_BYTES)})
        return bytes(body)


def xml_reply(document: bytes) -> Reply:
    """A reply with an XML document as its body."""
    return Reply(200, {"Content-Type": "application/xml"}, document)
