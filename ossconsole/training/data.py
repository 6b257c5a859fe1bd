"""The dataset that a run trains on. No torch here: what is wrong with it is told before that is loaded."""

from __future__ import annotations

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import TRAIN, Manifest, ManifestMissingError, manifest_from_listing, read_manifest
from ossconsole.storage.client import ObjectStore


def training_manifest(store: ObjectStore, prefix: str) -> Manifest:
    """The manifest of a dataset to train on, made from a listing where there is none. Raises ConsoleError."""
    try:
        manifest = read_manifest(store, prefix)
    except ManifestMissingError as error:
        if error.empty:
            raise
        manifest = manifest_from_listing(store, prefix)
    if TRAIN not in manifest.splits:
        raise ConsoleError(
            f"The dataset {store.uri(prefix)} has no training split.",
            remedy="Upload a folder that has train/<class>/ pictures.",
        )
    return manifest
