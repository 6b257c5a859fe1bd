"""Profile: one named set of region, bucket, prefixes and endpoints."""

from __future__ import annotations

import msgspec

from ossconsole.config.endpoints import EndpointKind

DEFAULT_DATASET_PREFIX = "dataset/imagenet/ILSVRC/Data"
DEFAULT_CHECKPOINT_PREFIX = "checkpoints"


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job needs to know about one bucket. Endpoints are normalised (`scheme://host[:port]`).

    Prefixes carry no slash at either end. `accelerated_endpoint` is None where the bucket has no accelerator.
    """

    name: str
    region: str
    bucket: str
    standard_endpoint: str
    accelerated_endpoint: str | None = None
    dataset_prefix: str = DEFAULT_DATASET_PREFIX
    checkpoint_prefix: str = DEFAULT_CHECKPOINT_PREFIX
    simulated: bool = False
    """True for the sandbox: every figure measured through it is shown with the word *simulated*."""

    def endpoint(self, kind: EndpointKind) -> str | None:
        """The URL of the endpoint, or None where the profile has none of this kind."""
        return self.standard_endpoint if kind is EndpointKind.STANDARD else self.accelerated_endpoint

    @property
    def endpoints(self) -> dict[EndpointKind, str]:
        """The endpoints this profile has, standard first."""
        found = {kind: self.endpoint(kind) for kind in EndpointKind}
        return {kind: url for kind, url in found.items() if url is not None}
