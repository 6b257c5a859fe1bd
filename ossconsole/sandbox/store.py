"""The store: the index and the blobs of one sandbox folder, changed together."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from ossconsole.config.files import READ_WRITE, is_damage, open_private, set_aside, unwritable
from ossconsole.sandbox.blobs import BLOBS_NAME, LARGE_BLOBS_NAME, BlobStore, BlobWriter
from ossconsole.sandbox.index import Index
from ossconsole.sandbox.records import Attributes, Blob, Bucket, Part, Retention, StoredObject, Upload
from ossconsole.sandbox.replies import OssError
from ossconsole.sandbox.versions import NULL_ID, check_version_id

log = logging.getLogger(__name__)

INDEX_NAME = "index.sqlite"
# Also a deletion writes: on a full disk it gets the space of this file.
RESERVE_NAME, _RESERVE_BYTES = "reserve", 1 << 20
MAX_BUCKETS = 100
MIN_PART_BYTES = 102_400
MAX_APPENDED_BYTES = 5 << 30  # "The final size of an object created using AppendObject cannot exceed 5 GB."
ARCHIVE_CLASSES = frozenset({"Archive", "ColdArchive", "DeepColdArchive"})


class SandboxStore:
    """The buckets, objects and uploads of a sandbox. Used in one thread; long copies run in another one."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        """Opens or creates the files; damaged ones are set aside, all together. Raises SettingsError."""
        self._clock = clock
        self._completing: set[str] = set()
        try:
            self._open(directory)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise unwritable(directory, OSError(f"SQLite says {error}")) from error
            files = (directory / name for name in (INDEX_NAME, BLOBS_NAME, LARGE_BLOBS_NAME))
            kept = [set_aside(path) for path in files if path.exists()]
            log.warning(
                "The sandbox's objects were damaged (%s). They are stored as %s.", error, ", ".join(map(str, kept))
            )
            self._open(directory)

    def _open(self, directory: Path) -> None:
        with contextlib.ExitStack() as opened:
            self.blobs = opened.enter_context(contextlib.closing(BlobStore(directory)))
            self.index = opened.enter_context(contextlib.closing(Index(directory / INDEX_NAME)))
            self._drop(self.blobs.all() - self.index.blob_ids())
            self._reserve = directory / RESERVE_NAME
            descriptor = open_private(self._reserve, READ_WRITE)
            with contextlib.suppress(OSError):  # the disk is full already
                os.posix_fallocate(descriptor, 0, _RESERVE_BYTES)
            os.close(descriptor)
            self.buckets = {bucket.name: bucket for bucket in self.index.buckets()}
            opened.pop_all()

    def close(self) -> None:
        """Closes the files."""
        self.index.close()
        self.blobs.close()

    # Buckets

    def bucket(self, name: str) -> Bucket:
        """The bucket. Raises NoSuchBucket."""
        found = self.buckets.get(name)
        if found is None:
            raise OssError("NoSuchBucket", fields={"BucketName": name})
        return found

    def put_bucket(self, bucket: Bucket) -> None:
        """Creates or changes a bucket. Raises TooManyBuckets."""
        if bucket.name not in self.buckets and len(self.buckets) >= MAX_BUCKETS:
            raise OssError("TooManyBuckets", fields={"BucketName": bucket.name})
        self.index.put_bucket(bucket)
        self.buckets[bucket.name] = bucket

    def create_bucket(self, name: str, *, acl: str = "private", storage_class: str = "Standard") -> None:
        """Creates an empty bucket. Raises TooManyBuckets."""
        self.put_bucket(Bucket(name=name, created=self._clock(), acl=acl, storage_class=storage_class))

    def delete_bucket(self, name: str) -> None:
        """Deletes an empty bucket. Raises NoSuchBucket, BucketNotEmpty."""
        self.bucket(name)
        self.index.delete_bucket(name)
        del self.buckets[name]

    # Objects

    def get(self, bucket: str, key: str) -> StoredObject:
        """The object. Raises NoSuchBucket, NoSuchKey."""
        self.bucket(bucket)
        found = self.index.get(bucket, key)
        if found is None:
            raise OssError("NoSuchKey", fields={"Key": key})
        return found

    def version(self, bucket: str, key: str, version_id: str) -> StoredObject:
        """A version of the object, or with "" the object. Raises NoSuchBucket, NoSuchKey, NoSuchVersion."""
        if not version_id:
            return self.get(bucket, key)
        self.bucket(bucket)
        if not self.index.versions.kept(bucket):
            if version_id == NULL_ID:
                return self.get(bucket, key)
            raise OssError("InvalidArgument", "The bucket has no versions.")
        found = self.index.versions.get(bucket, key, version_id)
        if found is None:
            check_version_id(version_id)
            raise OssError("NoSuchVersion", fields={"Key": key, "VersionId": version_id})
        if found.is_marker:
            fields = {"Method": "GET", "ResourceType": "DeleteMarker"}
            raise OssError("MethodNotAllowed", fields=fields, headers={"x-oss-delete-marker": "true"})
        return found.stored()

    def put(
        self,
        bucket: str,
        key: str,
        blob: Blob,
        attributes: Attributes,
        *,
        forbid: bool = False,
        kind: str = "Normal",
    ) -> StoredObject:
        """Stores `blob` as the object; `forbid` refuses to overwrite. Raises NoSuchBucket, FileAlreadyExists."""
        etag = _etag(attributes, blob.md5)
        stored = StoredObject(key, blob.id, blob.size, etag, blob.crc64, self._clock(), kind, attributes)
        self._put(bucket, stored, forbid=forbid)
        return stored

    def change(self, bucket: str, stored: StoredObject, version_id: str = "") -> None:
        """Replaces the attributes of an object, or of one of its versions; its bytes stay."""
        self.index.change(bucket, stored, version_id)

    def copy(
        self, source: StoredObject, bucket: str, key: str, attributes: Attributes, *, forbid: bool = False
    ) -> StoredObject:
        """Copies an object without copying large blobs. Raises NoSuchBucket, FileAlreadyExists."""
        self.bucket(bucket)
        stored = msgspec.structs.replace(
            source,
            key=key,
            blob=self.blobs.link(source.blob),
            etag=_etag(attributes, source.etag),
            modified=self._clock(),
            attributes=attributes,
            restored_until=None,
        )
        self._put(bucket, stored, forbid=forbid)
        return stored

    def append(self, bucket: str, key: str, position: int, data: BlobWriter, attributes: Attributes) -> StoredObject:
        """Appends `data` to an appendable object, or creates one.

        Raises PositionNotEqualToLength, ObjectNotAppendable, EntityTooLarge (its code is UNVERIFIED).
        """
        try:
            found = self._appendable(bucket, key, position, data.size)
        except BaseException:
            data.discard()
            raise
        whole = added = data.finish()
        if found is not None:
            try:
                whole = self.blobs.append(Blob(found.blob, found.size, "", found.crc64), added)
            finally:
                self._drop([added.id])
        etag = hashlib.md5(f"{whole.crc64}-{whole.size}".encode(), usedforsecurity=False).hexdigest().upper()
        attributes = found.attributes if found else attributes
        stored = StoredObject(key, whole.id, whole.size, etag, whole.crc64, self._clock(), "Appendable", attributes)
        self._put(bucket, stored)
        return stored

    def _appendable(self, bucket: str, key: str, position: int, size: int) -> StoredObject | None:
        """The object that `size` bytes may be appended to at `position`, None for a new one."""
        self.bucket(bucket)
        self._check_mutable(bucket, key)
        found = self.index.get(bucket, key)
        if found is not None and found.type != "Appendable":
            raise OssError("ObjectNotAppendable", fields={"ObjectName": key})
        length = found.size if found else 0
        if position != length:
            raise OssError(
                "PositionNotEqualToLength",
                fields={"ObjectName": key},
                headers={"x-oss-next-append-position": str(length)},
            )
        if length + size > MAX_APPENDED_BYTES:
            raise OssError("EntityTooLarge", fields={"MaxSizeAllowed": str(MAX_APPENDED_BYTES)})
        return found

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        """Deletes the objects that exist; with versioning adds delete markers. Raises NoSuchBucket, FileImmutable."""
        self.bucket(bucket)
        names = list(keys)
        for key in names:
            self._check_mutable(bucket, key)
        self._drop(self._with_reserve(lambda: self.index.delete(bucket, names, self._clock())))

    def delete_version(self, bucket: str, key: str, version_id: str) -> bool:
        """Deletes a version permanently; True when it was a delete marker. One that does not exist is no error.

        Raises InvalidArgument for what is no version id.
        """
        self.bucket(bucket)
        if not self.index.versions.kept(bucket) and version_id == NULL_ID:
            self.delete(bucket, [key])
            return False
        found = self.index.versions.get(bucket, key, version_id)
        if found is None:
            check_version_id(version_id)
            return False
        self._check_mutable(bucket, key)
        self._drop(self._with_reserve(lambda: self.index.delete_version(bucket, key, version_id)))
        return found.is_marker

    def archived(self, stored: StoredObject) -> bool:
        """Whether the object is archived and not restored: it cannot be read."""
        if stored.attributes.storage_class not in ARCHIVE_CLASSES:
            return False
        return not stored.restore_status(self._clock()).startswith('ongoing-request="false"')

    def restore(self, bucket: str, stored: StoredObject, *, days: int, wait_s: float, version_id: str = "") -> bool:
        """Makes an archived object readable in `wait_s` seconds and for `days` then; False where it was readable.

        Raises RestoreAlreadyInProgress, unless it is ready earlier than by the restore in progress.
        """
        now = self._clock()
        fresh = self.archived(stored)
        ready = now + wait_s if fresh else 0.0
        if stored.restore_status(now) and fresh and ready >= stored.attributes.restoring_until:
            raise OssError("RestoreAlreadyInProgress", fields={"ObjectName": stored.key})
        attributes = msgspec.structs.replace(stored.attributes, restoring_until=ready)
        until = max(now, ready) + days * 86_400
        self.change(bucket, msgspec.structs.replace(stored, restored_until=until, attributes=attributes), version_id)
        return fresh

    def finish_restores(self) -> None:
        """Ends every restore in progress now."""
        for bucket in self.buckets:
            for stored in self.index.scan(bucket, b"", b"", -1, inclusive=True):
                if stored.attributes.restoring_until:
                    attributes = msgspec.structs.replace(stored.attributes, restoring_until=0.0)
                    self.change(bucket, msgspec.structs.replace(stored, attributes=attributes))

    def retention(self, bucket: str) -> Retention | None:
        """The bucket's retention policy (WORM), None without one.

        "If not locked within 24 hours, the policy expires."
        """
        rule = self.index.rule(bucket, "worm")
        found = None if rule is None else msgspec.json.decode(rule, type=Retention)
        return found if found and (found.locked or found.created + 86_400 > self._clock()) else None

    def _check_mutable(self, bucket: str, key: str) -> None:
        """Raises FileImmutable where the bucket's retention policy protects the object."""
        retention = self.retention(bucket)
        found = self.index.get(bucket, key) if retention else None
        if retention and found and found.modified + retention.days * 86_400 > self._clock():
            raise OssError("FileImmutable", fields={"ObjectName": key})

    # Uploads

    def begin_upload(self, bucket: str, key: str, attributes: Attributes) -> Upload:
        """Starts a multipart upload. Raises NoSuchBucket."""
        self.bucket(bucket)
        upload = Upload(id=secrets.token_hex(16).upper(), key=key, started=self._clock(), attributes=attributes)
        self.index.put_upload(bucket, upload)
        return upload

    def put_part(self, bucket: str, key: str, upload_id: str, number: int, blob: Blob) -> Part:
        """Adds a part. Raises NoSuchUpload, also while the upload is being completed, after removing the blob."""
        part = Part(number, blob, self._clock())
        try:
            self._check_open(upload_id)
            dropped = self.index.put_part(bucket, key, upload_id, part)
        except BaseException:
            self._drop([blob.id])
            raise
        self._drop(dropped)
        return part

    async def complete(
        self, bucket: str, key: str, upload_id: str, wanted: Sequence[tuple[int, str]], *, forbid: bool = False
    ) -> StoredObject:
        """Joins the `wanted` parts (number, ETag) into the object; an empty sequence means all parts.

        Raises NoSuchUpload, InvalidPart, InvalidPartOrder, EntityTooSmall, FileAlreadyExists.
        """
        upload = self.index.upload(bucket, key, upload_id)
        parts = _selected(self.index.parts(upload_id), wanted)
        self._check_open(upload_id)
        self._completing.add(upload_id)
        try:
            blob = await asyncio.to_thread(self.blobs.join, [(part.blob.id, 0, part.blob.size) for part in parts])
        finally:
            self._completing.discard(upload_id)
        digests = b"".join(bytes.fromhex(part.blob.md5) for part in parts)
        etag = _etag(
            upload.attributes, f"{hashlib.md5(digests, usedforsecurity=False).hexdigest().upper()}-{len(parts)}"
        )
        now = self._clock()
        stored = StoredObject(key, blob.id, blob.size, etag, blob.crc64, now, "Multipart", upload.attributes)
        self._put(bucket, stored, completes=upload_id, forbid=forbid)
        return stored

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Raises NoSuchUpload, also while the upload is being completed."""
        self._check_open(upload_id)
        self._drop(self._with_reserve(lambda: self.index.delete_upload(bucket, key, upload_id)))

    def _check_open(self, upload_id: str) -> None:
        """Raises NoSuchUpload for an upload that is being completed: its parts are being read."""
        if upload_id in self._completing:
            raise OssError("NoSuchUpload", fields={"UploadId": upload_id})

    def _put(self, bucket: str, stored: StoredObject, *, completes: str = "", forbid: bool = False) -> None:
        try:
            self.bucket(bucket)
            self._check_mutable(bucket, stored.key)
            dropped = self.index.put(bucket, stored, completes=completes, forbid_overwrite=forbid)
        except BaseException:
            present = self.index.get(bucket, stored.key)
            if present is None or present.blob != stored.blob:  # else it was appended to in place
                self._drop([stored.blob])
            raise
        self._drop(dropped)

    def _with_reserve(self, deletion: Callable[[], list[str]]) -> list[str]:
        """The blobs that the deletion drops. Where it fails (a full disk), it is done again without the reserve."""
        try:
            return deletion()
        except sqlite3.OperationalError:
            self._reserve.unlink(missing_ok=True)
            return deletion()

    def _drop(self, blob_ids: Iterable[str]) -> None:
        """Removes blobs that no row names. The change has taken effect: a full disk must not make it an error."""
        try:
            self.blobs.remove(blob_ids)
        except OSError as error:
            log.warning("Blobs could not be removed (%s); the next start removes them.", error)


def _etag(attributes: Attributes, usual: str) -> str:
    """The ETag of a new object: with keys of the key management service it is not the content's MD5."""
    is_kms = attributes.encryption.get("x-oss-server-side-encryption") == "KMS"
    return secrets.token_hex(16).upper() if is_kms else usual


def _selected(parts: list[Part], wanted: Sequence[tuple[int, str]]) -> list[Part]:
    numbers = [number for number, _ in wanted]
    if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise OssError("InvalidPartOrder")
    known = {part.number: part for part in parts}
    for number, etag in wanted:
        if number not in known or known[number].blob.md5 != etag.upper():
            raise OssError("InvalidPart", fields={"PartNumber": str(number)})
    selected = [known[number] for number in numbers] if wanted else parts
    if not selected:
        raise OssError("InvalidPart", "The upload has no parts.")
    for part in selected[:-1]:
        if part.blob.size < MIN_PART_BYTES:
            fields = {"ProposedSize": str(part.blob.size), "PartNumber": str(part.number)}
            raise OssError("EntityTooSmall", fields=fields)
    return selected
