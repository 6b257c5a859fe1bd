"""The whole life of multipart uploads."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import oss2
import pytest
from oss2.models import PartInfo

from ossconsole.sandbox.process import SandboxInfo
from tests.sandbox.test_objects import crc64, fails
from tests.sandbox.wire import call

PART = 102_400


def upload_parts(bucket: Any, key: str, parts: list[bytes]) -> tuple[str, list[PartInfo]]:
    upload_id = bucket.init_multipart_upload(key).upload_id
    infos = []
    for number, data in enumerate(parts, 1):
        result = bucket.upload_part(key, upload_id, number, data)
        infos.append(PartInfo(number, result.etag, size=len(data), part_crc=result.crc))
    return upload_id, infos


def test_whole_life(bucket: Any, prefix: str) -> None:
    key, parts = f"{prefix}é", [b"a" * PART, b"b" * PART, b"tail"]
    upload_id, infos = upload_parts(bucket, key, parts)
    assert fails(bucket.get_object, key) == (404, "NoSuchKey")
    assert [upload.key for upload in bucket.list_multipart_uploads(prefix=prefix).upload_list] == [key]
    listed = bucket.list_parts(key, upload_id, max_parts=2)
    assert ([part.part_number for part in listed.parts], listed.is_truncated) == ([1, 2], True)
    rest = bucket.list_parts(key, upload_id, marker=listed.next_marker)
    assert [(part.part_number, part.size, part.etag) for part in rest.parts] == [(3, 4, infos[2].etag)]
    done = bucket.complete_multipart_upload(key, upload_id, infos)
    data = b"".join(parts)
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    assert done.etag == f"{hashlib.md5(digests).hexdigest().upper()}-3"
    assert done.crc == crc64(data)
    assert bucket.get_object(key).read() == data
    assert bucket.head_object(key).object_type == "Multipart"
    assert fails(bucket.complete_multipart_upload, key, upload_id, infos) == (404, "NoSuchUpload")


def test_resumable_upload_of_the_sdk(bucket: Any, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4000)
    store = oss2.ResumableStore(root=str(tmp_path))
    oss2.resumable_upload(
        bucket, f"{prefix}x", str(path), store=store, multipart_threshold=PART, part_size=PART, num_threads=4
    )
    target = tmp_path / "back"
    oss2.resumable_download(
        bucket,
        f"{prefix}x",
        str(target),
        store=oss2.ResumableDownloadStore(root=str(tmp_path)),
        multiget_threshold=PART,
        part_size=PART,
        num_threads=4,
    )
    assert target.read_bytes() == path.read_bytes()


def test_parts_in_parallel_and_again(bucket: Any, prefix: str) -> None:
    key = f"{prefix}x"
    upload_id = bucket.init_multipart_upload(key).upload_id
    parts = [bytes([number]) * PART for number in range(1, 9)]
    bucket.upload_part(key, upload_id, 3, b"first attempt" * PART)
    with ThreadPoolExecutor(8) as pool:
        etags = list(
            pool.map(lambda number: bucket.upload_part(key, upload_id, number, parts[number - 1]).etag, range(1, 9))
        )
    bucket.complete_multipart_upload(key, upload_id, [PartInfo(number, etag) for number, etag in enumerate(etags, 1)])
    assert bucket.get_object(key).read() == b"".join(parts)


def test_abort(bucket: Any, prefix: str) -> None:
    upload_id, infos = upload_parts(bucket, f"{prefix}x", [b"a"])
    bucket.abort_multipart_upload(f"{prefix}x", upload_id)
    assert fails(bucket.upload_part, f"{prefix}x", upload_id, 2, b"") == (404, "NoSuchUpload")
    assert fails(bucket.complete_multipart_upload, f"{prefix}x", upload_id, infos) == (404, "NoSuchUpload")
    assert fails(bucket.abort_multipart_upload, f"{prefix}x", upload_id) == (404, "NoSuchUpload")
    assert bucket.list_multipart_uploads(prefix=prefix).upload_list == []


def test_refused_completions(bucket: Any, info: SandboxInfo, prefix: str) -> None:
    key = f"{prefix}x"
    upload_id, infos = upload_parts(bucket, key, [b"small", b"a" * PART, b"tail"])
    complete = bucket.complete_multipart_upload
    # oss2 sorts the parts it is given, so the wrong order has to be written by hand.
    reverse = "".join(
        f"<Part><PartNumber>{part.part_number}</PartNumber><ETag>{part.etag}</ETag></Part>" for part in infos[::-1]
    )
    body = f"<CompleteMultipartUpload>{reverse}</CompleteMultipartUpload>".encode()
    assert call(info, "POST", key, query={"uploadId": upload_id}, body=body).code == "InvalidPartOrder"
    assert fails(complete, key, upload_id, infos) == (400, "EntityTooSmall")
    assert fails(complete, key, upload_id, [PartInfo(2, "0" * 32)]) == (400, "InvalidPart")
    assert fails(complete, key, upload_id, [PartInfo(9, infos[0].etag)]) == (400, "InvalidPart")
    assert call(info, "POST", key, query={"uploadId": upload_id}, body=b"<x/>").code == "MalformedXML"
    assert fails(bucket.upload_part, key, upload_id, 10_001, b"") == (400, "InvalidArgument")
    assert fails(bucket.upload_part, key, "nosuch", 1, b"") == (404, "NoSuchUpload")
    complete(key, upload_id, infos[1:])
    assert bucket.get_object(key).read() == b"a" * PART + b"tail"


def test_complete_all(bucket: Any, info: SandboxInfo, prefix: str) -> None:
    upload_id, _ = upload_parts(bucket, f"{prefix}x", [b"a" * PART, b"tail"])
    headers = {"x-oss-complete-all": "yes"}
    answer = call(info, "POST", f"{prefix}x", query={"uploadId": upload_id}, headers=headers, body=b"")
    assert answer.status == 200
    assert bucket.get_object(f"{prefix}x").read() == b"a" * PART + b"tail"


@pytest.mark.parametrize("delimiter", ["", "/"])
def test_listing_uploads_page_by_page(bucket: Any, prefix: str, delimiter: str) -> None:
    keys = sorted(f"{prefix}{name}" for name in ("a", "b/1", "b/2", "c"))
    uploads = [(key, bucket.init_multipart_upload(key).upload_id) for key in [*keys, keys[0]]]
    found: list[tuple[str, str]] = []
    prefixes: list[str] = []
    marker, id_marker = "", ""
    while True:
        page = bucket.list_multipart_uploads(
            prefix=prefix, delimiter=delimiter, key_marker=marker, upload_id_marker=id_marker, max_uploads=1
        )
        found += [(upload.key, upload.upload_id) for upload in page.upload_list]
        prefixes += page.prefix_list
        if not page.is_truncated:
            break
        marker, id_marker = page.next_key_marker, page.next_upload_id_marker
    nested = [upload for upload in uploads if "/" in upload[0].removeprefix(prefix)] if delimiter else []
    assert sorted(found) == sorted(set(uploads) - set(nested))
    assert prefixes == ([f"{prefix}b/"] if delimiter else [])
    for key, upload_id in uploads:
        bucket.abort_multipart_upload(key, upload_id)
