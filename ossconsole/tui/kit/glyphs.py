"""The characters the console draws with: a full set, one without braille, and plain ASCII."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ossconsole.config.endpoints import EndpointKind


@dataclass(frozen=True)
class Glyphs:
    """One set of characters, by default the full one. `chart` names the symbols of charts: braille, block or ascii."""

    name: str = "braille"
    chart: str = "braille"
    standard: str = "●"
    accelerated: str = "▲"
    rule: str = "─"
    corner: str = "└"
    vertical: str = "│"
    tick: str = "┤"
    marker: str = "┊"
    cross: str = "│"
    bar_full: str = "━"
    bar_half: str = "╸"
    bar_empty: str = "─"
    ellipsis: str = "…"
    dot: str = "·"
    running: str = "▶"
    paused: str = "‖"
    done: str = "✓"
    failed: str = "✗"
    waiting: str = "○"
    folder: str = "▸"
    up: str = "↑"
    down: str = "↓"
    arrow: str = "→"
    prompt: str = "›"
    plus_minus: str = "±"
    left_edge: str = "▌"

    def endpoint(self, kind: EndpointKind) -> str:
        """The symbol of an endpoint."""
        return self.standard if kind is EndpointKind.STANDARD else self.accelerated

    def short(self, kind: EndpointKind) -> str:
        """Symbol and abbreviated name of an endpoint."""
        return f"{self.endpoint(kind)} {kind.value if len(kind.value) <= 8 else kind.value[:5] + '.'}"

    def named(self, kind: EndpointKind) -> str:
        """Symbol and name of an endpoint."""
        return f"{self.endpoint(kind)} {kind}"


BRAILLE = Glyphs()
BLOCK = Glyphs(name="block", chart="block")
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
    arrow="->",
    prompt=">",
    plus_minus="+-",
    left_edge="|",
)

SETS = {glyphs.name: glyphs for glyphs in (BRAILLE, BLOCK, ASCII)}


def for_terminal(environment: Mapping[str, str] = os.environ) -> Glyphs:
    """The set for this terminal: ASCII without UTF-8; blocks on the Linux console, whose font has no braille."""
    if not _speaks_utf8(environment):
        return ASCII
    return BLOCK if environment.get("TERM") == "linux" else BRAILLE


def _speaks_utf8(environment: Mapping[str, str]) -> bool:
    """Whether the locale variables name UTF-8; without any (a bare container), UTF-8 is assumed.

    Python's own locale is no evidence: under `LANG=C` Python switches to UTF-8 and then sets LC_CTYPE.
    """
    known = environment.get("LC_ALL", "")
    if not known:
        ctype, lang = environment.get("LC_CTYPE", ""), environment.get("LANG", "")
        known = lang if ctype in _COERCED and lang else ctype or lang
    return not known or "utf" in known.lower()


_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
