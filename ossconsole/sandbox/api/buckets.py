"""Operations on the service and on buckets: create, list, describe, delete, ACL, and listing and deleting objects."""

from __future__ import annotations

import hashlib
from xml.etree.ElementTree import Element

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.sandbox import listing
from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.accelerator import (
    ZONE_PARAMETER,
    accelerator_document,
    encoded_accelerators,
    in_zone,
    parse_accelerator,
)
from ossconsole.sandbox.api.call import OWNER_XML, Call, Reply, xml_reply
from ossconsole.sandbox.api.objects import acl_document, delete_marker
from ossconsole.sandbox.api.rules import bucket_info
from ossconsole.sandbox.api.writes import STORAGE_CLASSES, content_md5
from ossconsole.sandbox.keys import Permission
from ossconsole.sandbox.records import Bucket, check_bucket, check_key
from ossconsole.sandbox.replies import OssError, invalid_argument, iso_time
from ossconsole.sandbox.request import child_text, children, escape_for_xml, parse_xml, unescape

BUCKET_ACLS = ("private", "public-read", "public-read-write")


async def list_buckets(call: Call) -> Reply:
    """ListBuckets (GetService): `prefix`, `marker`, `max-keys`."""
    prefix, marker = call.query.get("prefix", ""), call.query.get("marker", "")
    limit = listing.max_keys(call.query)
    found = [bucket for bucket in call.store.index.buckets() if bucket.name.startswith(prefix) and bucket.name > marker]
    page, more = found[:limit], len(found) > limit
    next_marker = page[-1].name if more else None
    fields = xml.elements(Prefix=prefix, Marker=marker, MaxKeys=limit, IsTruncated=more, NextMarker=next_marker)
    buckets = xml.parent("Buckets", [xml.parent("Bucket", _described(call, bucket)) for bucket in page])
    return xml_reply(xml.document("ListAllMyBucketsResult", [*fields, OWNER_XML, buckets]))


def _described(call: Call, bucket: Bucket) -> list[str]:
    # The connector's form of the address, which composes with this bucket's name alone; others are path style.
    endpoint = f"{'0.0.1' if bucket.name == '127' else '127.0.0.1'}:{call.service.port}"
    return xml.elements(
        Name=bucket.name,
        CreationDate=iso_time(bucket.created),
        Location=f"oss-{call.service.region}",
        Region=call.service.region,
        ExtranetEndpoint=endpoint,
        IntranetEndpoint=endpoint,
        StorageClass=bucket.storage_class,
    )


async def create(call: Call) -> Reply:
    """PutBucket; for a bucket that exists, only its ACL changes.

    Raises BucketAlreadyExists for another storage class ("the storage class of an existing bucket cannot be changed").
    """
    check_bucket(call.bucket)
    existing = call.store.buckets.get(call.bucket)
    acl = _acl(call, existing)
    storage_class = existing.storage_class if existing else "Standard"
    if body := await call.xml_body():
        storage_class = child_text(parse_xml(body, "CreateBucketConfiguration"), "StorageClass", storage_class)
    if storage_class not in STORAGE_CLASSES:
        raise invalid_argument("No such storage class.", "StorageClass", storage_class)
    if existing is not None:
        if storage_class != existing.storage_class:
            raise OssError("BucketAlreadyExists", "Cannot modify existing bucket's storage class.")
        call.store.put_bucket(msgspec.structs.replace(existing, acl=acl))
        return Reply(200)
    call.store.create_bucket(call.bucket, acl=acl, storage_class=storage_class)
    return Reply(200, {"Location": f"/{call.bucket}"})


def _acl(call: Call, existing: Bucket | None) -> str:
    """The ACL of a request: without one it stays as it is (documented for PutBucketAcl, UNVERIFIED for PutBucket)."""
    acl = call.headers.get("x-oss-acl") or (existing.acl if existing else "private")
    if acl not in BUCKET_ACLS:
        raise invalid_argument("No such bucket access control exists.", "x-oss-acl", acl)
    return acl


async def delete(call: Call) -> Reply:
    """DeleteBucket. Raises NoSuchBucket, BucketNotEmpty."""
    call.store.delete_bucket(call.bucket)
    return Reply(204)


async def info(call: Call) -> Reply:
    """GetBucketInfo."""
    bucket = call.store.bucket(call.bucket)
    fixed = xml.elements(DataRedundancyType="LRS", AccessMonitor="Disabled", BlockPublicAccess=False)
    acl = xml.parent("AccessControlList", xml.elements(Grant=bucket.acl))
    fields = [*_described(call, bucket), *fixed, OWNER_XML, acl, *bucket_info(call)]
    return xml_reply(xml.document("BucketInfo", [xml.parent("Bucket", fields)]))


async def head(call: Call) -> Reply:
    """HeadBucket: 200 where the bucket exists. Raises NoSuchBucket."""
    call.store.bucket(call.bucket)
    return Reply(200)


async def location(call: Call) -> Reply:
    """GetBucketLocation: the region with the service's prefix `oss-`."""
    call.store.bucket(call.bucket)
    return xml_reply(xml.document("LocationConstraint", [f"oss-{call.service.region}"]))


async def stat(call: Call) -> Reply:
    """GetBucketStat: counts of objects, bytes and unfinished multipart uploads."""
    call.store.bucket(call.bucket)
    by_class = call.store.index.usage(call.bucket)
    uploads = sum(1 for _ in call.store.index.uploads(call.bucket))
    count, size = (sum(part[at] for part in by_class.values()) for at in (0, 1))
    fields = xml.elements(
        Storage=size,
        ObjectCount=count,
        MultipartUploadCount=uploads,
        MultipartPartCount=0,
        LiveChannelCount=0,
        LastModifiedTime=int(call.service.clock()),
    )
    for storage_class in STORAGE_CLASSES:
        count, size = by_class.get(storage_class, (0, 0))
        name = "InfrequentAccess" if storage_class == "IA" else storage_class
        # Objects of the other classes are billed by their real size or a minimum, which the sandbox does not have.
        real = {} if storage_class == "Standard" else {f"{name}RealStorage": size}
        fields += xml.elements(**{f"{name}Storage": size}, **real, **{f"{name}ObjectCount": count})
    return xml_reply(xml.document("BucketStat", fields))


async def get_acl(call: Call) -> Reply:
    """GetBucketAcl."""
    return xml_reply(acl_document(call.store.bucket(call.bucket).acl))


async def put_acl(call: Call) -> Reply:
    """PutBucketAcl; it creates a bucket that does not exist. Raises InvalidArgument for an unknown ACL."""
    return await create(call)


async def list_objects(call: Call) -> Reply:
    """ListObjects and, with `list-type=2`, ListObjectsV2."""
    call.store.bucket(call.bucket)
    reply = listing.reply_v2 if call.query.get("list-type") == "2" else listing.reply_v1
    return xml_reply(reply(call.bucket, call.query, call.service.source(call.bucket), call.service.clock()))


async def delete_objects(call: Call) -> Reply:
    """DeleteMultipleObjects: up to 1,000 keys, each with a VersionId or without.

    Raises MissingArgument without Content-MD5 (0016-00000606), InvalidDigest, MalformedXML, AccessDenied,
    FileImmutable, and InvalidArgument for an unknown or an empty version (0016-00000612; its code is UNVERIFIED).
    """
    body = await call.xml_body()
    if "content-md5" not in call.headers:
        raise OssError("MissingArgument", ec="0016-00000606")
    given = call.headers["content-md5"]
    if content_md5(given) != hashlib.md5(body, usedforsecurity=False).digest():
        raise OssError("InvalidDigest", fields={"Content-MD5": given})
    root = parse_xml(escape_for_xml(body), "Delete")
    wanted = _named_objects(root)
    for key, _ in wanted:
        check_key(key)
        if call.key is not None and not call.key.allows(Permission.DELETE, key):
            raise OssError("AccessDenied")
    call.store.delete(call.bucket, [key for key, version_id in wanted if not version_id])
    markers = set()
    for key, version_id in wanted:
        if version_id and call.store.delete_version(call.bucket, key, version_id):
            markers.add((key, version_id))
    if child_text(root, "Quiet", "false").lower() == "true":
        return Reply(200)
    encode, encoding = listing.encoding(call.query)
    deleted = []
    for key, version_id in wanted:
        about = xml.elements(Key=encode(key), VersionId=version_id or None)
        if not version_id:
            about += delete_marker(call, key)
        elif (key, version_id) in markers:
            about += xml.elements(DeleteMarker=True, DeleteMarkerVersionId=version_id)
        deleted.append(xml.parent("Deleted", about))
    return xml_reply(xml.document("DeleteResult", [*encoding, *deleted]))


def _named_objects(root: Element) -> list[tuple[str, str]]:
    """Key and version id ("" without one) of each object of a DeleteMultipleObjects."""
    nodes = list(children(root, "Object"))
    if not 0 < len(nodes) <= listing.MAX_KEYS:
        raise OssError("MalformedXML", f"Delete accepts 1 to {listing.MAX_KEYS} objects.")
    if any(not version.text for node in nodes for version in children(node, "VersionId")):
        raise invalid_argument("The version id is empty.", "VersionId", ec="0016-00000612")
    return [(unescape(child_text(node, "Key")), child_text(node, "VersionId", "")) for node in nodes]


def _on_accelerator(call: Call) -> Bucket:
    """The bucket of an accelerator operation, which the accelerated endpoint alone serves. Raises NotImplemented."""
    if call.kind is EndpointKind.STANDARD:
        raise OssError("NotImplemented", "dataAccelerator is served by the accelerated endpoint only.")
    return call.store.bucket(call.bucket)


async def get_accelerator(call: Call) -> Reply:
    """GetBucketDataAccelerator: `verbose` adds the paths, the zone parameter limits the reply to one zone.

    Raises DataAcceleratorNotFound, NoSuchConfiguration.
    """
    _on_accelerator(call)
    found = in_zone(call.bucket, call.service.accelerators(call.bucket), call.query.get(ZONE_PARAMETER))
    return xml_reply(accelerator_document(call.bucket, found, verbose="verbose" in call.query))


async def put_accelerator(call: Call) -> Reply:
    """PutBucketDataAccelerator: creates the accelerator of a zone, or replaces its configuration."""
    bucket = _on_accelerator(call)
    present = call.service.accelerators(call.bucket)
    wanted = parse_accelerator(await call.xml_body(), present, call.service.region, call.service.clock())
    others = [accelerator for accelerator in present if accelerator.zone != wanted.zone]
    call.store.put_bucket(msgspec.structs.replace(bucket, accelerator=encoded_accelerators([*others, wanted])))
    return Reply(200)


async def delete_accelerator(call: Call) -> Reply:
    """DeleteBucketDataAccelerator of one zone; the cache is emptied.

    Raises InvalidArgument without a zone (which the page requires), DataAcceleratorNotFound, NoSuchConfiguration.
    """
    bucket = _on_accelerator(call)
    zone = call.query.get(ZONE_PARAMETER, "")
    if not zone:
        raise invalid_argument("The zone of the accelerator is required.", ZONE_PARAMETER, "")
    present = call.service.accelerators(call.bucket)
    (deleted,) = in_zone(call.bucket, present, zone)
    left = encoded_accelerators(accelerator for accelerator in present if accelerator is not deleted)
    call.store.put_bucket(msgspec.structs.replace(bucket, accelerator=left))
    call.service.cache.clear()
    return Reply(204)
