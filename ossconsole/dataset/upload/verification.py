"""The verification of a dataset: compares what the journal says was sent with what the bucket lists."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import msgspec

from ossconsole.dataset.manifest import MANIFEST_NAME, merge_by_key, object_key
from ossconsole.dataset.upload.journal import ExpectedObject, Journal
from ossconsole.storage.client import ObjectStore
from ossconsole.storage.errors import StorageError
from ossconsole.storage.jobs.threads import PauseGate, ThreadPool
from ossconsole.storage.objects import ObjectSummary


class Mismatch(msgspec.Struct, frozen=True):
    """One difference: an object that is missing or has other content, or (`expected` None) an unknown object."""

    key: str
    expected: ExpectedObject | None
    summary: ObjectSummary | None


class _Doubt(msgspec.Struct, frozen=True):
    """An object of the expected size whose ETag is not the one in the journal."""

    key: str
    expected: ExpectedObject
    summary: ObjectSummary


def verify(
    store: ObjectStore,
    prefix: str,
    journal: Journal,
    report: Callable[[Mismatch], None],
    *,
    gate: PauseGate,
    threads: int,
) -> None:
    """Reports the differences between journal and bucket, from one listing and a HEAD for each object in doubt.

    Count, size and ETag are compared: OSS's ETag changes with the content, and the CRC64 was checked when the object
    with this ETag was written. An ETag need not be an MD5, and changes without the content where a bucket was copied or
    encrypted again: then the CRC64 decides, in `threads` requests simultaneously, and the journal gets the new ETag, so
    that the next verification needs no request. `report` is called by one thread at a time.

    Raises Cancelled, StorageError, JournalError.
    """
    reporting = threading.Lock()

    def resolve(doubt: _Doubt) -> None:
        if _has_content(store, doubt):
            journal.set_etag(doubt.expected.path, doubt.summary.etag)
            return
        with reporting:
            report(Mismatch(doubt.key, doubt.expected, doubt.summary))

    def doubts() -> Iterator[_Doubt]:
        for found in _differences(store, prefix, journal):
            gate.check()
            if isinstance(found, _Doubt):
                yield found
            elif found is not None:
                with reporting:
                    report(found)

    ThreadPool(resolve, gate, threads, limit=threads * 2, name="upload-verify").run(doubts())


def _differences(store: ObjectStore, prefix: str, journal: Journal) -> Iterator[Mismatch | _Doubt | None]:
    """What one listing says of each object; None for one that is as expected."""
    below = object_key(prefix, "")
    listed = ((summary.key[len(below) :], summary) for summary in store.list_all(below))
    for key, expected, summary in merge_by_key(((each.key, each) for each in journal.expected()), listed):
        if expected is None:
            yield Mismatch(key, None, summary) if key != MANIFEST_NAME else None
        elif summary is None or summary.size != expected.bytes:
            yield Mismatch(key, expected, summary)
        else:
            same = summary.etag.strip('"') == expected.etag.strip('"')
            yield None if same else _Doubt(key, expected, summary)


def _has_content(store: ObjectStore, doubt: _Doubt) -> bool:
    """Whether the object has the CRC64 of the bytes that were sent. Raises StorageError."""
    try:
        return str(store.head(doubt.summary.key).crc64) == doubt.expected.crc64
    except StorageError as error:
        if error.status == 404:
            return False
        raise
