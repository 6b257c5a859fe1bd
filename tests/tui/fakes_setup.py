"""Services whose bucket can be set up; a test of the bucket is a script of steps, without a thread or a clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ossconsole.config.credentials import Credentials
from ossconsole.config.endpoints import EndpointKind, classify
from ossconsole.config.errors import ConsoleError
from ossconsole.config.metadata import Instance, MetadataError
from ossconsole.config.profiles import Profile
from ossconsole.storage.accelerator import AcceleratedPath, Accelerator
from ossconsole.storage.probe.report import (
    PERMISSION_STAGES,
    EndpointReport,
    Figures,
    OnStep,
    ProbeReport,
    ProbeStage,
    ProbeStep,
    StepStatus,
    stages,
)
from ossconsole.tui.console import AcceleratorState, Setting
from tests.tui.fakes import REAL, START, FakeServices, may_block

STANDARD, ACCELERATED = EndpointKind.STANDARD, EndpointKind.ACCELERATED
REQUEST_ID = "5C3D9175B6FC201293AD0A1B"
ACCELERATOR = Accelerator(
    name="imagenet-train_data-acc",
    zone="cn-hangzhou-j",
    quota_gb=500,
    paths=(AcceleratedPath("dataset/imagenet/"),),
    created=START - 86400,
)
_SECONDS = {
    ProbeStage.DNS: 0.001,
    ProbeStage.TCP: 0.002,
    ProbeStage.TLS: 0.009,
    ProbeStage.SIGNED: 0.021,
    ProbeStage.LIST: 0.038,
}
_DETAILS = {ProbeStage.SIGNED: "manifest there", ProbeStage.LIST: "1000+ objects"}
_READS = {
    (STANDARD, ProbeStage.READ): Figures(16, 9_633_792, 35.2, 61.8, 16.6),
    (ACCELERATED, ProbeStage.READ): Figures(16, 9_633_792, 36.9, 64.0, 15.9),
    (ACCELERATED, ProbeStage.REREAD): Figures(16, 9_633_792, 4.1, 6.3, 141.0),
}


def good(kind: EndpointKind | None, stage: ProbeStage) -> ProbeStep:
    figures = _READS.get((kind, stage)) if kind else None
    return ProbeStep(
        kind=kind,
        stage=stage,
        status=StepStatus.OK,
        detail="allowed" if kind is None else str(figures or _DETAILS.get(stage, "")),
        seconds=_SECONDS.get(stage, 0.5),
        figures=figures,
    )


def all_good(profile: Profile = REAL) -> list[ProbeStep]:
    found = [good(kind, stage) for kind in profile.endpoints for stage in stages(profile, kind)]
    return found + [good(None, stage) for stage in PERMISSION_STAGES]


def half_way(profile: Profile = REAL) -> list[ProbeStep]:
    """Standard lists, accelerated connects."""
    running = [
        ProbeStep(kind=STANDARD, stage=ProbeStage.LIST, status=StepStatus.RUNNING),
        ProbeStep(kind=ACCELERATED, stage=ProbeStage.TLS, status=StepStatus.RUNNING),
    ]
    standard = [good(STANDARD, stage) for stage in (ProbeStage.DNS, ProbeStage.TCP, ProbeStage.TLS, ProbeStage.SIGNED)]
    return [*standard, *(good(ACCELERATED, stage) for stage in (ProbeStage.DNS, ProbeStage.TCP)), *running]


def accelerated_unreachable(profile: Profile = REAL) -> list[ProbeStep]:
    """The accelerated endpoint has no way in, and the key may not delete."""
    dead = ProbeStep(
        kind=ACCELERATED,
        stage=ProbeStage.TCP,
        status=StepStatus.FAIL,
        detail="imagenet-train.cn-hangzhou-internal.oss-data-acc.aliyuncs.com (100.118.28.50) port 443: no answer. "
        "This endpoint answers only inside the internal network of cn-hangzhou.",
        remedy="Run on an instance in cn-hangzhou, and create an accelerator for the bucket if it has none.",
        seconds=2.5,
    )
    skipped = [
        ProbeStep(kind=ACCELERATED, stage=stage, status=StepStatus.SKIPPED)
        for stage in (ProbeStage.TLS, ProbeStage.SIGNED, ProbeStage.LIST, ProbeStage.READ, ProbeStage.REREAD)
    ]
    denied = ProbeStep(
        kind=None,
        stage=ProbeStage.DELETE,
        status=StepStatus.FAIL,
        detail="AccessDenied while deleting oss://imagenet-train/checkpoints/.ossconsole-probe "
        f"(HTTP 403, request id {REQUEST_ID}).",
        remedy="Allow it in RAM; it is needed for writing checkpoints (oss:DeleteObject).",
        code="AccessDenied",
        request_id=REQUEST_ID,
    )
    standard = [good(STANDARD, stage) for stage in stages(profile, STANDARD)]
    allowed = [good(None, stage) for stage in PERMISSION_STAGES if stage is not ProbeStage.DELETE]
    return [*standard, good(ACCELERATED, ProbeStage.DNS), dead, *skipped, denied, *allowed]


def no_bucket(profile: Profile = REAL) -> list[ProbeStep]:
    return [
        *(good(STANDARD, stage) for stage in (ProbeStage.DNS, ProbeStage.TCP, ProbeStage.TLS)),
        ProbeStep(
            kind=STANDARD,
            stage=ProbeStage.SIGNED,
            status=StepStatus.FAIL,
            detail=f"NoSuchBucket: The specified bucket does not exist (HTTP 404, request id {REQUEST_ID}).",
            remedy="Check the bucket's name and region.",
            code="NoSuchBucket",
            request_id=REQUEST_ID,
        ),
    ]


@dataclass
class FakeBucketSetup:
    """Tells `steps`; with `hold` it never comes to an end. What it was asked to change is in `asked`."""

    profile: Profile = REAL
    steps: Sequence[ProbeStep] = ()
    error: ConsoleError | None = None
    refusal: ConsoleError | None = None
    state: AcceleratorState = field(
        default_factory=lambda: AcceleratorState(ACCELERATOR, ("It is billed by the hour.",))
    )
    place: Instance | None = field(
        default_factory=lambda: Instance("cn-hangzhou", "cn-hangzhou-j", "ecs.gn6i-c4g1.xlarge")
    )
    asked: list[object] = field(default_factory=list)

    def probe(self, on_step: OnStep) -> ProbeReport:
        may_block()
        if self.error is not None:
            raise self.error
        for step in self.steps:
            on_step(step)
        return ProbeReport(
            endpoints={
                kind: EndpointReport(kind=kind, endpoint=url, host=classify(url), steps=tuple(_of(self.steps, kind)))
                for kind, url in self.profile.endpoints.items()
            }
        )

    def instance(self) -> Instance:
        may_block()
        if self.place is None:
            raise MetadataError("No answer.")
        return self.place

    def accelerator(self) -> AcceleratorState:
        may_block()
        if self.refusal is not None:
            raise self.refusal
        return self.state

    def save_accelerator(self, wanted: Accelerator, present: Accelerator | None) -> None:
        may_block()
        assert present == self.state.accelerator
        self.asked.append(wanted)
        self.state = AcceleratorState(wanted)

    def delete_accelerator(self, zone: str) -> None:
        may_block()
        self.asked.append(f"delete {zone}")
        self.state = AcceleratorState(None)

    def create_bucket(self) -> None:
        may_block()
        self.asked.append("bucket")


@dataclass
class SetupServices(FakeServices):
    """Services over a FakeBucketSetup."""

    profile: Profile | None = REAL
    setup: FakeBucketSetup = field(default_factory=FakeBucketSetup)
    used: list[str] = field(default_factory=list)
    reloads: int = 0
    busy: ConsoleError | None = None
    pair: Credentials | None = None

    def credentials(self) -> Credentials:
        may_block()
        return self.pair or super().credentials()

    def settings(self) -> list[Setting]:
        profile = self.profile or REAL
        origins = {"bucket": "flag --bucket", "region": "environment OSS_REGION"}
        names = ("bucket", "region", "standard_endpoint", "accelerated_endpoint", "dataset_prefix", "checkpoint_prefix")
        return [
            Setting("profile", profile.name, ""),
            *(
                Setting(name, str(getattr(profile, name) or ""), origins.get(name, f"profile {profile.name}"))
                for name in names
            ),
        ]

    def use_profile(self, name: str) -> None:
        may_block()
        if self.busy is not None:
            raise self.busy
        self.used.append(name)

    def reload(self) -> None:
        may_block()
        self.reloads += 1

    def bucket_setup(self) -> FakeBucketSetup:
        return self.setup


def _of(steps: Iterable[ProbeStep], kind: EndpointKind) -> list[ProbeStep]:
    return [step for step in steps if step.kind is kind]
