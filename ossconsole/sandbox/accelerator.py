"""The accelerator's configuration of a bucket: zone, quota and the paths it caches."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

import msgspec

from ossconsole.sandbox import replies as xml
from ossconsole.sandbox import request as requestxml
from ossconsole.sandbox.replies import OssError

WRITE_BACK = "write-back"
SYNC_WARMUP = "sync-warmup"
_MIN_QUOTA_GB, _MAX_QUOTA_GB = 50, 204_800
_MAX_PATHS = 10
# The service lets the quota be changed once an hour.
_FREEZE_S = 3600


class AcceleratedPath(msgspec.Struct, frozen=True):
    """A prefix and how it is cached: on read (`write-back`), or on write too (`sync-warmup`)."""

    name: str
    policy: str


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """Without `paths` the `default_policy` covers the whole bucket. Times are Unix seconds."""

    zone: str
    quota_gb: int
    default_policy: str | None
    paths: tuple[AcceleratedPath, ...]
    created: float
    frozen_until: float = 0.0

    def policy(self, key: str) -> str | None:
        """How an object is cached; None when it is not."""
        if not self.paths:
            return self.default_policy
        return next((path.policy for path in self.paths if key.startswith(path.name)), None)

    def document(self, bucket: str) -> bytes:
        """The reply to GET. The spelling of BasicInfomation is the service's own."""
        paths = [
            xml.parent("Path", [xml.element("Name", path.name), xml.element("CachePolicy", path.policy)])
            for path in self.paths
        ]
        if not paths and self.default_policy:
            paths = [xml.element("DefaultCachePolicy", self.default_policy)]
        basic = [
            xml.element("Quota", self.quota_gb),
            xml.element("AvailableZone", self.zone),
            xml.parent("AcceleratePaths", paths),
            xml.element("CreationDate", int(self.created * 1000)),
            xml.element("QuotaFrozenUntil", int(self.frozen_until * 1000)),
        ]
        fields = [xml.element("Name", f"{bucket}_data-acc"), xml.element("BucketName", bucket)]
        return xml.document("DataAccelerator", [*fields, xml.parent("BasicInfomation", basic)])


def whole_bucket(region: str, now: float) -> Accelerator:
    """What a sandbox's bucket starts with: everything is cached on first read."""
    return Accelerator(zone=f"{region}-a", quota_gb=_MIN_QUOTA_GB, default_policy=WRITE_BACK, paths=(), created=now)


def configured(body: bytes, before: Accelerator | None, region: str, now: float) -> Accelerator:
    """The accelerator that a PUT asks for. Raises the service's documented errors."""
    root = requestxml.parse(body, "DataAcceleratorConfiguration")
    zone = requestxml.child_text(root, "AvailableZone")
    if not zone.startswith(region):
        raise OssError("DataAcceleratorAvailableZoneNotSupported", fields={"AvailableZone": zone})
    quota = requestxml.child_text(root, "Quota")
    if not quota.isdecimal() or not _MIN_QUOTA_GB <= int(quota) <= _MAX_QUOTA_GB:
        raise OssError("InvalidQuota", fields={"Quota": quota})
    resized = before is not None and before.quota_gb != int(quota)
    if before is not None and resized and now < before.frozen_until:
        raise OssError("DataAcceleratorQuotaFrozen")
    default, paths = None, tuple[AcceleratedPath, ...]()
    for node in requestxml.children(root, "AcceleratePaths"):
        default = requestxml.child_text(node, "DefaultCachePolicy", "") or None
        paths = tuple(_paths(requestxml.children(node, "Path")))
    if len(paths) > _MAX_PATHS:
        raise OssError("TooManyAccelerationPolicyPaths")
    for policy in (default, *(path.policy for path in paths)):
        if policy not in (None, WRITE_BACK, SYNC_WARMUP):
            raise OssError("InvalidCachePathPolicy", fields={"CachePolicy": policy or ""})
    return Accelerator(
        zone=zone,
        quota_gb=int(quota),
        default_policy=default if paths else default or WRITE_BACK,
        paths=paths,
        created=before.created if before else now,
        frozen_until=now + _FREEZE_S if resized or before is None else before.frozen_until,
    )


def _paths(nodes: Iterator[Element]) -> Iterator[AcceleratedPath]:
    for node in nodes:
        yield AcceleratedPath(
            requestxml.child_text(node, "Name").lstrip("/"), requestxml.child_text(node, "CachePolicy")
        )
