"""The routing table: from method, resource and sub-resource to the operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ossconsole.sandbox.api import buckets, multipart, objects, writes
from ossconsole.sandbox.api.call import Call, Reply
from ossconsole.sandbox.keys import Permission
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import IncomingRequest, Resource


@dataclass(frozen=True)
class Operation:
    """One operation: `name` is that of the OSS API reference, `action` the permission it needs."""

    name: str
    action: Permission
    run: Callable[[Call], Awaitable[Reply]]


_Table = dict[tuple[str, str], Operation]

# (method, sub-resource): the empty sub-resource is the plain request.
_SERVICE: _Table = {("GET", ""): Operation("ListBuckets", Permission.MANAGE, buckets.list_buckets)}
_BUCKET: _Table = {
    ("GET", ""): Operation("ListObjects", Permission.LIST, buckets.list_objects),
    ("HEAD", ""): Operation("HeadBucket", Permission.LIST, buckets.head),
    ("PUT", ""): Operation("PutBucket", Permission.MANAGE, buckets.create),
    ("DELETE", ""): Operation("DeleteBucket", Permission.MANAGE, buckets.delete),
    ("GET", "bucketInfo"): Operation("GetBucketInfo", Permission.LIST, buckets.info),
    ("GET", "location"): Operation("GetBucketLocation", Permission.LIST, buckets.location),
    ("GET", "stat"): Operation("GetBucketStat", Permission.LIST, buckets.stat),
    ("GET", "versioning"): Operation("GetBucketVersioning", Permission.LIST, objects.get_versioning),
    ("PUT", "versioning"): Operation("PutBucketVersioning", Permission.MANAGE, objects.put_versioning),
    ("GET", "versions"): Operation("GetBucketVersions", Permission.LIST, objects.list_versions),
    ("GET", "acl"): Operation("GetBucketAcl", Permission.LIST, buckets.get_acl),
    ("PUT", "acl"): Operation("PutBucketAcl", Permission.MANAGE, buckets.put_acl),
    ("GET", "uploads"): Operation("ListMultipartUploads", Permission.LIST, multipart.list_uploads),
    ("GET", "dataAccelerator"): Operation("GetBucketDataAccelerator", Permission.LIST, buckets.get_accelerator),
    ("PUT", "dataAccelerator"): Operation("PutBucketDataAccelerator", Permission.MANAGE, buckets.put_accelerator),
    ("DELETE", "dataAccelerator"): Operation(
        "DeleteBucketDataAccelerator", Permission.MANAGE, buckets.delete_accelerator
    ),
    ("POST", "delete"): Operation("DeleteMultipleObjects", Permission.DELETE, buckets.delete_objects),
}
_OBJECT: _Table = {
    ("GET", ""): Operation("GetObject", Permission.READ, objects.get),
    ("HEAD", ""): Operation("HeadObject", Permission.READ, objects.head),
    ("HEAD", "objectMeta"): Operation("GetObjectMeta", Permission.READ, objects.head_meta),
    ("PUT", ""): Operation("PutObject", Permission.WRITE, writes.put),
    ("DELETE", ""): Operation("DeleteObject", Permission.DELETE, objects.delete),
    ("POST", "append"): Operation("AppendObject", Permission.WRITE, writes.append),
    ("GET", "acl"): Operation("GetObjectAcl", Permission.READ, objects.get_acl),
    ("PUT", "acl"): Operation("PutObjectAcl", Permission.WRITE, objects.put_acl),
    ("GET", "tagging"): Operation("GetObjectTagging", Permission.READ, objects.get_tagging),
    ("PUT", "tagging"): Operation("PutObjectTagging", Permission.WRITE, objects.put_tagging),
    ("DELETE", "tagging"): Operation("DeleteObjectTagging", Permission.WRITE, objects.delete_tagging),
    ("POST", "restore"): Operation("RestoreObject", Permission.WRITE, objects.restore),
    ("POST", "uploads"): Operation("InitiateMultipartUpload", Permission.WRITE, multipart.begin),
    ("PUT", "uploadId"): Operation("UploadPart", Permission.WRITE, multipart.put_part),
    ("POST", "uploadId"): Operation("CompleteMultipartUpload", Permission.WRITE, multipart.complete),
    ("GET", "uploadId"): Operation("ListParts", Permission.LIST, multipart.list_parts),
    ("DELETE", "uploadId"): Operation("AbortMultipartUpload", Permission.WRITE, multipart.abort),
}
_COPY_OBJECT = Operation("CopyObject", Permission.WRITE, writes.copy)
_COPY_PART = Operation("UploadPartCopy", Permission.WRITE, multipart.copy_part)

# Sub-resources of the service that change the operation; those without a row above are not implemented, and must not be
# mistaken for the plain request (`GET /?policy` is not a listing).
_SUB_RESOURCE_NAMES = (
    "acl append asyncFetch bucketInfo callback cname comp cors dataAccelerator delete encryption inventory lifecycle "
    "link location logging metaQuery objectMeta policy publicAccessBlock qosInfo referer replication requestPayment "
    "resourceGroup restore rtc select stat style symlink tagging transferAcceleration uploadId uploads "
    "versionId versioning versions vod website worm x-oss-batchGet x-oss-process"
)
_SUB_RESOURCES = _SUB_RESOURCE_NAMES.split()


def find(incoming: IncomingRequest, target: Resource) -> Operation:
    """The operation of a request. Raises MethodNotAllowed, NotImplemented."""
    table = _OBJECT if target.key else _BUCKET if target.bucket else _SERVICE
    sub = ""
    if incoming.query:
        sub = next((name for name in _SUB_RESOURCES if name in incoming.query), "")
    operation = table.get((incoming.method, sub))
    if operation is None:
        if sub:
            raise OssError("NotImplemented", fields={"Header": sub})
        raise OssError("MethodNotAllowed", fields={"Method": incoming.method})
    if incoming.method == "PUT" and "x-oss-copy-source" in incoming.headers:
        return {"PutObject": _COPY_OBJECT, "UploadPart": _COPY_PART}.get(operation.name, operation)
    return operation
