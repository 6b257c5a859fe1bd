"""Detail: what is known of one object or folder, and the detail pane drawn from it, as lines and images."""

from __future__ import annotations

import csv
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from ossconsole.config.errors import ConsoleError
from ossconsole.config.text import counted, safe_text
from ossconsole.dataset.contents import (
    MAX_MANIFEST_BYTES,
    BytesContent,
    Content,
    ImageContent,
    ManifestFindings,
    ManifestIndex,
    TextContent,
    read_content,
    read_folder,
)
from ossconsole.dataset.manifest import Manifest, manifest_key, read_manifest
from ossconsole.storage.checkpoints.inspect import SAFETENSORS, SHARDED, CheckpointInfo
from ossconsole.storage.jobs.actions import ObjectDetails, UsageTotals, object_details
from ossconsole.storage.objects import ObjectInfo
from ossconsole.tui.kit.glyphs import Glyphs
from ossconsole.tui.kit.scroll import Block, ImageBlock, image_sheet
from ossconsole.tui.kit.text import MISSING, Line, moment, number, percent, shorten, shorten_middle, size, wrap

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

_LABEL = 13
_BAR = 20
_HEX_ROW = 8
_HEX_BYTES = 4096  # of an object, shown at most
_MAX_TENSORS = 2000


@dataclass
class Detail:
    """The content of the detail pane; its parts arrive one after the other, from threads."""

    key: str
    is_folder: bool
    info: ObjectInfo | None = None
    full: ObjectDetails | None = None
    content: Content | None = None
    usage: UsageTotals | None = None
    findings: ManifestFindings | None = None
    images: list[ImageContent] = field(default_factory=list)
    problem: str = ""
    loading: bool = False

    def read(
        self, store: ObjectStore, index: ManifestIndex | None, *, full: bool, on_change: Callable[[Detail], object]
    ) -> None:
        """Reads headers and content of an object, with `full` also ACL, tags and versions; or a checkpoint's folder.

        Blocks. `on_change` is called, in this thread, whenever a part has arrived.
        """
        self.problem = ""  # of an earlier attempt
        try:
            if self.is_folder:
                self.content = read_folder(store, self.key)
                return
            if full:
                self.full = object_details(store, self.key)
            self.info = self.full.info if self.full else store.head(self.key)
            on_change(self)
            self.content = self.content or read_content(store, self.info, index)
        except ConsoleError as error:
            self.problem = str(error)
        finally:
            self.loading = False
            on_change(self)


def read_index(store: ObjectStore, prefix: str) -> ManifestIndex | None:
    """Reads the manifest of the dataset at `prefix`; None where it is too large. Blocks. Raises ConsoleError."""
    if store.head(manifest_key(prefix)).size > MAX_MANIFEST_BYTES:
        return None
    return ManifestIndex(read_manifest(store, prefix), prefix)


def detail_blocks(detail: Detail, width: int, glyphs: Glyphs) -> list[Block]:
    """The lines and images of the pane, for `width` cells."""
    name = detail.key.rstrip("/").rpartition("/")[2] + ("/" if detail.is_folder else "")
    blocks: list[Block] = [*_wrapped(safe_text(name) or "(no name)", width, "primary")]
    if detail.problem:
        blocks += _wrapped(detail.problem, width, "bad")
    if detail.usage is not None:
        blocks += _usage(detail.usage, width)
    if detail.images:
        blocks += [Line(), *_sheet(detail.images, width, glyphs)]
    if detail.content is not None:
        blocks += [Line(), *_content(detail.content, width, glyphs)]
    if detail.findings is not None:
        blocks += [Line(), *_findings(detail.findings, width)]
    if detail.info is not None:
        blocks += [Line(), *_info(detail.info, width)]
    if detail.full is not None:
        blocks += [Line(), *_full(detail.full, width)]
    if detail.loading:
        blocks.append(Line((" reading", "dim")))
    elif detail.is_folder and not (detail.usage or detail.images or detail.problem):
        blocks += [Line(), *(_key_row(key, text) for key, text in _FOLDER_KEYS)]
    return blocks


_FOLDER_KEYS = (
    ("enter", "open the folder"),
    ("z", "count its objects and bytes"),
    ("p", "preview its first images"),
    ("d", "download it, with subfolders"),
)


def _key_row(key: str, text: str) -> Line:
    return Line((f" {key:<7}", "primary"), (text, "dim"))


def _pair(label: str, value: str, width: int, style: str = "text") -> list[Line]:
    """A label and its value, which is broken into lines where it is too long."""
    room = max(8, width - _LABEL - 1)
    rows = wrap(value, room)
    lines = [Line((f" {label}", "dim")).to(_LABEL, "dim").add(rows[0], style)]
    return lines + [Line().to(_LABEL).add(row, style) for row in rows[1:]]


def _wrapped(text: str, width: int, style: str) -> list[Line]:
    return [Line((f" {row}", style)) for row in wrap(text, max(8, width - 2))]


def _title(text: str) -> Line:
    return Line((f" {text}", "strong"))


def _usage(usage: UsageTotals, width: int) -> list[Line]:
    lines = [Line(), *_pair("contents", f"{counted(usage.objects, 'object')}, {size(usage.bytes)}", width, "strong")]
    if usage.newest:
        lines += _pair("newest", moment(usage.newest), width)
    for name, (count, bytes_) in sorted(usage.by_class.items()):
        lines += _pair(name, f"{counted(count, 'object')}, {size(bytes_)}", width)
    return lines


def _content(content: Content, width: int, glyphs: Glyphs) -> Sequence[Block]:
    if isinstance(content, CheckpointInfo):
        return _checkpoint(content, width)
    if isinstance(content, Manifest):
        return _manifest(content, width, glyphs)
    if isinstance(content, ImageContent):
        return _picture(content, width)
    if isinstance(content, TextContent):
        return _text(content, width, glyphs)
    if isinstance(content, BytesContent):
        return _bytes(content, width)
    return _wrapped(content.reason, width, "warn")


# Checkpoints


def _checkpoint(checkpoint: CheckpointInfo, width: int) -> list[Line]:
    lines = [_title(safe_text(checkpoint.kind))]
    if checkpoint.foreign:
        shown = ", ".join(safe_text(name) for name in checkpoint.foreign[:6])
        more = f" and {len(checkpoint.foreign) - 6} more" if len(checkpoint.foreign) > 6 else ""
        lines += _wrapped(
            f"Loading it would run code: it references {shown}{more}. Nothing was executed here.", width, "bad"
        )
    for label, name in (("run", "run"), ("epoch", "epoch"), ("step", "step"), ("step", "global_step")):
        if name in checkpoint.fields and not (name == "global_step" and "step" in checkpoint.fields):
            lines += _pair(label, field_text(checkpoint.fields[name]), width, "strong")
    for name, value in checkpoint.metrics.items():
        lines += _pair(safe_text(metric_label(name)), metric_text(name, value), width, "good")
    lines += _pair("parameters", f"{checkpoint.parameters:,}", width)
    lines += _pair("dtypes", ", ".join(safe_text(dtype) for dtype in checkpoint.dtypes) or "none", width)
    named = f"{field_text(checkpoint.fields['model_name'])}, " if "model_name" in checkpoint.fields else ""
    contents = f"{named}{counted(len(checkpoint.model), 'tensor')}, {size(checkpoint.model_bytes)}"
    lines += _pair("model", contents, width)
    if checkpoint.other_tensors:
        lines += _pair(
            "optimizer", f"{counted(checkpoint.other_tensors, 'tensor')}, {size(checkpoint.other_bytes)}", width
        )
    lines += _settings(checkpoint.optimizer, width)
    for name in ("sample_format", "image_size", "classes", "seed"):
        if name in checkpoint.fields:
            lines += _pair(FIELD_LABELS.get(name, name), field_text(checkpoint.fields[name]), width)
    for name in sorted(checkpoint.fields.keys() - _FIELDS_SHOWN) if checkpoint.kind in (SAFETENSORS, SHARDED) else ():
        lines += _pair(safe_text(name), field_text(checkpoint.fields[name]), width)
    for name, version in checkpoint.versions.items():
        lines += _pair(safe_text(name), safe_text(version), width)
    share = checkpoint.fetched / checkpoint.size if checkpoint.size else 0
    part = percent(share, 2 if share < 0.1 else 0)
    lines += _pair("read", f"{size(checkpoint.fetched)} of {size(checkpoint.size)}, {part}", width, "dim")
    return [*lines, Line(), _title("Tensors"), *_tensors(checkpoint, width)] if checkpoint.model else lines


_FIELDS_SHOWN = {
    "run",
    "epoch",
    "step",
    "global_step",
    "model_name",
    "sample_format",
    "image_size",
    "classes",
    "seed",
    "top1",
}
FIELD_LABELS = {"model_name": "model", "sample_format": "format", "image_size": "image px"}
_METRIC_LABELS = {
    "top1": "top-1",
    "top5": "top-5",
    "best_top1": "best top-1",
    "val_loss": "val loss",
    "train_loss": "train loss",
}
_SETTINGS = ("lr", "momentum", "weight_decay", "nesterov", "betas")


def _settings(optimizer: dict[str, Any], width: int) -> list[Line]:
    values = [f"{name} {field_text(optimizer[name])}" for name in _SETTINGS if name in optimizer]
    return _pair("", ", ".join(values), width, "dim") if values else []


def _tensors(checkpoint: CheckpointInfo, width: int) -> list[Line]:
    lines = []
    for row in checkpoint.model[:_MAX_TENSORS]:
        shape = "x".join(map(str, row.shape)) or "scalar"
        figures = Line((f"{shape} {row.dtype} ", "dim"), (f"{size(row.bytes):>8} ", "text"))
        name = shorten_middle(safe_text(row.name), max(10, width - figures.width - 2))
        lines.append(Line((f" {name}", "text")).right(figures, width))
    if len(checkpoint.model) > _MAX_TENSORS:
        lines.append(Line((f" and {len(checkpoint.model) - _MAX_TENSORS:,} more", "dim")))
    return lines


def metric_label(name: str) -> str:
    """A metric of a checkpoint as the screens call it."""
    return _METRIC_LABELS.get(name, name)


def metric_text(name: str, value: float | None) -> str:
    """A metric of a checkpoint; accuracies in percent."""
    accuracy = "top" in name and value is not None and 0 <= value <= 1
    return percent(value, 1) if accuracy else number(value, 4)


def field_text(value: Any) -> str:
    """A field of a checkpoint as text; a list with its length."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 4)
    if isinstance(value, (list, tuple)):
        return safe_text(f"{len(value)}: " + ", ".join(map(str, value)))
    return safe_text(str(value))


# Samples and manifests


def _picture(content: ImageContent, width: int) -> list[Block]:
    picture = content.image
    blocks: list[Block] = []
    if content.label:
        blocks += _pair("label", safe_text(content.label), width, "strong")
    blocks += _pair("format", safe_text(picture.kind), width)
    if picture.minimum is not None:
        blocks += _pair("shape", f"3 x {picture.height} x {picture.width}", width)
        values = f"min {number(picture.minimum)}, max {number(picture.maximum)}, mean {number(picture.mean)}"
        blocks += _pair("values", values, width)
    return [*blocks, *_pair("detected", picture.basis, width, "dim"), Line(), ImageBlock(picture.pixels)]


def _sheet(contents: list[ImageContent], width: int, glyphs: Glyphs) -> list[Block]:
    """Images side by side, with their names."""
    labels = list(dict.fromkeys(content.label for content in contents if content.label))
    text = f"the first {len(contents)} of {', '.join(map(safe_text, labels[:3])) or 'the folder'}"
    blocks = image_sheet([(content.image.pixels, (content.name,)) for content in contents], width, glyphs.ellipsis)
    return [*blocks, *_wrapped(f"{text}: {safe_text(contents[0].image.kind)}", width, "dim")]


def _manifest(manifest: Manifest, width: int, glyphs: Glyphs) -> list[Line]:
    samples = sum(map(len, manifest.splits.values()))
    stored = sum(manifest.sample_bytes(sample) for split in manifest.splits.values() for sample in split)
    lines = [_title("Manifest"), *_pair("format", manifest.format.at_size(manifest.size), width, "strong")]
    lines += _pair("samples", f"{samples:,}, {size(stored)}", width)
    for name, value in manifest.preparation.items():
        lines += _pair(safe_text(str(name).replace("_", " ")), field_text(value), width)
    for split, members in manifest.splits.items():
        counts = [0] * len(manifest.classes)
        for sample in members:
            counts[sample.label] += 1
        lines += [
            Line(),
            _title(
                f"{split}: {counted(len(members), 'sample')} of {counted(sum(map(bool, counts)), 'class', 'classes')}"
            ),
        ]
        lines += _histogram(list(zip(manifest.classes, counts, strict=True)), width, glyphs)
    return [*lines, Line(), _key_row("f", "compare with the bucket listing")]


def _histogram(counts: Sequence[tuple[str, int]], width: int, glyphs: Glyphs) -> list[Line]:
    lines = []
    largest = max((count for _, count in counts), default=0)
    room = max(8, width - _BAR - 12)
    for name, count in counts:
        bar = glyphs.bar_full * max(1 if count else 0, round(_BAR * count / largest)) if largest else ""
        label = shorten_middle(safe_text(name), room)
        lines.append(Line((f" {label}", "text")).to(room + 2).add(f"{count:>7,} ", "text").add(bar, "primary"))
    return lines


def _findings(findings: ManifestFindings, width: int) -> list[Line]:
    sound = findings.present == findings.samples and not findings.unlisted
    lines = [_title("Compared with the listing")]
    lines += _pair("present", f"{findings.present:,} of {findings.samples:,}", width, "good" if sound else "text")
    for label, count in (
        ("missing", findings.missing),
        ("other size", findings.wrong_size),
        ("unlisted", findings.unlisted),
    ):
        lines += _pair(label, f"{count:,}", width, "bad" if count else "text")
    for text in findings.examples:
        lines += _wrapped(safe_text(text), width, "warn")
    return lines


# Text and bytes


def _text(content: TextContent, width: int, glyphs: Glyphs) -> list[Line]:
    kind = content.kind + (", beginning only" if content.truncated else "")
    is_table = content.kind == "table"
    rows = _aligned(content.lines, width) if is_table else [safe_text(row.expandtabs(4)) for row in content.lines]
    note = [*_wrapped(safe_text(content.note), width, "bad"), Line()] if content.note else []
    shown = (shorten(row.rstrip(), width - 2, glyphs.ellipsis) for row in rows)
    return [*note, _title(kind[:1].upper() + kind[1:]), *(Line((f" {row}", "text")) for row in shown)]


def _aligned(rows: list[str], width: int) -> list[str]:
    separator = "\t" if any("\t" in row for row in rows[:10]) else ","
    cells = [[safe_text(cell) for cell in _cells(row, separator)] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip_longest(*cells, fillvalue="")]
    if sum(widths) + 2 * len(widths) > width:
        widths = [min(cells, max(8, width // 2)) for cells in widths]
    return [
        "  ".join(set_cell_size(shorten_middle(cell, room), room) for cell, room in zip(row, widths, strict=False))
        for row in cells
    ]


def _cells(row: str, separator: str) -> list[str]:
    """The cells of one line. Each is read alone, as a quote that is never closed must not take all others with it."""
    try:
        return next(csv.reader([row], delimiter=separator), [])
    except csv.Error:  # such as a NUL
        return row.split(separator)


def _bytes(content: BytesContent, width: int) -> list[Line]:
    lines = _wrapped(safe_text(content.note), width, "warn") if content.note else []
    shown = content.data[:_HEX_BYTES]
    lines.append(_title(f"First {len(shown):,} bytes"))
    row = _HEX_ROW * 2 if width >= 76 else _HEX_ROW
    for at in range(0, len(shown), row):
        chunk = shown[at : at + row]
        text = "".join(chr(byte) if chr(byte) in _PRINTED else "." for byte in chunk)
        lines.append(Line((f" {at:05x} ", "dim"), (f"{chunk.hex(' '):<{row * 3}}", "text"), (text, "dim")))
    return lines


_PRINTED = frozenset(string.digits + string.ascii_letters + string.punctuation + " ")


# Headers, access and versions


def _info(info: ObjectInfo, width: int) -> list[Line]:
    rounded = f" ({size(info.size)})" if info.size >= 1000 else ""
    lines = [_title("Object"), *_pair("size", f"{info.size:,} B{rounded}", width)]
    lines += _pair("modified", moment(info.modified), width)
    unusual = f", {info.object_type.lower()} object" if info.object_type not in ("", "Normal") else ""
    lines += _pair("storage", f"{info.storage_class}{unusual}", width)
    if restored := info.headers.get("x-oss-restore"):
        lines += _pair("restore", safe_text(restored), width, "warn")
    lines += _pair("type", safe_text(info.content_type), width)
    lines += _pair("CRC64", str(info.crc64) if info.crc64 is not None else "not reported", width)
    lines += _pair("ETag", safe_text(info.etag), width)
    for name, value in info.metadata.items():
        lines += _pair(safe_text(name), safe_text(value), width, "strong")
    return lines


def _full(full: ObjectDetails, width: int) -> list[Line]:
    lines = [_title("Access, tags and versions")]
    if full.link:
        lines += _pair("link to", safe_text(full.link), width)
    lines += _pair("ACL", full.acl if full.acl is not None else _why(full, "acl"), width)
    if full.tags is None:
        lines += _pair("tags", _why(full, "tags"), width)
    for name, value in (full.tags or {}).items():
        lines += _pair(safe_text(name), safe_text(value), width)
    if full.versions is None:
        lines += _pair("versions", _why(full, "versions"), width)
    elif not full.versions:
        lines += _pair("versions", "none: the bucket is not versioned", width)
    for version in full.versions or []:
        what = "deleted" if version.is_marker else size(version.size)
        latest = ", latest" if version.is_latest else ""
        short = shorten_middle(safe_text(version.version_id), _LABEL - 2)
        lines += _pair(short, f"{moment(version.modified)} {what}{latest}", width)
    lines += [Line(), _title("Headers")]
    for name, value in sorted(full.info.headers.items()):
        lines += [Line((f" {safe_text(name)}", "dim")), Line((f"   {safe_text(value)}", "text"))]
    return lines


def _why(full: ObjectDetails, name: str) -> str:
    return f"unavailable ({safe_text(full.unavailable.get(name, ''))})"
