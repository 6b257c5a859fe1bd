"""Reaching a host: its address, a connection, TLS; and what a failure means for this kind of endpoint."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

from ossconsole.config.errors import ConsoleError
from ossconsole.config.hosts import HostKind, classify


class UnreachableError(ConsoleError):
    """The host has no address, takes no connection, or speaks no TLS that can be trusted."""


class Reach:
    """The way to `<bucket>.<endpoint host>`, which is the host that every request goes to."""

    def __init__(self, bucket: str, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self.endpoint = endpoint
        self.info = classify(endpoint)
        self.host = f"{bucket}.{parts.hostname}"
        self.secure = parts.scheme == "https"
        self.port = parts.port or (443 if self.secure else 80)
        self._address = ""

    def resolve(self) -> str:
        """Finds the address. Raises UnreachableError."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise self._unreachable(f"{self.host} has no address: {_reason(error)}") from error
        self._address = str(found[0][4][0])
        return self._address

    def connect(self, timeout_s: float) -> str:
        """Makes a connection and drops it. Raises UnreachableError."""
        try:
            with socket.create_connection((self._address, self.port), timeout=timeout_s):
                return f"{self._address} port {self.port}"
        except OSError as error:
            raise self._unreachable(f"{self.host} ({self._address}) port {self.port}: {_reason(error)}") from error

    def handshake(self, timeout_s: float) -> str:
        """Makes a TLS connection with a certificate that can be trusted. Raises UnreachableError."""
        context = ssl.create_default_context()
        try:
            with (
                socket.create_connection((self._address, self.port), timeout=timeout_s) as plain,
                context.wrap_socket(plain, server_hostname=self.host) as connection,
            ):
                return connection.version() or "TLS"
        except ssl.SSLCertVerificationError as error:
            raise UnreachableError(
                f"The certificate of {self.host} cannot be trusted: {error.verify_message}.",
                remedy="Check the endpoint's spelling, this machine's clock, and its CA certificates.",
            ) from error
        except OSError as error:
            raise UnreachableError(
                f"{self.host} port {self.port} does not speak TLS: {_reason(error)}.",
                remedy=f"Check the endpoint: {self.endpoint}",
            ) from error

    def _unreachable(self, what: str) -> UnreachableError:
        if self.info.inside_only:
            region = self.info.region
            message = f"{what}. This endpoint answers only inside the internal network of {region}."
            if self.info.kind is HostKind.ACCELERATOR:
                remedy = f"Run on an instance in {region}, and create an accelerator for the bucket if it has none."
            else:
                remedy = (
                    f"Run on an instance in {region}, or use the public endpoint: https://oss-{region}.aliyuncs.com"
                )
            return UnreachableError(message, remedy=remedy)
        if self.info.kind is HostKind.LOOPBACK:
            return UnreachableError(f"{what}.", remedy="Start the server: ossconsole sandbox")
        return UnreachableError(
            f"{what}.", remedy="Check the endpoint's spelling, and this machine's network and proxy."
        )


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    return error.strerror or str(error)
