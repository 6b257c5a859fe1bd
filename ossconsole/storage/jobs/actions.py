"""Jobs that delete, copy, rename, restore or measure objects; an object's details and presigned URL."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from ossconsole.config.errors import ConsoleError, SettingsError
from ossconsole.config.text import counted, safe_text
from ossconsole.storage.copying import copy_object, encryption_of, object_acl
from ossconsole.storage.errors import ALREADY_EXISTS, StorageError
from ossconsole.storage.jobs.job import Job
from ossconsole.storage.objects import ARCHIVED, SYMLINK, ObjectInfo, ObjectSummary

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

ObjectOrPrefix = ObjectSummary | str
"""An object, or the prefix of all objects below it."""


def objects_of(store: ObjectStore, sources: Sequence[ObjectOrPrefix]) -> Iterator[ObjectSummary]:
    """The objects of `sources`, in the order of their keys. Raises StorageError."""
    for source in sorted(sources, key=key_of):
        if isinstance(source, str):
            yield from store.list_all(source)
        else:
            yield source


def key_of(source: ObjectOrPrefix) -> str:
    """The object's key, or the prefix."""
    return source if isinstance(source, str) else source.key


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The totals so far. `newest` in seconds since the epoch, 0 when nothing was found."""

    objects: int = 0
    bytes: int = 0
    newest: int = 0
    by_class: dict[str, tuple[int, int]] = {}
    """Objects and bytes of each storage class."""


class Usage(Job):
    """Adds up the objects of `sources`; `totals` may be read at any time."""

    def __init__(self, store: ObjectStore, sources: Sequence[ObjectOrPrefix]) -> None:
        where = safe_text(key_of(sources[0])) if len(sources) == 1 else counted(len(sources), "item")
        super().__init__(f"Size of {where or 'the bucket'}", threads=1)
        self.totals = UsageTotals()
        self._store = store.pausing(self.wait_to_retry)
        self._sources = sources

    def work(self) -> None:
        """Lists every object."""
        objects = size = newest = 0
        by_class: dict[str, tuple[int, int]] = {}
        for found in objects_of(self._store, self._sources):
            self.check_cancelled()
            self.tracker.add_total(1, found.size)
            self.tracker.complete(None, found.size)
            objects, size, newest = objects + 1, size + found.size, max(newest, found.modified)
            count, part = by_class.get(found.storage_class, (0, 0))
            by_class[found.storage_class] = (count + 1, part + found.size)
            if objects % 500 == 0:
                self.totals = UsageTotals(objects=objects, bytes=size, newest=newest, by_class=dict(by_class))
        self.totals = UsageTotals(objects=objects, bytes=size, newest=newest, by_class=by_class)
        self.tracker.totals_known()


MAX_URL_LIFE_S = 7 * 24 * 3600  # of a V4 presigned URL
_DELETE_THREADS = 3  # a batch is 1,000 objects, and OSS counts each of them as a request


class Delete(Job):
    """Deletes objects, and everything below prefixes, in batches; compares OSS's answer with the request."""

    def __init__(self, store: ObjectStore, sources: Sequence[ObjectOrPrefix]) -> None:
        super().__init__(f"Delete in {store.uri()}", threads=_DELETE_THREADS)
        self._store = store.pausing(self.wait_to_retry)
        self._sources = sources
        self._failed: list[ObjectSummary] = []

    def work(self) -> None:
        """Deletes batch by batch."""
        self.pool(self._batches(), self._delete)

    def retry(self) -> Delete | None:
        """A job for the objects that failed. Never for the prefixes: by now they may have other objects."""
        return Delete(self._store, self._failed) if self._failed and self.error is None else None

    def _batches(self) -> Iterator[list[ObjectSummary]]:
        from ossconsole.storage.client import DELETE_BATCH_SIZE

        batch: list[ObjectSummary] = []
        for found in self.counted(objects_of(self._store, self._sources)):
            batch.append(found)
            if len(batch) == DELETE_BATCH_SIZE:
                yield batch
                batch = []
        if batch:
            yield batch

    def _delete(self, batch: list[ObjectSummary]) -> None:
        together = [found for found in batch if _fits_xml(found.key)]
        gone: set[str] = set()
        try:
            if together:
                result = self._store.call(
                    f"deleting {counted(len(together), 'object')} of {self._store.uri()}",
                    lambda: self._store.sdk.batch_delete_objects([found.key for found in together]),
                )
                gone.update(result.deleted_keys)
        except StorageError as error:
            self._breaker.check(error)
            for found in together:
                self._keep(found, error)
            together = []
        for found in together:
            if found.key in gone:
                self.succeed(found.key, found.size)
            else:
                self._keep(found, ConsoleError(f"OSS did not delete {safe_text(found.key)}."))
        for found in batch:
            if not _fits_xml(found.key):
                self._delete_alone(found)

    def _keep(self, summary: ObjectSummary, error: ConsoleError) -> None:
        self._failed.append(summary)
        self.fail(summary.key, error, summary.size)

    def _delete_alone(self, summary: ObjectSummary) -> None:
        try:
            self._store.delete(summary.key)
        except StorageError as error:
            self._breaker.check(error)
            self._keep(summary, error)
        else:
            self.succeed(summary.key, summary.size)


class Copy(Job):
    """Copies objects, and everything below prefixes, inside the bucket, on the server; `move` deletes the sources.

    The beginning `base` of each key becomes `target`. An existing object stays, and the copy onto it fails, unless
    `replace`. A copy keeps the source's metadata, headers, tags, storage class and ACL, a moved object its encryption
    too. A source is deleted only after its copy's CRC64 was compared with its own.
    """

    def __init__(
        self,
        store: ObjectStore,
        sources: Sequence[ObjectOrPrefix],
        base: str,
        target: str,
        *,
        move: bool = False,
        replace: bool = False,
    ) -> None:
        """Raises SettingsError when the target is the source, lies inside it, or is not a valid key."""
        verb = "Rename" if move else "Copy"
        super().__init__(f"{verb} to {safe_text(store.uri(target))}")
        for source in sources:
            _check_target(source, target + key_of(source)[len(base) :])
        self._store = store.pausing(self.wait_to_retry)
        self._sources = sources
        self._base = base
        self._target = target
        self._move = move
        self._replace = replace
        self._keeps_versions = False
        self._failed: list[ObjectSummary] = []

    def work(self) -> None:
        """Copies every object."""
        self._keeps_versions = self._reads_versions()
        self.pool(self.counted(objects_of(self._store, self._sources)), self._copy)

    def retry(self) -> Copy | None:
        """A job for the objects that failed; None after another end, as the copies of the others exist by now."""
        if not self._failed or self.error is not None:
            return None
        return Copy(self._store, self._failed, self._base, self._target, move=self._move, replace=self._replace)

    def _copy(self, summary: ObjectSummary) -> None:
        self.check_cancelled()
        target = self._target + summary.key[len(self._base) :]

        def progress(done: int) -> None:
            self.check_cancelled()
            self.tracker.advance(summary.key, done)

        try:
            if self._keeps_versions:
                self._check_free(target)
            acl = self._acl(summary.key)
            copy_object(self._store, summary, target, acl=acl, replace=self._replace, progress=progress)
            if self._move:
                self._check_copy(summary, target, acl)
                self._store.delete(summary.key)
        except StorageError as error:
            self.refused(summary.key, error, summary.size)
            self._failed.append(summary)
        else:
            self.succeed(summary.key, summary.size)

    def _reads_versions(self) -> bool:
        """Whether the bucket keeps versions, or may do so: then OSS overwrites whatever the request forbids."""
        try:
            return not self._replace and versioning(self._store) is not Versioning.NEVER
        except StorageError:
            return True  # a HEAD more for each object

    def _check_free(self, target: str) -> None:
        """Raises StorageError where the object exists."""
        if self._store.exists(target):
            raise StorageError(
                f"{self._store.uri(safe_text(target))} exists (FileAlreadyExists).",
                remedy=ALREADY_EXISTS,
                code="FileAlreadyExists",
            )

    def _acl(self, key: str) -> str:
        """The ACL to give to the copy. Raises StorageError where it cannot be read and the source would be deleted."""
        try:
            return object_acl(self._store, key)
        except StorageError as error:
            if self._move or error.code != "AccessDenied":
                raise
            self.note = "the objects' own ACLs cannot be read: the copies have the bucket's"
            return "default"

    def _check_copy(self, summary: ObjectSummary, target: str, acl: str) -> None:
        """Raises StorageError where the copy is not the same, or cannot be encrypted as the source is."""
        if summary.type == SYMLINK:  # its target may have been moved before it
            same = link_target(self._store, summary.key) == link_target(self._store, target)
            self._keep_unless(same, summary, target, "differs from")
            return
        source, copied = self._store.head(summary.key), self._store.head(target)
        encryption = encryption_of(source)
        if encryption and encryption != encryption_of(copied):
            # The bucket's default has changed since, or another key was named. A request that names the encryption may
            # need rights on the key: only these do.
            copy_object(self._store, summary, target, acl=acl, replace=True, encryption=encryption)
            copied = self._store.head(target)
            self._keep_unless(encryption == encryption_of(copied), summary, target, "is not encrypted as")
        self._keep_unless((source.size, source.crc64) == (copied.size, copied.crc64), summary, target, "differs from")

    @staticmethod
    def _keep_unless(same: bool, summary: ObjectSummary, target: str, how: str) -> None:
        if not same:
            raise StorageError(
                f"{safe_text(target)} {how} {safe_text(summary.key)}, so the original was kept.", remedy="Try again."
            )


def presigned_url(store: ObjectStore, key: str, life_s: int = 3600, *, endpoint: str = "") -> str:
    """A URL that lets anybody read the object for `life_s` seconds, at most seven days. Raises SettingsError.

    With temporary credentials it expires with them at the latest. `endpoint` replaces the store's.
    """
    if not 0 < life_s <= MAX_URL_LIFE_S:
        raise SettingsError(f"A presigned URL is valid for 1 to {MAX_URL_LIFE_S} seconds, not {life_s}.")
    bucket = store.sdk
    if endpoint:
        import oss2

        bucket = oss2.Bucket(bucket.auth, endpoint, bucket.bucket_name, region=bucket.region)
    url: str = store.call(
        f"signing a URL for {store.uri(safe_text(key))}",
        lambda: bucket.sign_url("GET", key, life_s, slash_safe=True),
    )
    return url


class RestoreTier(str, enum.Enum):
    """How soon an object of the cold classes is restored. The sooner, the dearer; Archive objects have no tiers."""

    EXPEDITED = "Expedited"
    STANDARD = "Standard"
    BULK = "Bulk"


RESTORE_TIERS = {
    "ColdArchive": {
        RestoreTier.EXPEDITED: "within 1 hour",
        RestoreTier.STANDARD: "in 2 to 5 hours",
        RestoreTier.BULK: "in 5 to 12 hours",
    },
    "DeepColdArchive": {
        RestoreTier.EXPEDITED: "within 12 hours",
        RestoreTier.STANDARD: "within 48 hours",
    },
}
"""By storage class; Archive has no tiers. https://www.alibabacloud.com/help/en/oss/user-guide/restore-objects-for-access
"""


def restore_time(storage_class: str, tier: RestoreTier) -> str:
    """When an archived object is readable after the request, as documented."""
    tiers = RESTORE_TIERS.get(storage_class)
    return "within a minute" if tiers is None else tiers.get(tier, tiers[RestoreTier.STANDARD])


class Restore(Job):
    """Requests that archived objects, and those below prefixes, become readable for `days`; others are skipped.

    `tier` is for the cold classes. `requested` counts the objects restored by this job, `in_progress` those requested
    before; `classes` are the storage classes of both.
    """

    skipped_label = "not archived"

    def __init__(
        self,
        store: ObjectStore,
        sources: Sequence[ObjectOrPrefix],
        *,
        days: int = 1,
        tier: RestoreTier = RestoreTier.STANDARD,
    ) -> None:
        super().__init__(f"Restore in {store.uri()}")
        self.requested = self.in_progress = 0
        self.tier = tier
        self.classes: set[str] = set()
        self._store = store.pausing(self.wait_to_retry)
        self._sources = sources
        self._days = days
        self._counting = threading.Lock()

    def work(self) -> None:
        """Requests the restore of every archived object."""
        self.pool(self.counted(objects_of(self._store, self._sources)), self._restore)

    def retry(self) -> Restore:
        """The same again: what was requested before is in progress, which is no failure."""
        return Restore(self._store, self._sources, days=self._days, tier=self.tier)

    def _restore(self, summary: ObjectSummary) -> None:
        archived = summary.storage_class in ARCHIVED
        try:
            fresh = archived and self._request(summary)
        except StorageError as error:
            self.refused(summary.key, error, summary.size)
            return
        with self._counting:
            self.requested += fresh
            self.in_progress += archived and not fresh
            if archived:
                self.classes.add(summary.storage_class)
        self.succeed(summary.key, summary.size, skipped=not archived)

    def _request(self, summary: ObjectSummary) -> bool:
        """False when an earlier request is still in progress."""
        import oss2

        parameters = None
        if tiers := RESTORE_TIERS.get(summary.storage_class):
            tier = self.tier if self.tier in tiers else RestoreTier.STANDARD
            parameters = oss2.models.RestoreJobParameters(tier.value)
        # Days are marked as required; the cold classes take a tier, and an Archive object must not have one.
        wanted = oss2.models.RestoreConfiguration(days=self._days, job_parameters=parameters)
        action = f"restoring {self._store.uri(safe_text(summary.key))}"
        try:
            self._store.call(action, lambda: self._store.sdk.restore_object(summary.key, input=wanted))
        except StorageError as error:
            if error.code == "RestoreAlreadyInProgress":
                return False
            raise
        return True


class Versioning(str, enum.Enum):
    """Whether a bucket keeps objects that are overwritten or deleted, as versions."""

    NEVER = "never"
    ENABLED = "Enabled"
    SUSPENDED = "Suspended"


def versioning(store: ObjectStore) -> Versioning:
    """Whether the bucket keeps versions. Raises StorageError."""
    status = store.call(f"reading the versioning of {store.uri()}", store.sdk.get_bucket_versioning).status
    return Versioning(status) if status else Versioning.NEVER


T = TypeVar("T")
_MAX_VERSIONS = 100


class ObjectVersion(msgspec.Struct, frozen=True):
    """One version of an object; `is_marker` for the marker of a deletion."""

    version_id: str
    is_latest: bool
    modified: int
    size: int
    is_marker: bool = False


class ObjectDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`acl`, `tags` and `versions` are None where OSS refused to give them; `unavailable` has the reason by name.

    `link` is the object that a symbolic link names, "" for any other object.
    """

    info: ObjectInfo
    acl: str | None
    tags: dict[str, str] | None
    versions: list[ObjectVersion] | None
    unavailable: dict[str, str]
    link: str = ""


def object_details(store: ObjectStore, key: str) -> ObjectDetails:
    """Headers, ACL, tags and versions, in up to five requests. Raises StorageError when the HEAD fails."""
    info = store.head(key)
    unavailable: dict[str, str] = {}

    def ask(name: str, request: Callable[[], T]) -> T | None:
        try:
            return store.call(f"reading the {name} of {store.uri(safe_text(key))}", request)
        except StorageError as error:
            unavailable[name] = error.code or error.message
            return None

    return ObjectDetails(
        info=info,
        acl=ask("acl", lambda: str(store.sdk.get_object_acl(key).acl)),
        tags=ask("tags", lambda: dict(store.sdk.get_object_tagging(key).tag_set.tagging_rule)),
        versions=ask("versions", lambda: _versions(store, key)),
        unavailable=unavailable,
        link=(ask("link", lambda: link_target(store, key)) or "") if info.object_type == SYMLINK else "",
    )


def link_target(store: ObjectStore, key: str) -> str:
    """The key of the object that a symbolic link names. Raises StorageError."""
    action = f"reading the symbolic link {store.uri(safe_text(key))}"
    return store.call(action, lambda: str(store.sdk.get_symlink(key).target_key))


def _versions(store: ObjectStore, key: str) -> list[ObjectVersion]:
    if not store.sdk.get_bucket_versioning().status:
        return []
    page = store.sdk.list_object_versions(prefix=key, max_keys=_MAX_VERSIONS)
    found = [
        ObjectVersion(v.versionid, v.is_latest, v.last_modified, v.size) for v in page.versions if v.key == key
    ] + [
        ObjectVersion(m.versionid, m.is_latest, m.last_modified, 0, is_marker=True)
        for m in page.delete_marker
        if m.key == key
    ]
    # The times are whole seconds; within one only the latest version is known to be first.
    return sorted(found, key=lambda version: (version.is_latest, version.modified), reverse=True)


def _check_target(source: ObjectOrPrefix, target: str) -> None:
    key = key_of(source)
    if target == key or (isinstance(source, str) and target.startswith(key)):
        raise SettingsError(
            f"{safe_text(target)} is {safe_text(key)} itself or inside it.", remedy="Enter another name."
        )
    if not 0 < len(target.encode("utf-8", "surrogatepass")) <= 1023 or target[0] in "/\\":
        raise SettingsError(
            f"{safe_text(target)!r} is not a valid object name.",
            remedy="Use 1 to 1,023 bytes, not beginning with / or \\.",
        )


def _fits_xml(key: str) -> bool:
    """Whether the key can be part of a batch request: XML cannot contain control characters."""
    return all(
        " " <= character <= "~" or ("\xa0" <= character < "\ufffe") or character >= "\U00010000" for character in key
    )
