"""The upper part of Setup: the profile setting by setting with origins, and the credentials in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from ossconsole.config.credentials import Credentials
from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.hosts import HostInfo, classify
from ossconsole.config.secret import mask_key_id
from ossconsole.tui.glyphs import Glyphs
from ossconsole.tui.services import Setting
from ossconsole.tui.text import Line, duration, safe, shorten_middle, wrap

LABEL = 15
_LABELS = {
    "bucket": "bucket",
    "region": "region",
    "standard_endpoint": str(EndpointKind.STANDARD),
    "accelerated_endpoint": str(EndpointKind.ACCELERATED),
    "dataset_prefix": "dataset",
    "checkpoint_prefix": "checkpoints",
}
_SOON = timedelta(hours=1)


@dataclass(frozen=True)
class Keys:
    """The credentials as far as they are known: found, or why not, or (neither) still looked for."""

    found: Credentials | None = None
    problem: str = ""


def profile_lines(settings: Sequence[Setting], keys: Keys, glyphs: Glyphs, now: float, width: int) -> list[Line]:
    """A line per setting and those of the credentials; `now` in Unix seconds."""
    known = {setting.name.replace(" ", "_"): setting for setting in settings}
    lines = [_setting(label, known[name], glyphs, width) for name, label in _LABELS.items() if name in known]
    return lines + _credentials(keys, glyphs, now, width)


def host_words(info: HostInfo) -> str:
    """An endpoint's kind and place in a few words."""
    place = info.zone or info.region
    return f"{info.kind}, {place}" if place else str(info.kind)


def _setting(label: str, setting: Setting, glyphs: Glyphs, width: int) -> Line:
    line = _label(label, glyphs)
    if not setting.value:
        return line.add("none", "dim")
    notes = [safe(setting.origin), safe(setting.origin.partition(" ")[0])]
    if label in {kind.value for kind in EndpointKind}:
        notes.insert(0, f"{host_words(classify(setting.value))} {glyphs.dot} {notes[0]}")
    value = safe(setting.value)
    room = width - LABEL - 3
    note = next((note for note in notes if len(value) + len(note) <= room), notes[-1])
    line.add(shorten_middle(value, room - len(note), glyphs.ellipsis))
    return line.right(Line((f"{note} ", "dim")), width)


def _label(label: str, glyphs: Glyphs) -> Line:
    kinds = {kind.value: kind for kind in EndpointKind}
    if label in kinds:
        return Line((f" {glyphs.named(kinds[label])}", label)).to(LABEL)
    return Line((f" {label}", "dim")).to(LABEL)


def _credentials(keys: Keys, glyphs: Glyphs, now: float, width: int) -> list[Line]:
    line = _label("credentials", glyphs)
    if keys.problem:
        first, *rest = wrap(safe(keys.problem), width - LABEL - 1)
        return [line.add(first, "bad"), *(Line().to(LABEL).add(part, "bad") for part in rest)]
    found = keys.found
    if found is None:
        return [line.add(f"looking for them{glyphs.ellipsis}", "dim")]
    end = _end(found, now)
    line.add(safe(mask_key_id(found.access_key_id))).add(f" {found.access_key_secret} ", "dim")
    source = shorten_middle(safe(found.source), width - line.width - end.width - 2, glyphs.ellipsis)
    return [line.add(source).right(end, width)]


def _end(credentials: Credentials, now: float) -> Line:
    if credentials.expiration is None:
        return Line(("no end ", "dim"))
    left = credentials.expiration - datetime.fromtimestamp(now, timezone.utc)
    if left <= timedelta(0):
        return Line(("ended ", "bad"))
    return Line((f"ends in {duration(left.total_seconds())} ", "warn" if left < _SOON else "dim"))
