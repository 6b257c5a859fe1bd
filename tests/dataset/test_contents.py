"""The contents of objects as Browse shows them, read from a real bucket, with the bytes that were read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from ossconsole.dataset.contents import (
    PREVIEW_BYTES,
    BytesContent,
    ImageContent,
    ManifestCheck,
    ManifestIndex,
    TextContent,
    UnreadableContent,
    folder_images,
    read_content,
)
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, write_manifest
from ossconsole.storage.checkpoints.inspect import CheckpointInfo
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import JobState
from ossconsole.storage.retry import NO_RETRY
from tests.sandboxed import Sandboxed
from tests.torch_files import torch_bytes
from tests.waiting import run_to_end

SAMPLE = np.full((3, 8, 8), 9, np.uint8).tobytes()


class Counting(ObjectStore):
    """Counts the bytes that previews ask for."""

    fetched = 0

    def get_range(self, key: str, start: int, length: int) -> bytes:
        data = super().get_range(key, start, length)
        self.fetched += len(data)
        return data

    def get(self, key: str) -> bytes:
        data = super().get(key)
        self.fetched += len(data)
        return data


@pytest.fixture
def store(sandboxed_bucket: Sandboxed) -> Iterator[Counting]:
    opened = Counting(sandboxed_bucket.process.profile(), sandboxed_bucket.owner, retry=NO_RETRY)
    yield opened
    opened.close()


def content_of(store: Counting, name: str, data: bytes, index: ManifestIndex | None = None) -> Any:
    key = f"contents/{name}"
    store.put(key, data)
    store.fetched = 0
    return read_content(store, store.head(key), index)


def test_a_checkpoint_whatever_its_name(store: Counting) -> None:
    data = torch_bytes({"w": torch.zeros(500_000)})
    for name in ("a.pt", "a.ckpt", "no-ending"):
        assert isinstance(content_of(store, name, data), CheckpointInfo)
        assert store.fetched <= 2 * PREVIEW_BYTES


def test_safetensors_and_the_index_of_dcp_are_checkpoints(store: Counting) -> None:
    header = b'{"w":{"dtype":"F32","shape":[250000],"data_offsets":[0,1000000]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(1_000_000)
    found = content_of(store, "a.safetensors", data)
    assert isinstance(found, CheckpointInfo)
    assert found.parameters == 250_000
    assert store.fetched <= 2 * PREVIEW_BYTES
    damaged = content_of(store, "b.safetensors", data[:-1])
    assert isinstance(damaged, BytesContent)
    assert "cut short or damaged" in damaged.note
    assert isinstance(content_of(store, "run/.metadata", b"key: value"), TextContent)


def test_a_zip_that_is_not_a_checkpoint_has_a_note(store: Counting) -> None:
    content = content_of(store, "a.zip", b"PK\x03\x04" + b"\0" * 100)
    assert isinstance(content, BytesContent)
    assert "cut short" in content.note


def test_samples_by_size_and_by_manifest(store: Counting) -> None:
    content = content_of(store, "ants/1.u8", SAMPLE)
    assert isinstance(content, ImageContent)
    assert (content.label, content.image.width) == ("ants", 8)
    wrong = content_of(store, "ants/2.u8", b"\xff" * 1000)
    assert isinstance(wrong, BytesContent)
    assert "1,000 bytes are neither" in wrong.note
    index = ManifestIndex(
        Manifest(
            format=SampleFormat.IMAGE_U8,
            size=8,
            classes=("Formica rufa",),
            splits={"train": (Sample("m.u8", 0, 4, 16), Sample("short.u8", 0, 8, 8))},
        ),
        "contents",
    )
    known = content_of(store, "m.u8", SAMPLE, index)
    assert (known.label, known.image.height, known.image.width) == ("Formica rufa", 4, 16)
    assert "expects 192 bytes (8 x 8 image-u8)" in content_of(store, "short.u8", b"x", index).note


def image_file(kind: str, size: tuple[int, int], **options: Any) -> bytes:
    sink = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(sink, kind, **options)
    return sink.getvalue()


def test_encoded_samples_by_manifest(store: Counting) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    files = {
        "a.jpg": image_file("JPEG", (300, 200), quality=95, exif=exif),
        "b.TIFF": image_file("TIFF", (20, 10)),
        "large.jpg": image_file("JPEG", (1200, 900), quality=100, subsampling=0),
        "text.jpg": b"not an image",
    }
    assert len(files["a.jpg"]) > PREVIEW_BYTES
    samples = tuple(Sample(name, 0, 0, 0, bytes=len(data)) for name, data in files.items())
    manifest = Manifest(
        format=SampleFormat.IMAGE_JPEG,
        size=0,
        classes=("Formica rufa",),
        splits={"train": (*samples, Sample("cut.jpg", 0, 8, 9, bytes=20), Sample("odd.jpg", 0, 0, 0, bytes=20))},
    )
    index = ManifestIndex(manifest, "contents")
    upright = content_of(store, "a.jpg", files["a.jpg"], index)
    assert (upright.label, upright.image.height, upright.image.width) == ("Formica rufa", 300, 200)
    assert (upright.image.basis, upright.image.minimum, upright.image.is_part) == ("by the manifest", None, False)
    tiff = content_of(store, "b.TIFF", files["b.TIFF"], index)
    assert (tiff.image.height, tiff.image.width) == (10, 20)
    large = content_of(store, "large.jpg", files["large.jpg"], index)
    assert large.image.is_part
    assert store.fetched <= PREVIEW_BYTES
    broken = content_of(store, "text.jpg", files["text.jpg"], index)
    assert isinstance(broken, BytesContent)
    assert "not a readable image" in broken.note
    assert "expects 20 bytes (8 x 9 image-jpeg). The object has 1." in content_of(store, "cut.jpg", b"x", index).note
    assert "expects 20 bytes (image-jpeg)." in content_of(store, "odd.jpg", b"x", index).note


@pytest.mark.parametrize(
    ("name", "data", "kind", "lines"),
    [
        ("a.json", b'{"a":[1]}', "JSON", ["{", '  "a": [', "    1", "  ]", "}"]),
        ("a.jsonl", b'{"a":1}\n{"a":2}\n', "JSON", ['{"a":1}', '{"a":2}']),
        ("a.tsv", b"a\tb\n", "table", ["a\tb"]),
        ("a.txt", "grüß\n\x1b[31m".encode(), "text", ["grüß", "\x1b[31m"]),
    ],
)
def test_text(store: Counting, name: str, data: bytes, kind: str, lines: list[str]) -> None:
    content = content_of(store, name, data)
    assert isinstance(content, TextContent)
    assert (content.kind, content.lines, content.truncated) == (kind, lines, False)


def test_a_long_text_costs_64_kib_and_may_end_within_a_letter(store: Counting) -> None:
    content = content_of(store, "long.txt", ("x" + "ü" * 100_000).encode())
    assert isinstance(content, TextContent)
    assert content.truncated
    assert store.fetched == PREVIEW_BYTES


def test_bytes_empty_and_archived(store: Counting) -> None:
    assert isinstance(content_of(store, "bytes", b"\xff\0\xfe" * 50), BytesContent)
    assert isinstance(content_of(store, "nul", b"text\0more"), BytesContent)
    assert isinstance(content_of(store, "empty", b""), UnreadableContent)
    store.sdk.put_object("contents/cold", b"x" * 10, headers={"x-oss-storage-class": "Archive"})
    cold = read_content(store, store.head("contents/cold"))
    assert isinstance(cold, UnreadableContent)
    assert "restore" in cold.reason


def test_an_image_is_shown_from_its_first_bytes(store: Counting) -> None:
    sink = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 255, (600, 600, 3), np.uint8)
    Image.fromarray(noise).save(sink, "JPEG", quality=95)
    content = content_of(store, "large.jpg", sink.getvalue())
    assert isinstance(content, ImageContent)
    assert content.image.width == 600
    assert store.fetched == PREVIEW_BYTES
    broken = content_of(store, "broken.png", b"\x89PNG\r\n\x1a\nnothing")
    assert isinstance(broken, BytesContent)


def test_a_manifest_and_one_that_is_refused(store: Counting) -> None:
    manifest = Manifest(
        format=SampleFormat.IMAGE_U8, size=8, classes=("a",), splits={"train": (Sample("1.u8", 0, 8, 8),)}
    )
    assert content_of(store, "manifest.json", msgspec.json.encode(manifest)) == manifest
    refused = content_of(store, "manifest.json", b'{"version": 1}')
    assert isinstance(refused, TextContent)
    assert "not a valid manifest" in refused.note


def test_a_sheet_leaves_out_what_is_not_a_picture(store: Counting) -> None:
    for name, data in (("1.u8", SAMPLE), ("2.u8", SAMPLE), ("readme.txt", b"text")):
        store.put(f"contents-sheet/{name}", data)
    assert len(folder_images(store, "contents-sheet/")) == 2
    assert len(folder_images(store, "contents-sheet/", limit=1)) == 1


def test_a_sheet_over_class_folders_has_one_image_of_each_with_its_name(store: Counting) -> None:
    for name in ("ants/readme.txt", "ants/z.u8", "bees/1.u8", "bees/2.u8", "empty/readme.txt"):
        store.put(f"contents-classes/{name}", SAMPLE if name.endswith(".u8") else b"text")
    assert [image.name for image in folder_images(store, "contents-classes/")] == ["ants", "bees"]
    assert [image.name for image in folder_images(store, "contents-classes/bees/")] == ["1.u8", "2.u8"]


def test_a_manifest_against_the_listing(store: Counting) -> None:
    prefix = "contents-check"
    samples = tuple(Sample(f"train/a/{n}.u8", 0, 8, 8) for n in range(5))
    manifest = Manifest(format=SampleFormat.IMAGE_U8, size=8, classes=("a",), splits={"train": samples})
    write_manifest(store, prefix, manifest)
    for n, data in ((0, SAMPLE), (1, SAMPLE), (3, b"short")):
        store.put(f"{prefix}/train/a/{n}.u8", data)
    store.put(f"{prefix}/train/a/2-extra.u8", SAMPLE)
    job = run_to_end(ManifestCheck(store, prefix, manifest))
    found = job.findings
    assert job.state is JobState.DONE
    assert (found.samples, found.present, found.missing, found.wrong_size, found.unlisted) == (5, 2, 2, 1, 1)
    assert f"missing: {prefix}/train/a/4.u8" in found.examples
    assert f"5 bytes instead of 192: {prefix}/train/a/3.u8" in found.examples
