"""The accelerators of a bucket, one per zone: quota and cached paths, as the PutBucketDataAccelerator pages say.

Strict, so that a client that sends less than the pages require fails here too. UNVERIFIED, because no page says it: the
reply for several zones, the codes for a missing DefaultCachePolicy and for a DELETE without a zone, the largest number
of paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree.ElementTree import Element

import msgspec

from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import child_text, children, parse_xml

WRITE_BACK = "write-back"
SYNC_WARMUP = "sync-warmup"
ZONE_PARAMETER = "x-oss-datalake-cache-available-zone"
_MIN_QUOTA_GB, _MAX_QUOTA_GB = 50, 204_800
_TOO_LARGE_EC = "0024-00000801"
_MAX_PATHS = 10
# The service accepts one change of the quota an hour.
_FREEZE_S = 3600


class CachedPath(msgspec.Struct, frozen=True):
    """A prefix and how it is cached: on read (`write-back`), or on write too (`sync-warmup`)."""

    name: str
    policy: str


class AcceleratorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The accelerator of one zone. Without `paths` the `default_policy` covers the bucket. Times are Unix seconds."""

    zone: str
    quota_gb: int
    default_policy: str
    paths: tuple[CachedPath, ...]
    created: float
    frozen_until: float = 0.0

    def policy(self, key: str) -> str | None:
        """The cache policy of an object; None when it is not cached."""
        if not self.paths:
            return self.default_policy
        return next((path.policy for path in self.paths if key.startswith(path.name)), None)

    def basic_information(self, *, verbose: bool) -> str:
        """The element of the reply to GET, spelled as the service spells it; the paths only with `verbose`."""
        paths = [xml.parent("Path", xml.elements(Name=path.name, CachePolicy=path.policy)) for path in self.paths]
        policies = xml.parent("AcceleratePaths", [*paths, *xml.elements(DefaultCachePolicy=self.default_policy)])
        return xml.parent(
            "BasicInfomation",
            [
                *xml.elements(Quota=self.quota_gb, AvailableZone=self.zone),
                *([policies] if verbose else []),
                *xml.elements(CreationDate=int(self.created * 1000), QuotaFrozenUntil=int(self.frozen_until * 1000)),
            ],
        )


_decode = msgspec.json.Decoder(tuple[AcceleratorConfig, ...]).decode


def stored_accelerators(raw: bytes | None) -> tuple[AcceleratorConfig, ...]:
    """The accelerators of a bucket record, by zone."""
    if raw is None:
        return ()
    if raw.startswith(b"{"):  # of an older version: one accelerator, without a default policy where it had paths
        raw = b"[%s]" % raw.replace(b'"default_policy":null', b'"default_policy":"%s"' % WRITE_BACK.encode())
    return _decode(raw)


def encoded_accelerators(accelerators: Iterable[AcceleratorConfig]) -> bytes | None:
    """What `stored_accelerators` reads; None where there are none."""
    ordered = sorted(accelerators, key=lambda accelerator: accelerator.zone)
    return msgspec.json.encode(ordered) if ordered else None


def accelerator_document(bucket: str, accelerators: Iterable[AcceleratorConfig], *, verbose: bool) -> bytes:
    """The reply to GET: one BasicInfomation per zone."""
    fields = xml.elements(Name=f"{bucket}_data-acc", BucketName=bucket)
    zones = [accelerator.basic_information(verbose=verbose) for accelerator in accelerators]
    return xml.document("DataAccelerator", [*fields, *zones])


def default_accelerator(region: str, now: float) -> AcceleratorConfig:
    """The accelerator of a new sandbox: every object is cached on its first read."""
    return AcceleratorConfig(
        zone=f"{region}-a", quota_gb=_MIN_QUOTA_GB, default_policy=WRITE_BACK, paths=(), created=now
    )


def in_zone(bucket: str, accelerators: Iterable[AcceleratorConfig], zone: str | None) -> tuple[AcceleratorConfig, ...]:
    """The bucket's accelerators, with `zone` the one of that zone.

    Raises DataAcceleratorNotFound where the bucket has none at all, NoSuchConfiguration where that zone has none.
    """
    known = tuple(accelerators)
    if not known:
        raise OssError("DataAcceleratorNotFound", fields={"BucketName": bucket})
    found = tuple(accelerator for accelerator in known if zone is None or accelerator.zone == zone)
    if not found:
        raise OssError("NoSuchConfiguration", fields={"BucketName": bucket, "AvailableZone": zone or ""})
    return found


def parse_accelerator(body: bytes, present: Iterable[AcceleratorConfig], region: str, now: float) -> AcceleratorConfig:
    """The accelerator of a PutBucketDataAccelerator body; `present` are the bucket's. Raises the documented errors."""
    root = parse_xml(body, "DataAcceleratorConfiguration")
    zone = child_text(root, "AvailableZone")
    if not re.fullmatch(rf"{re.escape(region)}-?[a-z]", zone):
        raise OssError("DataAcceleratorAvailableZoneNotSupported", fields={"AvailableZone": zone})
    before = next((accelerator for accelerator in present if accelerator.zone == zone), None)
    quota_gb = _quota_gb(child_text(root, "Quota"))
    resized = before is not None and before.quota_gb != quota_gb
    if before is not None and resized and now < before.frozen_until:
        raise OssError("DataAcceleratorQuotaFrozen")
    default, paths = _policies(root)
    return AcceleratorConfig(
        zone=zone,
        quota_gb=quota_gb,
        default_policy=default,
        paths=paths,
        created=before.created if before else now,
        frozen_until=now + _FREEZE_S if resized or before is None else before.frozen_until,
    )


def _quota_gb(text: str) -> int:
    # int() refuses thousands of digits, and takes those of other scripts.
    quota_gb = int(text.lstrip("0")[:10] or 0) if re.fullmatch("[0-9]+", text) else 0
    if quota_gb > _MAX_QUOTA_GB:
        raise OssError("InvalidQuota", ec=_TOO_LARGE_EC, fields={"Quota": text[:40]})
    if quota_gb < _MIN_QUOTA_GB:
        raise OssError("InvalidQuota", fields={"Quota": text[:40]})
    return quota_gb


def _policies(root: Element) -> tuple[str, tuple[CachedPath, ...]]:
    """DefaultCachePolicy, which is required also beside paths, and the paths."""
    nodes = list(children(root, "AcceleratePaths"))
    if len(nodes) != 1:
        raise OssError("MalformedXML", "DataAcceleratorConfiguration needs one AcceleratePaths.")
    default = child_text(nodes[0], "DefaultCachePolicy")
    paths = tuple(
        CachedPath(child_text(path, "Name").lstrip("/"), child_text(path, "CachePolicy"))
        for path in children(nodes[0], "Path")
    )
    if len(paths) > _MAX_PATHS:
        raise OssError("TooManyAccelerationPolicyPaths")
    for policy in (default, *(path.policy for path in paths)):
        if policy not in {WRITE_BACK, SYNC_WARMUP}:
            raise OssError("InvalidCachePathPolicy", fields={"CachePolicy": policy})
    return default, paths
