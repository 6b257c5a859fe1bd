"""The manifest of a dataset prefix that has none, from a listing of its `train/` and `val/`.

Consecutive class folders form a run, and 16 threads list a run each: OSS takes about as long for a page of 1,000
objects as for a small read, and a large dataset has more than a thousand pages.
"""

from __future__ import annotations

import math
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.dataset.formats import CHANNELS, SampleFormat
from ossconsole.dataset.labels import (
    CLASS_INDEX_NAME,
    MAX_LABEL_FILE_BYTES,
    VAL_LABELS_NAMES,
    FoundLabels,
    LabelFiles,
    find_labels,
    read_label_file,
    stem,
)
from ossconsole.dataset.manifest import (
    SPLITS,
    TRAIN,
    VAL,
    Manifest,
    ManifestMissingError,
    Sample,
    Unused,
    UnusedCounter,
    first_names,
    key_problem,
    object_key,
)
from ossconsole.dataset.source.arrangement import SPLIT_NAMES, split_folders
from ossconsole.dataset.source.files import IMAGE_SUFFIXES, MAX_FILE_BYTES, is_hidden
from ossconsole.storage.errors import StorageError

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.objects import ObjectSummary

OnProgress = Callable[[int], None]
"""Gets the number of objects listed so far, in the calling thread. What it raises ends the listing."""

FOLDER_MARKER = "a folder marker"
HIDDEN_FILE = "a hidden file"
HARMLESS = frozenset({FOLDER_MARKER, HIDDEN_FILE})
"""The reasons of unused objects that are certainly no samples, and need no remark."""

NO_VAL_LABELS = (
    f"not in a class folder, and neither the dataset prefix nor the working directory has {VAL_LABELS_NAMES[0]}"
)
"""The reason of objects in a flat `val/` without a file of labels."""

_TENSOR, _IMAGE = SampleFormat.TENSOR_F32, SampleFormat.IMAGE_JPEG
_LISTED_SUFFIXES = IMAGE_SUFFIXES | {".gif"}
_HIDDEN_NAMES = frozenset({"thumbs.db", "desktop.ini"})
_IN_THE_MINORITY = {_TENSOR: "a .pt sample; train/ has more images", _IMAGE: "an image; train/ has more .pt samples"}
_THREADS = 16
_RUNS = 128  # of a split: enough that the threads end at about the same time; each may list one page in vain
_POLL_S = 0.2
_MIN_CLASSES = 2
_FOLDERS_CHECKED = 8  # whether they are class folders
_KEYS_CHECKED = 20


class FirstLevel(msgspec.Struct, frozen=True):
    """The class folders of a split, in OSS's order, and the objects beside them."""

    folders: tuple[str, ...]
    objects: tuple[ObjectSummary, ...]


class ListedSamples:
    """The samples found so far, by split and format, and what is not used. `base` is the length of `prefix/`."""

    def __init__(self, base: int) -> None:
        self.unused = UnusedCounter("object")
        self._base = base
        self._samples: dict[tuple[str, SampleFormat], list[Sample]] = {}

    def add(self, summary: ObjectSummary, split: str, label: int | None, unlabelled: str = "") -> None:
        """Adds an object. One without a label is not used because it is `unlabelled`."""
        key = summary.key[self._base :]
        fmt, reason = _format_of(key)
        if fmt is None or label is None or (reason := _object_problem(summary, key)):
            self.unused.add(key, reason or unlabelled)
        else:
            self.of(split, fmt).append(Sample(key, label, 0, 0, 0, summary.size, summary.md5))

    def extend(self, later: ListedSamples) -> None:
        """Adds what follows."""
        self.unused.extend(later.unused)
        for (split, fmt), samples in later._samples.items():
            self.of(split, fmt).extend(samples)

    def of(self, split: str, fmt: SampleFormat) -> list[Sample]:
        """The samples of a split and format. Their `bytes` are the object's size, of .pt samples too."""
        return self._samples.setdefault((split, fmt), [])

    def sort(self, split: str) -> None:
        """Puts the samples of a split into the order of their keys."""
        for fmt in (_TENSOR, _IMAGE):
            self.of(split, fmt).sort(key=lambda sample: sample.key)

    def manifest(self, classes: Sequence[str], uri: str, *, keep_classes: bool) -> Manifest:
        """The manifest of the samples in the format that `train/` has more of; the others become unused.

        `classes[label]` is the class of a label. Unless `keep_classes`, those without samples are left out, and the
        others get new numbers. Raises ConsoleError when .pt samples differ in size.
        """
        other, fmt = sorted((_IMAGE, _TENSOR), key=lambda fmt: len(self.of(TRAIN, fmt)))
        for sample in (sample for split in SPLITS for sample in self.of(split, other)):
            self.unused.add(sample.key, _IN_THE_MINORITY[other])
        splits = {split: self.of(split, fmt) for split in SPLITS if self.of(split, fmt)}
        labels = {sample.label for samples in splits.values() for sample in samples}
        used = range(len(classes)) if keep_classes else sorted(labels)
        side = _one_side(splits, uri) if fmt is _TENSOR else 0
        if side or len(used) < len(classes):
            label = {old: new for new, old in enumerate(used)}
            splits = {
                split: [Sample(s.key, label[s.label], side, side, 0, 0 if side else s.bytes, s.md5) for s in samples]
                for split, samples in splits.items()
            }
        return Manifest(
            format=fmt,
            size=side,
            classes=tuple(classes[label] for label in used),
            preparation={"by": "the tutorial's upload_dataset.py" if fmt is _TENSOR else "a listing of the prefix"},
            splits={split: tuple(samples) for split, samples in splits.items()},
        )


def manifest_from_listing(
    store: ObjectStore,
    prefix: str,
    on_progress: OnProgress = lambda _listed: None,
    labels: LabelFiles = LabelFiles(),  # noqa: B008 - frozen
) -> tuple[Manifest, tuple[Unused, ...]]:
    """The manifest of `train/<class>/` and `val/<class>/` below `prefix`, in the order of the keys, and the rest there.

    Without a folder of a split, class folders alone directly below `prefix` are the training samples.
    Samples are image files, or the tutorial's `.pt` objects of one size: what `train/` has more of. A flat `val/` is
    used when there is a file of its labels: one of `labels`, or else below the prefix or in the working directory.
    Without it there is no val split. The manifest's `preparation` says where the labels are from. `validation/` is a
    name of `val/`, too. Raises ManifestMissingError when there is no training sample, ConsoleError when `.pt` objects
    differ in size, or a label file is malformed.
    """
    below = object_key(prefix, "")
    listing = _SplitListing(store, below, on_progress)
    root = listing.first_level("")
    names = split_folders(root.folders)
    levels = {split: listing.first_level(names[split]) if split in names else FirstLevel((), ()) for split in SPLITS}
    if not names and not _is_split(prefix) and listing.are_class_folders(root.folders):
        images = (found for found in root.objects if is_sample_key(found.key))
        names, levels[TRAIN] = {TRAIN: ""}, FirstLevel(root.folders, tuple(images))
    found_labels = _find_labels(store, prefix, labels, wants_val=bool(levels[VAL].objects))
    folder_names = [name for level in levels.values() for name in level.folders if not is_hidden(name)]
    flat = (found_labels.val.get(stem(summary.key), "") for summary in levels[VAL].objects)
    classes, order = found_labels.order([*folder_names, *filter(None, flat)])
    index = {name: label for label, name in enumerate(classes)}
    found = ListedSamples(len(below))
    for split, level in levels.items():
        # A hidden folder's objects are named, not used: its label does not matter.
        labels_of = {name: index.get(name, 0) for name in level.folders}
        for part in listing.class_folders(split, names.get(split, split), labels_of):
            found.extend(part)
        for summary in level.objects:
            name = found_labels.val.get(stem(summary.key), "") if split == VAL else ""
            why = _why_unlabelled(split, found_labels) if names[split] else "beside the class folders"
            found.add(summary, split, index.get(name), why)
        if level.folders and level.objects:
            found.sort(split)
    if not found.of(TRAIN, _IMAGE) and not found.of(TRAIN, _TENSOR):
        raise _no_samples(store, prefix, found.unused.groups())
    manifest = found.manifest(classes, store.uri(below), keep_classes=bool(order))
    if described := _described(found_labels, order, flat=bool(levels[VAL].objects)):
        manifest = msgspec.structs.replace(manifest, preparation={**manifest.preparation, LABELS: described})
    return manifest, (*found.unused.groups(), *_empty_folders(manifest, names.get(TRAIN, TRAIN), levels[TRAIN].folders))


LABELS = "labels"
"""The entry of a manifest's `preparation` that says where its labels are from."""


def _described(labels: FoundLabels, order: str, *, flat: bool) -> str:
    parts = [f"val labels from {labels.val_from}"] if labels.val and flat else []
    return ", ".join([*parts, f"class order from {order}"] if order else parts)


def _find_labels(store: ObjectStore, prefix: str, given: LabelFiles, *, wants_val: bool) -> FoundLabels:
    """The label files of a prefix: those given, or else below the prefix or in the working directory."""

    def in_prefix(name: str) -> bytes | None:
        return _read_object(store, object_key(prefix, name)) if name in wanted else None

    def in_folder(name: str) -> bytes | None:
        return read_label_file(Path(name)) if name in wanted else None

    def read_given(path: str) -> bytes | None:
        key = path.removeprefix(store.uri())
        if key != path:
            return _read_object(store, key)
        if path.startswith("oss://"):
            raise ConsoleError(
                f"{path} is not in the bucket {store.profile.bucket}.", remedy=f"Give {store.uri()}KEY, or a file."
            )
        return read_label_file(Path(path))

    wanted = {CLASS_INDEX_NAME, *(VAL_LABELS_NAMES if wants_val else ())}
    return find_labels((("dataset prefix", in_prefix), ("working directory", in_folder)), given, read_given)


def _read_object(store: ObjectStore, key: str) -> bytes | None:
    """A label file in the bucket; None where it does not exist. Raises ConsoleError, StorageError."""
    try:
        size = store.head(key).size
        if size > MAX_LABEL_FILE_BYTES:
            raise ConsoleError(f"{store.uri(key)} is larger than {MAX_LABEL_FILE_BYTES >> 20} MB.")
        return store.get(key)
    except StorageError as error:
        if error.no_such_object:
            return None
        raise


class _SplitListing:
    """Lists the splits below the prefix `below` and counts the objects."""

    def __init__(self, store: ObjectStore, below: str, on_progress: OnProgress) -> None:
        self._store = store
        self._below = below
        self._on_progress = on_progress
        self._listed = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def first_level(self, name: str) -> FirstLevel:
        """What is directly in a folder ("": the prefix). Raises StorageError, and what `on_progress` raises."""
        folder = f"{self._below}{name}/" if name else self._below
        folders: list[str] = []
        objects: list[ObjectSummary] = []
        for page in self._store.list_pages(folder):
            folders += (prefix[len(folder) : -1] for prefix in page.prefixes)
            objects += page.objects
            self._count(len(page.objects) if name else 0)
            self._on_progress(self._listed)
        return FirstLevel(tuple(folders), tuple(objects))

    def are_class_folders(self, folders: Sequence[str]) -> bool:
        """Whether at least two of these folders directly below the prefix have images in them, and none other things.

        Only the first few are looked at; empty ones do not count.
        """
        names = [name for name in folders if not is_hidden(name)]
        with_images = 0
        for name in names[:_FOLDERS_CHECKED]:
            folder = f"{self._below}{name}/"
            page = self._store.list_page(folder, max_keys=_KEYS_CHECKED)
            has_image = any(is_sample_key(found.key) for found in page.objects)
            if not has_image and (page.prefixes or any(found.key != folder for found in page.objects)):
                return False
            with_images += has_image
        return with_images >= _MIN_CLASSES

    def class_folders(self, split: str, parent: str, labels: dict[str, int]) -> list[ListedSamples]:
        """The samples of a split in the class folders `labels` of `parent`, which are in OSS's order.

        Raises StorageError, and what `on_progress` raises.
        """
        names = list(labels)
        length = -(-len(names) // _RUNS) or 1
        runs = [names[first : first + length] for first in range(0, len(names), length)]
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="listing")
        try:
            parts = [pool.submit(self._run, split, parent, {name: labels[name] for name in run}) for run in runs]
            pending = set(parts)
            while pending:
                done, pending = wait(pending, _POLL_S, FIRST_EXCEPTION)
                self._on_progress(self._listed)
                for part in done:
                    part.result()
        except BaseException:
            self._stopping.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [part.result() for part in parts]

    def _run(self, split: str, parent: str, labels: dict[str, int]) -> ListedSamples:
        """The samples in consecutive class folders."""
        found = ListedSamples(len(self._below))
        folder = self._below + object_key(parent, "")
        first, last = (f"{folder}{list(labels)[at]}/" for at in (0, -1))
        # A listing begins after a key: here after "first.", which is before "first/", the folder's marker.
        for page in self._store.list_pages(folder, delimiter="", start_after=f"{first[:-1]}."):
            count = 0
            for summary in page.objects:
                name, slash, _ = summary.key[len(folder) :].partition("/")
                if slash and name in labels:
                    found.add(summary, split, labels[name])
                    count += 1
            self._count(count)
            if self._stopping.is_set() or (page.objects and page.objects[-1].key[: len(last)] > last):
                break
        return found

    def _count(self, objects: int) -> None:
        with self._lock:
            self._listed += objects


def is_sample_key(key: str) -> bool:
    """Whether an object with this key, below train/ or val/, may be a sample."""
    return _format_of(key)[0] is not None


def _format_of(key: str) -> tuple[SampleFormat | None, str]:
    """The format of a sample with this key relative to the prefix, or why it is not one."""
    name = key[key.rfind("/") + 1 :]
    if not name:
        return None, FOLDER_MARKER
    if name.lower() in _HIDDEN_NAMES or is_hidden(key):
        return None, HIDDEN_FILE
    suffix = name[name.rfind(".") :]
    if suffix == _TENSOR.suffix:
        return _TENSOR, ""
    return (_IMAGE, "") if suffix.lower() in _LISTED_SUFFIXES else (None, "neither an image nor a .pt sample")


def _object_problem(summary: ObjectSummary, key: str) -> str:
    """Why an object with a sample's name cannot be read as one; "" when it can."""
    if not summary.size:
        return "an empty object"
    if not summary.readable:
        return f"archived ({summary.storage_class}): restore it to use it"
    if summary.size > MAX_FILE_BYTES:
        return f"larger than {MAX_FILE_BYTES >> 20} MiB"
    return "a key with control characters or an empty part" if key_problem(key) else ""


def _why_unlabelled(split: str, labels: FoundLabels) -> str:
    if split == TRAIN:
        return f"directly in {TRAIN}/, not in a class folder"
    return f"not in a class folder, and not in {labels.val_from}" if labels.val_from else NO_VAL_LABELS


def _empty_folders(manifest: Manifest, train: str, folders: Sequence[str]) -> tuple[Unused, ...]:
    used = {manifest.classes[label] for label in {sample.label for sample in manifest.splits[TRAIN]}}
    empty = [object_key(train, name) for name in folders if name not in used and not is_hidden(name)]
    return Unused.of("class folder", "no training samples in it", empty)


def _is_split(prefix: str) -> bool:
    """Whether the last part of a prefix is the name of a split: the dataset is above it."""
    return prefix.rpartition("/")[2].lower() in SPLIT_NAMES


def _no_samples(store: ObjectStore, prefix: str, unused: Sequence[Unused]) -> ManifestMissingError:
    """The error for a prefix without training samples; one request finds out what it holds instead."""
    below = object_key(prefix, "")
    page = store.list_page(below)
    names = [key[len(below) :] for key in (*page.prefixes, *(found.key for found in page.objects)) if key != below]
    parent = prefix.rpartition("/")[0]
    deeper = "" if unused else _deeper_prefix(store, below, page.prefixes)
    if unused:
        holds = " " + " ".join(f"Not used: {group}." for group in unused)
    else:
        holds = f" It holds {first_names(names, len(names))}." if names else ""
    if _is_split(prefix) and parent:
        remedy = f"Give the prefix above it: --dataset-prefix {parent}"
    elif deeper:
        remedy = f"Give the prefix that holds train/: --dataset-prefix {shlex.quote(deeper)}"
    else:
        remedy = (
            "Put images into train/<class>/ below the prefix, upload a dataset with `ossconsole upload SRC`, or set "
            "another dataset prefix."
        )
    return ManifestMissingError(
        f"{store.uri(below)} has neither a manifest nor images or .pt samples in train/<class>/.{holds}",
        remedy=remedy,
        empty=False,
    )


_DEEPER_REQUESTS = 40
_DEEPER_LEVELS = 4


def _deeper_prefix(store: ObjectStore, below: str, folders: Sequence[str]) -> str:
    """The prefix of a `train/` with samples up to four levels below the folders; "" where none is found."""
    level, requests = [folder for folder in folders if not is_hidden(folder[len(below) :])], 0
    for _ in range(_DEEPER_LEVELS):
        deeper: list[str] = []
        for folder in level:
            names = store.list_page(folder).prefixes
            splits = split_folders([name[len(folder) : -1] for name in names])
            if TRAIN in splits:
                page = store.list_page(f"{folder}{splits[TRAIN]}/", delimiter="", max_keys=100)
                if any(is_sample_key(found.key) for found in page.objects):
                    return folder[:-1]
            deeper += [] if splits else names
            requests += 1
            if requests == _DEEPER_REQUESTS:
                return ""
        level = deeper
    return ""


def _one_side(splits: Mapping[str, Sequence[Sample]], uri: str) -> int:
    """The side of the square of every .pt sample, pixels. Raises ConsoleError with the key of one of another size."""
    sizes = {sample.bytes: sample.key for samples in splits.values() for sample in reversed(samples)}
    if len(sizes) > 1:
        (size, key), (other_size, other_key), *_ = sorted(sizes.items(), key=lambda item: item[1])
        raise ConsoleError(
            f"The samples below {uri} differ in size: {key} has {size} bytes, {other_key} has {other_size}.",
            remedy="Delete those of the wrong size, or upload the dataset again with `ossconsole upload`.",
        )
    (size,) = sizes
    side = math.isqrt(size // (CHANNELS * _TENSOR.itemsize))
    if side < 1 or CHANNELS * _TENSOR.itemsize * side * side != size:
        raise ConsoleError(
            f"{sizes[size]} below {uri} has {size} bytes, which is not a square {_TENSOR} sample.",
            remedy="Upload the dataset again with `ossconsole upload`.",
        )
    return side
