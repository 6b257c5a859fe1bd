"""The profile of a command: each value comes from flag, environment, profile or default, in this order."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ossconsole.config.endpoints import classify, internal_endpoint, normalise_endpoint
from ossconsole.config.errors import SettingsError
from ossconsole.config.profiles import (
    FLAGS_NAME,
    SANDBOX_NAME,
    FieldError,
    Profile,
    Settings,
    checked,
    refuse_other_region,
    refuse_plain_http,
)
from ossconsole.config.text import StrEnum

PROFILE_VARIABLE = "OSSCONSOLE_PROFILE"
VARIABLES = {
    "bucket": "OSSCONSOLE_BUCKET",
    "region": "OSS_REGION",
    "standard_endpoint": "OSS_ENDPOINT",
    "accelerated_endpoint": "OSSCONSOLE_ACCELERATED_ENDPOINT",
    "dataset_prefix": "OSSCONSOLE_DATASET_PREFIX",
    "checkpoint_prefix": "OSSCONSOLE_CHECKPOINT_PREFIX",
    "plain_http": "OSSCONSOLE_PLAIN_HTTP",
}
"""The variable of each setting; OSS_REGION and OSS_ENDPOINT are those of ossutil."""

FIELDS = tuple(VARIABLES)
_ENDPOINT_FIELDS = ("standard_endpoint", "accelerated_endpoint")
_PLACE_FIELDS = ("bucket", "region", *_ENDPOINT_FIELDS)
_PREFIX_FIELDS = ("dataset_prefix", "checkpoint_prefix")
SANDBOX_FIELDS = tuple(name for name in FIELDS if name not in _PREFIX_FIELDS)
"""What the sandbox has of its own: the fields that it refuses."""


class OriginKind(StrEnum):
    """The kind of place that a value was read from."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    PROFILE = "profile"
    DEFAULT = "default"
    SANDBOX = "sandbox"


class Origin(msgspec.Struct, frozen=True):
    """The origin of a value: `detail` is the flag, the variable, the profile, or how the default was derived."""

    kind: OriginKind
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.detail}".strip()


class Resolution(msgspec.Struct, frozen=True):
    """The profile of one command, and the origin of each of its values by field name."""

    profile: Profile
    origins: dict[str, Origin]


def option_name(setting: str) -> str:
    """The command-line option of a setting: `--dataset-prefix` of `dataset_prefix`."""
    return "--" + setting.replace("_", "-")


def resolve(settings: Settings, flags: Mapping[str, str], environ: Mapping[str, str]) -> Resolution | None:
    """The profile to use, or None for the sandbox: selected by name, or because nothing names a bucket.

    `flags` has the given options: `profile` and the names in FIELDS. Raises SettingsError, also for an option that
    the sandbox does not support.
    """
    named = flags.get("profile") or environ.get(PROFILE_VARIABLE) or settings.active
    if named == SANDBOX_NAME:
        _refuse_on_sandbox(flags)
        return None
    values, origins = _overrides(flags, environ, FIELDS)
    if named:
        try:
            base = settings.profile(named)
        except SettingsError as error:
            origin = "" if flags.get("profile") else f" (from environment {PROFILE_VARIABLE})"
            raise SettingsError(f"{error.message.rstrip('.')}{origin}.", remedy=error.remedy) from error
        values = {**msgspec.structs.asdict(base), **values}
        origins = {**dict.fromkeys((*FIELDS, "credentials"), Origin(OriginKind.PROFILE, named)), **origins}
        _refuse_two_regions(values, origins)
    elif environ.get(VARIABLES["bucket"]) or any(flags.get(name) for name in _PLACE_FIELDS):
        values = {"name": FLAGS_NAME, "bucket": "", **values}
        _derive(values, origins)
        origins = {**dict.fromkeys((*FIELDS, "credentials"), Origin(OriginKind.DEFAULT)), **origins}
    else:
        _refuse_on_sandbox(flags)
        return None
    return _resolution(msgspec.convert(values, Profile), origins)


def overlay(profile: Profile, flags: Mapping[str, str], environ: Mapping[str, str]) -> Resolution:
    """The sandbox's profile, with prefixes from flags or the environment. Raises SettingsError."""
    values, origins = _overrides(flags, environ, _PREFIX_FIELDS)
    origins = {**dict.fromkeys((*FIELDS, "credentials"), Origin(OriginKind.SANDBOX)), **origins}
    return _resolution(msgspec.structs.replace(profile, **values), origins)


def _refuse_on_sandbox(flags: Mapping[str, str]) -> None:
    """Raises SettingsError: the sandbox has its own bucket and endpoints, only the prefixes can be changed."""
    unusable = [option_name(name) for name in SANDBOX_FIELDS if flags.get(name)]
    if unusable:
        raise SettingsError(
            f"The sandbox has its own bucket and endpoints: it cannot be used with {', '.join(unusable)}.",
            remedy="Leave them out, or name a profile with --profile.",
        )


def _resolution(profile: Profile, origins: dict[str, Origin]) -> Resolution:
    try:
        profile = checked(profile)
        if any(origins[name].kind is not OriginKind.PROFILE for name in _PLACE_FIELDS):  # else Setup shows it
            refuse_other_region(profile)
        refuse_plain_http(profile)
        return Resolution(profile, origins)
    except FieldError as error:
        origin = origins.get(error.field)
        derived = origin is None or origin.kind is OriginKind.DEFAULT
        where = "" if derived else f" (from {origin})"
        remedy = error.remedy
        if derived and error.field in VARIABLES and not getattr(profile, error.field):
            remedy = f"{remedy.rstrip('.')}: {option_name(error.field)}, or {VARIABLES[error.field]}."
        raise SettingsError(f"{error.message.rstrip('.')}{where}.", remedy=remedy) from error


def _overrides(
    flags: Mapping[str, str], environ: Mapping[str, str], names: tuple[str, ...]
) -> tuple[dict[str, str], dict[str, Origin]]:
    values: dict[str, str] = {}
    origins: dict[str, Origin] = {}
    for name in names:
        variable = VARIABLES[name]
        if flags.get(name):
            values[name] = flags[name]
            origins[name] = Origin(OriginKind.FLAG, option_name(name))
        elif environ.get(variable):
            values[name] = environ[variable]
            origins[name] = Origin(OriginKind.ENVIRONMENT, variable)
    return values, origins


def _refuse_two_regions(values: Mapping[str, str], origins: Mapping[str, Origin]) -> None:
    """Raises SettingsError where the region and the standard endpoint have different origins and regions."""
    host_region = classify(normalise_endpoint(values["standard_endpoint"])).region
    if host_region and host_region != values["region"] and origins["region"] != origins["standard_endpoint"]:
        raise SettingsError(
            f"The region {values['region']} (from {origins['region']}) is not that of the standard endpoint "
            f"{values['standard_endpoint']} (from {origins['standard_endpoint']}).",
            remedy="Give --region and --standard-endpoint of the same region, or neither.",
        )


def _derive(values: dict[str, str], origins: dict[str, Origin]) -> None:
    """Derives a missing region from an endpoint's host, and a missing standard endpoint from the region."""
    if "region" not in values:
        for name in _ENDPOINT_FIELDS:
            region = classify(normalise_endpoint(values[name])).region if name in values else ""
            if region:
                values["region"] = region
                origins["region"] = Origin(OriginKind.DEFAULT, f"from the {name.replace('_', ' ')}")
                break
    region = values.setdefault("region", "")
    if region and "standard_endpoint" not in values:
        values["standard_endpoint"] = internal_endpoint(region)
        origins["standard_endpoint"] = Origin(OriginKind.DEFAULT, "the region's internal endpoint")
    values.setdefault("standard_endpoint", "")
