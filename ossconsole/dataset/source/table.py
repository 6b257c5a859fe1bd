"""Tables of images: a CSV or TSV of path, label and split."""

from __future__ import annotations

import csv
import posixpath
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import TRAIN
from ossconsole.dataset.source.arrangement import SPLIT_NAMES, UNUSED_SPLITS
from ossconsole.dataset.source.files import (
    PathLocation,
    PlanItem,
    SkippedFile,
    SourceFile,
    is_image_name,
    not_a_file,
    planned_sample,
)

TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
"""The delimiter by the ending of the file."""

TABLE_ADVICE = (
    "Begin the table with the line path,label or path,label,split. Each path leads from the table's folder to an "
    "image, with its ending: img/1.jpg,cat"
)
_OTHER_DELIMITERS = (";", "\t")
"""What programs write to a .csv where the comma is the decimal point."""

_PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path"),
    *("image", "image_path", "image_name", "img", "img_path", "img_name"),
)
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")
_SPLIT_COLUMNS = ("split", "subset")


class ImageTable:
    """A CSV or TSV of path and label, with an optional split; a header line is recognised."""

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path = path
        self._delimiter = delimiter

    def items(self) -> Iterator[PlanItem]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file, delimiter=self._delimiter_of(file.readline()))
                file.seek(0)
                columns: _Columns | None = None
                for row in rows:
                    if not row:
                        continue
                    if columns is None:
                        columns = _Columns.of(row)
                        if columns.named or self._is_header(row):
                            continue
                    yield self._item(row, columns, rows.line_num)
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            raise ConsoleError(f"{self.path} cannot be read: {error}.", remedy="Save it as a UTF-8 table.") from error

    def _delimiter_of(self, line: str) -> str:
        """The delimiter that the first line has, if it is not that of the file's ending."""
        found = (each for each in _OTHER_DELIMITERS if each in line and self._delimiter not in line)
        return next(found, self._delimiter)

    def _is_header(self, row: list[str]) -> bool:
        """Whether the first line has other names of columns than those known: no image has them."""
        name = row[0].strip()
        return not is_image_name(posixpath.basename(name)) and not (self.path.parent / name).exists()

    def _item(self, row: list[str], columns: _Columns, line: int) -> PlanItem:
        where = f"{self.path.name}:{line}"
        if len(row) <= max(columns.path, columns.label):
            return SkippedFile(where, "no path and label in this line", lost=True)
        name, label = row[columns.path].strip(), row[columns.label].strip()
        named = row[columns.split].strip() if columns.split is not None and columns.split < len(row) else TRAIN
        split = SPLIT_NAMES.get(named.lower(), "")
        if not split:
            lost = named.lower() not in UNUSED_SPLITS
            return SkippedFile(where, f"the split {named!r} is neither train nor val", lost=lost)
        if not name or not label or "/" in label:
            return SkippedFile(where, "the path or the label is empty, or the label has a slash", lost=True)
        path = self.path.parent / name
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            return SkippedFile(name, getattr(error, "strerror", None) or "not a file name", lost=True)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may have no end
            return SkippedFile(name, "a folder" if path.is_dir() else not_a_file(str(path)), lost=True)
        file = SourceFile(name, status.st_size, status.st_mtime_ns, PathLocation(str(path)))
        below = posixpath.normpath(name).lstrip("/")  # `find .` writes ./a.jpg
        return planned_sample(file, f"{split}/{label}/{below}", split, label)


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
