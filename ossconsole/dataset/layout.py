"""Layout: which split and class each file of a source belongs to, and under which key its sample is stored."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from ossconsole.config.decoding import decode_json
from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import (
    CLASS_INDEX_NAME,
    SPLITS,
    TRAIN,
    VAL,
    VAL_LABELS_NAME,
    key_problem,
    unique_classes,
)
from ossconsole.dataset.origin import FileOrigin, Origin
from ossconsole.dataset.source import TAR_SUFFIXES, FolderSource, OddEntry, Source, SourceFile, open_source

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""What counts as a picture: torchvision.datasets.folder.IMG_EXTENSIONS."""

_JPEG_SUFFIXES = (".jpeg", ".jpg")
_TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
ARCHIVE_AND_TABLE_SUFFIXES = (*TAR_SUFFIXES, ".zip", *_TABLE_SUFFIXES)
"""What the names of sources that are files end with."""

_PATH_COLUMNS = ("path", "file", "filename", "image")
_LABEL_COLUMNS = ("label", "class")
_SPLIT_COLUMNS = ("split", "subset")


class PlannedSample(msgspec.Struct, frozen=True, gc=False):
    """One picture to become a sample.

    `path` names it inside the source. `key` is relative to the dataset prefix and without the format's suffix;
    `spare_key` is what it takes when another file has that key already (`a.jpg` beside `a.jpeg`).
    """

    path: str
    split: str
    class_name: str
    key: str
    spare_key: str
    size: int
    mtime_ns: int
    origin: Origin


class SkippedFile(msgspec.Struct, frozen=True, gc=False):
    """A file that becomes no sample, and why. `lost` when it should have become one."""

    path: str
    reason: str
    lost: bool


PlanItem: TypeAlias = PlannedSample | SkippedFile
T = TypeVar("T")


class Layout:
    """The plan of a source: `items()` tells of every file, each time anew and without keeping any of them."""

    def __init__(self, path: Path) -> None:
        """Reads the label files. Raises ConsoleError when `path` is no source or they are malformed."""
        delimiter = _TABLE_SUFFIXES.get(path.suffix.lower())
        self._table = _Table(path, delimiter) if delimiter and path.is_file() else None
        self._source: Source | None = None if self._table else open_source(path)
        self._labels = self._read_labels()
        self._class_index = self._read_class_index()

    @property
    def countable(self) -> bool:
        """Whether `items()` may be gone through once more just to count."""
        return self._source is None or self._source.countable

    def counts(self) -> Iterator[int]:
        """Numbers of files that add up to about how many `items` gives."""
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
        for entry in self._source.files():
            if isinstance(entry, OddEntry):
                lost = entry.lost or is_picture_name(entry.path.rpartition("/")[2])
                yield SkippedFile(entry.path, entry.reason, lost)
            else:
                yield self._item(entry)

    def label_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """The classes in label order, given those that have samples.

        With the tutorial's `imagenet_class_index.json` they are ImageNet's thousand in its order, so that labels mean
        what a pretrained head was trained on; otherwise sorted, as torchvision's ImageFolder numbers them.
        """
        found = set(names)
        if found <= set(self._class_index):
            return self._class_index
        if self._table and all(name.isdecimal() for name in found):
            return tuple(sorted(found, key=lambda name: (int(name), name)))
        return unique_classes(found)

    def _item(self, file: SourceFile) -> PlanItem:
        parts = file.path.split("/")
        # An archive usually holds one folder that holds train/ and val/.
        start = next((index for index in (0, 1) if len(parts) > index and parts[index] in SPLITS), None)
        if start is None:
            return SkippedFile(file.path, "neither below train/ nor below val/", lost=False)
        if not is_picture_name(parts[-1]):
            return SkippedFile(file.path, "not a picture by its name", lost=False)
        split, *rest = parts[start:]
        class_name = rest[0] if len(rest) > 1 else self._labels.get(rest[-1], "") if split == VAL else ""
        if not class_name:
            return SkippedFile(file.path, f"in no class folder and not in {VAL_LABELS_NAME}", lost=True)
        return _planned(file, "/".join(parts[start:]), split, class_name)

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
                f"{CLASS_INDEX_NAME} has no entry {error}.", remedy="Fetch the tutorial's file again, or remove it."
            ) from error

    def _read_json(self, name: str, kind: type[T]) -> T | None:
        data = self._source.read(name) if self._source else None
        if data is None:
            return None
        try:
            return decode_json(data, kind)
        except msgspec.DecodeError as error:
            raise ConsoleError(
                f"{name} is not what its name says: {error}.", remedy="Fetch the tutorial's file again, or remove it."
            ) from error


def is_picture_name(name: str) -> bool:
    """Whether a file name ends like a picture's and is not hidden (`._cat.jpg` holds a Mac's file attributes)."""
    stem, dot, suffix = name.rpartition(".")
    return bool(stem) and dot + suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".")


def _planned(file: SourceFile, key_path: str, split: str, class_name: str) -> PlanItem:
    """The sample of a file, unless its name cannot be a key."""
    if problem := key_problem(key_path):
        return SkippedFile(file.path, problem, lost=True)
    stem, dot, suffix = key_path.rpartition(".")
    # The tutorial's rule is `.JPEG` to `.pt`; other pictures keep their suffix, so that `a.jpg` and `a.png` both fit.
    key = stem if dot + suffix.lower() in _JPEG_SUFFIXES else key_path
    return PlannedSample(file.path, split, class_name, key, key_path, file.size, file.mtime_ns, file.origin)


class _Table:
    """A CSV or TSV of path and label, with an optional split; a first line that names its columns is recognised."""

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
            raise ConsoleError(f"{self.path} cannot be read: {error}.", remedy="Give a UTF-8 table.") from error

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
            return SkippedFile(name, getattr(error, "strerror", None) or "no file name", lost=True)
        file = SourceFile(name, status.st_size, status.st_mtime_ns, FileOrigin(str(path)))
        return _planned(file, f"{split}/{label}/{name.lstrip('/')}", split, label)


class _Columns(msgspec.Struct, frozen=True):
    """Which column holds what; `named` when the first line said so."""

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
