"""Operations on one object (read, describe, delete, restore) and on the versions of a bucket."""

from __future__ import annotations

from urllib.parse import unquote_plus

import msgspec

from ossconsole.sandbox import listing
from ossconsole.sandbox import replies as xml
from ossconsole.sandbox import request as conditions
from ossconsole.sandbox import request as ranges
from ossconsole.sandbox import request as requestxml
from ossconsole.sandbox.api.call import OWNER, Call, Reply, xml_reply
from ossconsole.sandbox.index import Version
from ossconsole.sandbox.records import Attributes, StoredObject
from ossconsole.sandbox.replies import OssError, http_time, invalid_argument, iso_time

_OWNER = xml.parent("Owner", [xml.element("ID", OWNER), xml.element("DisplayName", OWNER)])


async def status(call: Call) -> Reply:
    call.store.bucket(call.bucket)
    kept = call.store.index.versions.kept(call.bucket)
    return xml_reply(xml.document("VersioningConfiguration", [xml.element("Status", "Enabled")] if kept else []))


async def change(call: Call) -> Reply:
    """Switches it on, which is all that is done here."""
    call.store.bucket(call.bucket)
    root = requestxml.parse(await call.xml_body(), "VersioningConfiguration")
    wanted = requestxml.child_text(root, "Status")
    if wanted not in {"Enabled", "Suspended"}:
        raise OssError("MalformedXML", "Status must be Enabled or Suspended.")
    if wanted == "Suspended":
        raise OssError("NotImplemented", "Keeping versions cannot be suspended here.")
    call.store.index.keep_versions(call.bucket)
    return Reply(200)


async def list_versions(call: Call) -> Reply:
    """The versions of a bucket that keeps them; of another, none."""
    call.store.bucket(call.bucket)
    query = call.query
    if query.get("delimiter"):
        raise OssError("NotImplemented", "Versions are listed without a delimiter here.")
    encode, limit = listing.encoder(query), listing.max_keys(query)
    prefix, key_marker, id_marker = (query.get(name, "") for name in ("prefix", "key-marker", "version-id-marker"))
    found = call.store.index.versions.list(
        call.bucket, prefix=prefix, key_marker=key_marker, id_marker=id_marker, limit=limit + 1
    )
    page, more = found[:limit], len(found) > limit
    fields = [
        xml.element("Name", call.bucket),
        xml.element("Prefix", encode(prefix)),
        xml.element("KeyMarker", encode(key_marker)),
        xml.element("VersionIdMarker", id_marker),
        xml.element("MaxKeys", limit),
        xml.element("Delimiter", ""),
        *([xml.element("EncodingType", "url")] if query.get("encoding-type") else []),
        xml.element("IsTruncated", more),
    ]
    if more:
        fields += [xml.element("NextKeyMarker", encode(page[-1].key)), xml.element("NextVersionIdMarker", page[-1].id)]
    fields += [_described(version, encode(version.key)) for version in page]
    return xml_reply(xml.document("ListVersionsResult", fields))


def _described(version: Version, key: str) -> str:
    fields = [
        xml.element("Key", key),
        xml.element("VersionId", version.id),
        xml.element("IsLatest", version.is_latest),
        xml.element("LastModified", iso_time(version.modified)),
        _OWNER,
    ]
    if version.is_marker:
        return xml.parent("DeleteMarker", fields)
    fields += [
        xml.element("ETag", f'"{version.etag}"'),
        xml.element("Type", version.type),
        xml.element("Size", version.size),
        xml.element("StorageClass", version.storage_class),
    ]
    return xml.parent("Version", fields)


def marker(call: Call, key: str) -> list[str]:
    """What a batch delete tells of the marker that it left."""
    versions = call.store.index.versions
    if not versions.kept(call.bucket):
        return []
    version_id = versions.latest(call.bucket, key)
    return [xml.element("DeleteMarker", value=True), xml.element("DeleteMarkerVersionId", version_id)]


def version_headers(call: Call) -> dict[str, str]:
    """The header that tells which version of the object the reply is about; none where the bucket keeps none."""
    versions = call.store.index.versions
    return {"x-oss-version-id": versions.latest(call.bucket, call.object_key)} if versions.kept(call.bucket) else {}


OBJECT_ACLS = ("default", "private", "public-read", "public-read-write")
_MAX_TAGS = 10
_DEFAULT_TYPE = "application/octet-stream"
_OVERRIDES = ("content-type", "content-language", "expires", "cache-control", "content-disposition", "content-encoding")


async def get(call: Call) -> Reply:
    stored = call.store.get(call.bucket, call.object_key)
    if not conditions.check(call.headers, stored):
        return Reply(304, {"ETag": f'"{stored.etag}"', "Last-Modified": http_time(stored.modified)})
    if call.store.frozen(stored):
        raise OssError("InvalidObjectState", fields={"ObjectName": stored.key})
    standard = call.headers.get("x-oss-range-behavior") == "standard"
    span = ranges.resolve(call.headers.get("range"), stored.size, standard=standard)
    headers = describe(stored) | version_headers(call)
    for name in _OVERRIDES:
        if override := call.query.get(f"response-{name}"):
            headers[name.title()] = override
    if span.partial:
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{stored.size}"
    cached = call.service.cache_policy(call.kind, call.bucket, stored.key) is not None
    return Reply(206 if span.partial else 200, headers, source=call.service.reader.open(stored, span, cached=cached))


async def head(call: Call) -> Reply:
    stored = call.store.get(call.bucket, call.object_key)
    if not conditions.check(call.headers, stored):
        return Reply(304, {"ETag": f'"{stored.etag}"'})
    return Reply(200, describe(stored) | version_headers(call), length=stored.size)


async def head_meta(call: Call) -> Reply:
    stored = call.store.get(call.bucket, call.object_key)
    headers = {"ETag": f'"{stored.etag}"', "Last-Modified": http_time(stored.modified)}
    return Reply(200, headers, length=stored.size)


def describe(stored: StoredObject) -> dict[str, str]:
    """The headers that come with an object."""
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
        until = http_time(stored.restored_until)
        headers["x-oss-restore"] = f'ongoing-request="false", expiry-date="{until}"'
    return headers


async def delete(call: Call) -> Reply:
    call.store.delete(call.bucket, [call.object_key])
    headers = version_headers(call)
    return Reply(204, headers | ({"x-oss-delete-marker": "true"} if headers else {}))


async def get_acl(call: Call) -> Reply:
    stored = call.store.get(call.bucket, call.object_key)
    return xml_reply(acl_document(stored.attributes.acl))


def acl_document(acl: str) -> bytes:
    owner = xml.parent("Owner", [xml.element("ID", OWNER), xml.element("DisplayName", OWNER)])
    return xml.document("AccessControlPolicy", [owner, xml.parent("AccessControlList", [xml.element("Grant", acl)])])


async def put_acl(call: Call) -> Reply:
    stored = call.store.get(call.bucket, call.object_key)
    acl = checked_acl(call.headers.get("x-oss-object-acl", ""))
    _change(call, stored, msgspec.structs.replace(stored.attributes, acl=acl))
    return Reply(200)


def checked_acl(acl: str) -> str:
    """Raises InvalidArgument."""
    if acl not in OBJECT_ACLS:
        raise invalid_argument("No such object access control exists.", "x-oss-object-acl", acl)
    return acl


async def get_tagging(call: Call) -> Reply:
    stored = call.store.get(call.bucket, call.object_key)
    tags = [
        xml.parent("Tag", [xml.element("Key", name), xml.element("Value", value)])
        for name, value in stored.attributes.tags.items()
    ]
    return xml_reply(xml.document("Tagging", [xml.parent("TagSet", tags)]))


async def put_tagging(call: Call) -> Reply:
    root = requestxml.parse(await call.xml_body(), "Tagging")
    tags = {
        requestxml.child_text(tag, "Key"): requestxml.child_text(tag, "Value", "")
        for tag_set in requestxml.children(root, "TagSet")
        for tag in requestxml.children(tag_set, "Tag")
    }
    stored = call.store.get(call.bucket, call.object_key)
    _change(call, stored, msgspec.structs.replace(stored.attributes, tags=checked_tags(tags)))
    return Reply(200)


async def delete_tagging(call: Call) -> Reply:
    stored = call.store.get(call.bucket, call.object_key)
    _change(call, stored, msgspec.structs.replace(stored.attributes, tags={}))
    return Reply(204)


def parse_tags(header: str) -> dict[str, str]:
    """The tags of an `x-oss-tagging` header. Raises InvalidArgument."""
    pairs = (pair.partition("=") for pair in header.split("&") if pair)
    return checked_tags({unquote_plus(name): unquote_plus(value) for name, _, value in pairs})


def checked_tags(tags: dict[str, str]) -> dict[str, str]:
    if len(tags) > _MAX_TAGS or any(not 0 < len(name) <= 128 or len(value) > 256 for name, value in tags.items()):
        raise invalid_argument(f"At most {_MAX_TAGS} tags, names up to 128 and values up to 256 characters.", "Tagging")
    return tags


async def restore(call: Call) -> Reply:
    stored = call.store.get(call.bucket, call.object_key)
    if stored.attributes.storage_class in ("Standard", "IA"):
        raise OssError("OperationNotSupported", fields={"ObjectName": stored.key})
    body = await call.xml_body()
    days = requestxml.child_text(requestxml.parse(body, "RestoreRequest"), "Days", "1") if body else "1"
    if not days.isdecimal() or int(days) < 1:
        raise OssError("MalformedXML", "Days must be a whole number from 1 on.")
    return Reply(202 if call.store.restore(call.bucket, stored, int(days)) else 200)


def _change(call: Call, stored: StoredObject, attributes: Attributes) -> None:
    call.store.change(call.bucket, msgspec.structs.replace(stored, attributes=attributes))
