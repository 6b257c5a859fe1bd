"""Operations that make an object: put, copy, append and symbolic links."""

from __future__ import annotations

import base64
import binascii
import contextlib

import msgspec

from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.api.call import Call, Reply, xml_reply
from ossconsole.sandbox.api.objects import SYMLINK, checked_acl, parse_tags, symlink_target, version_headers
from ossconsole.sandbox.api.rules import encryption_of
from ossconsole.sandbox.blobs import BlobWriter
from ossconsole.sandbox.keys import Permission, authorise
from ossconsole.sandbox.records import Attributes, StoredObject
from ossconsole.sandbox.replies import OssError, http_time, invalid_argument, iso_time
from ossconsole.sandbox.request import CONDITIONS, COPY_PREFIX, check_preconditions, parse_copy_source, whole_number

STORAGE_CLASSES = ("Standard", "IA", "Archive", "ColdArchive", "DeepColdArchive")
_MAX_PUT_BYTES = 5 << 30
_MAX_CONVERTED_BYTES = 1 << 30
_MAX_META_BYTES = 8 << 10
_KEPT = frozenset(
    {"cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires"}
)


async def put(call: Call) -> Reply:
    """PutObject. It does not support conditions: NotImplemented, with status 400 (0017-00000245)."""
    call.store.bucket(call.bucket)
    for name in CONDITIONS & call.headers.keys():
        raise OssError("NotImplemented", status=400, ec="0017-00000245", fields={"Header": name})
    attributes, forbid = attributes_of(call), forbids_overwrite(call)
    writer = await receive_body(call)
    blob = writer.finish()
    stored = call.store.put(call.bucket, call.object_key, blob, attributes, forbid=forbid)
    call.service.warm(call.kind, call.bucket, stored)
    headers = {
        "ETag": f'"{stored.etag}"',
        "x-oss-hash-crc64ecma": str(stored.crc64),
        "Content-MD5": base64.b64encode(bytes.fromhex(blob.md5)).decode(),
    }
    return Reply(200, headers | attributes.encryption | version_headers(call))


async def put_symlink(call: Call) -> Reply:
    """PutSymlink: an object without content of its own. Its size in listings is not documented; here it is 0."""
    call.store.bucket(call.bucket)
    attributes = msgspec.structs.replace(attributes_of(call), symlink=symlink_target(call))
    blob, forbid = call.store.blobs.writer().finish(), forbids_overwrite(call)
    stored = call.store.put(call.bucket, call.object_key, blob, attributes, forbid=forbid, kind=SYMLINK)
    return Reply(200, {"ETag": f'"{stored.etag}"'} | version_headers(call))


async def receive_body(call: Call) -> BlobWriter:
    """Writes the request's body to disk and checks it. Raises EntityTooLarge, InvalidDigest, MissingContentLength."""
    headers = call.headers
    if "content-length" not in headers and "transfer-encoding" not in headers:
        raise OssError("MissingContentLength")
    expected = content_md5(headers["content-md5"]) if "content-md5" in headers else None
    writer = call.store.blobs.writer()
    try:
        await _write_body(call, writer, expected)
    except BaseException:
        writer.discard()
        raise
    return writer


async def _write_body(call: Call, writer: BlobWriter, expected_md5: bytes | None) -> None:
    async for data in call.content.iter_any():
        writer.write(data)
        if writer.size > _MAX_PUT_BYTES:
            raise OssError("EntityTooLarge", fields={"MaxSizeAllowed": str(_MAX_PUT_BYTES)})
        await call.service.origin.transfer(len(data))
    if expected_md5 not in (None, writer.md5()):
        raise OssError("InvalidDigest", "The Content-MD5 you specified did not match what we received.")


def content_md5(header: str) -> bytes:
    """The digest in a Content-MD5 header. Raises InvalidDigest."""
    with contextlib.suppress(binascii.Error, ValueError):
        if len(digest := base64.b64decode(header, validate=True)) == 16:
            return digest
    raise OssError("InvalidDigest", fields={"Content-MD5": header})


def forbids_overwrite(call: Call) -> bool:
    """Whether `x-oss-forbid-overwrite` is true."""
    return call.headers.get("x-oss-forbid-overwrite", "").lower() == "true"


def attributes_of(call: Call) -> Attributes:
    """The attributes that the request's headers set on the object. Raises InvalidArgument."""
    headers = call.headers
    kept = {name: value for name, value in headers.items() if name in _KEPT or name.startswith("x-oss-meta-")}
    size = sum(len(name) + len(value.encode()) for name, value in kept.items())
    if size > _MAX_META_BYTES:
        raise invalid_argument("The metadata is larger than 8 KiB.", "x-oss-meta-*", str(size))
    storage_class = headers.get("x-oss-storage-class") or call.store.bucket(call.bucket).storage_class
    if storage_class not in STORAGE_CLASSES:
        raise invalid_argument("No such storage class.", "x-oss-storage-class", storage_class)
    return Attributes(
        headers=kept,
        storage_class=storage_class,
        acl=checked_acl(headers.get("x-oss-object-acl", "default")),
        tags=parse_tags(headers.get("x-oss-tagging", "")),
        encryption=encryption_of(call),
    )


def copy_source(call: Call) -> StoredObject:
    """The object that `x-oss-copy-source` names.

    Raises AccessDenied, PreconditionFailed, InvalidObjectState for an archived object, and for a version that is a
    delete marker NoSuchKey from CopyObject, InvalidArgument from UploadPartCopy (the status is documented).
    """
    target, version_id = parse_copy_source(call.headers["x-oss-copy-source"])
    authorise(call.store, Permission.READ, call.key, target, call.incoming)
    try:
        stored = call.store.version(target.bucket, target.key, version_id)
    except OssError as error:
        if error.code != "MethodNotAllowed":
            raise
        code = "InvalidArgument" if "uploadId" in call.query else "NoSuchKey"
        raise OssError(code, "The version is a delete marker.", fields={"Key": target.key}) from error
    if not check_preconditions(call.headers, stored, prefix=COPY_PREFIX):
        raise OssError("PreconditionFailed", status=304)
    if call.store.archived(stored):
        raise OssError("InvalidObjectState", fields={"ObjectName": stored.key})
    return stored


def copied_version(call: Call) -> dict[str, str]:
    """The header with the version of the source that was copied; none where its bucket has no versioning."""
    source, version_id = parse_copy_source(call.headers["x-oss-copy-source"])
    versions = call.store.index.versions
    latest = versions.latest(source.bucket, source.key) if versions.kept(source.bucket) else None
    return {"x-oss-copy-source-version-id": version_id or latest.id} if latest else {}


async def copy(call: Call) -> Reply:
    """CopyObject: metadata and tags are copied unless their directive is REPLACE.

    "If the source and the target are the same, the value of x-oss-metadata-directive is ignored and the metadata of the
    request are used" (without versioning); by oss2's tests a request without metadata leaves them as they are. An
    appendable object cannot be copied. The codes of this error and of an object that is too large are not documented.
    """
    source, attributes = copy_source(call), attributes_of(call)
    if source.type == "Appendable":
        raise OssError("OperationNotSupported", "Appendable objects cannot be copied.")
    origin = parse_copy_source(call.headers["x-oss-copy-source"])[0]
    limit = copy_limit(source.attributes, attributes, same_bucket=origin.bucket == call.bucket)
    if limit is not None and source.size > limit:
        raise OssError("EntityTooLarge", fields={"MaxSizeAllowed": str(limit)})
    onto_itself = origin == call.target
    replaces = onto_itself and bool(attributes.headers) and not call.store.index.versions.kept(call.bucket)
    attributes = msgspec.structs.replace(attributes, symlink=source.attributes.symlink)
    if call.headers.get("x-oss-metadata-directive", "COPY").upper() != "REPLACE" and not replaces:
        attributes = msgspec.structs.replace(attributes, headers=source.attributes.headers)
    if call.headers.get("x-oss-tagging-directive", "Copy").lower() != "replace":
        attributes = msgspec.structs.replace(attributes, tags=source.attributes.tags)
    forbid = forbids_overwrite(call)
    version = copied_version(call)  # before the copy, which may be onto the source
    stored = call.store.copy(source, call.bucket, call.object_key, attributes, forbid=forbid)
    call.service.warm(call.kind, call.bucket, stored)
    fields = xml.elements(ETag=f'"{stored.etag}"', LastModified=iso_time(stored.modified))
    reply = xml_reply(xml.document("CopyObjectResult", fields))
    reply.headers |= {"ETag": f'"{stored.etag}"', "x-oss-hash-crc64ecma": str(stored.crc64)}
    reply.headers |= attributes.encryption | version_headers(call) | version
    return reply


def copy_limit(source: Attributes, target: Attributes, *, same_bucket: bool) -> int | None:
    """The largest object in bytes that CopyObject copies, None for no limit.

    "If the buckets are the same, and you do not change the encryption method or storage class, the object can be larger
    than 5 GB. If they are different, it cannot be larger than 5 GB." For a change the page of UploadPartCopy is
    followed: it "must be used to copy a file larger than 1 GB".
    """
    if (source.encryption, source.storage_class) != (target.encryption, target.storage_class):
        return _MAX_CONVERTED_BYTES
    return None if same_bucket else _MAX_PUT_BYTES


async def append(call: Call) -> Reply:
    """AppendObject at `position`. Raises PositionNotEqualToLength, ObjectNotAppendable."""
    position = whole_number(call.query.get("position", ""))
    if position is None:
        raise invalid_argument("position must be a whole number.", "position", call.query.get("position", ""))
    # The object gets its attributes with its first bytes; later requests change none.
    attributes = attributes_of(call) if position == 0 else Attributes()
    stored = call.store.append(call.bucket, call.object_key, position, await receive_body(call), attributes)
    headers = {
        "ETag": f'"{stored.etag}"',
        "x-oss-hash-crc64ecma": str(stored.crc64),
        "x-oss-next-append-position": str(stored.size),
        "Last-Modified": http_time(stored.modified),
    }
    return Reply(200, headers | stored.attributes.encryption | version_headers(call))
