"""AcceleratorForm: zone, size and paths of the accelerator that is to be created or changed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ossconsole.config.hosts import classify
from ossconsole.config.profile import FieldError, Profile
from ossconsole.storage.accelerator import (
    LARGEST_GB,
    ON_READ,
    ON_WRITE,
    SMALLEST_GB,
    AcceleratedPath,
    Accelerator,
    cost_estimate,
)
from ossconsole.tui.setup.form import Field, FormScreen, Values

_TUTORIAL_GB = 500
_POLICIES = (("when it is first read", ON_READ), ("as it is written, too", ON_WRITE))


class AcceleratorForm(FormScreen):
    """Returns the Accelerator wanted; what it costs is shown as the size is typed."""

    def __init__(self, profile: Profile, present: Accelerator | None) -> None:
        super().__init__("Change the accelerator" if present else "Create an accelerator", save="Go on")
        self._profile = profile
        self._present = present

    def fields(self) -> Sequence[Field]:
        zone = classify(self._profile.accelerated_endpoint or "").zone
        found = self._present or Accelerator(
            zone=zone, quota_gb=_TUTORIAL_GB, paths=(AcceleratedPath(f"{self._profile.dataset_prefix}/"),)
        )
        policy = found.paths[0].policy if found.paths else found.policy
        sizes = f"{SMALLEST_GB} to {LARGEST_GB:,} GB, changed once an hour at most"
        return [
            Field("zone", "zone", "the zone of the GPU instance, such as cn-hangzhou-j", found.zone),
            Field("quota_gb", "size in GB", sizes, str(found.quota_gb)),
            Field("paths", "paths", "what is cached, separated by commas; empty for the whole bucket", _paths(found)),
            Field("policy", "an object enters", "the cache: on read is enough for training", policy, _POLICIES),
        ]

    def hint(self, field: Field) -> str:
        if field.name != "quota_gb" or not self.value("quota_gb").isdecimal():
            return field.hint
        return f"{field.hint}; {cost_estimate(Accelerator(zone='', quota_gb=int(self.value('quota_gb'))))}"

    def accept(self, values: Values) -> Accelerator:
        quota = values["quota_gb"]
        if not quota.isdecimal() or not SMALLEST_GB <= int(quota) <= LARGEST_GB:
            raise FieldError("quota_gb", f"{quota!r} is no size.", remedy=f"Give {SMALLEST_GB} to {LARGEST_GB:,} GB.")
        if not values["zone"]:
            raise FieldError("zone", "The zone is missing.", remedy="Give one, such as cn-hangzhou-j.")
        paths = tuple(
            AcceleratedPath(path.strip().lstrip("/"), values["policy"])
            for path in values["paths"].split(",")
            if path.strip()
        )
        wanted = Accelerator(zone=values["zone"], quota_gb=int(quota), paths=paths, policy=values["policy"])
        return msgspec.structs.replace(wanted, name=f"{self._profile.bucket}_data-acc")


def _paths(accelerator: Accelerator) -> str:
    return ", ".join(path.prefix for path in accelerator.paths)
