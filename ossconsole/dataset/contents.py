"""What an object is, told by its first bytes: checkpoint, sample, manifest, image, table, text or plain bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import decode_json
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import MANIFEST_NAME, Manifest, Sample, check_manifest, object_key
from ossconsole.dataset.preview import Picture, guess_sample, show_image, show_sample, square_side
from ossconsole.storage.checkpoints.inspect import Checkpoint, CheckpointError, inspect_checkpoint
from ossconsole.storage.objects import ARCHIVED

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.objects import ObjectInfo

PREVIEW_BYTES = 64 << 10
MAX_SAMPLE_BYTES = 8 << 20
MAX_MANIFEST_BYTES = 32 << 20
_SNIFF_BYTES = 4 << 10
_MAX_LINE = 2000
_PICTURE_THREADS = 8
_BINARY_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".u8", ".safetensors", ".zip")
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF")
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


class ManifestIndex:
    """Which sample a key is, by the manifest of a dataset prefix."""

    def __init__(self, manifest: Manifest, prefix: str) -> None:
        self.manifest = manifest
        self.prefix = prefix
        self._samples: dict[str, Sample] | None = None

    def find(self, key: str) -> Sample | None:
        if self._samples is None:
            self._samples = {
                object_key(self.prefix, sample.key): sample
                for samples in self.manifest.splits.values()
                for sample in samples
            }
        return self._samples.get(key)

    def label(self, sample: Sample) -> str:
        return self.manifest.classes[sample.label]


@dataclass(frozen=True)
class TextContent:
    """Lines of `kind` (`text`, `JSON`, `table`); `truncated` where the object has more than was read.

    `note` says why it is not what its name promises.
    """

    kind: str
    lines: list[str]
    truncated: bool
    note: str = ""


@dataclass(frozen=True)
class BytesContent:
    """The first bytes of something that is none of the known things; `note` says what it is not, or why."""

    data: bytes
    note: str = ""


@dataclass(frozen=True)
class PictureContent:
    """A sample or an image, with the class it belongs to where that is known."""

    picture: Picture
    label: str = ""


@dataclass(frozen=True)
class Unread:
    """Why there is nothing to show."""

    reason: str


Content = Checkpoint | Manifest | PictureContent | TextContent | BytesContent | Unread


def read_content(store: ObjectStore, info: ObjectInfo, index: ManifestIndex | None = None) -> Content:
    """What `info`'s object holds, from at most 64 KiB, or from all of a sample or manifest. Raises StorageError."""
    if info.size == 0:
        return Unread("The object is empty.")
    if info.storage_class in ARCHIVED and 'ongoing-request="false"' not in info.headers.get("x-oss-restore", ""):
        return Unread(f"The object is archived ({info.storage_class}): restore it to read it.")
    sample = index.find(info.key) if index else None
    if index and sample:
        return _known_sample(store, info, index, sample)
    binary = info.key.endswith(_BINARY_SUFFIXES)
    head = store.get_range(info.key, 0, _SNIFF_BYTES if binary else PREVIEW_BYTES)
    if head.startswith((_ZIP_MAGIC, _LEGACY_TORCH_MAGIC)):
        return _checkpoint(store, info, head)
    if head.startswith(_IMAGE_MAGIC):
        return _image(head, info.size)
    return _sample(store, info, binary=binary) or _manifest(store, info, head) or _text_or_bytes(head, info, binary)


def _checkpoint(store: ObjectStore, info: ObjectInfo, head: bytes) -> Content:
    try:
        return inspect_checkpoint(store, info.key, info.size)
    except CheckpointError as error:
        return BytesContent(head, str(error))


def _sample(store: ObjectStore, info: ObjectInfo, *, binary: bool) -> Content | None:
    fits = any(square_side(fmt, info.size) for fmt in SampleFormat)
    if not binary or info.size > MAX_SAMPLE_BYTES or not fits:
        return None
    folder = info.key.rpartition("/")[0].rpartition("/")[2]
    return PictureContent(guess_sample(info.key, store.get(info.key)), folder)


def folder_pictures(
    store: ObjectStore, prefix: str, index: ManifestIndex | None = None, limit: int = 24
) -> list[PictureContent]:
    """The first pictures of a folder, read side by side; objects that are none are left out. Raises StorageError."""
    found = store.list_page(prefix, max_keys=min(1000, limit * 2)).objects
    with ThreadPoolExecutor(_PICTURE_THREADS, thread_name_prefix="pictures") as pool:
        contents = pool.map(lambda each: read_content(store, store.head(each.key), index), found)
        pictures = [content for content in contents if isinstance(content, PictureContent)]
    return pictures[:limit]


def _known_sample(store: ObjectStore, info: ObjectInfo, index: ManifestIndex, sample: Sample) -> Content:
    label = index.label(sample)
    expected = index.manifest.sample_bytes(sample)
    if info.size != expected:
        note = f"The manifest expects {expected:,} bytes ({sample.height} x {sample.width} {index.manifest.format})."
        return BytesContent(store.get_range(info.key, 0, _SNIFF_BYTES), f"{note} The object has {info.size:,}.")
    data = store.get(info.key)
    picture = show_sample(index.manifest.format, data, sample.height, sample.width, basis="by the manifest")
    return PictureContent(picture, label)


def _image(head: bytes, size: int) -> Content:
    try:
        return PictureContent(show_image(head, is_whole=len(head) == size))
    except ConsoleError as error:
        return BytesContent(head, str(error))


def _manifest(store: ObjectStore, info: ObjectInfo, head: bytes) -> Content | None:
    if info.key.rpartition("/")[2] != MANIFEST_NAME or info.size > MAX_MANIFEST_BYTES:
        return None
    data = head if len(head) == info.size else store.get(info.key)
    try:
        manifest: Manifest = decode_json(data, Manifest)
        check_manifest(manifest, info.key)
    except (msgspec.DecodeError, ConsoleError) as error:
        text = _text(head, info)
        note = f"This is no manifest that can be used. {error}"
        return replace(text, note=note) if text else BytesContent(head, note)
    return manifest


def _text_or_bytes(head: bytes, info: ObjectInfo, binary: bool) -> Content:
    note = (
        f"{info.size:,} bytes are neither a torch checkpoint nor a square sample of a known format." if binary else ""
    )
    text = _text(head, info)
    return replace(text, note=note) if text else BytesContent(head, note)


def _text(head: bytes, info: ObjectInfo) -> TextContent | None:
    truncated = len(head) < info.size
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if not truncated or error.start < len(head) - 4:  # a character cut in two by the end of the range is no fault
            return None
        text = head[: error.start].decode()
    if "\0" in text:
        return None
    kind = "text"
    if text.lstrip()[:1] in {"{", "["}:
        kind = "JSON"
        if not truncated:
            text = _pretty(text)
    elif info.key.endswith((".tsv", ".csv")):
        kind = "table"
    return TextContent(kind, [line[:_MAX_LINE] for line in text.splitlines()], truncated)


def _pretty(text: str) -> str:
    try:
        return msgspec.json.format(text, indent=2)
    except msgspec.DecodeError:  # JSON Lines, or not JSON after all
        return text
