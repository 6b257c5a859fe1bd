"""What every panel is drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from ossconsole.config.endpoints import EndpointKind
from ossconsole.telemetry.view import RunView
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.text import Line, shorten


@dataclass(frozen=True)
class Context:
    """The run, the present (Unix seconds) and how to draw.

    `has_accelerated` tells of the profile, `steered` whether the screen has the keys that change the run.
    """

    view: RunView
    now: float
    glyphs: Glyphs
    has_accelerated: bool = True
    auto_words: str = ""
    steered: bool = True

    @property
    def simulated(self) -> bool:
        return self.view.run is not None and self.view.run.simulated

    def named(self, kind: EndpointKind) -> Line:
        return Line((self.glyphs.named(kind), str(kind)))

    def heading(self, title: str, width: int, *notes: str) -> Line:
        """A panel's first line: a rule that carries its title and, at the right, the first of `notes` that fits."""
        rule = self.glyphs.rule
        line = Line((f"{rule} ", "rule"), (f"{shorten(title, width - 4)} ", "title"))
        note = next((note for note in notes if note and line.width + len(note) + 4 <= width), "")
        if note:
            end = Line((" ", "rule"), (note, "dim"), (f" {rule}", "rule"))
            return line.to(width - end.width, "rule", rule).extend(end)
        return line.to(width, "rule", rule)
