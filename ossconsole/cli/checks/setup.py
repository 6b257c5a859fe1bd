"""Checks of the setup: settings, credentials, connector configuration, instance and dataset."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from ossconsole.config.checks import Check, LimitError, fail, limited, ok, warn
from ossconsole.config.connector import QUIET_LOG_LEVEL, connector_config_path, load_connector_config
from ossconsole.config.credential_sources import FileSource, loose_mode
from ossconsole.config.credentials import Credentials, CredentialSource, mask_key_id
from ossconsole.config.endpoints import region_caution
from ossconsole.config.errors import ConsoleError
from ossconsole.config.metadata import MetadataError, MetadataService
from ossconsole.config.profiles import Profile
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import SHARDS_NAME, SPLITS, ManifestMissingError, manifest_key, object_key
from ossconsole.storage.errors import StorageError

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.training.data import TrainingData

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


LARGE_MANIFEST_BYTES = 32 << 20  # about 400,000 samples; reading more would keep the other checks waiting
LISTING_LIMIT_S = 4.0  # a dataset without a manifest may have any number of objects
_NAME = "dataset"


def dataset_check(store: ObjectStore) -> tuple[Check, int | None]:
    """The check, and the dataset's size in bytes, None where it is not known. Raises StorageError."""
    from ossconsole.training.data import training_data

    prefix = store.profile.dataset_prefix
    try:
        if large := _large_list(store, prefix):
            return ok(_NAME, large), None
        data = limited(LISTING_LIMIT_S, lambda: training_data(store, prefix), f"Listing {store.uri(prefix)}")
    except LimitError:
        detail = f"{store.uri(prefix)} has no manifest: training lists its objects each time, which takes long here."
        return warn(_NAME, detail, "Upload it with `ossconsole upload`, which writes a manifest."), None
    except ManifestMissingError as error:
        return warn(_NAME, error.message, error.remedy), None
    except StorageError:
        raise
    except ConsoleError as error:
        return fail(_NAME, error.message, error.remedy), None
    return _judge(data, store.uri(prefix))


def _large_list(store: ObjectStore, prefix: str) -> str:
    """What to say of a manifest or list of shards that is too long to be read here; "" for any other."""
    for key in (manifest_key(prefix), object_key(prefix, SHARDS_NAME)):
        if store.exists(key):
            size = store.head(key).size
            return f"{store.uri(key)} has {size / 1e6:,.0f} MB; it was not read." if size > LARGE_MANIFEST_BYTES else ""
    return ""


def _judge(data: TrainingData, uri: str) -> tuple[Check, int]:
    manifest = data.manifest
    counts = ", ".join(f"{data.count(split):,} {split}" for split in SPLITS if data.count(split))
    size = sum(manifest.sample_bytes(sample) for samples in manifest.splits.values() for sample in samples)
    stored = " in tar shards" if data.sharded else ""
    classes = counted(len(manifest.classes), "class", "classes")
    text = (
        f"{uri}: {counts} in {classes}, {manifest.format} at {manifest.size} px{stored}, "
        f"{size / 1e9:,.2f} GB. {data.missing}"
    ).rstrip()
    if not data.remarks:
        return ok(_NAME, text), size
    messages = " ".join(remark.message for remark in data.remarks)
    remedy = next((remark.remedy for remark in data.remarks if remark.remedy), "")
    return warn(_NAME, f"{text} {messages}", remedy), size
