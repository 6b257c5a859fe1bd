"""Datasets of made-up samples for benchmarks: what is in them does not matter, their sizes do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import fastcrc
import msgspec
import numpy as np

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import CHANNELS, SampleFormat
from ossconsole.dataset.manifest import Manifest, Sample, object_key, write_manifest
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.storage.client import ObjectStore

CLASSES = 10


def make_dataset(sandbox: SandboxProcess, fmt: SampleFormat, *, size: int, samples: int) -> tuple[Profile, Manifest]:
    """Writes `samples` random pictures of `size` px to a sandbox; gives the profile that leads to them."""
    profile = msgspec.structs.replace(sandbox.profile(), dataset_prefix=f"bench/{fmt}-{size}")
    store = ObjectStore(profile, FixedSource(sandbox.credentials()))
    bodies = [_body(fmt, size, label) for label in range(CLASSES)]
    crc64s = [fastcrc.crc64.xz(body) for body in bodies]
    names = [
        Sample(f"train/{n % CLASSES}/{n:06}{fmt.suffix}", n % CLASSES, size, size, crc64s[n % CLASSES])
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


def _body(fmt: SampleFormat, size: int, seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (CHANNELS, size, size), dtype=np.uint8)
    picture = values if fmt is SampleFormat.IMAGE_U8 else (values.astype(np.float32) - 128) / 64
    return picture.tobytes()
