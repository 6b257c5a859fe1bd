"""Profile: one named set of region, bucket, prefixes, endpoints and credential source."""

from __future__ import annotations

import re

import msgspec

from ossconsole.config.endpoints import EndpointKind, normalise_endpoint, sends_in_clear
from ossconsole.config.errors import SettingsError
from ossconsole.config.hosts import REGIONS, classify, is_region_id, meant_region, without_bucket

DEFAULT_DATASET_PREFIX = "dataset/imagenet/ILSVRC/Data"
DEFAULT_CHECKPOINT_PREFIX = "checkpoints"
AUTO_CREDENTIALS = "auto"
SANDBOX_NAME = "sandbox"
FLAGS_NAME = "flags"
"""The name of a profile that was put together from flags and the environment alone."""
"""Reserved: `--profile sandbox` is the embedded server, whatever profiles exist."""

PLAIN_HTTP_ALLOWED = "allowed"

CREDENTIAL_KINDS = ("environment", "connector", "ossutil", "aliyun", "ecs")
"""What `credentials` may name, in the order in which `auto` looks."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job needs to know about one bucket. Endpoints are normalised (`scheme://host[:port]`).

    Prefixes carry no slash at either end. `accelerated_endpoint` is None where the bucket has no accelerator.
    `credentials` is `auto` (look everywhere, in order) or one of CREDENTIAL_KINDS, where `ossutil:NAME` and
    `aliyun:NAME` name a profile of that tool and `ecs:ROLE` a role. `plain_http` is `allowed` where the user agreed to
    endpoints without TLS on another machine.
    """

    name: str
    region: str
    bucket: str
    standard_endpoint: str
    accelerated_endpoint: str | None = None
    dataset_prefix: str = DEFAULT_DATASET_PREFIX
    checkpoint_prefix: str = DEFAULT_CHECKPOINT_PREFIX
    credentials: str = AUTO_CREDENTIALS
    plain_http: str | None = None
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


class FieldError(SettingsError):
    """One field of a profile is wrong; `field` is its name."""

    def __init__(self, field: str, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.field = field


def refuse_plain_http(profile: Profile) -> None:
    """Raises FieldError where an endpoint would carry everything in clear over a network, and nobody agreed to it."""
    if profile.plain_http == PLAIN_HTTP_ALLOWED:
        return
    for kind, endpoint in profile.endpoints.items():
        if sends_in_clear(profile.bucket, endpoint):
            raise FieldError(
                f"{kind}_endpoint",
                f"The {kind} endpoint {endpoint} has no TLS: everybody on the way could read and change the data, and "
                "use a temporary key's token.",
                remedy=f"Write https://{endpoint.partition('://')[2]}, or agree to it: --plain-http "
                f'{PLAIN_HTTP_ALLOWED}, or plain_http = "{PLAIN_HTTP_ALLOWED}" in the profile.',
            )


_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST_PREFIX = 800  # bytes; OSS keys end at 1023, and the names below a prefix need their share


def checked(profile: Profile) -> Profile:
    """The profile with endpoints and prefixes normalised. Raises FieldError naming the field that is wrong."""
    _check_names(profile)
    endpoints: dict[str, str | None] = {}
    for field in ("standard_endpoint", "accelerated_endpoint"):
        text = getattr(profile, field)
        if not text:
            if field == "standard_endpoint":
                raise FieldError(field, "The standard endpoint is missing.", remedy="Give the internal endpoint.")
            endpoints[field] = None
            continue
        try:
            endpoints[field] = endpoint = without_bucket(normalise_endpoint(text), profile.bucket)
        except SettingsError as error:
            raise FieldError(field, error.message, remedy=error.remedy) from error
        _check_host(field, endpoint)
    if profile.plain_http not in {None, "", PLAIN_HTTP_ALLOWED}:
        raise FieldError(
            "plain_http",
            f"plain_http cannot be {profile.plain_http!r}.",
            remedy=f"Give {PLAIN_HTTP_ALLOWED}, or leave it out.",
        )
    prefixes = {name: _prefix(name, getattr(profile, name)) for name in ("dataset_prefix", "checkpoint_prefix")}
    return msgspec.structs.replace(profile, **endpoints, **prefixes, plain_http=profile.plain_http or None)


def _check_host(field: str, endpoint: str) -> None:
    """Raises FieldError where the name of an OSS host is built wrongly."""
    region = classify(endpoint).region
    if region and not is_region_id(region):
        meant = meant_region(region)
        remedy = f"Did you mean {endpoint.replace(region, meant)}?" if meant else "Copy it from the OSS console."
        raise FieldError(field, f"{endpoint} does not exist: {region!r} is not a region ID.", remedy=remedy)


def check_profile_name(name: str) -> None:
    """Raises FieldError unless `name` can name a profile in the settings file."""
    if not _PROFILE_NAME.fullmatch(name):
        raise FieldError(
            "name", f"{name!r} is not a profile name.", remedy="Use letters, digits, dots, hyphens and underscores."
        )


def _check_names(profile: Profile) -> None:
    check_profile_name(profile.name)
    if not _BUCKET.fullmatch(profile.bucket):
        raise FieldError(
            "bucket",
            f"{profile.bucket!r} is not a bucket name." if profile.bucket else "The bucket is missing.",
            remedy="Bucket names have 3 to 63 lower-case letters, digits and inner hyphens.",
        )
    if profile.bucket in REGIONS:
        raise FieldError(
            "bucket", f"{profile.bucket!r} is a region, not a bucket.", remedy="Give the name of the bucket in it."
        )
    if not is_region_id(profile.region):
        meant = meant_region(profile.region)
        raise FieldError(
            "region",
            f"{profile.region!r} is not a region ID." if profile.region else "The region is missing.",
            remedy=f"Did you mean {meant}?" if meant else "Give it as OSS spells it, such as cn-hangzhou.",
        )
    kind, _, name = profile.credentials.partition(":")
    known = kind in CREDENTIAL_KINDS or profile.credentials == AUTO_CREDENTIALS
    if not known or (name and kind in {"environment", "connector"}):
        raise FieldError(
            "credentials",
            f"{profile.credentials!r} is not a credential source.",
            remedy=f"Use {AUTO_CREDENTIALS}, {', '.join(CREDENTIAL_KINDS)}, ossutil:NAME, aliyun:NAME or ecs:ROLE.",
        )


def _prefix(field: str, text: str) -> str:
    prefix = text.strip().removeprefix("oss://").strip("/")
    if "\\" in prefix or "\n" in prefix or len(prefix.encode()) > _LONGEST_PREFIX:
        raise FieldError(
            field, f"{text!r} is not a prefix.", remedy="Give a folder of the bucket such as dataset/train."
        )
    if not prefix:
        raise FieldError(field, "The prefix is empty.", remedy="Give a folder of the bucket such as dataset/train.")
    return prefix
