"""`manifest` against a real bucket: what it writes, what it refuses, and what it prints."""

from __future__ import annotations

import pytest

from ossconsole.cli.app import ossconsole
from ossconsole.cli.output import run_group
from ossconsole.dataset.manifest import SHARDS_NAME, manifest_key, read_manifest
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.retry import NO_RETRY
from tests.cli.conftest import lines
from tests.dataset.conftest import jpeg
from tests.sandboxed import Sandboxed, set_keys


@pytest.fixture
def store(sandboxed_bucket: Sandboxed, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A bucket with photographs below the dataset prefix of its profile."""
    profile = sandboxed_bucket.profile(f"manifest/{request.node.name}")
    store = ObjectStore(profile, sandboxed_bucket.owner, timeout_s=5.0, retry=NO_RETRY)
    for number in range(6):
        store.put(f"{profile.dataset_prefix}/train/{'ab'[number % 2]}/{number}.jpg", jpeg(number))
    store.put(f"{profile.dataset_prefix}/val/a/1.jpg", jpeg(9))
    store.put(f"{profile.dataset_prefix}/train/a/notes.txt", b"text")
    info = sandboxed_bucket.process.info
    set_keys(monkeypatch, info)
    return store


def manifest(store: ObjectStore, *options: str) -> int:
    profile = store.profile
    return run_group(
        ossconsole,
        [
            "manifest",
            f"--bucket={profile.bucket}",
            f"--region={profile.region}",
            f"--standard-endpoint={profile.standard_endpoint}",
            f"--dataset-prefix={profile.dataset_prefix}/",
            *options,
        ],
    )


def test_it_is_written_once(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = store.profile.dataset_prefix
    assert manifest(store) == 0
    written = read_manifest(store, prefix)
    assert [len(written.splits[split]) for split in ("train", "val")] == [6, 1]
    out = capsys.readouterr().out
    assert "Not used: 1 object (neither an image nor a .pt sample): train/a/notes.txt" in out
    assert "6 train samples and 1 val sample in 2 classes, image-jpeg" in out
    assert store.uri(manifest_key(prefix)) in out
    store.put(f"{prefix}/train/a/7.jpg", jpeg(7))
    assert manifest(store) == 1
    assert "exists already. Add --force to replace it." in capsys.readouterr().err
    assert read_manifest(store, prefix) == written
    assert manifest(store, "--force") == 0
    assert len(read_manifest(store, prefix).splits["train"]) == 7


def test_json_has_what_is_not_used_and_a_summary(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert manifest(store, "--json") == 0
    unused, summary = lines(capsys)
    assert (unused["event"], unused["count"], unused["names"]) == ("not_used", 1, ["train/a/notes.txt"])
    size = sum(len(jpeg(number)) for number in (*range(6), 9))
    assert {**summary, "seconds": 0} == {
        "event": "summary",
        "manifest": store.uri(manifest_key(store.profile.dataset_prefix)),
        "format": "image-jpeg",
        "classes": 2,
        "train": 6,
        "val": 1,
        "labels": "",
        "bytes": size,
        "seconds": 0,
    }


def test_a_dry_run_writes_nothing(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert manifest(store, "--dry-run", "--json", "--readonly") == 0
    assert lines(capsys)[-1]["manifest"] == ""
    assert manifest(store, "--readonly") == 2
    assert not store.exists(manifest_key(store.profile.dataset_prefix))


def test_a_long_listing_shows_its_progress(
    store: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossconsole.cli.manifest._REPORT_EVERY_S", 0.0)
    assert manifest(store, "--dry-run") == 0
    assert f"Listing {store.uri(store.profile.dataset_prefix)}/: 0 objects so far." in capsys.readouterr().err
    assert manifest(store, "--dry-run", "--json") == 0
    first = lines(capsys)[0]
    assert (first["event"], first["objects"]) == ("progress", 0)


def test_a_dataset_of_shards_gets_none(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.put(f"{store.profile.dataset_prefix}/{SHARDS_NAME}", b"{}")
    assert manifest(store, "--force") == 1
    assert "is a dataset of tar shards" in capsys.readouterr().err
    assert not store.exists(manifest_key(store.profile.dataset_prefix))
