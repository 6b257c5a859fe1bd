"""The check of the dataset: what a run would train on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ossconsole.config.checks import Check, LimitError, fail, limited, ok, warn
from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.dataset.manifest import SHARDS_NAME, SPLITS, ManifestMissingError, manifest_key, object_key
from ossconsole.storage.errors import StorageError

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.training.data import TrainingData

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
        f"{size / 1e9:,.2f} GB. {data.lacking}"
    ).rstrip()
    if not data.remarks:
        return ok(_NAME, text), size
    messages = " ".join(remark.message for remark in data.remarks)
    remedy = next((remark.remedy for remark in data.remarks if remark.remedy), "")
    return warn(_NAME, f"{text} {messages}", remedy), size
