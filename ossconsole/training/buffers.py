"""Memory that the loop and its reader processes share."""

from __future__ import annotations

import mmap
import os
from multiprocessing.reduction import DupFd
from typing import Any

from ossconsole.config.errors import ConsoleError


class SharedBuffer:
    """`size` bytes of anonymous shared memory; pickling it to a process being spawned shares it.

    It is a memfd, which unlike /dev/shm has no size of its own: containers often give that one 64 MB. The pages are
    taken at once, so that too little memory is told here and does not kill a process at its first write.
    """

    def __init__(
        self, size: int, *, holds: str = "batch buffers", remedy: str = "Lower --prefetch-mb or --batch-size."
    ) -> None:
        """`holds` and `remedy` are for the ConsoleError that tells that the memory is too small."""
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
        """Gives the descriptor back; the memory itself goes when nothing looks at it any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size, "fd": DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.size = state["size"]
        self._fd = state["fd"].detach()
        self.memory = mmap.mmap(self._fd, self.size)
