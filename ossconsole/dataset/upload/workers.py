"""Preparation processes seen from the parent, which feeds them, notices when one dies and replaces it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque

import msgspec

from ossconsole.config.credentials import without_credentials
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.upload.prepare import Recipe
from ossconsole.dataset.upload.worker import Channel, Done, Task

DEADLINE_S = 120.0
"""How long a process may take for one picture before it counts as stuck; the largest take a few seconds."""

_STOP_TIMEOUT_S = 2.0
_BUFFER_BYTES = 1 << 20


class WorkerLostError(ConsoleError):
    """A process ended before it could do any work."""


class Crew:
    """Processes that prepare by one recipe: one that imports what is needed, and its forks."""

    def __init__(self, recipe: Recipe, count: int) -> None:
        self.recipe = recipe
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels = self.launch(count)

    def launch(self, count: int) -> list[Channel]:
        """Starts one more process with `count - 1` forks, and gives a channel to each of them."""
        pairs = [socket.socketpair() for _ in range(count)]
        for pair in pairs:
            for end in pair:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        theirs = [end for _, end in pairs]
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "ossconsole.dataset.upload.worker", *(str(end.fileno()) for end in theirs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # decoders print warnings there, and the screen may be on it
            pass_fds=[end.fileno() for end in theirs],
            start_new_session=True,  # Ctrl-C is for the parent, which decides what becomes of the work
            # A file named PIL.py in the folder that the console was started in is no library.
            env={**without_credentials(), "PYTHONSAFEPATH": "1"},
        )
        with self._lock:
            self._processes.append(process)
        for end in theirs:
            end.close()
        for ours, _ in pairs:
            ours.settimeout(DEADLINE_S)
        channels = [Channel(ours) for ours, _ in pairs]
        for channel in channels:
            channel.send(msgspec.msgpack.encode(self.recipe))
        return channels

    def worker(self) -> Worker:
        """The next of the first `count` processes."""
        with self._lock:
            channel = self._channels.pop()
        return Worker(self, channel)

    def close(self) -> None:
        """Ends every process; those of workers that are still open too."""
        with self._lock:
            for channel in self._channels:
                channel.close()
            self._channels.clear()
        for process in self._processes:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Waits for a process whose sockets are closed, and its forks with it."""
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Worker:
    """One process. `send` and `receive` belong to one thread; answers come in the order of the tasks."""

    def __init__(self, crew: Crew, channel: Channel) -> None:
        self._crew = crew
        self._channel = channel
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Done).decode
        self._waiting: deque[Task] = deque()
        self._ready = False
        self._suspect: Task | None = None  # a process was lost over it before

    def send(self, task: Task) -> None:
        self._waiting.append(task)
        try:
            self._channel.send(self._encode(task))
        except OSError:
            return  # `receive` meets the dead process too, and deals with it

    def receive(self) -> tuple[Task, Done, bytes]:
        """The oldest task's answer; where two processes died or got stuck over it, that. Raises WorkerLostError."""
        try:
            if not self._ready:
                self._channel.receive()
                self._ready = True
            header, payload = self._channel.receive()
        except TimeoutError:
            return self._bury("the preparation process got stuck on it")
        except (EOFError, OSError):
            return self._bury("the preparation process died on it")
        return self._waiting.popleft(), self._decode(header), payload

    def close(self) -> None:
        """Lets the process go, which ends it."""
        self._channel.close()

    def _bury(self, reason: str) -> tuple[Task, Done, bytes]:
        """Starts another process and gives it what the lost one did not answer; a picture is tried on two of them.

        Raises WorkerLostError when it never got as far as its first task, as the next one would not either.
        """
        self.close()
        if not self._ready:
            raise WorkerLostError(
                "A preparation process ended before its first picture.",
                remedy="Check the free memory, and that Pillow and msgspec are installed whole.",
            )
        first, *rest = self._waiting
        innocent = first is not self._suspect
        self._suspect = first
        self._waiting.clear()
        self._ready = False
        (self._channel,) = self._crew.launch(1)
        for task in [first, *rest] if innocent else rest:
            self.send(task)
        return self.receive() if innocent else (first, Done(error=reason), b"")
