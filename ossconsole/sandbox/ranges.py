"""The service's own rules for the Range header."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ossconsole.sandbox.errors import OssError

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `start + length` of an object; `partial` when a Range header asked for them."""

    start: int
    length: int
    partial: bool


def resolve(header: str | None, size: int, *, standard: bool) -> Span:
    """What a Range header means for an object of `size` bytes.

    By default a range that is malformed or reaches out of the object is ignored: the whole object, status 200. With
    `x-oss-range-behavior: standard` the end is clipped, and a start beyond the end raises InvalidRange (416).
    """
    whole = Span(0, size, partial=False)
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(0) == "bytes=-":
        return whole
    first, last = match.groups()
    if not first:
        return _suffix(int(last), size, standard=standard)
    start, end = int(first), int(last) if last else size - 1
    if last and end < start:
        return whole
    if start >= size:
        if standard:
            raise _out_of_range(header, size)
        return whole
    if end >= size:
        if not standard:
            return whole
        end = size - 1
    return Span(start, end - start + 1, partial=True)


def _suffix(length: int, size: int, *, standard: bool) -> Span:
    if length == 0 or length > size:
        if not standard:
            return Span(0, size, partial=False)
        if length == 0 or size == 0:
            raise _out_of_range(f"bytes=-{length}", size)
    length = min(length, size)
    return Span(size - length, length, partial=True)


def _out_of_range(header: str | None, size: int) -> OssError:
    fields = {"ActualObjectSize": str(size), "RangeRequested": header or ""}
    return OssError("InvalidRange", fields=fields, headers={"Content-Range": f"bytes */{size}"})
