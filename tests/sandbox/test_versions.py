"""Buckets that keep versions, through oss2: what overwriting and deleting leave, and how it is listed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oss2
import pytest

from ossconsole.sandbox.process import SandboxInfo, SandboxProcess
from ossconsole.sandbox.records import Attributes
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.store import SandboxStore
from tests.sandbox.conftest import make_bucket
from tests.sandbox.wire import call


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    """Not the one that others share: a bucket with versions cannot be deleted again."""
    with SandboxProcess.start(tmp_path_factory.mktemp("versions"), unshaped=True) as running:
        yield running


@pytest.fixture
def versioned(process: SandboxProcess) -> Any:
    """A bucket of the test's own, which keeps versions from its second object on."""
    bucket = make_bucket(process.info, name=f"versions-{secrets.token_hex(6)}")
    bucket.create_bucket()
    bucket.put_object("old", b"before")
    bucket.put_bucket_versioning(oss2.models.BucketVersioningConfig("Enabled"))
    return bucket


def listed(page: Any) -> list[tuple[str, bool, int | None]]:
    """Key, is latest, and size (None of a marker), by key and newest first as far as the two lists tell."""
    versions = [(v.key, v.is_latest, v.size) for v in page.versions]
    return sorted(versions + [(m.key, m.is_latest, None) for m in page.delete_marker], key=lambda each: each[0])


def test_overwriting_and_deleting_leave_versions(versioned: Any) -> None:
    assert versioned.get_bucket_versioning().status == "Enabled"
    first = versioned.put_object("new", b"1").versionid
    second = versioned.put_object("new", b"22").versionid
    assert first != second
    assert versioned.head_object("new").versionid == second
    versioned.put_object("old", b"after it")
    page = versioned.list_object_versions()
    assert listed(page) == [("new", True, 2), ("new", False, 1), ("old", True, 8), ("old", False, 6)]
    assert [v.versionid for v in page.versions] == [second, first, page.versions[2].versionid, "null"]
    gone = versioned.delete_object("new")
    assert gone.delete_marker
    page = versioned.list_object_versions(prefix="new")
    assert listed(page) == [("new", False, 2), ("new", False, 1), ("new", True, None)]
    assert page.delete_marker[0].versionid == gone.versionid
    assert not versioned.object_exists("new")
    (batch,) = versioned.batch_delete_objects(["old"]).delete_versions
    assert batch.delete_marker
    assert not versioned.list_objects_v2().object_list
    with pytest.raises(oss2.exceptions.ServerError, match="BucketNotEmpty"):
        versioned.delete_bucket()


def test_the_list_continues_within_a_key(versioned: Any) -> None:
    for size in range(3):
        versioned.put_object("a/b", b"x" * size)
    seen, markers = [], {"key_marker": "", "versionid_marker": ""}
    while True:
        page = versioned.list_object_versions(max_keys=2, **markers)
        seen += listed(page)
        if not page.is_truncated:
            break
        markers = {"key_marker": page.next_key_marker, "versionid_marker": page.next_versionid_marker}
    assert seen == [("a/b", True, 2), ("a/b", False, 1), ("a/b", False, 0), ("old", True, 6)]


def test_the_list_continues_after_versions_that_were_deleted(versioned: Any) -> None:
    """Deleting page by page left the older versions of the key with which a page ended."""
    for size in range(1, 6):
        versioned.put_object("a", b"x" * size)
    deleted, markers = [], {"key_marker": "", "versionid_marker": ""}
    while True:
        page = versioned.list_object_versions(prefix="a", max_keys=2, **markers)
        for version in page.versions:
            versioned.delete_object("a", params={"versionId": version.versionid})
            deleted.append(version.size)
        if not page.is_truncated:
            break
        markers = {"key_marker": page.next_key_marker, "versionid_marker": page.next_versionid_marker}
    assert deleted == [5, 4, 3, 2, 1]


def test_a_copy_names_the_version_of_its_source(versioned: Any) -> None:
    """uploadpartcopy: the reply has x-oss-copy-source-version-id."""
    name, header = versioned.bucket_name, "x-oss-copy-source-version-id"
    version = versioned.put_object("old", b"x").versionid
    assert versioned.copy_object(name, "old", "copy").headers[header] == version
    assert versioned.copy_object(name, "old", "old").headers[header] == version
    upload = versioned.init_multipart_upload("parts").upload_id
    part = versioned.upload_part_copy(name, "old", None, "parts", upload, 1, params={"versionId": "null"})
    assert part.headers[header] == "null"


def test_a_marker_of_a_list_is_a_version_of_a_key(versioned: Any, process: SandboxProcess) -> None:
    """0012-00000105 and 0012-00000106."""
    for query, ec in (
        ({"key-marker": "old", "version-id-marker": "%*"}, "0012-00000105"),
        ({"version-id-marker": "null"}, "0012-00000106"),
    ):
        answer = call(process.info, "GET", bucket=versioned.bucket_name, query={"versions": "", **query})
        assert (answer.status, answer.code, answer.headers["x-oss-ec"]) == (400, "InvalidArgument", ec)


def test_a_delete_marker_cannot_be_copied(versioned: Any, process: SandboxProcess) -> None:
    """CopyObject: "If the specified version is a delete marker, OSS returns 404"; UploadPartCopy: 400."""
    marker = versioned.delete_object("old").versionid
    name = versioned.bucket_name
    source = {"x-oss-copy-source": f"/{name}/old?versionId={marker}"}
    answer = call(process.info, "PUT", "copy", bucket=name, headers=source)
    assert (answer.status, answer.code) == (404, "NoSuchKey")
    upload = versioned.init_multipart_upload("copy").upload_id
    query = {"partNumber": "1", "uploadId": upload}
    assert call(process.info, "PUT", "copy", bucket=name, query=query, headers=source).status == 400


def test_changing_the_acl_makes_no_version(versioned: Any) -> None:
    versioned.put_object_acl("old", oss2.OBJECT_ACL_PRIVATE)
    assert listed(versioned.list_object_versions()) == [("old", True, 6)]


def test_unsupported_versioning_operations_are_refused(versioned: Any) -> None:
    with pytest.raises(oss2.exceptions.ServerError, match="NotImplemented"):
        versioned.append_object("log", 0, b"x", headers={"x-oss-traffic-limit": "819200"})


@pytest.mark.parametrize("versioning", [True, False])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_versions_are_grouped_by_a_delimiter(info: SandboxInfo, size: int, *, versioning: bool) -> None:
    """listobjectversions: "names with the same string from the prefix to the delimiter are one of CommonPrefixes"."""
    bucket = make_bucket(info, name=f"grouped-{size}-{versioning}".lower())
    bucket.create_bucket()
    if versioning:
        bucket.put_bucket_versioning(oss2.models.BucketVersioningConfig("Enabled"))
    for key in ("d/a/1", "d/a/2", "d/a/2", "d/b", "d/b", "d/c/x/1", "d/c/y/1", "d/e", "e/1"):
        bucket.put_object(key, b"x")
    if versioning:
        bucket.delete_object("d/c/x/1")
    seen, markers = [], {"key_marker": "", "versionid_marker": ""}
    while True:
        page = bucket.list_object_versions(prefix="d/", delimiter="/", max_keys=size, **markers)
        entries = sorted([*(found.key for found in page.versions), *page.common_prefix])
        assert len(entries) <= size
        assert not page.delete_marker  # the only one is below a common prefix
        seen += entries
        if not page.is_truncated:
            break
        markers = {"key_marker": page.next_key_marker, "versionid_marker": page.next_versionid_marker}
    assert seen == ["d/a/", "d/b", *(["d/b"] if versioning else []), "d/c/", "d/e"]


def test_versions_keep_their_bytes_when_the_folder_is_opened_again(tmp_path: Path) -> None:
    store = SandboxStore(tmp_path)
    store.create_bucket("b")
    writer = store.blobs.writer()
    writer.write(b"first")
    first = store.put("b", "k", writer.finish(), Attributes())
    store.index.set_versioning("b")
    store.delete("b", ["k"])
    store.close()
    again = SandboxStore(tmp_path)
    assert again.index.versions.status("b") == "Enabled"
    assert again.blobs.open(first.blob).read(0, 5) == b"first"
    again.close()


def test_versions_of_an_earlier_release_are_listed_and_deleted(tmp_path: Path) -> None:
    """Its table has no details: the bytes are there, the metadata are not."""
    store = SandboxStore(tmp_path)
    store.create_bucket("b")
    store.index.set_versioning("b")
    for _ in range(2):
        store.put("b", "k", store.blobs.writer().finish(), Attributes())
    store.index._db.execute("ALTER TABLE versions DROP COLUMN details")
    store.close()
    again = SandboxStore(tmp_path)
    newest, oldest = again.index.versions.list("b", prefix="", start=b"", key_marker="", id_marker="", limit=10)
    assert (newest.is_latest, oldest.is_latest) == (True, False)
    with pytest.raises(OssError, match="InternalError"):
        again.version("b", "k", oldest.id)
    again.delete_version("b", "k", oldest.id)
    assert again.get("b", "k").size == 0
    again.close()
