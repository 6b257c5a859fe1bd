"""Operations on one object (read, describe, delete, restore) and on the versions of a bucket."""

from __future__ import annotations

from urllib.parse import unquote_plus

import msgspec

from ossconsole.sandbox import listing
from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.api.call import OWNER_XML, Call, Reply, xml_reply
from ossconsole.sandbox.index import Version
from ossconsole.sandbox.records import Attributes, StoredObject
from ossconsole.sandbox.replies import OssError, http_time, invalid_argument, iso_time, restore_status
from ossconsole.sandbox.request import check_preconditions, child_text, children, parse_xml, resolve_range


async def get_versioning(call: Call) -> Reply:
    """GetBucketVersioning: `Enabled`, or an empty document."""
    call.store.bucket(call.bucket)
    status = "Enabled" if call.store.index.versions.enabled(call.bucket) else None
    return xml_reply(xml.document("VersioningConfiguration", xml.elements(Status=status)))


async def put_versioning(call: Call) -> Reply:
    """PutBucketVersioning: enables versioning. Raises NotImplemented for Suspended."""
    call.store.bucket(call.bucket)
    wanted = child_text(parse_xml(await call.xml_body(), "VersioningConfiguration"), "Status")
    if wanted not in {"Enabled", "Suspended"}:
        raise OssError("MalformedXML", "Status must be Enabled or Suspended.")
    if wanted == "Suspended":
        raise OssError("NotImplemented", "The sandbox cannot suspend versioning.")
    call.store.index.enable_versioning(call.bucket)
    return Reply(200)


async def list_versions(call: Call) -> Reply:
    """ListObjectVersions (GetBucketVersions), without `delimiter`; empty for a bucket without versioning."""
    call.store.bucket(call.bucket)
    query = call.query
    if query.get("delimiter"):
        raise OssError("NotImplemented", "The sandbox lists versions without a delimiter only.")
    (encode, encoding), limit = listing.encoding(query), listing.max_keys(query)
    prefix, key_marker, id_marker = (query.get(name, "") for name in ("prefix", "key-marker", "version-id-marker"))
    found = call.store.index.versions.list(
        call.bucket, prefix=prefix, key_marker=key_marker, id_marker=id_marker, limit=limit + 1
    )
    page, more = found[:limit], len(found) > limit
    fields = [
        *xml.elements(Name=call.bucket, Prefix=encode(prefix), KeyMarker=encode(key_marker)),
        *xml.elements(VersionIdMarker=id_marker, MaxKeys=limit, Delimiter=""),
        *encoding,
        *xml.elements(IsTruncated=more),
    ]
    if more:
        fields += xml.elements(NextKeyMarker=encode(page[-1].key), NextVersionIdMarker=page[-1].id)
    fields += [_described(version, encode(version.key)) for version in page]
    return xml_reply(xml.document("ListVersionsResult", fields))


def _described(version: Version, key: str) -> str:
    modified = iso_time(version.modified)
    fields = xml.elements(Key=key, VersionId=version.id, IsLatest=version.is_latest, LastModified=modified)
    if version.is_marker:
        return xml.parent("DeleteMarker", [*fields, OWNER_XML])
    kind, size, storage_class = version.type, version.size, version.storage_class
    content = xml.elements(ETag=f'"{version.etag}"', Type=kind, Size=size, StorageClass=storage_class)
    return xml.parent("Version", [*fields, OWNER_XML, *content])


def delete_marker(call: Call, key: str) -> list[str]:
    """The elements with which a batch delete reports the delete marker of `key`; none without versioning."""
    versions = call.store.index.versions
    if not versions.enabled(call.bucket):
        return []
    return xml.elements(DeleteMarker=True, DeleteMarkerVersionId=versions.latest(call.bucket, key))


def version_headers(call: Call) -> dict[str, str]:
    """The header with the version id of the object; none where the bucket has no versioning."""
    versions = call.store.index.versions
    return {"x-oss-version-id": versions.latest(call.bucket, call.object_key)} if versions.enabled(call.bucket) else {}


OBJECT_ACLS = ("default", "private", "public-read", "public-read-write")
_MAX_TAGS = 10
_DEFAULT_TYPE = "application/octet-stream"
_OVERRIDES = ("content-type", "content-language", "expires", "cache-control", "content-disposition", "content-encoding")


def _stored(call: Call) -> StoredObject:
    return call.store.get(call.bucket, call.object_key)


async def get(call: Call) -> Reply:
    """GetObject, whole or a range, with preconditions. Raises InvalidObjectState for an archived object."""
    stored = _stored(call)
    if not check_preconditions(call.headers, stored):
        return Reply(304, {"ETag": f'"{stored.etag}"', "Last-Modified": http_time(stored.modified)})
    if call.store.archived(stored):
        raise OssError("InvalidObjectState", fields={"ObjectName": stored.key})
    standard = call.headers.get("x-oss-range-behavior") == "standard"
    span = resolve_range(call.headers.get("range"), stored.size, standard=standard)
    headers = object_headers(stored) | version_headers(call)
    for name in _OVERRIDES:
        if override := call.query.get(f"response-{name}"):
            headers[name.title()] = override
    if span.partial:
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{stored.size}"
    cached = call.service.cache_policy(call.kind, call.bucket, stored.key) is not None
    return Reply(206 if span.partial else 200, headers, source=call.service.reader.open(stored, span, cached=cached))


async def head(call: Call) -> Reply:
    """HeadObject, with preconditions."""
    stored = _stored(call)
    if not check_preconditions(call.headers, stored):
        return Reply(304, {"ETag": f'"{stored.etag}"'})
    return Reply(200, object_headers(stored) | version_headers(call), length=stored.size)


async def head_meta(call: Call) -> Reply:
    """GetObjectMeta: ETag, size and time of the last change only."""
    stored = _stored(call)
    headers = {"ETag": f'"{stored.etag}"', "Last-Modified": http_time(stored.modified)}
    return Reply(200, headers, length=stored.size)


def object_headers(stored: StoredObject) -> dict[str, str]:
    """The response headers of an object."""
    headers = {
        "Content-Type": _DEFAULT_TYPE,
        "ETag": f'"{stored.etag}"',
        "Last-Modified": http_time(stored.modified),
        "Accept-Ranges": "bytes",
        "x-oss-object-type": stored.type,
        "x-oss-storage-class": stored.attributes.storage_class,
        "x-oss-hash-crc64ecma": str(stored.crc64),
    }
    for name, value in stored.attributes.headers.items():
        headers[name if name.startswith("x-oss-") else name.title()] = value
    if stored.type == "Appendable":
        headers["x-oss-next-append-position"] = str(stored.size)
    if stored.attributes.tags:
        headers["x-oss-tagging-count"] = str(len(stored.attributes.tags))
    if stored.restored_until is not None:
        headers["x-oss-restore"] = restore_status(stored.restored_until)
    return headers


async def delete(call: Call) -> Reply:
    """DeleteObject; succeeds for an object that does not exist, as on the service."""
    call.store.delete(call.bucket, [call.object_key])
    headers = version_headers(call)
    return Reply(204, headers | ({"x-oss-delete-marker": "true"} if headers else {}))


async def get_acl(call: Call) -> Reply:
    """GetObjectAcl."""
    return xml_reply(acl_document(_stored(call).attributes.acl))


def acl_document(acl: str) -> bytes:
    """The reply to GetBucketAcl and GetObjectAcl."""
    return xml.document("AccessControlPolicy", [OWNER_XML, xml.parent("AccessControlList", xml.elements(Grant=acl))])


async def put_acl(call: Call) -> Reply:
    """PutObjectAcl. Raises InvalidArgument for an unknown ACL."""
    return _changed(call, acl=checked_acl(call.headers.get("x-oss-object-acl", "")))


def checked_acl(acl: str) -> str:
    """Raises InvalidArgument for an unknown ACL."""
    if acl not in OBJECT_ACLS:
        raise invalid_argument("No such object access control exists.", "x-oss-object-acl", acl)
    return acl


async def get_tagging(call: Call) -> Reply:
    """GetObjectTagging."""
    tags = _stored(call).attributes.tags
    shown = [xml.parent("Tag", xml.elements(Key=name, Value=value)) for name, value in tags.items()]
    return xml_reply(xml.document("Tagging", [xml.parent("TagSet", shown)]))


async def put_tagging(call: Call) -> Reply:
    """PutObjectTagging. Raises InvalidArgument for too many or too long tags."""
    root = parse_xml(await call.xml_body(), "Tagging")
    tags = {
        child_text(tag, "Key"): child_text(tag, "Value", "")
        for tag_set in children(root, "TagSet")
        for tag in children(tag_set, "Tag")
    }
    return _changed(call, tags=checked_tags(tags))


async def delete_tagging(call: Call) -> Reply:
    """DeleteObjectTagging."""
    _changed(call, tags={})
    return Reply(204)


def parse_tags(header: str) -> dict[str, str]:
    """The tags of an `x-oss-tagging` header. Raises InvalidArgument."""
    pairs = (pair.partition("=") for pair in header.split("&") if pair)
    return checked_tags({unquote_plus(name): unquote_plus(value) for name, _, value in pairs})


def checked_tags(tags: dict[str, str]) -> dict[str, str]:
    """Raises InvalidArgument where there are too many tags, or one is too long."""
    if len(tags) > _MAX_TAGS or any(not 0 < len(name) <= 128 or len(value) > 256 for name, value in tags.items()):
        raise invalid_argument(f"At most {_MAX_TAGS} tags, names up to 128 and values up to 256 characters.", "Tagging")
    return tags


async def restore(call: Call) -> Reply:
    """RestoreObject: 202 where the object was archived, 200 where it is readable already."""
    stored = _stored(call)
    if stored.attributes.storage_class in ("Standard", "IA"):
        raise OssError("OperationNotSupported", fields={"ObjectName": stored.key})
    body = await call.xml_body()
    days = child_text(parse_xml(body, "RestoreRequest"), "Days", "1") if body else "1"
    if not days.isdecimal() or int(days) < 1:
        raise OssError("MalformedXML", "Days must be a whole number from 1 on.")
    return Reply(202 if call.store.restore(call.bucket, stored, int(days)) else 200)


def _changed(call: Call, **attributes: object) -> Reply:
    """Changes attributes of the object (see `Attributes`); its bytes stay."""
    stored = _stored(call)
    changed: Attributes = msgspec.structs.replace(stored.attributes, **attributes)
    call.store.change(call.bucket, msgspec.structs.replace(stored, attributes=changed))
    return Reply(200)
