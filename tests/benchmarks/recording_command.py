"""`python -m tests.benchmarks.recording_command ARGUMENTS`: the real command; it records every batch of its training.

Sample n holds its own number and bytes that only it has, so that what was read proves which sample it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

LEDGER_VARIABLE = "SOAK_LEDGER"
TINY_VARIABLE = "SOAK_TINY"
SIDE = 32
SAMPLE_BYTES = 3 * SIDE * SIDE
_NUMBER_BYTES = 4
_NOISE = np.random.default_rng(0).integers(0, 256, SAMPLE_BYTES + (1 << 16), dtype=np.uint8)


class Entry(msgspec.Struct, frozen=True):
    """One batch: the rows whose bytes are right, those left out, and those that hold something else."""

    epoch: int
    split: str
    rows: list[int]
    left_out: list[int]
    wrong: list[int]


def contents(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The bytes of these samples, one row each."""
    heads = numbers.astype("<u4").view(np.uint8).reshape(-1, _NUMBER_BYTES)
    tails = np.lib.stride_tricks.sliding_window_view(_NOISE, SAMPLE_BYTES - _NUMBER_BYTES)[numbers]
    return np.concatenate([heads, tails], axis=1)


def number_of(key: str) -> int:
    """The number of a sample, from its key."""
    return int(Path(key).stem)


def _write_down_batches(ledger: Path) -> None:
    from ossconsole.training import session
    from ossconsole.training.loading.failover import FailoverLoader
    from ossconsole.training.loading.loader import Batch

    file = ledger.open("ab", buffering=0)

    class CountingSource(FailoverLoader):
        def next(self) -> Batch | None:
            batch = super().next()
            if batch is not None:
                keys = self._data.columns(str(batch.request.split)).keys
                numbers = np.array([number_of(keys.get(row)) for row in batch.rows.tolist()], dtype=np.int64)
                stored = contents(numbers).reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
                right = (batch.data.numpy() == stored.reshape(len(numbers), -1)).all(axis=1)
                entry = Entry(
                    batch.request.epoch,
                    str(batch.request.split),
                    numbers[right].tolist(),
                    [number_of(sample.key) for sample in batch.bad],
                    numbers[~right].tolist(),
                )
                file.write(msgspec.json.encode(entry) + b"\n")
            return batch

    setattr(session, "FailoverLoader", CountingSource)  # noqa: B010 - not exported, and yet what it uses


def _train_a_tiny_model() -> None:
    from ossconsole.training import session
    from tests.faults.operations import tiny_model

    setattr(session, "build_model", tiny_model)  # noqa: B010 - as above


if __name__ == "__main__":
    from ossconsole.cli import main

    if "train" in sys.argv[1:2]:
        _write_down_batches(Path(os.environ[LEDGER_VARIABLE]))
        if os.environ.get(TINY_VARIABLE):
            _train_a_tiny_model()
    main()
