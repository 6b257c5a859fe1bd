"""The lower part of Setup on larger screens: accelerator, connector configuration, credential sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ossconsole.config.connector import (
    CONNECTOR_KEYS,
    ConnectorValues,
    connector_config_path,
    default_connector_values,
    load_connector_config,
)
from ossconsole.config.errors import ConsoleError
from ossconsole.config.paths import short_path
from ossconsole.storage.accelerator import Accelerator
from ossconsole.tui.glyphs import Glyphs
from ossconsole.tui.services import AcceleratorState
from ossconsole.tui.text import Line, moment, safe, shorten, wrap

LABEL = 15


def accelerator_lines(state: AcceleratorState | None, problem: str, glyphs: Glyphs, width: int) -> list[Line]:
    """What is known of the accelerator; `state` None where it was not read."""
    if problem:
        return [Line((f" {part}", "warn")) for part in wrap(safe(problem), width - 2)]
    if state is None:
        return [Line((" Not looked at yet: prove first, or press ", "dim"), ("a", "primary"), (".", "dim"))]
    found = state.accelerator
    if found is None:
        return [Line((" The bucket has none. ", "warn"), ("a", "primary"), (" creates one.", "dim"))]
    lines = [_row(label, value, glyphs, width) for label, value in _facts(found)]
    for caution in state.cautions:
        lines += [Line((f" {part}", "warn")) for part in wrap(f"! {safe(caution)}", width - 2)]
    return lines


@dataclass(frozen=True)
class ConnectorState:
    """The connector's file as it was read; `path` is "" before that, `problem` why it cannot be used."""

    path: str = ""
    values: ConnectorValues = field(default_factory=dict)
    problem: str = ""


def read_connector() -> ConnectorState:
    """Reads the file; without one the values are those that it would be made with."""
    try:
        path = connector_config_path()
        return ConnectorState(short_path(path), load_connector_config(path) or default_connector_values())
    except ConsoleError as error:
        return ConnectorState(problem=str(error))


def connector_lines(state: ConnectorState, glyphs: Glyphs, width: int) -> list[Line]:
    """The file, and what in it differs from the connector's defaults."""
    if state.problem:
        return [Line((f" {part}", "bad")) for part in wrap(safe(state.problem), width - 2)]
    known = state.values
    lines = [_row("file", state.path, glyphs, width)]
    changed = [key.name for key in CONNECTOR_KEYS if key.name in known and known[key.name] != key.default]
    lines += [_row(name.split(".")[-1], short_path(str(known[name])), glyphs, width) for name in changed]
    return [*lines, Line((" ", "dim"), ("o", "primary"), (" edits it.", "dim"))]


def source_lines(sources: Sequence[tuple[str, str]], glyphs: Glyphs, width: int) -> list[Line]:
    """Each place where credentials may lie, in the order of looking, and what is there."""
    if not sources:
        return [Line((f" looking{glyphs.ellipsis}", "dim"))]
    return [_row(name, found, glyphs, width, label=width // 2) for name, found in sources]


def _facts(found: Accelerator) -> list[tuple[str, str]]:
    paths = ", ".join(f"{path.prefix} ({path.policy})" for path in found.paths) or f"the whole bucket ({found.policy})"
    return [
        ("name", found.name),
        ("zone", found.zone),
        ("size", f"{found.quota_gb:,} GB, documented peak {found.peak_mb_per_s:,.0f} MB/s"),
        ("caches", paths),
        ("since", moment(found.created) if found.created else "unknown"),
    ]


def _row(label_text: str, value: str, glyphs: Glyphs, width: int, *, label: int = LABEL) -> Line:
    line = Line((f" {shorten(safe(label_text), label - 2, glyphs.ellipsis)}", "dim")).to(label)
    return line.add(shorten(safe(value), width - label - 1, glyphs.ellipsis))
