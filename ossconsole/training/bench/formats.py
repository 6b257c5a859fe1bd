"""The same images in several sample formats below a scratch prefix, for a benchmark that compares the formats."""

from __future__ import annotations

import contextlib
import io
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ossconsole.config.credentials import CredentialSource
from ossconsole.config.errors import ConsoleError
from ossconsole.config.profiles import Profile
from ossconsole.config.text import counted
from ossconsole.dataset.crop import EVAL_MARGIN
from ossconsole.dataset.formats import IMAGENET_MEAN, IMAGENET_STD, SampleFormat, decode
from ossconsole.dataset.manifest import TRAIN, object_key
from ossconsole.dataset.source.files import PlannedSample, read_location
from ossconsole.dataset.source.layout import Layout
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.journal import remove_journal
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.storage.client import ObjectStore
from ossconsole.training.data import USUAL_SIZE, TrainingData, training_data

IMAGES = 256
"""Images of each format, at most."""

SCRATCH = "bench-formats"
"""The folder below the dataset prefix that the scratch datasets are in."""

_POLL_S = 0.2

Report = Callable[[str], None]


@contextlib.contextmanager
def format_datasets(
    profile: Profile,
    credentials: CredentialSource,
    formats: Sequence[SampleFormat],
    source: Path | None = None,
    side: int = 0,
    *,
    report: Report = lambda _: None,
) -> Iterator[tuple[str, ...]]:
    """Uploads the same images in each format; yields the prefixes.

    The images are those of `source`, one object each, or else training samples of the profile's dataset, stored as it
    is: at most IMAGES. `side` is that of training images in pixels, 0 for the dataset's. `report` gets what is done, as
    text. Everything is deleted at the end, and what an interrupted benchmark left is deleted first.

    Raises ConsoleError.
    """
    scratch = object_key(profile.dataset_prefix, SCRATCH)
    with contextlib.closing(ObjectStore(profile, credentials)) as store, tempfile.TemporaryDirectory() as folder:
        data = training_data(store, profile.dataset_prefix) if source is None else None
        images = _images_of(store, data) if data is not None else _images_in(source or Path())
        count = _write(images, Path(folder))
        side = side or (data.image_size(0) if data is not None else USUAL_SIZE)
        per_shard = count if data is not None and data.sharded else 0
        prefixes = {fmt: f"{scratch}/{fmt}" for fmt in formats}
        _delete(store, scratch)
        try:
            for fmt, prefix in prefixes.items():
                size = round(side * EVAL_MARGIN) if fmt.encoded else side
                report(f"Uploading {counted(count, 'image')} as {fmt.at_size(size)} to {store.uri(prefix)}")
                settings = UploadSettings(
                    source=Path(folder), format=fmt, size=size, prefix=prefix, per_shard=per_shard
                )
                _upload(profile, credentials, settings)
            yield tuple(prefixes.values())
        finally:
            report(f"Deleted {counted(_delete(store, scratch), 'object')} below {store.uri(scratch)}")
            for prefix in prefixes.values():
                remove_journal(profile, prefix)


def _delete(store: ObjectStore, prefix: str) -> int:
    return store.delete_many([found.key for found in store.list_all(f"{prefix}/")])


def _upload(profile: Profile, credentials: CredentialSource, settings: UploadSettings) -> None:
    """Uploads the images. Raises ConsoleError also where one is lost: the formats must hold the same images."""
    job = create_upload(profile, credentials, settings)
    job.start()
    try:
        while not job.wait(_POLL_S):
            pass
    except BaseException:  # such as Ctrl-C
        job.cancel()
        job.wait()
        raise
    summary = job.result()
    if summary.failed:
        first = summary.failures[0]
        raise ConsoleError(
            f"{counted(summary.failed, 'image')} cannot be stored as {settings.format}: {first.path}: {first.reason}.",
            remedy="Use other images with --source.",
        )


Images = Iterator[tuple[int, str, bytes]]
"""The number of the class, the ending of the file, and the bytes of an image file."""


def _write(images: Images, folder: Path) -> int:
    """Writes the images as a source of an upload; returns their number."""
    count = 0
    for label, suffix, content in images:
        path = folder / TRAIN / f"{label:05d}" / f"{count:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        count += 1
    return count


def _images_in(source: Path) -> Images:
    """Training images of a source, at random; every image is as likely. Raises ConsoleError without any."""
    layout = Layout(source)
    chosen: list[PlannedSample] = []
    chance = random.Random(0)  # noqa: S311  no secret
    for number, item in enumerate(
        item for item in layout.items() if isinstance(item, PlannedSample) and item.split == TRAIN
    ):
        if number < IMAGES:
            chosen.append(item)
        elif (place := chance.randrange(number + 1)) < IMAGES:
            chosen[place] = item
    if not chosen:
        raise ConsoleError(f"{source} has no training images.", remedy=layout.advice)
    names = sorted({item.class_name for item in chosen})
    for item in chosen:
        yield names.index(item.class_name), PurePosixPath(item.path).suffix, read_location(item.location)


def _images_of(store: ObjectStore, data: TrainingData) -> Images:
    """Training samples at random as image files: image-jpeg as stored, the others as PNG."""
    columns = data.columns(TRAIN)
    for row in np.random.default_rng(0).permutation(len(columns))[:IMAGES].tolist():
        key = data.object_of(TRAIN, row)
        if data.sharded:
            content = store.get_range(key, int(data.tars(TRAIN).offsets[row]), int(columns.sizes[row]))
        else:
            content = store.get(key)
        label = int(columns.labels[row])
        if data.format.encoded:
            yield label, PurePosixPath(columns.keys.get(row)).suffix, content
        else:
            yield label, ".png", _png(data.format, content, int(columns.heights[row]), int(columns.widths[row]))


def _png(fmt: SampleFormat, content: bytes, height: int, width: int) -> bytes:
    values = decode(fmt, content, height, width).transpose(1, 2, 0)
    if fmt is SampleFormat.TENSOR_F32:
        values = np.clip((values * IMAGENET_STD + IMAGENET_MEAN) * 255, 0, 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(file, "PNG", compress_level=1)
    return file.getvalue()
