"""What a bucket does with its objects: versioning, retention (WORM) and encryption at rest. All of it serves tests.

Encryption is simulated: objects get its headers, and ETags that are no MD5s under KMS, but are stored as they are.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from itertools import islice

import msgspec

from ossconsole.sandbox import listing
from ossconsole.sandbox import replies as xml
from ossconsole.sandbox.api.call import OWNER_XML, Call, Reply, xml_reply
from ossconsole.sandbox.records import Retention
from ossconsole.sandbox.replies import OssError, invalid_argument, iso_time
from ossconsole.sandbox.request import child_text, children, header_value, parse_xml, whole_number
from ossconsole.sandbox.versions import Version, check_version_id

# Versioning


async def get_versioning(call: Call) -> Reply:
    """GetBucketVersioning: `Enabled`, `Suspended`, or an empty document."""
    call.store.bucket(call.bucket)
    status = call.store.index.versions.status(call.bucket)
    return xml_reply(xml.document("VersioningConfiguration", xml.elements(Status=status)))


async def put_versioning(call: Call) -> Reply:
    """PutBucketVersioning.

    Raises MalformedXML, and InvalidArgument for a bucket with a retention policy (0012-00000006; the code is
    UNVERIFIED).
    """
    call.store.bucket(call.bucket)
    if call.store.retention(call.bucket) is not None:
        raise invalid_argument("The bucket has a retention policy.", ec="0012-00000006")
    wanted = child_text(parse_xml(await call.xml_body(), "VersioningConfiguration"), "Status")
    if wanted not in {"Enabled", "Suspended"}:
        raise OssError("MalformedXML", "Status must be Enabled or Suspended.")
    call.store.index.set_versioning(call.bucket, suspended=wanted == "Suspended")
    return Reply(200)


async def list_versions(call: Call) -> Reply:
    """ListObjectVersions (GetBucketVersions). Without versioning the id is `null`.

    A page that ends with a common prefix is continued after it, without a version id (UNVERIFIED).
    """
    call.store.bucket(call.bucket)
    query = call.query
    (encode, encoding), limit = listing.encoding(query), listing.max_keys(query)
    names = ("prefix", "delimiter", "key-marker", "version-id-marker")
    prefix, delimiter, key_marker, id_marker = (listing.name_of(query, name) for name in names)
    if id_marker:
        check_version_id(id_marker, "version-id-marker", ec="0012-00000105")
        if not key_marker:
            raise invalid_argument("key-marker is missing.", "key-marker", ec="0012-00000106")
    entries = _entries(call, prefix, delimiter, key_marker, id_marker, limit + 1)
    found = list(islice(entries, limit + 1))
    page, more = found[:limit], len(found) > limit
    fields = [
        *xml.elements(Name=call.bucket, Prefix=encode(prefix), KeyMarker=encode(key_marker)),
        *xml.elements(VersionIdMarker=id_marker, MaxKeys=limit, Delimiter=encode(delimiter)),
        *encoding,
        *xml.elements(IsTruncated=more),
    ]
    if more:
        key, version_id = (page[-1], "") if isinstance(page[-1], str) else (page[-1].key, page[-1].id)
        fields += xml.elements(NextKeyMarker=encode(key), NextVersionIdMarker=version_id)
    fields += [_described(call, version, encode(version.key)) for version in page if not isinstance(version, str)]
    prefixes = [xml.elements(Prefix=encode(entry)) for entry in page if isinstance(entry, str)]
    fields += [xml.parent("CommonPrefixes", entry) for entry in prefixes]
    return xml_reply(xml.document("ListVersionsResult", fields))


def _entries(  # noqa: PLR0917
    call: Call, prefix: str, delimiter: str, key_marker: str, id_marker: str, batch: int
) -> Iterator[Version | str]:
    """The versions after the markers in their order, and in their place the common prefixes of those with one."""
    versions, start = call.store.index.versions, prefix.encode()
    if not versions.kept(call.bucket):
        source = call.service.source(call.bucket)
        page = listing.list_page(source, prefix=prefix, delimiter=delimiter, after=key_marker, limit=batch)
        entries: list[Version | str] = [*map(versions.unversioned, page.objects), *page.prefixes]
        yield from sorted(entries, key=lambda entry: entry if isinstance(entry, str) else entry.key)
        return
    if delimiter and not id_marker and listing.common_prefix(key_marker, prefix, delimiter) == key_marker:
        start = listing.after_all(key_marker.encode())
    while True:
        found = versions.list(
            call.bucket, prefix=prefix, start=start, key_marker=key_marker, id_marker=id_marker, limit=batch
        )
        group = ""
        for version in found:
            if group and version.key.startswith(group):
                continue
            group = listing.common_prefix(version.key, prefix, delimiter)
            yield group or version
        if len(found) < batch:
            return
        key_marker, id_marker = found[-1].key, found[-1].id
        start = listing.after_all(group.encode()) if group else start


def _described(call: Call, version: Version, key: str) -> str:
    modified = iso_time(version.modified)
    fields = xml.elements(Key=key, VersionId=version.id, IsLatest=version.is_latest, LastModified=modified)
    if version.is_marker:
        return xml.parent("DeleteMarker", [*fields, OWNER_XML])
    kind, size, storage_class = version.type, version.size, version.storage_class
    content = xml.elements(ETag=f'"{version.etag}"', Type=kind, Size=size, StorageClass=storage_class)
    restored = version.stored().restore_status(call.service.clock()) if version.details else ""
    return xml.parent("Version", [*fields, OWNER_XML, *content, *xml.elements(RestoreInfo=restored or None)])


# Retention

_MAX_DAYS = 25_550  # 70 years


def _days(text: str) -> int:
    days = whole_number(text)
    if days is None or not 1 <= days <= _MAX_DAYS:
        raise OssError("MalformedXML", f"RetentionPeriodInDays must be 1 to {_MAX_DAYS}.")
    return days


def _retention(call: Call) -> Retention:
    call.store.bucket(call.bucket)
    found = call.store.retention(call.bucket)
    if found is None:
        raise OssError("NoSuchWORMConfiguration", fields={"BucketName": call.bucket})
    return found


def _set_retention(call: Call, retention: Retention | None) -> None:
    call.store.index.set_rule(call.bucket, "worm", None if retention is None else msgspec.json.encode(retention))


async def begin_worm(call: Call) -> Reply:
    """InitiateBucketWorm: protects the bucket's objects from now on; an unlocked policy can be aborted.

    Raises InvalidArgument (the code is UNVERIFIED) with versioning: "you cannot configure a retention policy if
    versioning is enabled" (0027-00000003). The user guide refuses it where versioning is suspended only.
    """
    call.store.bucket(call.bucket)
    if call.store.index.versions.kept(call.bucket):
        raise invalid_argument("The bucket has versioning.", ec="0027-00000003")
    days = _days(child_text(parse_xml(await call.xml_body(), "InitiateWormConfiguration"), "RetentionPeriodInDays"))
    before = call.store.retention(call.bucket)
    if before is not None and before.locked:
        raise OssError("WORMConfigurationLocked", fields={"BucketName": call.bucket})
    worm = Retention(secrets.token_hex(16).upper(), days, call.service.clock())
    _set_retention(call, worm)
    return Reply(200, {"x-oss-worm-id": worm.id})


async def get_worm(call: Call) -> Reply:
    """GetBucketWorm. Raises NoSuchWORMConfiguration."""
    found = _retention(call)
    state, created = "Locked" if found.locked else "InProgress", iso_time(found.created)
    fields = xml.elements(WormId=found.id, State=state, RetentionPeriodInDays=found.days, CreationDate=created)
    return xml_reply(xml.document("WormConfiguration", fields))


async def abort_worm(call: Call) -> Reply:
    """AbortBucketWorm. Raises WORMConfigurationLocked."""
    if _retention(call).locked:
        raise OssError("WORMConfigurationLocked", fields={"BucketName": call.bucket})
    _set_retention(call, None)
    return Reply(204)


async def change_worm(call: Call) -> Reply:
    """CompleteBucketWorm (locks the policy) and, with `wormExtend`, ExtendBucketWorm (of a locked one)."""
    found = _retention(call)
    if call.query["wormId"] != found.id:
        raise OssError("NoSuchWORMConfiguration", fields={"BucketName": call.bucket})
    extends = "wormExtend" in call.query
    if extends != found.locked:
        raise OssError("InvalidWORMConfiguration", fields={"BucketName": call.bucket})
    changed = msgspec.structs.replace(found, locked=True)
    if extends:
        text = child_text(parse_xml(await call.xml_body(), "ExtendWormConfiguration"), "RetentionPeriodInDays")
        changed = msgspec.structs.replace(found, days=_days(text))
        if changed.days < found.days:
            raise OssError("InvalidWORMConfiguration", "The retention period can only be extended.")
    _set_retention(call, changed)
    return Reply(200)


# Encryption

_ALGORITHM = "x-oss-server-side-encryption"
_DATA_ALGORITHM = "x-oss-server-side-data-encryption"
_KEY_ID = "x-oss-server-side-encryption-key-id"
_DEFAULT_KEY_ID = "00000000-0000-4000-8000-000000000000"  # of the key that the service creates itself
# Of the rule's XML and of an object's headers.
_FIELDS = {"SSEAlgorithm": _ALGORITHM, "KMSMasterKeyID": _KEY_ID, "KMSDataEncryption": _DATA_ALGORITHM}


def encryption_of(call: Call) -> dict[str, str]:
    """The headers of the encryption that the request, or else the bucket, specifies. Raises InvalidArgument.

    Without an algorithm the other headers mean nothing.
    """
    given = {name: call.headers[name] for name in _FIELDS.values() if name in call.headers}
    headers = _checked(given) if _ALGORITHM in given else _rule(call)
    return {_KEY_ID: _DEFAULT_KEY_ID} | headers if headers.get(_ALGORITHM) == "KMS" else headers


def refuse_encryption(call: Call) -> None:
    """Raises InvalidArgument where a part, or the end of an upload, names an encryption: only its start may."""
    if _ALGORITHM in call.headers:
        raise invalid_argument("An upload has the encryption of its beginning.", _ALGORITHM, call.headers[_ALGORITHM])


def _checked(headers: dict[str, str]) -> dict[str, str]:
    algorithm = headers.get(_ALGORITHM, "")
    if algorithm not in {"AES256", "KMS", "SM4"}:
        raise OssError("InvalidEncryptionAlgorithmError", f"{algorithm} is not an algorithm of the service.")
    if algorithm != "KMS":
        return {_ALGORITHM: algorithm}
    if headers.get(_DATA_ALGORITHM, "SM4") != "SM4":
        raise invalid_argument("The data's algorithm must be SM4.", _DATA_ALGORITHM, headers[_DATA_ALGORITHM])
    return headers


def _rule(call: Call) -> dict[str, str]:
    rule = call.store.index.rule(call.bucket, "encryption")
    return {} if rule is None else msgspec.json.decode(rule, type=dict[str, str])


async def put_encryption(call: Call) -> Reply:
    """PutBucketEncryption: the encryption of objects that name none."""
    call.store.bucket(call.bucket)
    root = parse_xml(await call.xml_body(), "ServerSideEncryptionRule")
    default = next(children(root, "ApplyServerSideEncryptionByDefault"), None)
    if default is None:
        raise OssError("MalformedXML", "ApplyServerSideEncryptionByDefault is missing.")
    given = {header: header_value(name, child_text(default, name, "").strip()) for name, header in _FIELDS.items()}
    rule = _checked({header: value for header, value in given.items() if value})
    call.store.index.set_rule(call.bucket, "encryption", msgspec.json.encode(rule))
    return Reply(200)


async def get_encryption(call: Call) -> Reply:
    """GetBucketEncryption. Raises NoSuchServerSideEncryptionRule."""
    call.store.bucket(call.bucket)
    rule = _rule(call)
    if not rule:
        raise OssError("NoSuchServerSideEncryptionRule", fields={"BucketName": call.bucket})
    return xml_reply(xml.document("ServerSideEncryptionRule", [_default(rule)]))


def _default(rule: dict[str, str]) -> str:
    fields = xml.elements(**{name: rule.get(header) for name, header in _FIELDS.items()})
    return xml.parent("ApplyServerSideEncryptionByDefault", fields)


async def delete_encryption(call: Call) -> Reply:
    """DeleteBucketEncryption."""
    call.store.bucket(call.bucket)
    call.store.index.set_rule(call.bucket, "encryption", None)
    return Reply(204)


def bucket_info(call: Call) -> list[str]:
    """The elements of GetBucketInfo that describe these rules."""
    rule = _rule(call)
    fields = xml.elements(**{name: rule.get(header) for name, header in _FIELDS.items() if header != _ALGORITHM})
    algorithm = xml.elements(SSEAlgorithm=rule.get(_ALGORITHM, "None"))
    versioning = xml.elements(Versioning=call.store.index.versions.status(call.bucket))
    return [*versioning, xml.parent("ServerSideEncryptionRule", [*algorithm, *fields])]
