"""The OSS accelerator of a bucket: its state, creating and deleting it, and its estimated cost.

Requests and replies are those of the "PutBucketDataAccelerator" documentation family; oss2 has no call for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

import msgspec
from defusedxml.ElementTree import fromstring

from ossconsole.config.endpoints import EndpointKind
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.storage.errors import StorageError

if TYPE_CHECKING:
    from ossconsole.config.credentials import CredentialSource
    from ossconsole.config.profiles import Profile
    from ossconsole.storage.client import ObjectStore

SMALLEST_GB, LARGEST_GB = 50, 204_800
ON_READ, ON_WRITE = "write-back", "sync-warmup"
"""Cache policies: an object enters the cache when it is first read, or as it is written through the accelerator."""
POLICIES = (ON_READ, ON_WRITE)

CNY_PER_GB_MONTH = 0.7
"""List price in Beijing (item AcceleratorCacheSize); other regions may differ, hence *estimated*."""
_HOURS_PER_MONTH = 720

_QUICK_S = 3.0
_NONE_CODES = {"DataAcceleratorNotFound", "NoSuchConfiguration"}


class AcceleratedPath(msgspec.Struct, frozen=True):
    """A prefix of the bucket that is cached, and when its objects enter the cache."""

    prefix: str
    policy: str = ON_READ


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """`quota_gb` in GB. Empty `paths` mean the whole bucket under `policy`. Times are Unix seconds, 0 for unknown."""

    zone: str
    quota_gb: int
    paths: tuple[AcceleratedPath, ...] = ()
    policy: str = ON_READ
    name: str = ""
    created: float = 0.0

    def covers(self, prefix: str) -> bool:
        """Whether every object below `prefix` is cached."""
        below = f"{prefix.strip('/')}/"
        return not self.paths or any(below.startswith(path.prefix.lstrip("/")) for path in self.paths)

    def covers_part_of(self, prefix: str) -> bool:
        """Whether some of the objects below `prefix` are cached, or all."""
        below = f"{prefix.strip('/')}/"
        return self.covers(prefix) or any(path.prefix.lstrip("/").startswith(below) for path in self.paths)

    @property
    def cny_per_hour(self) -> float:
        """Estimated from CNY_PER_GB_MONTH."""
        return self.quota_gb * CNY_PER_GB_MONTH / _HOURS_PER_MONTH

    @property
    def peak_mb_per_s(self) -> float:
        """Documented peak read bandwidth: 300 MB/s, or 300 MB/s per TB where that is more."""
        return max(300.0, 300.0 * self.quota_gb / 1024)


def cost_estimate(accelerator: Accelerator) -> str:
    """A sentence with the estimated cost and the list price behind it."""
    month = accelerator.quota_gb * CNY_PER_GB_MONTH
    return (
        f"estimated CNY {accelerator.cny_per_hour:.2f} per hour, CNY {month:,.0f} per month, also while idle "
        f"(list price in Beijing, CNY {CNY_PER_GB_MONTH} per GB and month)"
    )


def accelerator_warnings(accelerator: Accelerator, dataset_prefix: str, dataset_bytes: int | None = None) -> list[str]:
    """What to know before training through this accelerator; the last one is its cost. `dataset_bytes` may be None."""
    found = []
    if not accelerator.covers(dataset_prefix):
        paths = ", ".join(path.prefix for path in accelerator.paths)
        share = "only in part" if accelerator.covers_part_of(dataset_prefix) else "not"
        found.append(f"The dataset prefix {dataset_prefix}/ is {share} in the accelerated paths ({paths}).")
    if dataset_bytes is not None and dataset_bytes > accelerator.quota_gb * 1e9:
        found.append(
            f"The dataset ({dataset_bytes / 1e9:,.0f} GB) is larger than the cache ({accelerator.quota_gb} GB): "
            "in random order, samples are often evicted before they are read again."
        )
    found.append(f"It is billed by the hour: {cost_estimate(accelerator)}.")
    return found


def read_accelerator(store: ObjectStore) -> Accelerator | None:
    """The accelerator of the bucket, None when it has none; `store` goes through the accelerated endpoint.

    Raises StorageError.
    """
    try:
        body = _request(store, "reading the accelerator of", "GET")
    except StorageError as error:
        if error.code in _NONE_CODES:
            return None
        raise
    return _parsed(body)


def find_accelerator(profile: Profile, credentials: CredentialSource) -> Accelerator | None:
    """`read_accelerator` in one quick request without retries; None also where the profile has no such endpoint.

    Raises ConsoleError.
    """
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.retry import NO_RETRY

    if profile.endpoint(EndpointKind.ACCELERATED) is None:
        return None
    store = ObjectStore(profile, credentials, EndpointKind.ACCELERATED, timeout_s=_QUICK_S, retry=NO_RETRY, pool_size=1)
    try:
        return read_accelerator(store)
    finally:
        store.close()


def create_accelerator(store: ObjectStore, accelerator: Accelerator) -> None:
    """Creates it, or changes its quota and paths. Raises SettingsError for bad values, StorageError."""
    _request(store, "creating the accelerator of", "PUT", _document(_checked(accelerator)))


def delete_accelerator(store: ObjectStore) -> None:
    """Deletes it with its cache; the bucket keeps its objects. Raises StorageError."""
    _request(store, "deleting the accelerator of", "DELETE")


def _request(store: ObjectStore, action: str, method: str, body: bytes = b"") -> bytes:
    def request() -> bytes:
        # oss2 has no name for this sub-resource; `_do` signs (version 4 covers every parameter) and sends.
        response: Any = store.sdk._do(  # noqa: SLF001
            method, store.profile.bucket, "", params={"dataAccelerator": ""}, data=body
        )
        return bytes(response.read())

    return store.call(f"{action} {store.uri()}", request)


def _checked(accelerator: Accelerator) -> Accelerator:
    if not SMALLEST_GB <= accelerator.quota_gb <= LARGEST_GB:
        raise SettingsError(
            f"{accelerator.quota_gb} GB is not a valid size for an accelerator.",
            remedy=f"Use {SMALLEST_GB} to {LARGEST_GB:,} GB.",
        )
    if not accelerator.zone:
        raise SettingsError("The accelerator's zone is missing.", remedy="Enter one, such as cn-hangzhou-j.")
    for policy in (accelerator.policy, *(path.policy for path in accelerator.paths)):
        if policy not in POLICIES:
            raise SettingsError(f"{policy!r} is not a cache policy.", remedy=f"Use {' or '.join(POLICIES)}.")
    return accelerator


def _document(accelerator: Accelerator) -> bytes:
    root = Element("DataAcceleratorConfiguration")
    SubElement(root, "AvailableZone").text = accelerator.zone
    SubElement(root, "Quota").text = str(accelerator.quota_gb)
    paths = SubElement(root, "AcceleratePaths")
    if not accelerator.paths:
        SubElement(paths, "DefaultCachePolicy").text = accelerator.policy
    for path in accelerator.paths:
        entry = SubElement(paths, "Path")
        SubElement(entry, "Name").text = path.prefix
        SubElement(entry, "CachePolicy").text = path.policy
    document: bytes = tostring(root, encoding="utf-8")
    return document


def _parsed(body: bytes) -> Accelerator:
    try:
        root = fromstring(body)
        paths = root.findall("BasicInfomation/AcceleratePaths/Path")  # spelled as the service spells it
        return Accelerator(
            name=root.findtext("Name", ""),
            zone=root.findtext("BasicInfomation/AvailableZone", ""),
            quota_gb=int(root.findtext("BasicInfomation/Quota", "")),
            paths=tuple(AcceleratedPath(path.findtext("Name", ""), path.findtext("CachePolicy", "")) for path in paths),
            policy=root.findtext("BasicInfomation/AcceleratePaths/DefaultCachePolicy", ON_READ),
            created=float(root.findtext("BasicInfomation/CreationDate", "") or 0) / 1000,  # from milliseconds
        )
    except (ParseError, ValueError) as error:
        raise ConsoleError(
            f"OSS's reply about the accelerator cannot be read: {error}.", remedy="Check it in the OSS console."
        ) from error
