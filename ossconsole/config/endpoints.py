"""Endpoints: the two kinds, their spelling, and the address each client library needs."""

from __future__ import annotations

import enum
import ipaddress
import re
from urllib.parse import urlsplit

from ossconsole.config.errors import SettingsError


class EndpointKind(str, enum.Enum):
    """Which of a bucket's two endpoints: the internal one, or the accelerator's."""

    STANDARD = "standard"
    ACCELERATED = "accelerated"

    @property
    def other(self) -> EndpointKind:
        return EndpointKind.ACCELERATED if self is EndpointKind.STANDARD else EndpointKind.STANDARD

    def __str__(self) -> str:
        return self.value


# A host with an optional port; the sandbox's `0.0.1` is one too, as `<bucket>.0.0.1` is what gets resolved.
_HOST = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")


def normalise_endpoint(text: str) -> str:
    """`text` as `scheme://host[:port]`, https where no scheme is given. Raises SettingsError.

    The scheme is always spelled out because the libraries differ: without one oss2 takes http, the connector https.
    """
    stripped = text.strip().rstrip("/")
    if "://" not in stripped:
        stripped = f"https://{stripped}"
    try:
        parts = urlsplit(stripped)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{text!r} is not an endpoint: {error}.", remedy=_ENDPOINT_REMEDY) from error
    host = parts.hostname or ""
    extra = parts.path or parts.query or parts.fragment or parts.username
    if parts.scheme not in {"http", "https"} or extra or not _HOST.match(host):
        raise SettingsError(f"{text!r} is not an endpoint.", remedy=_ENDPOINT_REMEDY)
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


_ENDPOINT_REMEDY = "Give a host such as https://oss-cn-hangzhou-internal.aliyuncs.com."


def sdk_endpoint(bucket: str, endpoint: str) -> str:
    """The endpoint to hand to oss2 so that it reaches the host that the connector reaches.

    The connector always calls `<bucket>.<endpoint host>`. Where that is an IPv4 address (the sandbox: bucket `127`,
    endpoint `http://0.0.1:PORT`), oss2 must get the composed address: it would take `0.0.1` for an IP of its own.
    """
    parts = urlsplit(endpoint)
    composed = f"{bucket}.{parts.hostname}"
    try:
        ipaddress.IPv4Address(composed)
    except ValueError:
        return endpoint
    return f"{parts.scheme}://{composed}" + (f":{parts.port}" if parts.port else "")


def sends_in_clear(bucket: str, endpoint: str) -> bool:
    """Whether requests to this endpoint of the bucket leave the machine without TLS."""
    parts = urlsplit(endpoint)
    hosts = (parts.hostname or "", f"{bucket}.{parts.hostname}")
    return parts.scheme == "http" and not any(_is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
