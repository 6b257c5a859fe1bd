"""Where Textual does more than it must: bytes sent over SSH, and style sheets parsed before the first paint."""

from __future__ import annotations

from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate
from textual.css.stylesheet import Stylesheet


class FrugalUpdate(ChopsUpdate):
    """A partial update of the screen, cut to the changed spans on both sides.

    Textual's own sends each line from the left edge of the widget on, whatever part of it changed.
    """

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


class FrugalStylesheet(Stylesheet):
    """Parses its sources again only for other variables, that is for another theme.

    Textual parses all of them anew for every screen that is first shown; that took a fifth of the first paint.
    """

    def __init__(self, *, variables: dict[str, str]) -> None:
        super().__init__(variables=variables)
        self._parsed_for = variables

    def reparse(self) -> None:
        if self._variables != self._parsed_for:
            self._parsed_for = dict(self._variables)
            super().reparse()
