"""Updates that send only the cells that changed.

Textual's own partial update sends each line from the left edge of the widget on, whatever part of it changed.
"""

from __future__ import annotations

from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate


class FrugalUpdate(ChopsUpdate):
    """A partial update of the screen, cut to the changed spans on both sides."""

    @classmethod
    def of(cls, update: ChopsUpdate) -> FrugalUpdate:
        return cls(update.chops, update.spans, update.chop_ends)

    def render_segments(self, console: Console) -> str:
        found = []
        for y, first, last in self.spans:
            for end, (start, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                left, right = max(start, first), min(end, last)
                if strip is not None and left < right:
                    found.append(Control.move_to(left, y).segment.text)
                    found.append(strip.crop(left - start, right - start).render(console))
        return "".join(found)
