"""What a probe found: per endpoint the steps it went through and the figures measured, and the permissions."""

from __future__ import annotations

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.hosts import HostInfo
from ossconsole.config.profile import Profile
from ossconsole.storage.steps import Figures, Stage, Step, StepStatus


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
