"""The service's rules for Range, as a table and on the wire."""

from __future__ import annotations

from typing import Any

import pytest

from ossconsole.sandbox.process import SandboxInfo
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import ByteRange, resolve_range
from tests.sandbox.wire import call

WHOLE = ByteRange(0, 1000, partial=False)


def part(start: int, length: int) -> ByteRange:
    return ByteRange(start, length, partial=True)


@pytest.mark.parametrize(
    ("header", "default", "standard"),
    [
        (None, WHOLE, WHOLE),
        ("bytes=0-99", part(0, 100), part(0, 100)),
        ("bytes=0-999", part(0, 1000), part(0, 1000)),
        ("bytes=500-", part(500, 500), part(500, 500)),
        ("bytes=-100", part(900, 100), part(900, 100)),
        ("bytes=500-2000", WHOLE, part(500, 500)),
        ("bytes=-2000", WHOLE, part(0, 1000)),
        ("bytes=1000-1001", WHOLE, None),
        ("bytes=1000-", WHOLE, None),
        ("bytes=-0", WHOLE, None),
        ("bytes=5-2", WHOLE, WHOLE),
        ("bytes=-", WHOLE, WHOLE),
        ("bytes=a-b", WHOLE, WHOLE),
        ("bytes=0-1,5-6", WHOLE, WHOLE),
        ("items=0-1", WHOLE, WHOLE),
    ],
)
def test_table(header: str | None, default: ByteRange, standard: ByteRange | None) -> None:
    assert resolve_range(header, 1000, standard=False) == default
    if standard is not None:
        assert resolve_range(header, 1000, standard=True) == standard
        return
    with pytest.raises(OssError) as caught:
        resolve_range(header, 1000, standard=True)
    assert (caught.value.status, caught.value.code) == (416, "InvalidRange")


def test_on_the_wire(bucket: Any, info: SandboxInfo, prefix: str) -> None:
    bucket.put_object(f"{prefix}x", b"0123456789")
    standard = {"x-oss-range-behavior": "standard"}
    clipped = call(info, "GET", f"{prefix}x", headers={"Range": "bytes=4-20", **standard})
    assert (clipped.status, clipped.body) == (206, b"456789")
    assert clipped.headers["content-range"] == "bytes 4-9/10"
    assert clipped.headers["content-length"] == "6"
    ignored = call(info, "GET", f"{prefix}x", headers={"Range": "bytes=4-20"})
    assert (ignored.status, ignored.body) == (200, b"0123456789")
    assert "content-range" not in ignored.headers
    beyond = call(info, "GET", f"{prefix}x", headers={"Range": "bytes=10-", **standard})
    assert (beyond.status, beyond.code) == (416, "InvalidRange")
    bucket.put_object(f"{prefix}empty", b"")
    assert call(info, "GET", f"{prefix}empty", headers={"Range": "bytes=0-", **standard}).status == 416
    assert call(info, "GET", f"{prefix}empty", headers={"Range": "bytes=0-"}).status == 200
