"""The tutorial's way to load: torch's DataLoader over an OssMapDataset, in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.manifest import Manifest, object_key
from ossconsole.training.child import SPAWN
from ossconsole.training.loading.connector import ConnectorCredentials, ConnectorSettings


class TutorialLoader:
    """Runs in a spawned process until closed: its workers are forked from it, as the connector's documentation asks."""

    def __init__(
        self, connector: ConnectorSettings, kind: EndpointKind, manifest: Manifest, *, batch_size: int, workers: int
    ) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(
            target=_serve, args=(theirs, _Job(connector, kind, manifest, batch_size, workers))
        )
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def rate(self, seconds: float) -> float:
        """Samples/s over `seconds`, without the batches that were waiting."""
        self._pipe.send(seconds)
        return float(self._pipe.recv())

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


class _ToPicture:
    """The idiom of the tutorial's format: bare float32 bytes."""

    def __init__(self, manifest: Manifest) -> None:
        self._size = manifest.size

    def __call__(self, data: Any) -> tuple[np.ndarray[Any, Any], int]:
        picture = np.frombuffer(data.read(), dtype=np.float32).reshape(3, self._size, self._size)
        return picture, int(data.key.split("/")[-2])


@dataclass(frozen=True)
class _Job:
    connector: ConnectorSettings
    kind: EndpointKind
    manifest: Manifest
    batch_size: int
    workers: int


def _serve(pipe: Connection, job: _Job) -> None:
    import warnings

    from osstorchconnector import OssMapDataset
    from torch.utils.data import DataLoader

    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    profile = job.connector.profile
    uris = [
        f"oss://{profile.bucket}/{object_key(profile.dataset_prefix, sample.key)}"
        for sample in job.manifest.splits["train"]
    ]
    dataset = OssMapDataset.from_objects(
        uris,
        profile.endpoint(job.kind) or "",
        cred_provider=ConnectorCredentials(job.connector.credentials),
        config_path=str(job.connector.config_path),
        transform=_ToPicture(job.manifest),
        region=profile.region,
    )
    loader = DataLoader(
        dataset,
        batch_size=job.batch_size,
        shuffle=True,
        num_workers=job.workers,
        multiprocessing_context="fork",
        persistent_workers=True,
        drop_last=True,
    )
    batches = _forever(loader)
    next(batches)
    pipe.send(None)
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        pipe.send(_rate(batches, seconds, waiting=2 * job.workers + 1))


def _rate(batches: Iterator[Any], seconds: float, *, waiting: int) -> float:
    for _ in range(waiting):
        next(batches)
    begun, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        count += len(next(batches)[1])
    return count / passed


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
