"""Buckets whose ETags are no MD5s, or not those of the upload: what is there is found, and not sent again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ossconsole.config.profiles import Profile
from ossconsole.dataset.upload.job import UploadSummary
from ossconsole.dataset.upload.plain import PlainUpload
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.jobs.job import JobState
from ossconsole.storage.multipart import ResumableUpload
from tests.dataset.conftest import make_pictures
from tests.dataset.uploads import bucket, settings_for, upload
from tests.sandboxed import Sandboxed
from tests.storage.etag_proxy import Changed, changing_etags
from tests.waiting import run_to_end

PART = 100 << 10


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "source")


def counts(summary: UploadSummary) -> tuple[int, int, int]:
    return summary.uploaded, summary.unchanged, summary.failed


def test_samples_are_compared_once_and_the_journal_learns(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    """After a copy of the bucket the listing has other ETags than the journal."""
    settings = settings_for(source)
    assert counts(upload(profile, sandboxed_bucket.owner, settings)) == (8, 0, 0)
    before = bucket(store, profile.dataset_prefix)
    with changing_etags(profile, Changed.LISTINGS) as (proxy, through):
        heads = []
        for _ in range(2):
            proxy.requests.clear()
            assert counts(upload(through, sandboxed_bucket.owner, settings)) == (0, 8, 0)
            heads.append(proxy.requests["HEAD"])
        assert heads[0] == heads[1] + 8
        (key, data), *_ = before.items()
        store.put(f"{profile.dataset_prefix}/{key}", bytes(len(data)))  # of the same size
        assert counts(upload(through, sandboxed_bucket.owner, settings)) == (1, 7, 0)
    assert bucket(store, profile.dataset_prefix) == before


def test_shards_are_whole_behind_other_etags(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    settings = settings_for(source, per_shard=4)
    with changing_etags(profile, Changed.LISTINGS) as (_, through):
        assert counts(upload(through, sandboxed_bucket.owner, settings)) == (8, 0, 0)
        assert counts(upload(through, sandboxed_bucket.owner, settings)) == (0, 8, 0)


def plain(store: ObjectStore, source: Path, prefix: str) -> PlainUpload:
    job = run_to_end(PlainUpload(store, source, prefix, part_size=PART))
    assert (job.state, job.failures) == (JobState.DONE, [])
    return job


def test_plain_files_are_skipped_whatever_their_etags_are(
    sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    for number in range(5):
        (tmp_path / "folder" / str(number)).write_bytes(bytes([number]) * 1000)
    (tmp_path / "folder" / "large").write_bytes(b"x" * (2 * PART + 1))
    with changing_etags(profile, Changed.EVERYTHING) as (_, through):
        store = ObjectStore(through, sandboxed_bucket.owner)
        assert plain(store, tmp_path / "folder", "plain").progress().items_skipped == 0
        assert plain(store, tmp_path / "folder", "plain").progress().items_skipped == 6
        (tmp_path / "folder" / "3").write_bytes(b"?" * 1000)
        assert plain(store, tmp_path / "folder", "plain").progress().items_skipped == 5
        assert store.get("plain/3") == b"?" * 1000
        store.close()


def test_a_resumed_upload_keeps_the_parts_of_an_encrypted_bucket(
    sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path
) -> None:
    """Under KMS neither the ETag of a part nor that of the object is an MD5."""
    encrypted = ObjectStore(profile, sandboxed_bucket.owner).for_bucket("resumed-under-kms")
    encrypted.create_bucket()
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 2000)
    with changing_etags(encrypted.profile, Changed.EVERYTHING) as (proxy, through):
        store = ObjectStore(through, sandboxed_bucket.owner)
        first = ResumableUpload(store, path, "key", PART)
        for number in (1, 2):
            first.send(number)
        first.close()
        proxy.requests.clear()
        second = ResumableUpload(store, path, "key", PART)
        for number in second.numbers:
            second.send(number)
        assert proxy.requests["PUT"] == len(second.numbers) - 2
        second.complete()
        second.close()
        assert store.get("key") == path.read_bytes()
        store.close()
