"""Label files: the classes of a flat `val/`, and the order of ImageNet's labels.

A dataset whose classes are all WordNet IDs of ImageNet gets ImageNet's 1,000 labels, so that a pretrained head fits.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import decode_json, typed_path

VAL_LABELS_NAME = "ILSVRC2012_val_labels.json"
"""The tutorial's file of validation labels: image file name to WordNet ID."""

KAGGLE_LABELS_NAME = "LOC_val_solution.csv"
"""Kaggle's file of ImageNet's validation labels: image name, then WordNet ID and box of each object."""

VAL_LABELS_NAMES = (VAL_LABELS_NAME, KAGGLE_LABELS_NAME)

CLASS_INDEX_NAME = "imagenet_class_index.json"
"""The tutorial's file of classes: index to [WordNet ID, name]."""

LABEL_FILE_NAMES = (*VAL_LABELS_NAMES, CLASS_INDEX_NAME)

NO_CLASS_INDEX = "none"
"""In place of a class index: the labels number only the classes that are found."""

MAX_LABEL_FILE_BYTES = 64 << 20

_VAL_STEM = "ILSVRC2012_val_"
_HEADERS = {"imageid", "image", "file", "file_name", "filename", "path"}

ReadFile = Callable[[str], bytes | None]
"""Returns the content of the file with this name, None where it does not exist."""


class LabelFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The label files that the user named: `val_labels` and `class_index` are paths, or `oss://` URIs, "" for none.

    `class_index` may be `none`: the labels then number only the classes that are found.
    """

    val_labels: str = ""
    class_index: str = ""


class FoundLabels(msgspec.Struct, frozen=True, kw_only=True):
    """The label files of a dataset, and where they were found.

    `val` is the class by image file name without its extension; `class_index` the classes by label. Both may be empty.
    """

    val: dict[str, str] = {}
    val_from: str = ""
    class_index: tuple[str, ...] = ()
    index_from: str = ""
    found_only: bool = False

    def order(self, names: Iterable[str]) -> tuple[tuple[str, ...], str]:
        """The classes in label order, given those that have samples, and where the order is from ("": the alphabet).

        Other classes than those of the index, or of ImageNet, are sorted, as torchvision's ImageFolder numbers them.
        """
        found = set(names)
        if self.class_index and found <= set(self.class_index):
            return self.class_index, self.index_from
        if found and not self.found_only and found <= set(imagenet_classes()):
            return imagenet_classes(), "their WordNet IDs"
        return tuple(sorted(found)), ""


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The WordNet IDs of ImageNet's 1,000 classes in label order, which is the order of the IDs.

    torchvision has the names of the classes only, and `crane` and `maillot` are each the name of two.
    """
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="ascii").split())


def find_labels(places: Iterable[tuple[str, ReadFile]], given: LabelFiles, read_given: ReadFile) -> FoundLabels:
    """The label files that are `given`, or else the first ones in `places`, each with its name in words.

    `read_given` reads a given file. Raises ConsoleError when a file is malformed, or a given one does not exist.
    """
    places = tuple(places)
    val, val_from = _find(given.val_labels, VAL_LABELS_NAMES, places, read_given)
    found_only = given.class_index == NO_CLASS_INDEX
    names = () if found_only else (CLASS_INDEX_NAME,)
    index, index_from = _find("" if found_only else given.class_index, names, places, read_given)
    return FoundLabels(
        val=parse_val_labels(val, val_from) if val is not None else {},
        val_from=val_from,
        class_index=parse_class_index(index, index_from) if index is not None else (),
        index_from=index_from,
        found_only=found_only,
    )


def _find(
    given: str, names: Iterable[str], places: tuple[tuple[str, ReadFile], ...], read_given: ReadFile
) -> tuple[bytes | None, str]:
    """The file's content and its name in words; None and "" where it does not exist."""
    if given:
        data = read_given(given)
        if data is None:
            raise ConsoleError(f"The label file {given} does not exist.", remedy="Correct its path.")
        return data, given
    for where, read in places:
        for name in names:
            if (data := read(name)) is not None:
                return data, f"{name} ({where})"
    return None, ""


def read_label_file(path: Path) -> bytes | None:
    """The file's content, None where it does not exist. Raises ConsoleError."""
    try:
        with typed_path(path).open("rb") as file:
            data = file.read(MAX_LABEL_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConsoleError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_LABEL_FILE_BYTES:
        raise ConsoleError(f"{path} is larger than {MAX_LABEL_FILE_BYTES >> 20} MB.")
    return data


def find_label_file(folder: Path, name: str) -> bytes | None:
    """The file in the folder, or else beside the folder; None where there is none. Raises ConsoleError."""
    data = read_label_file(folder / name)
    return read_label_file(folder.absolute().parent / name) if data is None else data


def parse_val_labels(data: bytes, where: str) -> dict[str, str]:
    """Image file name without extension to class, from the tutorial's JSON, a CSV or a list. Raises ConsoleError.

    The CSV has the image's name and its label; of a label with spaces (Kaggle's) the first word is the class. The list
    has both in a line, with spaces between; where all labels are numbers of ImageNet's classes, these are their names.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        if data.lstrip()[:1] in {b"{", b"["}:
            labels: dict[str, str] = decode_json(data, dict[str, str])
        else:
            rows = [row if len(row) > 1 else row[0].split() for row in csv.reader(io.StringIO(data.decode())) if row]
            if rows and all(len(row) == 1 and row[0].isdecimal() for row in rows):
                raise ConsoleError(
                    f"{where} has numbers without names of images, as the ground truth of ImageNet's devkit: its "
                    "numbers are those of the devkit's meta.mat.",
                    remedy=f"Use {KAGGLE_LABELS_NAME}, or a CSV of name and class.",
                )
            labels = {row[0].strip(): row[1].split()[0] for row in rows if row[0].strip().lower() not in _HEADERS}
    except (msgspec.DecodeError, UnicodeDecodeError, csv.Error, IndexError) as error:
        reason = "a line has no label" if isinstance(error, IndexError) else error
        raise ConsoleError(
            f"{where} is not a file of validation labels: {reason}.",
            remedy='It is JSON like {"name.JPEG": "class"}, or a CSV of name and class.',
        ) from error
    return _named({stem(name): class_name for name, class_name in labels.items()})


def _named(labels: dict[str, str]) -> dict[str, str]:
    """The labels with the classes' names where they are ImageNet's numbers of ImageNet's validation images."""
    numbers = {str(number): name for number, name in enumerate(imagenet_classes())}
    if all(name.startswith(_VAL_STEM) and label in numbers for name, label in labels.items()):
        return {name: numbers[label] for name, label in labels.items()}
    return labels


def parse_class_index(data: bytes, where: str) -> tuple[str, ...]:
    """The classes by label. Raises ConsoleError."""
    try:
        index: dict[str, tuple[str, str]] = decode_json(data.removeprefix(codecs.BOM_UTF8), dict[str, tuple[str, str]])
        classes = tuple(index[str(number)][0] for number in range(len(index)))
    except (msgspec.DecodeError, KeyError) as error:
        problem = f"it has no entry {error}" if isinstance(error, KeyError) else error
        raise ConsoleError(
            f"{where} is not a class index: {problem}.",
            remedy='It is JSON like {"0": ["n01440764", "tench"]}. Correct it, or remove it.',
        ) from error
    if len(set(classes)) < len(classes):
        raise ConsoleError(f"{where} names a class twice.", remedy="Correct it, or remove it.")
    return classes


def stem(name: str) -> str:
    """The file name of a path or key, without its extension."""
    name = name.rpartition("/")[2]
    head, dot, _ = name.rpartition(".")
    return head if dot and head else name
