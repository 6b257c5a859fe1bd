"""Panel: a Canvas over a pure drawing function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ossconsole.tui.text import Line
from ossconsole.tui.widgets.canvas import Canvas

Painter = Callable[[int, int], Sequence[Line]]


class Panel(Canvas):
    """Draws what `painter(width, height)` gives."""

    def __init__(self, painter: Painter, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._painter = painter

    def paint(self, width: int, height: int) -> Sequence[Line]:
        return self._painter(width, height)
