"""The dataset of a run: single objects, or members of tar shards.

No torch here: errors of the dataset are reported before torch is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import (
    SHARDS_NAME,
    TRAIN,
    VAL,
    VAL_LABELS_NAME,
    Manifest,
    ManifestMissingError,
    Sample,
    Unused,
    manifest_from_listing,
    object_key,
    read_manifest,
)
from ossconsole.dataset.shards.index import ShardList, read_shard_list
from ossconsole.storage.client import ObjectStore


class Tar(NamedTuple):
    """A tar in the bucket, and its bytes."""

    key: str
    bytes: int


@dataclass(frozen=True)
class Tars:
    """The tars of a split, in the order of its samples.

    `starts[i]` is the row of the first sample of tar i, int64; sample i begins at byte `offsets[i]` of its tar, int64.
    """

    tars: tuple[Tar, ...]
    starts: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


_NO_TARS = Tars((), np.zeros(0, np.int64), np.zeros(0, np.int64))


class Remark(NamedTuple):
    """A remark on a dataset, and what to do about it."""

    message: str
    remedy: str


class TrainingData:
    """A dataset below `prefix`. `manifest` lists its samples, those of shards in stored order.

    `sharded` is whether they are members of tars. `unused` are objects below `train/` and `val/` that are not samples.
    """

    def __init__(
        self,
        manifest: Manifest,
        prefix: str,
        tars: dict[str, Tars] | None = None,
        unused: tuple[Unused, ...] = (),
    ) -> None:
        self.manifest = manifest
        self._unused = unused
        self.sharded = tars is not None
        self._prefix = prefix
        self._tars = tars or {}

    @property
    def remarks(self) -> list[Remark]:
        """Which objects of the dataset are not used."""
        remedy = f"To use it: ossconsole upload {VAL_LABELS_NAME} --plain --to {self._prefix}"
        return [
            Remark(f"Not used: {group}.", remedy if VAL_LABELS_NAME in group.reason else "") for group in self._unused
        ]

    @property
    def missing(self) -> str:
        """What the dataset lacks, and the consequence; "" when nothing is missing."""
        if self.count(VAL):
            return ""
        return "There are no validation samples: no accuracy is measured, and no best checkpoint is kept."

    def samples(self, split: str, rows: npt.NDArray[np.int64]) -> list[Sample]:
        """The samples at `rows` of a split."""
        samples = self.manifest.splits[split]
        return [samples[row] for row in rows]

    def count(self, split: str) -> int:
        """The number of samples of a split, 0 without the split."""
        return len(self.manifest.splits.get(split, ()))

    def keys(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """The object keys of the samples, or their names in the tars."""
        if self.sharded:
            return tuple(sample.key for sample in samples)
        return tuple(object_key(self._prefix, sample.key) for sample in samples)

    def tars(self, split: str) -> Tars:
        """The tars of a split; empty for single objects."""
        return self._tars.get(split, _NO_TARS)

    def stored_bytes(self, split: str) -> int:
        """The bytes of all tars of a split; 0 for single objects."""
        return sum(tar.bytes for tar in self.tars(split).tars)

    def object_of(self, split: str, row: int) -> str:
        """The key of the object that holds a sample."""
        if self.sharded:
            tars = self._tars[split]
            return tars.tars[int(np.searchsorted(tars.starts, row, side="right")) - 1].key
        return object_key(self._prefix, self.manifest.splits[split][row].key)


def training_data(store: ObjectStore, prefix: str) -> TrainingData:
    """The dataset below `prefix`, by its manifest, its list of shards, or a listing. Raises ConsoleError."""
    try:
        data = TrainingData(read_manifest(store, prefix), prefix)
    except ManifestMissingError as error:
        if error.empty:
            raise
        if store.exists(object_key(prefix, SHARDS_NAME)):
            data = _sharded(read_shard_list(store, prefix), prefix)
        else:
            manifest, unused = manifest_from_listing(store, prefix)
            data = TrainingData(manifest, prefix, unused=unused)
    if not data.count(TRAIN):
        raise ConsoleError(
            f"The dataset {store.uri(prefix)} has no training split.",
            remedy="Upload a folder with images in train/<class>/.",
        )
    return data


def _sharded(listed: ShardList, prefix: str) -> TrainingData:
    splits: dict[str, tuple[Sample, ...]] = {}
    tars: dict[str, Tars] = {}
    for split in {shard.split for shard in listed.shards}:
        shards = [shard for shard in listed.shards if shard.split == split]
        splits[split] = tuple(
            Sample(sample.key, sample.label, sample.height, sample.width, sample.crc64, sample.bytes)
            for shard in shards
            for sample in shard.samples
        )
        ends = np.cumsum([len(shard.samples) for shard in shards])
        tars[split] = Tars(
            tuple(Tar(object_key(prefix, shard.tar), shard.bytes) for shard in shards),
            np.concatenate([[0], ends[:-1]]).astype(np.int64),
            np.fromiter((sample.offset for shard in shards for sample in shard.samples), np.int64, len(splits[split])),
        )
    manifest = Manifest(
        format=listed.format,
        size=listed.size,
        classes=listed.classes,
        preparation=listed.preparation,
        splits=splits,
    )
    return TrainingData(manifest, prefix, tars)
