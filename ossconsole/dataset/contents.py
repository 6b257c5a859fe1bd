"""What an object is by its first bytes and how it is shown; the comparison of a dataset with its manifest."""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.errors import ConsoleError
from ossconsole.config.files import decode_json
from ossconsole.dataset.formats import CHANNELS, IMAGENET_MEAN, IMAGENET_STD, SampleFormat, decode, sample_bytes
from ossconsole.dataset.manifest import MANIFEST_NAME, Manifest, Sample, check_manifest, merge_by_key, object_key
from ossconsole.storage.checkpoints.inspect import (
    SAFETENSORS_SUFFIX,
    SHARDED_NAME,
    CheckpointError,
    CheckpointInfo,
    Readable,
    inspect_checkpoint,
)
from ossconsole.storage.checkpoints.safetensors_header import is_safetensors
from ossconsole.storage.jobs.job import Job
from ossconsole.storage.objects import ARCHIVED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ossconsole.storage.client import ObjectStore
    from ossconsole.storage.objects import ObjectInfo

_MAX_IMAGE_PIXELS = 64_000_000
_JPEG_MAGIC = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"  # with it a decoder takes a cut file for a whole one, and leaves the rest grey
_NORMALISED_LIMIT = 8.0  # ImageNet's normalisation gives -2.2 … 2.7; any other bytes read as float32 go far beyond


@dataclass(frozen=True)
class PreviewImage:
    """An image to show: `pixels` is uint8, (height, width, 3).

    `minimum`, `maximum` and `mean` are of the values as stored, None for an ordinary image file. `basis` says how the
    format was detected (`by the manifest`).
    """

    pixels: NDArray[np.uint8]
    kind: str
    basis: str
    is_part: bool = False
    """True where only the upper part of the image was read."""
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[1])


_BARE_FORMATS = tuple(fmt for fmt in SampleFormat if not fmt.encoded)


def square_side(fmt: SampleFormat, size: int) -> int | None:
    """The side in pixels of the square sample of `size` bytes; None where there is none. Not of an encoded format."""
    side = math.isqrt(size // (CHANNELS * fmt.itemsize))
    return side if side and sample_bytes(fmt, side, side) == size else None


def guess_sample(name: str, data: bytes) -> PreviewImage:
    """The image in a sample without a manifest. Raises ConsoleError when the size fits no format.

    Where both formats have a square of that size the values decide: pixel bytes read as float32 are not small.
    """
    sides = {fmt: side for fmt in _BARE_FORMATS if (side := square_side(fmt, len(data)))}
    if not sides:
        raise ConsoleError(
            f"{len(data):,} bytes fit no known sample format: a square has 3·n·n (image-u8) or 12·n·n (tensor-f32).",
            remedy="Without a manifest only square samples are recognised.",
        )
    if len(sides) == 1:
        (fmt,) = sides
        return show_sample(fmt, data, sides[fmt], sides[fmt], basis="by its size")
    fmt = SampleFormat.TENSOR_F32 if _looks_like_floats(data) else SampleFormat.IMAGE_U8
    basis = "by its name, size and values" if name.endswith(fmt.suffix) else "by its size and values"
    return show_sample(fmt, data, sides[fmt], sides[fmt], basis=basis)


def show_sample(fmt: SampleFormat, data: bytes, height: int, width: int, *, basis: str) -> PreviewImage:
    """The image of a sample, for tensor-f32 with the normalisation undone. Raises ConsoleError on a wrong length.

    Not for an encoded format: its samples are image files.
    """
    import numpy as np

    values = decode(fmt, data, height, width)
    finite = values[np.isfinite(values)]
    if fmt is SampleFormat.IMAGE_U8:
        pixels = values.astype(np.uint8)
    else:
        mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
        scaled = np.nan_to_num(values.astype(np.float32) * std + mean, nan=0.0, posinf=1.0, neginf=0.0)
        pixels = (scaled.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return PreviewImage(
        pixels=np.ascontiguousarray(pixels.transpose(1, 2, 0)),
        kind=str(fmt),
        basis=basis,
        minimum=float(finite.min()) if finite.size else None,
        maximum=float(finite.max()) if finite.size else None,
        mean=float(finite.mean(dtype=np.float64)) if finite.size else None,
    )


def show_image(data: bytes, *, is_whole: bool = True) -> PreviewImage:
    """An ordinary image file (JPEG, PNG, …); the upper part of a JPEG that is cut short. Raises ConsoleError."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from ossconsole.dataset.decode import image_problem, upright

    is_part = not is_whole and data.startswith(_JPEG_MAGIC)
    try:
        with Image.open(io.BytesIO(data + _JPEG_END if is_part else data)) as image:
            kind = f"{image.format or 'image'} {image.mode}, {image.width} x {image.height} px"
            if image.width * image.height > _MAX_IMAGE_PIXELS:
                raise ConsoleError(f"{kind}: too many pixels to show.")
            if not is_whole and not is_part:
                raise ConsoleError(f"{kind}: its first {len(data):,} bytes cannot be shown without the rest.")
            kind += f", from its first {len(data):,} bytes" if is_part else ""
            pixels = np.asarray(upright(image).convert("RGB"))
            return PreviewImage(pixels, kind, "by its first bytes", is_part=is_part)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConsoleError(f"The image cannot be read: {image_problem(error)}.") from error


def fit(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The (height, width, 3) image scaled to fit `width` x `height` pixels; its aspect ratio is kept."""
    import numpy as np
    from PIL import Image

    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, resampling))


def _looks_like_floats(data: bytes) -> bool:
    import numpy as np

    values = np.frombuffer(data, "<f4")
    return bool(np.isfinite(values).all() and np.abs(values).max() < _NORMALISED_LIMIT and np.abs(values).mean() > 1e-6)


PREVIEW_BYTES = 64 << 10
MAX_SAMPLE_BYTES = 8 << 20
MAX_ENCODED_BYTES = 1 << 20
"""Of an encoded sample, to read all of it; of a larger one the beginning is shown, as of any image."""

MAX_MANIFEST_BYTES = 32 << 20
_SNIFF_BYTES = 4 << 10
_MAX_LINE = 2000
_IMAGE_THREADS = 8
_BINARY_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".u8", ".safetensors", ".zip")
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF")
_PICKLE_MAGIC = b"\x80"
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


class ManifestIndex:
    """Finds samples by key in the manifest of a dataset prefix."""

    def __init__(self, manifest: Manifest, prefix: str) -> None:
        self.manifest = manifest
        self.prefix = prefix
        self._samples: dict[str, Sample] | None = None

    def find(self, key: str) -> Sample | None:
        """The sample of a key in the bucket; None where the manifest does not list it."""
        if self._samples is None:
            self._samples = {
                object_key(self.prefix, sample.key): sample
                for samples in self.manifest.splits.values()
                for sample in samples
            }
        return self._samples.get(key)

    def label(self, sample: Sample) -> str:
        """The sample's class name."""
        return self.manifest.classes[sample.label]


@dataclass(frozen=True)
class TextContent:
    """Lines of `kind` (`text`, `JSON`, `table`); `truncated` where only the beginning was read.

    `note` says why the content is not what the name suggests.
    """

    kind: str
    lines: list[str]
    truncated: bool
    note: str = ""


@dataclass(frozen=True)
class BytesContent:
    """The first bytes of an object of unknown content; `note` says what it is not, or why."""

    data: bytes
    note: str = ""


@dataclass(frozen=True)
class ImageContent:
    """A sample or an image, with its class where that is known; `name` is the caption in a sheet."""

    image: PreviewImage
    label: str = ""
    name: str = ""


@dataclass(frozen=True)
class UnreadableContent:
    """Why the content cannot be shown."""

    reason: str


Content = CheckpointInfo | Manifest | ImageContent | TextContent | BytesContent | UnreadableContent


def read_content(files: Readable, info: ObjectInfo, index: ManifestIndex | None = None) -> Content:
    """What an object or a file contains, from at most 64 KiB, or all of a sample or manifest. Raises ConsoleError."""
    if info.size == 0:
        return UnreadableContent("It is empty.")
    if info.storage_class in ARCHIVED and 'ongoing-request="false"' not in info.headers.get("x-oss-restore", ""):
        return UnreadableContent(f"The object is archived ({info.storage_class}): restore it to read it.")
    sample = index.find(info.key) if index else None
    if index and sample:
        return _known_sample(files, info, index, sample)
    binary = info.key.endswith(_BINARY_SUFFIXES)
    head = files.get_range(info.key, 0, _SNIFF_BYTES if binary else PREVIEW_BYTES)
    if head.startswith((_ZIP_MAGIC, _LEGACY_TORCH_MAGIC)) or _has_tensor_index(info, head):
        return _checkpoint(files, info, head)
    if head.startswith(_IMAGE_MAGIC):
        return _image(head, info.size)
    return _sample(files, info, binary=binary) or _manifest(files, info, head) or _text_or_bytes(head, info, binary)


def read_folder(store: ObjectStore, prefix: str) -> CheckpointInfo | None:
    """The DCP checkpoint that the folder at `prefix`, which ends with "/", is; None for other folders.

    Raises CheckpointError, StorageError.
    """
    key = f"{prefix}{SHARDED_NAME}"
    page = store.list_page(key, max_keys=1)
    index = next((each for each in page.objects if each.key == key and each.size and each.readable), None)
    if index is None or store.get_range(key, 0, len(_PICKLE_MAGIC)) != _PICKLE_MAGIC:
        return None
    return inspect_checkpoint(store, key, index.size)


def _has_tensor_index(info: ObjectInfo, head: bytes) -> bool:
    """Whether the object is of safetensors, or the index of a DCP checkpoint."""
    name = info.key.rpartition("/")[2]
    return (
        is_safetensors(head, info.size)
        if name.endswith(SAFETENSORS_SUFFIX)
        else name == SHARDED_NAME and head.startswith(_PICKLE_MAGIC)
    )


def _checkpoint(files: Readable, info: ObjectInfo, head: bytes) -> Content:
    try:
        return inspect_checkpoint(files, info.key, info.size)
    except CheckpointError as error:
        return BytesContent(head, str(error))


def _sample(files: Readable, info: ObjectInfo, *, binary: bool) -> Content | None:
    fits = any(square_side(fmt, info.size) for fmt in _BARE_FORMATS)
    if not binary or info.size > MAX_SAMPLE_BYTES or not fits:
        return None
    folder = info.key.rpartition("/")[0].rpartition("/")[2]
    return ImageContent(guess_sample(info.key, files.get(info.key)), folder)


_SUBFOLDER_TRIES = 3  # objects, until one is an image


def folder_images(
    store: ObjectStore, prefix: str, index: ManifestIndex | None = None, limit: int = 24
) -> list[ImageContent]:
    """The first `limit` images of a folder, read in parallel; other objects are skipped. Raises StorageError.

    Of a folder that has subfolders alone, the first image of each of them, named after the subfolder.
    """
    page = store.list_page(prefix, max_keys=min(1000, limit * 2))

    def named(key: str, name: str) -> ImageContent | None:
        content = read_content(store, store.head(key), index)
        return replace(content, name=name) if isinstance(content, ImageContent) else None

    def first_of(folder: str) -> ImageContent | None:
        name = folder.rstrip("/").rpartition("/")[2]
        objects = store.list_page(folder, max_keys=_SUBFOLDER_TRIES).objects
        return next((image for each in objects if (image := named(each.key, name)) is not None), None)

    with ThreadPoolExecutor(_IMAGE_THREADS, thread_name_prefix="images") as pool:
        if page.objects:
            found = list(pool.map(lambda each: named(each.key, each.key.rpartition("/")[2]), page.objects))
        else:
            found = list(pool.map(first_of, page.prefixes[:limit]))
    return [image for image in found if image is not None][:limit]


def _known_sample(files: Readable, info: ObjectInfo, index: ManifestIndex, sample: Sample) -> Content:
    label = index.label(sample)
    expected = index.manifest.sample_bytes(sample)
    if info.size != expected:
        shape = f"{sample.height} x {sample.width} " if sample.height else ""
        note = f"The manifest expects {expected:,} bytes ({shape}{index.manifest.format})."
        return BytesContent(files.get_range(info.key, 0, _SNIFF_BYTES), f"{note} The object has {info.size:,}.")
    if index.manifest.format.encoded:
        return _encoded_sample(files, info, label)
    data = files.get(info.key)
    image = show_sample(index.manifest.format, data, sample.height, sample.width, basis="by the manifest")
    return ImageContent(image, label)


def _encoded_sample(files: Readable, info: ObjectInfo, label: str) -> Content:
    is_whole = info.size <= MAX_ENCODED_BYTES
    data = files.get(info.key) if is_whole else files.get_range(info.key, 0, PREVIEW_BYTES)
    try:
        return ImageContent(replace(show_image(data, is_whole=is_whole), basis="by the manifest"), label)
    except ConsoleError as error:
        return BytesContent(data[:_SNIFF_BYTES], str(error))


def _image(head: bytes, size: int) -> Content:
    try:
        return ImageContent(show_image(head, is_whole=len(head) == size))
    except ConsoleError as error:
        return BytesContent(head, str(error))


def _manifest(files: Readable, info: ObjectInfo, head: bytes) -> Content | None:
    if info.key.rpartition("/")[2] != MANIFEST_NAME or info.size > MAX_MANIFEST_BYTES:
        return None
    data = head if len(head) == info.size else files.get(info.key)
    try:
        manifest: Manifest = decode_json(data, Manifest)
        check_manifest(manifest, info.key)
    except (msgspec.DecodeError, ConsoleError) as error:
        text = _text(head, info)
        note = f"This is not a valid manifest. {error}"
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
        if not truncated or error.start < len(head) - 4:  # the end of the range may cut a character in two
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
    except msgspec.DecodeError:  # JSON Lines, or not JSON
        return text


_MAX_EXAMPLES = 20


class ManifestFindings(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of samples, by result; `examples` are up to 20 lines for each kind of difference."""

    samples: int = 0
    present: int = 0
    missing: int = 0
    wrong_size: int = 0
    unlisted: int = 0
    examples: tuple[str, ...] = ()


class ManifestCheck(Job):
    """Compares the manifest with a listing of the bucket; `findings` may be read at any time."""

    def __init__(self, store: ObjectStore, prefix: str, manifest: Manifest) -> None:
        super().__init__(f"Check of {store.uri(prefix)}", threads=1)
        self.findings = ManifestFindings()
        self._store = store.pausing(self.wait_to_retry)
        self._prefix = prefix
        self._manifest = manifest

    def work(self) -> None:
        """Lists the prefix once. Raises Cancelled, StorageError."""
        expected = sorted(
            (object_key(self._prefix, sample.key), self._manifest.sample_bytes(sample))
            for samples in self._manifest.splits.values()
            for sample in samples
        )
        self.tracker.add_total(len(expected), 0)
        self.tracker.totals_known()
        counts = dict.fromkeys(("present", "missing", "wrong_size", "unlisted"), 0)
        examples: list[str] = []

        def note(kind: str, text: str) -> None:
            counts[kind] += 1
            if counts[kind] <= _MAX_EXAMPLES:
                examples.append(text)

        listed = ((found.key, found.size) for found in self._store.list_all(object_key(self._prefix, "")))
        for number, (key, wanted, size) in enumerate(merge_by_key(expected, listed)):
            self.check_cancelled()
            if wanted is None:
                if not key.endswith(("/", MANIFEST_NAME)):
                    note("unlisted", f"not in the manifest: {key}")
                continue
            if size is None:
                note("missing", f"missing: {key}")
            elif size != wanted:
                note("wrong_size", f"{size:,} bytes instead of {wanted:,}: {key}")
            else:
                counts["present"] += 1
            self.tracker.complete(key, 0, failed=size is None)
            if number % 500 == 0:
                self.findings = ManifestFindings(samples=len(expected), examples=tuple(examples), **counts)
        self.findings = ManifestFindings(samples=len(expected), examples=tuple(examples), **counts)
