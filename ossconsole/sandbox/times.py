"""The two spellings of a time, both in whole seconds."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache


def iso_time(timestamp: float) -> str:
    """`2024-01-01T00:00:00.000Z`, as in listings and errors; oss2 reads no other fraction."""
    return _iso_time(int(timestamp))


def http_time(timestamp: float) -> str:
    """`Mon, 01 Jan 2024 00:00:00 GMT`, as in headers."""
    return _http_time(int(timestamp))


# Objects written together share their second, and listings and headers ask for the same ones again and again.
@lru_cache(maxsize=4096)
def _iso_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


@lru_cache(maxsize=4096)
def _http_time(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
