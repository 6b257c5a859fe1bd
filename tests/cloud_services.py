"""Alibaba Cloud's services that give out credentials, on loopback: STS, CloudSSO, OAuth, and a credentials URI.

The real library calls them at their public hosts. It gets there through a proxy on loopback (HTTPS_PROXY), which speaks
TLS for every host with a certificate of a test authority (REQUESTS_CA_BUNDLE).
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ossconsole.config.credentials import Credentials, Secret

HOSTS = (
    "*.aliyuncs.com",
    "*.cn-hangzhou.aliyuncs.com",
    "*.oss-cn-hangzhou.aliyuncs.com",
    "*.aliyun.com",
    "signin.example.com",
)
ROLE_ARN = "acs:ram::123456789012:role/trainer"
PROVIDER_ARN = "acs:ram::123456789012:oidc-provider/ack-rrsa"
POD_TOKEN = "pod-token-sentinel"


def random_pair(ttl_s: float) -> Credentials:
    """A temporary pair that opens nothing."""
    end = datetime.now(timezone.utc) + timedelta(seconds=ttl_s)
    return Credentials(f"STS.{secrets.token_hex(8)}", Secret(secrets.token_hex(15)), Secret(secrets.token_hex(40)), end)


@dataclass
class Call:
    """One request: its host, method, path and parameters (of the query, or of the body)."""

    host: str
    method: str
    path: str
    parameters: dict[str, str]
    headers: dict[str, str]


@dataclass
class CloudServices:
    """`url` is the proxy and the plain server; `issue` makes the pairs; `refusal` (status, body) answers all."""

    url: str
    bundle: Path
    issue: Callable[[float], Credentials] = random_pair
    ttl_s: float = 3600.0
    refusal: tuple[int, str] | None = None
    calls: list[Call] = field(default_factory=list)
    tunnels: list[str] = field(default_factory=list)
    issued: list[Credentials] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"{self.url}/api/v1/credentials/0"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the library reaches the services."""
        return {"HTTPS_PROXY": self.url, "REQUESTS_CA_BUNDLE": str(self.bundle)}

    def secrets(self) -> list[str]:
        """What must not be shown."""
        found = [POD_TOKEN]
        for pair in self.issued:
            found += [pair.access_key_secret.reveal(), pair.security_token.reveal() if pair.security_token else "-" * 9]
        return found

    def answer(self, call: Call) -> tuple[int, str]:
        """The status and body for a request."""
        self.calls.append(call)
        if self.refusal is not None:
            return self.refusal
        if call.path == "/v1/token":
            token = secrets.token_hex(8)
            return 200, json.dumps({"access_token": f"access-{token}", "refresh_token": f"refresh-{token}"})
        pair = self.issue(self.ttl_s)
        self.issued.append(pair)
        assert pair.expiration
        keys = {
            "AccessKeyId": pair.access_key_id,
            "AccessKeySecret": pair.access_key_secret.reveal(),
            "SecurityToken": pair.security_token.reveal() if pair.security_token else "",
            "Expiration": pair.expiration.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if call.path == "/cloud-credentials":
            return 200, json.dumps({"CloudCredential": keys})
        if "Action" in call.parameters:
            return 200, json.dumps({"RequestId": "1", "Credentials": keys})
        return 200, json.dumps({"Code": "Success", **keys})


@contextmanager
def cloud_services(folder: Path) -> Iterator[CloudServices]:
    """Starts the services; their certificates are in `folder`."""
    context = _certificates(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        tunnel = ""

        def do_CONNECT(self) -> None:
            self.tunnel = self.path
            services.tunnels.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            self.connection = context.wrap_socket(self.connection, server_side=True)
            self.rfile = self.connection.makefile("rb")
            self.wfile = self.connection.makefile("wb", 0)
            self.close_connection = False

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            parts = urlsplit(self.path)
            parameters = dict(parse_qsl(parts.query or body))
            host = self.tunnel or self.headers["Host"]
            status, text = services.answer(Call(host, self.command, parts.path, parameters, dict(self.headers.items())))
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_HEAD = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    services = CloudServices(f"http://127.0.0.1:{server.server_address[1]}", folder / "authority.pem")
    thread.start()
    try:
        yield services
    finally:
        server.shutdown()
        server.server_close()


def _certificates(folder: Path) -> ssl.SSLContext:
    """The server's TLS context; the authority's certificate is written to `authority.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test services")])
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in HOSTS]
    now = datetime.fromtimestamp(time.time() - 3600, timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=2))
        .add_extension(
            x509.SubjectAlternativeName([*names, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "authority.pem").write_bytes(public)
    (folder / "server.pem").write_bytes(private + public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context
