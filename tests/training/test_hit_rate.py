"""The estimated hit rate against the sandbox's truth, on samples that the real connector fetches one by one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from ossconsole.config.endpoints import EndpointKind
from ossconsole.dataset.manifest import object_key
from ossconsole.sandbox.control import SandboxControl
from ossconsole.sandbox.process import SandboxProcess
from ossconsole.telemetry.cache import hit_rate, modes
from ossconsole.training.bench.limits import Objects
from ossconsole.training.loading.connector import native
from tests.training.conftest import Bucket, bucket_in

FIRST_BYTE_MS = 300  # of a miss: far from what a hit takes on a loaded machine
SAMPLES = 48
SAMPLE_BYTES = 3_072
EPOCHS = 3


@pytest.mark.parametrize("share", [0.75, 2.0], ids=["smaller than the dataset", "fills"])
def test_the_hit_rate_is_estimated_within_5_points(share: float, tmp_path: Path) -> None:
    shaped = ["--standard-first-byte-ms", str(FIRST_BYTE_MS), "--standard-objects-per-s", "0"]
    cache = ["--cache-mb", str(share * SAMPLES * SAMPLE_BYTES / 1e6)]  # it keeps whole samples
    with SandboxProcess.start(tmp_path / "sandbox", arguments=[*shaped, *cache]) as sandbox:
        bucket = bucket_in(sandbox, "hits")
        control = SandboxControl(sandbox.info)
        before = control.status()
        seconds = _fetch_times(bucket, tmp_path)
        after = control.status()
    hits, misses = after.cache_hits - before.cache_hits, after.cache_misses - before.cache_misses
    truth = hits / (hits + misses)
    assert 0.2 < truth < 0.8, "there are both"
    found = modes(seconds)
    assert found is not None
    estimated = hit_rate(seconds, *found)
    assert estimated == pytest.approx(truth, abs=0.05)


def _fetch_times(bucket: Bucket, tmp_path: Path) -> list[float]:
    """Seconds for each sample through the accelerated endpoint, over epochs in random order."""
    opened = bucket.connector(tmp_path).open(EndpointKind.ACCELERATED, number=0, total=1)
    samples: Objects = [
        (object_key(bucket.profile.dataset_prefix, key), len(data))
        for key, data in bucket.pictures.items()
        if key.startswith("train/")
    ][:SAMPLES]
    seconds = []
    for epoch in range(EPOCHS):
        for row in np.random.default_rng(epoch).permutation(len(samples)):
            key, size = samples[row]
            begun = time.perf_counter()
            objects = [native().new_data_object(f"oss://{bucket.profile.bucket}/{key}", size, "")]
            (arrived,) = opened.list_from_uris(objects, True, True)
            seconds.append(time.perf_counter() - begun)
            assert arrived.err() == 0
    return seconds
