"""Checks of what the user set up: settings, credentials, connector configuration, and the instance they are used on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from ossconsole.config.checks import Check, fail, ok, warn
from ossconsole.config.connector import QUIET_LOG_LEVEL, connector_config_path, load_connector_config
from ossconsole.config.credential_files import loose_mode
from ossconsole.config.credentials import Credentials, CredentialSource
from ossconsole.config.errors import ConsoleError
from ossconsole.config.hosts import region_caution
from ossconsole.config.metadata import MetadataError, MetadataService
from ossconsole.config.profile import Profile
from ossconsole.config.secret import mask_key_id
from ossconsole.config.sources import FileSource

SOON = timedelta(hours=1)


def settings_check(profile: Profile) -> Check:
    return ok("settings", f"Profile {profile.name}: bucket {profile.bucket} in {profile.region}.")


def connector_config_check() -> Check:
    """Whether the file is valid, and keeps AccessKey IDs out of the connector's log."""
    name, path = "connector config", connector_config_path()
    values = load_connector_config()
    if not values:
        return ok(name, f"{path} does not exist yet: the defaults hold.")
    if int(values.get("logLevel", QUIET_LOG_LEVEL)) < QUIET_LOG_LEVEL:
        return warn(
            name,
            f"{path}: with logLevel {values['logLevel']} the connector writes AccessKey IDs to its log.",
            f"Set logLevel to {QUIET_LOG_LEVEL} or 3, except while you look for a fault.",
        )
    return ok(name, f"{path} is valid.")


def credentials_check(
    source: CredentialSource, now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
) -> Check:
    """Whether there is a pair, how long it lasts, and whether others on this machine could read its file."""
    name = "credentials"
    found = source()
    text = f"{mask_key_id(found.access_key_id)} from {found.source}, {_end(found, now())}"
    if found.expiration is not None and found.expiration <= now():
        return fail(name, f"{text}.", "Fetch new temporary credentials, or enter an AccessKey on the Setup screen.")
    if isinstance(source, FileSource) and (mode := loose_mode(source.path)) is not None:
        return warn(name, f"{text}; others on this machine may read its file ({mode:04o}).", f"chmod 600 {source.path}")
    if found.expiration is not None and found.expiration - now() < SOON:
        return warn(name, f"{text}.", "Fetch new ones before a long run.")
    return ok(name, f"{text}.")


def instance_check(profile: Profile | None, service: MetadataService | None = None) -> Check:
    """The instance's region against the bucket's."""
    name = "instance"
    try:
        found = (service or MetadataService()).instance()
    except MetadataError:
        return ok(name, "Not an ECS instance: no metadata service answers here.")
    text = f"{found.instance_type} in {found.zone or found.region}"
    if profile is None or profile.simulated:
        return ok(name, f"{text}.")
    caution = region_caution(found.region, profile.region, profile.endpoints.values())
    remedy = f"Use an instance in {profile.region}, or a bucket in {found.region}."
    return warn(name, f"{text}. {caution}", remedy) if caution else ok(name, f"{text}.")


def failed(name: str, error: ConsoleError) -> Check:
    return fail(name, error.message, error.remedy)


def _end(credentials: Credentials, now: datetime) -> str:
    if credentials.expiration is None:
        return "which does not expire"
    left = credentials.expiration - now
    if left <= timedelta(0):
        return f"ended at {credentials.expiration:%Y-%m-%d %H:%M:%S} UTC"
    minutes = int(left.total_seconds() // 60)
    return f"ends in {minutes // 60} h {minutes % 60} min"
