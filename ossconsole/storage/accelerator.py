"""The OSS accelerator of a bucket: its state, creating and deleting it, and its estimated cost.

Requests and replies are those of the pages GetBucketDataAccelerator, PutBucketDataAccelerator and
DeleteBucketDataAccelerator; oss2 has no call for them. UNVERIFIED: no page shows the reply for several zones, so any
nesting of the documented elements is read; QuotaFrozenUntil is read in the spelling of Alibaba's SDK models, too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

import msgspec
from defusedxml.ElementTree import fromstring

from ossconsole.config.endpoints import ACCELERATOR_DOMAIN, EndpointKind, HostKind, candidates, classify, is_zone_of
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.storage.errors import StorageError

if TYPE_CHECKING:
    from ossconsole.config.credentials import CredentialSource
    from ossconsole.config.profiles import Profile
    from ossconsole.storage.client import ObjectStore

MIN_GB, MAX_GB = 50, 204_800
ON_READ, ON_WRITE = "write-back", "sync-warmup"
"""Cache policies: an object enters the cache when it is first read, or as it is written through the accelerator."""
POLICIES = (ON_READ, ON_WRITE)

CNY_PER_GB_MONTH = 0.7
"""List price in Beijing (item AcceleratorCacheSize); other regions may differ, hence *estimated*."""
_HOURS_PER_MONTH = 720

_QUICK_S = 3.0
_NONE_CODES = {"DataAcceleratorNotFound", "NoSuchConfiguration"}
_ZONE_PARAMETER = "x-oss-datalake-cache-available-zone"
_ACTIONS = {"GET": "reading", "PUT": "changing", "DELETE": "deleting"}
_log = logging.getLogger(__name__)


class AcceleratedPath(msgspec.Struct, frozen=True):
    """A prefix of the bucket that is cached, and when its objects enter the cache."""

    prefix: str
    policy: str = ON_READ


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """The accelerator of one zone; `quota_gb` in GB. Times are Unix seconds, 0 for unknown.

    `policy` is that of the whole bucket; OSS applies it only where there are no `paths`. Both are unknown where
    `paths_known` is False: OSS sent the basic information alone. Until `frozen_until`, the size cannot be changed.
    """

    zone: str
    quota_gb: int
    paths: tuple[AcceleratedPath, ...] = ()
    policy: str = ON_READ
    paths_known: bool = True
    name: str = ""
    created: float = 0.0
    frozen_until: float = 0.0

    def covers(self, prefix: str) -> bool:
        """Whether every object below `prefix` is cached; False where the paths are unknown."""
        below = f"{prefix.strip('/')}/"
        return any(below.startswith(cached) for cached in self._cached)

    def covers_part_of(self, prefix: str) -> bool:
        """Whether some of the objects below `prefix` are cached, or all."""
        below = f"{prefix.strip('/')}/"
        return self.covers(prefix) or any(cached.startswith(below) for cached in self._cached)

    def caches(self, key: str) -> bool:
        """Whether the object is cached once it was read; False where the paths are unknown."""
        return any(key.startswith(cached) for cached in self._cached)

    @property
    def _cached(self) -> list[str]:
        """The cached prefixes, "" for the whole bucket: OSS ignores a path whose policy it does not know."""
        if not self.paths_known:
            return []
        paths = self.paths or (AcceleratedPath("", self.policy),)
        return [path.prefix.lstrip("/") for path in paths if path.policy in POLICIES]

    @property
    def cached_text(self) -> str:
        """What it caches: each path with its policy, or the whole bucket with its policy."""
        if not self.paths_known:
            return "paths that OSS did not send"
        if not self.paths:
            return f"the whole bucket ({self.policy})"
        return ", ".join(f"{path.prefix} ({path.policy})" for path in self.paths)

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


def _peak_change(before: float, after: float) -> str:
    return f"{after:,.0f} MB/s, as before" if before == after else f"{before:,.0f} → {after:,.0f} MB/s"


def describe_changes(present: Accelerator, wanted: Accelerator) -> list[str]:
    """Old and new value of everything that `wanted` changes, and what is lost; empty where nothing changes."""
    found = []
    if wanted.quota_gb != present.quota_gb:
        found += [
            f"size: {present.quota_gb:,} → {wanted.quota_gb:,} GB",
            f"price: CNY {present.cny_per_hour:.2f} → {wanted.cny_per_hour:.2f} per hour (estimated)",
            f"documented peak: {_peak_change(present.peak_mb_per_s, wanted.peak_mb_per_s)}",
        ]
    if wanted.quota_gb < present.quota_gb:
        found.append(f"lost: what is cached beyond {wanted.quota_gb:,} GB")
    if bool(wanted.paths) is not bool(present.paths):
        found.append(f"caches: {present.cached_text} → {wanted.cached_text}")
    before, after = ({path.prefix: path.policy for path in one.paths} for one in (present, wanted))
    if before and after:
        found += [f"no longer cached: {prefix}" for prefix in before if prefix not in after]
        found += [f"cached from now on: {prefix} ({after[prefix]})" for prefix in after if prefix not in before]
    found += [
        f"{prefix}: {before[prefix]} → {policy}"
        for prefix, policy in after.items()
        if before.get(prefix, policy) != policy
    ]
    if not before and not after and wanted.policy != present.policy:
        found.append(f"the whole bucket: {present.policy} → {wanted.policy}")
    return found


def accelerator_warnings(accelerator: Accelerator, dataset_prefix: str, dataset_bytes: int | None = None) -> list[str]:
    """What to know before training through this accelerator; the last one is its cost. `dataset_bytes` may be None."""
    found = []
    if not accelerator.paths_known:
        found.append(f"OSS did not send the accelerated paths: whether {dataset_prefix}/ is cached is unknown.")
    elif not accelerator.covers(dataset_prefix):
        share = "only in part" if accelerator.covers_part_of(dataset_prefix) else "not"
        found.append(
            f"The dataset prefix {dataset_prefix}/ is {share} in the accelerated paths ({accelerator.cached_text})."
        )
    if dataset_bytes is not None and dataset_bytes > accelerator.quota_gb * 1e9:
        found.append(
            f"The dataset ({dataset_bytes / 1e9:,.0f} GB) is larger than the cache ({accelerator.quota_gb} GB): "
            "in random order, samples are often evicted before they are read again."
        )
    found.append(f"It is billed by the hour: {cost_estimate(accelerator)}.")
    return found


def read_accelerator(store: ObjectStore) -> Accelerator | None:
    """The accelerator of the zone of `store`, which goes through the accelerated endpoint; None where it has none.

    An endpoint whose host names no zone stands for the bucket's only accelerator. Raises StorageError; ConsoleError
    where the bucket has several of them.
    """
    zone = classify(store.endpoint).zone
    found = read_accelerators(store, zone)
    if len(found) > 1:
        zones = " and ".join(accelerator.zone for accelerator in found)
        raise ConsoleError(
            f"{store.uri()} has accelerators in {zones}, and the host of {store.endpoint} does not name a zone.",
            remedy=f"Set the accelerated endpoint to the one of a zone: ZONE-internal.{ACCELERATOR_DOMAIN}.",
        )
    return found[0] if found else None


def read_accelerators(store: ObjectStore, zone: str = "") -> tuple[Accelerator, ...]:
    """The accelerators of the bucket, of `zone` alone where it is given. Raises StorageError, ConsoleError."""
    parameters = {"verbose": ""}
    if zone:
        parameters[_ZONE_PARAMETER] = zone
    try:
        body = _request(store, "GET", parameters)
    except StorageError as error:
        if error.code in _NONE_CODES:
            return ()
        raise
    return tuple(found for found in _parsed(body) if zone in {"", found.zone})


def other_accelerators(store: ObjectStore, zone: str) -> tuple[Accelerator, ...]:
    """The bucket's accelerators in other zones than `zone`; none where OSS does not list them, which is logged."""
    try:
        return tuple(found for found in read_accelerators(store) if found.zone != zone)
    except ConsoleError as error:
        _log.info("Accelerators of other zones are unknown: %s", error)
        return ()


def missing_text(store: ObjectStore, others: tuple[Accelerator, ...]) -> tuple[str, str]:
    """What to say where the endpoint's zone has no accelerator, and the remedy; `others` are those of other zones."""
    zone = classify(store.endpoint).zone
    where = f" in {zone}, the zone of the accelerated endpoint" if zone else ""
    message = f"The bucket {store.profile.bucket} has no accelerator{where}: nothing is cached."
    if others:
        zones = ", ".join(other.zone for other in others)
        return message, f"It has one in {zones}: use the endpoint of that zone, or delete it in the OSS console."
    return message, "Create one on the Setup screen, or remove the accelerated endpoint from the profile."


def find_accelerator(profile: Profile, credentials: CredentialSource) -> Accelerator | None:
    """`read_accelerator` in one quick request without retries; None also where there is no answer.

    The profile may have no such endpoint, or the key not the permission: for figures that are shown without it too.
    """
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.retry import NO_RETRY

    if profile.endpoint(EndpointKind.ACCELERATED) is None:
        return None
    store = ObjectStore(profile, credentials, EndpointKind.ACCELERATED, timeout_s=_QUICK_S, retry=NO_RETRY, pool_size=1)
    try:
        return read_accelerator(store)
    except ConsoleError as error:
        _log.info("The size of the accelerator is unknown: %s", error)
        return None
    finally:
        store.close()


def save_accelerator(store: ObjectStore, wanted: Accelerator, *, present: Accelerator | None) -> None:
    """Creates an accelerator, or changes `present`, which was read before; a PUT replaces everything that it has.

    Raises SettingsError for bad values, ConsoleError where OSS has another configuration than `present` by now, and
    StorageError.
    """
    _check(wanted, store.profile.region, present)
    now = next(iter(read_accelerators(store, wanted.zone)), None)
    if now is not None and not now.paths_known:
        raise ConsoleError(
            f"OSS did not send the accelerated paths of {now.name} in {now.zone}: a change would delete them.",
            remedy="Change it in the OSS console.",
        )
    if _configuration(now) != _configuration(present):
        raise ConsoleError(
            f"The accelerator in {wanted.zone} was changed by someone else: it was not changed again.",
            remedy="Read it again, and check what it has now.",
        )
    _request(store, "PUT", {}, _document(wanted))


def _configuration(accelerator: Accelerator | None) -> tuple[object, ...]:
    """What a PUT replaces; the other fields change by themselves."""
    return () if accelerator is None else (accelerator.quota_gb, accelerator.paths, accelerator.policy)


def delete_accelerator(store: ObjectStore, zone: str) -> None:
    """Deletes the accelerator of `zone` with its cache; the bucket keeps its objects. Raises StorageError."""
    _request(store, "DELETE", {_ZONE_PARAMETER: zone})


def _request(store: ObjectStore, method: str, parameters: dict[str, str], body: bytes = b"") -> bytes:
    def request() -> bytes:
        # oss2 has no name for this sub-resource; `_do` signs (version 4 covers every parameter) and sends.
        response: Any = store.sdk._do(  # noqa: SLF001
            method, store.profile.bucket, "", params={"dataAccelerator": "", **parameters}, data=body
        )
        return bytes(response.read())

    try:
        return store.call(f"{_ACTIONS[method]} the accelerator of {store.uri()}", request)
    except StorageError as error:
        if error.code == "AccessDenied":
            error.remedy = f"Allow oss:{method.title()}BucketDataAccelerator for this key in RAM, or use another key."
        elif error.status == 0 or error.code == "NotImplemented":
            error.remedy = f"{error.remedy} {_zone_remedy(store)}".strip()
        raise


def _zone_remedy(store: ObjectStore) -> str:
    """For an accelerated endpoint in the form of a region: the documented ones name a zone."""
    host = classify(store.endpoint)
    if host.kind is not HostKind.ACCELERATOR or host.zone:
        return ""
    known = [candidate.endpoint for candidate in candidates(host.region) if candidate.host.zone]
    example = f", such as {known[0]}" if known else ""
    return f"The documented endpoints name a zone: ZONE-internal.{ACCELERATOR_DOMAIN}{example}."


def _check(wanted: Accelerator, region: str, present: Accelerator | None) -> None:
    if not MIN_GB <= wanted.quota_gb <= MAX_GB:
        raise SettingsError(
            f"{wanted.quota_gb} GB is not a valid size for an accelerator.",
            remedy=f"Use {MIN_GB} to {MAX_GB:,} GB.",
        )
    if present is None and not is_zone_of(wanted.zone, region):
        raise SettingsError(
            f"{wanted.zone!r} is not a zone of {region}." if wanted.zone else "The accelerator's zone is missing.",
            remedy=f"Enter one of the bucket's region, such as {region}-a.",
        )
    known = {present.policy, *(path.policy for path in present.paths)} if present else set()
    for policy in (wanted.policy, *(path.policy for path in wanted.paths)):
        if policy not in {*POLICIES, *known}:
            raise SettingsError(f"{policy!r} is not a cache policy.", remedy=f"Use {' or '.join(POLICIES)}.")


def _document(accelerator: Accelerator) -> bytes:
    """The body of a PUT. DefaultCachePolicy is required also beside paths, where it has no effect."""
    root = Element("DataAcceleratorConfiguration")
    SubElement(root, "AvailableZone").text = accelerator.zone
    SubElement(root, "Quota").text = str(accelerator.quota_gb)
    paths = SubElement(root, "AcceleratePaths")
    SubElement(paths, "DefaultCachePolicy").text = accelerator.policy
    for path in accelerator.paths:
        entry = SubElement(paths, "Path")
        SubElement(entry, "Name").text = path.prefix
        SubElement(entry, "CachePolicy").text = path.policy
    document: bytes = tostring(root, encoding="utf-8")
    return document


def _parsed(body: bytes) -> tuple[Accelerator, ...]:
    """One per BasicInfomation, spelled as the service spells it, or correctly; by zone."""
    try:
        root = fromstring(body)
        pairs = [(node, child) for node in root.iter() for child in node if _local(child) in _BASIC_NAMES]
        found = [_accelerator(basic, _text(node, "Name")) for node, basic in pairs]
    except (ParseError, ValueError) as error:
        raise _unreadable(str(error)) from error
    if not found:
        raise _unreadable("it has no BasicInfomation")
    return tuple(sorted(found, key=lambda accelerator: accelerator.zone))


_BASIC_NAMES = {"BasicInfomation", "BasicInformation"}


def _unreadable(why: str) -> ConsoleError:
    return ConsoleError(
        f"OSS's reply about the accelerator cannot be read: {why}.", remedy="Check it in the OSS console."
    )


def _accelerator(basic: Element, name: str) -> Accelerator:
    policies = next(_named(basic, "AcceleratePaths"), None)
    paths = (
        ()
        if policies is None
        else tuple(
            AcceleratedPath(_text(path, "Name"), _text(path, "CachePolicy")) for path in _named(policies, "Path")
        )
    )
    frozen_until = _text(basic, "QuotaFrozenUntil") or _text(basic, "QuotaFrozenUtil")
    return Accelerator(
        name=name,
        zone=_text(basic, "AvailableZone"),
        quota_gb=int(_text(basic, "Quota")),
        paths=paths,
        policy=ON_READ if policies is None else _text(policies, "DefaultCachePolicy") or ON_READ,
        paths_known=policies is not None,
        created=_seconds(_text(basic, "CreationDate")),
        frozen_until=_seconds(frozen_until),
    )


def _named(node: Element, name: str) -> Iterator[Element]:
    return (child for child in node if _local(child) == name)


def _local(node: Element) -> str:
    return str(node.tag).rpartition("}")[2]


def _text(node: Element, name: str) -> str:
    return next(((child.text or "").strip() for child in _named(node, name)), "")


def _seconds(milliseconds: str) -> float:
    return float(milliseconds or 0) / 1000
