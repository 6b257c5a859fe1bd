"""Operations on versions: whether a bucket keeps them, which there are, and the headers that tell of them."""

from __future__ import annotations

from ossconsole.sandbox import listing, requestxml
from ossconsole.sandbox import markup as xml
from ossconsole.sandbox.api.call import OWNER, Call, Reply, xml_reply
from ossconsole.sandbox.errors import OssError
from ossconsole.sandbox.times import iso_time
from ossconsole.sandbox.versions import Version

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
