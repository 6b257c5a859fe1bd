"""Operations on the service and on buckets: create, list, describe, delete, ACL, and listing and deleting objects."""

from __future__ import annotations

import hashlib

import msgspec

from ossconsole.config.endpoints import EndpointKind
from ossconsole.sandbox import listing
from ossconsole.sandbox import replies as xml
from ossconsole.sandbox import request as requestxml
from ossconsole.sandbox.accelerator import configured
from ossconsole.sandbox.api.call import OWNER, Call, Reply, xml_reply
from ossconsole.sandbox.api.objects import acl_document, marker
from ossconsole.sandbox.api.writes import STORAGE_CLASSES, content_md5
from ossconsole.sandbox.keys import Action
from ossconsole.sandbox.records import Bucket, check_bucket, check_key
from ossconsole.sandbox.replies import OssError, invalid_argument, iso_time

BUCKET_ACLS = ("private", "public-read", "public-read-write")


async def list_buckets(call: Call) -> Reply:
    query = call.query
    prefix, marker = query.get("prefix", ""), query.get("marker", "")
    limit = listing.max_keys(query)
    found = [bucket for bucket in call.store.index.buckets() if bucket.name.startswith(prefix) and bucket.name > marker]
    page = found[:limit]
    more = len(found) > limit
    fields = [
        xml.element("Prefix", prefix),
        xml.element("Marker", marker),
        xml.element("MaxKeys", limit),
        xml.element("IsTruncated", more),
        *([xml.element("NextMarker", page[-1].name)] if more else []),
        _owner(),
        xml.parent("Buckets", [xml.parent("Bucket", _about(call, bucket)) for bucket in page]),
    ]
    return xml_reply(xml.document("ListAllMyBucketsResult", fields))


def _owner() -> str:
    return xml.parent("Owner", [xml.element("ID", OWNER), xml.element("DisplayName", OWNER)])


def _about(call: Call, bucket: Bucket) -> list[str]:
    region, port = call.service.region, call.service.port
    return [
        xml.element("Name", bucket.name),
        xml.element("CreationDate", iso_time(bucket.created)),
        xml.element("Location", f"oss-{region}"),
        xml.element("Region", region),
        xml.element("ExtranetEndpoint", f"0.0.1:{port}"),
        xml.element("IntranetEndpoint", f"0.0.1:{port}"),
        xml.element("StorageClass", bucket.storage_class),
    ]


async def create(call: Call) -> Reply:
    check_bucket(call.bucket)
    acl = _acl(call)
    existing = call.store.buckets.get(call.bucket)
    if existing is not None:
        call.store.put_bucket(msgspec.structs.replace(existing, acl=acl))
        return Reply(200)
    body = await call.xml_body()
    storage_class = "Standard"
    if body:
        storage_class = requestxml.child_text(
            requestxml.parse(body, "CreateBucketConfiguration"), "StorageClass", "Standard"
        )
    if storage_class not in STORAGE_CLASSES:
        raise invalid_argument("No such storage class.", "StorageClass", storage_class)
    call.store.create_bucket(call.bucket, acl=acl, storage_class=storage_class)
    return Reply(200, {"Location": f"/{call.bucket}"})


def _acl(call: Call) -> str:
    acl = call.headers.get("x-oss-acl", "private")
    if acl not in BUCKET_ACLS:
        raise invalid_argument("No such bucket access control exists.", "x-oss-acl", acl)
    return acl


async def delete(call: Call) -> Reply:
    call.store.delete_bucket(call.bucket)
    return Reply(204)


async def info(call: Call) -> Reply:
    bucket = call.store.bucket(call.bucket)
    fields = [
        *_about(call, bucket),
        xml.element("DataRedundancyType", "LRS"),
        xml.element("AccessMonitor", "Disabled"),
        xml.element("BlockPublicAccess", value=False),
        _owner(),
        xml.parent("AccessControlList", [xml.element("Grant", bucket.acl)]),
    ]
    return xml_reply(xml.document("BucketInfo", [xml.parent("Bucket", fields)]))


async def head(call: Call) -> Reply:
    call.store.bucket(call.bucket)
    return Reply(200)


async def location(call: Call) -> Reply:
    call.store.bucket(call.bucket)
    return xml_reply(xml.document("LocationConstraint", [f"oss-{call.service.region}"]))


async def stat(call: Call) -> Reply:
    call.store.bucket(call.bucket)
    objects, size = call.store.index.usage(call.bucket)
    uploads = sum(1 for _ in call.store.index.uploads(call.bucket))
    fields = [
        xml.element("Storage", size),
        xml.element("ObjectCount", objects),
        xml.element("MultipartUploadCount", uploads),
    ]
    return xml_reply(xml.document("BucketStat", fields))


async def get_acl(call: Call) -> Reply:
    return xml_reply(acl_document(call.store.bucket(call.bucket).acl))


async def put_acl(call: Call) -> Reply:
    bucket = call.store.bucket(call.bucket)
    call.store.put_bucket(msgspec.structs.replace(bucket, acl=_acl(call)))
    return Reply(200)


async def list_objects(call: Call) -> Reply:
    call.store.bucket(call.bucket)
    reply = listing.reply_v2 if call.query.get("list-type") == "2" else listing.reply_v1
    return xml_reply(reply(call.bucket, call.query, call.service.source(call.bucket), OWNER))


async def delete_objects(call: Call) -> Reply:
    body = await call.xml_body()
    given = call.headers.get("content-md5")
    if given is not None and content_md5(given) != hashlib.md5(body, usedforsecurity=False).digest():
        raise OssError("InvalidDigest", fields={"Content-MD5": given})
    root = requestxml.parse(body, "Delete")
    keys = [requestxml.child_text(node, "Key") for node in requestxml.children(root, "Object")]
    if not 0 < len(keys) <= listing.MAX_KEYS:
        raise OssError("MalformedXML", f"Delete takes 1 to {listing.MAX_KEYS} objects.")
    for key in keys:
        check_key(key)
        if call.key is not None and not call.key.allows(Action.DELETE, key):
            raise OssError("AccessDenied")
    call.store.delete(call.bucket, keys)
    if requestxml.child_text(root, "Quiet", "false").lower() == "true":
        return Reply(200)
    encode = listing.encoder(call.query)
    fields = [xml.element("EncodingType", "url")] if call.query.get("encoding-type") else []
    fields += [xml.parent("Deleted", [xml.element("Key", encode(key)), *marker(call, key)]) for key in keys]
    return xml_reply(xml.document("DeleteResult", fields))


def _on_accelerator(call: Call) -> Bucket:
    """The accelerator's own calls are taken at its own address only."""
    if call.kind is EndpointKind.STANDARD:
        raise OssError("NotImplemented", "dataAccelerator is served by the accelerated endpoint only.")
    return call.store.bucket(call.bucket)


async def get_accelerator(call: Call) -> Reply:
    _on_accelerator(call)
    accelerator = call.service.accelerator(call.bucket)
    if accelerator is None:
        raise OssError("DataAcceleratorNotFound", fields={"BucketName": call.bucket})
    return xml_reply(accelerator.document(call.bucket))


async def put_accelerator(call: Call) -> Reply:
    bucket = _on_accelerator(call)
    before = call.service.accelerator(call.bucket)
    wanted = configured(await call.xml_body(), before, call.service.region, call.service.clock())
    call.store.put_bucket(msgspec.structs.replace(bucket, accelerator=msgspec.json.encode(wanted)))
    return Reply(200)


async def delete_accelerator(call: Call) -> Reply:
    bucket = _on_accelerator(call)
    if bucket.accelerator is None:
        raise OssError("NoSuchConfiguration", fields={"BucketName": call.bucket})
    call.store.put_bucket(msgspec.structs.replace(bucket, accelerator=None))
    call.service.cache.clear()
    return Reply(204)
