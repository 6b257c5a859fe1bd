"""A preparation process: reads picture files and answers with samples. Imports Pillow and numpy, nothing heavier.

Frames, both ways: a 4-byte length and a msgpack header, then an 8-byte length and a payload. First comes the recipe,
answered by an empty `Done` once all is imported; then a `Task` for each picture, answered in order by a `Done`. The
process ends when its socket closes, so no parent that dies leaves it behind. It imports once and forks for the rest:
starting a process a core would cost more than preparing hundreds of pictures.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
import warnings

import msgspec

from ossconsole.dataset.source.origin import Origin, ZipOrigin, read_origin
from ossconsole.dataset.upload.prepare import MAX_FILE_BYTES, Recipe, UnreadablePictureError, prepare

_HEADER = struct.Struct("<I")
_PAYLOAD = struct.Struct("<Q")


class Task(msgspec.Struct, frozen=True, array_like=True):
    """A picture to prepare. `key` begins with its split."""

    key: str
    size: int
    origin: Origin


class Done(msgspec.Struct, frozen=True, array_like=True):
    """What became of a task: the sample's sides in pixels, or why there is none; seconds spent on it."""

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
        self._socket.sendall(_HEADER.pack(len(header)) + header + _PAYLOAD.pack(len(payload)))
        if payload:
            self._socket.sendall(payload)

    def receive(self) -> tuple[bytes, bytes]:
        """The next header and payload. Raises EOFError when the other side is gone."""
        header = self._read(_HEADER.unpack(self._read(_HEADER.size))[0])
        return header, self._read(_PAYLOAD.unpack(self._read(_PAYLOAD.size))[0])

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def _read(self, size: int) -> bytes:
        data = self._reader.read(size) if size else b""
        if len(data) != size:
            raise EOFError
        return data


def handle(task: Task, recipe: Recipe) -> tuple[Done, bytes]:
    """Reads and prepares one picture; whatever is wrong with it is in the answer."""
    began = time.perf_counter()
    if task.size > MAX_FILE_BYTES:
        return Done(error=f"{task.size} bytes are too many for a picture"), b""
    try:
        data = read_origin(task.origin)
    except OSError as error:
        return Done(error=f"cannot be read: {error.strerror or error}"), b""
    except Exception as error:
        if not isinstance(task.origin, ZipOrigin):
            raise
        # zipfile raises anything from BadZipFile to zlib.error on damaged archives
        return Done(error=f"cannot be read from the archive: {error}"), b""
    read = time.perf_counter()
    try:
        prepared = prepare(data, task.key, recipe)
    except UnreadablePictureError as error:
        return Done(error=error.message, read_s=read - began, prepare_s=time.perf_counter() - read), b""
    done = Done(prepared.height, prepared.width, "", read - began, time.perf_counter() - read)
    return done, prepared.payload


def serve(connection: socket.socket) -> None:
    """Prepares what comes in, until the other side is gone."""
    channel = Channel(connection)
    encode = msgspec.msgpack.Encoder().encode
    decode = msgspec.msgpack.Decoder(Task).decode
    try:
        recipe = msgspec.msgpack.decode(channel.receive()[0], type=Recipe)
        channel.send(encode(Done()))
        while True:
            done, payload = handle(decode(channel.receive()[0]), recipe)
            channel.send(encode(done), payload)
    except (EOFError, ConnectionError):
        return


def main() -> None:
    """Serves the sockets whose descriptors are the arguments: the first by itself, each other one by a fork."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start a thread for each core
    from ossconsole.dataset.upload import jpeg  # noqa: F401  before the forks, which then have it

    warnings.simplefilter("ignore")  # of PIL about EXIF blocks and transparency; the pixels are what counts
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
    os._exit(0)  # the interpreter would take its time to put away what the kernel frees at once


if __name__ == "__main__":
    main()
