"""The check of the dataset: its manifest, or why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ossconsole.config.checks import Check, fail, ok, warn
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import (
    ManifestError,
    ManifestMissingError,
    manifest_key,
    read_manifest,
)

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

LARGE_MANIFEST_BYTES = 32 << 20  # about 400,000 samples; reading more would keep the other checks waiting


def dataset_check(store: ObjectStore) -> tuple[Check, int | None]:
    """The check, and the dataset's size in bytes, None where it is not known. Raises StorageError."""
    name = "dataset"
    prefix = store.profile.dataset_prefix
    key = manifest_key(prefix)
    try:
        if store.exists(key) and (size := store.head(key).size) > LARGE_MANIFEST_BYTES:
            return ok(name, f"{store.uri(key)} has {size / 1e6:,.0f} MB; it was not read."), None
        manifest = read_manifest(store, prefix)
    except ManifestMissingError as error:
        return warn(name, error.message, error.remedy), None
    except ManifestError as error:
        return fail(name, error.message, error.remedy), None
    counts = ", ".join(f"{len(samples):,} {split}" for split, samples in manifest.splits.items())
    total = sum(manifest.sample_bytes(sample) for samples in manifest.splits.values() for sample in samples)
    classes = counted(len(manifest.classes), "class", "classes")
    text = f"{counts} in {classes}, {manifest.format} at {manifest.size} px, {total / 1e9:,.2f} GB"
    return ok(name, f"{store.uri(prefix)}: {text}."), total
