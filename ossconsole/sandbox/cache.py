"""The accelerator's cache: blocks of objects in memory, the least recently read dropped first."""

from __future__ import annotations

from collections import OrderedDict

BLOCK_BYTES = 4 << 20
# Blob, size of the object, number of the block. An overwritten object has another blob and a longer one another size,
# so what is found is never stale.
BlockKey = tuple[str, int, int]


class BlockCache:
    """At most `capacity` bytes of blocks. `hits` and `misses` count the blocks that reads got and did not get here."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.hits = 0
        self.misses = 0
        self._blocks: OrderedDict[BlockKey, bytes] = OrderedDict()

    def get(self, key: BlockKey) -> bytes | None:
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
        return block

    def put(self, key: BlockKey, block: bytes) -> None:
        """Keep the block, unless it alone is larger than the cache."""
        if len(block) > self.capacity or key in self._blocks:
            return
        self._blocks[key] = block
        self.size += len(block)
        while self.size > self.capacity:
            _, dropped = self._blocks.popitem(last=False)
            self.size -= len(dropped)

    def clear(self) -> None:
        self._blocks.clear()
        self.size = 0
