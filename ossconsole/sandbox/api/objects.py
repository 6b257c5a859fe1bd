"""Operations on one object: read, describe, delete, its ACL and tags, symbolic links, and the restore of archived ones.

RestoreObject serves tests: an archived object becomes readable after the time that the service documents, see
https://help.aliyun.com/en/oss/developer-reference/restoreobject and .../user-guide/restore-objects-for-access. Which
error a number of days out of range gets is not documented; here it is InvalidArgument.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, unquote_plus

import msgspec

from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.api.call import OWNER_XML, Call, Reply, xml_reply
from ossconsole.sandbox.records import Attributes, StoredObject, check_key
from ossconsole.sandbox.replies import OssError, http_time, invalid_argument
from ossconsole.sandbox.request import (
    check_preconditions,
    child_text,
    children,
    header_value,
    parse_xml,
    resolve_range,
    whole_number,
)


def delete_marker(call: Call, key: str) -> list[str]:
    """The elements with which a batch delete reports the delete marker of `key`; none without versioning."""
    versions = call.store.index.versions
    latest = versions.latest(call.bucket, key) if versions.kept(call.bucket) else None
    return xml.elements(DeleteMarker=True, DeleteMarkerVersionId=latest.id) if latest else []


def version_headers(call: Call) -> dict[str, str]:
    """The header with the version id of the object; none where the bucket has no versioning."""
    versions = call.store.index.versions
    if not versions.kept(call.bucket):
        return {}
    if given := call.query.get("versionId"):
        return {"x-oss-version-id": given}
    latest = versions.latest(call.bucket, call.object_key)
    return {"x-oss-version-id": latest.id} if latest else {}


_TAG = re.compile(r"[\w +\-=.:/]*")
OBJECT_ACLS = ("default", "private", "public-read", "public-read-write")
_MAX_TAGS = 10
SYMLINK = "Symlink"
_DEFAULT_TYPE = "application/octet-stream"
_OVERRIDES = ("content-type", "content-language", "expires", "cache-control", "content-disposition", "content-encoding")


def _stored(call: Call) -> StoredObject:
    """The object, or the version that the request names. Raises NoSuchKey; it says where a delete marker is."""
    try:
        return call.store.version(call.bucket, call.object_key, call.query.get("versionId", ""))
    except OssError as error:
        versions = call.store.index.versions
        latest = versions.latest(call.bucket, call.object_key) if versions.kept(call.bucket) else None
        if error.code != "NoSuchKey" or latest is None:
            raise
        headers = {"x-oss-delete-marker": "true", "x-oss-version-id": latest.id}
        raise OssError("NoSuchKey", fields={"Key": call.object_key}, headers=headers) from error


def _followed(call: Call) -> StoredObject:
    """The object; of a symbolic link with the content of its target.

    "Content-Length, ETag and Content-MD5 are metadata of the target; Last-Modified is the later one of the two; others
    are metadata of the link" (HeadObject). Raises SymlinkTargetNotExist, InvalidTargetType, InvalidObjectState.
    """
    link = _stored(call)
    if link.type != SYMLINK:
        return link
    target = call.store.index.get(call.bucket, link.attributes.symlink)
    if target is None:
        raise OssError("SymlinkTargetNotExist", fields={"ObjectName": link.key})
    if target.type == SYMLINK:
        raise OssError("InvalidTargetType", fields={"ObjectName": link.key})
    if call.incoming.method == "GET" and call.store.archived(target):
        raise OssError("InvalidObjectState", fields={"ObjectName": target.key})
    content = {"blob": target.blob, "size": target.size, "etag": target.etag, "crc64": target.crc64}
    return msgspec.structs.replace(link, **content, modified=max(link.modified, target.modified))


async def get_symlink(call: Call) -> Reply:
    """GetSymlink: the target in `x-oss-symlink-target`. Raises NotSymlink."""
    stored = _stored(call)
    if stored.type != SYMLINK:
        raise OssError("NotSymlink", "The object is not a symbolic link.", fields={"ObjectName": stored.key})
    headers = {"ETag": f'"{stored.etag}"', "Last-Modified": http_time(stored.modified)}
    return Reply(200, headers | {"x-oss-symlink-target": quote(stored.attributes.symlink)} | version_headers(call))


def symlink_target(call: Call) -> str:
    """The target of PutSymlink, which need not exist. Raises InvalidArgument, InvalidObjectName."""
    target = unquote(call.headers.get("x-oss-symlink-target", ""))
    if not target:
        raise invalid_argument("The target is missing.", "x-oss-symlink-target")
    check_key(target)
    return target


async def get(call: Call) -> Reply:
    """GetObject, whole or a range, with preconditions. Raises InvalidObjectState for an archived object."""
    stored = _followed(call)
    if not check_preconditions(call.headers, stored):
        return Reply(304, {"ETag": f'"{stored.etag}"', "Last-Modified": http_time(stored.modified)})
    if call.store.archived(stored):
        raise OssError("InvalidObjectState", fields={"ObjectName": stored.key})
    standard = call.headers.get("x-oss-range-behavior") == "standard"
    span = resolve_range(call.headers.get("range"), stored.size, standard=standard)
    headers = object_headers(call, stored) | version_headers(call)
    for name in _OVERRIDES:
        if override := call.query.get(f"response-{name}"):
            headers[name.title()] = header_value(f"response-{name}", override)
    if span.partial:
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{stored.size}"
    cached = call.service.cache_policy(call.kind, call.bucket, stored.key) is not None
    return Reply(206 if span.partial else 200, headers, source=call.service.reader.open(stored, span, cached=cached))


async def head(call: Call) -> Reply:
    """HeadObject, with preconditions."""
    stored = _followed(call)
    if not check_preconditions(call.headers, stored):
        return Reply(304, {"ETag": f'"{stored.etag}"'})
    return Reply(200, object_headers(call, stored) | version_headers(call), length=stored.size)


async def head_meta(call: Call) -> Reply:
    """GetObjectMeta: ETag, size and time of the last change only."""
    stored = _stored(call)
    headers = {"ETag": f'"{stored.etag}"', "Last-Modified": http_time(stored.modified)}
    return Reply(200, headers | version_headers(call), length=stored.size)


def object_headers(call: Call, stored: StoredObject) -> dict[str, str]:
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
    if restored := stored.restore_status(call.service.clock()):
        headers["x-oss-restore"] = restored
    return headers | stored.attributes.encryption


async def delete(call: Call) -> Reply:
    """DeleteObject; succeeds for an object that does not exist, as on the service. With `versionId` it deletes that
    version."""
    if version_id := call.query.get("versionId", ""):
        is_marker = call.store.delete_version(call.bucket, call.object_key, version_id)
    else:
        call.store.delete(call.bucket, [call.object_key])
        is_marker = True
    headers = version_headers(call)
    return Reply(204, headers | ({"x-oss-delete-marker": "true"} if headers and is_marker else {}))


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
    pairs = [pair.partition("=") for pair in header.split("&") if pair]
    tags = {unquote_plus(name): unquote_plus(value) for name, _, value in pairs}
    if len(tags) < len(pairs):
        raise invalid_argument("A tag is named twice.", "x-oss-tagging", header)
    return checked_tags(tags)


def checked_tags(tags: dict[str, str]) -> dict[str, str]:
    """Raises InvalidArgument where there are too many tags, or one is too long."""
    if len(tags) > _MAX_TAGS or any(not 0 < len(name) <= 128 or len(value) > 256 for name, value in tags.items()):
        raise invalid_argument(f"At most {_MAX_TAGS} tags, names up to 128 and values up to 256 characters.", "Tagging")
    if not all(_TAG.fullmatch(text) for pair in tags.items() for text in pair):
        raise invalid_argument("Tags may have letters, digits, blanks and + - = . _ : / only.", "Tagging")
    return tags


def _changed(call: Call, **attributes: object) -> Reply:
    """Changes attributes of the object (see `Attributes`); its bytes stay."""
    stored = _stored(call)
    changed: Attributes = msgspec.structs.replace(stored.attributes, **attributes)
    changed_object = msgspec.structs.replace(stored, attributes=changed)
    call.store.change(call.bucket, changed_object, call.query.get("versionId", ""))
    return Reply(200, version_headers(call))


# RestoreObject

_HOUR_S = 3600.0
_ARCHIVE_S = 60.0
_MAX_DAYS = {"Archive": 7, "ColdArchive": 365, "DeepColdArchive": 365}
# Seconds until the object is readable: the longest that is documented.
_TIERS = {
    "ColdArchive": {"Expedited": 1 * _HOUR_S, "Standard": 5 * _HOUR_S, "Bulk": 12 * _HOUR_S},
    "DeepColdArchive": {"Expedited": 12 * _HOUR_S, "Standard": 48 * _HOUR_S},
}


async def restore(call: Call) -> Reply:
    """RestoreObject: 202 where the object was archived, 200 where it is readable already, 409 in between."""
    version_id = call.query.get("versionId", "")
    stored = call.store.version(call.bucket, call.object_key, version_id)
    storage_class = stored.attributes.storage_class
    if storage_class not in _MAX_DAYS:
        raise OssError("OperationNotSupported", fields={"ObjectName": stored.key})
    days, tier = _restore_days_and_tier(await call.xml_body(), storage_class)
    wait_s = _TIERS[storage_class][tier] if tier else _ARCHIVE_S
    fresh = call.store.restore(call.bucket, stored, days=days, wait_s=wait_s, version_id=version_id)
    return Reply(202 if fresh else 200, {"x-oss-object-restore-priority": tier} if tier else {})


def _restore_days_and_tier(body: bytes, storage_class: str) -> tuple[int, str]:
    """Days and tier ("" for Archive, which has none). An empty body stands for one day and the usual tier."""
    tiers = _TIERS.get(storage_class, {})
    usual = "Standard" if tiers else ""
    if not body:
        return 1, usual
    root = parse_xml(body, "RestoreRequest")
    text = child_text(root, "Days")
    days = whole_number(text)
    if days is None:
        raise OssError("MalformedXML", "Days must be a whole number.")
    if not 1 <= days <= _MAX_DAYS[storage_class]:
        raise invalid_argument(f"Days must be 1 to {_MAX_DAYS[storage_class]} for {storage_class}.", "Days", text)
    parameters = next(children(root, "JobParameters"), None)
    if parameters is None:
        return days, usual
    if not tiers:
        raise OssError("MalformedXML", "JobParameters are for Cold Archive and Deep Cold Archive only.")
    tier = child_text(parameters, "Tier", usual)
    if tier not in tiers:
        raise invalid_argument(f"{storage_class} has no such tier.", "Tier", tier, ec="0016-00000703")
    return days, tier
