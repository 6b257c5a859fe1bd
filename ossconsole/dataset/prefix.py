"""The dataset prefix: one dataset of one kind."""

from __future__ import annotations

from ossconsole.config.errors import SettingsError
from ossconsole.dataset.manifest import ManifestError, object_key, read_manifest
from ossconsole.dataset.settings import UploadSettings
from ossconsole.storage.client import ObjectStore


class PrefixTakenError(SettingsError):
    """The dataset prefix holds a dataset of another kind."""


def check_prefix(store: ObjectStore, prefix: str, settings: UploadSettings) -> bool:
    """Whether nothing is below the prefix yet.

    Raises PrefixTakenError when its dataset has another format or size, StorageError when OSS refuses to tell.
    """
    try:
        manifest = read_manifest(store, prefix)
    except ManifestError:
        return not store.list_page(object_key(prefix, ""), delimiter="", max_keys=1).objects
    if (manifest.format, manifest.size) != (settings.format, settings.size):
        raise PrefixTakenError(
            f"{store.uri(prefix)} holds a dataset of {manifest.format} at {manifest.size} px, "
            f"not of {settings.format} at {settings.size} px.",
            remedy="Give this one another place with --dataset-prefix.",
        )
    return False
