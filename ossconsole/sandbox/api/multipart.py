"""Multipart uploads: begin, parts, parts copied from objects, lists, complete, abort."""

from __future__ import annotations

import asyncio
import re
from xml.etree.ElementTree import Element

from ossconsole.sandbox import listing
from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.api.call import Call, Reply, xml_reply
from ossconsole.sandbox.api.objects import version_headers
from ossconsole.sandbox.api.rules import refuse_encryption
from ossconsole.sandbox.api.writes import attributes_of, copied_version, copy_source, forbids_overwrite, receive_body
from ossconsole.sandbox.records import Upload
from ossconsole.sandbox.replies import OssError, invalid_argument, iso_time
from ossconsole.sandbox.request import child_text, children, parse_xml, whole_number

MAX_PARTS = 10_000
_COPY_RANGE = re.compile(r"bytes=(\d{1,19})-(\d{0,19})", re.ASCII)


async def begin(call: Call) -> Reply:
    """InitiateMultipartUpload."""
    upload = call.store.begin_upload(call.bucket, call.object_key, attributes_of(call))
    encode, encoding = listing.encoding(call.query)
    fields = xml.elements(Bucket=call.bucket, Key=encode(call.object_key), UploadId=upload.id)
    reply = xml_reply(xml.document("InitiateMultipartUploadResult", [*fields, *encoding]))
    reply.headers |= upload.attributes.encryption
    return reply


def _part_number(call: Call) -> int:
    number = whole_number(call.query.get("partNumber", ""))
    if number is None or not 1 <= number <= MAX_PARTS:
        raise invalid_argument(f"Part number must be 1 to {MAX_PARTS}.", "partNumber", call.query.get("partNumber", ""))
    return number


def _upload(call: Call) -> Upload:
    call.store.bucket(call.bucket)
    return call.store.index.upload(call.bucket, call.object_key, call.query["uploadId"])


async def put_part(call: Call) -> Reply:
    """UploadPart. Raises NoSuchUpload, InvalidArgument, InvalidDigest."""
    number, upload = _part_number(call), _upload(call)
    refuse_encryption(call)
    blob = (await receive_body(call)).finish()
    call.store.put_part(call.bucket, call.object_key, upload.id, number, blob)
    headers = {"ETag": f'"{blob.md5}"', "x-oss-hash-crc64ecma": str(blob.crc64)}
    return Reply(200, headers | upload.attributes.encryption)


async def copy_part(call: Call) -> Reply:
    """UploadPartCopy: a part from an object, or from a range of it."""
    number, upload, source = _part_number(call), _upload(call), copy_source(call)
    version = copied_version(call)
    start, length = _copy_span(call.headers.get("x-oss-copy-source-range"), source.size)
    blob = await asyncio.to_thread(call.store.blobs.join, [(source.blob, start, length)])
    part = call.store.put_part(call.bucket, call.object_key, upload.id, number, blob)
    fields = xml.elements(LastModified=iso_time(part.modified), ETag=f'"{blob.md5}"')
    reply = xml_reply(xml.document("CopyPartResult", fields))
    reply.headers |= {"x-oss-hash-crc64ecma": str(blob.crc64), "ETag": f'"{blob.md5}"'}  # oss2 reads this ETag
    reply.headers |= version
    return reply


def _copy_span(header: str | None, size: int) -> tuple[int, int]:
    """Start and length; without a range, or for one outside the object, the whole object (as the service does)."""
    match = _COPY_RANGE.fullmatch(header) if header else None
    if match is None:
        return 0, size
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1  # without an end: to the object's
    return (first, last - first + 1) if first <= last < size else (0, size)


async def complete(call: Call) -> Reply:
    """CompleteMultipartUpload, from the listed parts or, with `x-oss-complete-all: yes`, from all of them.

    Raises InvalidArgument (UNVERIFIED) for all parts and a list of them (0042-00000216).
    """
    upload = _upload(call)
    refuse_encryption(call)
    body = await call.xml_body()
    wanted = []
    if call.headers.get("x-oss-complete-all", "").lower() == "yes":
        if body:
            raise invalid_argument("There must be no body.", "x-oss-complete-all", "yes", ec="0042-00000216")
    else:
        wanted = [_wanted(node) for node in children(parse_xml(body, "CompleteMultipartUpload"), "Part")]
        if not wanted:
            raise OssError("MalformedXML", "CompleteMultipartUpload names no part.")
    forbid = forbids_overwrite(call)
    stored = await call.store.complete(call.bucket, call.object_key, upload.id, wanted, forbid=forbid)
    call.service.warm(call.kind, call.bucket, stored)
    encode, encoding = listing.encoding(call.query)
    url = f"http://{call.incoming.host}/{call.bucket}/{xml.url(stored.key)}"
    fields = xml.elements(Location=url, Bucket=call.bucket, Key=encode(stored.key), ETag=f'"{stored.etag}"')
    reply = xml_reply(xml.document("CompleteMultipartUploadResult", [*encoding, *fields]))
    reply.headers |= {"ETag": f'"{stored.etag}"', "x-oss-hash-crc64ecma": str(stored.crc64)}
    reply.headers |= upload.attributes.encryption | version_headers(call)
    return reply


def _wanted(node: Element) -> tuple[int, str]:
    number = whole_number(child_text(node, "PartNumber").strip())
    if number is None:
        raise OssError("MalformedXML", "PartNumber is not a number.")
    return number, child_text(node, "ETag").strip().strip('"')


async def abort(call: Call) -> Reply:
    """AbortMultipartUpload. Raises NoSuchUpload."""
    call.store.bucket(call.bucket)
    call.store.abort(call.bucket, call.object_key, call.query["uploadId"])
    return Reply(204)


async def list_parts(call: Call) -> Reply:
    """ListParts: `part-number-marker`, `max-parts`."""
    upload = _upload(call)
    encode, encoding = listing.encoding(call.query)
    limit = listing.max_keys(call.query, "max-parts", listing.MAX_KEYS)
    marker = call.query.get("part-number-marker") or "0"
    after = whole_number(marker)
    if after is None:
        raise invalid_argument("part-number-marker must be a number.", "part-number-marker", marker)
    parts = call.store.index.parts(upload.id, after)
    page = parts[:limit]
    fields = xml.elements(
        Bucket=call.bucket,
        Key=encode(upload.key),
        UploadId=upload.id,
        StorageClass=upload.attributes.storage_class,
        PartNumberMarker=marker,
        NextPartNumberMarker=page[-1].number if page else marker,
        MaxParts=limit,
        IsTruncated=len(parts) > limit,
    )
    for part in page:
        described = xml.elements(
            PartNumber=part.number,
            LastModified=iso_time(part.modified),
            ETag=f'"{part.blob.md5}"',
            HashCrc64ecma=part.blob.crc64,
            Size=part.blob.size,
        )
        fields.append(xml.parent("Part", described))
    return xml_reply(xml.document("ListPartsResult", [*encoding, *fields]))


async def list_uploads(call: Call) -> Reply:
    """ListMultipartUploads: `prefix`, `delimiter`, `key-marker`, `upload-id-marker`, `max-uploads`."""
    call.store.bucket(call.bucket)
    query = call.query
    encode, encoding = listing.encoding(query)
    limit = listing.max_keys(query, "max-uploads", listing.MAX_KEYS)
    prefix, delimiter = listing.name_of(query, "prefix"), listing.name_of(query, "delimiter")
    marker, id_marker = listing.name_of(query, "key-marker"), query.get("upload-id-marker", "")
    entries = _upload_entries(call, prefix, delimiter, marker, id_marker)
    page, more = entries[:limit], len(entries) > limit
    last = page[-1] if page else ""
    fields = xml.elements(
        Bucket=call.bucket,
        KeyMarker=encode(marker),
        UploadIdMarker=id_marker,
        NextKeyMarker=encode(last.key if isinstance(last, Upload) else last) if more else "",
        NextUploadIdMarker=last.id if more and isinstance(last, Upload) else "",
        Delimiter=encode(delimiter),
        Prefix=encode(prefix),
        MaxUploads=limit,
        IsTruncated=more,
    )
    for entry in page:
        if isinstance(entry, str):
            fields.append(xml.parent("CommonPrefixes", xml.elements(Prefix=encode(entry))))
            continue
        described = xml.elements(
            Key=encode(entry.key),
            UploadId=entry.id,
            StorageClass=entry.attributes.storage_class,
            Initiated=iso_time(entry.started),
        )
        fields.append(xml.parent("Upload", described))
    return xml_reply(xml.document("ListMultipartUploadsResult", [*encoding, *fields]))


def _upload_entries(call: Call, prefix: str, delimiter: str, marker: str, id_marker: str) -> list[Upload | str]:
    """Uploads and common prefixes after the markers, in order."""
    entries: list[Upload | str] = []
    for upload in call.store.index.uploads(call.bucket):
        key = upload.key
        if not key.startswith(prefix) or key < marker or (key == marker and not (id_marker and upload.id > id_marker)):
            continue
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            entries.append(upload)
            continue
        common = key[: cut + len(delimiter)]
        if common != marker and (not entries or entries[-1] != common):
            entries.append(common)
    return entries
