"""Readers that decode and crop from memory; a child process imports this module, and not the benchmark that runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ossconsole.dataset.decode import import_jpeg_libraries, keep_freed_memory
from ossconsole.dataset.formats import SampleFormat
from ossconsole.training.loading.images import SampleTransform
from ossconsole.training.plan import Split

JPEG = SampleFormat.IMAGE_JPEG
STORED, SIZE, BATCH = 256, 224, 64
TRANSFORM = SampleTransform(JPEG, STORED, SIZE, augment=True, seed=0)


@dataclass(frozen=True)
class MemoryReader:
    """Makes readers that decode and crop images which are in memory."""

    bodies: tuple[bytes, ...]

    def __call__(self, number: int) -> Callable[[], int]:
        import_jpeg_libraries()
        keep_freed_memory()
        rows = np.empty((BATCH, TRANSFORM.row_bytes), np.uint8)
        turns = itertools.count(number)

        def read_batch() -> int:
            for row in rows:
                sample = next(turns)
                body = self.bodies[sample % len(self.bodies)]
                TRANSFORM.write(body, 0, 0, TRANSFORM.rng(Split.TRAIN, 1, sample), row)
            return len(rows)

        return read_batch
