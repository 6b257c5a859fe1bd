"""The report of a probe: per endpoint its steps and measured figures, and the permissions."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable

import msgspec

from ossconsole.config.checks import limited
from ossconsole.config.endpoints import EndpointKind, HostInfo
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.config.text import counted
from ossconsole.storage.errors import StorageError


class Stage(str, enum.Enum):
    """What a step looks at. READ and AGAIN read the same samples, AGAIN right after READ."""

    DNS = "DNS"
    TCP = "TCP"
    TLS = "TLS"
    SIGNED = "signed HEAD"
    LIST = "list"
    READ = "read"
    AGAIN = "read again"
    PUT = "put"
    GET = "get"
    MULTIPART = "multipart"
    DELETE = "delete"

    def __str__(self) -> str:
        return self.value


PERMISSION_STAGES = (Stage.DELETE, Stage.LIST, Stage.PUT, Stage.GET, Stage.MULTIPART)
"""DELETE comes first, on nothing: whether the probe can clean up after itself is known before it writes."""


class StepStatus(str, enum.Enum):
    RUNNING = "running"
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"

    def __str__(self) -> str:
        return self.value


class Figures(msgspec.Struct, frozen=True):
    """Measured over one connection, one sample after the other: bytes read, latency of a whole GET, and rate.

    `mb_per_s` is in 10^6 bytes.
    """

    samples: int
    bytes: int
    p50_ms: float
    p95_ms: float
    mb_per_s: float

    def __str__(self) -> str:
        return (
            f"{counted(self.samples, 'sample')}, p50 {self.p50_ms:.1f} ms, p95 {self.p95_ms:.1f} ms, "
            f"{self.mb_per_s:.1f} MB/s over one connection"
        )


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `kind` is None for the permission steps; `code`, `ec` and `request_id` are OSS's, where it refused.

    `figures` come with the steps that read samples.
    """

    kind: EndpointKind | None
    stage: Stage
    status: StepStatus
    detail: str = ""
    remedy: str = ""
    seconds: float = 0.0
    code: str = ""
    ec: str = ""
    request_id: str = ""
    figures: Figures | None = None


class Caution(msgspec.Struct, frozen=True):
    """What a step gives that did its work and found something to warn of."""

    detail: str
    remedy: str = ""


Found = str | Caution | Figures
OnStep = Callable[[Step], None]


def ignore_step(step: Step) -> None:
    """For those who wait for the report."""


class Steps:
    """Runs steps one after the other, within one limit for all, and tells each begin and end to `on_step`."""

    def __init__(self, kind: EndpointKind | None, limit_s: float, on_step: OnStep) -> None:
        self._kind = kind
        self._deadline = time.monotonic() + limit_s
        self._on_step = on_step
        self.done: list[Step] = []

    def run(self, stage: Stage, limit_s: float, work: Callable[[], Found]) -> bool:
        """Runs one step; whether it came through, be it with a warning."""
        self._on_step(Step(kind=self._kind, stage=stage, status=StepStatus.RUNNING))
        began = time.monotonic()
        try:
            found = limited(min(limit_s, self._deadline - began), work, str(stage))
        except ConsoleError as error:
            self._end(stage, StepStatus.FAIL, Caution(error.message, error.remedy), began, error)
            return False
        status = StepStatus.WARN if isinstance(found, Caution) else StepStatus.OK
        self._end(stage, status, found, began)
        return True

    def skip(self, stage: Stage, why: str) -> None:
        self._end(stage, StepStatus.SKIPPED, why)

    def warn(self, stage: Stage, detail: str, remedy: str) -> None:
        self._end(stage, StepStatus.WARN, Caution(detail, remedy))

    def _end(
        self, stage: Stage, status: StepStatus, found: Found, began: float = 0.0, error: ConsoleError | None = None
    ) -> None:
        refused = error if isinstance(error, StorageError) else None
        step = Step(
            kind=self._kind,
            stage=stage,
            status=status,
            detail=found.detail if isinstance(found, Caution) else str(found),
            remedy=found.remedy if isinstance(found, Caution) else "",
            seconds=time.monotonic() - began if began else 0.0,
            code=refused.code if refused else "",
            ec=refused.ec if refused else "",
            request_id=refused.request_id if refused else "",
            figures=found if isinstance(found, Figures) else None,
        )
        self.done.append(step)
        self._on_step(step)


class EndpointReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the probe found at one endpoint.

    `skew_s` is this machine's clock minus OSS's (resolution 1 s), None where OSS did not answer.
    """

    kind: EndpointKind
    endpoint: str
    host: HostInfo
    steps: tuple[Step, ...]
    skew_s: float | None = None

    def figures(self, stage: Stage) -> Figures | None:
        """Those of READ, or of AGAIN: the same samples once more, at the accelerated endpoint only."""
        return next((step.figures for step in self.steps if step.stage is stage), None)

    @property
    def failed(self) -> Step | None:
        """The step that ended the probe, None when all went through."""
        return next((step for step in self.steps if step.status is StepStatus.FAIL), None)


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Both endpoints, and the permission steps (empty where they were not tried)."""

    endpoints: dict[EndpointKind, EndpointReport]
    permissions: tuple[Step, ...] = ()


def stages(profile: Profile, kind: EndpointKind) -> tuple[Stage, ...]:
    """The stages that the probe of this endpoint goes through, in order."""
    tls = (Stage.TLS,) if (profile.endpoint(kind) or "").startswith("https:") else ()
    again = (Stage.AGAIN,) if kind is EndpointKind.ACCELERATED else ()
    return (Stage.DNS, Stage.TCP, *tls, Stage.SIGNED, Stage.LIST, Stage.READ, *again)
