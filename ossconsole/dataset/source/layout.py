"""Layout: the split and class of each file of a source, and the key of its sample."""

from __future__ import annotations

import functools
import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.labels import (
    KAGGLE_LABELS_NAME,
    LABEL_FILE_NAMES,
    NO_CLASS_INDEX,
    VAL_LABELS_NAME,
    FoundLabels,
    LabelFiles,
    ReadFile,
    find_labels,
    read_label_file,
    stem,
)
from ossconsole.dataset.manifest import (
    SPLITS,
    TRAIN,
    VAL,
    Unused,
    UnusedCounter,
    first_names,
)
from ossconsole.dataset.source.archives import (
    IMAGES_INSIDE,
    IMAGES_INSIDE_REMEDY,
    ArchivesSource,
    FolderTree,
    TarSource,
    ZipSource,
    archives_in,
    open_source,
)
from ossconsole.dataset.source.arrangement import Arrangement, Tree, arrange, wordnet_class
from ossconsole.dataset.source.files import (
    ARCHIVE_SUFFIXES,
    HIDDEN_FOLDER,
    FolderEntry,
    FolderSource,
    ImageSource,
    PlanItem,
    PlannedSample,
    SkippedFile,
    SourceFile,
    UnreadableEntry,
    is_hidden,
    is_image_name,
    planned_sample,
    source_problem,
)
from ossconsole.dataset.source.table import TABLE_ADVICE, TABLE_SUFFIXES, ImageTable

_ADVICE = "Put images into train/<class>/ and val/<class>/."
_ADVICE_LABELS = (
    f"Sort val/ into class folders, put {VAL_LABELS_NAME} or {KAGGLE_LABELS_NAME} beside the source, or name the file "
    "with --val-labels."
)
_ADVICE_CLASS = (
    "If these are the images of one class, put them into a folder with the name of the class, and upload the folder "
    "that holds it."
)
ARCHIVE_AND_TABLE_SUFFIXES = (*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES)
"""The endings of sources that are files."""


class SourceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to read a source: its label files, and the encoding of names in archives that are not UTF-8 ("": unknown).

    Where it has no validation images, the share `val_split` of each class becomes them; `seed` decides which.
    """

    labels: LabelFiles = LabelFiles()
    names: str = ""
    val_split: float = 0.0
    seed: int = 0


class Layout:
    """The plan of a source: each call of `items()` iterates over every file without keeping any of them."""

    def __init__(self, path: Path, options: SourceOptions = SourceOptions()) -> None:  # noqa: B008 - frozen
        """Reads the label files. Raises ConsoleError when `path` is not a source or they are malformed."""
        delimiter = TABLE_SUFFIXES.get(path.suffix.lower())
        is_file = not source_problem(path) and path.is_file()
        self._table = ImageTable(path, delimiter) if delimiter and is_file else None
        self._options = options
        self._source: ImageSource | None = None if self._table else open_source(path, options.names)
        self._arrangement: Arrangement | None = None
        self._flat_val_found = False
        self._labels = self._find_labels({})
        if isinstance(self._source, FolderSource):
            self._arrange_folder(self._source)
        self._order_from = ""
        self.unused: tuple[Unused, ...] = ()
        """Classes, folders and label files that no sample uses; known once `items` has ended."""
        self.cautions: tuple[Unused, ...] = ()
        """Names that may be a mistake; known once `items` has ended."""
        self.advice = TABLE_ADVICE if self._table else _ADVICE
        """The remedy when no file is a sample, "" when some are; known once `items` has ended."""

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

    def describe(self) -> str:
        """How the source is understood, in a line. Reads an archive to find out. Raises ConsoleError."""
        if self._table:
            return f"a table of path and label: {self._table.path.name}"
        arrangement = self._arranged()
        flat = self._labels.val and (self._flat_val_found or self._seen.labels_wanted)
        labels = [f"val labels from {self._labels.val_from}"] if flat else []
        order = [f"class order from {self._order_from}"] if self._order_from else []
        return "; ".join([str(arrangement), *labels, *order])

    def items(self) -> Iterator[PlanItem]:
        """Every file as a sample or a skipped one. Raises ConsoleError when the source as a whole cannot be read."""
        if not self._options.val_split:
            yield from self._files()
            return
        held_out = self._held_out  # before the files, as it reads them too
        for item in self._files():
            yield held_out.placed(item) if isinstance(item, PlannedSample) else item

    @functools.cached_property
    def _held_out(self) -> _HeldOut:
        """Which training images become validation images; one more pass over the source finds out."""
        samples = (item for item in self._files() if isinstance(item, PlannedSample))
        return _HeldOut(samples, self._options.val_split, self._options.seed)

    def _files(self) -> Iterator[PlanItem]:
        if self._table:
            for item in self._table.items():
                if isinstance(item, PlannedSample):
                    self.advice = ""
                yield item
            return
        assert self._source is not None  # noqa: S101
        arrangement = self._arranged()
        seen = self._seen = _Seen()
        if isinstance(self._source, _ARCHIVES):
            self._source.names.begin()
        for entry in self._source.entries():
            if isinstance(entry, FolderEntry):
                if not is_hidden(entry.path):
                    seen.add_folder(arrangement.parts(f"{entry.path}/")[:-1])
            elif isinstance(entry, UnreadableEntry):
                lost = entry.lost or is_image_name(entry.path.rpartition("/")[2])
                lost = lost and not is_hidden(entry.path)
                yield SkippedFile(entry.path, entry.reason, lost)
            elif entry.path.rpartition("/")[2] not in LABEL_FILE_NAMES:  # `unused` names the label files
                item = self._item(entry, arrangement, seen)
                if isinstance(item, PlannedSample):
                    seen.use(item)
                yield item
        self.advice = seen.advice
        self.unused = self._unused(arrangement, seen)
        self.cautions = self._cautions(seen)

    def _arrange_folder(self, folder: FolderSource) -> None:
        """Finds the arrangement of a folder, or takes the archives in it as the source. Raises ConsoleError."""
        self._arrangement = arrange(folder, self._has_label)
        if self._arrangement is not None:
            self._flat_val_found = _has_flat_val(folder, self._arrangement)
            folder.starts = self._arrangement.folders()
            self._labels = self._find_labels({})
        elif archives := archives_in(folder, self._options.names):
            self._source = archives
        else:
            names = folder.names()
            holds = f" It holds {first_names(names, len(names))}." if names else " It is empty."
            problem = f"{folder.path} has no folder of images: neither train/ nor val/ nor class folders.{holds}"
            below = [found for name in names if name.endswith("/") for found in folder.names(name)]
            if inside := next((name for name in (*names, *below) if name.lower().endswith(IMAGES_INSIDE)), ""):
                raise ConsoleError(f"{problem} Images in {inside} are not read.", remedy=IMAGES_INSIDE_REMEDY)
            raise ConsoleError(
                problem,
                remedy="Put the images into train/<class>/ and val/<class>/ there, or enter a .csv of path and label.",
            )

    def _arranged(self) -> Arrangement:
        """The arrangement; that of an archive takes one pass over it. Raises ConsoleError."""
        if self._arrangement is None:
            assert self._source is not None  # noqa: S101
            tree = FolderTree(self._source.entries())
            if tree.class_file:
                raise ConsoleError(
                    f"{self._source.path} holds WebDataset samples: {tree.class_file} has the class of an image. These "
                    "labels are not read.",
                    remedy="Unpack it, and write a .csv of path and label, or sort the images into train/<class>/.",
                )
            self._labels = self._find_labels(tree.label_files)
            self._arrangement = arrange(tree, self._has_label) or Arrangement(rest=TRAIN)
            self._flat_val_found = _has_flat_val(tree, self._arrangement)
        return self._arrangement

    def _has_label(self, name: str) -> bool:
        return name in self._labels.val

    def _find_labels(self, inside: dict[str, bytes]) -> FoundLabels:
        """The label files that are given, in the source (`inside` by path) or beside it."""
        source = self._source
        if source is None:
            return FoundLabels(found_only=self._options.labels.class_index == NO_CLASS_INDEX)
        nearest = {path.rpartition("/")[2]: path for path in sorted(inside, key=lambda path: -path.count("/"))}
        places: list[tuple[str, ReadFile]] = [
            ("beside the images", source.read),
            ("in the archive", lambda name: inside.get(nearest.get(name, ""))),
        ]
        if isinstance(source, FolderSource):
            places.insert(1, ("in the source", self._read_below_root))
        return find_labels(places, self._options.labels, lambda path: read_label_file(Path(path)))

    def _read_below_root(self, name: str) -> bytes | None:
        """A label file between the top of a folder and its train/."""
        folder = self._arrangement.root if self._arrangement else ""
        while folder and self._source is not None:
            if (data := read_label_file(self._source.path / folder / name)) is not None:
                return data
            folder = folder.rpartition("/")[0]
        return None

    def _unused(self, arrangement: Arrangement, seen: _Seen) -> tuple[Unused, ...]:
        empty = [f"{split}/{name}" for split, name in seen.folders - set(seen.used)]
        label_files = [self._labels.val_from] if self._labels.val and not seen.labels_wanted else []
        index = self._labels.class_index
        other_classes = sorted({name for _, name in seen.used} - set(index)) if index else []
        return (
            *Unused.of("class folder", "no usable image in it", empty),
            *Unused.of("label file", "val/ has class folders", label_files),
            *(
                Unused.of("label file", f"it lacks the class {other_classes[0]}", [self._labels.index_from])
                if other_classes
                else ()
            ),
            *Unused.of("name", "beside train/ and val/", self._beside(arrangement)),
        )

    def _beside(self, arrangement: Arrangement) -> list[str]:
        """What is in the folder of train/ and val/ besides them, folders with a slash."""
        if not isinstance(self._source, FolderSource) or arrangement.rest:
            return []
        used = (*LABEL_FILE_NAMES, *arrangement.splits, *(f"{name}/" for name in arrangement.splits))
        return [name for name in self._source.names(arrangement.root) if name not in used]

    def _cautions(self, seen: _Seen) -> tuple[Unused, ...]:
        train, val = ({name for split, name in seen.used if split == wanted} for wanted in SPLITS)
        spelled: dict[str, set[str]] = {}
        for name in train | val:
            spelled.setdefault(name.casefold(), set()).add(name)
        alike = [" and ".join(sorted(names)) for names in spelled.values() if len(names) > 1]
        names = self._source.names if isinstance(self._source, _ARCHIVES) else None
        shards = train | val if isinstance(self._source, ArchivesSource) else set()
        return (
            *Unused.of("val class", "no training images of it", val - train if train else ()),
            *Unused.of("class", "the same name but for upper and lower case", alike),
            *seen.alike.groups(),
            *(names.unknown.groups() if names else ()),
            *(names.endless.groups() if names else ()),
            *Unused.of("class", "named like a shard: is it one class?", filter(_SHARD_NAME.fullmatch, shards)),
        )

    def label_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """The classes in label order, given those that have samples.

        The classes of a class index, or of ImageNet, keep its order, so that labels match a pretrained head; others are
        sorted, as torchvision's ImageFolder numbers them.
        """
        found = set(names)
        classes, self._order_from = self._labels.order(found)
        if not self._order_from and self._table and all(name.isdecimal() for name in found):
            return tuple(sorted(found, key=lambda name: (int(name), name)))
        return classes

    def _item(self, file: SourceFile, arrangement: Arrangement, seen: _Seen) -> PlanItem:
        name = file.path.rpartition("/")[2]
        parts = arrangement.parts(file.path)
        if is_hidden(file.path):
            reason = "a hidden file" if is_hidden(name) else HIDDEN_FOLDER
        elif not parts:
            reason = f"an image outside {arrangement}" if is_image_name(name) else f"outside {arrangement}"
        else:
            seen.add_folder(parts[:-1])
            if is_image_name(name):
                return self._image(file, arrangement, seen, parts)
            reason = "unsupported file extension"
        return SkippedFile(file.path, reason, lost=False)

    def _image(self, file: SourceFile, arrangement: Arrangement, seen: _Seen, parts: list[str]) -> PlanItem:
        split, *rest = parts
        if len(rest) > 1:
            return planned_sample(file, "/".join(parts), split, rest[0])
        if split == VAL:
            return self._flat_val(file, parts, seen)
        if class_name := wordnet_class(rest[0]):
            return planned_sample(file, f"{split}/{class_name}/{rest[0]}", split, class_name)
        seen.images_outside |= bool(arrangement.rest)
        return SkippedFile(file.path, "not in a class folder" if arrangement.rest else _IN_TRAIN, lost=True)

    def _flat_val(self, file: SourceFile, parts: list[str], seen: _Seen) -> PlanItem:
        """An image directly in val/, whose class is in the file of validation labels."""
        seen.labels_wanted = True
        if class_name := self._labels.val.get(stem(parts[-1]), ""):
            return planned_sample(file, "/".join(parts), VAL, class_name)
        seen.unlabelled = True
        if self._labels.val_from:
            return SkippedFile(file.path, f"not in a class folder, and not in {self._labels.val_from}", lost=True)
        return SkippedFile(file.path, _NO_LABELS, lost=True)

    @functools.cached_property
    def _seen(self) -> _Seen:
        return _Seen()


def _has_flat_val(tree: Tree, arrangement: Arrangement) -> bool:
    """Whether there are images directly in val/."""
    folders = arrangement.folders() if arrangement.rest == VAL else arrangement.folders_of(VAL)
    return any(tree.contents(folder).images for folder in folders)


_ARCHIVES = (TarSource, ZipSource, ArchivesSource)
_SHARD_NAME = re.compile(r"(?:.*[-_])?\d{4,}")
_IN_TRAIN = "directly in train/, not in a class folder"
_NO_LABELS = (
    f"not in a class folder, and the source has no {VAL_LABELS_NAME} in or beside it: name a file of labels with "
    "--val-labels"
)


class _HeldOut:
    """The share of each class that becomes validation images, where there are none.

    The images of a class are in the order of a hash of seed and key: the same in every upload, whatever else there is.
    """

    def __init__(self, samples: Iterable[PlannedSample], share: float, seed: int) -> None:
        self._seed = f"{seed}/".encode()
        hashes: dict[str, array[int]] = {}
        has_val = False
        for item in samples:
            has_val |= item.split == VAL
            hashes.setdefault(item.class_name, array("Q")).append(self._hash(item))
        self._limits: dict[str, int] = {}
        """By class, the hash of its first image that stays."""
        for class_name, found in hashes.items():
            count = min(int(len(found) * share + 0.5), len(found) - 1)
            self._limits[class_name] = 0 if has_val else sorted(found)[count]

    def placed(self, item: PlannedSample) -> PlannedSample:
        """The sample, in val/ where it is held out."""
        if item.split == VAL or self._hash(item) >= self._limits.get(item.class_name, 0):
            return item
        key, spare_key = (f"{VAL}{key.removeprefix(TRAIN)}" for key in (item.key, item.spare_key))
        return msgspec.structs.replace(item, split=VAL, key=key, spare_key=spare_key)

    def _hash(self, item: PlannedSample) -> int:
        return int.from_bytes(hashlib.blake2b(self._seed + item.spare_key.encode(), digest_size=8).digest(), "big")


class _Seen:
    """The findings of `items` so far: class folders, those with samples, and the facts for advice and cautions."""

    def __init__(self) -> None:
        self.folders: set[tuple[str, str]] = set()
        self.used: set[tuple[str, str]] = set()
        self.alike = UnusedCounter("name")
        self.labels_wanted = False
        self.unlabelled = False
        self.images_outside = False
        self._folder = ""
        self._names: dict[str, str] = {}

    def add_folder(self, parts: list[str]) -> None:
        """Adds a folder of the source, in the parts of `Arrangement.parts`."""
        if len(parts) > 1:
            self.folders.add((parts[0], parts[1]))

    def use(self, item: PlannedSample) -> None:
        """Adds a sample. Only names in one folder that follow one another are compared, which takes little memory."""
        self.used.add((item.split, item.class_name))
        folder, _, name = item.spare_key.rpartition("/")
        if folder != self._folder:
            self._folder, self._names = folder, {}
        if self._names.setdefault(name.casefold(), name) != name:
            self.alike.add(item.path, "another name differs only in upper and lower case")

    @property
    def advice(self) -> str:
        if self.used:
            return ""
        if self.unlabelled:
            return _ADVICE_LABELS
        return _ADVICE_CLASS if self.images_outside else _ADVICE
