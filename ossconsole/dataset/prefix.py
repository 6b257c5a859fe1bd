"""The dataset prefix: one dataset of one kind."""

from __future__ import annotations

import msgspec

from ossconsole.config.errors import SettingsError
from ossconsole.dataset.manifest import SHARDS_NAME, ManifestError, ManifestMissingError, object_key, read_manifest_head
from ossconsole.dataset.settings import UploadSettings
from ossconsole.storage.client import ObjectStore


class PrefixTakenError(SettingsError):
    """The dataset prefix holds a dataset of another kind."""


class Found(msgspec.Struct, frozen=True):
    """What is below the prefix before an upload: nothing, a dataset with its manifest, or other objects."""

    empty: bool
    has_manifest: bool = False


def check_prefix(store: ObjectStore, prefix: str, settings: UploadSettings, *, shards: bool = False) -> Found:
    """What is below the prefix; with `shards` a dataset of shards may be there.

    Raises PrefixTakenError when its dataset has another format or size, StorageError when OSS refuses to tell.
    """
    try:
        head = read_manifest_head(store, prefix)
    except ManifestMissingError as error:
        if not shards and not error.empty and store.exists(object_key(prefix, SHARDS_NAME)):
            raise PrefixTakenError(
                f"{store.uri(prefix)} holds a dataset of shards.",
                remedy="Give this one another place with --dataset-prefix.",
            ) from error
        return Found(empty=error.empty)
    except ManifestError:  # to be replaced by a good one
        return Found(empty=False)
    if (head.format, head.size) != (settings.format, settings.size):
        raise PrefixTakenError(
            f"{store.uri(prefix)} holds a dataset of {head.format} at {head.size} px, "
            f"not of {settings.format} at {settings.size} px.",
            remedy="Give this one another place with --dataset-prefix.",
        )
    return Found(empty=False, has_manifest=True)
