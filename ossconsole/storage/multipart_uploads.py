"""Unfinished multipart uploads: invisible in listings, paid for all the same."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from ossconsole.config.text import safe_text

if TYPE_CHECKING:
    from ossconsole.storage.client import ObjectStore


class UnfinishedUpload(msgspec.Struct, frozen=True):
    """An upload that was begun and neither completed nor aborted. `begun` in seconds since the epoch (UTC)."""

    key: str
    upload_id: str
    begun: int
    parts: int
    bytes: int


def list_uploads(store: ObjectStore, prefix: str = "") -> Iterator[UnfinishedUpload]:
    """The unfinished uploads below `prefix`, each with what it holds so far (one more request each)."""
    key_marker = upload_marker = ""
    while True:
        page = store.call(
            f"listing the unfinished uploads of {store.uri(safe_text(prefix))}",
            functools.partial(
                store.sdk.list_multipart_uploads, prefix, key_marker=key_marker, upload_id_marker=upload_marker
            ),
        )
        for upload in page.upload_list:
            parts, size = _parts(store, upload.key, upload.upload_id)
            yield UnfinishedUpload(upload.key, upload.upload_id, upload.initiation_date, parts, size)
        if not page.is_truncated:
            return
        key_marker, upload_marker = page.next_key_marker, page.next_upload_id_marker


def abort_upload(store: ObjectStore, upload: UnfinishedUpload) -> None:
    """Gives up the upload and frees its parts."""
    store.call(
        f"aborting an upload of {store.uri(safe_text(upload.key))}",
        lambda: store.sdk.abort_multipart_upload(upload.key, upload.upload_id),
    )


def _parts(store: ObjectStore, key: str, upload_id: str) -> tuple[int, int]:
    count = size = 0
    marker = ""
    while True:
        page = store.call(
            f"listing the parts of an upload of {store.uri(safe_text(key))}",
            functools.partial(store.sdk.list_parts, key, upload_id, marker=marker),
        )
        count += len(page.parts)
        size += sum(part.size for part in page.parts)
        if not page.is_truncated:
            return count, size
        marker = page.next_marker
