"""A request as the service sees it: decoded path, parameters and headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from ossconsole.sandbox.errors import OssError
from ossconsole.sandbox.names import check_key


@dataclass(frozen=True)
class Target:
    """What a request is about: the service (no bucket), a bucket (no key), or an object."""

    bucket: str = ""
    key: str = ""

    @property
    def resource(self) -> str:
        """The path that is signed: `/bucket/key`, `/bucket/`, or `/` for the service."""
        return f"/{self.bucket}/{self.key}" if self.bucket else "/"


class Incoming:
    """Method, path and parameters decoded; header names in lower case."""

    __slots__ = ("headers", "host", "method", "path", "query")

    def __init__(self, method: str, raw_path: str, raw_headers: Iterable[tuple[bytes, bytes]]) -> None:
        path, _, query = raw_path.partition("?")
        self.method = method
        try:
            self.path = unquote_to_bytes(path).decode() if "%" in path else path
            # The clients differ in how they write a blank (`+`, `%20`); the signature is over the decoded value.
            self.query = dict(parse_qsl(query, keep_blank_values=True, errors="strict")) if query else {}
        except UnicodeDecodeError as error:
            raise OssError("InvalidObjectName", "The name is not UTF-8.") from error
        self.headers = {
            name.decode("latin-1").lower(): value.decode("utf-8", "surrogateescape") for name, value in raw_headers
        }
        self.host = self.headers.get("host", "")

    def flag(self, name: str) -> bool:
        """Whether the parameter was given, with a value or without."""
        return name in self.query

    def readings(self, buckets: Iterable[str]) -> list[Target]:
        """What the request may be about, likelier first.

        On an IPv4 address the two styles look alike: path style has the bucket first in the path, virtual-hosted
        style (as the connector composes `<bucket>.<endpoint>`) has it in the host. Which is meant only the signature
        tells, because what is signed is `/bucket/key` either way.
        """
        first, _, rest = self.path[1:].partition("/")
        by_path = Target(first, rest)
        bucket = _bucket_of_host(self.host)
        if bucket is None:
            return [by_path]
        by_host = Target(bucket, self.path[1:])
        return [by_path, by_host] if first in buckets else [by_host, by_path]


@lru_cache(maxsize=16)
def _bucket_of_host(host: str) -> str | None:
    name = host.partition(":")[0]
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return None
    return name.partition(".")[0]


def parse_copy_source(header: str) -> Target:
    """The object named by `x-oss-copy-source`. Raises InvalidArgument or InvalidObjectName."""
    text = unquote_to_bytes(header.partition("?")[0]).decode("utf-8", "replace")
    bucket, _, key = text.removeprefix("/").partition("/")
    check_key(key)
    return Target(bucket, key)


def encode_path(path: str) -> str:
    """Percent-encoded for the V4 signature, slashes kept."""
    return quote(path, safe="/")


def encode_query(query: dict[str, str]) -> str:
    """The V4 canonical query: encoded, sorted, a parameter without value as its bare name."""
    pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in query.items())
    return "&".join(f"{name}={value}" if value else name for name, value in pairs)
