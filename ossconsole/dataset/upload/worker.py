"""Preparation processes: they read image files and answer with samples; `PrepareProcesses` is the parent's side.

The processes import Pillow and numpy, nothing heavier. Frames, both ways: a 4-byte length and a msgpack header, then an
8-byte length and a payload. The first frame is the config, answered by an empty `Done` after the imports. Then comes a
`Task` for each image, answered in order by a `Done`. A process ends when its socket closes, so it never outlives its
parent. One process imports and forks the others: starting one per core costs more than preparing hundreds of images.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections import deque

import msgspec

from ossconsole.config.credentials import SAFE_PATH, without_credentials
from ossconsole.config.errors import ConsoleError
from ossconsole.config.spawning import module_command
from ossconsole.dataset.decode import UnreadableImageError, import_jpeg_libraries, keep_freed_memory
from ossconsole.dataset.source.files import MAX_FILE_BYTES, FileLocation, ZipLocation, read_location
from ossconsole.dataset.upload.prepare import PreprocessConfig, prepare
from ossconsole.storage.jobs.threads import Cancelled

_HEADER = struct.Struct("<I")
_PAYLOAD = struct.Struct("<Q")


class Task(msgspec.Struct, frozen=True, array_like=True):
    """An image to prepare. `key` begins with its split."""

    key: str
    size: int
    location: FileLocation


class Done(msgspec.Struct, frozen=True, array_like=True):
    """The result of a task: the sample's sides in pixels, or the error; seconds spent on it."""

    height: int = 0
    width: int = 0
    error: str = ""
    read_s: float = 0.0
    prepare_s: float = 0.0


class Channel:
    """Frames over a stream socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader = connection.makefile("rb", buffering=1 << 16)

    def send(self, header: bytes, payload: bytes = b"") -> None:
        """Sends one frame. Raises OSError."""
        self._socket.sendall(_HEADER.pack(len(header)) + header + _PAYLOAD.pack(len(payload)))
        if payload:
            self._socket.sendall(payload)

    def receive(self) -> tuple[bytes, bytes]:
        """The next header and payload. Raises EOFError when the other side has closed, OSError."""
        header = self._read(_HEADER.unpack(self._read(_HEADER.size))[0])
        return header, self._read(_PAYLOAD.unpack(self._read(_PAYLOAD.size))[0])

    def abort(self) -> None:
        """Makes the `receive` of another thread raise EOFError, also in the middle of its wait."""
        with contextlib.suppress(OSError):  # closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket."""
        self._reader.close()
        self._socket.close()

    def _read(self, size: int) -> bytes:
        data = self._reader.read(size) if size else b""
        if len(data) != size:
            raise EOFError
        return data


def handle(task: Task, config: PreprocessConfig) -> tuple[Done, bytes]:
    """Reads and prepares one image; its errors are in the answer."""
    began = time.perf_counter()
    if task.size > MAX_FILE_BYTES:
        return Done(error=f"{task.size} bytes are too many for an image"), b""
    try:
        data = read_location(task.location)
    except OSError as error:
        return Done(error=f"cannot be read: {error.strerror or error}"), b""
    except Exception as error:
        if not isinstance(task.location, ZipLocation):
            raise
        # zipfile raises anything from BadZipFile to zlib.error on damaged archives
        return Done(error=f"cannot be read from the archive: {error}"), b""
    read = time.perf_counter()
    try:
        prepared = prepare(data, task.key, config)
    except UnreadableImageError as error:
        return Done(error=error.message, read_s=read - began, prepare_s=time.perf_counter() - read), b""
    done = Done(prepared.height, prepared.width, "", read - began, time.perf_counter() - read)
    return done, prepared.payload


def serve(connection: socket.socket) -> None:
    """Answers tasks until the other side closes."""
    channel = Channel(connection)
    encode = msgspec.msgpack.Encoder().encode
    decode = msgspec.msgpack.Decoder(Task).decode
    try:
        config = msgspec.msgpack.decode(channel.receive()[0], type=PreprocessConfig)
        channel.send(encode(Done()))
        while True:
            done, payload = handle(decode(channel.receive()[0]), config)
            channel.send(encode(done), payload)
    except (EOFError, ConnectionError):
        return


def main() -> None:
    """Serves the sockets whose descriptors are the arguments: the first in this process, each other one in a fork."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start a thread for each core
    import_jpeg_libraries()
    keep_freed_memory()

    warnings.simplefilter("ignore")  # of PIL about EXIF blocks and transparency; only the pixels matter
    connections = [socket.socket(fileno=int(number)) for number in sys.argv[1:]]
    forks = []
    while len(connections) > 1:
        connection = connections.pop()
        pid = os.fork()
        if not pid:
            for other in connections:
                other.close()
            serve(connection)
            os._exit(0)
        connection.close()
        forks.append(pid)
    serve(connections[0])
    connections[0].close()
    for pid in forks:
        os.waitpid(pid, 0)
    os._exit(0)  # the interpreter's cleanup would take time; the kernel frees everything immediately


DEADLINE_S = 120.0
"""A process that takes longer for one image counts as stuck; the largest images take a few seconds."""

_STOP_TIMEOUT_S = 2.0
_BUFFER_BYTES = 1 << 20


class WorkerLostError(ConsoleError):
    """A process ended before its first image."""


class PrepareProcesses:
    """Processes that prepare with one config: one that imports the libraries, and its forks.

    For original files there are none: reading their headers takes less time than passing them from one to another.
    """

    def __init__(self, config: PreprocessConfig, count: int) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._opened: list[Channel] = []
        self._aborted = False
        self._channels = [] if config.originals else self.launch(count)

    def launch(self, count: int) -> list[Channel]:
        """Starts one more process with `count - 1` forks; returns a channel to each of them.

        Raises Cancelled after `abort`.
        """
        self.check()
        pairs = [socket.socketpair() for _ in range(count)]
        for pair in pairs:
            for end in pair:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        theirs = [end for _, end in pairs]
        process = subprocess.Popen(  # noqa: S603
            module_command("ossconsole.dataset.upload.worker", *(str(end.fileno()) for end in theirs)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # decoders print warnings there, and the screen may be on it
            pass_fds=[end.fileno() for end in theirs],
            start_new_session=True,  # only the parent handles Ctrl-C
            env={**without_credentials(), **SAFE_PATH},
        )
        with self._lock:
            self._processes.append(process)
        for end in theirs:
            end.close()
        for ours, _ in pairs:
            ours.settimeout(DEADLINE_S)
        channels = [Channel(ours) for ours, _ in pairs]
        with self._lock:
            self._opened += channels
        for channel in channels:
            channel.send(msgspec.msgpack.encode(self.config))
        return channels

    def worker(self) -> Worker | InlineWorker:
        """The next of the first `count` processes."""
        if self.config.originals:
            return InlineWorker(self.config)
        with self._lock:
            channel = self._channels.pop()
        return Worker(self, channel)

    def check(self) -> None:
        """Raises Cancelled after `abort`."""
        if self._aborted:
            raise Cancelled

    def abort(self) -> None:
        """Kills every process, also one that reads from a disk that hangs: `receive` of its worker raises Cancelled."""
        with self._lock:
            self._aborted = True
            for process in self._processes:
                _kill(process)
            for channel in self._opened:
                channel.abort()

    def close(self) -> None:
        """Ends every process, also those of open workers."""
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
        _kill(process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a read from a disk that hangs cannot even be killed
            process.wait(_STOP_TIMEOUT_S)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and its forks, unless it has ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class Worker:
    """One process. `send` and `receive` belong to one thread; answers come in the order of the tasks."""

    def __init__(self, processes: PrepareProcesses, channel: Channel) -> None:
        self._processes = processes
        self._channel = channel
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Done).decode
        self._waiting: deque[Task] = deque()
        self._ready = False
        self._last_failed_task: Task | None = None  # a process died on it

    def send(self, task: Task) -> None:
        """Sends a task; `receive` notices a dead process."""
        self._waiting.append(task)
        try:
            self._channel.send(self._encode(task))
        except OSError:
            return

    def receive(self) -> tuple[Task, Done, bytes]:
        """The oldest task's result: an error when two processes died or got stuck on it.

        Raises WorkerLostError, and Cancelled after `PrepareProcesses.abort`.
        """
        try:
            if not self._ready:
                self._channel.receive()
                self._ready = True
            header, payload = self._channel.receive()
        except TimeoutError:
            return self._replace_worker("the preparation process got stuck on it")
        except (EOFError, OSError):
            return self._replace_worker("the preparation process died on it")
        return self._waiting.popleft(), self._decode(header), payload

    def close(self) -> None:
        """Closes the channel, which ends the process."""
        self._channel.close()

    def _replace_worker(self, reason: str) -> tuple[Task, Done, bytes]:
        """Starts another process and gives it the unanswered tasks; each image gets two attempts.

        Raises WorkerLostError when the process ended before its first task, as the next one would too; Cancelled.
        """
        self.close()
        self._processes.check()
        if not self._ready:
            raise WorkerLostError(
                "A preparation process ended before its first image.",
                remedy="Check the free memory and the installation of Pillow and msgspec.",
            )
        first, *rest = self._waiting
        retry = first is not self._last_failed_task
        self._last_failed_task = first
        self._waiting.clear()
        self._ready = False
        (self._channel,) = self._processes.launch(1)
        for task in [first, *rest] if retry else rest:
            self.send(task)
        return self.receive() if retry else (first, Done(error=reason), b"")


class InlineWorker:
    """Stands for a `Worker`, without a process: it does a task in the thread that calls `receive`."""

    def __init__(self, config: PreprocessConfig) -> None:
        self._config = config
        self._waiting: deque[Task] = deque()
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as in `main`

    def send(self, task: Task) -> None:
        """Keeps a task for `receive`."""
        self._waiting.append(task)

    def receive(self) -> tuple[Task, Done, bytes]:
        """The oldest task's result."""
        task = self._waiting.popleft()
        return task, *handle(task, self._config)

    def close(self) -> None:
        """Forgets the tasks."""
        self._waiting.clear()


if __name__ == "__main__":
    main()
