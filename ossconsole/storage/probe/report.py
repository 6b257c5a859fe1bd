"""The report of a probe (steps, measured figures, permissions) and the checks of `doctor` and Setup made from it."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.checks import Check, fail, limited, ok, warn
from ossconsole.config.endpoints import EndpointKind, HostInfo
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.config.text import counted
from ossconsole.storage.accelerator import accelerator_warnings, missing_text, other_accelerators, read_accelerator
from ossconsole.storage.errors import StorageError

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore


class ProbeStage(str, enum.Enum):
    """What a step tests. READ and REREAD read the same samples, REREAD right after READ."""

    DNS = "DNS"
    TCP = "TCP"
    TLS = "TLS"
    SIGNED = "authentication"
    LIST = "list"
    READ = "read"
    REREAD = "read again"
    PUT = "put"
    GET = "get"
    MULTIPART = "multipart"
    DELETE = "delete"

    def __str__(self) -> str:
        return self.value


NO_CREDENTIALS = "no credentials"

PERMISSION_STAGES = (ProbeStage.DELETE, ProbeStage.LIST, ProbeStage.PUT, ProbeStage.GET, ProbeStage.MULTIPART)
"""DELETE comes first, on nothing: whether the probe can clean up after itself is known before it writes."""


class StepStatus(str, enum.Enum):
    """The state or result of a step."""

    RUNNING = "running"
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"

    def __str__(self) -> str:
        return self.value


class Figures(msgspec.Struct, frozen=True):
    """Measured over one connection, one sample at a time: bytes, latency of a whole GET, and rate (10^6 bytes/s)."""

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


class ProbeStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `kind` is None for the permission steps; `code`, `ec` and `request_id` are OSS's, if it refused.

    Only the steps that read samples have `figures`.
    """

    kind: EndpointKind | None
    stage: ProbeStage
    status: StepStatus
    detail: str = ""
    remedy: str = ""
    seconds: float = 0.0
    code: str = ""
    ec: str = ""
    request_id: str = ""
    figures: Figures | None = None

    @property
    def passed(self) -> bool:
        """Whether it succeeded, also with a warning."""
        return self.status in {StepStatus.OK, StepStatus.WARN}


class ProbeWarning(msgspec.Struct, frozen=True):
    """The result of a step that succeeded and found something to warn about."""

    detail: str
    remedy: str = ""


ProbeResult = str | ProbeWarning | Figures
OnStep = Callable[[ProbeStep], None]


def ignore_step(step: ProbeStep) -> None:
    """For callers that only need the report."""


class StepRunner:
    """Runs steps one after the other within a common time limit; `on_step` is called as each begins and ends."""

    def __init__(self, kind: EndpointKind | None, limit_s: float, on_step: OnStep) -> None:
        self._kind = kind
        self._deadline = time.monotonic() + limit_s
        self._on_step = on_step
        self.done: list[ProbeStep] = []

    def run(self, stage: ProbeStage, limit_s: float, work: Callable[[], ProbeResult]) -> bool:
        """Runs one step; True when it succeeded, also with a warning."""
        self._on_step(ProbeStep(kind=self._kind, stage=stage, status=StepStatus.RUNNING))
        began = time.monotonic()
        try:
            found = limited(min(limit_s, self._deadline - began), work, str(stage))
        except ConsoleError as error:
            self._end(stage, StepStatus.FAIL, ProbeWarning(error.message, error.remedy), began, error)
            return False
        status = StepStatus.WARN if isinstance(found, ProbeWarning) else StepStatus.OK
        self._end(stage, status, found, began)
        return True

    def skip(self, stage: ProbeStage, why: str) -> None:
        """Records a step that was not run."""
        self._end(stage, StepStatus.SKIPPED, why)

    def warn(self, stage: ProbeStage, detail: str, remedy: str) -> None:
        """Records a warning."""
        self._end(stage, StepStatus.WARN, ProbeWarning(detail, remedy))

    def _end(
        self,
        stage: ProbeStage,
        status: StepStatus,
        result: ProbeResult,
        began: float = 0.0,
        error: ConsoleError | None = None,
    ) -> None:
        refused = error if isinstance(error, StorageError) else None
        step = ProbeStep(
            kind=self._kind,
            stage=stage,
            status=status,
            detail=result.detail if isinstance(result, ProbeWarning) else str(result),
            remedy=result.remedy if isinstance(result, ProbeWarning) else "",
            seconds=time.monotonic() - began if began else 0.0,
            code=refused.code if refused else "",
            ec=refused.ec if refused else "",
            request_id=refused.request_id if refused else "",
            figures=result if isinstance(result, Figures) else None,
        )
        self.done.append(step)
        self._on_step(step)


class EndpointReport(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one endpoint.

    `skew_s` is this machine's clock minus OSS's (resolution 1 s), None where OSS did not answer.
    """

    kind: EndpointKind
    endpoint: str
    host: HostInfo
    steps: tuple[ProbeStep, ...]
    skew_s: float | None = None
    proxy: str = ""
    """Whether its requests take a proxy; "" where the environment names none."""

    def figures(self, stage: ProbeStage) -> Figures | None:
        """Those of READ, or of REREAD (the same samples again, accelerated endpoint only); None without them."""
        return next((step.figures for step in self.steps if step.stage is stage), None)

    @property
    def accepted(self) -> bool:
        """Whether OSS accepted a signed request."""
        return any(step.stage is ProbeStage.SIGNED and step.passed for step in self.steps)

    @property
    def failed(self) -> ProbeStep | None:
        """The step that ended the probe; None when all succeeded."""
        return next((step for step in self.steps if step.status is StepStatus.FAIL), None)


class ProbeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Both endpoints, and the permission steps (empty where they were not tested)."""

    endpoints: dict[EndpointKind, EndpointReport]
    permissions: tuple[ProbeStep, ...] = ()


def stages(profile: Profile, kind: EndpointKind) -> tuple[ProbeStage, ...]:
    """The stages of this endpoint's probe, in order."""
    tls = (ProbeStage.TLS,) if (profile.endpoint(kind) or "").startswith("https:") else ()
    again = (ProbeStage.REREAD,) if kind is EndpointKind.ACCELERATED else ()
    return (ProbeStage.DNS, ProbeStage.TCP, *tls, ProbeStage.SIGNED, ProbeStage.LIST, ProbeStage.READ, *again)


MAX_SKEW_S = 900
"""OSS refuses requests signed further from its own clock than this."""
_SKEW_WARNING_S = 60

CLOCK, CREDENTIALS, REGION, BUCKET, PERMISSIONS = "clock", "credentials accepted", "region", "bucket", "permissions"
_CAUSES = {
    "SignatureDoesNotMatch": CREDENTIALS,
    "InvalidAccessKeyId": CREDENTIALS,
    "InvalidSecurityToken": CREDENTIALS,
    "SecurityTokenExpired": CREDENTIALS,
    "RequestTimeTooSkewed": CLOCK,
    "NoSuchBucket": BUCKET,
    "AccessDenied": PERMISSIONS,
}
# EC of InvalidArgument for a request signed for another region than the bucket's, and of AccessDenied for one sent to
# the endpoint of another region.
_WRONG_REGION_ECS = {"0002-00000226", "0002-00000228", "0003-00001403"}


def _endpoint_name(kind: EndpointKind) -> str:
    return f"endpoint {kind}"


def probe_checks(profile: Profile, report: ProbeReport) -> list[Check]:
    """One check per endpoint and per cause; a cause that could not be tested is a warning that says why."""
    found = [_endpoint_check(endpoint, profile.simulated) for endpoint in report.endpoints.values()]
    refusals = {_cause(step): step for endpoint in report.endpoints.values() if (step := endpoint.failed)}
    accepted = any(endpoint.accepted for endpoint in report.endpoints.values())
    found.append(_clock_check(report, refusals.get(CLOCK)))
    for name, detail in (
        (CREDENTIALS, "Signature accepted."),
        (REGION, f"Requests are signed for {profile.region}."),
        (BUCKET, f"{profile.bucket} exists."),
    ):
        if name in refusals:
            found.append(fail(name, refusals[name].detail, refusals[name].remedy))
        else:
            found.append(ok(name, detail) if accepted else warn(name, "Unknown: no request was accepted."))
    found.append(_permissions_check(report, refusals.get(PERMISSIONS)))
    return found


def endpoint_checks(profile: Profile, report: ProbeReport) -> list[Check]:
    """One check per endpoint, of a probe without credentials."""
    return [_endpoint_check(endpoint, profile.simulated) for endpoint in report.endpoints.values()]


def accelerator_check(store: ObjectStore, dataset_bytes: int | None = None) -> Check:
    """The accelerator's state and problems; `store` must use the accelerated endpoint."""
    name = "accelerator"
    try:
        found = read_accelerator(store)
    except ConsoleError as error:
        if isinstance(error, StorageError) and error.code == "AccessDenied":
            return ok(name, f"This key may not read its state ({_oss(error.code, error.ec, error.request_id)}).")
        return warn(name, error.message, error.remedy)
    if found is None:
        return warn(name, *missing_text(store, other_accelerators(store, "")))
    elsewhere = ", ".join(f"{other.quota_gb:,} GB in {other.zone}" for other in other_accelerators(store, found.zone))
    state = f"{found.name} in {found.zone}, {found.quota_gb:,} GB, caches {found.cached_text}."
    if elsewhere:
        state = f"{state} Billed as well: {elsewhere}."
    *serious, billing = accelerator_warnings(found, store.profile.dataset_prefix, dataset_bytes)
    if serious:
        return warn(name, " ".join((*serious, state)), "Change its paths or size on the Setup screen.")
    return ok(name, f"{state} {billing}")


def _endpoint_check(report: EndpointReport, simulated: bool) -> Check:
    name = _endpoint_name(report.kind)
    failed = report.failed
    proxy = f", {report.proxy}" if report.proxy else ""
    if failed is not None and _cause(failed) == name:
        named = "" if report.proxy and report.proxy.lower() in failed.detail.lower() else proxy
        return fail(name, f"{failed.stage}{named}: {failed.detail}", failed.remedy)
    passed = [f"{step.stage} {1000 * step.seconds:.0f} ms" for step in report.steps if step.passed][:4]
    parts = [f"{report.endpoint} ({report.host.kind}{proxy}): {', '.join(passed)}"]
    unsigned = next((step for step in report.steps if step.detail == NO_CREDENTIALS), None)
    if unsigned is not None:
        parts.append(f"no signed request: {NO_CREDENTIALS}")
    if failed is not None:
        parts.append(f"refused the {failed.stage} with {failed.code}, see {_cause(failed)}")
    for label, stage in (("first reading", ProbeStage.READ), ("second reading", ProbeStage.REREAD)):
        if figures := report.figures(stage):
            parts.append(f"{label}: {figures}{' (simulated)' if simulated else ''}")
    cautious = next(
        (step for step in report.steps if step.status is StepStatus.WARN and step.stage is ProbeStage.SIGNED), None
    )
    if cautious is not None:
        return warn(name, f"{cautious.detail} {'; '.join(parts)}.", cautious.remedy)
    return ok(name, "; ".join(parts) + ".")


def _clock_check(report: ProbeReport, refusal: ProbeStep | None) -> Check:
    skews = [endpoint.skew_s for endpoint in report.endpoints.values() if endpoint.skew_s is not None]
    remedy = "Set the clock: sudo timedatectl set-ntp true"
    if not skews:
        return warn(CLOCK, "Not compared: OSS did not answer.")
    skew = min(skews, key=abs)
    # OSS's times are whole seconds: less than one is no difference.
    detail = (
        f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} OSS" if abs(skew) >= 1 else "with OSS to the second"
    )
    if refusal is not None:
        return fail(
            CLOCK, f"This machine's clock is {detail}; {_oss(refusal.code, refusal.ec, refusal.request_id)}.", remedy
        )
    if abs(skew) >= MAX_SKEW_S:
        return fail(CLOCK, f"This machine's clock is {detail}; OSS refuses more than {MAX_SKEW_S} s.", remedy)
    if abs(skew) >= _SKEW_WARNING_S:
        return warn(CLOCK, f"This machine's clock is {detail}; OSS refuses more than {MAX_SKEW_S} s.", remedy)
    return ok(CLOCK, f"This machine's clock is {detail}.")


def _permissions_check(report: ProbeReport, refusal: ProbeStep | None) -> Check:
    denied = [step for step in report.permissions if step.status is StepStatus.FAIL]
    if refusal is not None:
        denied.insert(0, refusal)
    if denied:
        details = "; ".join(f"{step.stage}: {step.detail}" for step in denied)
        return fail(
            PERMISSIONS, f"Denied: {', '.join(str(step.stage) for step in denied)}. {details}", denied[0].remedy
        )
    left = [step for step in report.permissions if step.status is StepStatus.WARN]
    if left:
        return warn(PERMISSIONS, left[0].detail, left[0].remedy)
    if not report.permissions:
        if report.endpoints[EndpointKind.STANDARD].accepted:
            return ok(PERMISSIONS, "Not tested: the test writes a small object, which --readonly forbids.")
        return warn(PERMISSIONS, "Not tested: no request was accepted by the standard endpoint.")
    tested = ", ".join(str(step.stage) for step in report.permissions)
    return ok(PERMISSIONS, f"Allowed below the checkpoint prefix: {tested}.")


def _cause(step: ProbeStep) -> str:
    """The check that a failed step belongs to: the endpoint's own unless OSS's code names another cause."""
    if step.ec in _WRONG_REGION_ECS:
        return REGION
    own = _endpoint_name(step.kind) if step.kind else PERMISSIONS
    return _CAUSES.get(step.code, own)


def _oss(code: str, ec: str, request_id: str) -> str:
    return ", ".join(part for part in (code, f"EC {ec}" if ec else "", f"request id {request_id}") if part)
