"""Delete, copy, rename, restore, presigned URLs, unfinished uploads, usage and details, each against a real server."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import oss2
import pytest

from ossconsole.config.credentials import Credentials, Secret
from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.metadata import MetadataError
from ossconsole.sandbox.faults import Error, FaultPlan, LostReply, Reset, Rule
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.actions import (
    Copy,
    Delete,
    Restore,
    RestoreTier,
    Usage,
    Versioning,
    object_details,
    presigned_url,
    restore_time,
    versioning,
)
from ossconsole.storage.jobs.download import Download
from ossconsole.storage.jobs.job import Job, JobState
from ossconsole.storage.multipart import abort_upload, list_uploads
from ossconsole.storage.objects import ObjectSummary
from ossconsole.storage.retry import NO_RETRY, RetryPolicy
from tests.sandboxed import Sandboxed, read_log
from tests.waiting import run_to_end

CONTROL = "esc\x1b[31m\x01"


def keys(store: ObjectStore, prefix: str) -> list[str]:
    return [found.key[len(prefix) :] for found in store.list_all(prefix)]


def summary(store: ObjectStore, key: str) -> ObjectSummary:
    return next(found for found in store.list_all(key) if found.key == key)


@pytest.fixture
def filled(store: ObjectStore, prefix: str) -> str:
    for name in ("one", "two", "dir/three", "dir/deep/four", "dirt", CONTROL):
        store.put(prefix + name, name.encode())
    return prefix


def test_delete_takes_what_was_chosen_and_nothing_beside_it(
    sandboxed_bucket: Sandboxed, store: ObjectStore, filled: str
) -> None:
    began = time.time()
    job = run_to_end(Delete(store, [f"{filled}dir/", summary(store, f"{filled}one"), summary(store, filled + CONTROL)]))
    assert job.state is JobState.DONE
    assert job.failures == []
    assert keys(store, filled) == ["dirt", "two"]
    progress = job.progress()
    assert (progress.items_done, progress.items_total, progress.total_known) == (4, 4, True)
    asked = [each.operation for each in read_log(sandboxed_bucket.process.log_path) if each.time >= began]
    # One batch, and on its own the name that no XML can carry.
    assert sorted(name for name in asked if name.startswith("Delete")) == ["DeleteMultipleObjects", "DeleteObject"]


def test_delete_without_the_right_names_every_object(
    sandboxed_bucket: Sandboxed, store: ObjectStore, filled: str
) -> None:
    reader = sandboxed_bucket.store(key="read-only")
    job = run_to_end(Delete(reader, [f"{filled}dir/"]))
    assert job.state is JobState.FAILED
    assert [failure.path for failure in job.failures] == [f"{filled}dir/deep/four", f"{filled}dir/three"]
    assert all("AccessDenied" in failure.reason and failure.request_id for failure in job.failures)
    assert "dir/three" in keys(store, filled)


def test_copy_of_a_folder(store: ObjectStore, filled: str) -> None:
    job = run_to_end(Copy(store, [f"{filled}dir/"], f"{filled}dir/", f"{filled}new/"))
    assert job.failures == []
    assert [name for name in keys(store, filled) if name.startswith("new")] == ["new/deep/four", "new/three"]
    assert store.get(f"{filled}new/three") == b"dir/three"


def test_rename_of_an_object_keeps_its_bytes_and_metadata(store: ObjectStore, prefix: str) -> None:
    store.put(f"{prefix}old", b"data", content_type="text/x-test", metadata={"epoch": "3"})
    found = summary(store, f"{prefix}old")
    job = run_to_end(Copy(store, [found], found.key, f"{prefix}sub/new name+%", move=True))
    assert job.failures == []
    assert keys(store, prefix) == ["sub/new name+%"]
    info = store.head(f"{prefix}sub/new name+%")
    assert (info.metadata, info.content_type) == ({"epoch": "3"}, "text/x-test")


def test_a_copy_overwrites_only_with_replace(store: ObjectStore, filled: str) -> None:
    found = summary(store, f"{filled}one")
    kept = run_to_end(Copy(store, [found], found.key, f"{filled}two"))
    assert "FileAlreadyExists" in kept.failures[0].reason
    assert store.get(f"{filled}two") == b"two"
    run_to_end(Copy(store, [found], found.key, f"{filled}two", replace=True))
    assert store.get(f"{filled}two") == b"one"


def test_large_objects_are_copied_in_parts(store: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the result of a small copy: everything that describes the object is kept."""
    monkeypatch.setattr("ossconsole.storage.copying.COPY_PART_SIZE", 110_000)
    data = bytes(range(256)) * 1500
    headers = {
        "x-oss-meta-run": "r",
        "x-oss-tagging": "a=1&b=%2F%20c",
        "x-oss-storage-class": "IA",
        "x-oss-object-acl": "public-read",
        "Content-Type": "text/x-test",
        "Content-Encoding": "gzip",
        "Content-Disposition": "attachment",
        "Cache-Control": "no-store",
    }
    for name, whole_below in (("whole", 1 << 30), ("parts", 100_000)):
        monkeypatch.setattr("ossconsole.storage.copying.COPY_WHOLE_BELOW", whole_below)
        store.sdk.put_object(f"{prefix}{name}", data, headers=headers)
        found = summary(store, f"{prefix}{name}")
        job = run_to_end(Copy(store, [found], found.key, f"{prefix}copied-{name}", move=True))
        assert job.failures == []
    assert keys(store, prefix) == ["copied-parts", "copied-whole"]
    both = [object_details(store, f"{prefix}copied-{name}") for name in ("whole", "parts")]
    for copied in both:
        assert (copied.acl, copied.tags, copied.info.storage_class) == ("public-read", {"a": "1", "b": "/ c"}, "IA")
        assert (copied.info.metadata, copied.info.content_type) == ({"run": "r"}, "text/x-test")
    own = {"etag", "x-oss-object-type", "last-modified", "x-oss-request-id", "x-oss-server-time", "date"}
    described = [{k: v for k, v in copied.info.headers.items() if k not in own} for copied in both]
    assert described[0] == described[1]
    assert store.get(f"{prefix}copied-parts") == data


@pytest.mark.parametrize(
    ("operation", "whole_below"), [("CopyObject", 1 << 30), ("CompleteMultipartUpload", 1)], ids=["whole", "parts"]
)
def test_a_rename_whose_answer_is_lost_is_not_refused_by_its_own_copy(
    sandboxed_bucket: Sandboxed, prefix: str, monkeypatch: pytest.MonkeyPatch, operation: str, whole_below: int
) -> None:
    monkeypatch.setattr("ossconsole.storage.copying.COPY_WHOLE_BELOW", whole_below)
    retry = RetryPolicy(first_wait_s=0.01)
    store = ObjectStore(sandboxed_bucket.process.profile(), sandboxed_bucket.owner, retry=retry)
    store.put(f"{prefix}a", b"content")
    found = summary(store, f"{prefix}a")
    with sandboxed_bucket.faults(FaultPlan(rules=[Rule(action=LostReply(), operation=operation, times=1)])):
        assert run_to_end(Copy(store, [found], found.key, f"{prefix}b", move=True)).failures == []
    assert keys(store, prefix) == ["b"]
    store.put(f"{prefix}a", b"another content")
    with sandboxed_bucket.faults(FaultPlan(rules=[Rule(action=Reset(), operation=operation, times=1)])):
        job = run_to_end(Copy(store, [summary(store, f"{prefix}a")], found.key, f"{prefix}b", move=True))
    assert [failure.code for failure in job.failures] == ["FileAlreadyExists"]
    assert store.get(f"{prefix}b") == b"content"
    store.close()


@pytest.mark.parametrize("whole_below", [1 << 30, 1], ids=["whole", "parts"])
def test_a_rename_keeps_the_encryption(
    sandboxed_bucket: Sandboxed, store: ObjectStore, prefix: str, whole_below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the bucket's default is another one; without it before, a new name may add the bucket's."""
    monkeypatch.setattr("ossconsole.storage.copying.COPY_WHOLE_BELOW", whole_below)
    bucket = store.for_bucket(f"encrypted-{whole_below}")
    bucket.create_bucket()
    of_key = {"x-oss-server-side-encryption": "KMS", "x-oss-server-side-encryption-key-id": "key-1"}
    for name, headers in (("plain", {}), ("aes", {"x-oss-server-side-encryption": "AES256"}), ("kms", of_key)):
        bucket.sdk.put_object(prefix + name, b"data", headers=headers)
    bucket.sdk.put_bucket_encryption(oss2.models.ServerSideEncryptionRule("KMS", "key-2"))
    for name, wanted in (("plain", ("KMS", "key-2")), ("aes", ("AES256", None)), ("kms", ("KMS", "key-1"))):
        found = summary(bucket, prefix + name)
        assert run_to_end(Copy(bucket, [found], found.key, f"{prefix}new-{name}", move=True)).failures == []
        headers = bucket.head(f"{prefix}new-{name}").headers
        assert (headers["x-oss-server-side-encryption"], headers.get("x-oss-server-side-encryption-key-id")) == wanted
        assert bucket.get(f"{prefix}new-{name}") == b"data"
    bucket.sdk.put_object(f"{prefix}last", b"data", headers=of_key)
    found = summary(bucket, f"{prefix}last")
    denied = Rule(action=Error(code="AccessDenied", status=403), operation="CopyObject", skip=1)
    initiated = Rule(action=Error(code="AccessDenied", status=403), operation="InitiateMultipartUpload", skip=1)
    with sandboxed_bucket.faults(FaultPlan(rules=[denied, initiated])):
        job = run_to_end(Copy(bucket, [found], found.key, f"{prefix}moved", move=True))
    assert "AccessDenied" in job.failures[0].reason
    assert bucket.get(f"{prefix}last") == b"data"


def test_a_rename_without_the_right_to_read_acls_deletes_nothing(
    sandboxed_bucket: Sandboxed, store: ObjectStore, filled: str
) -> None:
    plan = FaultPlan(rules=[Rule(action=Error(code="AccessDenied", status=403), operation="GetObjectAcl")])
    found = summary(store, f"{filled}one")
    with sandboxed_bucket.faults(plan):
        moved = run_to_end(Copy(store, [found], found.key, f"{filled}moved", move=True))
        copied = run_to_end(Copy(store, [found], found.key, f"{filled}copied"))
    assert "AccessDenied" in moved.failures[0].reason
    assert copied.failures == []
    assert isinstance(copied, Copy)
    assert "ACL" in copied.note
    assert {"one", "copied"} <= set(keys(store, filled))
    assert "moved" not in keys(store, filled)


def test_nothing_is_overwritten_where_versions_make_the_service_overwrite(store: ObjectStore, prefix: str) -> None:
    versioned = store.for_bucket("copies-with-versions")
    versioned.create_bucket()
    versioned.sdk.put_bucket_versioning(oss2.models.BucketVersioningConfig("Enabled"))
    for name in ("one", "two"):
        versioned.put(prefix + name, name.encode())
    found = summary(versioned, f"{prefix}one")
    for move in (False, True):
        job = run_to_end(Copy(versioned, [found], found.key, f"{prefix}two", move=move))
        assert "FileAlreadyExists" in job.failures[0].reason
    assert (versioned.get(f"{prefix}one"), versioned.get(f"{prefix}two")) == (b"one", b"two")
    assert run_to_end(Copy(versioned, [found], found.key, f"{prefix}three", move=True)).failures == []
    assert keys(versioned, prefix) == ["three", "two"]


def test_links_are_moved_as_links(store: ObjectStore, prefix: str) -> None:
    store.put(f"{prefix}a/target", b"content")
    store.sdk.put_symlink(f"{prefix}a/target", f"{prefix}a/zlink")
    job = run_to_end(Copy(store, [f"{prefix}a/"], f"{prefix}a/", f"{prefix}b/", move=True))
    assert job.failures == []  # also where the target was moved first
    assert keys(store, prefix) == ["b/target", "b/zlink"]
    assert store.sdk.get_symlink(f"{prefix}b/zlink").target_key == f"{prefix}a/target"
    store.put(f"{prefix}a/target", b"content")
    assert object_details(store, f"{prefix}b/zlink").link == f"{prefix}a/target"


def test_an_appended_object_is_not_copied(store: ObjectStore, prefix: str) -> None:
    store.sdk.append_object(f"{prefix}log", 0, b"line")
    job = run_to_end(Copy(store, [summary(store, f"{prefix}log")], f"{prefix}log", f"{prefix}new", move=True))
    assert "appending" in job.failures[0].reason
    assert keys(store, prefix) == ["log"]


def test_protected_objects_are_refused_in_words(store: ObjectStore) -> None:
    kept = store.for_bucket("worm-in-words")
    kept.create_bucket()
    kept.put("one", b"1")
    kept.sdk.init_bucket_worm(1)
    job = run_to_end(Delete(kept, [summary(kept, "one")]))
    assert "FileImmutable" in job.failures[0].reason
    assert "retention policy" in job.failures[0].reason
    with pytest.raises(StorageError, match="retention policy"):
        kept.put("one", b"2")
    kept.sdk.abort_bucket_worm()


def test_the_refusal_of_a_bucket_whose_requesters_pay(sandboxed_bucket: Sandboxed, store: ObjectStore) -> None:
    action = Error(code="AccessDenied", status=403, ec="0003-00000702")
    with sandboxed_bucket.faults(FaultPlan(rules=[Rule(action=action)])), pytest.raises(StorageError) as caught:
        store.get("any")
    assert "requester pays" in caught.value.remedy


@pytest.mark.parametrize("target", ["dir/", "dir/inner/"])
def test_a_folder_is_not_copied_into_itself(store: ObjectStore, filled: str, target: str) -> None:
    with pytest.raises(SettingsError, match="itself or inside it"):
        Copy(store, [f"{filled}dir/"], f"{filled}dir/", filled + target)


@pytest.mark.parametrize("target", ["", "/leading", "n" * 1024], ids=["empty", "slash", "long"])
def test_a_target_that_is_not_a_key_is_refused(store: ObjectStore, filled: str, target: str) -> None:
    found = summary(store, f"{filled}one")
    with pytest.raises(SettingsError, match="not a valid object name"):
        Copy(store, [found], found.key, target)


def test_a_cancelled_copy_ends(store: ObjectStore, filled: str) -> None:
    job = Copy(store, [f"{filled}dir/"], f"{filled}dir/", f"{filled}new/")
    job.cancel()
    run_to_end(job)
    assert job.state is JobState.CANCELLED
    assert not [name for name in keys(store, filled) if name.startswith("new")]


class _Ending:
    """Credentials that end after `left` requests: with an error of their source, or revoked."""

    def __init__(self, good: Credentials, left: int, then: Credentials | ConsoleError) -> None:
        self._good, self._left, self._then = good, left, then

    def __call__(self) -> Credentials:
        self._left -= 1
        if self._left >= 0:
            return self._good
        if isinstance(self._then, ConsoleError):
            raise self._then
        return self._then


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(MetadataError("No answer from the metadata service."), id="not renewed"),
        pytest.param(Credentials("revoked", Secret("s" * 30)), id="revoked"),
    ],
)
@pytest.mark.parametrize("kind", ["copy", "delete", "restore", "download"])
def test_a_job_without_credentials_ends_instead_of_failing_for_each_object(  # noqa: PLR0917
    sandboxed_bucket: Sandboxed,
    store: ObjectStore,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    then: Credentials | ConsoleError,
) -> None:
    monkeypatch.setattr("ossconsole.storage.client.DELETE_BATCH_SIZE", 2)
    for number in range(12):
        store.sdk.put_object(f"{prefix}{number:02}", b"x", headers={"x-oss-storage-class": "IA"})
    found = [msgspec.structs.replace(one, storage_class="Archive") for one in store.list_all(prefix)]
    ending = _Ending(sandboxed_bucket.owner(), 2, then)
    poor = ObjectStore(sandboxed_bucket.process.profile(), ending, retry=NO_RETRY)
    jobs: dict[str, Job] = {
        "copy": Copy(poor, found, prefix, f"{prefix}copied/", replace=True),
        "delete": Delete(poor, found),
        "restore": Restore(poor, found),
        "download": Download(poor, found, prefix, tmp_path, threads=1),
    }
    job = run_to_end(jobs[kind])
    assert job.state is JobState.FAILED
    assert isinstance(job.error, StorageError)
    assert job.error.code in {"NoCredentials", "InvalidAccessKeyId"}
    assert len(job.failures) <= 2  # what was refused for itself, before
    poor.close()


def test_a_presigned_url_lends_the_object_out(store: ObjectStore, filled: str) -> None:
    url = presigned_url(store, f"{filled}one", 60)
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"one"
    with pytest.raises(SettingsError):
        presigned_url(store, f"{filled}one", 8 * 24 * 3600)
    public = presigned_url(store, "a b", 60, endpoint="https://oss-cn-hangzhou.aliyuncs.com")
    assert public.startswith(f"https://{store.profile.bucket}.oss-cn-hangzhou.aliyuncs.com/a%20b?")
    assert "x-oss-signature=" in public


def test_restore_takes_what_is_archived_alone(sandboxed_bucket: Sandboxed, store: ObjectStore, prefix: str) -> None:
    for name in ("one", "two"):
        store.sdk.put_object(prefix + name, b"cold", headers={"x-oss-storage-class": "Archive"})
    store.put(f"{prefix}warm", b"warm")
    with pytest.raises(StorageError) as refused:
        store.get(f"{prefix}one")
    assert refused.value.code == "InvalidObjectState"
    job = Restore(store, [prefix])
    run_to_end(job)
    assert job.failures == []
    assert (job.requested, job.in_progress) == (2, 0)
    assert job.progress().items_skipped == 1
    with pytest.raises(StorageError, match="InvalidObjectState"):
        store.get(f"{prefix}one")
    sandboxed_bucket.control.finish_restores()
    assert store.get(f"{prefix}one") == b"cold"
    denied = Restore(store, [ObjectSummary(f"{prefix}gone", 4, 0, "Archive")])
    run_to_end(denied)
    assert "NoSuchKey" in denied.failures[0].reason


def test_a_restore_in_progress_is_not_a_failure(sandboxed_bucket: Sandboxed, store: ObjectStore, prefix: str) -> None:
    plan = FaultPlan(rules=[Rule(action=Error(code="RestoreAlreadyInProgress", status=409), operation="RestoreObject")])
    with sandboxed_bucket.faults(plan):
        job = Restore(store, [ObjectSummary(f"{prefix}one", 4, 0, "ColdArchive")])
        run_to_end(job)
    assert job.failures == []
    assert (job.requested, job.in_progress) == (0, 1)


@pytest.mark.parametrize(
    ("storage_class", "tier", "sent", "days"),
    [
        ("Archive", RestoreTier.BULK, None, 7),
        ("ColdArchive", RestoreTier.BULK, "Bulk", 2),
        ("DeepColdArchive", RestoreTier.EXPEDITED, "Expedited", 1),
        ("DeepColdArchive", RestoreTier.BULK, "Standard", 1),
    ],
)
def test_days_and_tier_go_with_the_request(  # noqa: PLR0917
    store: ObjectStore, prefix: str, storage_class: str, tier: RestoreTier, sent: str | None, days: int
) -> None:
    store.sdk.put_object(f"{prefix}cold", b"x", headers={"x-oss-storage-class": storage_class})
    answers: list[Any] = []
    request = store.sdk.restore_object

    def recorded(*arguments: Any, **options: Any) -> Any:
        answers.append(request(*arguments, **options))
        return answers[-1]

    store.sdk.restore_object = recorded
    job = Restore(store, [summary(store, f"{prefix}cold")], days=days, tier=tier)
    run_to_end(job)
    assert (job.failures, job.requested, job.classes) == ([], 1, {storage_class})
    assert answers[0].headers.get("x-oss-object-restore-priority") == sent
    hours = {"Archive": "minute", "ColdArchive": "5 to 12", "DeepColdArchive": "12" if sent == "Expedited" else "48"}
    assert hours[storage_class] in restore_time(storage_class, tier)
    run_to_end(again := Restore(store, [summary(store, f"{prefix}cold")], days=days, tier=tier))
    assert (again.requested, again.in_progress) == (0, 1)


def test_unfinished_uploads_are_found_and_aborted(store: ObjectStore, prefix: str) -> None:
    upload_id = store.sdk.init_multipart_upload(f"{prefix}big file").upload_id
    store.sdk.upload_part(f"{prefix}big file", upload_id, 1, b"x" * 100_000)
    store.sdk.upload_part(f"{prefix}big file", upload_id, 2, b"y" * 10)
    store.sdk.init_multipart_upload(f"{prefix}other")
    big, other = list_uploads(store, prefix)
    assert (big.key, big.parts, big.bytes) == (f"{prefix}big file", 2, 100_010)
    assert (other.parts, other.bytes) == (0, 0)
    abort_upload(store, big)
    assert [upload.key for upload in list_uploads(store, prefix)] == [f"{prefix}other"]


def test_an_upload_that_ends_during_the_listing_is_left_out(store: ObjectStore, prefix: str) -> None:
    begun = {name: store.sdk.init_multipart_upload(prefix + name).upload_id for name in ("a", "b", "c")}
    listing = list_uploads(store, prefix)
    first = next(listing)
    assert first.key == f"{prefix}a"
    store.sdk.abort_multipart_upload(f"{prefix}b", begun["b"])
    assert [upload.key for upload in listing] == [f"{prefix}c"]
    for _ in range(2):
        abort_upload(store, first)
    assert [upload.key for upload in list_uploads(store, prefix)] == [f"{prefix}c"]


def test_usage_counts_everything_below(store: ObjectStore, filled: str) -> None:
    job = Usage(store, [f"{filled}dir/", summary(store, f"{filled}one")])
    run_to_end(job)
    assert job.totals.objects == 3
    assert job.totals.bytes == len("dir/three" + "dir/deep/four" + "one")
    assert job.totals.by_class == {"Standard": (3, job.totals.bytes)}
    assert job.totals.newest > 0


def test_details_show_all_and_what_could_not_be_read(store: ObjectStore, prefix: str) -> None:
    store.put(f"{prefix}object", b"data", content_type="text/plain", metadata={"run": "r1"})
    details = object_details(store, f"{prefix}object")
    assert details.info.metadata == {"run": "r1"}
    assert details.info.crc64 is not None
    assert details.acl == "default"
    assert details.tags == {}
    assert details.versions == []
    assert details.unavailable == {}
    assert versioning(store) is Versioning.NEVER
    with pytest.raises(StorageError) as missing:
        object_details(store, f"{prefix}missing")
    assert missing.value.status == 404


def test_versions_of_one_key_are_listed_and_stay_when_it_is_deleted(sandboxed_bucket: Sandboxed) -> None:
    store = sandboxed_bucket.store().for_bucket("keeps-versions")
    store.create_bucket()
    store.put("key", b"before")
    store.sdk.put_bucket_versioning(oss2.models.BucketVersioningConfig("Enabled"))
    assert versioning(store) is Versioning.ENABLED
    store.put("key", b"after it")
    store.put("key of another", b"1")
    assert run_to_end(Delete(store, ["key of"])).failures == []
    store.delete("key")
    store.put("key", b"now")
    versions = object_details(store, "key").versions
    assert versions is not None
    assert [found.is_latest for found in versions] == [True, False, False, False]
    assert {found.size: found.is_marker for found in versions} == {0: True, 3: False, 6: False, 8: False}
    assert [found.size for found in versions if found.version_id == "null"] == [6]
    store.close()


def test_a_retry_deletes_only_what_failed(sandboxed_bucket: Sandboxed, store: ObjectStore, filled: str) -> None:
    plan = FaultPlan(rules=[Rule(action=Error(code="AccessDenied"), operation="DeleteMultipleObjects")])
    with sandboxed_bucket.faults(plan):
        job = Delete(store, [f"{filled}dir/"])
        assert run_to_end(job).state is JobState.FAILED
    store.put(f"{filled}dir/new", b"5")
    again = job.retry()
    assert again is not None
    assert run_to_end(again).state is JobState.DONE
    assert keys(store, f"{filled}dir/") == ["new"]
    assert again.retry() is None


def test_a_retry_copies_only_what_failed(store: ObjectStore, filled: str) -> None:
    store.put(f"{filled}to/three", b"in the way")
    job = Copy(store, [f"{filled}dir/"], f"{filled}dir/", f"{filled}to/", move=True)
    assert run_to_end(job).state is JobState.FAILED
    assert keys(store, f"{filled}dir/") == ["three"]
    store.delete(f"{filled}to/three")
    again = job.retry()
    assert again is not None
    assert run_to_end(again).state is JobState.DONE
    assert (keys(store, f"{filled}dir/"), keys(store, f"{filled}to/")) == ([], ["deep/four", "three"])
