"""Datasets of made-up samples for benchmarks: what is in them does not matter, their sizes do."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import fastcrc
import msgspec
import numpy as np
from PIL import Image

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import CHANNELS, SampleFormat
from ossconsole.dataset.manifest import SHARDS_NAME, Manifest, Sample, object_key, write_manifest
from ossconsole.dataset.shards.index import Shard, ShardSample, member_header, padding
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore
from tests.dataset.uploads import ShardList

CLASSES = 10
GRAIN = 4.0  # levels


def make_dataset(sandbox: SandboxProcess, fmt: SampleFormat, *, size: int, samples: int) -> tuple[Profile, Manifest]:
    """Writes `samples` made-up images of `size` px to a sandbox; gives the profile that leads to them."""
    profile = msgspec.structs.replace(sandbox.profile(), dataset_prefix=f"bench/{fmt}-{size}")
    store = ObjectStore(profile, FixedSource(sandbox.credentials()))
    bodies = [made_up_body(fmt, size, label) for label in range(CLASSES)]
    names = [
        made_up_sample(fmt, f"train/{n % CLASSES}/{n:06}{fmt.suffix}", n % CLASSES, size, bodies[n % CLASSES])
        for n in range(samples)
    ]

    def put(sample: Sample) -> None:
        store.put(object_key(profile.dataset_prefix, sample.key), bodies[sample.label])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, names))
    classes = tuple(str(label) for label in range(CLASSES))
    manifest = Manifest(format=fmt, size=size, classes=classes, splits={"train": tuple(names)})
    write_manifest(store, profile.dataset_prefix, manifest)
    store.close()
    return profile, manifest


def make_shards(sandbox: SandboxProcess, fmt: SampleFormat, *, size: int, tars: int, per_tar: int) -> Profile:
    """Writes made-up images of `size` px in tars to a sandbox; gives the profile that leads to them."""
    profile = msgspec.structs.replace(sandbox.profile(), dataset_prefix=f"bench/{fmt}-{size}-shards")
    store = ObjectStore(profile, FixedSource(sandbox.credentials()))
    bodies = [made_up_body(fmt, size, label) for label in range(CLASSES)]
    shards = []
    for number in range(tars):
        blocks, members, end = [], [], 0
        for row in range(number * per_tar, (number + 1) * per_tar):
            label = row % CLASSES
            sample = made_up_sample(fmt, f"train/{label}/{row:06}{fmt.suffix}", label, size, bodies[label])
            header = member_header(sample.key, len(bodies[label]))
            place = end + len(header)
            members.append(
                ShardSample(sample.key, label, sample.height, sample.width, place, sample.bytes, sample.crc64)
            )
            blocks.append(b"".join((header, bodies[label], padding(len(bodies[label])))))
            end += len(blocks[-1])
        name = f"train/shard-{number:05}"
        store.put(object_key(profile.dataset_prefix, f"{name}.tar"), b"".join(blocks))
        shards.append(
            Shard(split="train", tar=f"{name}.tar", index=f"{name}.idx", bytes=end, digest="", samples=tuple(members))
        )
    listed = ShardList(
        format=fmt, size=size, recipe="", classes=tuple(str(label) for label in range(CLASSES)), shards=tuple(shards)
    )
    store.put(object_key(profile.dataset_prefix, SHARDS_NAME), msgspec.json.encode(listed))
    store.close()
    return profile


def made_up_sample(fmt: SampleFormat, key: str, label: int, size: int, body: bytes) -> Sample:
    """The manifest's entry of a made-up body."""
    width = _width(fmt, size)
    return Sample(key, label, size, width, fastcrc.crc64.xz(body), len(body) if fmt.encoded else 0)


def made_up_body(fmt: SampleFormat, size: int, seed: int) -> bytes:
    """A sample with the short side `size`, pixels; a JPEG has the bytes of a photograph: about 28 KB at 256 px."""
    if fmt.encoded:
        buffer = io.BytesIO()
        photograph(seed, _width(fmt, size), size).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()
    values = np.random.default_rng(seed).integers(0, 256, (CHANNELS, size, size), dtype=np.uint8)
    pixels = values if fmt is SampleFormat.IMAGE_U8 else (values.astype(np.float32) - 128) / 64
    return pixels.tobytes()


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Smooth colours with edges and grain, which JPEG compresses about as it does photographs."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    scene = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = random.normal(0, GRAIN, scene.shape)
    return Image.fromarray(np.clip(scene + grain, 0, 255).astype(np.uint8))


def _width(fmt: SampleFormat, size: int) -> int:
    return size * 4 // 3 if fmt.encoded else size
