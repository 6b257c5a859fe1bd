"""Copies of objects inside a bucket, on the server: whole or in parts, with the same result."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from ossconsole.config.text import safe_text
from ossconsole.storage.errors import StorageError
from ossconsole.storage.objects import APPENDABLE, ObjectInfo, ObjectSummary

log = logging.getLogger(__name__)
T = TypeVar("T")

COPY_WHOLE_BELOW = 10**9
"""Bytes. CopyObject is documented for objects "smaller than 1 GB" on one page and up to 5 GB on others; by neither
reading a larger object goes this way."""
COPY_PART_SIZE = 256 << 20
_FORBID = {"x-oss-forbid-overwrite": "true"}
_ENCRYPTION = (
    "x-oss-server-side-encryption",
    "x-oss-server-side-data-encryption",
    "x-oss-server-side-encryption-key-id",
)
# What CopyObject copies of the headers; the rest of them describe the bytes or the reply.
_KEPT = ("cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires")


class CopyStore(Protocol):
    """The part of ObjectStore that a copy needs."""

    @property
    def sdk(self) -> Any:
        """oss2's bucket."""

    def call(self, action: str, request: Callable[[], T]) -> T:
        """As ObjectStore.call."""

    def head(self, key: str) -> ObjectInfo:
        """As ObjectStore.head."""

    def uri(self, key: str = "") -> str:
        """As ObjectStore.uri."""


def object_acl(store: CopyStore, key: str) -> str:
    """The object's own ACL, "default" where it has the bucket's. Raises StorageError."""
    action = f"reading the ACL of {store.uri(safe_text(key))}"
    return store.call(action, lambda: str(store.sdk.get_object_acl(key).acl))


def encryption_of(info: ObjectInfo) -> dict[str, str]:
    """The headers that name the object's encryption, also those that a request for the same one needs."""
    return {name: info.headers[name] for name in _ENCRYPTION if name in info.headers}


def copy_object(
    store: CopyStore,
    source: ObjectSummary,
    target: str,
    *,
    acl: str = "default",
    replace: bool = False,
    encryption: Mapping[str, str] = MappingProxyType({}),
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Copies `source` to the key `target` with its metadata, headers, tags and storage class, and with `acl`.

    It gets the encryption of the headers `encryption`, by default the bucket's, as every new object does.

    An existing object is refused unless `replace`; a bucket with versions overwrites it nevertheless. `progress` is
    called with the bytes so far before and after each part; what it raises ends the copy. Raises StorageError.
    """
    if source.type == APPENDABLE:
        raise StorageError(
            f"{store.uri(safe_text(source.key))} was written by appending, and OSS does not copy such objects.",
            remedy="Download it and upload it again.",
        )
    headers = {"x-oss-storage-class": source.storage_class, **encryption}
    if acl != "default":
        headers["x-oss-object-acl"] = acl
    if source.size >= COPY_WHOLE_BELOW:
        _copy_parts(store, source, target, headers, {} if replace else _FORBID, progress)
        return
    headers |= {} if replace else _FORBID
    _call_once(
        store,
        f"copying {store.uri(safe_text(source.key))} to {store.uri(safe_text(target))}",
        lambda: store.sdk.copy_object(store.sdk.bucket_name, source.key, target, headers=headers),
        source.key,
        target,
        refusal="FileAlreadyExists",
    )


def _copy_parts(  # noqa: PLR0917
    store: CopyStore,
    source: ObjectSummary,
    target: str,
    headers: dict[str, str],
    forbid: dict[str, str],
    progress: Callable[[int], None],
) -> None:
    import oss2

    sdk, action = store.sdk, f"copying {store.uri(safe_text(source.key))} in parts"
    info = store.head(source.key)
    headers = headers | _described(store, info)
    same = {"x-oss-copy-source-if-match": info.etag}  # a part of another version is refused
    upload = store.call(action, lambda: sdk.init_multipart_upload(target, headers=headers | forbid)).upload_id
    try:
        parts = []
        for number, start in enumerate(range(0, info.size, COPY_PART_SIZE), 1):
            progress(start)
            span = (start, min(start + COPY_PART_SIZE, info.size) - 1)
            part = store.call(
                action,
                functools.partial(
                    sdk.upload_part_copy, sdk.bucket_name, source.key, span, target, upload, number, headers=same
                ),
            )
            parts.append(oss2.models.PartInfo(number, part.etag))
        progress(info.size)
        complete = functools.partial(sdk.complete_multipart_upload, target, upload, parts, headers=forbid)
        _call_once(store, action, complete, source.key, target, refusal="NoSuchUpload")
    except BaseException:
        _abort(store, action, target, upload)
        raise


def _described(store: CopyStore, info: ObjectInfo) -> dict[str, str]:
    """The headers with which a new object gets the metadata, headers and tags of another one."""
    headers = {name: info.headers[name] for name in _KEPT if name in info.headers}
    headers |= {f"x-oss-meta-{name}": value for name, value in info.metadata.items()}
    if info.headers.get("x-oss-tagging-count", "0") != "0":
        action = f"reading the tags of {store.uri(safe_text(info.key))}"
        tags = store.call(action, lambda: store.sdk.get_object_tagging(info.key).tag_set)
        headers["x-oss-tagging"] = tags.to_query_string()
    return headers


def _call_once(
    store: CopyStore, action: str, request: Callable[[], Any], source: str, target: str, *, refusal: str
) -> None:
    """Makes a copy with a request that cannot be repeated.

    Where it took effect and its answer was lost, OSS refuses the retry with the code `refusal`, and the target has the
    content of the source. Raises StorageError.
    """
    attempts = 0

    def attempt() -> None:
        nonlocal attempts
        attempts += 1
        request()

    try:
        store.call(action, attempt)
    except StorageError as error:
        if error.code != refusal or attempts == 1:
            raise
        wanted, found = store.head(source), store.head(target)
        if (wanted.size, wanted.crc64) != (found.size, found.crc64):
            raise


def _abort(store: CopyStore, action: str, target: str, upload: str) -> None:
    try:
        store.call(f"aborting: {action}", lambda: store.sdk.abort_multipart_upload(target, upload))
    except StorageError as error:  # the reason for the abort is the one to report
        log.warning("The parts of a copy stay in the bucket: %s", error)
