"""Endpoints: the two kinds, the hosts of each region, and the address that each client library needs.

Host forms are those of Alibaba Cloud's "Regions and endpoints" and "OSS accelerator" pages.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from ossconsole.config.errors import SettingsError
from ossconsole.config.text import StrEnum


class EndpointKind(StrEnum):
    """One of a bucket's two endpoints: the internal one, or the accelerator's."""

    STANDARD = "standard"
    ACCELERATED = "accelerated"

    @property
    def other(self) -> EndpointKind:
        """The other one of the two."""
        return EndpointKind.ACCELERATED if self is EndpointKind.STANDARD else EndpointKind.STANDARD


# A host without its port; it matches the sandbox's `0.0.1` too, because `<bucket>.0.0.1` is resolved.
_HOST = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")


def normalise_endpoint(text: str) -> str:
    """`text` as `scheme://host[:port]`, by default https. Raises SettingsError.

    The scheme is always explicit because the defaults differ: http in oss2, https in the connector.
    """
    stripped = text.strip().rstrip("/")
    if "://" not in stripped:
        stripped = f"https://{stripped}"
    try:
        parts = urlsplit(stripped)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{text!r} is not an endpoint: {error}.", remedy=_ENDPOINT_REMEDY) from error
    host = parts.hostname or ""
    extra = parts.path or parts.query or parts.fragment or parts.username
    if parts.scheme not in {"http", "https"} or extra or not _HOST.match(host):
        raise SettingsError(f"{text!r} is not an endpoint.", remedy=_ENDPOINT_REMEDY)
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


_ENDPOINT_REMEDY = "Give a host such as https://oss-cn-hangzhou-internal.aliyuncs.com."


def sdk_endpoint(bucket: str, endpoint: str) -> str:
    """The endpoint with which oss2 calls the same host as the connector.

    The connector always calls `<bucket>.<endpoint host>`. Where that is an IPv4 address (the sandbox: bucket `127`,
    endpoint `http://0.0.1:PORT`), oss2 must get the composed address: it would treat `0.0.1` as an IP address.
    """
    parts = urlsplit(endpoint)
    composed = f"{bucket}.{parts.hostname}"
    try:
        ipaddress.IPv4Address(composed)
    except ValueError:
        return endpoint
    return f"{parts.scheme}://{composed}" + (f":{parts.port}" if parts.port else "")


def request_url(bucket: str, endpoint: str) -> str:
    """The URL of the host that the bucket's requests go to."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{bucket}.{parts.netloc}"


def sends_in_clear(bucket: str, endpoint: str) -> bool:
    """Whether requests to this endpoint of the bucket leave the machine without TLS."""
    parts = urlsplit(endpoint)
    hosts = (parts.hostname or "", f"{bucket}.{parts.hostname}")
    return parts.scheme == "http" and not any(_is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


REGIONS = (
    *("cn-hangzhou", "cn-shanghai", "cn-nanjing", "cn-fuzhou", "cn-wuhan-lr", "cn-qingdao", "cn-beijing"),
    *("cn-zhangjiakou", "cn-huhehaote", "cn-wulanchabu", "cn-shenzhen", "cn-heyuan", "cn-guangzhou", "cn-chengdu"),
    *("cn-hongkong", "us-west-1", "us-east-1", "na-south-1", "ap-northeast-1", "ap-northeast-2", "ap-southeast-1"),
    *("ap-southeast-3", "ap-southeast-5", "ap-southeast-6", "ap-southeast-7", "eu-central-1", "eu-west-1"),
    "me-east-1",
)
"""Region IDs of "Regions and endpoints", for corrections of a wrong one; there may be newer ones."""

_REGION_ID = re.compile(r"[a-z]{2}(-[a-z0-9]+)+")


def is_region_id(text: str) -> bool:
    """Whether `text` has the form of a region ID: an area of two letters, then the place (`cn-hangzhou`)."""
    return _REGION_ID.fullmatch(text) is not None


def suggest_region(text: str) -> str:
    """The region ID that `text` probably stands for, "" for none."""
    bare = text.strip().lower().removeprefix("oss-")
    if bare in REGIONS:
        return bare
    named = [region for region in REGIONS if region.partition("-")[2] == bare]
    close = named or difflib.get_close_matches(bare, REGIONS, n=1, cutoff=0.8)
    return close[0] if len(close) == 1 else ""


class HostKind(StrEnum):
    """The product and network of a host."""

    INTERNAL = "internal"
    PUBLIC = "public"
    DUAL_STACK = "dual-stack"
    ACCELERATOR = "accelerator"
    TRANSFER_ACCELERATION = "transfer acceleration"
    LOOPBACK = "loopback"
    CUSTOM = "custom"


HOST_NOTES = {
    HostKind.INTERNAL: "answers inside the region's internal network only; no traffic fee",
    HostKind.PUBLIC: "answers everywhere; traffic to the internet is billed, and newer accounts in mainland China "
    "may not use it for data",
    HostKind.DUAL_STACK: "answers over IPv4 and IPv6; traffic to the internet is billed",
    HostKind.ACCELERATOR: "answers inside the region's internal network only; needs an accelerator for the bucket",
    HostKind.TRANSFER_ACCELERATION: "transfer acceleration speeds up long-distance transfers; it is not the OSS "
    "accelerator and caches nothing",
    HostKind.LOOPBACK: "this machine (the sandbox)",
    HostKind.CUSTOM: "a custom domain: its name does not contain the region",
}


class HostInfo(msgspec.Struct, frozen=True):
    """The parts of a host name; `region` and `zone` are "" where it does not contain them."""

    kind: HostKind
    region: str = ""
    zone: str = ""

    @property
    def note(self) -> str:
        """One sentence about the kind, for the screen."""
        return HOST_NOTES[self.kind]

    @property
    def inside_only(self) -> bool:
        """Whether it answers only inside the region's internal network."""
        return self.kind in {HostKind.INTERNAL, HostKind.ACCELERATOR}


class Candidate(msgspec.Struct, frozen=True):
    """A possible endpoint of a region, for one of a profile's two kinds."""

    use: EndpointKind
    endpoint: str
    host: HostInfo


_NAME = r"[a-z0-9-]+"
ACCELERATOR_DOMAIN = "oss-data-acc.aliyuncs.com"
_TRANSFER = re.compile(r"oss-accelerate(-overseas)?\.aliyuncs\.com")
_LEGACY_ACCELERATOR = re.compile(rf"oss-cache-({_NAME})\.aliyuncs\.com")
_ACCELERATOR = re.compile(rf"({_NAME}?)(?:-internal)?\.{re.escape(ACCELERATOR_DOMAIN)}")
_INTERNAL = re.compile(rf"oss-({_NAME})-internal\.aliyuncs\.com")
_PUBLIC = re.compile(rf"oss-({_NAME})\.aliyuncs\.com")
_DUAL_STACK = re.compile(rf"({_NAME})\.oss\.aliyuncs\.com")
# Three numbers are the sandbox: with bucket 127 in front, `0.0.1` is a loopback address.
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|\d+\.\d+\.\d+")
_ZONE_LETTER = re.compile(r"(?<=\d)[a-z]$|-[a-z]$")

# The zones in the accelerator's documentation. There are more, which no page names (those of us-east-1 and cn-hongkong
# among them): any well-formed zone is accepted, and the region form is a candidate too.
_ACCELERATOR_ZONES = {
    "cn-beijing": ("cn-beijing-h",),
    "cn-shanghai": ("cn-shanghai-g",),
    "cn-shenzhen": ("cn-shenzhen-c",),
    "cn-hangzhou": ("cn-hangzhou-j",),
    "cn-wulanchabu": ("cn-wulanchabu-b",),
    "ap-southeast-1": ("ap-southeast-1c",),
}


def classify(endpoint: str) -> HostInfo:
    """The kind, region and zone of a normalised endpoint (`scheme://host[:port]`)."""
    try:
        host = (urlsplit(endpoint).hostname or "").lower()
    except ValueError:  # brackets, in a region that is being typed
        return HostInfo(HostKind.CUSTOM)
    if _TRANSFER.fullmatch(host):
        return HostInfo(HostKind.TRANSFER_ACCELERATION)
    if match := _LEGACY_ACCELERATOR.fullmatch(host) or _ACCELERATOR.fullmatch(host):
        place = match[1]
        region = _ZONE_LETTER.sub("", place)
        return HostInfo(HostKind.ACCELERATOR, region, "" if region == place else place)
    for pattern, kind in (
        (_INTERNAL, HostKind.INTERNAL),
        (_PUBLIC, HostKind.PUBLIC),
        (_DUAL_STACK, HostKind.DUAL_STACK),
    ):
        if match := pattern.fullmatch(host):
            return HostInfo(kind, match[1])
    return HostInfo(HostKind.LOOPBACK if _LOOPBACK.fullmatch(host) else HostKind.CUSTOM)


def misuse(use: EndpointKind, endpoint: str) -> str:
    """Why a normalised endpoint cannot be the standard or the accelerated one, as a sentence; "" where it can be."""
    kind = classify(endpoint).kind
    if use is EndpointKind.STANDARD and kind is HostKind.ACCELERATOR:
        return f"{endpoint} is an accelerator's endpoint, not the bucket's own."
    if use is EndpointKind.ACCELERATED and kind is HostKind.TRANSFER_ACCELERATION:
        return f"{endpoint} is not an accelerator's endpoint: {HOST_NOTES[kind]}."
    if use is EndpointKind.ACCELERATED and kind in {HostKind.INTERNAL, HostKind.PUBLIC, HostKind.DUAL_STACK}:
        return f"{endpoint} is the bucket's own endpoint ({kind}), not an accelerator's: it caches nothing."
    return ""


def is_zone_of(zone: str, region: str) -> bool:
    """Whether `zone` has the form of a zone ID of `region`: `cn-hangzhou-j`, `us-east-1b`."""
    return re.fullmatch(rf"{re.escape(region)}-?[a-z]", zone) is not None


def without_bucket(endpoint: str, bucket: str) -> str:
    """The endpoint without the bucket before a known host: the OSS console shows `<bucket>.<endpoint host>`."""
    parts = urlsplit(endpoint)
    bare = endpoint.replace(f"//{bucket}.", "//", 1)
    if parts.hostname and parts.hostname.startswith(f"{bucket}.") and classify(bare).region:
        return bare
    return endpoint


def internal_endpoint(region: str) -> str:
    """The standard endpoint inside the region's internal network."""
    return f"https://oss-{region}-internal.aliyuncs.com"


def public_endpoint(endpoint: str) -> str:
    """The public endpoint of the region for one that answers inside it only; "" for any other."""
    host = classify(endpoint)
    return f"https://oss-{host.region}.aliyuncs.com" if host.inside_only and host.region else ""


def candidates(region: str) -> list[Candidate]:
    """The possible endpoints of a bucket in `region`, the likeliest of each kind first."""
    hosts = [
        (EndpointKind.STANDARD, f"oss-{region}-internal.aliyuncs.com"),
        (EndpointKind.STANDARD, f"oss-{region}.aliyuncs.com"),
        (EndpointKind.STANDARD, f"{region}.oss.aliyuncs.com"),
    ]
    places = [*_ACCELERATOR_ZONES.get(region, ()), region]
    hosts += [(EndpointKind.ACCELERATED, f"{place}-internal.{ACCELERATOR_DOMAIN}") for place in places]
    return [Candidate(use, f"https://{host}", classify(f"https://{host}")) for use, host in hosts]


def likely_endpoint(use: EndpointKind, region: str) -> str:
    """The likeliest endpoint of this kind for a bucket in `region`."""
    return next(found.endpoint for found in candidates(region) if found.use is use)


def region_caution(instance_region: str, region: str, endpoints: Iterable[str]) -> str:
    """The warning for an instance in another region than the bucket; "" for the same region."""
    if instance_region == region:
        return ""
    inside = [urlsplit(endpoint).hostname or "" for endpoint in endpoints if classify(endpoint).inside_only]
    unreachable = f", and {' and '.join(inside)} cannot be reached from here" if inside else ""
    return f"This instance is in {instance_region}, the bucket in {region}: reading costs traffic fees{unreachable}."
