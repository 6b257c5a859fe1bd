"""The Prove panel: both endpoints side by side, stage by stage, the permissions, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.profile import Profile
from ossconsole.storage.report import stages
from ossconsole.storage.steps import PERMISSION_STAGES, Figures, Stage, Step, StepStatus
from ossconsole.tui.glyphs import Glyphs
from ossconsole.tui.panels.notice import notice
from ossconsole.tui.services import ConsoleState, Failed, NoCredentials
from ossconsole.tui.setup.proof import Proof
from ossconsole.tui.text import Line, milliseconds, rate, safe, shorten, wrap

LABEL = 15
_CONNECT = (Stage.DNS, Stage.TCP, Stage.TLS)
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
            ("signed HEAD", lambda kind: self._stage(kind, Stage.SIGNED)),
            ("list", lambda kind: self._stage(kind, Stage.LIST)),
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

    def _stage(self, kind: EndpointKind, stage: Stage) -> Line:
        step = self._proof.step(kind, stage)
        line = self._mark(step)
        if step is None or step.status in {StepStatus.RUNNING, StepStatus.SKIPPED}:
            return line
        words = step.detail if step.status is StepStatus.OK else step.code or "see below"
        line.add(f"{milliseconds(step.seconds)} ms ")
        return line.add(shorten(safe(words), max(0, self._cell - line.width - 1), self._glyphs.ellipsis), "dim")

    def _figure(self, kind: EndpointKind, value: Callable[[Figures], str]) -> Line:
        step = self._proof.step(kind, Stage.READ)
        line = self._mark(step)
        if step is None or step.figures is None:
            return line
        line.add(value(step.figures), "strong")
        again = self._proof.step(kind, Stage.AGAIN)
        if again is not None and again.figures is not None:
            line.add(", read again ", "dim").add(value(again.figures), str(kind))
        return line

    def _permissions(self) -> Line:
        line = Line((" may", "dim")).to(LABEL)
        for stage in PERMISSION_STAGES:
            line.extend(self._mark(self._proof.step(None, stage))).add(f"{stage}  ", "dim")
        return line

    def _mark(self, step: Step | None) -> Line:
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
