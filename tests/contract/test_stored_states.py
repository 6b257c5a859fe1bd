"""Parts, versions, archived objects, symbolic links, retention and encryption, as the pages of the API state them.

Pages: https://help.aliyun.com/en/oss/developer-reference/ with the name in the tests' docstrings.
"""

from __future__ import annotations

from typing import Any

import oss2
import pytest
from oss2.models import BatchDeleteObjectVersion, BatchDeleteObjectVersionList, BucketVersioningConfig, PartInfo

from ossconsole.storage.client import ObjectStore
from tests.contract.test_objects import FORBID, fails, sdk

__all__ = ["sdk"]  # a fixture

PART = 102_400


def test_part_copies_and_their_ranges(sdk: Any, contract_store: ObjectStore, contract_prefix: str) -> None:
    """uploadpartcopy: a range with both ends, one to the object's end, and none for the whole object."""
    source, key = f"{contract_prefix}source", f"{contract_prefix}x"
    data = bytes(range(256)) * 800
    sdk.put_object(source, data)
    upload = sdk.init_multipart_upload(key).upload_id
    spans = ((100, 100 + PART - 1), (PART, None), None)
    etags = [
        sdk.upload_part_copy(sdk.bucket_name, source, span, key, upload, number).etag
        for number, span in enumerate(spans, 1)
    ]
    sdk.complete_multipart_upload(key, upload, [PartInfo(number, etag) for number, etag in enumerate(etags, 1)])
    assert contract_store.get(key) == data[100 : 100 + PART] + data[PART:] + data


@pytest.fixture
def versioned(own_store: ObjectStore) -> Any:
    own_store.sdk.put_bucket_versioning(BucketVersioningConfig("Enabled"))
    return own_store.sdk


def test_forbid_overwrite_has_no_effect_with_versioning(versioned: Any) -> None:
    """putobject: "if versioning is enabled or suspended, x-oss-forbid-overwrite does not take effect"."""
    versioned.put_object("a", b"one")
    versioned.put_object("a", b"two", headers=FORBID)
    assert versioned.get_object("a").read() == b"two"
    versioned.put_bucket_versioning(BucketVersioningConfig("Suspended"))
    versioned.put_object("a", b"three", headers=FORBID)
    assert versioned.get_object("a").read() == b"three"


def test_versions_are_read_copied_and_deleted_by_id(versioned: Any) -> None:
    """getobject, headobject, copyobject, uploadpartcopy, deleteobject: `versionId`."""
    first = versioned.put_object("a", b"one", headers={"x-oss-meta-n": "1"}).versionid
    second = versioned.put_object("a", b"second").versionid
    of_first = {"versionId": first}
    assert versioned.get_object("a", params=of_first).read() == b"one"
    head = versioned.head_object("a", params=of_first)
    assert (head.content_length, head.versionid, head.headers["x-oss-meta-n"]) == (3, first, "1")
    versioned.copy_object(versioned.bucket_name, "a", "b", params=of_first)
    assert versioned.get_object("b").read() == b"one"
    marker = versioned.delete_object("a").versionid
    assert fails(versioned.get_object, "a") == (404, "NoSuchKey")
    assert fails(versioned.get_object, "a", params={"versionId": marker})[0] == 405
    assert fails(versioned.get_object, "a", params={"versionId": "0" * 32}) == (404, "NoSuchVersion")
    versioned.delete_object("a", params={"versionId": marker})
    assert versioned.get_object("a").read() == b"second"
    versioned.delete_object("a", params={"versionId": second})
    assert versioned.get_object("a").read() == b"one"


def test_a_link_is_deleted_with_its_parameter(versioned: Any) -> None:
    """oss2's own test deletes a link with the dictionary that `get_symlink` has added `symlink` to."""
    versioned.put_object("a", b"one")
    kept = versioned.put_symlink("a", "link").versionid
    parameters = {"versionId": kept}
    assert versioned.get_symlink("link", params=parameters).target_key == "a"
    assert "symlink" in parameters
    versioned.delete_object("link", params=parameters)
    assert fails(versioned.get_symlink, "link") == (404, "NoSuchKey")


def test_a_batch_deletes_versions_permanently(versioned: Any) -> None:
    """deletemultipleobjects: a VersionId names what is deleted, twice is no error; a malformed one is."""
    first = versioned.put_object("a", b"one").versionid
    versioned.put_object("a", b"two")
    listed = BatchDeleteObjectVersionList([BatchDeleteObjectVersion("a", first)])
    assert [found.versionid for found in versioned.delete_object_versions(listed).delete_versions] == [first]
    assert [(found.key, found.size) for found in versioned.list_object_versions().versions] == [("a", 3)]
    assert versioned.get_object("a").read() == b"two"
    versioned.delete_object_versions(listed)
    malformed = BatchDeleteObjectVersionList([BatchDeleteObjectVersion("a", "234")])
    assert fails(versioned.delete_object_versions, malformed) == (400, "InvalidArgument")


def test_suspended_versioning_replaces_the_null_version(versioned: Any) -> None:
    """putbucketversioning: while suspended, objects get the version id `null` and replace the one called so."""
    kept = versioned.put_object("a", b"one").versionid
    versioned.put_bucket_versioning(BucketVersioningConfig("Suspended"))
    assert versioned.get_bucket_versioning().status == "Suspended"
    assert [versioned.put_object("a", body).versionid for body in (b"22", b"333")] == ["null", "null"]
    assert [(found.versionid, found.size) for found in versioned.list_object_versions().versions] == [
        ("null", 3),
        (kept, 3),
    ]


def archived(sdk: Any, key: str, storage_class: str) -> None:
    sdk.put_object(key, b"data", headers={"x-oss-storage-class": storage_class})


def request(days: int, tier: str = "") -> Any:
    parameters = oss2.models.RestoreJobParameters(tier) if tier else None
    return oss2.models.RestoreConfiguration(days=days, job_parameters=parameters)


def test_a_restore_takes_time(sdk: Any, contract_prefix: str) -> None:
    """restoreobject: 202, 409 while it is in progress; headobject and listings show it."""
    key = f"{contract_prefix}cold"
    archived(sdk, key, "ColdArchive")
    assert fails(sdk.get_object, key) == (403, "InvalidObjectState")
    asked = sdk.restore_object(key, input=request(2, "Bulk"))
    assert (asked.status, asked.headers["x-oss-object-restore-priority"]) == (202, "Bulk")
    assert fails(sdk.restore_object, key, input=request(2, "Bulk")) == (409, "RestoreAlreadyInProgress")
    assert sdk.head_object(key).headers["x-oss-restore"] == 'ongoing-request="true"'
    (listed,) = sdk.list_objects_v2(prefix=key).object_list
    assert 'ongoing-request="true"' in listed.restore_info
    assert fails(sdk.get_object, key) == (403, "InvalidObjectState")
    assert sdk.restore_object(key, input=request(2, "Expedited")).status == 202  # a higher priority is accepted


@pytest.mark.parametrize(
    ("storage_class", "days", "tier", "code"),
    [
        ("Archive", 8, "", None),
        ("Archive", 1, "Standard", "MalformedXML"),
        ("ColdArchive", 366, "", None),
        ("ColdArchive", 1, "nope", "InvalidArgument"),
        ("DeepColdArchive", 1, "Bulk", None),
    ],
)
def test_days_and_tiers_have_limits(  # noqa: PLR0917
    sdk: Any, contract_prefix: str, storage_class: str, days: int, tier: str, code: str | None
) -> None:
    """restoreobject: 1 to 7 days for Archive, 365 for the cold classes; no tiers for Archive, no Bulk for Deep Cold."""
    key = f"{contract_prefix}cold"
    archived(sdk, key, storage_class)
    status, found = fails(sdk.restore_object, key, input=request(days, tier))
    assert status == 400
    assert code in {None, found}  # None: the code is not documented


def test_only_archived_objects_are_restored(sdk: Any, contract_prefix: str) -> None:
    """restoreobject: not for Standard and IA objects."""
    sdk.put_object(f"{contract_prefix}warm", b"data")
    assert fails(sdk.restore_object, f"{contract_prefix}warm") == (400, "OperationNotSupported")


def test_symbolic_links(sdk: Any, contract_store: ObjectStore, contract_prefix: str) -> None:
    """putsymlink, getsymlink, getobject: the content, size and ETag are the target's, the metadata the link's."""
    target, link = f"{contract_prefix}target é", f"{contract_prefix}link"
    sdk.put_symlink(target, link, headers={"x-oss-meta-a": "1"})
    assert fails(sdk.get_object, link) == (404, "SymlinkTargetNotExist")
    etag = sdk.put_object(target, b"content").etag
    assert sdk.get_symlink(link).target_key == target
    assert contract_store.get(link) == b"content"
    found = contract_store.head(link)
    assert (found.size, found.etag, found.metadata, found.object_type) == (7, etag, {"a": "1"}, "Symlink")
    types = {listed.key: listed.type for listed in contract_store.list_all(contract_prefix)}
    assert types == {target: "Normal", link: "Symlink"}
    sdk.put_symlink(link, f"{contract_prefix}second")
    assert fails(sdk.get_object, f"{contract_prefix}second") == (400, "InvalidTargetType")
    assert fails(sdk.get_symlink, target)[0] == 400
    sdk.copy_object(sdk.bucket_name, link, f"{contract_prefix}copy")  # copies the link, not its content
    assert sdk.get_symlink(f"{contract_prefix}copy").target_key == target


def test_retention(own_store: ObjectStore) -> None:
    """initiatebucketworm, completebucketworm, extendbucketworm, abortbucketworm; FileImmutable for what it protects."""
    sdk = own_store.sdk
    assert fails(sdk.get_bucket_worm)[1] == "NoSuchWORMConfiguration"
    sdk.put_object("a", b"one")
    worm = sdk.init_bucket_worm(1).worm_id
    assert fails(sdk.put_object, "a", b"two") == (409, "FileImmutable")
    assert fails(sdk.delete_object, "a") == (409, "FileImmutable")
    assert fails(sdk.batch_delete_objects, ["a"]) == (409, "FileImmutable")
    sdk.put_object("b", b"new objects are accepted")
    assert fails(sdk.put_bucket_versioning, BucketVersioningConfig("Enabled"))[0] == 400  # 0012-00000006
    assert fails(sdk.extend_bucket_worm, worm, 2)[1] == "InvalidWORMConfiguration"
    sdk.complete_bucket_worm(worm)
    sdk.extend_bucket_worm(worm, 2)
    about = sdk.get_bucket_worm()
    assert (about.worm_id, about.state, about.retention_period_days) == (worm, "Locked", 2)
    assert fails(sdk.abort_bucket_worm)[1] == "WORMConfigurationLocked"
    assert own_store.get("a") == b"one"


def test_no_retention_with_versioning(versioned: Any) -> None:
    """0027-00000003: "you cannot configure a retention policy for a bucket if versioning is enabled"."""
    assert fails(versioned.init_bucket_worm, 1)[0] == 400
    versioned.put_bucket_versioning(BucketVersioningConfig("Suspended"))
    assert fails(versioned.init_bucket_worm, 1)[0] == 400


def test_encryption_is_reported_and_changes_etags(sdk: Any, contract_prefix: str) -> None:
    """putobject: the headers come back on the reply and on HEAD; under KMS the ETag is not the content's MD5."""
    md5 = sdk.put_object(f"{contract_prefix}plain", b"data").etag
    for algorithm, same in (("AES256", True), ("KMS", False)):
        key, headers = f"{contract_prefix}{algorithm}", {"x-oss-server-side-encryption": algorithm}
        try:
            put = sdk.put_object(key, b"data", headers=headers)
        except oss2.exceptions.AccessDenied:
            pytest.skip("the key may not use the key management service")
        head = sdk.head_object(key)
        assert put.headers["x-oss-server-side-encryption"] == algorithm
        assert head.headers["x-oss-server-side-encryption"] == algorithm
        assert (put.etag == md5) is same
        assert ("x-oss-server-side-encryption-key-id" in head.headers) is not same
        assert head.etag == put.etag
    unknown = {"x-oss-server-side-encryption": "x"}
    assert fails(sdk.put_object, f"{contract_prefix}x", b"", headers=unknown)[0] == 400
    upload = sdk.init_multipart_upload(f"{contract_prefix}parts").upload_id
    aes = {"x-oss-server-side-encryption": "AES256"}
    assert fails(sdk.upload_part, f"{contract_prefix}parts", upload, 1, b"", headers=aes) == (400, "InvalidArgument")
    sdk.abort_multipart_upload(f"{contract_prefix}parts", upload)


def test_bucket_information(own_store: ObjectStore) -> None:
    """getbucketinfo, getbucketstat: versioning, the encryption rule, and objects by storage class."""
    sdk = own_store.sdk
    about = sdk.get_bucket_info()
    assert (about.versioning_status, about.bucket_encryption_rule.sse_algorithm) == (None, None)
    rule = oss2.models.ServerSideEncryptionRule()
    rule.sse_algorithm = "KMS"
    sdk.put_bucket_encryption(rule)
    sdk.put_bucket_versioning(BucketVersioningConfig("Enabled"))
    about = sdk.get_bucket_info()
    assert (about.versioning_status, about.bucket_encryption_rule.sse_algorithm) == ("Enabled", "KMS")
    archived(sdk, "cold", "Archive")
    stat = sdk.get_bucket_stat()
    assert (stat.object_count, stat.archive_storage, stat.archive_object_count) == (1, 4, 1)
    assert (stat.standard_object_count, stat.deep_cold_archive_object_count) == (0, 0)
