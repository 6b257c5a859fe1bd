"""RangedFile: a remote object as a file that fetches only what is read, within a budget."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from ossconsole.config.errors import ConsoleError

_READ_AHEAD = 16 << 10
DEFAULT_BUDGET = 24 << 20


class BudgetError(ConsoleError):
    """More of the object was asked for than its inspection may cost."""


class RangedFile(io.RawIOBase):
    """A seekable, read-only file over `fetch(start, length)`. Raises BudgetError beyond `budget` bytes.

    `fetched` and `requests` tell what was asked for so far.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, *, budget: int = DEFAULT_BUDGET) -> None:
        super().__init__()
        self.size = size
        self.fetched = 0
        self.requests = 0
        self._fetch = fetch
        self._budget = budget
        self._position = 0
        self._spans: list[tuple[int, bytes]] = []

    def prefetch(self, start: int, length: int) -> None:
        """Brings a span in with one request."""
        start = max(0, start)
        length = min(length, self.size - start)
        if length <= 0 or self._cached(start, length) is not None:
            return
        if self.fetched + length > self._budget:
            raise BudgetError(f"Inspecting it would take more than {self._budget >> 20} MiB.")
        data = self._fetch(start, length)
        self.requests += 1
        self.fetched += len(data)
        self._spans.append((start, data))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("negative seek position")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self._position)
        wanted = left if size < 0 else min(size, left)
        if wanted == 0:
            return b""
        found = self._cached(self._position, wanted)
        if found is None:
            self.prefetch(self._position, max(wanted, _READ_AHEAD))
            found = self._cached(self._position, wanted) or b""
        self._position += len(found)
        return found

    def _cached(self, start: int, length: int) -> bytes | None:
        for first, data in self._spans:
            if first <= start and start + length <= first + len(data):
                return data[start - first : start - first + length]
        return None
