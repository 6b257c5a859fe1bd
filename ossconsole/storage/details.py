"""Everything OSS tells of one object: headers, ACL, tags, versions; what is denied hides nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from ossconsole.config.text import safe_text
from ossconsole.storage.errors import StorageError
from ossconsole.storage.objects import ObjectInfo

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore

T = TypeVar("T")
_MAX_VERSIONS = 100


class ObjectVersion(msgspec.Struct, frozen=True):
    """One version of an object; `is_marker` when it is the note that the object was deleted."""

    version_id: str
    is_latest: bool
    modified: int
    size: int
    is_marker: bool = False


class ObjectDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`acl`, `tags` and `versions` are None where OSS would not tell; why is in `unavailable`."""

    info: ObjectInfo
    acl: str | None
    tags: dict[str, str] | None
    versions: list[ObjectVersion] | None
    unavailable: dict[str, str]


def object_details(store: ObjectStore, key: str) -> ObjectDetails:
    """Asks for all of it; up to five requests. Raises StorageError only when the object itself cannot be looked at."""
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
    )


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
    # The times have whole seconds, within which the latest alone is known to come first.
    return sorted(found, key=lambda version: (version.is_latest, version.modified), reverse=True)
