"""Worker: one preparation process seen from the parent, which feeds it, notices its death and replaces it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import deque

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.prepare import Recipe
from ossconsole.dataset.worker import Channel, Done, Task

_STOP_TIMEOUT_S = 2.0
_BUFFER_BYTES = 1 << 20
# What a picture decoder has no need to know.
_PRIVATE_VARIABLES = ("OSS_", "ALIBABA_CLOUD_", "ALIBABACLOUD_", "ALICLOUD_")


class WorkerLostError(ConsoleError):
    """The process ended although it had work."""


class Worker:
    """A preparation process. `send` and `receive` belong to one thread; answers come in the order of the tasks."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Done).decode
        self._waiting: deque[Task] = deque()
        self._ready = False
        self._process, self._channel = self._start()

    @property
    def outstanding(self) -> int:
        """Tasks sent and not answered."""
        return len(self._waiting)

    def send(self, task: Task) -> None:
        self._waiting.append(task)
        try:
            self._channel.send(self._encode(task))
        except OSError:
            return  # `receive` meets the dead process too, and deals with it

    def receive(self) -> tuple[Task, Done, bytes]:
        """The oldest task's answer. A task on which the process died is answered with that."""
        try:
            if not self._ready:
                self._channel.receive()
                self._ready = True
            header, payload = self._channel.receive()
        except (EOFError, OSError):
            return self._bury()
        return self._waiting.popleft(), self._decode(header), payload

    def close(self) -> None:
        """Ends the process."""
        self._channel.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> tuple[subprocess.Popen[bytes], Channel]:
        """A new process, which gets the recipe."""
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            environment = {name: text for name, text in os.environ.items() if not name.startswith(_PRIVATE_VARIABLES)}
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "ossconsole.dataset.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders print warnings there, and the screen may be on it
                pass_fds=[theirs.fileno()],
                # A file named PIL.py in the folder that the console was started in is no library.
                env={**environment, "PYTHONSAFEPATH": "1"},
            )
        channel = Channel(ours)
        channel.send(msgspec.msgpack.encode(self._recipe))
        return process, channel

    def _bury(self) -> tuple[Task, Done, bytes]:
        """Starts another process, gives it the tasks that the dead one did not reach, and answers the one it died on.

        Raises WorkerLostError when it never got as far as its first task, as the next one would not either.
        """
        self.close()
        if not self._ready:
            raise WorkerLostError(
                f"A preparation process did not start (exit code {self._process.returncode}).",
                remedy="Check the free memory, and that Pillow is installed whole.",
            )
        fatal, *rest = self._waiting
        code = self._process.returncode
        self._ready = False
        self._process, self._channel = self._start()
        self._waiting.clear()
        for task in rest:
            self.send(task)
        return fatal, Done(error=f"the preparation process died on it (exit code {code})"), b""
