"""The upload engine through a sandbox: what is in the bucket afterwards is the plan, byte for byte."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from PIL import Image

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.files import STATE_DIR_VARIABLE
from ossconsole.config.profiles import Profile
from ossconsole.dataset.formats import SampleFormat
from ossconsole.dataset.manifest import manifest_key, read_manifest
from ossconsole.dataset.upload.job import PrefixTakenError, UploadSettings
from ossconsole.dataset.upload.journal import Journal, JournalError, journal_path
from ossconsole.dataset.upload.plan import create_upload, plan_upload
from ossconsole.dataset.upload.prepare import prepare
from ossconsole.dataset.upload.progress import Phase
from ossconsole.sandbox.faults import Error, FaultPlan, Rule
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from tests.dataset.conftest import jpeg, make_pictures, picture
from tests.dataset.uploads import WAIT_S, bucket, check_manifest_is_the_bucket, settings_for, upload, wanted
from tests.sandboxed import Sandboxed
from tests.waiting import wait_until

FORMATS = list(SampleFormat)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "source")


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_bucket_gets_the_plan_byte_for_byte(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path, fmt: SampleFormat
) -> None:
    (source / "train/ants/imageNotFound.gif").write_bytes(b"GIF89a")
    settings = settings_for(source, fmt, workers=2)
    summary = upload(profile, sandboxed_bucket.owner, settings)
    assert (summary.uploaded, summary.skipped, summary.failed) == (8, 1, 0)
    expected = wanted(source, settings.preprocessing)
    assert bucket(store, profile.dataset_prefix) == expected
    assert summary.bytes == sum(map(len, expected.values()))
    manifest = check_manifest_is_the_bucket(store, profile.dataset_prefix)
    assert (manifest.format, manifest.size, manifest.classes) == (fmt, 16, ("ants", "bees"))
    assert {split: len(samples) for split, samples in manifest.splits.items()} == {"train": 6, "val": 2}
    assert summary.ignored_files[0].path == "train/ants/imageNotFound.gif"


def test_a_second_run_sends_only_what_changed(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    settings = settings_for(source)
    upload(profile, sandboxed_bucket.owner, settings)
    job = create_upload(profile, sandboxed_bucket.owner, settings)
    job.start()
    same = job.result(WAIT_S)
    assert (same.uploaded, same.unchanged, same.failed) == (0, 8, 0)
    assert job.progress().classes == (("ants", 4), ("bees", 4))
    (source / "train/ants/0.jpg").write_bytes(jpeg(50))  # another picture
    (source / "train/bees/1.jpg").touch()  # another time, the same picture
    (source / "train/bees/new.jpg").write_bytes(jpeg(51))
    summary = upload(profile, sandboxed_bucket.owner, settings)
    assert (summary.uploaded, summary.unchanged, summary.failed) == (2, 7, 0)
    assert bucket(store, profile.dataset_prefix) == wanted(source, settings.preprocessing)
    check_manifest_is_the_bucket(store, profile.dataset_prefix)
    assert upload(profile, sandboxed_bucket.owner, settings).unchanged == 9


def test_a_truncated_journal_is_set_aside_and_nothing_is_sent_twice(
    sandboxed_bucket: Sandboxed, profile: Profile, source: Path
) -> None:
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    path = journal_path(profile, profile.dataset_prefix)
    os.truncate(path, 5000)
    summary = upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert (summary.uploaded, summary.unchanged, summary.failed) == (0, 8, 0)
    (kept,) = path.parent.glob(f"{path.name}.damaged-*[0-9]")
    assert kept.stat().st_size == 5000


def test_removed_files_are_reported_and_pruned_when_asked(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    (source / "train/ants/0.jpg").unlink()
    reported = upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert (reported.removed, reported.pruned) == (("train/ants/0.u8",), False)
    assert len(bucket(store, profile.dataset_prefix)) == 8
    check_manifest_is_the_bucket(store, profile.dataset_prefix)
    pruned = upload(profile, sandboxed_bucket.owner, settings_for(source, prune=True))
    assert (pruned.removed, pruned.pruned, pruned.uploaded) == (("train/ants/0.u8",), True, 0)
    assert bucket(store, profile.dataset_prefix) == wanted(source, settings_for(source).preprocessing)
    check_manifest_is_the_bucket(store, profile.dataset_prefix)


@pytest.mark.parametrize("hidden", ["train/wasps", "train"], ids=["class", "split"])
def test_what_cannot_be_reached_for_a_while_is_not_pruned(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path, hidden: str
) -> None:
    mounted = source.parent / "mounted"
    (source / "train/ants").rename(mounted)
    (source / "train/wasps").symlink_to(mounted)
    if hidden == "train":
        (source / "train").rename(source.parent / "all")
        (source / "train").symlink_to(source.parent / "all")
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    before = bucket(store, profile.dataset_prefix)
    target = (source / hidden).resolve()
    target.rename(source.parent / "elsewhere")  # as where a disk is not mounted
    summary = upload(profile, sandboxed_bucket.owner, settings_for(source, prune=True))
    assert [failure.path for failure in summary.failures] == [hidden]
    assert (summary.removed, summary.failed) == ((), 1)
    assert bucket(store, profile.dataset_prefix) == before
    check_manifest_is_the_bucket(store, profile.dataset_prefix)
    (source.parent / "elsewhere").rename(target)
    assert upload(profile, sandboxed_bucket.owner, settings_for(source, prune=True)).unchanged == 8


def test_objects_that_no_upload_wrote_are_never_replaced(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    prefix = profile.dataset_prefix
    originals = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*.jpg")}
    for key, data in originals.items():
        store.put(f"{prefix}/{key}", data)
    settings = settings_for(source, SampleFormat.IMAGE_JPEG)
    for _ in range(2):  # nor by the next attempt, whose journal is not empty
        with pytest.raises(PrefixTakenError, match="was not replaced"):
            upload(profile, sandboxed_bucket.owner, settings)
    plan = plan_upload(profile, sandboxed_bucket.owner, settings)
    assert ["no upload of this machine wrote" in str(caution) for caution in plan.cautions] == [True]
    assert bucket(store, prefix) == originals
    kept = upload(
        profile, sandboxed_bucket.owner, settings_for(source, SampleFormat.IMAGE_JPEG, size=0, originals=True)
    )
    assert (kept.uploaded, kept.unchanged) == (0, 8)
    changed = source / "train/ants/0.jpg"
    changed.write_bytes(jpeg(70))  # by now the samples are those of uploads
    again = upload(
        profile, sandboxed_bucket.owner, settings_for(source, SampleFormat.IMAGE_JPEG, size=0, originals=True)
    )
    assert (again.uploaded, again.unchanged) == (1, 7)


def test_a_sample_that_gets_another_split_or_label_is_listed_there_alone(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    make_pictures(tmp_path, train=4, val=0)
    table = tmp_path / "table.csv"

    def manifest_after(text: str, **changes: object) -> dict[str, list[str]]:
        table.write_text(text)
        before = plan_upload(profile, sandboxed_bucket.owner, settings_for(table, **changes)).samples  # type: ignore[arg-type]
        summary = upload(profile, sandboxed_bucket.owner, settings_for(table, **changes))  # type: ignore[arg-type]
        assert (summary.failed, summary.removed_count if not summary.pruned else 0) == (0, 0)
        found = read_manifest(store, profile.dataset_prefix)
        assert {split: len(samples) for split, samples in found.splits.items()} == before
        return {
            split: [f"{found.classes[sample.label]} {sample.key}" for sample in samples]
            for split, samples in found.splits.items()
        }

    first = "train/ants/0.jpg,a\ntrain/ants/2.jpg,a\n"
    key = "train/ants/2.u8"
    assert manifest_after(first)["train"][1] == f"a train/a/{key}"
    moved = manifest_after(first.replace("2.jpg,a", "2.jpg,b,val"))
    assert moved == {"train": ["a train/a/train/ants/0.u8"], "val": [f"b val/b/{key}"]}
    assert len(bucket(store, profile.dataset_prefix)) == 3
    pruned = manifest_after(first.replace("2.jpg,a", "2.jpg,b,val"), prune=True)
    assert pruned == moved
    check_manifest_is_the_bucket(store, profile.dataset_prefix)
    assert manifest_after(first)["train"][1] == f"a train/a/{key}"
    assert set(manifest_after(first, val_split=0.5)) == {"train", "val"}


def test_more_removed_files_than_are_named_are_counted(
    sandboxed_bucket: Sandboxed, profile: Profile, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossconsole.dataset.upload.job.KEPT_FAILURES", 2)
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    shutil.rmtree(source / "train/ants")
    plan = plan_upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert (plan.unchanged, plan.removed) == (5, 3)
    summary = upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert (len(summary.removed), summary.removed_count) == (2, 3)


def test_the_prefix_of_an_upload_may_be_the_uri_of_a_folder_of_the_bucket(profile: Profile, source: Path) -> None:
    settings = settings_for(source, prefix=f"oss://{profile.bucket}/mine/")
    assert settings.with_prefix(profile).dataset_prefix == "mine"
    with pytest.raises(SettingsError, match="is not in the bucket"):
        settings_for(source, prefix="oss://another/mine").with_prefix(profile)


def test_what_could_not_be_pruned_is_pruned_by_the_next_upload(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    (source / "train/ants/0.jpg").unlink()
    refused = Rule(action=Error(code="AccessDenied"), operation="DeleteMultipleObjects")
    with sandboxed_bucket.faults(FaultPlan(rules=[refused])), pytest.raises(StorageError, match="AccessDenied"):
        upload(profile, sandboxed_bucket.owner, settings_for(source, prune=True))
    assert len(bucket(store, profile.dataset_prefix)) == 8
    listed = read_manifest(store, profile.dataset_prefix).splits["train"]
    assert "train/ants/0.u8" not in {sample.key for sample in listed}
    pruned = upload(profile, sandboxed_bucket.owner, settings_for(source, prune=True))
    assert (pruned.removed, pruned.pruned, pruned.unknown) == (("train/ants/0.u8",), True, 0)
    check_manifest_is_the_bucket(store, profile.dataset_prefix)
    assert upload(profile, sandboxed_bucket.owner, settings_for(source)).removed == ()


def test_what_vanished_from_the_bucket_is_sent_again(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    settings, prefix = settings_for(source), profile.dataset_prefix
    upload(profile, sandboxed_bucket.owner, settings)
    store.delete(f"{prefix}/train/ants/0.u8")
    store.put(f"{prefix}/train/bees/1.u8", b"something else")
    store.put(f"{prefix}/notes.txt", b"mine")
    summary = upload(profile, sandboxed_bucket.owner, settings)
    assert (summary.uploaded, summary.unchanged, summary.failed, summary.unknown) == (2, 6, 0, 1)
    store.delete(f"{prefix}/notes.txt")
    assert bucket(store, prefix) == wanted(source, settings.preprocessing)


def test_another_machine_adds_to_the_dataset_and_repeats_nothing(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    expected = wanted(source, settings_for(source).preprocessing)
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(source.parent / "other machine"))
    same = upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert (same.uploaded, same.unchanged) == (0, 8)
    other = make_pictures(source.parent / "other", train=0, val=0)
    (other / "train/wasps").mkdir(parents=True)
    (other / "train/wasps/1.jpg").write_bytes(jpeg(77))
    shutil.copytree(source / "val", other / "val")
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(source.parent / "third machine"))
    summary = upload(profile, sandboxed_bucket.owner, settings_for(other))
    assert (summary.uploaded, summary.unchanged, len(summary.removed), summary.unknown) == (1, 2, 6, 0)
    manifest = check_manifest_is_the_bucket(store, profile.dataset_prefix)
    assert manifest.classes == ("ants", "bees", "wasps")
    assert bucket(store, profile.dataset_prefix).items() > expected.items()
    again = upload(profile, sandboxed_bucket.owner, settings_for(source))  # what was adopted is taken over by its files
    assert (again.uploaded, again.unchanged, len(again.removed)) == (0, 8, 1)
    check_manifest_is_the_bucket(store, profile.dataset_prefix)


def test_an_emptied_bucket_is_filled_again(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    settings, prefix = settings_for(source), profile.dataset_prefix
    upload(profile, sandboxed_bucket.owner, settings)
    store.delete_many([summary.key for summary in store.list_all(prefix)])
    assert upload(profile, sandboxed_bucket.owner, settings).uploaded == 8
    assert bucket(store, prefix) == wanted(source, settings.preprocessing)


@pytest.mark.parametrize("change", [{"size": 20}, {"fmt": SampleFormat.TENSOR_F32}])
def test_a_prefix_holds_one_kind_of_dataset(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path, change: dict[str, object]
) -> None:
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    before = bucket(store, profile.dataset_prefix)
    other = settings_for(source, **change)  # type: ignore[arg-type]
    with pytest.raises(PrefixTakenError, match="image-u8 at 16 px") as caught:
        upload(profile, sandboxed_bucket.owner, other)
    assert "--dataset-prefix" in caught.value.remedy
    with pytest.raises(PrefixTakenError):
        plan_upload(profile, sandboxed_bucket.owner, other)
    assert bucket(store, profile.dataset_prefix) == before


def test_another_seed_makes_other_tensors_of_the_same_keys(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    upload(profile, sandboxed_bucket.owner, settings_for(source, SampleFormat.TENSOR_F32))
    again = settings_for(source, SampleFormat.TENSOR_F32, seed=1)
    assert upload(profile, sandboxed_bucket.owner, again).uploaded == 6  # validation has no random crop
    assert bucket(store, profile.dataset_prefix) == wanted(source, again.preprocessing)


def test_broken_pictures_are_reported_and_the_rest_arrives(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    whole = jpeg(3)
    for name, data in {"empty": b"", "cut": whole[:-100], "text": b"hello"}.items():
        (source / f"train/ants/{name}.jpg").write_bytes(data)
    secret = source / "train/ants/secret.jpg"
    secret.symlink_to("/proc/1/mem")  # a file that cannot be read, for root neither
    summary = upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert (summary.uploaded, summary.failed) == (8, 4)
    reasons = {failure.path.rpartition("/")[2]: failure.reason for failure in summary.failures}
    assert set(reasons) == {"empty.jpg", "cut.jpg", "text.jpg", "secret.jpg"}
    assert "empty" in reasons["empty.jpg"]
    assert "truncated" in reasons["cut.jpg"]
    check_manifest_is_the_bucket(store, profile.dataset_prefix)
    (source / "train/ants/cut.jpg").write_bytes(whole)
    assert upload(profile, sandboxed_bucket.owner, settings_for(source)).uploaded == 1


def test_nothing_that_became_a_sample_is_an_error(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    (tmp_path / "source/train/ants").mkdir(parents=True)
    (tmp_path / "source/train/ants/a.jpg").write_bytes(b"no")
    with pytest.raises(ConsoleError, match="became a sample"):
        upload(profile, sandboxed_bucket.owner, settings_for(tmp_path / "source"))
    assert not store.exists(manifest_key(profile.dataset_prefix))


def test_ratio_kept_samples_have_their_own_sizes(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    (source / "train/ants/tall.jpg").write_bytes(jpeg(9, (32, 64)))
    upload(profile, sandboxed_bucket.owner, settings_for(source, keep_ratio=True))
    manifest = check_manifest_is_the_bucket(store, profile.dataset_prefix)
    sizes = {sample.key: (sample.height, sample.width) for sample in manifest.splits["train"]}
    assert sizes["train/ants/tall.u8"] == (32, 16)
    assert sizes["train/ants/0.u8"] == (16, 21)


# image-jpeg


def encoded(source: Path, **changes: object) -> UploadSettings:
    return settings_for(source, SampleFormat.IMAGE_JPEG, **changes)


def originals(source: Path, **changes: object) -> UploadSettings:
    return encoded(source, size=0, originals=True, **changes)


def files_of(source: Path) -> dict[str, bytes]:
    return {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}


@pytest.fixture
def mixed(source: Path) -> Path:
    """Pictures of several kinds and sizes; two of them have one name but for its ending."""
    picture(20, (64, 48)).save(source / "train/ants/wide.png")
    picture(21, (20, 90)).save(source / "train/bees/tall.WEBP")
    picture(22, (50, 50)).save(source / "train/bees/1.jpeg", quality=50)
    return source


def test_originals_are_sent_as_they_are_under_their_own_names(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, mixed: Path
) -> None:
    files = files_of(mixed)
    (mixed / "train/ants/text.jpg").write_bytes(b"not an image")
    plan = plan_upload(profile, sandboxed_bucket.owner, originals(mixed))
    assert plan.bytes_to_send == plan.stored_bytes == sum(map(len, files.values())) + len(b"not an image")
    assert not plan.bytes_estimated
    summary = upload(profile, sandboxed_bucket.owner, originals(mixed))
    assert (summary.uploaded, summary.failed) == (11, 1)
    assert [(failure.path, failure.reason) for failure in summary.failures] == [
        ("train/ants/text.jpg", "not a readable image")
    ]
    assert summary.bytes == sum(map(len, files.values()))
    assert bucket(store, profile.dataset_prefix) == files
    manifest = check_manifest_is_the_bucket(store, profile.dataset_prefix)
    assert (manifest.format, manifest.size) == (SampleFormat.IMAGE_JPEG, 0)
    assert manifest.preparation["images"] == "the original files"
    sizes = {sample.key: (sample.height, sample.width) for sample in manifest.splits["train"]}
    assert sizes["train/ants/wide.png"] == (48, 64)
    assert sizes["train/bees/tall.WEBP"] == (90, 20)
    content_type = store.head(f"{profile.dataset_prefix}/train/ants/wide.png").headers["content-type"]
    assert content_type == "image/png"
    again = upload(profile, sandboxed_bucket.owner, originals(mixed))
    assert (again.uploaded, again.unchanged, again.failed) == (0, 11, 1)


def test_jpegs_of_different_sizes_are_planned_sent_and_resumed(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, mixed: Path
) -> None:
    settings = encoded(mixed, size=32)
    plan = plan_upload(profile, sandboxed_bucket.owner, settings)
    assert plan.bytes_estimated
    summary = upload(profile, sandboxed_bucket.owner, settings)
    assert (summary.uploaded, summary.failed) == (11, 0)
    assert plan.bytes_to_send == plan.stored_bytes == pytest.approx(summary.bytes, rel=0.3)
    sent = bucket(store, profile.dataset_prefix)
    assert {"train/ants/wide.png.jpg", "train/bees/1.jpg"} < set(sent)
    assert len({"train/bees/1.jpeg.jpg", "train/bees/1.jpg.jpg"} & set(sent)) == 1  # of the one that came second
    manifest = check_manifest_is_the_bucket(store, profile.dataset_prefix)
    assert (manifest.format, manifest.size) == (SampleFormat.IMAGE_JPEG, 32)
    sizes = {sample.key: (sample.height, sample.width) for sample in manifest.splits["train"]}
    assert sizes["train/bees/tall.WEBP.jpg"] == (90, 20)  # not enlarged
    assert sizes["train/ants/wide.png.jpg"] == (32, 42)
    key = f"{profile.dataset_prefix}/train/ants/wide.png.jpg"
    assert store.head(key).headers["content-type"] == "image/jpeg"
    store.put(key, sent["train/ants/wide.png.jpg"][:-1])
    again = upload(profile, sandboxed_bucket.owner, settings)
    assert (again.uploaded, again.unchanged) == (1, 10)
    assert bucket(store, profile.dataset_prefix) == sent
    plan = plan_upload(profile, sandboxed_bucket.owner, settings)
    assert (plan.to_send, plan.bytes_to_send) == (0, 0)
    assert plan.stored_bytes == pytest.approx(summary.bytes, rel=0.3)
    low = upload(profile, sandboxed_bucket.owner, encoded(mixed, size=32, quality=20))
    assert low.bytes < summary.bytes
    check_manifest_is_the_bucket(store, profile.dataset_prefix)


def test_original_files_and_jpegs_of_a_size_do_not_share_a_prefix(
    sandboxed_bucket: Sandboxed, profile: Profile, source: Path
) -> None:
    upload(profile, sandboxed_bucket.owner, originals(source))
    with pytest.raises(PrefixTakenError, match="image-jpeg of various sizes, not of image-jpeg at 16 px") as caught:
        upload(profile, sandboxed_bucket.owner, encoded(source))
    assert "--format image-jpeg --originals" in caught.value.remedy


@pytest.mark.parametrize("change", [encoded, originals])
def test_an_unfinished_upload_in_another_format_is_not_mixed_in(
    sandboxed_bucket: Sandboxed,
    store: ObjectStore,
    profile: Profile,
    source: Path,
    change: Callable[[Path], UploadSettings],
) -> None:
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    store.delete(manifest_key(profile.dataset_prefix))  # as if it had been cancelled
    (source / "train/ants/0.jpg").unlink()
    summary = upload(profile, sandboxed_bucket.owner, change(source))
    assert (summary.uploaded, summary.failed, summary.removed, summary.unknown) == (7, 0, (), 8)
    manifest = read_manifest(store, profile.dataset_prefix)
    keys = {sample.key for samples in manifest.splits.values() for sample in samples}
    assert keys == {str(path.relative_to(source)) for path in source.rglob("*.jpg")}


# Refusals of the whole


def test_a_wrong_secret_ends_it_at_once(sandboxed_bucket: Sandboxed, profile: Profile, source: Path) -> None:
    job = create_upload(profile, sandboxed_bucket.wrong_secret, settings_for(source))
    job.start()
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        job.result(WAIT_S)
    assert job.progress().phase is Phase.FAILED
    assert "SignatureDoesNotMatch" in job.progress().error


def test_a_key_that_may_not_write_fails_every_sample_by_name(
    sandboxed_bucket: Sandboxed, profile: Profile, source: Path
) -> None:
    with pytest.raises(ConsoleError, match=r"8 failed.*AccessDenied while writing") as caught:
        upload(profile, sandboxed_bucket.keys["read-only"], settings_for(source))
    assert "train/<class>/" not in str(caught.value)  # its layout is not the problem


def test_a_key_that_may_not_write_ends_a_long_upload_early(
    sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossconsole.dataset.upload.pipeline.MAX_DENIED", 3)
    job = create_upload(
        profile, sandboxed_bucket.keys["read-only"], settings_for(make_pictures(tmp_path / "many", train=60))
    )
    job.start()
    with pytest.raises(StorageError, match="AccessDenied"):
        job.result(WAIT_S)
    assert job.progress().failed < 20


def test_a_dead_endpoint_says_so(sandboxed_bucket: Sandboxed, profile: Profile, source: Path) -> None:
    dead = msgspec.structs.replace(profile, standard_endpoint="http://0.0.1:9")
    with pytest.raises(StorageError, match="No answer"):
        upload(dead, sandboxed_bucket.owner, settings_for(source))


def test_one_upload_at_a_time(sandboxed_bucket: Sandboxed, profile: Profile, source: Path) -> None:
    first = create_upload(profile, sandboxed_bucket.owner, settings_for(source))
    first.pause()
    first.start()
    wait_until(lambda: first.progress().phase is Phase.UPLOADING)
    with pytest.raises(JournalError, match="Another upload"):
        upload(profile, sandboxed_bucket.owner, settings_for(source))
    first.resume()
    assert first.result(WAIT_S).uploaded == 8


# Controls


def test_pause_holds_and_resume_continues(sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path) -> None:
    job = create_upload(profile, sandboxed_bucket.owner, settings_for(make_pictures(tmp_path / "s", train=60)))
    job.start()
    wait_until(lambda: job.progress().uploaded > 0)
    job.pause()
    wait_until(lambda: job.progress().sending == 0)
    held = job.progress()
    assert held.paused
    assert held.eta_s is None
    assert not job.wait(0.2)
    assert job.progress().uploaded == held.uploaded
    job.resume()
    assert job.result(WAIT_S).uploaded == 62


def test_cancel_keeps_what_was_sent(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    source = make_pictures(tmp_path / "s", train=120)
    job = create_upload(profile, sandboxed_bucket.owner, settings_for(source))
    job.start()
    wait_until(lambda: job.progress().uploaded > 20)
    job.cancel()
    summary = job.result(WAIT_S)
    assert summary.cancelled
    assert job.progress().phase is Phase.CANCELLED
    assert not store.exists(manifest_key(profile.dataset_prefix))
    there = len(bucket(store, profile.dataset_prefix))
    assert summary.uploaded <= there < 122
    rest = upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert (rest.uploaded, rest.unchanged) == (122 - summary.uploaded, summary.uploaded)
    check_manifest_is_the_bucket(store, profile.dataset_prefix)


def test_cancel_works_while_paused_and_before_anything_was_sent(
    sandboxed_bucket: Sandboxed, profile: Profile, source: Path
) -> None:
    job = create_upload(profile, sandboxed_bucket.owner, settings_for(source))
    job.pause()
    job.start()
    job.cancel()
    assert job.result(WAIT_S).cancelled


@pytest.mark.parametrize(
    "how",
    [{}, {"fmt": SampleFormat.IMAGE_JPEG, "size": 0, "originals": True}, {"per_shard": 2}],
    ids=["prepared", "originals", "shards"],
)
def test_cancel_does_not_wait_for_a_file_that_cannot_be_read_to_its_end(
    sandboxed_bucket: Sandboxed,
    profile: Profile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, object],
) -> None:
    """As on a disk of the network that hangs. Nobody writes into the pipe, and only a test takes it for a file."""
    monkeypatch.setattr("ossconsole.dataset.upload.pipeline.LAST_ANSWERS_S", 0.1)
    monkeypatch.setattr("ossconsole.dataset.source.table.stat", SimpleNamespace(S_ISREG=lambda _mode: True))
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    (tmp_path / "table.csv").write_text("pipe.jpg,ants\n")
    job = create_upload(profile, sandboxed_bucket.owner, settings_for(tmp_path / "table.csv", **how))  # type: ignore[arg-type]
    job.start()
    wait_until(lambda: any(job.progress().workers))
    job.cancel()
    assert job.wait(WAIT_S)
    assert job.progress().phase is Phase.CANCELLED
    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # ends the thread that reads an original


def test_knobs_turn_while_it_runs(sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path) -> None:
    source = make_pictures(tmp_path / "s", train=100)
    job = create_upload(profile, sandboxed_bucket.owner, settings_for(source, parallelism=1, bandwidth=1.0))
    job.start()
    wait_until(lambda: job.progress().sending == 1)
    job.set_parallelism(20)
    wait_until(lambda: job.progress().sending > 1)
    job.set_parallelism(500)
    assert job.progress().parallelism == 64
    job.set_parallelism(2)
    job.set_bandwidth(None)
    summary = job.result(WAIT_S)
    assert summary.uploaded == 102
    assert job.progress().bandwidth is None


def test_progress_ends_with_everything_known(sandboxed_bucket: Sandboxed, profile: Profile, source: Path) -> None:
    job = create_upload(profile, sandboxed_bucket.owner, settings_for(source))
    job.start()
    summary = job.result(WAIT_S)
    progress = job.progress()
    assert (progress.phase, progress.done, progress.total, progress.total_known) == (Phase.DONE, 8, 8, True)
    assert progress.eta_s is None
    assert progress.samples_per_s == pytest.approx(summary.samples_per_s, rel=0.1)
    picture = job.preview()
    assert picture is not None
    assert len(picture.payload) == 3 * picture.height * picture.width


# Processes


def test_a_preparation_process_that_dies_costs_one_picture_at_most(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    import psutil

    source = make_pictures(tmp_path / "s", train=100)
    job = create_upload(profile, sandboxed_bucket.owner, settings_for(source))
    job.start()
    wait_until(lambda: job.progress().uploaded > 5)
    for child in psutil.Process().children(recursive=True):
        if "ossconsole.dataset.upload.worker" in child.cmdline():
            child.kill()
    summary = job.result(WAIT_S)
    assert summary.uploaded + summary.failed == 102
    assert summary.failed <= 1
    assert all("died on it" in failure.reason for failure in summary.failures)
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert len(bucket(store, profile.dataset_prefix)) == 102


def test_no_process_is_left_behind(sandboxed_bucket: Sandboxed, profile: Profile, source: Path) -> None:
    import psutil

    upload(profile, sandboxed_bucket.owner, settings_for(source, workers=3))
    assert not [
        c for c in psutil.Process().children(recursive=True) if "ossconsole.dataset.upload.worker" in c.cmdline()
    ]


def test_a_file_of_the_working_folder_is_not_imported(
    sandboxed_bucket: Sandboxed, profile: Profile, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL.py").write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    assert upload(profile, sandboxed_bucket.owner, settings_for(source)).uploaded == 8


def test_a_full_disk_under_the_journal_ends_it_and_the_next_run_continues(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_pictures(tmp_path / "s", train=80)

    def filling(journal: Journal, source: str) -> None:
        opening(journal, source)
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count={pages + 1}")

    opening = Journal._open
    monkeypatch.setattr(Journal, "_open", filling)
    with pytest.raises(JournalError, match="full") as caught:
        upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert "Free space" in caught.value.remedy
    assert not store.exists(manifest_key(profile.dataset_prefix))
    monkeypatch.setattr(Journal, "_open", opening)
    before = len(bucket(store, profile.dataset_prefix))
    summary = upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert (summary.uploaded, summary.unchanged) == (82 - before, before)
    assert bucket(store, profile.dataset_prefix) == wanted(source, settings_for(source).preprocessing)
    check_manifest_is_the_bucket(store, profile.dataset_prefix)


# Plan


def test_the_plan_says_what_the_upload_then_does(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path
) -> None:
    (source / "train/ants/x.gif").write_bytes(b"GIF89a")
    (source / "train/stray.jpg").write_bytes(jpeg(1))
    settings = settings_for(source)
    plan = plan_upload(profile, sandboxed_bucket.owner, settings)
    assert (plan.files, plan.to_send, plan.unchanged, plan.ignored, plan.lost) == (10, 8, 0, 1, 1)
    assert plan.classes == ("ants", "bees")
    assert plan.samples == {"train": 6, "val": 2}
    assert plan.prepare_s is not None
    assert bucket(store, profile.dataset_prefix) == {}
    assert not journal_path(profile, profile.dataset_prefix).exists()
    summary = upload(profile, sandboxed_bucket.owner, settings)
    assert (summary.uploaded, summary.ignored, summary.failed) == (plan.to_send, plan.ignored, plan.lost)
    assert summary.bytes == plan.bytes_to_send
    after = plan_upload(profile, sandboxed_bucket.owner, settings)
    assert (after.to_send, after.unchanged, after.bytes_to_send) == (0, 8, 0)
    assert after.stored_bytes == plan.stored_bytes == 8 * 768


def test_sources_of_several_kinds_give_the_same_bucket(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, source: Path, tmp_path: Path
) -> None:
    upload(profile, sandboxed_bucket.owner, settings_for(source))
    expected = bucket(store, profile.dataset_prefix)
    for kind in ("zip", "tar", "gztar"):
        archive = Path(shutil.make_archive(str(tmp_path / kind), kind, source.parent, source.name))
        other = msgspec.structs.replace(profile, dataset_prefix=f"{profile.dataset_prefix}-{kind}")
        assert upload(other, sandboxed_bucket.owner, settings_for(archive)).uploaded == 8
        assert bucket(store, other.dataset_prefix) == expected
        assert upload(other, sandboxed_bucket.owner, settings_for(archive)).unchanged == 8


def test_a_sample_is_what_it_shows(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path
) -> None:
    path = tmp_path / "s/train/red/a.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (20, 20), (255, 0, 0)).save(path)
    upload(profile, sandboxed_bucket.owner, settings_for(tmp_path / "s"))
    manifest = read_manifest(store, profile.dataset_prefix)
    (sample,) = manifest.splits["train"]
    data = store.get(f"{profile.dataset_prefix}/{sample.key}")
    array = np.frombuffer(data, np.uint8).reshape(3, sample.height, sample.width)
    assert (array == np.array([255, 0, 0], np.uint8)[:, None, None]).all()


# Names that are there twice


def twice(archive: Path, *pictures: tuple[str, bytes]) -> Path:
    """An archive of the pictures in this order."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, data in pictures:
                zipped.writestr(name, data)
        return archive
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        for name, data in pictures:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "shards.tar"])
def test_a_name_that_is_there_twice_is_one_sample_and_a_named_conflict_in_every_run(
    sandboxed_bucket: Sandboxed, store: ObjectStore, profile: Profile, tmp_path: Path, name: str
) -> None:
    pictures = [("train/ants/1.jpg", jpeg(1)), ("train/bees/2.jpg", jpeg(2)), ("train/ants/1.jpg", jpeg(3))]
    source = twice(tmp_path / name, *pictures)
    settings = settings_for(source, per_shard=5 if name.startswith("shards") else 0)
    plan = plan_upload(profile, sandboxed_bucket.owner, settings)
    assert (plan.files, plan.to_send, plan.lost, plan.conflicts) == (3, 2, 1, 1)
    seen = []
    for uploaded in (2, 0, 0):
        summary = upload(profile, sandboxed_bucket.owner, settings)
        assert (summary.uploaded, summary.unchanged, summary.failed) == (uploaded, 2 - uploaded, 1)
        assert [failure.path for failure in summary.failures] == ["train/ants/1.jpg"]
        assert "more than once" in summary.failures[0].reason
        seen.append(bucket(store, profile.dataset_prefix))
    assert seen[0] == seen[1] == seen[2]
    if not settings.per_shard:
        expected = prepare(jpeg(1), "train/ants/1.u8", settings.preprocessing).payload
        assert seen[0]["train/ants/1.u8"] == expected


@pytest.mark.parametrize("name", ["a.tar", "shards.tar"])
def test_the_archive_of_one_class_fails_with_a_remedy_in_the_plan_and_in_the_upload(
    sandboxed_bucket: Sandboxed, profile: Profile, tmp_path: Path, name: str
) -> None:
    source = twice(tmp_path / name, ("1.JPEG", jpeg(1)), ("2.JPEG", jpeg(2)))
    settings = settings_for(source, per_shard=5 if name.startswith("shards") else 0)
    plan = plan_upload(profile, sandboxed_bucket.owner, settings)
    assert "a folder with the name of the class" in plan.problem
    assert [(note.path, note.reason) for note in plan.notes] == [
        ("1.JPEG", "not in a class folder"),
        ("2.JPEG", "not in a class folder"),
    ]
    with pytest.raises(ConsoleError, match="2 failed") as caught:
        upload(profile, sandboxed_bucket.owner, settings)
    assert "a folder with the name of the class" in caught.value.remedy


def test_what_of_the_source_is_not_used_is_in_plan_and_summary(
    sandboxed_bucket: Sandboxed, profile: Profile, source: Path
) -> None:
    for number in range(12):
        (source / f"train/ants/{number:02}.gif").write_bytes(b"GIF89a")
    (source / "train/wasps").mkdir()
    plan = plan_upload(profile, sandboxed_bucket.owner, settings_for(source))
    summary = upload(profile, sandboxed_bucket.owner, settings_for(source))
    assert plan.unused == summary.unused
    files, folders = plan.unused
    assert str(files).startswith("12 files (unsupported file extension): ")
    assert str(files).endswith(" and 9 more")
    assert str(folders) == "1 class folder (no usable image in it): train/wasps"
