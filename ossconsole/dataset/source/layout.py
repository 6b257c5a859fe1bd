"""Layout: the split and class of each file of a source, and the key of its sample."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import decode_json
from ossconsole.dataset.manifest import (
    CLASS_INDEX_NAME,
    SPLITS,
    TRAIN,
    VAL,
    VAL_LABELS_NAME,
    Unused,
    key_problem,
    unique_classes,
)
from ossconsole.dataset.source.files import (
    MAX_LABEL_FILE_BYTES,
    TAR_SUFFIXES,
    FileLocation,
    FolderEntry,
    FolderSource,
    ImageSource,
    PathLocation,
    SourceFile,
    UnreadableEntry,
    open_source,
    read_location,
)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""The extensions of image files: torchvision.datasets.folder.IMG_EXTENSIONS."""

_LABEL_FILES = (VAL_LABELS_NAME, CLASS_INDEX_NAME)
_OUTSIDE = "neither below train/ nor below val/"
_ADVICE = "Put images into train/<class>/ and val/<class>/."
_ADVICE_LABELS = f"Sort val/ into class folders, or put {VAL_LABELS_NAME} beside the source."
_ADVICE_OUTSIDE = (
    "If these are the images of one class, unpack them into train/<class>/ of a folder, and upload that folder; "
    f"validation images go into its val/, with {VAL_LABELS_NAME} beside the folder."
)
_JPEG_SUFFIXES = (".jpeg", ".jpg")
_TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
ARCHIVE_AND_TABLE_SUFFIXES = (*TAR_SUFFIXES, ".zip", *_TABLE_SUFFIXES)
"""The endings of sources that are files."""

_PATH_COLUMNS = ("path", "file", "filename", "image")
_LABEL_COLUMNS = ("label", "class")
_SPLIT_COLUMNS = ("split", "subset")


class PlannedSample(msgspec.Struct, frozen=True, gc=False):
    """One image to become a sample.

    `path` is inside the source. `key` is relative to the dataset prefix and without the format's suffix; `spare_key`
    replaces it when another file has that key already (`a.jpg` beside `a.jpeg`).
    """

    path: str
    split: str
    class_name: str
    key: str
    spare_key: str
    size: int
    mtime_ns: int
    location: FileLocation

    def keys(self, suffix: str) -> tuple[str, ...]:
        """The key and the spare key with the format's `suffix`; for "" the key that keeps the file's own suffix."""
        return (self.key + suffix, self.spare_key + suffix) if suffix else (self.spare_key,)


class SkippedFile(msgspec.Struct, frozen=True, gc=False):
    """A file that does not become a sample, and why. `lost` when it should have become one."""

    path: str
    reason: str
    lost: bool


PlanItem: TypeAlias = PlannedSample | SkippedFile
T = TypeVar("T")


class Layout:
    """The plan of a source: each call of `items()` iterates over every file without keeping any of them."""

    def __init__(self, path: Path) -> None:
        """Reads the label files. Raises ConsoleError when `path` is not a source or they are malformed."""
        delimiter = _TABLE_SUFFIXES.get(path.suffix.lower())
        self._table = _Table(path, delimiter) if delimiter and path.is_file() else None
        self._source: ImageSource | None = None if self._table else open_source(path)
        self._inside: dict[str, bytes] = {}
        self._searched_inside = False
        self._labels = self._read_labels()
        self._class_index = self._read_class_index()
        self.unused: tuple[Unused, ...] = ()
        """Classes, folders and label files that no sample uses; known once `items` has ended."""
        self.advice = _ADVICE
        """The remedy when there is no sample; known once `items` has ended."""

    @property
    def countable(self) -> bool:
        """Whether iterating over `items()` a second time just to count is cheap."""
        return self._source is None or self._source.countable

    def counts(self) -> Iterator[int]:
        """Numbers of files whose sum is about that of `items`."""
        if isinstance(self._source, FolderSource):
            yield from self._source.counts()
        else:
            yield from (1 for _ in self.items())

    def items(self) -> Iterator[PlanItem]:
        """Every file as a sample or a skipped one. Raises ConsoleError when the source as a whole cannot be read."""
        if self._table:
            yield from self._table.items()
            return
        assert self._source is not None  # noqa: S101
        seen = _Seen()
        for entry in self._source.entries():
            if isinstance(entry, FolderEntry):
                seen.add_folder(_split_path(entry.path))
            elif isinstance(entry, UnreadableEntry):
                lost = entry.lost or is_image_name(entry.path.rpartition("/")[2])
                yield SkippedFile(entry.path, entry.reason, lost)
            else:
                self._keep_label_file(entry)
                item = self._item(entry, seen)
                if isinstance(item, PlannedSample):
                    seen.used.add((item.split, item.class_name))
                yield item
        self._class_index = self._class_index or self._read_class_index()
        self.advice = seen.advice
        self.unused = self._unused(seen)

    def _unused(self, seen: _Seen) -> tuple[Unused, ...]:
        train, val = ({name for split, name in seen.used if split == wanted} for wanted in SPLITS)
        empty = [f"{split}/{name}" for split, name in seen.folders - seen.used]
        beside = self._source.beside() if isinstance(self._source, FolderSource) else []
        label_files = [VAL_LABELS_NAME] if self._labels and not seen.labels_wanted else []
        other_classes = sorted((train | val) - set(self._class_index)) if self._class_index else []
        index = [CLASS_INDEX_NAME] if other_classes else []
        return (
            *Unused.of("class folder", "no usable image in it", empty),
            *Unused.of("val class", "no training images of it", val - train if train else ()),
            *Unused.of("label file", "val/ has class folders", label_files),
            *Unused.of("label file", f"it lacks the class {other_classes[0]}" if index else "", index),
            *Unused.of("name", "beside train/ and val/", [name for name in beside if name not in _LABEL_FILES]),
        )

    def label_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """The classes in label order, given those that have samples.

        With the tutorial's `imagenet_class_index.json` they are ImageNet's thousand in its order, so that labels match
        a pretrained head; otherwise sorted, as torchvision's ImageFolder numbers them.
        """
        found = set(names)
        if found <= set(self._class_index):
            return self._class_index
        if self._table and all(name.isdecimal() for name in found):
            return tuple(sorted(found, key=lambda name: (int(name), name)))
        return unique_classes(found)

    def _item(self, file: SourceFile, seen: _Seen) -> PlanItem:
        parts = _split_path(file.path)
        is_image = is_image_name(file.path.rpartition("/")[2])
        if not parts:
            seen.images_outside |= is_image
            return SkippedFile(file.path, f"an image {_OUTSIDE}" if is_image else _OUTSIDE, lost=False)
        split, *rest = parts
        seen.add_folder(parts[:-1])
        if not is_image:
            reason = "a hidden file" if rest[-1].startswith(".") else "unsupported file extension"
            return SkippedFile(file.path, reason, lost=False)
        if len(rest) > 1:
            return _planned(file, "/".join(parts), split, rest[0])
        if split == TRAIN:
            return SkippedFile(file.path, "directly in train/, not in a class folder", lost=True)
        return self._flat_val(file, parts, seen)

    def _flat_val(self, file: SourceFile, parts: list[str], seen: _Seen) -> PlanItem:
        """An image directly in val/, whose class is in the tutorial's label file."""
        seen.labels_wanted = True
        labels = self._labels or self._labels_inside()
        if class_name := labels.get(parts[-1], ""):
            return _planned(file, "/".join(parts), VAL, class_name)
        seen.unlabelled = True
        if labels:
            return SkippedFile(file.path, f"not in a class folder, and not in {VAL_LABELS_NAME}", lost=True)
        reason = f"not in a class folder, and the source has no {VAL_LABELS_NAME} in or beside it"
        return SkippedFile(file.path, reason, lost=True)

    def _labels_inside(self) -> dict[str, str]:
        """The validation labels in an archive, searched once: that reads all of it."""
        if not self._searched_inside and not isinstance(self._source, FolderSource):
            assert self._source is not None  # noqa: S101
            for entry in self._source.entries():
                if isinstance(entry, SourceFile):
                    self._keep_label_file(entry)
            self._labels = self._read_labels()
        self._searched_inside = True
        return self._labels

    def _keep_label_file(self, file: SourceFile) -> None:
        """Keeps the tutorial's label files of an archive, from its top or from the one folder there."""
        folder, _, name = file.path.rpartition("/")
        if name in _LABEL_FILES and "/" not in folder and file.size <= MAX_LABEL_FILE_BYTES:
            self._inside.setdefault(name, read_location(file.location))

    def _read_labels(self) -> dict[str, str]:
        return self._read_json(VAL_LABELS_NAME, dict[str, str]) or {}

    def _read_class_index(self) -> tuple[str, ...]:
        index = self._read_json(CLASS_INDEX_NAME, dict[str, tuple[str, str]])
        if index is None:
            return ()
        try:
            return tuple(index[str(number)][0] for number in range(len(index)))
        except KeyError as error:
            raise ConsoleError(
                f"{CLASS_INDEX_NAME} has no entry {error}.", remedy="Download the tutorial's file again, or remove it."
            ) from error

    def _read_json(self, name: str, kind: type[T]) -> T | None:
        data = self._source.read(name) if self._source else None
        data = self._inside.get(name) if data is None else data
        if data is None:
            return None
        try:
            return decode_json(data, kind)
        except msgspec.DecodeError as error:
            raise ConsoleError(
                f"{name} is not the tutorial's file: {error}.", remedy="Download that file again, or remove it."
            ) from error


class _Seen:
    """What `items` has found so far: class folders, those with samples, and the facts for the advice."""

    def __init__(self) -> None:
        self.folders: set[tuple[str, str]] = set()
        self.used: set[tuple[str, str]] = set()
        self.labels_wanted = False
        self.unlabelled = False
        self.images_outside = False

    def add_folder(self, parts: list[str]) -> None:
        """Adds a folder of the source, in the parts of `_split_path`."""
        if len(parts) > 1:
            self.folders.add((parts[0], parts[1]))

    @property
    def advice(self) -> str:
        if self.unlabelled:
            return _ADVICE_LABELS
        return _ADVICE_OUTSIDE if self.images_outside and not self.used else _ADVICE


def _split_path(path: str) -> list[str]:
    """The parts of a path from train/ or val/ on; empty where it is in neither."""
    parts = path.split("/")
    # An archive usually holds one folder that holds train/ and val/.
    start = next((index for index in (0, 1) if len(parts) > index and parts[index] in SPLITS), None)
    return [] if start is None else parts[start:]


def is_image_name(name: str) -> bool:
    """Whether a file name has an image's extension and is not hidden (`._cat.jpg` has a Mac's file attributes)."""
    stem, dot, suffix = name.rpartition(".")
    return bool(stem) and dot + suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _planned(file: SourceFile, key_path: str, split: str, class_name: str) -> PlanItem:
    """The sample of a file, unless its name cannot be a key."""
    if problem := key_problem(key_path):
        return SkippedFile(file.path, problem, lost=True)
    stem, dot, suffix = key_path.rpartition(".")
    # The tutorial's rule is `.JPEG` to `.pt`; other images keep their suffix, so that `a.png` and `a.jpg` differ.
    key = stem if dot + suffix.lower() in _JPEG_SUFFIXES else key_path
    return PlannedSample(file.path, split, class_name, key, key_path, file.size, file.mtime_ns, file.location)


class _Table:
    """A CSV or TSV of path and label, with an optional split; a header line is recognised."""

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path = path
        self._delimiter = delimiter

    def items(self) -> Iterator[PlanItem]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file, delimiter=self._delimiter)
                columns: _Columns | None = None
                for row in rows:
                    if not row:
                        continue
                    if columns is None:
                        columns = _Columns.of(row)
                        if columns.named:
                            continue
                    yield self._item(row, columns, rows.line_num)
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            raise ConsoleError(f"{self.path} cannot be read: {error}.", remedy="Save it as a UTF-8 table.") from error

    def _item(self, row: list[str], columns: _Columns, line: int) -> PlanItem:
        where = f"{self.path.name}:{line}"
        if len(row) <= max(columns.path, columns.label):
            return SkippedFile(where, "no path and label in this line", lost=True)
        name, label = row[columns.path].strip(), row[columns.label].strip()
        split = row[columns.split].strip() if columns.split is not None and columns.split < len(row) else TRAIN
        if split not in SPLITS:
            return SkippedFile(where, f"the split {split!r} is neither train nor val", lost=True)
        if not name or not label or "/" in label:
            return SkippedFile(where, "the path or the label is empty, or the label has a slash", lost=True)
        path = self.path.parent / name
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            return SkippedFile(name, getattr(error, "strerror", None) or "not a file name", lost=True)
        file = SourceFile(name, status.st_size, status.st_mtime_ns, PathLocation(str(path)))
        return _planned(file, f"{split}/{label}/{name.lstrip('/')}", split, label)


class _Columns(msgspec.Struct, frozen=True):
    """The columns' indexes; `named` when the first line is a header."""

    path: int = 0
    label: int = 1
    split: int | None = 2
    named: bool = False

    @classmethod
    def of(cls, first: list[str]) -> _Columns:
        names = [name.strip().lower() for name in first]

        def find(wanted: tuple[str, ...]) -> int | None:
            return next((names.index(name) for name in wanted if name in names), None)

        path, label = find(_PATH_COLUMNS), find(_LABEL_COLUMNS)
        if path is None or label is None:
            return cls()
        return cls(path, label, find(_SPLIT_COLUMNS), named=True)
