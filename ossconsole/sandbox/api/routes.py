"""Which operation a request asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ossconsole.sandbox.api import buckets, multipart, objects, writes
from ossconsole.sandbox.api import objects as versioning
from ossconsole.sandbox.api.call import Call, Reply
from ossconsole.sandbox.keys import Action
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.request import Incoming, Target


@dataclass(frozen=True)
class Operation:
    """One operation of the service, under the service's own name for it."""

    name: str
    action: Action
    run: Callable[[Call], Awaitable[Reply]]


_Table = dict[tuple[str, str], Operation]

# (method, sub-resource): the empty sub-resource is the plain request.
_SERVICE: _Table = {("GET", ""): Operation("ListBuckets", Action.MANAGE, buckets.list_buckets)}
_BUCKET: _Table = {
    ("GET", ""): Operation("ListObjects", Action.LIST, buckets.list_objects),
    ("HEAD", ""): Operation("HeadBucket", Action.LIST, buckets.head),
    ("PUT", ""): Operation("PutBucket", Action.MANAGE, buckets.create),
    ("DELETE", ""): Operation("DeleteBucket", Action.MANAGE, buckets.delete),
    ("GET", "bucketInfo"): Operation("GetBucketInfo", Action.LIST, buckets.info),
    ("GET", "location"): Operation("GetBucketLocation", Action.LIST, buckets.location),
    ("GET", "stat"): Operation("GetBucketStat", Action.LIST, buckets.stat),
    ("GET", "versioning"): Operation("GetBucketVersioning", Action.LIST, versioning.status),
    ("PUT", "versioning"): Operation("PutBucketVersioning", Action.MANAGE, versioning.change),
    ("GET", "versions"): Operation("GetBucketVersions", Action.LIST, versioning.list_versions),
    ("GET", "acl"): Operation("GetBucketAcl", Action.LIST, buckets.get_acl),
    ("PUT", "acl"): Operation("PutBucketAcl", Action.MANAGE, buckets.put_acl),
    ("GET", "uploads"): Operation("ListMultipartUploads", Action.LIST, multipart.list_uploads),
    ("GET", "dataAccelerator"): Operation("GetBucketDataAccelerator", Action.LIST, buckets.get_accelerator),
    ("PUT", "dataAccelerator"): Operation("PutBucketDataAccelerator", Action.MANAGE, buckets.put_accelerator),
    ("DELETE", "dataAccelerator"): Operation("DeleteBucketDataAccelerator", Action.MANAGE, buckets.delete_accelerator),
    ("POST", "delete"): Operation("DeleteMultipleObjects", Action.DELETE, buckets.delete_objects),
}
_OBJECT: _Table = {
    ("GET", ""): Operation("GetObject", Action.READ, objects.get),
    ("HEAD", ""): Operation("HeadObject", Action.READ, objects.head),
    ("HEAD", "objectMeta"): Operation("GetObjectMeta", Action.READ, objects.head_meta),
    ("PUT", ""): Operation("PutObject", Action.WRITE, writes.put),
    ("DELETE", ""): Operation("DeleteObject", Action.DELETE, objects.delete),
    ("POST", "append"): Operation("AppendObject", Action.WRITE, writes.append),
    ("GET", "acl"): Operation("GetObjectAcl", Action.READ, objects.get_acl),
    ("PUT", "acl"): Operation("PutObjectAcl", Action.WRITE, objects.put_acl),
    ("GET", "tagging"): Operation("GetObjectTagging", Action.READ, objects.get_tagging),
    ("PUT", "tagging"): Operation("PutObjectTagging", Action.WRITE, objects.put_tagging),
    ("DELETE", "tagging"): Operation("DeleteObjectTagging", Action.WRITE, objects.delete_tagging),
    ("POST", "restore"): Operation("RestoreObject", Action.WRITE, objects.restore),
    ("POST", "uploads"): Operation("InitiateMultipartUpload", Action.WRITE, multipart.begin),
    ("PUT", "uploadId"): Operation("UploadPart", Action.WRITE, multipart.put_part),
    ("POST", "uploadId"): Operation("CompleteMultipartUpload", Action.WRITE, multipart.complete),
    ("GET", "uploadId"): Operation("ListParts", Action.LIST, multipart.list_parts),
    ("DELETE", "uploadId"): Operation("AbortMultipartUpload", Action.WRITE, multipart.abort),
}
_COPY_OBJECT = Operation("CopyObject", Action.WRITE, writes.copy)
_COPY_PART = Operation("UploadPartCopy", Action.WRITE, multipart.copy_part)

# Sub-resources of the service that change what a request means; those without a row above are not implemented, and must
# not be taken for the plain request (`GET /?policy` is no listing).
_SUB_RESOURCE_NAMES = (
    "acl append asyncFetch bucketInfo callback cname comp cors dataAccelerator delete encryption inventory lifecycle "
    "link location logging metaQuery objectMeta policy publicAccessBlock qosInfo referer replication requestPayment "
    "resourceGroup restore rtc select stat style symlink tagging transferAcceleration uploadId uploads "
    "versionId versioning versions vod website worm x-oss-batchGet x-oss-process"
)
_SUB_RESOURCES = _SUB_RESOURCE_NAMES.split()


def find(incoming: Incoming, target: Target) -> Operation:
    """The operation. Raises MethodNotAllowed, NotImplemented."""
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
