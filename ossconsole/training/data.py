"""The dataset of a run: single objects, or members of tar shards.

No torch here: errors of the dataset are reported before torch is imported.
"""

from __future__ import annotations

import hashlib
import shlex
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted
from ossconsole.dataset.crop import EVAL_MARGIN
from ossconsole.dataset.labels import VAL_LABELS_NAME, LabelFiles
from ossconsole.dataset.listing import HARMLESS, LABELS, NO_VAL_LABELS, OnProgress, manifest_from_listing
from ossconsole.dataset.manifest import (
    SHARDS_NAME,
    TRAIN,
    VAL,
    Manifest,
    ManifestMissingError,
    Sample,
    Unused,
    object_key,
    read_manifest_in_parts,
)
from ossconsole.dataset.shards.index import PackedShardList, Shard, read_shards
from ossconsole.storage.client import ObjectStore
from ossconsole.telemetry.events import percent


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


UNKNOWN_MD5 = bytes(16)


@dataclass(frozen=True)
class TextColumn:
    """Strings in one array: number i is the UTF-8 of `text` (uint8) from `starts[i]` to `starts[i + 1]` (int64)."""

    starts: npt.NDArray[np.int64]
    text: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, values: Iterable[str]) -> TextColumn:
        """The column of `values`."""
        text, ends = bytearray(), array("q", [0])
        for value in values:
            text += value.encode()
            ends.append(len(text))
        return cls(np.frombuffer(ends, np.int64), np.frombuffer(text, np.uint8))

    @classmethod
    def joined(cls, parts: Sequence[TextColumn]) -> TextColumn:
        """The strings of all `parts`, at least one."""
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        return cls(np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([part.text for part in parts]))

    def where(self, rows: npt.NDArray[np.bool_]) -> TextColumn:
        """The strings of the `rows` that are true."""
        lengths = np.diff(self.starts)
        starts = np.concatenate([[0], np.cumsum(lengths[rows])])
        return TextColumn(starts, self.text[np.repeat(rows, lengths)])

    def __iter__(self) -> Iterator[str]:
        return map(self.get, range(len(self.starts) - 1))

    def get(self, number: int) -> str:
        """String number `number`."""
        return self.text[self.starts[number] : self.starts[number + 1]].tobytes().decode()


@dataclass(frozen=True)
class SampleColumns:
    """The samples of a split, one array per field: about 70 bytes per sample.

    `keys` are relative to the dataset prefix, or names in tars. `labels` are int64; `heights` and `widths` uint16 in
    pixels, 0 where unknown; `sizes` int64 in bytes; `crc64s` uint64, 0 where unknown; `md5s` have 16 bytes, zeros where
    unknown, and are empty where all are unknown.
    """

    keys: TextColumn
    labels: npt.NDArray[np.int64]
    heights: npt.NDArray[np.uint16]
    widths: npt.NDArray[np.uint16]
    sizes: npt.NDArray[np.int64]
    crc64s: npt.NDArray[np.uint64]
    md5s: npt.NDArray[np.void]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, samples: Sequence[Sample], size_of: Callable[[Sample], int]) -> SampleColumns:
        """The columns of `samples`; `size_of` returns the bytes of one."""
        count = len(samples)
        return cls(
            TextColumn.of(sample.key for sample in samples),
            np.fromiter((sample.label for sample in samples), np.int64, count),
            np.fromiter((sample.height for sample in samples), np.uint16, count),
            np.fromiter((sample.width for sample in samples), np.uint16, count),
            np.fromiter(map(size_of, samples), np.int64, count),
            np.fromiter((sample.crc64 for sample in samples), np.uint64, count),
            _md5_column(samples),
        )

    def where(self, rows: npt.NDArray[np.bool_]) -> SampleColumns:
        """The samples of the `rows` that are true, in their order."""
        return SampleColumns(
            self.keys.where(rows),
            self.labels[rows],
            self.heights[rows],
            self.widths[rows],
            self.sizes[rows],
            self.crc64s[rows],
            self.md5s[rows] if len(self.md5s) else self.md5s,
        )

    @classmethod
    def joined(cls, parts: Sequence[SampleColumns]) -> SampleColumns:
        """The samples of all `parts`, at least one."""
        return cls(
            TextColumn.joined([part.keys for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.heights for part in parts]),
            np.concatenate([part.widths for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.crc64s for part in parts]),
            _joined_md5s(parts),
        )


def _joined_md5s(parts: Sequence[SampleColumns]) -> npt.NDArray[np.void]:
    """The MD5s of all parts, empty where all are unknown."""
    if not any(len(part.md5s) for part in parts):
        return parts[0].md5s
    return np.concatenate([part.md5s if len(part.md5s) else np.zeros(len(part), "V16") for part in parts])


def _md5_column(samples: Sequence[Sample]) -> npt.NDArray[np.void]:
    digests = bytearray()
    if any(sample.md5 for sample in samples):
        for sample in samples:
            digests += bytes.fromhex(sample.md5) or UNKNOWN_MD5
    return np.frombuffer(digests, "V16")


_NO_SAMPLES = SampleColumns.of((), lambda _: 0)

USUAL_SIZE = 224
"""The side of training images, pixels, where the stored size is unknown: that of ImageNet models."""


class TrainingData:
    """A dataset below `prefix`: its classes by label, its format, its stored size in pixels (0 = unknown), its samples.

    Samples of shards are in stored order. `sharded` is whether they are members of tars. `unused` are objects below
    `train/` and `val/` that are not samples. `notes` say how the dataset was found and split.
    """

    def __init__(
        self,
        manifest: Manifest,
        prefix: str,
        tars: dict[str, Tars] | None = None,
        *,
        unused: tuple[Unused, ...] = (),
        notes: tuple[str, ...] = (),
        splits: dict[str, SampleColumns] | None = None,
    ) -> None:
        """`splits` are the samples where `manifest` does not have them."""
        self.classes = manifest.classes
        self.format = manifest.format
        self.size = manifest.size
        self.splits = columns_of(manifest) if splits is None else splits
        self.sharded = tars is not None
        self.prefix = prefix
        self._unused = unused
        self._notes = notes
        self._tars = tars or {}

    @property
    def remarks(self) -> list[Remark]:
        """The objects that are not used although they may be samples."""
        remedy = (
            f"Put {VAL_LABELS_NAME} into the working directory, or name a file of their labels with --val-labels. "
            f"To keep it in the bucket: ossconsole upload {VAL_LABELS_NAME} --plain --to {shlex.quote(self.prefix)}"
        )
        return [
            Remark(f"Not used: {group}.", remedy if group.reason == NO_VAL_LABELS else "")
            for group in self._unused
            if group.reason not in HARMLESS
        ]

    @property
    def notes(self) -> list[str]:
        """How the dataset was found and split, and which other objects are not used."""
        return [*self._notes, *(f"Not used: {group}." for group in self._unused if group.reason in HARMLESS)]

    @property
    def missing(self) -> str:
        """What the dataset lacks, and the consequence; "" when nothing is missing."""
        if self.count(VAL):
            return ""
        return "There are no validation samples: no accuracy is measured, and no best checkpoint is kept."

    @property
    def bytes(self) -> int:
        """Bytes of all samples."""
        return sum(int(columns.sizes.sum()) for columns in self.splits.values())

    @property
    def tar_bytes(self) -> dict[str, int] | None:
        """The bytes of the tars by split; None for single objects."""
        return {split: sum(tar.bytes for tar in tars.tars) for split, tars in self._tars.items()} or None

    def columns(self, split: str) -> SampleColumns:
        """The samples of a split; empty without the split."""
        return self.splits.get(split, _NO_SAMPLES)

    def count(self, split: str) -> int:
        """The number of samples of a split, 0 without the split."""
        return len(self.columns(split))

    def image_size(self, wanted: int) -> int:
        """The side of training images in pixels; `wanted` is the setting, 0 for automatic."""
        if wanted or not self.format.encoded:
            return wanted or self.size
        return round(self.size / EVAL_MARGIN) or USUAL_SIZE

    def tars(self, split: str) -> Tars:
        """The tars of a split; empty for single objects."""
        return self._tars.get(split, _NO_TARS)

    def object_of(self, split: str, row: int) -> str:
        """The key of the object that holds a sample."""
        if self.sharded:
            tars = self._tars[split]
            return tars.tars[int(np.searchsorted(tars.starts, row, side="right")) - 1].key
        return object_key(self.prefix, self.splits[split].keys.get(row))


def training_data(
    store: ObjectStore,
    prefix: str,
    *,
    val_split: float = 0.0,
    seed: int = 0,
    labels: LabelFiles = LabelFiles(),  # noqa: B008 - frozen
    on_progress: OnProgress = lambda _listed: None,
) -> TrainingData:
    """The dataset below `prefix`, by its manifest, its list of shards, or a listing. Raises ConsoleError.

    `labels` names the label files of a listing: a manifest or a list of shards has its labels.
    Where it has single objects and no validation samples, the share `val_split` of each class is held out for that.
    `on_progress` gets the number of objects listed so far; what it raises ends the listing.
    """
    unused: tuple[Unused, ...] = ()
    notes: tuple[str, ...] = ()
    try:
        manifest, splits = _read_columns(store, prefix)
        if labels != LabelFiles():
            notes = (f"The manifest has the labels of the dataset: {_options(labels)} is not used.",)
    except ManifestMissingError as error:
        if error.empty:
            raise
        if store.exists(object_key(prefix, SHARDS_NAME)):
            return _with_training_split(_sharded(*read_shards(store, prefix), prefix), store)
        began = time.monotonic()
        manifest, unused = manifest_from_listing(store, prefix, on_progress, labels)
        notes = (_listed_note(manifest, prefix, labels, time.monotonic() - began),)
        splits = columns_of(manifest)
        manifest = msgspec.structs.replace(manifest, splits={})
    splits, held_out = hold_out(splits, val_split, seed)
    notes = (*notes, held_out) if held_out else notes
    return _with_training_split(TrainingData(manifest, prefix, unused=unused, notes=notes, splits=splits), store)


def columns_of(manifest: Manifest) -> dict[str, SampleColumns]:
    """The samples of each split."""
    return {split: SampleColumns.of(samples, manifest.sample_bytes) for split, samples in manifest.splits.items()}


def _read_columns(store: ObjectStore, prefix: str) -> tuple[Manifest, dict[str, SampleColumns]]:
    """The manifest without its samples, and these; a million as objects would take 400 MB more. Raises ConsoleError."""
    manifest, parts = read_manifest_in_parts(store, prefix)
    columns: dict[str, list[SampleColumns]] = {}
    for split, samples in parts:
        columns.setdefault(split, []).append(SampleColumns.of(samples, manifest.sample_bytes))
    return manifest, {split: SampleColumns.joined(found) for split, found in columns.items()}


def _with_training_split(data: TrainingData, store: ObjectStore) -> TrainingData:
    if not data.count(TRAIN):
        raise ConsoleError(
            f"The dataset {store.uri(data.prefix)} has no training split.",
            remedy="Upload a folder with images in train/<class>/.",
        )
    return data


def _listed_note(manifest: Manifest, prefix: str, labels: LabelFiles, seconds: float) -> str:
    counts = " and ".join(counted(len(samples), f"{split} image") for split, samples in manifest.splits.items())
    found = f": {manifest.preparation[LABELS]}" if LABELS in manifest.preparation else ""
    command = f"ossconsole manifest --dataset-prefix {shlex.quote(prefix)} {_options(labels)}".rstrip()
    return f"Listed {counts} in {seconds:.1f} s{found}. To keep the list: {command}"


def _options(labels: LabelFiles) -> str:
    """The options of the command line for the label files."""
    given = {"--val-labels": labels.val_labels, "--class-index": labels.class_index}
    return " ".join(f"{name} {shlex.quote(value)}" for name, value in given.items() if value)


def hold_out(splits: dict[str, SampleColumns], share: float, seed: int) -> tuple[dict[str, SampleColumns], str]:
    """The splits with `share` of the training samples of each class as the validation split, and a line about it.

    Unchanged, with "", where there is a validation split already or the classes are too small for the share.
    """
    train = splits.get(TRAIN, _NO_SAMPLES)
    if VAL in splits or not len(train) or not share:
        return splits, ""
    held = held_out_rows(train.keys, train.labels, share, seed)
    if not held.any():
        return splits, ""
    text = f"{percent(share)} of the training images ({held.sum():,}) are held out for validation."
    return {TRAIN: train.where(~held), VAL: train.where(held)}, text


def held_out_rows(
    keys: Iterable[str], labels: Sequence[int] | npt.NDArray[np.int64], share: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Which samples are held out, shape (samples,): `share` of each class, rounded, and never all of one.

    A class's samples are in the order of a hash of seed and key: the same in every run, whatever the other classes are.
    """
    classes = np.asarray(labels, np.int64)
    hashes = bytearray()
    seeded = hashlib.blake2b(f"{seed}/".encode(), digest_size=8)
    for key in keys:
        keyed = seeded.copy()
        keyed.update(key.encode())
        hashes += keyed.digest()
    order = np.lexsort((np.frombuffer(hashes, ">u8"), classes))
    counts = np.bincount(classes)
    wanted = np.minimum(np.floor(counts * share + 0.5).astype(np.int64), np.maximum(counts - 1, 0))
    firsts = np.cumsum(counts) - counts
    held = np.zeros(len(classes), np.bool_)
    ordered = classes[order]
    held[order] = np.arange(len(order)) - firsts[ordered] < wanted[ordered]
    return held


def _sharded(listed: PackedShardList, shards: Iterable[Shard], prefix: str) -> TrainingData:
    manifest = Manifest(
        format=listed.format, size=listed.size, classes=listed.classes, preparation=listed.preparation, splits={}
    )
    columns: dict[str, list[SampleColumns]] = {}
    tars: dict[str, list[Tar]] = {}
    offsets: dict[str, list[npt.NDArray[np.int64]]] = {}
    for shard in shards:  # one at a time: a million samples as objects would take 0.5 GB
        samples = [
            Sample(each.key, each.label, each.height, each.width, each.crc64, each.bytes) for each in shard.samples
        ]
        columns.setdefault(shard.split, []).append(SampleColumns.of(samples, manifest.sample_bytes))
        tars.setdefault(shard.split, []).append(Tar(object_key(prefix, shard.tar), shard.bytes))
        offsets.setdefault(shard.split, []).append(np.array([each.offset for each in shard.samples], np.int64))
    data = TrainingData(
        manifest,
        prefix,
        {
            split: Tars(
                tuple(tars[split]),
                np.cumsum([0, *map(len, columns[split][:-1])], dtype=np.int64),
                np.concatenate(offsets[split]),
            )
            for split in tars
        },
    )
    data.splits.update({split: SampleColumns.joined(parts) for split, parts in columns.items()})
    return data
