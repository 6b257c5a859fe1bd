"""The manifest: keys, labels and sizes of a dataset's samples, stored beside them so that training never lists.

`Unused` groups the files that a dataset does not use by reason.
"""

from __future__ import annotations

import io
import itertools
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import decode_json
from ossconsole.dataset.formats import SampleFormat, sample_bytes
from ossconsole.storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ossconsole.storage.client import ObjectStore

KEPT_NAMES = 10
SHOWN_NAMES = 3


class Unused(msgspec.Struct, frozen=True):
    """`count` things of one kind (`file`, `class folder`) that are not used for `reason`; `names` are the first ten."""

    kind: str
    count: int
    reason: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, reason: str, names: Iterable[str]) -> tuple[Unused, ...]:
        """A tuple of one group, empty where there are no names."""
        found = sorted(names)
        return (cls(kind, len(found), reason, tuple(found[:KEPT_NAMES])),) if found else ()

    def __str__(self) -> str:
        """Like `2 files (a named pipe): a, b`. The names come unescaped from the source."""
        return f"{self.count:,} {self.kinds} ({self.reason}): {first_names(self.names, self.count)}"

    @property
    def kinds(self) -> str:
        """The kind, in the plural unless there is one."""
        plural = f"{self.kind}es" if self.kind.endswith(("s", "x")) else f"{self.kind}s"
        return self.kind if self.count == 1 else plural


class UnusedCounter:
    """Counts files that are not used, by reason."""

    def __init__(self, kind: str = "file") -> None:
        self._kind = kind
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, reason: str) -> None:
        """Counts one file and keeps the first ten names."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < KEPT_NAMES:
            names.append(name)

    def extend(self, later: UnusedCounter) -> None:
        """Adds the files that another counter has counted."""
        for reason, names in later._names.items():
            self._counts[reason] = self._counts.get(reason, 0) + later._counts[reason]
            kept = self._names.setdefault(reason, [])
            kept += names[: KEPT_NAMES - len(kept)]

    @property
    def count(self) -> int:
        """All files so far."""
        return sum(self._counts.values())

    def groups(self) -> tuple[Unused, ...]:
        """One group per reason; may be called while another thread adds."""
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
"""Lists a dataset of shards, in place of a manifest."""

MANIFEST_VERSION = 1
TRAIN, VAL = "train", "val"
SPLITS = (TRAIN, VAL)

MAX_MANIFEST_BYTES = 1 << 30  # about ten million samples
MAX_KEY_BYTES = 1023  # OSS's limit for a key, in UTF-8
MAX_SIDE = 8192  # pixels; a sample of that size is already 200 MB as image-u8
MAX_IMAGE_SIDE = 65535  # pixels; the limit of JPEG
MAX_OBJECT_BYTES = 1 << 46  # the power of two above OSS's limit for an object, 48.8 TB

_SAMPLES_AT_ONCE = 1000
_UPLOAD_AGAIN = "Upload the dataset again with `ossconsole upload`."


class Sample(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One stored image. `key` is relative to the dataset prefix, `label` an index into the manifest's classes.

    `height` and `width` in pixels; 0 where they are unknown, in a dataset of encoded images. `crc64` is the object's,
    as OSS computes it; 0 where it is unknown. `bytes` is its size, 0 where format, height and width determine it.
    `md5` is the ETag of an object of a listing where it has the form of an MD5, hexadecimal in lower case, else "".
    """

    key: str
    label: int
    height: int
    width: int
    crc64: int = 0
    bytes: int = 0
    md5: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of a dataset prefix.

    `size` is the square's side, or the short side where the ratio is kept, pixels; 0 where encoded images vary.
    `classes[label]` is a class's name; `splits` has "train", "val" or both, none of them empty; `preparation` describes
    how images became samples.
    """

    version: int = MANIFEST_VERSION
    format: SampleFormat
    size: int
    classes: tuple[str, ...]
    preparation: dict[str, Any] = {}
    splits: dict[str, tuple[Sample, ...]]

    def sample_bytes(self, sample: Sample) -> int:
        """Bytes of the object of `sample`."""
        return sample.bytes or sample_bytes(self.format, sample.height, sample.width)


class ManifestHead(msgspec.Struct, frozen=True):
    """The kind of a manifest's dataset, read without memory for its samples."""

    version: int
    format: SampleFormat
    size: int


class _Outline(ManifestHead, frozen=True):
    """A manifest whose samples are text still. The fields are those of Manifest."""

    classes: tuple[str, ...]
    splits: dict[str, msgspec.Raw]
    preparation: dict[str, Any] = {}


class ManifestError(ConsoleError):
    """A manifest that cannot be used."""


class ManifestMissingError(ManifestError):
    """The prefix has no manifest. `empty` when it has no object at all."""

    def __init__(self, message: str, *, remedy: str, empty: bool) -> None:
        super().__init__(message, remedy=remedy)
        self.empty = empty


def object_key(prefix: str, relative: str) -> str:
    """The key in the bucket of a key relative to a dataset prefix."""
    return f"{prefix}/{relative}" if prefix else relative


def manifest_key(prefix: str) -> str:
    """The manifest's key in the bucket."""
    return object_key(prefix, MANIFEST_NAME)


def read_manifest(store: ObjectStore, prefix: str) -> Manifest:
    """The manifest below `prefix`, checked. Raises ManifestMissingError, ManifestError or StorageError."""
    manifest = _read(store, prefix, Manifest)
    check_manifest(manifest, store.uri(manifest_key(prefix)))
    return manifest


def read_manifest_in_parts(store: ObjectStore, prefix: str) -> tuple[Manifest, Iterator[tuple[str, list[Sample]]]]:
    """The manifest below `prefix` without its samples, and these a few thousand at a time, with their split.

    A million samples as objects take 400 MB; the text of a manifest takes 100 MB. Everything is checked as it is read.
    Raises ManifestMissingError, ManifestError or StorageError; the iterator raises ManifestError.
    """
    outline = _read(store, prefix, _Outline)
    where = store.uri(manifest_key(prefix))
    head = Manifest(
        version=outline.version,
        format=outline.format,
        size=outline.size,
        classes=outline.classes,
        preparation=outline.preparation,
        splits=dict.fromkeys(outline.splits, ()),
    )
    if problem := _head_problem(head):
        raise _invalid(where, problem)
    return msgspec.structs.replace(head, splits={}), _parts(outline, len(head.classes), head.format, where)


def _parts(outline: _Outline, classes: int, fmt: SampleFormat, where: str) -> Iterator[tuple[str, list[Sample]]]:
    seen = array("q")  # hashes of 64 bits: among ten million keys two are alike by chance once in 400,000 manifests
    for split, text in outline.splits.items():
        count = 0
        for samples in _decoded(text, where):
            for index, sample in enumerate(samples, count):
                if problem := sample_problem(sample, classes, fmt) or _md5_problem(sample):
                    raise _invalid(where, f"{split}[{index}]: {problem}")
                seen.append(hash(sample.key))
            count += len(samples)
            if samples:
                yield split, samples
        if not count:
            raise _invalid(where, f"the split {split!r} is empty")
    if _has_duplicates(seen):
        raise _invalid(where, "a key is listed twice")


def _has_duplicates(hashes: array[int]) -> bool:
    """Whether two are alike, without the memory of a set."""
    import numpy as np

    ordered = np.sort(np.frombuffer(hashes, np.int64)) if hashes else np.zeros(0, np.int64)
    return bool((ordered[1:] == ordered[:-1]).any())


_PART_BYTES = 4 << 20
_BETWEEN_SAMPLES = b"],["
_CUTS_TRIED = 20
_SEARCHED_BYTES = 1 << 16


def _decoded(raw: msgspec.Raw, where: str) -> Iterator[list[Sample]]:
    """The samples of a split from their JSON, a part at a time. Raises ManifestError."""
    text = memoryview(raw)
    begin, end = 1, len(text) - 1  # within the outer brackets
    try:
        while begin < end:
            cut, part = _part(text, begin, end)
            yield part
            begin = cut + 1
    except msgspec.DecodeError as error:
        raise ManifestError(f"{where} is not a manifest: {error}.", remedy=_UPLOAD_AGAIN) from error


def _part(text: memoryview, begin: int, end: int) -> tuple[int, list[Sample]]:
    """Samples from `begin` to the place that is returned. Raises msgspec.DecodeError."""
    cut = begin + _PART_BYTES
    for _ in range(_CUTS_TRIED):
        cut = _next_cut(text, cut, end)
        if cut == end:
            break
        try:
            part: list[Sample] = decode_json(b"[" + text[begin:cut] + b"]", list[Sample])
        except msgspec.DecodeError:
            cut += 1  # the brackets may be in a key: there is an odd number of quotes before them
        else:
            return cut, part
    return end, decode_json(b"[" + text[begin:end] + b"]", list[Sample])


def _next_cut(text: memoryview, after: int, end: int) -> int:
    """The place of the next comma between two samples; the end where there is none near."""
    found = bytes(text[after : after + _SEARCHED_BYTES]).find(_BETWEEN_SAMPLES) if after < end else -1
    return after + found + 1 if found >= 0 else end


def _invalid(where: str, problem: str) -> ManifestError:
    return ManifestError(f"The manifest {where} is not valid: {problem}.", remedy=_UPLOAD_AGAIN)


def read_manifest_head(store: ObjectStore, prefix: str) -> ManifestHead:
    """Format and size in the manifest below `prefix`. Raises ManifestMissingError, ManifestError or StorageError."""
    return _read(store, prefix, ManifestHead)


def _read(store: ObjectStore, prefix: str, kind: type[T]) -> T:
    key = manifest_key(prefix)
    uri = store.uri(key)
    try:
        info = store.head(key)
    except StorageError as error:
        if not error.no_such_object:
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


def write_manifest(
    store: ObjectStore, prefix: str, head: Manifest, splits: Mapping[str, Iterable[Sample]] | None = None
) -> str:
    """Writes the manifest below `prefix` in one PUT; returns its URI. Raises StorageError.

    `splits` replaces those of `head` and may be read from a journal during the encoding.
    """
    key = manifest_key(prefix)
    data = encode_manifest(head, head.splits if splits is None else splits)
    store.put(key, data, content_type="application/json")
    return store.uri(key)


def encode_manifest(head: Manifest, splits: Mapping[str, Iterable[Sample]]) -> bytes:
    """The JSON of `head` with `splits` in place of its own."""
    encoder = msgspec.json.Encoder()
    text = io.BytesIO()  # returns its bytes without a copy, and a manifest may be large
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
    """Raises ManifestError with the first problem in the manifest at `where`."""
    if problem := _head_problem(manifest) or _samples_problem(manifest):
        raise _invalid(where, problem)


def _head_problem(manifest: Manifest) -> str:
    odd = [name for name in manifest.classes if not name or not _printable(name)]
    if manifest.version != MANIFEST_VERSION:
        return f"it has version {manifest.version}, this program reads version {MANIFEST_VERSION}"
    least = 0 if manifest.format.encoded else 1
    if not least <= manifest.size <= MAX_SIDE:
        return f"size {manifest.size} is not within {least}..{MAX_SIDE}"
    if not 1 <= len(set(manifest.classes)) == len(manifest.classes):
        return "it has no classes, or a class is named twice"
    if odd:
        return f"the class name {odd[0]!r} is empty or has control characters"
    if not manifest.splits or not set(manifest.splits) <= set(SPLITS):
        return f"its splits are {sorted(manifest.splits)!r}, not train, val or both"
    return ""


def _samples_problem(manifest: Manifest) -> str:
    seen: set[str] = set()
    classes = len(manifest.classes)
    for split, samples in manifest.splits.items():
        if not samples:
            return f"the split {split!r} is empty"
        for index, sample in enumerate(samples):
            if problem := sample_problem(sample, classes, manifest.format) or _md5_problem(sample):
                return f"{split}[{index}]: {problem}"
        seen.update(sample.key for sample in samples)
    if len(seen) != sum(len(samples) for samples in manifest.splits.values()):
        return "a key is listed twice"
    return ""


_LEAVING_PART = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)")  # a part of a key that is empty, "." or ".."


def key_problem(key: str) -> str:
    """Why `key` is not valid as a sample's relative key; "" when it is."""
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
    if key.startswith("\\") or _LEAVING_PART.search(key):
        return f"the key {key!r} leaves the dataset prefix"
    return ""


class SampleFields(Protocol):
    """The fields that samples have in a manifest and in a list of shards."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def crc64(self) -> int: ...


def sample_problem(sample: SampleFields, classes: int, fmt: SampleFormat) -> str:
    """Why a sample of a dataset with `classes` classes is not valid; "" when it is."""
    least, longest = (0, MAX_IMAGE_SIDE) if fmt.encoded else (1, MAX_SIDE)
    if problem := key_problem(sample.key):
        return problem
    if not 0 <= sample.label < classes:
        return f"the label {sample.label} is not within 0..{classes - 1}"
    if not (least <= sample.height <= longest and least <= sample.width <= longest):
        return f"{sample.height} x {sample.width} px is not within {least}..{longest}"
    if not 0 <= sample.bytes <= MAX_OBJECT_BYTES or fmt.encoded != bool(sample.bytes):
        return f"{sample.bytes} bytes are not a valid size for {fmt}"
    if not 0 <= sample.crc64 < 1 << 64:
        return f"{sample.crc64} is not a CRC64"
    return ""


_MD5 = re.compile(r"(?:[0-9a-fA-F]{32})?")


def _md5_problem(sample: Sample) -> str:
    return "" if _MD5.fullmatch(sample.md5) else f"{sample.md5!r} is not an MD5"


def _printable(text: str) -> bool:
    """False for control characters and lone surrogates, which terminals or OSS cannot handle."""
    return text.isprintable() or not any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in text)


def _missing(store: ObjectStore, prefix: str) -> ManifestMissingError:
    """The error for a prefix without a manifest; one request finds out whether it is empty."""
    below = f"{prefix}/" if prefix else ""
    if not store.list_page(below, delimiter="", max_keys=1).objects:
        return ManifestMissingError(
            f"{store.uri(below)} is empty.",
            remedy="Upload a dataset with `ossconsole upload SRC`, or set another dataset prefix.",
            empty=True,
        )
    uri = store.uri(manifest_key(prefix))
    return ManifestMissingError(f"{uri} does not exist.", remedy=_UPLOAD_AGAIN, empty=False)


ExpectedT = TypeVar("ExpectedT")
ListedT = TypeVar("ListedT")


def merge_by_key(
    expected: Iterable[tuple[str, ExpectedT]], listed: Iterable[tuple[str, ListedT]]
) -> Iterator[tuple[str, ExpectedT | None, ListedT | None]]:
    """Both, side by side by key; each is in the order of its keys. None where a side does not have the key."""
    wanted = iter(expected)
    key, value = next(wanted, (None, None))
    for listed_key, found in listed:
        while key is not None and key < listed_key:
            yield key, value, None
            key, value = next(wanted, (None, None))
        if key == listed_key:
            yield listed_key, value, found
            key, value = next(wanted, (None, None))
        else:
            yield listed_key, None, found
    while key is not None:
        yield key, value, None
        key, value = next(wanted, (None, None))
