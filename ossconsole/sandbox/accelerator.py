"""The accelerator configuration of a bucket: zone, quota and cached paths."""

from __future__ import annotations

import msgspec

from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import child_text, children, parse_xml

WRITE_BACK = "write-back"
SYNC_WARMUP = "sync-warmup"
_MIN_QUOTA_GB, _MAX_QUOTA_GB = 50, 204_800
_MAX_PATHS = 10
# The service accepts one change of the quota an hour.
_FREEZE_S = 3600


class CachedPath(msgspec.Struct, frozen=True):
    """A prefix and how it is cached: on read (`write-back`), or on write too (`sync-warmup`)."""

    name: str
    policy: str


class AcceleratorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The accelerator of a bucket. Without `paths` the `default_policy` covers it all. Times are Unix seconds."""

    zone: str
    quota_gb: int
    default_policy: str | None
    paths: tuple[CachedPath, ...]
    created: float
    frozen_until: float = 0.0

    def policy(self, key: str) -> str | None:
        """The cache policy of an object; None when it is not cached."""
        if not self.paths:
            return self.default_policy
        return next((path.policy for path in self.paths if key.startswith(path.name)), None)

    def document(self, bucket: str) -> bytes:
        """The reply to GET. The spelling of BasicInfomation is the service's own."""
        paths = [xml.parent("Path", xml.elements(Name=path.name, CachePolicy=path.policy)) for path in self.paths]
        if not paths and self.default_policy:
            paths = xml.elements(DefaultCachePolicy=self.default_policy)
        basic = [
            *xml.elements(Quota=self.quota_gb, AvailableZone=self.zone),
            xml.parent("AcceleratePaths", paths),
            *xml.elements(CreationDate=int(self.created * 1000), QuotaFrozenUntil=int(self.frozen_until * 1000)),
        ]
        fields = xml.elements(Name=f"{bucket}_data-acc", BucketName=bucket)
        return xml.document("DataAccelerator", [*fields, xml.parent("BasicInfomation", basic)])


def default_accelerator(region: str, now: float) -> AcceleratorConfig:
    """The accelerator of a new sandbox: every object is cached on its first read."""
    return AcceleratorConfig(
        zone=f"{region}-a", quota_gb=_MIN_QUOTA_GB, default_policy=WRITE_BACK, paths=(), created=now
    )


def parse_accelerator(body: bytes, before: AcceleratorConfig | None, region: str, now: float) -> AcceleratorConfig:
    """The accelerator of a PutBucketDataAccelerator body. Raises the service's documented errors."""
    root = parse_xml(body, "DataAcceleratorConfiguration")
    zone = child_text(root, "AvailableZone")
    if not zone.startswith(region):
        raise OssError("DataAcceleratorAvailableZoneNotSupported", fields={"AvailableZone": zone})
    quota = child_text(root, "Quota")
    if not quota.isdecimal() or not _MIN_QUOTA_GB <= int(quota) <= _MAX_QUOTA_GB:
        raise OssError("InvalidQuota", fields={"Quota": quota})
    resized = before is not None and before.quota_gb != int(quota)
    if before is not None and resized and now < before.frozen_until:
        raise OssError("DataAcceleratorQuotaFrozen")
    default, paths = None, tuple[CachedPath, ...]()
    for node in children(root, "AcceleratePaths"):
        default = child_text(node, "DefaultCachePolicy", "") or None
        paths = tuple(
            CachedPath(child_text(path, "Name").lstrip("/"), child_text(path, "CachePolicy"))
            for path in children(node, "Path")
        )
    if len(paths) > _MAX_PATHS:
        raise OssError("TooManyAccelerationPolicyPaths")
    for policy in (default, *(path.policy for path in paths)):
        if policy not in (None, WRITE_BACK, SYNC_WARMUP):
            raise OssError("InvalidCachePathPolicy", fields={"CachePolicy": policy or ""})
    return AcceleratorConfig(
        zone=zone,
        quota_gb=int(quota),
        default_policy=default if paths else default or WRITE_BACK,
        paths=paths,
        created=before.created if before else now,
        frozen_until=now + _FREEZE_S if resized or before is None else before.frozen_until,
    )
