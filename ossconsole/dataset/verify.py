"""Verification: what the journal says is in the bucket, compared with one listing of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from ossconsole.dataset.journal import Expected, Journal
from ossconsole.dataset.manifest import MANIFEST_NAME, object_key
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.objects import ObjectSummary


class Finding(msgspec.Struct, frozen=True):
    """One difference: an object that is missing or has other content, or (`expected` None) one nobody expects."""

    key: str
    expected: Expected | None
    summary: ObjectSummary | None


def verify(store: ObjectStore, prefix: str, journal: Journal) -> Iterator[Finding]:
    """The differences between journal and bucket, from one listing and a HEAD for each object in doubt.

    Count, size and ETag are compared: OSS's ETag changes with the content, and the CRC64 was checked when the object
    with this ETag was written. Raises StorageError, JournalError.
    """
    below = object_key(prefix, "")
    there = ((summary.key[len(below) :], summary) for summary in store.list_all(below))
    for key, expected, summary in _merge(journal.expected(), there):
        if expected is None:
            if key != MANIFEST_NAME:
                yield Finding(key, None, summary)
        elif summary is None or not _same(store, expected, summary):
            yield Finding(key, expected, summary)


def _same(store: ObjectStore, expected: Expected, summary: ObjectSummary) -> bool:
    if summary.size != expected.bytes:
        return False
    if summary.etag.strip('"') == expected.etag.strip('"'):
        return True
    try:
        return str(store.head(summary.key).crc64) == expected.crc64
    except StorageError as error:
        if error.status == 404:
            return False
        raise


def _merge(
    expected: Iterator[Expected], there: Iterable[tuple[str, ObjectSummary]]
) -> Iterator[tuple[str, Expected | None, ObjectSummary | None]]:
    """Both, side by side by key; each comes in the order of its keys' UTF-8 bytes."""
    wanted = next(expected, None)
    for key, summary in there:
        while wanted is not None and wanted.key.encode() < key.encode():
            yield wanted.key, wanted, None
            wanted = next(expected, None)
        if wanted is not None and wanted.key == key:
            yield key, wanted, summary
            wanted = next(expected, None)
        else:
            yield key, None, summary
    while wanted is not None:
        yield wanted.key, wanted, None
        wanted = next(expected, None)
