"""A TCP proxy on loopback that breaks connections off in the middle, a set number of times."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from ossconsole.config.profiles import Profile


class CuttingProxy:
    """Forwards to `port`; while `cuts` is above zero, a connection ends after `cut_after` bytes of answers.

    With `requests` it is after so many bytes of requests.
    """

    def __init__(self, port: int, cut_after: int, *, requests: bool = False) -> None:
        self.cuts = 0
        self.connections = 0
        self._port = port
        self._cut_after = cut_after
        self._cuts_answers = not requests
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            upstream = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pump, args=(client, upstream, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(upstream, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        passed = 0
        through, direct = (f"Host: 127.0.0.1:{port}\r\n".encode() for port in (self.port, self._port))
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                if is_answer is self._cuts_answers and self.cuts > 0 and passed > self._cut_after:
                    self.cuts -= 1
                    break
                sink.sendall(data if is_answer else data.replace(through, direct))  # the sandbox checks the host
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextlib.contextmanager
def cutting(profile: Profile, cut_after: int, *, requests: bool = False) -> Iterator[tuple[CuttingProxy, Profile]]:
    """The proxy in front of the profile's standard endpoint, and the profile that goes through it."""
    parts = urlsplit(profile.standard_endpoint)
    assert parts.port is not None
    proxy = CuttingProxy(parts.port, cut_after, requests=requests)
    try:
        yield proxy, msgspec.structs.replace(profile, standard_endpoint=f"http://{parts.hostname}:{proxy.port}")
    finally:
        proxy.close()
