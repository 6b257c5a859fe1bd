"""The manifest: keys, labels and sizes of a dataset's samples, stored beside them so that training never lists.

`Unused` groups what a dataset leaves out by reason.
"""

from __future__ import annotations

import io
import itertools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import decode_json
from ossconsole.dataset.formats import CHANNELS, SampleFormat, sample_bytes
from ossconsole.storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ossconsole.storage.client import ObjectStore

KEPT_NAMES = 10
SHOWN_NAMES = 3


class Unused(msgspec.Struct, frozen=True):
    """`count` things of one kind (`file`, `class folder`) that are left out for `reason`; `names` are the first."""

    kind: str
    count: int
    reason: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, reason: str, names: Iterable[str]) -> tuple[Unused, ...]:
        """One group, or none where there are no names."""
        found = sorted(names)
        return (cls(kind, len(found), reason, tuple(found[:KEPT_NAMES])),) if found else ()

    def __str__(self) -> str:
        """Like `2 files (a named pipe): a, b`. The names are those of the source: escape them for a terminal."""
        plural = f"{self.kind}es" if self.kind.endswith("s") else f"{self.kind}s"
        kind = self.kind if self.count == 1 else plural
        return f"{self.count:,} {kind} ({self.reason}): {first_names(self.names, self.count)}"


class UnusedCounter:
    """Files that are left out, counted as they turn up."""

    def __init__(self, kind: str = "file") -> None:
        self._kind = kind
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, reason: str) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < KEPT_NAMES:
            names.append(name)

    @property
    def count(self) -> int:
        return sum(self._counts.values())

    def groups(self) -> tuple[Unused, ...]:
        counts = list(self._counts.items())  # another thread may add to them
        return tuple(Unused(self._kind, count, reason, tuple(self._names[reason])) for reason, count in counts)


def first_names(names: Sequence[str], count: int) -> str:
    """Like `a, b, c and 7 more`."""
    shown = ", ".join(names[:SHOWN_NAMES])
    more = count - min(len(names), SHOWN_NAMES)
    return f"{shown} and {more:,} more" if more else shown


T = TypeVar("T")

MANIFEST_NAME = "manifest.json"
SHARDS_NAME = "shards.json"
"""What lists a dataset of shards, in place of a manifest."""

MANIFEST_VERSION = 1
TRAIN, VAL = "train", "val"
SPLITS = (TRAIN, VAL)

VAL_LABELS_NAME = "ILSVRC2012_val_labels.json"
"""The tutorial's file of validation labels: picture file name to WordNet id."""

CLASS_INDEX_NAME = "imagenet_class_index.json"
"""The tutorial's file of classes: index to [WordNet id, name]."""

_TUTORIAL_FORMAT = SampleFormat.TENSOR_F32

MAX_MANIFEST_BYTES = 1 << 30  # about ten million samples
MAX_KEY_BYTES = 1023  # OSS's limit for a key, in UTF-8
MAX_SIDE = 8192  # pixels; a sample of that size is already 200 MB as image-u8

_SAMPLES_AT_ONCE = 1000
_UPLOAD_AGAIN = "Upload the dataset again with `ossconsole upload`."


class Sample(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One stored picture. `key` is relative to the dataset prefix, `label` an index into the manifest's classes.

    `crc64` is the object's, as OSS reckons it; 0 where it is not known.
    """

    key: str
    label: int
    height: int
    width: int
    crc64: int = 0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a dataset prefix holds. `size` is the square's side, or the short side where the ratio was kept (pixels).

    `classes[label]` is a class's name; `splits` has "train", "val" or both, none of them empty; `preparation` tells
    how the pictures were made into samples.
    """

    version: int = MANIFEST_VERSION
    format: SampleFormat
    size: int
    classes: tuple[str, ...]
    preparation: dict[str, Any] = {}
    splits: dict[str, tuple[Sample, ...]]

    def sample_bytes(self, sample: Sample) -> int:
        """Bytes of the object of `sample`."""
        return sample_bytes(self.format, sample.height, sample.width)


class ManifestHead(msgspec.Struct, frozen=True):
    """What kind of dataset a manifest is of; reading it costs no memory for the samples."""

    version: int
    format: SampleFormat
    size: int


class ManifestError(ConsoleError):
    """A manifest that cannot be used."""


class ManifestMissingError(ManifestError):
    """No manifest below the prefix. `empty` tells whether there is no object at all."""

    def __init__(self, message: str, *, remedy: str, empty: bool) -> None:
        super().__init__(message, remedy=remedy)
        self.empty = empty


def object_key(prefix: str, relative: str) -> str:
    """The key in the bucket of a key relative to a dataset prefix."""
    return f"{prefix}/{relative}" if prefix else relative


def manifest_key(prefix: str) -> str:
    return object_key(prefix, MANIFEST_NAME)


def read_manifest(store: ObjectStore, prefix: str) -> Manifest:
    """The manifest below `prefix`, checked. Raises ManifestMissingError, ManifestError or StorageError."""
    manifest = _read(store, prefix, Manifest)
    check_manifest(manifest, store.uri(manifest_key(prefix)))
    return manifest


def read_manifest_head(store: ObjectStore, prefix: str) -> ManifestHead:
    """What the manifest below `prefix` begins with. Raises ManifestMissingError, ManifestError or StorageError."""
    return _read(store, prefix, ManifestHead)


def _read(store: ObjectStore, prefix: str, kind: type[T]) -> T:
    key = manifest_key(prefix)
    uri = store.uri(key)
    try:
        info = store.head(key)
    except StorageError as error:
        if error.status != 404 or error.code == "NoSuchBucket":
            raise
        raise _missing(store, prefix) from error
    if info.size > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{uri} has {info.size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}.", remedy=_UPLOAD_AGAIN
        )
    try:
        return decode_json(store.get(key), kind)
    except msgspec.DecodeError as error:  # ValidationError is one; its text names the path inside the document
        raise ManifestError(f"{uri} is not a manifest: {error}.", remedy=_UPLOAD_AGAIN) from error


def write_manifest(store: ObjectStore, prefix: str, manifest: Manifest) -> None:
    """Checks and writes the manifest below `prefix` in one PUT. Raises ManifestError or StorageError."""
    key = manifest_key(prefix)
    check_manifest(manifest, store.uri(key))
    store.put(key, encode_manifest(manifest, manifest.splits), content_type="application/json")


def encode_manifest(head: Manifest, splits: Mapping[str, Iterable[Sample]]) -> bytes:
    """The JSON of `head` with `splits` in place of its own, which may be read on the fly from a journal."""
    encoder = msgspec.json.Encoder()
    text = io.BytesIO()  # gives its bytes without a copy, and a manifest may be large
    text.write(encoder.encode(msgspec.structs.replace(head, splits={})).removesuffix(b"}}"))
    for number, (split, samples) in enumerate(splits.items()):
        text.write((b"," if number else b"") + encoder.encode(split) + b":[")
        rest = iter(samples)
        separator = b""
        while batch := list(itertools.islice(rest, _SAMPLES_AT_ONCE)):
            text.write(separator + encoder.encode(batch)[1:-1])
            separator = b","
        text.write(b"]")
    text.write(b"}}")
    return text.getvalue()


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises ManifestError, which names the first thing wrong in the manifest found at `where`."""
    if problem := _head_problem(manifest) or _samples_problem(manifest):
        raise ManifestError(f"The manifest {where} is refused: {problem}.", remedy=_UPLOAD_AGAIN)


def _head_problem(manifest: Manifest) -> str:
    odd = [name for name in manifest.classes if not name or not _printable(name)]
    if manifest.version != MANIFEST_VERSION:
        return f"it has version {manifest.version}, this program reads version {MANIFEST_VERSION}"
    if not 1 <= manifest.size <= MAX_SIDE:
        return f"size {manifest.size} is not within 1..{MAX_SIDE}"
    if not 1 <= len(set(manifest.classes)) == len(manifest.classes):
        return "it has no classes, or a class is named twice"
    if odd:
        return f"the class name {odd[0]!r} is empty or has control characters"
    if not manifest.splits or not set(manifest.splits) <= set(SPLITS):
        return f"its splits are {sorted(manifest.splits)!r}, not train, val or both"
    return ""


def _samples_problem(manifest: Manifest) -> str:
    seen: set[str] = set()
    for split, samples in manifest.splits.items():
        if not samples:
            return f"the split {split!r} is empty"
        for index, sample in enumerate(samples):
            if problem := _sample_problem(sample, len(manifest.classes)):
                return f"{split}[{index}]: {problem}"
        seen.update(sample.key for sample in samples)
    if len(seen) != sum(len(samples) for samples in manifest.splits.values()):
        return "a key is listed twice"
    return ""


def key_problem(key: str) -> str:
    """Why `key` may not be a sample's relative key, or "" when it may."""
    if not key:
        return "the key is empty"
    if not key.isprintable():
        kinds = {unicodedata.category(letter) for letter in key}
        if "Cs" in kinds:
            return f"the key {key!r} is not UTF-8"
        if "Cc" in kinds:
            return f"the key {key!r} has control characters"
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"the key {key[:40]!r}… is longer than {MAX_KEY_BYTES} bytes"
    if key.startswith("\\") or any(part in {"", ".", ".."} for part in key.split("/")):
        return f"the key {key!r} leaves the dataset prefix"
    return ""


def _sample_problem(sample: Sample, classes: int) -> str:
    if problem := key_problem(sample.key):
        return problem
    if not 0 <= sample.label < classes:
        return f"the label {sample.label} is not within 0..{classes - 1}"
    if not (1 <= sample.height <= MAX_SIDE and 1 <= sample.width <= MAX_SIDE):
        return f"{sample.height} x {sample.width} px is not within 1..{MAX_SIDE}"
    return ""


def _printable(text: str) -> bool:
    """False for control characters and lone surrogates, which a terminal or OSS would choke on."""
    return text.isprintable() or not any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in text)


def _missing(store: ObjectStore, prefix: str) -> ManifestMissingError:
    """The error for a prefix without a manifest, after a look at whether it holds anything."""
    below = f"{prefix}/" if prefix else ""
    if not store.list_page(below, delimiter="", max_keys=1).objects:
        return ManifestMissingError(
            f"{store.uri(below)} is empty.",
            remedy="Upload a dataset with `ossconsole upload SRC`, or set another dataset prefix.",
            empty=True,
        )
    return ManifestMissingError(f"{store.uri(manifest_key(prefix))} is not there.", remedy=_UPLOAD_AGAIN, empty=False)


def unique_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The class names in label order: sorted, as torchvision's ImageFolder numbers them."""
    return tuple(sorted(set(names)))


def manifest_from_listing(store: ObjectStore, prefix: str) -> tuple[Manifest, tuple[Unused, ...]]:
    """The manifest of `train/<class>/*.pt` and `val/*.pt` below `prefix`, from one listing, and what is not in it.

    A flat `val/` is used when the labels file is an object below the prefix too; without it there is no val split.
    Raises ManifestMissingError when there is no such sample, ConsoleError when objects are not samples of one size.
    """
    below = object_key(prefix, "")
    found: dict[str, list[tuple[str, str]]] = {TRAIN: [], VAL: []}
    sizes: dict[int, str] = {}
    unused = UnusedCounter("object")
    for summary in store.list_all(below):
        relative = summary.key[len(below) :]
        split, _, rest = relative.partition("/")
        if split in found and rest.endswith(_TUTORIAL_FORMAT.suffix):
            found[split].append((relative, rest.rpartition("/")[0].partition("/")[0]))
            sizes.setdefault(summary.size, relative)
        elif split in found and not rest.endswith("/"):
            unused.add(relative, f"not a {_TUTORIAL_FORMAT.suffix} sample")
    if not found[TRAIN]:
        raise ManifestMissingError(
            f"Below {store.uri(below)} there is neither a manifest nor `train/<class>/*.pt`.",
            remedy="Upload a dataset with `ossconsole upload SRC`, or set another dataset prefix.",
            empty=not found[VAL],
        )
    side = _one_side(sizes, store.uri(below))
    labels = _val_labels(store, prefix) if any(not name for _, name in found[VAL]) else {}
    named = {
        split: [(key, name or labels.get(key.rpartition("/")[2], "")) for key, name in samples]
        for split, samples in found.items()
    }
    for key in (key for samples in named.values() for key, name in samples if not name):
        unused.add(key, _why_unlabelled(key, labels))
    classes = unique_classes(name for samples in named.values() for _, name in samples if name)
    index = {name: label for label, name in enumerate(classes)}
    splits = {
        split: tuple(Sample(key, index[name], side, side) for key, name in samples if name)
        for split, samples in named.items()
    }
    manifest = Manifest(
        format=_TUTORIAL_FORMAT,
        size=side,
        classes=classes,
        preparation={"by": "the tutorial's upload_dataset.py"},
        splits={split: samples for split, samples in splits.items() if samples},
    )
    check_manifest(manifest, store.uri(below))
    return manifest, unused.groups()


def _why_unlabelled(key: str, labels: Mapping[str, str]) -> str:
    if key.startswith(f"{TRAIN}/"):
        return f"directly in {TRAIN}/, in no class folder"
    where = f"not in {VAL_LABELS_NAME}" if labels else f"there is no {VAL_LABELS_NAME} below the dataset prefix"
    return f"in no class folder, and {where}"


def _one_side(sizes: dict[int, str], uri: str) -> int:
    """The side of the square that every object has. Raises ConsoleError naming one that has another size."""
    if len(sizes) > 1:
        (size, key), (other_size, other_key), *_ = sizes.items()
        raise ConsoleError(
            f"The samples below {uri} differ in size: {key} has {size} bytes, {other_key} has {other_size}.",
            remedy="Delete the odd ones, or upload the dataset again with `ossconsole upload`.",
        )
    (size,) = sizes
    side = math.isqrt(size // (CHANNELS * _TUTORIAL_FORMAT.itemsize))
    if side < 1 or CHANNELS * _TUTORIAL_FORMAT.itemsize * side * side != size:
        raise ConsoleError(
            f"{sizes[size]} below {uri} has {size} bytes, which is no square {_TUTORIAL_FORMAT} sample.",
            remedy="Upload the dataset again with `ossconsole upload`.",
        )
    return side


def _val_labels(store: ObjectStore, prefix: str) -> dict[str, str]:
    """Sample file name (`….pt`) to class, from the labels object; empty when it is not there."""
    key = object_key(prefix, VAL_LABELS_NAME)
    try:
        text = store.get(key)
    except StorageError as error:
        if error.status == 404:
            return {}
        raise
    try:
        labels: dict[str, str] = decode_json(text, dict[str, str])
    except msgspec.DecodeError as error:
        raise ConsoleError(
            f"{store.uri(key)} is not a labels file: {error}.", remedy="Upload the tutorial's file again."
        ) from error
    return {name.replace(".JPEG", _TUTORIAL_FORMAT.suffix): wnid for name, wnid in labels.items()}
