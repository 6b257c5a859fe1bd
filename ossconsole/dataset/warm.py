"""Which objects a warm-up reads: those of a dataset, or those below a prefix."""

from __future__ import annotations

from ossconsole.config.text import counted
from ossconsole.dataset.manifest import ManifestMissingError, object_key, read_manifest
from ossconsole.dataset.shards.index import read_packed_list
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.warm import WarmItem, WarmSource


def dataset_source(store: ObjectStore, prefix: str) -> WarmSource:
    """The samples of the manifest, or the shards with their indexes, or what is listed. Raises ConsoleError."""
    try:
        manifest = read_manifest(store, prefix)
    except ManifestMissingError as error:
        if error.empty:
            raise
        packed = read_packed_list(store, prefix)
        if packed is None:
            return listed_source(store, f"{prefix}/" if prefix else "")
        shards = packed.shards
        return WarmSource(
            f"{store.uri(prefix)}, by its list of shards",
            lambda: (
                item
                for shard in shards
                for item in (
                    WarmItem(object_key(prefix, shard.tar), shard.bytes, shard.etag),
                    WarmItem(object_key(prefix, shard.index), 0, shard.index_etag),
                )
            ),
        )
    return WarmSource(
        f"{store.uri(prefix)}, by its manifest",
        lambda: (
            WarmItem(object_key(prefix, sample.key), manifest.sample_bytes(sample), sample.md5 or str(sample.crc64))
            for samples in manifest.splits.values()
            for sample in samples
        ),
    )


def listed_source(store: ObjectStore, prefix: str) -> WarmSource:
    """Every object whose key begins with `prefix` and that can be read, listed now. Raises StorageError."""
    found: list[WarmItem] = []
    archived = 0
    for one in store.list_all(prefix):
        if one.size and one.readable:
            found.append(WarmItem(one.key, one.size, one.etag))
        archived += not one.readable
    without = f" without {counted(archived, 'archived object')}" if archived else ""
    return WarmSource(f"{store.uri(prefix)}, listed{without}", lambda: found)
