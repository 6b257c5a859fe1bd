"""Helpers for tests that upload through a sandbox."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest
from ossconsole.dataset.shards.index import PackedShardList, Shard, read_shards
from ossconsole.dataset.upload.job import UploadSettings, UploadSummary
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.dataset.upload.prepare import PreprocessConfig, prepare
from ossconsole.storage.client import ObjectStore

WAIT_S = 60.0


def settings_for(source: Path, fmt: SampleFormat = SampleFormat.IMAGE_U8, **changes: object) -> UploadSettings:
    """One preparation process and small samples, so that a test is quick."""
    chosen: dict[str, object] = {"size": 16, "workers": 1, "parallelism": 4, **changes}
    return UploadSettings(source=source, format=fmt, **chosen)  # type: ignore[arg-type]


def upload(profile: Profile, credentials: CredentialSource, settings: UploadSettings) -> UploadSummary:
    job = create_upload(profile, credentials, settings)
    job.start()
    return job.result(WAIT_S)


def bucket(store: ObjectStore, prefix: str) -> dict[str, bytes]:
    """What is below the prefix, without the manifest."""
    below = f"{prefix}/"
    found = {summary.key[len(below) :]: store.get(summary.key) for summary in store.list_all(below)}
    found.pop(MANIFEST_NAME, None)
    return found


def wanted(source: Path, recipe: PreprocessConfig) -> dict[str, bytes]:
    """What the bucket should have, prepared here and now one by one, for sources of `N.jpg` in class folders."""
    samples = {}
    for path in source.rglob("*.jpg"):
        key = str(path.relative_to(source).with_suffix(recipe.format.suffix))
        samples[key] = prepare(path.read_bytes(), key, recipe).payload
    return samples


def check_manifest_is_the_bucket(store: ObjectStore, prefix: str) -> Manifest:
    """Every object is listed with its size, and nothing else is."""
    manifest = read_manifest(store, prefix)
    listed = {sample.key: manifest.sample_bytes(sample) for samples in manifest.splits.values() for sample in samples}
    assert listed == {key: len(data) for key, data in bucket(store, prefix).items()}
    for samples in manifest.splits.values():
        assert all(sample.key.split("/")[1] == manifest.classes[sample.label] for sample in samples)
    return manifest


class ShardList(PackedShardList, frozen=True, kw_only=True):
    """The content of `shards.json` with its samples."""

    shards: tuple[Shard, ...]  # type: ignore[assignment]


def read_shard_list(store: ObjectStore, prefix: str) -> ShardList:
    found, shards = read_shards(store, prefix)
    return ShardList(**{**msgspec.structs.asdict(found), "shards": tuple(shards)})
