"""Multipart uploads: begin, parts, parts copied from objects, lists, complete, abort."""

from __future__ import annotations

import asyncio
import re
from xml.etree.ElementTree import Element

from ossconsole.sandbox import listing
from ossconsole.sandbox import replies as xml
from ossconsole.sandbox import request as requestxml
from ossconsole.sandbox.api.call import Call, Reply, xml_reply
from ossconsole.sandbox.api.objects import version_headers
from ossconsole.sandbox.api.writes import attributes_of, copy_source, forbids_overwrite, receive
from ossconsole.sandbox.records import Upload
from ossconsole.sandbox.replies import OssError, invalid_argument, iso_time

MAX_PARTS = 10_000
_COPY_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


async def begin(call: Call) -> Reply:
    upload = call.store.begin_upload(call.bucket, call.object_key, attributes_of(call))
    encode = listing.encoder(call.query)
    fields = [
        xml.element("Bucket", call.bucket),
        xml.element("Key", encode(call.object_key)),
        xml.element("UploadId", upload.id),
        *_encoding(call),
    ]
    return xml_reply(xml.document("InitiateMultipartUploadResult", fields))


def _encoding(call: Call) -> list[str]:
    return [xml.element("EncodingType", "url")] if call.query.get("encoding-type") else []


def _part_number(call: Call) -> int:
    given = call.query["partNumber"]
    if not given.isdecimal() or not 1 <= int(given) <= MAX_PARTS:
        raise invalid_argument(f"Part number must be 1 to {MAX_PARTS}.", "partNumber", given)
    return int(given)


def _upload(call: Call) -> Upload:
    call.store.bucket(call.bucket)
    return call.store.index.upload(call.bucket, call.object_key, call.query["uploadId"])


async def put_part(call: Call) -> Reply:
    number, upload = _part_number(call), _upload(call)
    blob = (await receive(call)).finish()
    call.store.put_part(call.bucket, call.object_key, upload.id, number, blob)
    return Reply(200, {"ETag": f'"{blob.md5}"', "x-oss-hash-crc64ecma": str(blob.crc64)})


async def copy_part(call: Call) -> Reply:
    number, upload, source = _part_number(call), _upload(call), copy_source(call)
    start, length = _copy_span(call.headers.get("x-oss-copy-source-range"), source.size)
    blob = await asyncio.to_thread(call.store.blobs.join, [(source.blob, start, length)])
    part = call.store.put_part(call.bucket, call.object_key, upload.id, number, blob)
    fields = [xml.element("LastModified", iso_time(part.modified)), xml.element("ETag", f'"{blob.md5}"')]
    reply = xml_reply(xml.document("CopyPartResult", fields))
    reply.headers["x-oss-hash-crc64ecma"] = str(blob.crc64)
    reply.headers["ETag"] = f'"{blob.md5}"'  # where oss2 looks for it
    return reply


def _copy_span(header: str | None, size: int) -> tuple[int, int]:
    """Start and length; without a range, or one out of the object, the whole of it (as the service does)."""
    match = _COPY_RANGE.fullmatch(header) if header else None
    if match is None or not int(match[1]) <= int(match[2]) < size:
        return 0, size
    return int(match[1]), int(match[2]) - int(match[1]) + 1


async def complete(call: Call) -> Reply:
    upload = _upload(call)
    body = await call.xml_body()
    if call.headers.get("x-oss-complete-all", "").lower() == "yes":
        wanted = []
    else:
        root = requestxml.parse(body, "CompleteMultipartUpload")
        wanted = [_wanted(node) for node in requestxml.children(root, "Part")]
        if not wanted:
            raise OssError("MalformedXML", "CompleteMultipartUpload names no part.")
    forbid = forbids_overwrite(call)
    stored = await call.store.complete(call.bucket, call.object_key, upload.id, wanted, forbid=forbid)
    call.service.warm(call.kind, call.bucket, stored)
    encode = listing.encoder(call.query)
    fields = [
        *_encoding(call),
        xml.element("Location", f"http://{call.incoming.host}/{call.bucket}/{xml.url(stored.key)}"),
        xml.element("Bucket", call.bucket),
        xml.element("Key", encode(stored.key)),
        xml.element("ETag", f'"{stored.etag}"'),
    ]
    reply = xml_reply(xml.document("CompleteMultipartUploadResult", fields))
    reply.headers |= {"ETag": f'"{stored.etag}"', "x-oss-hash-crc64ecma": str(stored.crc64)} | version_headers(call)
    return reply


def _wanted(node: Element) -> tuple[int, str]:
    number = requestxml.child_text(node, "PartNumber").strip()
    if not number.isdecimal():
        raise OssError("MalformedXML", "PartNumber is not a number.")
    return int(number), requestxml.child_text(node, "ETag").strip().strip('"')


async def abort(call: Call) -> Reply:
    call.store.bucket(call.bucket)
    call.store.abort(call.bucket, call.object_key, call.query["uploadId"])
    return Reply(204)


async def list_parts(call: Call) -> Reply:
    upload, encode = _upload(call), listing.encoder(call.query)
    limit = listing.max_keys(call.query, "max-parts", listing.MAX_KEYS)
    marker = call.query.get("part-number-marker") or "0"
    if not marker.isdecimal():
        raise invalid_argument("part-number-marker must be a number.", "part-number-marker", marker)
    parts = call.store.index.parts(upload.id, int(marker))
    page = parts[:limit]
    fields = [
        *_encoding(call),
        xml.element("Bucket", call.bucket),
        xml.element("Key", encode(upload.key)),
        xml.element("UploadId", upload.id),
        xml.element("StorageClass", upload.attributes.storage_class),
        xml.element("PartNumberMarker", marker),
        xml.element("NextPartNumberMarker", page[-1].number if page else marker),
        xml.element("MaxParts", limit),
        xml.element("IsTruncated", len(parts) > limit),
    ]
    for part in page:
        children = [
            xml.element("PartNumber", part.number),
            xml.element("LastModified", iso_time(part.modified)),
            xml.element("ETag", f'"{part.blob.md5}"'),
            xml.element("HashCrc64ecma", part.blob.crc64),
            xml.element("Size", part.blob.size),
        ]
        fields.append(xml.parent("Part", children))
    return xml_reply(xml.document("ListPartsResult", fields))


async def list_uploads(call: Call) -> Reply:
    call.store.bucket(call.bucket)
    query, encode = call.query, listing.encoder(call.query)
    limit = listing.max_keys(query, "max-uploads", listing.MAX_KEYS)
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    marker, id_marker = query.get("key-marker", ""), query.get("upload-id-marker", "")
    entries = _upload_entries(call, prefix, delimiter, marker, id_marker)
    page, more = entries[:limit], len(entries) > limit
    last = page[-1] if page else ""
    fields = [
        *_encoding(call),
        xml.element("Bucket", call.bucket),
        xml.element("KeyMarker", encode(marker)),
        xml.element("UploadIdMarker", id_marker),
        xml.element("NextKeyMarker", encode(last.key if isinstance(last, Upload) else last) if more else ""),
        xml.element("NextUploadIdMarker", last.id if more and isinstance(last, Upload) else ""),
        xml.element("Delimiter", encode(delimiter)),
        xml.element("Prefix", encode(prefix)),
        xml.element("MaxUploads", limit),
        xml.element("IsTruncated", more),
    ]
    for entry in page:
        if isinstance(entry, Upload):
            initiated = xml.element("Initiated", iso_time(entry.started))
            identity = [xml.element("Key", encode(entry.key)), xml.element("UploadId", entry.id)]
            storage = xml.element("StorageClass", entry.attributes.storage_class)
            fields.append(xml.parent("Upload", [*identity, storage, initiated]))
        else:
            fields.append(xml.parent("CommonPrefixes", [xml.element("Prefix", encode(entry))]))
    return xml_reply(xml.document("ListMultipartUploadsResult", fields))


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
