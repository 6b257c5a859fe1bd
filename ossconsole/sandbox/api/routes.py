"""The routing table: from method, resource and sub-resource to the operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ossconsole.sandbox.api import buckets, multipart, objects, rules, writes
from ossconsole.sandbox.api.call import Call, Reply
from ossconsole.sandbox.keys import Permission
from ossconsole.sandbox.replies import OssError, invalid_argument
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
    ("GET", "versioning"): Operation("GetBucketVersioning", Permission.LIST, rules.get_versioning),
    ("PUT", "versioning"): Operation("PutBucketVersioning", Permission.MANAGE, rules.put_versioning),
    ("GET", "versions"): Operation("GetBucketVersions", Permission.LIST, rules.list_versions),
    ("GET", "worm"): Operation("GetBucketWorm", Permission.LIST, rules.get_worm),
    ("POST", "worm"): Operation("InitiateBucketWorm", Permission.MANAGE, rules.begin_worm),
    ("DELETE", "worm"): Operation("AbortBucketWorm", Permission.MANAGE, rules.abort_worm),
    ("POST", "wormId"): Operation("CompleteBucketWorm", Permission.MANAGE, rules.change_worm),
    ("GET", "encryption"): Operation("GetBucketEncryption", Permission.LIST, rules.get_encryption),
    ("PUT", "encryption"): Operation("PutBucketEncryption", Permission.MANAGE, rules.put_encryption),
    ("DELETE", "encryption"): Operation("DeleteBucketEncryption", Permission.MANAGE, rules.delete_encryption),
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
    ("PUT", "symlink"): Operation("PutSymlink", Permission.WRITE, writes.put_symlink),
    ("GET", "symlink"): Operation("GetSymlink", Permission.READ, objects.get_symlink),
    # oss2 leaves the parameter in a dictionary of its caller: its own tests then delete with it.
    ("DELETE", "symlink"): Operation("DeleteObject", Permission.DELETE, objects.delete),
    ("POST", "uploads"): Operation("InitiateMultipartUpload", Permission.WRITE, multipart.begin),
    ("PUT", "uploadId"): Operation("UploadPart", Permission.WRITE, multipart.put_part),
    ("POST", "uploadId"): Operation("CompleteMultipartUpload", Permission.WRITE, multipart.complete),
    ("GET", "uploadId"): Operation("ListParts", Permission.LIST, multipart.list_parts),
    ("DELETE", "uploadId"): Operation("AbortMultipartUpload", Permission.WRITE, multipart.abort),
}
_COPY_OBJECT = Operation("CopyObject", Permission.WRITE, writes.copy)
_COPY_PART = Operation("UploadPartCopy", Permission.WRITE, multipart.copy_part)

# Sub-resources and parameters of the service that change the operation; those without a row above are not implemented,
# and must not be mistaken for the plain request (`GET /?policy` is not a listing).
_SUB_RESOURCE_NAMES = """
    accessPoint accessPointPolicy accessmonitor acl append asyncFetch bucketArchiveDirectRead bucketInfo callback
    cleanRestoredObject cloudboxes cname comp cors dataAccelerator dataPipeline delete encryption httpsConfig inventory
    legalHold lifecycle link live location logging metaQuery metadataConfiguration metadataInventoryTable
    metadataJournalTable objectInfo objectMeta objectWorm overwriteConfig policy policyStatus publicAccessBlock qosInfo
    quota redundancyTransition referer regionList regions replication replicationLocation replicationProgress
    requestPayment requesterQosInfo resourceGroup resourcePool restore retention rtc seal select sequential stat style
    styleName symlink tagging transferAcceleration uploadId uploads userDefinedLogFieldsConfig versioning versions vod
    website wormId worm x-oss-async-process x-oss-batchGet x-oss-process x-oss-traffic-limit
    x-oss-write-get-object-response
"""
_SUB_RESOURCES = _SUB_RESOURCE_NAMES.split()
# Parameters of the operations above, which clients send with an empty value too.
_MAY_BE_EMPTY_NAMES = """
    continuation-token delimiter encoding-type fetch-owner key-marker list-type marker max-keys max-parts max-uploads
    part-number-marker partNumber position prefix security-token start-after tag-key tag-value upload-id-marker verbose
    version-id-marker versionId wormExtend x-oss-datalake-cache-available-zone
"""
_MAY_BE_EMPTY = frozenset([*_SUB_RESOURCES, *_MAY_BE_EMPTY_NAMES.split()])
_OF_VERSIONS_NAMES = """
    GetObject HeadObject GetObjectMeta DeleteObject GetObjectAcl PutObjectAcl GetObjectTagging PutObjectTagging
    DeleteObjectTagging RestoreObject GetSymlink UploadPartCopy
"""
_OF_VERSIONS = frozenset(_OF_VERSIONS_NAMES.split())
"""The operations that accept `versionId`. UploadPartCopy reads it from its source; oss2 sends it twice."""
# Headers with which the service does something else, or something more. One that nobody knows is ignored, as there.
_REFUSED_HEADER_NAMES = """
    x-oss-callback x-oss-callback-var x-oss-hash-ctx x-oss-object-worm-legal-hold x-oss-object-worm-mode
    x-oss-object-worm-retain-until-date x-oss-process x-oss-server-side-encryption-customer-algorithm
    x-oss-server-side-encryption-customer-key x-oss-traffic-limit x-oss-write-get-object-response
"""
_REFUSED_HEADERS = frozenset(_REFUSED_HEADER_NAMES.split())


def find(incoming: IncomingRequest, target: Resource) -> Operation:
    """The operation of a request. Raises MethodNotAllowed, NotImplemented."""
    _check_headers(incoming)
    table = _OBJECT if target.key else _BUCKET if target.bucket else _SERVICE
    subs = [name for name in _SUB_RESOURCES if name in incoming.query] if incoming.query else []
    sub = subs[0] if subs else ""
    operation = table.get((incoming.method, sub))
    # A name without a value is a sub-resource: one that is newer than the list above is not implemented either.
    unknown = [name for name, value in incoming.query.items() if not value and name not in _MAY_BE_EMPTY]
    if unknown and not unknown[0].startswith("response-"):
        raise OssError("NotImplemented", fields={"Header": unknown[0]})
    if operation is None:
        if sub:
            raise OssError("NotImplemented", fields={"Header": sub})
        raise OssError("MethodNotAllowed", fields={"Method": incoming.method})
    # A second one changes the operation further: an upload with a callback, or of parts in sequence.
    if len(subs) > 1:
        raise OssError("NotImplemented", fields={"Header": subs[1]})
    if incoming.method == "PUT" and "x-oss-copy-source" in incoming.headers:
        operation = {"PutObject": _COPY_OBJECT, "UploadPart": _COPY_PART}.get(operation.name, operation)
    if "versionId" in incoming.query:
        if operation.name not in _OF_VERSIONS:
            raise OssError("NotImplemented", fields={"Header": "versionId"})
        if not incoming.query["versionId"]:
            raise invalid_argument("The version id is empty.", "versionId")
    return operation


def _check_headers(incoming: IncomingRequest) -> None:
    """Raises NotImplemented for a header that the server does not implement and must not ignore."""
    for name in _REFUSED_HEADERS & incoming.headers.keys():
        raise OssError("NotImplemented", fields={"Header": name})
    if incoming.headers.get("transfer-encoding", "chunked").lower() != "chunked":
        raise OssError("NotImplemented", fields={"Header": "Transfer-Encoding"})
