"""A listing of any length without objects, for measuring browsers: keys made up as they are asked for."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from ossconsole.sandbox.records import StoredObject

PREFIX = "synthetic/"
_FIRST_MODIFIED = 1_700_000_000
# Sizes and times look random and are always the same.
_SIZE_STEP, _SIZE_RANGE = 2_654_435_761, 1_000_000


class SyntheticKeys:
    """`count` keys below `synthetic/`, in order, listed but not readable."""

    def __init__(self, count: int) -> None:
        self._indices = range(count)

    @staticmethod
    def _key(index: int) -> bytes:
        return b"%ssample-%08d.pt" % (PREFIX.encode(), index)

    def scan(self, start: bytes, end: bytes, limit: int, *, inclusive: bool) -> list[StoredObject]:
        """As `Index.scan`."""
        bisect = bisect_left if inclusive else bisect_right
        first = bisect(self._indices, start, key=self._key)
        last = bisect_left(self._indices, end, key=self._key) if end else len(self._indices)
        return [self._object(index) for index in self._indices[first : min(last, first + limit)]]

    def _object(self, index: int) -> StoredObject:
        size = index * _SIZE_STEP % _SIZE_RANGE
        return StoredObject(
            key=self._key(index).decode(),
            blob="",
            size=size,
            etag=f"{index:032X}",
            crc64=index,
            modified=float(_FIRST_MODIFIED + index * 7919 % 10_000_000),
        )
