"""The characters the console draws with: a full set, one without braille, and plain ASCII."""

from __future__ import annotations

import locale
import os
from dataclasses import dataclass

from ossconsole.config.endpoints import EndpointKind


@dataclass(frozen=True)
class Glyphs:
    """One set. `chart` names the symbols that charts use: braille, block or ascii."""

    name: str
    chart: str
    standard: str
    accelerated: str
    rule: str
    corner: str
    vertical: str
    tick: str
    marker: str
    cross: str
    bar_full: str
    bar_half: str
    bar_empty: str
    ellipsis: str
    dot: str
    running: str
    paused: str
    done: str
    failed: str
    waiting: str
    folder: str
    up: str
    down: str
    prompt: str
    plus_minus: str
    left_edge: str

    def endpoint(self, kind: EndpointKind) -> str:
        return self.standard if kind is EndpointKind.STANDARD else self.accelerated

    def short(self, kind: EndpointKind) -> str:
        """Where there is no room for the whole word."""
        return f"{self.endpoint(kind)} {kind.value if len(kind.value) <= 8 else kind.value[:5] + '.'}"

    def named(self, kind: EndpointKind) -> str:
        return f"{self.endpoint(kind)} {kind}"


BRAILLE = Glyphs(
    name="braille",
    chart="braille",
    standard="●",
    accelerated="▲",
    rule="─",
    corner="└",
    vertical="│",
    tick="┤",
    marker="┊",
    cross="│",
    bar_full="━",
    bar_half="╸",
    bar_empty="─",
    ellipsis="…",
    dot="·",
    running="▶",
    paused="‖",
    done="✓",
    failed="✗",
    waiting="○",
    folder="▸",
    up="↑",
    down="↓",
    prompt="›",
    plus_minus="±",
    left_edge="▌",
)

BLOCK = Glyphs(**{**BRAILLE.__dict__, "name": "block", "chart": "block"})

ASCII = Glyphs(
    name="ascii",
    chart="ascii",
    standard="o",
    accelerated="^",
    rule="-",
    corner="+",
    vertical="|",
    tick="|",
    marker=":",
    cross="|",
    bar_full="=",
    bar_half="-",
    bar_empty=".",
    ellipsis="~",
    dot="-",
    running=">",
    paused="=",
    done="+",
    failed="x",
    waiting=".",
    folder="/",
    up="^",
    down="v",
    prompt=">",
    plus_minus="+-",
    left_edge="|",
)

SETS = {glyphs.name: glyphs for glyphs in (BRAILLE, BLOCK, ASCII)}


def for_terminal() -> Glyphs:
    """What this terminal can show: ASCII without UTF-8; no braille on the kernel's console, whose font has none."""
    if "utf" not in locale.getpreferredencoding(False).lower():
        return ASCII
    return BLOCK if os.environ.get("TERM") == "linux" else BRAILLE
