"""The panels of the Setup screen: profile, credentials, test results, accelerator, connector, credential sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from ossconsole.config.connector import (
    CONNECTOR_KEYS,
    ConnectorValues,
    connector_config_path,
    default_connector_values,
    load_connector_config,
)
from ossconsole.config.credentials import Credentials, mask_key_id
from ossconsole.config.endpoints import EndpointKind, HostInfo, classify
from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import short_path
from ossconsole.config.profiles import Profile
from ossconsole.storage.accelerator import Accelerator
from ossconsole.storage.probe.report import PERMISSION_STAGES, Figures, ProbeStage, ProbeStep, StepStatus, stages
from ossconsole.tui.console import AcceleratorState, ConsoleState, Failed, NoCredentials, Setting
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.notice import notice
from ossconsole.tui.kit.text import Line, duration, milliseconds, moment, rate, safe, shorten, shorten_middle, wrap
from ossconsole.tui.setup.proof import Proof

LABEL = 15
_CONNECT = (ProbeStage.DNS, ProbeStage.TCP, ProbeStage.TLS)
_STYLES = {StepStatus.OK: "good", StepStatus.WARN: "warn", StepStatus.FAIL: "bad"}


def proving(profile: Profile, proof: Proof | None, glyphs: Glyphs, width: int, height: int) -> list[Line]:
    """The panel's lines; `proof` None before the first proving."""
    if proof is None:
        return [
            Line(
                (" Nothing proven yet. ", "dim"),
                ("c", "primary"),
                (" tries both endpoints: name, connection, TLS,", "dim"),
            ),
            Line((" a signed request, the listing, 16 samples; then what this key may do with", "dim")),
            Line((" checkpoints.", "dim")),
        ]
    lines = _Prover(profile, proof, glyphs, width).lines()
    problems = problem_lines(proof, glyphs, width)
    room = height - len(lines)
    if len(problems) > room > 0:
        problems = [*problems[: room - 1], Line((" The rest: press ", "dim"), ("d", "primary"), (".", "dim"))]
    return lines + problems


def unusable(state: ConsoleState, glyphs: Glyphs, width: int) -> list[Line]:
    """The panel's lines while there is no bucket to work on: what is missing and what helps."""
    if isinstance(state, NoCredentials):
        keys = (
            ("k", "enters an AccessKey, or takes over another tool's"),
            ("c", "tries both endpoints as far as that goes without a key"),
            ("r", "looks for credentials again"),
        )
        lines = [Line((" There are no credentials yet.", "warn"))]
        lines += [Line((f"   {key}  ", "primary"), (words, "text")) for key, words in keys]
        looked = [Line((f"   {shorten(safe(source), width - 4, glyphs.ellipsis)}", "dim")) for source in state.looked]
        return [*lines, Line((" Looked in", "dim")), *looked]
    if isinstance(state, Failed):
        again = Line((" r", "primary"), (" reads the settings and the credentials again.", "text"))
        if state.profile is None:
            return [again]
        return [again, Line((" c", "primary"), (" tries both endpoints.", "text"))]
    return notice(state, glyphs, width)


class _Prover:
    def __init__(self, profile: Profile, proof: Proof, glyphs: Glyphs, width: int) -> None:
        self._profile = profile
        self._proof = proof
        self._glyphs = glyphs
        self._width = width
        self._cell = (width - LABEL) // 2

    def lines(self) -> list[Line]:
        rows: list[tuple[str, Callable[[EndpointKind], Line]]] = [
            ("", lambda kind: Line((self._glyphs.named(kind), str(kind)))),
            ("connect ms", self._connect),
            ("signed HEAD", lambda kind: self._stage(kind, ProbeStage.SIGNED)),
            ("list", lambda kind: self._stage(kind, ProbeStage.LIST)),
            ("read p50 ms", lambda kind: self._figure(kind, lambda found: milliseconds(found.p50_ms / 1000))),
            ("read p95 ms", lambda kind: self._figure(kind, lambda found: milliseconds(found.p95_ms / 1000))),
            ("read MB/s", lambda kind: self._figure(kind, lambda found: rate(found.mb_per_s))),
        ]
        shown = [self._row(label, [cell(kind) for kind in EndpointKind]) for label, cell in rows]
        return [*shown, self._permissions()]

    def _row(self, label: str, cells: list[Line]) -> Line:
        line = Line((f" {label}", "dim")).to(LABEL)
        for number, cell in enumerate(cells, start=1):
            line.extend(cell).to(LABEL + number * self._cell)
        return line

    def _connect(self, kind: EndpointKind) -> Line:
        line = Line()
        if self._profile.endpoint(kind) is None:
            return line.add("none in this profile", "dim")
        for stage in stages(self._profile, kind):
            if stage in _CONNECT:
                line.extend(self._mark(self._proof.step(kind, stage))).add(f"{stage} ", "dim")
                step = self._proof.step(kind, stage)
                if step is not None and step.status is StepStatus.OK:
                    line.add(f"{milliseconds(step.seconds)} ")
        return line

    def _stage(self, kind: EndpointKind, stage: ProbeStage) -> Line:
        step = self._proof.step(kind, stage)
        line = self._mark(step)
        if step is None or step.status in {StepStatus.RUNNING, StepStatus.SKIPPED}:
            return line
        words = step.detail if step.status is StepStatus.OK else step.code or "see below"
        line.add(f"{milliseconds(step.seconds)} ms ")
        return line.add(shorten(safe(words), max(0, self._cell - line.width - 1), self._glyphs.ellipsis), "dim")

    def _figure(self, kind: EndpointKind, value: Callable[[Figures], str]) -> Line:
        step = self._proof.step(kind, ProbeStage.READ)
        line = self._mark(step)
        if step is None or step.figures is None:
            return line
        line.add(value(step.figures), "strong")
        again = self._proof.step(kind, ProbeStage.REREAD)
        if again is not None and again.figures is not None:
            line.add(", read again ", "dim").add(value(again.figures), str(kind))
        return line

    def _permissions(self) -> Line:
        line = Line((" may", "dim")).to(LABEL)
        for stage in PERMISSION_STAGES:
            line.extend(self._mark(self._proof.step(None, stage))).add(f"{stage}  ", "dim")
        return line

    def _mark(self, step: ProbeStep | None) -> Line:
        glyphs = self._glyphs
        if step is None:
            return Line((f"{glyphs.waiting} ", "dim"))
        if step.status is StepStatus.RUNNING:
            return Line((f"{glyphs.running} ", "primary"))
        if step.status is StepStatus.SKIPPED:
            return Line(("- ", "dim"))
        mark = {StepStatus.OK: glyphs.done, StepStatus.WARN: "!", StepStatus.FAIL: glyphs.failed}[step.status]
        return Line((f"{mark} ", _STYLES[step.status]))


def problem_lines(proof: Proof, glyphs: Glyphs, width: int) -> list[Line]:
    """What failed, then what to know, each with its remedy."""
    lines = _wrapped(proof.problem, "bad", width) if proof.problem else []
    for step in proof.problems:
        where = f"{step.kind} {step.stage}" if step.kind else f"permission to {step.stage}"
        lines += _wrapped(f"{where}: {step.detail}", _STYLES[step.status], width)
        if step.remedy:
            lines += _wrapped(f"{glyphs.prompt} {step.remedy}", "text", width)
    return lines


def _wrapped(text: str, style: str, width: int) -> list[Line]:
    return [Line((f" {part}", style)) for part in wrap(safe(text), width - 2)]


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
