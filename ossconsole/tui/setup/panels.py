"""The panels of the Setup screen as lines; ProbeState: the progress of one test of the bucket, and its report."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

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
from ossconsole.storage.probe.report import (
    PERMISSION_STAGES,
    Figures,
    ProbeReport,
    ProbeStage,
    ProbeStep,
    StepStatus,
    stages,
)
from ossconsole.tui.console import ConsoleState, NoCredentials, Setting, Unavailable
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.screen import ConsoleModal, notice
from ossconsole.tui.kit.text import Line, duration, milliseconds, rate, safe, shorten, shorten_middle, wrap


class ProbeState:
    """The newest step of each stage. Steps come from any thread; `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._steps: dict[tuple[EndpointKind | None, ProbeStage], ProbeStep] = {}
        self._began = clock()
        self._seconds: float | None = None
        self.problem = ""

    def on_step(self, step: ProbeStep) -> None:
        """Keep a step; called from any thread."""
        with self._lock:
            self._steps[step.kind, step.stage] = step

    def finish(self, report: ProbeReport | None = None, problem: str = "") -> None:
        """End the test; `report` has the final permissions, `problem` says why there is no report."""
        with self._lock:
            for step in report.permissions if report else ():
                self._steps[None, step.stage] = step
            self._seconds = self._clock() - self._began
            self.problem = problem

    @property
    def running(self) -> bool:
        """False once the test has ended."""
        return self._seconds is None

    @property
    def seconds(self) -> float:
        """The duration of the test so far, or in all."""
        return self._clock() - self._began if self._seconds is None else self._seconds

    def step(self, kind: EndpointKind | None, stage: ProbeStage) -> ProbeStep | None:
        """The newest step of a stage; `kind` is None for permissions."""
        with self._lock:
            return self._steps.get((kind, stage))

    @property
    def steps(self) -> list[ProbeStep]:
        """Every stage's newest step, in the order in which the stages began."""
        with self._lock:
            return list(self._steps.values())

    @property
    def problems(self) -> list[ProbeStep]:
        """The failed steps, then those with a warning."""
        steps = self.steps
        return [step for status in (StepStatus.FAIL, StepStatus.WARN) for step in steps if step.status is status]

    def refused_with(self, code: str) -> bool:
        """Whether OSS refused a step with this code."""
        return any(step.code == code for step in self.steps)


class ReportScreen(ConsoleModal):
    """All steps of a test in full; `y` copies the text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d,q", "back", show=False),
        Binding("y", "copy", "Copy", show=False),
    ]

    def __init__(self, probe: ProbeState) -> None:
        super().__init__()
        self._text = "\n".join(_report_lines(step) for step in probe.steps) or safe(probe.problem)

    def compose(self) -> ComposeResult:
        with self.frame("Test report", "y copy · esc close", classes="-full", scroll=True):
            yield Static(self._text, markup=False)

    def on_mount(self) -> None:
        """Focus the text, so that it can be scrolled."""
        self.query_one(VerticalScroll).focus()

    def action_copy(self) -> None:
        """Copy the report to the clipboard."""
        self.app.copy_to_clipboard(self._text)
        self.notify("Copied.", timeout=2)


def _report_lines(step: ProbeStep) -> str:
    where = f"{step.kind or 'permission':<12} {step.stage:<12} {step.status:<8}{milliseconds(step.seconds):>6} ms"
    ids = ", ".join(part for part in (step.code, step.ec, step.request_id) if part)
    lines = [f"{where}  {safe(step.detail)}"]
    lines += [f"{'':13}{label}: {safe(text)}" for label, text in (("OSS", ids), ("remedy", step.remedy)) if text]
    return "\n".join(lines)


LABEL = 15
_EASILY_READ = 68  # cells of a line of text
_CONNECT = (ProbeStage.DNS, ProbeStage.TCP, ProbeStage.TLS)
_STYLES = {StepStatus.OK: "good", StepStatus.WARN: "warn", StepStatus.FAIL: "bad"}


def test_lines(profile: Profile, probe: ProbeState | None, glyphs: Glyphs, width: int, height: int) -> list[Line]:
    """The test panel; `probe` is None before the first test."""
    if probe is None:
        steps = "DNS, TCP, TLS, authentication, listing, 16 sample reads; then this key's permissions for checkpoints."
        return [
            Line((" Not tested yet. Press ", "dim"), ("c", "primary"), (" to test both endpoints:", "dim")),
            *(Line((f" {part}", "dim")) for part in wrap(steps, min(width - 2, _EASILY_READ))),
        ]
    lines = _TestLines(profile, probe, glyphs, width).lines()
    problems = problem_lines(probe, glyphs, width)
    room = height - len(lines)
    if len(problems) > room > 0:
        problems = [*problems[: room - 1], Line((" Press ", "dim"), ("d", "primary"), (" for the full report.", "dim"))]
    return lines + problems


def missing_credentials(profile: Profile | None) -> str:
    """What to press where no source has a key pair. A profile that names another source uses no AccessKey of `k`."""
    if profile is None or profile.reads_key_file:
        return "none; press k to enter an AccessKey"
    return f"none from {profile.credentials}; press e to use another source"


def unusable(state: ConsoleState, glyphs: Glyphs, width: int) -> list[Line]:
    """The test panel while the bucket cannot be used: what is missing, and the keys that help."""
    if isinstance(state, NoCredentials):
        helps = "enter an AccessKey or import one from another tool"
        if state.profile is not None and not state.profile.reads_key_file:
            helps = f"use another source than {state.profile.credentials}: auto uses all"
        keys = (
            (state.key, helps),
            ("c", "test both endpoints, as far as possible without a key"),
            ("r", "search for credentials again"),
        )
        lines = [Line((" No credentials found.", "warn"))]
        lines += [Line((f"   {key}  ", "primary"), (text, "text")) for key, text in keys]
        searched = [
            Line((f"   {shorten(safe(source), width - 4, glyphs.ellipsis)}", "dim")) for source in state.searched
        ]
        return [*lines, Line((" Searched in", "dim")), *searched]
    if isinstance(state, Unavailable):
        reload = Line((" r", "primary"), (" read settings and credentials again", "text"))
        if state.profile is None:
            return [reload]
        return [reload, Line((" c", "primary"), (" test both endpoints", "text"))]
    return notice(state, glyphs, width)


class _TestLines:
    def __init__(self, profile: Profile, probe: ProbeState, glyphs: Glyphs, width: int) -> None:
        self._profile = profile
        self._probe = probe
        self._glyphs = glyphs
        self._cell = (width - LABEL) // 2

    def lines(self) -> list[Line]:
        named = all(self._connect(kind, named=True).width <= self._cell for kind in EndpointKind)
        connect = "connect (ms)" if named else "DNS,TCP,TLS ms"
        rows: list[tuple[str, Callable[[EndpointKind], Line]]] = [
            ("", lambda kind: Line((self._glyphs.named(kind), str(kind)))),
            (connect, lambda kind: self._connect(kind, named=named)),
            ("authenticate", lambda kind: self._stage(kind, ProbeStage.SIGNED)),
            ("list", lambda kind: self._stage(kind, ProbeStage.LIST)),
            ("read p50 ms", lambda kind: self._figure(kind, lambda figures: milliseconds(figures.p50_ms / 1000))),
            ("read p95 ms", lambda kind: self._figure(kind, lambda figures: milliseconds(figures.p95_ms / 1000))),
            ("read MB/s", lambda kind: self._figure(kind, lambda figures: rate(figures.mb_per_s))),
        ]
        shown = [self._row(label, [cell(kind) for kind in EndpointKind]) for label, cell in rows]
        return [*shown, self._permissions()]

    def _row(self, label: str, cells: list[Line]) -> Line:
        line = Line((f" {label}", "dim")).to(LABEL)
        for number, cell in enumerate(cells, start=1):
            line.extend(cell).to(LABEL + number * self._cell)
        return line

    def _connect(self, kind: EndpointKind, *, named: bool) -> Line:
        """The steps of connecting; with `named` each with its name, else the label of the row has the names."""
        line = Line()
        if self._profile.endpoint(kind) is None:
            return line.add("not in this profile", "dim")
        for stage in stages(self._profile, kind):
            if stage in _CONNECT:
                line.extend(self._mark(self._probe.step(kind, stage))).add(f"{stage} " if named else "", "dim")
                step = self._probe.step(kind, stage)
                if step is not None and step.status is StepStatus.OK:
                    line.add(f"{milliseconds(step.seconds)} ")
        return line

    def _stage(self, kind: EndpointKind, stage: ProbeStage) -> Line:
        step = self._probe.step(kind, stage)
        line = self._mark(step)
        if step is None or step.status in {StepStatus.RUNNING, StepStatus.SKIPPED}:
            return line
        text = step.detail if step.status is StepStatus.OK else step.code or "see below"
        line.add(f"{milliseconds(step.seconds)} ms ")
        return line.add(shorten(safe(text), max(0, self._cell - line.width - 1), self._glyphs.ellipsis), "dim")

    def _figure(self, kind: EndpointKind, value: Callable[[Figures], str]) -> Line:
        step = self._probe.step(kind, ProbeStage.READ)
        line = self._mark(step)
        if step is None or step.figures is None:
            return line
        line.add(value(step.figures), "strong")
        repeated = self._probe.step(kind, ProbeStage.REREAD)
        if repeated is not None and repeated.figures is not None:
            second = value(repeated.figures)
            long = ", second read "
            between = long if line.width + len(long) + len(second) < self._cell else ", again "
            line.add(between, "dim").add(second, str(kind))
        return line

    def _permissions(self) -> Line:
        line = Line((" permissions", "dim")).to(LABEL)
        for stage in PERMISSION_STAGES:
            line.extend(self._mark(self._probe.step(None, stage))).add(f"{stage}  ", "dim")
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


def problem_lines(probe: ProbeState, glyphs: Glyphs, width: int) -> list[Line]:
    """Errors, then warnings, each with its remedy."""
    lines = _wrapped(probe.problem, "bad", width) if probe.problem else []
    for step in probe.problems:
        where = f"{step.kind} {step.stage}" if step.kind else f"permission to {step.stage}"
        lines += _wrapped(f"{where}: {step.detail}", _STYLES[step.status], width)
        if step.remedy:
            lines += _wrapped(f"{glyphs.prompt} {step.remedy}", "text", width)
    return lines


def _wrapped(text: str, style: str, width: int) -> list[Line]:
    return [Line((f" {part}", style)) for part in wrap(safe(text), width - 2)]


@dataclass(frozen=True)
class ConnectorState:
    """The configuration file of the connector; `path` is "" before it was read, `problem` says why it is invalid."""

    path: str = ""
    values: ConnectorValues = field(default_factory=dict)
    problem: str = ""


def read_connector() -> ConnectorState:
    """Read the file; without one, the default values that a new file would have."""
    try:
        path = connector_config_path()
        return ConnectorState(short_path(path), load_connector_config(path) or default_connector_values())
    except ConsoleError as error:
        return ConnectorState(problem=str(error))


def connector_lines(state: ConnectorState, glyphs: Glyphs, width: int) -> list[Line]:
    """The path of the file, and the values that differ from the connector's defaults."""
    if state.problem:
        return [Line((f" {part}", "bad")) for part in wrap(safe(state.problem), width - 2)]
    known = state.values
    lines = [row("file", state.path, glyphs, width)]
    changed = [key.name for key in CONNECTOR_KEYS if key.name in known and known[key.name] != key.default]
    lines += [row(name.split(".")[-1], short_path(str(known[name])), glyphs, width) for name in changed]
    return [*lines, Line((" Press ", "dim"), ("o", "primary"), (" to edit it.", "dim"))]


def source_lines(sources: Sequence[tuple[str, str]], missing: Sequence[str], glyphs: Glyphs, width: int) -> list[Line]:
    """The sources of credentials in order of precedence, each with its content; then those without."""
    if not sources and not missing:
        return [Line((f" searching{glyphs.ellipsis}", "dim"))]
    lines = [row(name, found, glyphs, width, label=width // 2) for name, found in sources]
    first, *rest = wrap(safe(", ".join(missing)), width - LABEL - 1)
    if missing:
        lines.append(Line((" nothing in", "dim")).to(LABEL).add(first, "dim"))
        lines += [Line().to(LABEL).add(part, "dim") for part in rest]
    return lines


def row(label_text: str, value: str, glyphs: Glyphs, width: int, *, label: int = LABEL) -> Line:
    """A label and its value, both foreign text, in one line."""
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
_ORIGINS = {*_LABELS, *(name.replace("_", " ") for name in _LABELS)}
_SOON = timedelta(hours=1)


@dataclass(frozen=True)
class CredentialState:
    """The credentials in use, or `problem` why there are none, or neither while they are being read."""

    found: Credentials | None = None
    problem: str = ""


def profile_lines(
    settings: Sequence[Setting], credentials: CredentialState, glyphs: Glyphs, now: float, width: int
) -> list[Line]:
    """A line per setting, with its origin where that differs; then the credentials. `now` in Unix seconds."""
    known = {setting.name.replace(" ", "_"): setting for setting in settings}
    common = common_origin(settings)
    lines = [
        _setting(label, known[name], glyphs, width, common=common) for name, label in _LABELS.items() if name in known
    ]
    return lines + _credential_lines(credentials, glyphs, now, width)


def common_origin(settings: Sequence[Setting]) -> str:
    """The origin of most settings; "" where each has another."""
    found = Counter(setting.origin for setting in settings if setting.value and setting.name in _ORIGINS)
    origin, count = next(iter(found.most_common(1)), ("", 0))
    return safe(origin) if count > 1 else ""


def host_label(info: HostInfo) -> str:
    """The kind of an endpoint, and its zone or region."""
    place = info.zone or info.region
    return f"{info.kind}, {place}" if place else str(info.kind)


def _setting(label: str, setting: Setting, glyphs: Glyphs, width: int, *, common: str) -> Line:
    line = _label(label, glyphs)
    if not setting.value:
        return line.add("none", "dim")
    notes = [safe(setting.origin), safe(setting.origin.partition(" ")[0])] if setting.origin != common else [""]
    if label in {kind.value for kind in EndpointKind}:
        place = host_label(classify(setting.value))
        notes = [f"{place} {glyphs.dot} {notes[0]}", *notes] if notes[0] else [place, ""]
    value = safe(setting.value)
    room = width - LABEL - 3
    note = next((note for note in notes if len(value) + len(note) <= room), notes[-1])
    line.add(shorten_middle(value, room - len(note), glyphs.ellipsis))
    return line.right(Line((f"{note} ", "dim")), width) if note else line


def _label(label: str, glyphs: Glyphs) -> Line:
    kinds = {kind.value: kind for kind in EndpointKind}
    if label in kinds:
        return Line((f" {glyphs.named(kinds[label])}", label)).to(LABEL)
    return Line((f" {label}", "dim")).to(LABEL)


def _credential_lines(credentials: CredentialState, glyphs: Glyphs, now: float, width: int) -> list[Line]:
    line = _label("credentials", glyphs)
    if credentials.problem:
        first, *rest = wrap(safe(credentials.problem), width - LABEL - 1)
        return [line.add(first, "bad"), *(Line().to(LABEL).add(part, "bad") for part in rest)]
    found = credentials.found
    if found is None:
        return [line.add(f"reading{glyphs.ellipsis}", "dim")]
    end = _expiry(found, now)
    line.add(safe(mask_key_id(found.access_key_id)))
    secret = f" {found.access_key_secret} "
    known = safe(found.source)
    line.add(secret if line.width + len(secret) + len(known) + end.width + 2 <= width else "  ", "dim")
    source = shorten_middle(known, width - line.width - end.width - 2, glyphs.ellipsis)
    return [line.add(source).right(end, width)]


def _expiry(credentials: Credentials, now: float) -> Line:
    if credentials.expiration is None:  # a token always ends; some files do not say when
        return Line(("expiry unknown ", "warn") if credentials.security_token else ("no expiry ", "dim"))
    left = credentials.expiration - datetime.fromtimestamp(now, timezone.utc)
    if left <= timedelta(0):
        return Line(("expired ", "bad"))
    return Line((f"expires in {duration(left.total_seconds())} ", "warn" if left < _SOON else "dim"))
