"""An HTTP proxy on loopback that changes the ETags of OSS's replies, and delays every request."""

from __future__ import annotations

import contextlib
import enum
import http.client
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ossconsole.config.profiles import Profile

_HEX = re.compile(rb"[0-9A-F]{32}")
_ELEMENT = re.compile(rb"<ETag>[^<]{0,60}</ETag>")
_DIGITS = bytes.maketrans(b"0123456789ABCDEF", b"FEDCBA9876543210")


class Changed(str, enum.Enum):
    """Which ETags are others: those of listings (as after a copy of the bucket), or all of them (as under KMS)."""

    NOTHING = "nothing"
    LISTINGS = "listings"
    EVERYTHING = "everything"


class EtagProxy:
    """Forwards to `port`. `requests` counts methods; `delay_s` is spent before each."""

    def __init__(self, port: int, changed: Changed, delay_s: float) -> None:
        self.requests: Counter[str] = Counter()
        self.changed = changed
        self._counting = threading.Lock()
        local = threading.local()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                with outer._counting:
                    outer.requests[self.command] += 1
                time.sleep(delay_s)
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                everywhere = outer.changed is Changed.EVERYTHING
                if everywhere:  # back to what the server knows
                    body = _ELEMENT.sub(_other, body)
                headers["Host"] = f"127.0.0.1:{port}"  # the sandbox checks it
                if not hasattr(local, "upstream"):
                    local.upstream = http.client.HTTPConnection("127.0.0.1", port)
                local.upstream.request(self.command, self.path, body, headers)
                reply = local.upstream.getresponse()
                content = reply.read()
                if everywhere or (b"<ListBucketResult>" in content[:200] and outer.changed is Changed.LISTINGS):
                    content = _ELEMENT.sub(_other, content)
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    self.send_header(name, _other_text(value) if everywhere and name.lower() == "etag" else value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - names of http.server

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _other(match: re.Match[bytes]) -> bytes:
    return _HEX.sub(lambda found: found[0].translate(_DIGITS), match[0])


def _other_text(etag: str) -> str:
    return _HEX.sub(lambda found: found[0].translate(_DIGITS), etag.encode()).decode()


@contextlib.contextmanager
def changing_etags(profile: Profile, changed: Changed, delay_s: float = 0.0) -> Iterator[tuple[EtagProxy, Profile]]:
    """The proxy in front of the profile's standard endpoint, and the profile that goes through it."""
    parts = urlsplit(profile.standard_endpoint)
    assert parts.port is not None
    proxy = EtagProxy(parts.port, changed, delay_s)
    try:
        yield proxy, msgspec.structs.replace(profile, standard_endpoint=f"http://{parts.hostname}:{proxy.port}")
    finally:
        proxy.close()
