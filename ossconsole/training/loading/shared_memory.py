"""Memory shared with the reader processes: batch buffers, the sample table, the endpoint."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd, recv_handle, send_handle
from typing import Any

import numpy as np
import numpy.typing as npt

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import object_key
from ossconsole.training.child import SPAWN
from ossconsole.training.data import Tar, TextColumn, TrainingData
from ossconsole.training.plan import Split


class SharedBuffer:
    """`size` bytes of anonymous shared memory; pickling it to a process being spawned shares it.

    It is a memfd, because containers often limit /dev/shm to 64 MB. The pages are allocated here, so that too little
    memory raises an error here and does not kill a process at its first write.
    """

    def __init__(
        self, size: int, *, holds: str = "batch buffers", remedy: str = "Lower --prefetch-mb or --batch-size."
    ) -> None:
        """`holds` and `remedy` are for the ConsoleError that is raised when there is too little memory."""
        self.size = size
        self._fd = os.memfd_create("ossconsole-batches")
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            os.close(self._fd)
            raise ConsoleError(
                f"The {holds} need {size / 1e6:,.0f} MB of memory: {error.strerror}.",
                remedy=remedy,
            ) from error
        self.memory = mmap.mmap(self._fd, size)

    def close(self) -> None:
        """Closes the descriptor; the memory is freed with its last view."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def send(self, pipe: Connection) -> None:
        """Shares it with the process at the other end of a duplex pipe, which calls `received`."""
        pipe.send(self.size)
        send_handle(pipe, self._fd, None)

    @classmethod
    def received(cls, pipe: Connection) -> SharedBuffer:
        """A buffer that `send` shares."""
        buffer = cls.__new__(cls)
        buffer._map(pipe.recv(), recv_handle(pipe))  # noqa: SLF001 - it is one of this class
        return buffer

    def _map(self, size: int, descriptor: int) -> None:
        self.size = size
        self._fd = descriptor
        self.memory = mmap.mmap(descriptor, size)

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size, "fd": DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._map(state["size"], state["fd"].detach())


_ALIGNED = 8  # bytes; columns hold 8-byte numbers or bytes


@dataclass(frozen=True)
class SampleInfo:
    """The samples of one batch, in its order: their rows, object keys, expected sizes in bytes, CRC64s (0 = unknown).

    `md5s` are ETags that have the form of an MD5: 16 bytes each, UNKNOWN_MD5 for any other. `heights` and `widths` are
    those of the stored images in pixels, 0 where unknown. The keys of members of tars are their names there.
    """

    rows: npt.NDArray[np.int64]
    keys: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    crc64s: npt.NDArray[np.uint64]
    md5s: npt.NDArray[np.void]
    heights: npt.NDArray[np.uint16]
    widths: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Members:
    """Where samples lie in tars: numbers of the tars, offsets and sizes in bytes there; all int64."""

    tars: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


class SampleTable:
    """The keys, sizes and checksums of all samples of both splits; pickling it to a process being spawned shares it.

    It takes about 30 bytes per sample plus its key, and 16 where ETags are known: 75 or 96 MB for ImageNet, for any
    number of readers.
    """

    def __init__(self, data: TrainingData) -> None:
        """Raises ConsoleError when there is too little memory."""
        columns = {}
        for split in Split:
            for name, column in _columns(data, str(split)).items():
                columns[f"{split}/{name}"] = column
        self._layout: dict[str, tuple[int, str, int]] = {}  # offset in bytes, type, number of values
        end = 0
        for name, column in columns.items():
            self._layout[name] = (end, column.dtype.str, len(column))
            end += -(-column.nbytes // _ALIGNED) * _ALIGNED
        self._prefix = "" if data.sharded else data.prefix
        self._buffer = SharedBuffer(
            max(end, 1), holds="names and sizes of the samples", remedy="Free memory on this machine."
        )
        for name, column in columns.items():
            self._column(name)[:] = column

    def look_up(self, split: Split, rows: npt.NDArray[np.int64]) -> SampleInfo:
        """The samples at `rows` of a split."""
        keys = self._texts(f"{split}/key")
        md5s = self._column(f"{split}/md5")
        return SampleInfo(
            rows,
            tuple(object_key(self._prefix, keys.get(row)) for row in rows.tolist()),
            self._column(f"{split}/size")[rows],
            self._column(f"{split}/crc64")[rows],
            md5s[rows] if len(md5s) else np.zeros(len(rows), md5s.dtype),
            self._column(f"{split}/height")[rows],
            self._column(f"{split}/width")[rows],
        )

    def count(self, split: Split) -> int:
        """The number of samples of a split."""
        return len(self._column(f"{split}/size"))

    def members(self, split: Split, rows: npt.NDArray[np.int64]) -> Members:
        """Where the samples at `rows` of a split lie in its tars."""
        return Members(
            np.searchsorted(self._column(f"{split}/start"), rows, side="right") - 1,
            self._column(f"{split}/offset")[rows],
            self._column(f"{split}/size")[rows],
        )

    def tar(self, split: Split, number: int) -> Tar:
        """Tar `number` of a split."""
        return Tar(self._texts(f"{split}/tar").get(number), int(self._column(f"{split}/tar_size")[number]))

    def close(self) -> None:
        """Closes the descriptor; the memory is freed with its last view."""
        self._buffer.close()

    def _column(self, name: str) -> npt.NDArray[Any]:
        offset, kind, count = self._layout[name]
        return np.frombuffer(self._buffer.memory, dtype=kind, count=count, offset=offset)

    def _texts(self, name: str) -> TextColumn:
        return TextColumn(self._column(f"{name}/start"), self._column(f"{name}/text"))


def _columns(data: TrainingData, split: str) -> dict[str, npt.NDArray[Any]]:
    samples = data.columns(split)
    tars = data.tars(split)
    columns: dict[str, npt.NDArray[Any]] = {
        "size": samples.sizes,
        "crc64": samples.crc64s,
        "md5": samples.md5s,
        "height": samples.heights,
        "width": samples.widths,
        "start": tars.starts,
        "offset": tars.offsets,
        "tar_size": np.fromiter((tar.bytes for tar in tars.tars), np.int64, len(tars.tars)),
    }
    texts = {"key": samples.keys, "tar": TextColumn.of(tar.key for tar in tars.tars)}
    for name, column in texts.items():
        columns[f"{name}/start"] = column.starts
        columns[f"{name}/text"] = column.text
    return columns


_KINDS = tuple(EndpointKind)


class EndpointSwitch:
    """The endpoint in shared memory, which every reader reads before each batch."""

    def __init__(self, kind: EndpointKind) -> None:
        self._kind: Any = SPAWN.RawValue("i", _KINDS.index(kind))

    @property
    def endpoint(self) -> EndpointKind:
        """The endpoint for batches fetched from now on."""
        return _KINDS[int(self._kind.value)]

    @endpoint.setter
    def endpoint(self, kind: EndpointKind) -> None:
        self._kind.value = _KINDS.index(kind)
