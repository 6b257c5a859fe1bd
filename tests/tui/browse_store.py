"""A bucket in memory with the times of the fakes, so that what the Browse screen shows of it is always the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import fastcrc

from ossconsole.config.profiles import Profile
from ossconsole.storage.errors import StorageError
from ossconsole.storage.objects import BucketSummary, ListPage, ObjectInfo, ObjectSummary
from ossconsole.storage.retry import Pause
from tests.tui.fakes import SIMULATED, START, FakeStore


@dataclass
class MemoryStore:
    """The reading half of ObjectStore."""

    data: dict[str, bytes]
    profile: Profile = SIMULATED
    classes: dict[str, str] = field(default_factory=dict)
    waiting: str = ""
    endpoint: str = "http://127.0.0.1:9000"

    def credentials_end(self) -> None:
        return None

    def pausing(self, _pause: Pause) -> MemoryStore:
        return self

    def uri(self, key: str = "") -> str:
        return f"oss://{self.profile.bucket}/{key}"

    def url(self, key: str) -> str:
        return f"http://127.0.0.1:9000/{key}"

    def list_buckets(self) -> list[BucketSummary]:
        return [BucketSummary(name, "cn-hangzhou", "Standard", int(START)) for name in ("127", "imagenet-train")]

    def list_page(
        self, prefix: str, *, delimiter: str = "/", token: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        sizes = {key: len(data) for key, data in self.data.items()}
        page = FakeStore(sizes).list_page(prefix, delimiter=delimiter, token=token, max_keys=max_keys)
        objects = [ObjectSummary(o.key, o.size, int(START), self.classes.get(o.key, "Standard")) for o in page.objects]
        return ListPage(objects, page.prefixes, page.next_token)

    def list_all(self, prefix: str) -> Iterator[ObjectSummary]:
        yield from self.list_page(prefix, delimiter="").objects

    def head(self, key: str) -> ObjectInfo:
        data = self._data(key)
        return ObjectInfo(
            key=key,
            size=len(data),
            modified=int(START),
            etag=hashlib.md5(data).hexdigest().upper(),
            crc64=fastcrc.crc64.xz(data),
            storage_class=self.classes.get(key, "Standard"),
            content_type="application/octet-stream",
            object_type="Normal",
            metadata={"run": "r1"} if key.endswith(".pt") else {},
            headers={"content-length": str(len(data))},
        )

    def get(self, key: str) -> bytes:
        return self._data(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._data(key)[start : start + length]

    def _data(self, key: str) -> bytes:
        if key not in self.data:
            raise StorageError(f"NoSuchKey: {key}", status=404, code="NoSuchKey", request_id="0A1B")
        return self.data[key]
