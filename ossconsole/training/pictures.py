"""From a batch of stored bytes to pictures and labels on the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ossconsole.dataset.manifest import Manifest
from ossconsole.training.compute import Compute
from ossconsole.training.loader import Batch
from ossconsole.training.plan import BatchRequest, Split

_DATA_SEED = 1  # tells this use of the run's seed apart from others


class Pictures:
    """What the samples of a manifest become. `seed` and `rank` fix the random crops of each batch."""

    def __init__(self, manifest: Manifest, compute: Compute, *, seed: int, rank: int = 0) -> None:
        self._manifest = manifest
        self._compute = compute
        self._seed = seed
        self._rank = rank
        self._labels = {
            split: torch.tensor([sample.label for sample in manifest.splits.get(str(split), ())], dtype=torch.int64)
            for split in Split
        }

    def images(self, batch: Batch) -> torch.Tensor:
        """float32 (n, 3, size, size), normalised; one by one where the stored sizes differ."""
        samples = [self._manifest.splits[str(batch.request.split)][row] for row in batch.rows]
        generator = self._generator(batch.request)
        if not samples:  # a rank's share of the last batch may be empty
            return self._compute.no_images(self._manifest.size)
        sizes = {(sample.height, sample.width) for sample in samples}
        if len(sizes) == 1:
            return self._compute.images(batch.data, *sizes.pop(), generator=generator)
        return torch.cat(
            [
                self._compute.images(batch.data[row : row + 1], sample.height, sample.width, generator=generator)
                for row, sample in enumerate(samples)
            ]
        )

    def labels(self, split: Split, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """int64 (n,), on the device."""
        return self._compute.labels(self._labels[split][rows])

    def _generator(self, request: BatchRequest) -> torch.Generator | None:
        """The randomness of a training batch, which a resumed run draws again."""
        if request.split is not Split.TRAIN:
            return None
        return self._compute.generator(self._seed, _DATA_SEED, request.epoch, request.index, self._rank)
