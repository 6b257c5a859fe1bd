"""SIGKILL at random moments: the rerun sends what is missing, and only that."""

from __future__ import annotations

import multiprocessing
import os
import random
from pathlib import Path

import psutil
import pytest

from ossconsole.config.credential_sources import FixedSource
from ossconsole.config.files import STATE_DIR_VARIABLE
from ossconsole.config.profiles import Profile
from ossconsole.dataset.upload.job import UploadSettings
from ossconsole.dataset.upload.plan import create_upload
from ossconsole.storage.client import ObjectStore
from tests.dataset.conftest import make_pictures
from tests.dataset.uploads import WAIT_S, bucket, check_manifest_is_the_bucket, settings_for, upload, wanted
from tests.sandboxed import Sandboxed
from tests.waiting import wait_until


def run_upload(state: str, profile: Profile, owner: FixedSource, settings: UploadSettings) -> None:
    """What the killed process does."""
    os.environ[STATE_DIR_VARIABLE] = state  # a forkserver keeps the environment it was started with
    job = create_upload(profile, owner, settings)
    job.start()
    job.result(WAIT_S)


@pytest.mark.parametrize(
    "amount", [(3, 40), pytest.param((20, 250), marks=pytest.mark.slow)], ids=["three times", "twenty times"]
)
def test_killed_at_random_moments_it_loses_and_repeats_nothing(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path, amount: tuple[int, int]
) -> None:
    kills, pictures = amount
    source = make_pictures(tmp_path / "source", train=pictures, val=20)
    settings = settings_for(source, bandwidth=100_000.0)
    prefix, rng = profile.dataset_prefix, random.Random(7)
    context = multiprocessing.get_context("forkserver")  # has oss2 loaded, so that twenty starts take no minute
    context.set_forkserver_preload(["ossconsole.dataset.upload.job", "tests.dataset.test_upload_kill"])

    def objects() -> int:
        return sum(1 for _ in store.list_all(f"{prefix}/"))

    for _ in range(kills):
        # The last moments are those of the verification and of the manifest.
        aim = min(objects() + rng.randint(0, 2 * pictures // kills), pictures + 20)
        process = context.Process(
            target=run_upload, args=(os.environ[STATE_DIR_VARIABLE], profile, sandboxed_bucket.owner, settings)
        )
        process.start()
        assert process.pid is not None
        wait_until(lambda n=aim: objects() >= n, every_s=0.02)  # type: ignore[misc]
        try:
            children = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        process.kill()
        process.join(WAIT_S)
        assert not psutil.wait_procs(children, timeout=10)[1]
    expected, before = wanted(source, settings.preprocessing), bucket(store, prefix)
    assert before.items() <= expected.items()  # never half an object
    summary = upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert (summary.uploaded, summary.skipped, summary.failed) == (len(expected) - len(before), len(before), 0)
    assert bucket(store, prefix) == expected
    check_manifest_is_the_bucket(store, prefix)
    assert upload(profile, sandboxed_bucket.owner, settings_for(source)).uploaded == 0
