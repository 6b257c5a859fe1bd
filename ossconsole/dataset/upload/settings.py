"""UploadSettings: what a user may choose about an upload."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.upload.prepare import Recipe

DEFAULT_SIZE = 224
DEFAULT_PARALLELISM = 32


class UploadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to upload and how.

    `size` is in pixels (the short side with `keep_ratio`), `seed` fixes the random crops of tensor-f32, `workers` are
    preparation processes (0: one per core), `parallelism` samples sent at once, `bandwidth` bytes per second (None: no
    cap). With `prune`, samples whose files are gone from the source are deleted from the bucket. `per_shard` samples go
    into one tar (0: each becomes an object of its own). `prefix` is the dataset's ("": the profile's).
    """

    source: Path
    format: SampleFormat = SampleFormat.IMAGE_U8
    size: int = DEFAULT_SIZE
    keep_ratio: bool = False
    seed: int = 0
    workers: int = 0
    parallelism: int = DEFAULT_PARALLELISM
    bandwidth: float | None = None
    prune: bool = False
    per_shard: int = 0
    prefix: str = ""

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.format, self.size, self.keep_ratio, self.seed)

    @property
    def worker_count(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    def placed(self, profile: Profile) -> Profile:
        """The profile with the dataset prefix that was chosen."""
        return msgspec.structs.replace(profile, dataset_prefix=self.prefix.strip("/")) if self.prefix else profile
