"""Tables of images: a CSV or TSV of path, label and split."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.manifest import TRAIN
from ossconsole.dataset.source.arrangement import SPLIT_NAMES, UNUSED_SPLITS
from ossconsole.dataset.source.files import PathLocation, PlanItem, SkippedFile, SourceFile, planned_sample

TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
"""The delimiter by the ending of the file."""

_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path")
_LABEL_COLUMNS = ("label", "class", "class_name", "category")
_SPLIT_COLUMNS = ("split", "subset")


class ImageTable:
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
