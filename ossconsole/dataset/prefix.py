"""The dataset prefix: one dataset of one kind."""

from __future__ import annotations

import msgspec

from ossconsole.config.errors import SettingsError
from ossconsole.dataset.manifest import Manifest, ManifestError, ManifestMissingError, read_manifest
from ossconsole.dataset.settings import UploadSettings
from ossconsole.storage.client import ObjectStore


class PrefixTakenError(SettingsError):
    """The dataset prefix holds a dataset of another kind."""


class Found(msgspec.Struct, frozen=True):
    """What is below the prefix before an upload: nothing, a dataset with its manifest, or other objects."""

    empty: bool
    manifest: Manifest | None = None


def check_prefix(store: ObjectStore, prefix: str, settings: UploadSettings) -> Found:
    """What is below the prefix.

    Raises PrefixTakenError when its dataset has another format or size, StorageError when OSS refuses to tell.
    """
    try:
        manifest = read_manifest(store, prefix)
    except ManifestMissingError as error:
        return Found(empty=error.empty)
    except ManifestError:  # to be replaced by a good one
        return Found(empty=False)
    if (manifest.format, manifest.size) != (settings.format, settings.size):
        raise PrefixTakenError(
            f"{store.uri(prefix)} holds a dataset of {manifest.format} at {manifest.size} px, "
            f"not of {settings.format} at {settings.size} px.",
            remedy="Give this one another place with --dataset-prefix.",
        )
    return Found(empty=False, manifest=manifest)
